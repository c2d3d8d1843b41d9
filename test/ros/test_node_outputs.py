"""What the node publishes for a tilted plane of known depth [m] and a known constant motion, over real DDS."""

import json

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from harness import CAMERA, FRAME, MOTION_ROTATION, MOTION_TRANSLATION, PICTURE, PLANE, depth_of, points_of
from mock_bundle import disparity_step

from endomust_core.odometry import OPTICAL_TO_BODY, matrix_from_quaternion, se3, so3_exp

pytestmark = pytest.mark.ros
STEP = disparity_step()
MOTION = se3(so3_exp(np.array(MOTION_ROTATION)), np.array(MOTION_TRANSLATION))


def pose_matrix(odometry) -> np.ndarray:
    p, q = odometry.pose.pose.position, odometry.pose.pose.orientation
    return se3(matrix_from_quaternion((q.x, q.y, q.z, q.w)), np.array([p.x, p.y, p.z]))


def test_a_tilted_plane_comes_out_in_metres(node, probe):
    sent, depth = probe.ask()
    assert (depth.encoding, depth.width, depth.height) == ("32FC1", CAMERA.width, CAMERA.height)
    assert depth.step == 4 * CAMERA.width
    assert np.abs(1 / depth_of(depth) - 1 / PLANE)[:, 4:-4].max() < STEP


def test_every_header_is_that_of_the_image(node, probe):
    sent, depth = probe.ask()
    for name in ("depth_info", "points"):
        assert probe.answer(sent, name).header == sent.header
    assert depth.header == sent.header
    odometry = probe.answer(sent, "odom")
    assert (odometry.header.frame_id, odometry.child_frame_id) == ("odom", FRAME)


def test_depth_camera_info_is_that_of_the_published_grid(node, probe):
    sent, _ = probe.ask()
    info = probe.answer(sent, "depth_info")
    assert (info.width, info.height) == (CAMERA.width, CAMERA.height)
    assert np.array_equal(info.k.reshape(3, 3), CAMERA.K)
    assert np.array_equal(info.p.reshape(3, 4)[:, :3], CAMERA.K)


def test_the_plane_is_at_the_right_place_in_the_cloud(node, probe):
    sent, depth = probe.ask()
    cloud = probe.answer(sent, "points")
    assert [field.name for field in cloud.fields] == ["x", "y", "z", "rgb"]
    assert (cloud.height, cloud.width, cloud.is_dense) == (CAMERA.height, CAMERA.width, False)
    points = points_of(cloud)
    assert np.array_equal(points[..., 2], depth_of(depth))
    v, u = 100, 30
    expected = PLANE[v, u] * np.array([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, 1.0])
    assert np.allclose(points[v, u, :3], expected, atol=STEP * PLANE[v, u] ** 2 * 1.5)


def test_the_cloud_carries_the_colour_of_the_image(node, probe):
    sent, _ = probe.ask()
    bits = np.ascontiguousarray(points_of(probe.answer(sent, "points"))[..., 3]).view(np.uint32)
    assert np.array_equal(np.stack([bits >> 16, bits >> 8 & 255, bits & 255], -1), PICTURE)


def test_depth_outside_the_range_is_nan_in_image_and_cloud(node, probe):
    assert probe.set("depth.max_range", 0.1).successful
    sent, depth = probe.ask()
    points = points_of(probe.answer(sent, "points"))
    assert probe.set("depth.max_range", 0.5).successful
    far, near = PLANE > 0.102, PLANE < 0.098
    assert np.isnan(depth_of(depth)[far]).all() and np.isfinite(depth_of(depth)[near]).all()
    assert np.isnan(points[far][:, :3]).all() and np.isfinite(points[near][:, :3]).all()


def test_invalid_depth_can_be_zero(node, probe):
    assert probe.set("depth.max_range", 0.1).successful
    assert probe.set("depth.invalid_value", "zero").successful
    _, depth = probe.ask()
    assert probe.set("depth.invalid_value", "nan").successful
    assert probe.set("depth.max_range", 0.5).successful
    assert (depth_of(depth)[PLANE > 0.102] == 0).all()


def test_odometry_is_the_known_motion_chained(node, probe):
    assert probe.reset().success
    for count in range(1, 6):
        sent, odometry = probe.ask(name="odom")
        expected = OPTICAL_TO_BODY @ np.linalg.matrix_power(MOTION, count)
        assert np.allclose(pose_matrix(odometry), expected, atol=1e-6)


def test_twist_is_motion_per_second_in_the_camera_frame(node, probe):
    probe.ask(name="odom")
    sent, odometry = probe.ask(name="odom", step=0.1)
    twist = odometry.twist.twist
    assert np.allclose([twist.angular.x, twist.angular.y, twist.angular.z], np.array(MOTION_ROTATION) / 0.1, atol=1e-5)
    assert np.allclose([twist.linear.x, twist.linear.y, twist.linear.z], np.array(MOTION_TRANSLATION) / 0.1, atol=1e-3)


