"""The fault campaign: its hostile messages, its checks, and a bounded run at a live node that must come through."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from harness import CAMERA, PLANE
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from endomust_core.decoding import rgb_from
from endomust_core.odometry import OdometryState
from endomust_ros import fault_campaign, fault_messages
from endomust_ros.fault_bench import counts_of, unexplained
from endomust_ros.fault_messages import REJECT, faults
from endomust_ros.fault_scenarios import SCENARIOS, Outcome
from endomust_ros.messages import ImageError, cloud_message, depth_to_image, image_to_rgb, odometry_message

pytestmark = pytest.mark.ros
FAMILIES = [name for name in fault_campaign.FAMILIES if name not in ("parameters", "services")]
QUICK = [
    "camera changes",
    "camera killed, then JPEG",
    "bag loops",
    "two cameras",
    "burst",
    "model damaged",
    "disk full",
]


def header():
    return Header(frame_id=fault_messages.FRAME)


def some(family, number=60, seed=3):
    return list(itertools.islice(faults(family, np.random.default_rng(seed), header), number))


def serialised(fault):
    return fault.content if isinstance(fault.content, bytes) else bytes(serialize_message(fault.content))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_seed_gives_the_same_messages_and_each_can_be_sent(family):
    first, second = some(family), some(family)
    assert [fault.kind for fault in first] == [fault.kind for fault in second]
    pose = "pose" in family  # NaN differs from NaN, but its bytes do not; padding between fields is not ours
    assert pose or [len(serialised(fault)) for fault in first] == [len(serialised(fault)) for fault in second]
    assert len({fault.kind for fault in first}) > 2


@pytest.mark.parametrize("family", ["image", "compressed"])
def test_what_must_be_refused_holds_no_picture_for_our_own_decoder(family):
    read = image_to_rgb if family == "image" else rgb_from
    for fault in some(family, 200):
        if fault.verdict == REJECT and "bomb" not in fault.kind:
            with pytest.raises(ImageError):
                read(fault.content)


def test_every_kind_of_hostile_image_comes_up():
    kinds = {fault.kind for fault in some("image", 1000)}
    assert kinds == {f"image: {name}" for name in fault_messages.IMAGES}


def test_a_depth_image_with_infinity_or_a_negative_value_is_complained_about():
    depth = np.array([[0.1, np.nan]], np.float32)
    assert fault_messages.depth_complaint(depth_to_image(depth, header())) is None
    for wrong in (np.inf, -0.1):
        depth[0, 1] = wrong
        assert fault_messages.depth_complaint(depth_to_image(depth, header()))


def test_a_cloud_with_half_a_point_is_complained_about():
    message = cloud_message(PLANE.astype(np.float32), np.zeros((*PLANE.shape, 3), np.uint8), CAMERA, header())
    assert fault_messages.cloud_complaint(message) is None
    np.frombuffer(message.data, np.float32)[0] = np.nan
    assert "1 points" in fault_messages.cloud_complaint(message)


def test_odometry_that_is_not_finite_or_too_sure_is_complained_about():
    state = OdometryState(np.eye(4), np.zeros(6), np.eye(6), np.eye(6), 0.0, "OK")
    stamp = header().stamp
    assert fault_messages.odometry_complaint(odometry_message(state, stamp, "odom", "camera")) is None
    for change in ({"twist": np.full(6, np.nan)}, {"pose_covariance": np.zeros((6, 6))}):
        message = odometry_message(dataclasses.replace(state, **change), stamp, "odom", "camera")
        assert fault_messages.odometry_complaint(message)
    message.pose.covariance, message.pose.pose.orientation.w = np.eye(6).ravel(), 0.9
    assert "quaternion" in fault_messages.odometry_complaint(message)


def test_diagnostics_that_say_nan_are_complained_about():
    status = SimpleNamespace(name="endomust: depth", values=[SimpleNamespace(key="median [m]", value="nan")])
    assert "median" in fault_messages.diagnostics_complaint(SimpleNamespace(status=[status]))


def test_a_camera_of_zeros_is_complained_about():
    assert fault_messages.info_complaint(CameraInfo())
    assert fault_messages.info_complaint(fault_messages.good_info(header())) is None


def test_an_image_that_no_count_explains_is_noticed():
    tasks = {"input": {"received": "9", "answered": "5", "dropped decode": "3", "topic": "/x"}, "inference": {}}
    assert unexplained(counts_of(tasks)) == 1
    tasks["inference"]["failures"] = "1"
    assert unexplained(counts_of(tasks)) == 0


def test_a_slow_recovery_is_a_failure_and_a_missing_feature_is_not():
    assert Outcome.of(1.9, "").passed and not Outcome.of(2.1, "").passed and not Outcome.of(0.1, "", False).passed
    assert Outcome.of(float("inf"), "").recovery_s is None
    assert "not there yet" in fault_campaign._verdict(Outcome(None, None, ""))


@pytest.mark.slow
def test_the_node_comes_through_a_bounded_campaign(bundle, tmp_path):
    options = fault_campaign._parse(
        ["--messages", "600", "--model", str(bundle), "--out", str(tmp_path), "--scenarios", *QUICK]
    )
    said = []
    results = fault_campaign.campaign(options, said.append)
    messages = results["messages"]
    assert not messages["crashes"], fault_campaign.table(results)
    assert not messages["problems"], messages["problems"]
    assert messages["outcomes"]["dropped decode"] > 30 and messages["outputs_checked"]["odom"] > 30
    assert set(results["scenarios"]) == set(QUICK) <= set(SCENARIOS)
    assert not [name for name, found in results["scenarios"].items() if found["passed"] is False], results["scenarios"]
    assert results["passed"] and said
    assert (tmp_path / "node_0.log").is_file()
