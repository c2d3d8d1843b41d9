"""The report: one HTML page that needs no network, holds what it was given, and survives empty and broken numbers."""

import base64
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from endomust_core import charts, report
from endomust_core.cloud_view import MOST_POINTS, cloud_view
from endomust_core.report import FramePicture

NAN = float("nan")


class Outline(HTMLParser):
    """Collects tags, and fails on tags that close in the wrong order."""

    EMPTY = {"meta", "img", "br", "link", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def outline(html):
    parsed = Outline()
    parsed.feed(html)
    assert parsed.open == []
    return parsed


def small_page():
    depth = np.linspace(0.03, 0.09, 20 * 30, dtype=np.float32).reshape(20, 30)
    rgb = np.full((20, 30, 3), (200, 40, 40), np.uint8)
    frames = [FramePicture("0.00 s", rgb, depth, depth), FramePicture("0.50 s", rgb, depth)]
    points = np.random.default_rng(0).normal(size=(50, 3))
    line = np.cumsum(np.ones((10, 3)) * 1e-3, axis=0)
    return report.page(
        "A <title> & more",
        "subtitle",
        [
            report.headline([("95 %", "answered", "of 100")]),
            report.frames_section(frames),
            report.cloud_section(points, None),
            report.trajectory_section(np.arange(10.0), line, line * 1.1),
            report.latency_section(np.linspace(0.01, 0.05, 10), np.arange(10.0)),
            report.valid_section(np.arange(10.0), np.full(10, 0.9)),
            report.environment_section({"Python": "3.11", "command": "a <b>"}),
        ],
    )


def test_a_page_is_well_formed_and_needs_nothing_from_elsewhere():
    html = small_page()
    parsed = outline(html)
    assert "A <title> & more" in parsed.text and "a <b>" in parsed.text, "text is escaped"
    for tag, attributes in parsed.tags:
        assert "href" not in attributes and tag not in ("link", "iframe")
        assert attributes.get("src", "data:").startswith("data:")
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert any(tag == "meta" and a.get("name") == "viewport" for tag, a in parsed.tags), "readable on a phone"
    assert "prefers-color-scheme:dark" in html
    assert all(a.get("alt") for tag, a in parsed.tags if tag == "img"), "pictures are described"


def test_every_chart_is_valid_xml_without_nan():
    drawings = re.findall(r"<svg.*?</svg>", small_page(), flags=re.S)
    assert len(drawings) >= 8
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing and "inf" not in drawing


def test_write_page_leaves_no_temporary_file(tmp_path):
    path = report.write_page(tmp_path / "deep" / "report.html", "<p>one</p>")
    report.write_page(path, "<p>two</p>")
    assert path.read_text() == "<p>two</p>" and list(path.parent.iterdir()) == [path]


def test_pictures_keep_their_colours():
    red = np.full((40, 60, 3), (220, 20, 20), np.uint8)
    data = base64.b64decode(report.data_uri(red, 90).partition(",")[2])
    back = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_allclose(back.reshape(-1, 3).mean(axis=0), (220, 20, 20), atol=4)


def test_near_is_red_far_is_blue_unknown_is_grey():
    near, far, unknown = report.turbo(np.array([[0.03, 0.1, NAN]], np.float32), 0.02, 0.11)[0]
    assert near[0] > near[2] + 50 and far[2] > far[0] + 50
    assert tuple(unknown) == report.UNKNOWN


def test_the_range_ignores_unknown_pixels_and_is_never_empty():
    low, high = report.common_range([np.array([[NAN, 0.05]]), np.full((3, 3), NAN)])
    assert low < 0.05 < high
    low, high = report.common_range([np.full((2, 2), NAN)])
    assert 0 <= low < high


def test_unknown_true_depth_is_said():
    assert "not known" in small_page()
    depth = np.full((4, 4), 0.05, np.float32)
    assert "true depth" not in report.frames_section([FramePicture("a", np.zeros((4, 4, 3), np.uint8), depth)])


def test_sections_without_data_say_so():
    for html in (
        report.frames_section([]),
        report.cloud_section(np.zeros((0, 3)), None),
        report.latency_section(np.array([NAN])),
        report.valid_section(np.zeros(0), np.zeros(0)),
        report.trajectory_section(np.zeros(0), np.zeros((0, 3))),
    ):
        assert re.search(r"No frames|no points|No frame was answered|no values", outline(html).text)


def test_the_cloud_holds_its_points_to_the_bit():
    points = np.array([[0.1, 0.2, 0.3], [NAN, 0, 0], [-1, 2, 3]], np.float32)
    html = cloud_view(points, np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8))
    xyz = base64.b64decode(re.search(r'id="cloud-xyz">([^<]*)<', html).group(1))
    rgb = base64.b64decode(re.search(r'id="cloud-rgb">([^<]*)<', html).group(1))
    np.testing.assert_array_equal(np.frombuffer(xyz, "<f4").reshape(-1, 3), points[[0, 2]])
    assert list(rgb) == [1, 2, 3, 7, 8, 9]


def test_a_large_cloud_is_thinned_evenly():
    points = np.zeros((3 * MOST_POINTS, 3), np.float32)
    points[:, 0] = np.arange(len(points))
    html = cloud_view(points, None)
    xyz = np.frombuffer(base64.b64decode(re.search(r'id="cloud-xyz">([^<]*)<', html).group(1)), "<f4").reshape(-1, 3)
    assert len(xyz) == MOST_POINTS
    counts, _ = np.histogram(xyz[:, 0], bins=10, range=(0, len(points)))
    assert counts.min() > 0.9 * MOST_POINTS / 10


def path_of(svg, style):
    return re.search(rf'class="line {style}" d="([^"]*)"', svg).group(1)


def test_a_line_breaks_where_a_value_is_missing():
    series = charts.Series(np.arange(5.0), np.array([0, 1, NAN, 1, 0.0]), "a")
    assert path_of(charts.line_chart([series], "x", "y"), "first").count("M") == 2


def test_maps_have_one_scale_on_both_axes():
    square = charts.Series(np.array([0, 1, 1, 0.0]), np.array([0, 0, 1, 1.0]), "a")
    commands = re.split("[ML]", path_of(charts.line_chart([square], "x", "y", equal=True), "first"))[1:]
    corners = [tuple(map(float, command.split())) for command in commands]
    assert corners[1][0] - corners[0][0] == pytest.approx(corners[1][1] - corners[2][1], abs=0.2)
    assert corners[2][1] < corners[1][1], "up is up"


def test_long_lines_are_thinned():
    long = charts.Series(np.arange(50_000.0), np.zeros(50_000), "a")
    assert path_of(charts.line_chart([long], "x", "y"), "first").count("L") <= charts.LONGEST


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.021, 0.079, [0.04, 0.06]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (3, 3, [3])],
)
def test_ticks_are_round_numbers_inside(low, high, wanted):
    assert charts.nice_ticks(low, high) == pytest.approx(wanted)


def test_bars_of_a_histogram_hold_every_value():
    svg = charts.histogram(np.array([1.0, 1.0, 1.0, 9.0, NAN]), "ms", "frames", [charts.Mark(9.0, "p95")], bins=10)
    heights = [float(h) for h in re.findall(r'class="bar"[^>]* height="([\d.]+)"', svg)]
    assert len(heights) == 2 and max(heights) == pytest.approx(3 * min(heights), rel=0.01)
    assert "p95" in svg
