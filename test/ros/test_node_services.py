"""Services of the running node: each does what it says, answers in numbers, and refuses in words."""

import json

import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from harness import CAMERA, FRAME, MOTION_TRANSLATION, PLANE, NodeProcess, depth_of
from mock_bundle import write_mock_bundle
from std_srvs.srv import Trigger

from endomust_core.odometry import OPTICAL_TO_BODY, quaternion_from_matrix


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="module")
def node(folder, log_folder, probe):
    bundle = write_mock_bundle(folder / "bundle", translation=MOTION_TRANSLATION, golden=True)
    values = {
        "model.path": str(bundle),
        "snapshot.dir": str(folder),
        "scale.file": str(folder / "scale.yaml"),
        "scale.window": 2.0,
        "scale.min_baseline": 0.0005,
        "scale.pose_axes": "optical",
        "odom.refine": False,
        "odom.keyframe": False,
    }
    with NodeProcess(log_folder, values, environment={"HOME": str(folder)}) as process:
        probe.follow("depth", "depth_info", "odom", "confidence", "pose", "path", "diagnostics", "model_info")
        probe.wait_for_state("active")
        probe.calibrate()
        yield process


def test_pause_rests_and_says_how_many_images_passed(node, probe):
    assert probe.switch("pause", True).success
    before = len(probe.got["depth"])
    probe.send(probe.image())
    seen = probe.wait_for_status("input", lambda s: int(s["dropped paused"]) > 0, "a paused image")
    assert seen["level"] == b"\x01" and "paused by service" in seen["message"]
    assert len(probe.got["depth"]) == before
    assert "nothing changes" in probe.switch("pause", True).message
    assert "1 images were not used" in probe.switch("pause", False).message
    probe.ask()


def test_enable_odometry_is_the_parameter(node, probe):
    assert probe.switch("enable_odometry", False).message == "odom.enable is false"
    assert not probe.get("odom.enable").bool_value
    count = len(probe.got["odom"])
    probe.ask()
    assert len(probe.got["odom"]) == count
    assert probe.switch("enable_odometry", True).success
    probe.ask(name="odom")


def test_self_test_gives_numbers(node, probe):
    response = probe.trigger("self_test")
    facts = json.loads(response.message)
    assert response.success and facts["passed"] and facts["depth_error"] <= facts["tolerance"] and facts["depth_ms"] > 0


def test_a_snapshot_holds_the_image_the_depth_and_what_is_known(node, probe, folder):
    future = probe.start_call(Trigger, "/endomust/snapshot", Trigger.Request())
    answers = [probe.ask() for _ in range(3) if not future.done()]
    probe.wait(future.done, "the snapshot")
    assert future.result().success, future.result().message
    path = future.result().message.removeprefix("written to ")
    depth = np.load(f"{path}/depth_m.npy")
    assert any(np.array_equal(depth, depth_of(answer), equal_nan=True) for _, answer in answers)
    assert cv2.imread(f"{path}/rgb.png").shape == (CAMERA.height, CAMERA.width, 3)
    assert np.load(f"{path}/confidence.npy").shape == depth.shape
    facts = json.loads((folder / path / "facts.json").read_text())
    assert facts["frame_id"] == FRAME and facts["odometry"] in ("OK", "INIT") and facts["calibration"] == "calibrated"
    assert not [entry for entry in folder.iterdir() if "unfinished" in entry.name]


def test_set_pose_goes_on_from_there_and_refuses_nonsense(node, probe):
    message = PoseWithCovarianceStamped()
    message.header.frame_id = "odom"
    p, q = message.pose.pose.position, message.pose.pose.orientation
    p.x, p.y, p.z = 1.0, 2.0, 3.0
    q.x, q.y, q.z, q.w = map(float, quaternion_from_matrix(OPTICAL_TO_BODY[:3, :3]))
    message.pose.covariance = np.diag([1e-4] * 6).ravel()
    probe.send(message, "/endomust/set_pose")
    probe.wait_for_log("odometry goes on from (1.0000, 2.0000, 3.0000) m")
    _, odometry = probe.ask(name="odom")
    place = odometry.pose.pose.position
    expected = np.array([1.0, 2.0, 3.0]) + OPTICAL_TO_BODY[:3, :3] @ MOTION_TRANSLATION
    assert np.allclose([place.x, place.y, place.z], expected, atol=1e-6)
    assert odometry.pose.covariance[0] > 1e-4
    p.x = float("nan")
    probe.send(message, "/endomust/set_pose")
    probe.wait_for_log("set_pose not used: its position")
    p.x, message.header.frame_id = 0.0, "map"
    probe.send(message, "/endomust/set_pose")
    probe.wait_for_log("set_pose not used: it is about the frame map, odometry is in odom")


def test_calibrate_scale_finds_the_robots_metres_and_save_scale_keeps_them(node, probe, folder):
    nothing = probe.trigger("save_scale")
    assert not nothing.success and "nothing worth saving" in nothing.message
    probe.reset()
    future = probe.start_call(Trigger, "/endomust/calibrate_scale", Trigger.Request())
    robot = probe.publisher("/camera_pose", PoseStamped)
    probe.wait(robot.get_subscription_count, "the node's interest in camera_pose")
    place = np.zeros(3)
    while not future.done():  # the robot says the camera moves 2.5 times as far as the network does
        image = probe.image(step=0.04)
        place = place + 2.5 * np.array(MOTION_TRANSLATION)
        pose = PoseStamped(header=image.header)
        pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = place
        pose.pose.orientation.w = 1.0
        robot.publish(pose)
        probe.send(image)
        probe.wait(lambda image=image: _answered(probe, image), "the odometry of an image")
    response = future.result()
    found = response.message.split()[1] if response.success else "nan"
    assert response.success and abs(float(found) - 2.5) < 0.05, response.message
    assert "not in use: scale.mode is fixed" in response.message
    assert probe.trigger("save_scale").success
    saved = yaml.safe_load((folder / "scale.yaml").read_text())
    assert abs(saved["factor"] - 2.5) < 0.05
    assert probe.set("scale.mode", "file").successful
    _, depth = probe.ask()
    assert np.nanmedian(depth_of(depth)) == pytest.approx(2.5 * np.median(PLANE), rel=0.05)
    metric = probe.wait(lambda: [m for m in probe.got["model_info"] if json.loads(m.data)["metric"]], "metric")
    assert json.loads(metric[-1].data)["scale_mode"] == "file"
    assert probe.set("scale.mode", "fixed").successful


def _answered(probe, image):
    return any(message.header.stamp == image.header.stamp for message in probe.got["odom"])


def test_a_bundle_that_was_damaged_is_refused_and_the_old_model_goes_on(node, probe, folder):
    graph = folder / "bundle" / "depth.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-10] + b"0123456789")
    refused = probe.trigger("reload_model")
    assert not refused.success and "the model stays as it is" in refused.message and "sha256" in refused.message
    probe.ask()
    graph.write_bytes(whole)
    again = probe.trigger("reload_model")
    assert again.success and "the same files" in again.message
    probe.ask()


def test_services_of_a_node_that_is_not_active_refuse_in_words(node, probe):
    assert probe.change_state("deactivate")
    refused = probe.trigger("snapshot")
    assert not refused.success and refused.message == "the node is inactive; activate it first"
    assert probe.trigger("self_test").success, "engines are there while inactive"
    assert probe.change_state("cleanup")
    refused = probe.reset()
    assert not refused.success and "configure it first" in refused.message
    assert probe.change_state("configure") and probe.change_state("activate")
    probe.calibrate()
