"""Counting, throttled log lines, percentiles, and the depth preview."""

import numpy as np
import pytest

pytest.importorskip("diagnostic_msgs", reason="needs the ROS message packages: pip install 'endomust_ros[ros]'")

from endomust_ros.diagnostics import QUIET, WARN, WINDOW, Statistics, Tally, percentile_values, status
from endomust_ros.preview import MAPS, colourise


def test_a_sentence_is_logged_once_while_it_differs_in_numbers_only_and_counted_each_time():
    lines, now = [], [0.0]
    tally = Tally(lines.append, lambda: now[0])
    for age in range(5):
        tally.note("stale", f"image of {age} s")
    tally.note("stale", "another sentence")
    assert lines == ["image of 0 s", "another sentence (stale: 6 so far)"] and tally["stale"] == 6
    now[0] = QUIET + 0.1
    tally.note("stale", "image of 9 s")
    assert lines[-1] == "image of 9 s (stale: 7 so far)" and tally.last == "image of 9 s"


def test_statistics_look_back_on_a_window():
    statistics = Statistics()
    assert statistics.percentiles("depth") is None and statistics.rate("depth") == 0.0
    for value in range(1000):
        statistics.add(depth=float(value))
    median, high, higher, highest = statistics.percentiles("depth")
    assert median == 999 - (WINDOW - 1) / 2 and median < high < higher < highest == 999
    assert statistics.last("depth") == 999.0


def test_rate_is_events_per_second():
    statistics = Statistics()
    for index in range(11):
        statistics.add(finished=index * 0.04)
    assert np.isclose(statistics.rate("finished"), 25.0)


def test_values_are_text_that_a_person_reads():
    statistics = Statistics()
    statistics.add(depth=0.0123456)
    values = {"on": True, "n": 3, **percentile_values(statistics, "depth", "depth [ms]", 1e3)}
    message = status("endomust: depth", WARN, "look", values)
    assert {pair.key: pair.value for pair in message.values} == {
        "on": "true",
        "n": "3",
        "depth [ms] p50": "12.35",
        "depth [ms] p95": "12.35",
        "depth [ms] p99": "12.35",
        "depth [ms] max": "12.35",
    }
    assert message.level == b"\x01"


@pytest.mark.parametrize("name", MAPS)
def test_preview_has_a_fixed_range_and_black_where_nothing_is_known(name):
    depth = np.array([[0.0, 0.05, 0.1, 0.3], [np.nan, np.inf, -np.inf, 0.05]], np.float32)
    picture = colourise(depth, 0.0, 0.1, name)
    assert (picture.shape, picture.dtype) == ((2, 4, 3), np.uint8)
    assert np.array_equal(picture[0, 2], picture[0, 3])  # farther than the range looks like its end
    assert np.array_equal(picture[0, 1], picture[1, 3]) and not picture[1, :3].any()


def test_near_is_red_and_far_is_blue():
    picture = colourise(np.array([[0.0, 0.1]], np.float32), 0.0, 0.1)
    (near_blue, _, near_red), (far_blue, _, far_red) = picture[0].astype(int)
    assert near_red > near_blue and far_blue > far_red
