"""Charts of the evaluation: rows, bins, dots and paths lie where their numbers say."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from endomust_core import charts
from endomust_core.charts import Interval, Series
from endomust_core.cloud_view import Path3D, cloud_view, path_view

NAN = float("nan")


def numbers(pattern, svg):
    return [float(value) for value in re.findall(pattern, svg)]


def test_an_interval_holds_its_value_and_zero_has_a_line():
    rows = [Interval("a", -1.0, -2.0, 0.5), Interval("b", 3.0), Interval("c", NAN, others=[(1.0, "second")])]
    svg = charts.interval_chart(rows, "difference", zero=True)
    ElementTree.fromstring(svg)
    assert "nan" not in svg
    low, high = re.search(r'thick first" d="M([\d.]+) [\d.]+H([\d.]+)"', svg).groups()
    dots = numbers(r'<circle class="dot first" cx="([\d.]+)"', svg)
    zero = float(re.search(r'class="axis" d="M([\d.]+) \d+V', svg).group(1))
    assert float(low) < dots[0] < zero < float(high) < dots[1]
    assert (zero - dots[0]) * 3 == pytest.approx(dots[1] - zero, abs=0.5)
    assert svg.count('class="tick second"') == 1


def test_long_names_keep_their_end():
    svg = charts.interval_chart([Interval("dataset1/keyframe3/" * 3 + "left", 1.0)], "x")
    assert "left</text>" in svg and "…" in svg


def test_bins_are_as_wide_as_their_edges_and_bars_as_large_as_their_share():
    svg = charts.binned_chart([0, 1, 3, 4, 5], [0.1, 0.2, None, 0.3], [10, 20, 0, 0], "x", "y")
    ElementTree.fromstring(svg)
    widths = numbers(r'step first" d="M[\d.]+ [\d.]+h([\d.]+)"', svg)
    assert len(widths) == 2, "a bin without pixels has no step"
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
    bars = numbers(r'class="share"[^>]* height="([\d.]+)"', svg)
    assert bars[0] == pytest.approx(bars[1], rel=0.01), "twice the pixels in twice the width is as dense"
    assert "no values" in charts.binned_chart([0, 1], [None], [0], "x", "y")


def test_the_diagonal_of_a_scatter_is_where_both_are_equal():
    svg = charts.scatter_chart(np.array([1, 2, 3, NAN]), np.array([1, 2, 3, 1.0]), "x", "y")
    x, y = (numbers(rf'<circle {axis}="([\d.]+)"', svg) if axis == "cx" else numbers(r' cy="([\d.]+)"', svg)
            for axis in ("cx", "cy"))  # fmt: skip
    x0, y0, x1, y1 = map(float, re.search(r'class="mark" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg).groups())
    assert len(x) == 3
    for a, b in zip(x, y, strict=True):
        assert (b - y0) / (y1 - y0) == pytest.approx((a - x0) / (x1 - x0), abs=0.01)


def test_a_small_chart_has_its_level_and_skips_what_is_unknown():
    svg = charts.small_chart([Series(np.arange(3.0), np.array([0.1, NAN, 0.3]), "smoke")], "smoke", (0, 0.4), level=0.1)
    ElementTree.fromstring(svg)
    assert svg.count("<circle") == 2 and svg.count('class="mark"') == 1 and "nan" not in svg


def test_two_colour_bars_on_a_page_do_not_share_their_colours():
    colours = np.zeros((4, 3), np.uint8)
    assert 'id="error"' in charts.colour_bar(colours, 0, 1, "m", "error")
    assert "url(#error)" in charts.colour_bar(colours, 0, 1, "m", "error")


def scene_of(html):
    return json.loads(re.search(r"\)\(\"[\w-]+\", (\{.*\})\);</script>", html).group(1))


def test_paths_keep_their_positions_and_lie_in_the_view():
    line = np.array([[0, 0, 0], [0.01, 0, 0], [NAN, 0, 0], [0.01, 0.02, 0.02]])
    html = path_view([Path3D(line, "first")], "path-1")
    scene = scene_of(html)
    assert scene["paths"][-1]["xyz"] == [0, 0, 0, 0.01, 0, 0, 0.01, 0.02, 0.02]
    assert scene["centre"] == pytest.approx([0.005, 0.01, 0.01]) and len(scene["paths"]) == 13, (
        "twelve edges of the box"
    )
    assert "10 x 20 x 20 mm" in html and 'id="path-1"' in html
    assert "There is no path" in path_view([Path3D(np.zeros((0, 3)))])


def test_a_cloud_can_hold_a_path_and_a_still_path_has_a_size():
    html = cloud_view(np.ones((5, 3)), None, "both", [Path3D(np.zeros((2, 3)), "second")])
    assert len(scene_of(html)["paths"]) == 1 and scene_of(html)["radius"] > 0
    assert scene_of(path_view([Path3D(np.zeros((3, 3)))]))["radius"] > 0


def test_long_paths_are_thinned():
    long = np.cumsum(np.ones((50_000, 3)), axis=0)
    assert len(scene_of(path_view([Path3D(long)]))["paths"][-1]["xyz"]) <= 3 * 2000
