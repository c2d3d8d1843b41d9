"""Parameters over the parameter services: dynamic ones act at once, static ones are refused, unknown ones are named."""

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from harness import NodeProcess

from endomust_ros.parameters import ABOUT, STATIC

pytestmark = pytest.mark.ros


def test_every_parameter_says_what_it_is(node, probe):
    for name, entry in ABOUT.items():
        descriptor = probe.describe(name)
        assert entry.metadata["description"] in descriptor.description
        assert ("takes effect with the next image" in descriptor.description) == entry.metadata["dynamic"]
        if entry.metadata["limits"]:
            assert descriptor.floating_point_range or descriptor.integer_range


@pytest.mark.parametrize(
    "name, value", [("model.path", "/elsewhere"), ("depth.resolution", "network"), ("frames.odom", "map")]
)
def test_a_static_parameter_is_refused_while_configured(node, probe, name, value):
    result = probe.set(name, value)
    assert not result.successful and STATIC in result.reason and name in result.reason


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("depth.min_range", 0.6, "depth.min_range (0.6 m) must be smaller than depth.max_range (0.5 m)"),
        ("depth.max_range", 99.0, "range"),
        ("color.map", "rainbow", "it must be one of turbo"),
        ("points.stride", 0, "range"),
        ("points.stride", 2.5, "type"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_reason(node, probe, name, value, reason):
    before = probe.get(name)
    result = probe.set(name, value)
    assert not result.successful and reason in result.reason
    assert probe.get(name) == before


def test_odometry_can_be_switched_off_and_on_again(node, probe):
    probe.ask(name="odom")
    assert probe.set("odom.enable", False).successful
    sent, _ = probe.ask()
    assert probe.set("odom.enable", True).successful
    again, _ = probe.ask(name="odom")
    stamps = [out.header.stamp for out in probe.got["odom"]]
    assert sent.header.stamp not in stamps and again.header.stamp in stamps


def test_old_images_are_dropped_when_asked_for(node, probe):
    assert probe.set("input.max_age", 0.5).successful  # the stamps of these tests are years old
    sent = probe.send(probe.image())
    probe.wait_for_status("input", lambda status: int(status["dropped stale"]) >= 1, "a stale image")
    assert probe.set("input.max_age", 0.0).successful
    probe.ask()
    assert sent.header.stamp not in [out.header.stamp for out in probe.got["depth"]]
    probe.wait_for_log("input.max_age is 0.5 s")


def test_silence_is_a_warning_in_diagnostics(node, probe):
    assert probe.set("input.timeout", 0.2).successful
    probe.ask()
    status = probe.wait_for_status("input", lambda status: "no image for" in status["message"], "silence")
    assert probe.set("input.timeout", 2.0).successful
    assert status["level"] == b"\x01" and "/endoscope/image_raw" in status["message"]


def test_diagnostics_can_be_switched_off(node, probe):
    assert probe.set("diagnostics.period", 0.0).successful
    probe.got["diagnostics"].clear()
    for _ in range(3):
        probe.ask()
    assert probe.set("diagnostics.period", 0.1).successful
    assert len(probe.got["diagnostics"]) <= 1
    probe.wait_for_status("input", lambda status: True, "diagnostics again")


def test_unknown_parameters_are_named_with_the_nearest(bundle, log_folder, probe):
    with NodeProcess(log_folder, {"autostart": False, "model.path": str(bundle), "point.stride": 2}):
        line = probe.wait_for_log("unknown parameter")
        assert "'point.stride'" in line and "did you mean 'points.stride'?" in line and "WARN" in line


def test_a_wrong_type_at_start_is_fatal_in_one_sentence(bundle, log_folder, probe):
    with NodeProcess(log_folder, {"points.max_rate": "fast"}) as process:
        assert process.process.wait(20) == 1
        assert "points.max_rate" in process.log and "written with a point, such as 10.0" in process.log
        assert "Traceback" not in process.log


def test_parameter_file_of_the_package_is_accepted(bundle, log_folder, probe):
    from endomust_core.resources import share

    arguments = ("--params-file", str(share("config", "endomust.yaml")))
    with NodeProcess(log_folder, {"autostart": False, "model.path": str(bundle)}, arguments) as process:
        probe.wait_for_state("unconfigured")
        assert "unknown parameter" not in process.log
