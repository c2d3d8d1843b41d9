"""The running node with a part of the image, masks, confidence, metres that are asked for, and its words on trouble."""

import json

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from harness import CAMERA, FRAME, PLANE, NodeProcess, depth_of
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import Image

from endomust_core.camera import save_camera

ROI = (20, 8, 120, 96)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "camera.yaml"
    save_camera(path, CAMERA)
    return path


@pytest.fixture(scope="module")
def node(bundle, log_folder, probe, calibration):
    values = {
        "model.path": str(bundle),
        "calibration.file": str(calibration),
        "input.roi": list(ROI),
        "input.flip": "v",
        "depth.encoding": "16UC1",
        "points.fields": "xyzrgbc",
        "points.stride": 1,
        "points.max_rate": 0.0,
    }
    with NodeProcess(log_folder, values) as process:
        names = ("depth", "depth_info", "confidence", "points", "odom", "pose", "path", "rgb", "color_compressed")
        probe.follow(*names, "diagnostics", "model_info")
        probe.wait_for_state("active")
        yield process


def test_a_calibration_file_stands_for_camera_info_and_all_outputs_show_the_part(node, probe):
    sent, depth = probe.ask()
    info = probe.answer(sent, "depth_info")
    seen = CAMERA.cropped(*ROI).flipped("v")
    assert (info.width, info.height) == ROI[2:] and np.allclose(info.k, seen.K.ravel())
    assert (depth.encoding, depth.width, depth.height) == ("16UC1", 120, 96)
    millimetres = np.frombuffer(depth.data, np.uint16).reshape(96, 120)
    part = PLANE[8:104, 20:140][::-1] * 1e3
    assert np.abs(millimetres - part)[:, 4:-4].max() < 0.1 * part.max()


def test_confidence_and_the_cloud_that_carries_it(node, probe):
    sent, confidence = probe.ask(name="confidence")
    values = depth_of(confidence)
    assert values.shape == (96, 120) and np.isfinite(values).all() and 0 <= values.min() <= values.max() <= 1
    cloud = probe.answer(sent, "points")
    assert [field.name for field in cloud.fields] == ["x", "y", "z", "rgb", "confidence"] and cloud.point_step == 20
    points = np.frombuffer(cloud.data, np.float32).reshape(96, 120, 5)
    np.testing.assert_array_equal(points[..., 4], values)
    depth_status = probe.wait_for_status("depth", lambda s: s["confidence mean"] != "-", "mean confidence")
    assert 0 <= float(depth_status["confidence mean"]) <= 1 and "specular [%]" in depth_status


def test_points_below_the_confidence_are_left_out(node, probe):
    assert probe.set("points.min_confidence", 1.0).successful
    _, cloud = probe.ask(name="points")
    points = np.frombuffer(cloud.data, np.float32).reshape(96, 120, 5)
    assert np.isnan(points[points[..., 4] < 1.0][:, :3]).all() and (points[..., 4] < 1.0).any()
    assert probe.set("points.min_confidence", 0.0).successful


def test_a_mask_lowers_the_confidence_and_a_wrong_one_is_said(node, probe):
    image = probe.image()
    mask = Image(header=image.header, encoding="mono8", width=CAMERA.width, height=CAMERA.height, step=CAMERA.width)
    mask.data = bytes(CAMERA.width * CAMERA.height)
    probe.send(mask, "/mask")

    def masked():
        sent = probe.send(probe.image(step=0.0))
        return not depth_of(probe.answer(sent, "confidence")).any()

    probe.wait(masked, "an image without confidence")
    mask.encoding = "32FC1"
    probe.send(mask, "/mask")
    probe.send(probe.image(step=0.0))
    seen = probe.wait_for_status("input", lambda s: int(s["not used: mask_encoding"]) > 0, "the wrong mask")
    assert seen["message"] != "receiving" or seen["level"] == b"\x00"
    probe.retire("/mask")
    probe.send(probe.image(step=5.0))  # too long after the mask


def test_pose_and_path_say_what_odometry_says(node, probe):
    sent, odometry = probe.ask(name="odom", step=1.0)
    pose = probe.answer(sent, "pose")
    assert pose.header.frame_id == "odom" and odometry.child_frame_id == FRAME
    assert (pose.pose.pose, list(pose.pose.covariance)) == (odometry.pose.pose, list(odometry.pose.covariance))
    path = probe.answer(sent, "path")
    assert path.poses[-1].pose == pose.pose.pose


def test_metres_that_are_asked_for_withhold_everything_metric(node, probe):
    assert probe.set("scale.require_metric", True).successful
    sent = probe.send(probe.image())
    seen = probe.wait_for_status("depth", lambda s: "withheld" in s["message"], "that depth is withheld")
    assert seen["level"] == b"\x02" and seen["metric"] == "false"
    names = ("depth", "odom", "points", "confidence", "color_compressed")
    assert not [m for name in names for m in probe.got[name] if m.header.stamp == sent.header.stamp]
    assert probe.set("scale.factor", 2.0).successful, "whoever measures it says it is metric"
    probe.ask()
    newest = probe.wait(
        lambda: probe.got["model_info"] and json.loads(probe.got["model_info"][-1].data)["metric"], "metric model_info"
    )
    assert newest
    assert probe.set("scale.factor", 1.0).successful and probe.set("scale.require_metric", False).successful


def test_only_as_many_images_as_are_wanted(node, probe):
    assert probe.set("input.max_rate", 10.0).successful
    sent = probe.send(probe.image(step=0.05))
    assert probe.wait_for_status("input", lambda s: int(s["dropped rate"]) > 0, "a dropped image")
    probe.ask(step=1.0)
    assert sent.header.stamp not in [message.header.stamp for message in probe.got["depth"]]
    assert probe.set("input.max_rate", 0.0).successful


def test_a_slow_camera_and_memory_are_seen(node, probe):
    assert probe.set("input.expected_rate", 200.0).successful
    probe.ask()
    probe.ask()
    seen = probe.wait_for_status("input", lambda s: "are expected" in s["message"], "a slow camera")
    assert seen["level"] == b"\x01" and "200 are expected" in seen["message"]
    assert probe.set("input.expected_rate", 0.0).successful
    memory = probe.wait_for_status("memory", lambda s: float(s["resident [MB]"]) > 10, "memory")
    assert int(memory["descriptors"]) > 3 and probe.status("device")["provider"] == "cpu"


def test_a_roi_outside_of_the_image_is_said_and_not_fatal(node, probe):
    probe.send(probe.image(np.zeros((64, 64, 3), np.uint8)))
    seen = probe.wait_for_status("input", lambda s: int(s["dropped view"]) > 0, "an image that is too small")
    assert "region of interest" in seen["last fault"] or "crop" in seen["last fault"]
    probe.ask()


def test_a_qos_that_does_not_connect_is_in_the_diagnostics(bundle, log_folder, probe):
    with NodeProcess(log_folder, {"model.path": str(bundle), "input.qos": "reliable"}):
        probe.follow("diagnostics")
        probe.wait_for_state("active")
        probe.publisher("/endoscope/image_raw", Image, ReliabilityPolicy.BEST_EFFORT)
        name = f"/{probe.node.get_name()}"
        fits = lambda s: "cannot serve" in s["message"] and s["published by"] == name  # noqa: E731
        seen = probe.wait_for_status("input", fits, "the QoS that does not fit")
        assert seen["level"] == b"\x01" and "set input.qos to auto" in seen["message"]
        probe.retire("/endoscope/image_raw")
