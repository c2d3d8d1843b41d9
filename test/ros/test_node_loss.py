"""Images that never arrive: the node sees it from the stamps and says what to do about it."""

from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from endomust_ros.diagnostics import WARN, Statistics, Tally
from endomust_ros.parameters import DEFAULTS
from endomust_ros.reporter import Reporter
from endomust_ros.stamp_gaps import StampGaps

pytestmark = pytest.mark.ros


def test_missing_images_are_counted_and_the_remedy_is_named(node, probe):
    for _ in range(80):
        probe.ask()
    whole = probe.wait_for_status("input", lambda status: status["period [s]"] != "-", "the period of the camera")
    assert (whole["level"], whole["message"]) == (b"\x00", "receiving")
    assert abs(float(whole["period [s]"]) - 0.1) < 1e-3
    before = int(whole["missing"])  # a stamp of the fixture went to camera_info
    probe.ask(step=0.9)  # eight missing
    lossy = probe.wait_for_status("input", lambda status: int(status["missing"]) == before + 8, "the missing images")
    assert lossy["level"] == b"\x01" and 5 < float(lossy["transport loss [%]"]) < 15
    assert "never arrived" in lossy["message"] and "camera.launch.py" in lossy["message"]


def test_a_camera_that_was_stopped_has_lost_nothing(node, probe):
    before = probe.wait_for_status("input", lambda status: True, "any")["missing"]
    probe.ask(step=30.0)
    probe.ask()
    assert probe.wait_for_status("input", lambda status: True, "any")["missing"] == before


def test_silence_names_the_remedy_too(node, probe):
    assert probe.set("input.timeout", 0.2).successful
    probe.ask()
    silent = probe.wait_for_status("input", lambda status: status["message"].startswith("no image for"), "silence")
    assert "lost on the way" in silent["message"] and "camera.launch.py" in silent["message"]


@pytest.mark.parametrize("transport, remedy", [("raw", "camera.launch.py"), ("compressed", "publish reliably")])
def test_the_remedy_fits_the_transport(transport, remedy):
    """A reporter with stand-ins: a third of the images is missing."""
    gaps = StampGaps()
    for number in range(90):
        if number < 30 or number % 3:
            gaps.add(number * 33_000_000)
    facts = {"topic": "/a", "publishers": 1, "transport": transport}
    inputs = SimpleNamespace(describe=lambda: facts, gaps=gaps, incompatible={})
    pipeline = SimpleNamespace(seen={}, parameters=DEFAULTS)
    reporter = Reporter("endomust", Tally(print), Statistics())
    found = reporter._input(inputs, pipeline, {"received": 70}, {"received": 70}, False)
    assert found.level == WARN and found.message.startswith("22 % of the images never arrived; ")  # 20 of 89
    assert remedy in found.message