def test_pose_covariance_grows_and_is_symmetric_and_positive(node, probe):
    assert probe.reset().success
    volumes = []
    for _ in range(3):
        _, odometry = probe.ask(name="odom")
        covariance = np.array(odometry.pose.covariance).reshape(6, 6)
        assert np.allclose(covariance, covariance.T) and (np.linalg.eigvalsh(covariance) > 0).all()
        volumes.append(np.trace(covariance))
    assert volumes[0] < volumes[1] < volumes[2]


def test_reset_goes_back_to_the_start_and_says_what_was_given_up(node, probe):
    probe.reset()
    for _ in range(3):
        probe.ask(name="odom")
    answer = probe.reset()
    assert answer.success and "3 steps" in answer.message
    _, odometry = probe.ask(name="odom")
    assert np.allclose(pose_matrix(odometry), OPTICAL_TO_BODY @ MOTION, atol=1e-6)


def test_a_motion_beyond_the_gate_is_lost_and_holds_the_pose(node, probe):
    _, before = probe.ask(name="odom")
    assert probe.set("odom.max_translation", 0.0005).successful
    _, lost = probe.ask(name="odom")
    assert probe.set("odom.max_translation", 0.02).successful
    assert np.allclose(pose_matrix(lost), pose_matrix(before))
    assert max(lost.pose.covariance) == 9999.0
    assert probe.wait_for_status("odometry", lambda status: int(status["lost"]) >= 1, "a lost frame")
    _, after = probe.ask(name="odom")
    assert np.allclose(pose_matrix(after), pose_matrix(before) @ MOTION, atol=1e-6)


def test_scale_multiplies_depth_and_motion(node, probe):
    assert probe.reset().success
    assert probe.set("scale.factor", 2.0).successful
    sent, depth = probe.ask()
    assert probe.set("scale.factor", 1.0).successful
    assert np.abs(2 / depth_of(depth) - 1 / PLANE)[:, 4:-4].max() < STEP
    doubled = se3(MOTION[:3, :3], 2 * MOTION[:3, 3])
    assert np.allclose(pose_matrix(probe.answer(sent, "odom")), OPTICAL_TO_BODY @ doubled, atol=1e-6)


def test_stride_thins_the_cloud_out_at_the_right_pixels(node, probe):
    assert probe.set("points.stride", 4).successful
    sent, depth = probe.ask()
    points = points_of(probe.answer(sent, "points"))
    assert probe.set("points.stride", 1).successful
    assert points.shape == (CAMERA.height // 4, CAMERA.width // 4, 4)
    expected = CAMERA.back_project(depth_of(depth))[::4, ::4]
    assert np.allclose(points[..., :3], expected, atol=1e-7)


def test_cloud_rate_is_limited_in_image_time(node, probe):
    assert probe.set("points.max_rate", 5.0).successful
    probe.got["points"].clear()
    sent = []
    for number in range(6):
        sent.append(probe.ask(step=0.1 if number else 1.0)[0])
        if number % 2 == 0:  # so that the next cloud does not take the place of one that still waits
            probe.answer(sent[-1], "points")
    _, _ = probe.ask(step=0.01)
    assert probe.set("points.max_rate", 0.0).successful
    assert [cloud.header.stamp for cloud in probe.got["points"]] == [message.header.stamp for message in sent[::2]]


def test_pictures_are_made_when_somebody_subscribes(node, probe):
    probe.follow("color", "rgb")
    probe.wait(lambda: probe.ask() and probe.got["color"] and probe.got["rgb"], "a first picture of each kind")
    sent, color = probe.ask(name="color")
    rgb = probe.answer(sent, "rgb")
    assert (rgb.encoding, rgb.step) == ("rgb8", 3 * CAMERA.width)
    assert np.array_equal(np.frombuffer(rgb.data, np.uint8), PICTURE.ravel())
    picture = np.frombuffer(color.data, np.uint8).reshape(CAMERA.height, CAMERA.width, 3)
    near, far = picture[60, 10], picture[60, 150]
    assert color.encoding == "bgr8" and near[2] > near[0] and far[0] > far[2]  # near is red, far is blue


def test_model_info_is_kept_for_those_who_come_late(node, probe):
    probe.follow("model_info")
    infos = lambda: [json.loads(message.data) for message in probe.got["model_info"]]  # noqa: E731
    # Another test may have measured a scale a moment ago, which is metric until diagnostics notice that it is gone.
    found = lambda: next((info for info in infos() if not info["metric"]), None)  # noqa: E731
    info = probe.wait(found, "the latched model_info")
    assert (info["name"], info["provider"]) == ("mock", "cpu")
    assert len(info["digest"]) == 64 and info["range_m"] == [0.02, 0.2]


def test_diagnostics_name_the_four_tasks_with_numbers(node, probe):
    probe.ask()
    status = probe.wait_for_status("input", lambda s: s["message"] == "receiving", "receiving")
    assert (status["topic"], status["publishers"]) == ("/endoscope/image_raw", "1")
    assert status["size"] == f"{CAMERA.width}x{CAMERA.height}" and int(status["answered"]) > 0
    assert float(probe.status("inference")["depth [ms] p50"]) > 0
    assert float(probe.status("depth")["valid [%]"]) > 99
    assert probe.status("odometry")["state"] == "OK"
