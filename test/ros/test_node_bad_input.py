"""Every kind of bad input: the node says it in a sentence, counts it, lives, and answers the next good image."""

import re

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from harness import CAMERA, PICTURE, PLANE, compressed, depth_of
from mock_bundle import disparity_step

pytestmark = pytest.mark.ros


def _changed(probe, **fields):
    message = probe.image()
    for name, value in fields.items():
        setattr(message, name, value)
    return message


BAD_IMAGES = {
    "unknown encoding": (lambda probe: _changed(probe, encoding="8SC9"), "encoding '8SC9' is not understood"),
    "no encoding": (lambda probe: _changed(probe, encoding=""), "encoding '' is not understood"),
    "empty data": (lambda probe: _changed(probe, data=[]), "has no data"),
    "truncated data": (lambda probe: _changed(probe, data=bytes(100)), "the frame is cut short"),
    "zero size": (lambda probe: _changed(probe, width=0, height=0), "the image is 0x0"),
    "zero step": (lambda probe: _changed(probe, step=0), "takes 480 bytes, but step is 0; correct step"),
    "step shorter than a row": (lambda probe: _changed(probe, step=CAMERA.width), "takes 480 bytes, but step is 160"),
    "a size larger than the data": (lambda probe: _changed(probe, height=4000), "the frame is cut short"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_named_counted_and_survived(node, probe, kind):
    make, sentence = BAD_IMAGES[kind]
    before = int(probe.wait_for_status("input", lambda status: True, "a report")["dropped decode"])
    bad = probe.send(make(probe))
    probe.wait_for_status("input", lambda status: int(status["dropped decode"]) == before + 1, "one drop more")
    assert sentence in probe.status("input")["last fault"]
    probe.wait_for_log(re.split(r"\d", sentence)[-1])  # the log does not repeat what differs in numbers only
    _, depth = probe.ask()
    assert np.abs(1 / depth_of(depth) - 1 / PLANE)[:, 4:-4].max() < disparity_step()
    assert all(out.header.stamp != bad.header.stamp for out in probe.got["depth"])


def test_only_bad_images_are_an_error_in_diagnostics(node, probe):
    def bad_again():
        probe.send(_changed(probe, data=[]))
        status = probe.status("input")
        return status and status["level"] == b"\x02"

    probe.got["diagnostics"].clear()
    probe.wait(bad_again, "the level ERROR")
    probe.ask()
    # So many at once do not all arrive, and that is said afterwards; but it is no error any more.
    probe.wait_for_status("input", lambda status: status["level"] != b"\x02", "no error any more")


def test_padded_rows_and_big_endian_words_are_read_right(node, probe):
    padded = np.zeros((CAMERA.height, 3 * CAMERA.width + 20), np.uint8)
    padded[:, : 3 * CAMERA.width] = PICTURE.reshape(CAMERA.height, -1)
    message = _changed(probe, step=padded.shape[1], data=padded.tobytes())
    depth = depth_of(probe.answer(probe.send(message)))
    wide = (PICTURE.astype(np.uint16) << 8).astype(">u2").tobytes()
    message = _changed(probe, encoding="rgb16", is_bigendian=1, step=6 * CAMERA.width, data=wide)
    assert np.array_equal(depth, depth_of(probe.answer(probe.send(message))), equal_nan=True)
    assert np.abs(1 / depth - 1 / PLANE)[:, 4:-4].max() < disparity_step()


BAD_CAMERAS = {
    "uncalibrated": ({"k": [0.0] * 9}, "the camera is uncalibrated (K[0] is 0)", "uncalibrated"),
    "NaN in K": ({"k": [float("nan")] * 9}, "numbers in K that are not finite", "uncalibrated"),
    "another size": ({"width": 320, "height": 256}, "the image is 160x128, camera_info is for 320x256", "size"),
    "unknown distortion": ({"d": [0.1], "distortion_model": "magic"}, "the distortion model 'magic'", "uncalibrated"),
}


@pytest.mark.parametrize("kind", BAD_CAMERAS)
def test_without_a_usable_calibration_depth_goes_on_and_geometry_stops(node, probe, kind):
    changes, sentence, reason = BAD_CAMERAS[kind]
    probe.send_info(**changes)
    probe.wait(lambda: probe.ask() and probe.status("input")["camera"] == reason, f"the camera state {reason}")
    probe.wait_for_log(sentence)
    status = probe.wait_for_status("input", lambda status: int(status[f"without camera: {reason}"]) > 0, reason)
    assert status["level"] == b"\x01" and "depth only" in status["message"]
    sent, _ = probe.ask()
    probe.calibrate()
    for name in ("points", "odom", "depth_info"):
        assert all(out.header.stamp != sent.header.stamp for out in probe.got[name])
    sent, _ = probe.ask()
    probe.answer(sent, "points")
    probe.answer(sent, "odom")


def test_stamps_that_go_back_reset_the_odometry_and_are_announced(node, probe):
    for _ in range(3):
        probe.ask(name="odom")
    jumps = int(probe.wait_for_status("input", lambda status: True, "a report")["stamp jumps"])
    _, odometry = probe.ask(name="odom", step=-60.0)
    assert odometry.pose.pose.position.x == odometry.pose.pose.position.y == 0.0
    assert "stamps went back by 60.000 s" in probe.wait_for_log("stamps went back by")
    status = probe.wait_for_status("input", lambda status: int(status["stamp jumps"]) == jumps + 1, "one jump more")
    assert int(probe.status("odometry")["resets"]) >= 1 and status["last fault"]
    _, odometry = probe.ask(name="odom")
    assert odometry.pose.pose.position.x != 0.0


def test_two_images_with_one_stamp_are_both_answered_without_a_speed(node, probe):
    sent, _ = probe.ask(name="odom")
    probe.got["odom"].clear()
    probe.send(sent)
    again = probe.answer(sent, "odom")
    assert again.twist.twist.linear.x == 0.0 and again.twist.covariance[0] == 9999.0
    probe.wait_for_log("two images carry one stamp")


def test_a_leading_slash_in_the_frame_is_taken_away_and_said_once(node, probe):
    _, depth = probe.ask(frame="/rig/left_frame")
    probe.ask(frame="/rig/left_frame")
    assert depth.header.frame_id == "rig/left_frame"
    probe.wait_for_log("frame_id '/rig/left_frame' starts with a slash")
    assert node.log.count("starts with a slash") == 1


def test_an_image_of_another_size_is_answered_in_its_own_size(node, probe):
    small = cv2.resize(PICTURE, (96, 80), interpolation=cv2.INTER_AREA)
    _, depth = probe.ask(small)
    assert (depth.width, depth.height) == (96, 80)
    fault = "the image is 96x80, camera_info is for 160x128"
    probe.wait_for_status("input", lambda status: fault in status["last fault"], "the size named")


JPEG = cv2.imencode(".jpg", PICTURE[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
BAD_COMPRESSED = {
    "noise": (bytes(range(256)) * 4, "cannot be decoded"),
    "empty": (b"", "the compressed image has no data"),
    "cut short": (JPEG[: len(JPEG) // 2], "the JPEG of"),
}


def test_corrupt_jpegs_are_named_counted_and_survived(node, probe):
    topic = "/endoscope/image_raw/compressed"
    probe.retire("/endoscope/image_raw")
    good = compressed(JPEG, probe.header())
    probe.answer(probe.send(good, topic))
    for data, sentence in BAD_COMPRESSED.values():
        probe.send(compressed(data, probe.header()), topic)
        probe.wait_for_log(sentence)
        depth = depth_of(probe.answer(probe.send(compressed(JPEG, probe.header()), topic)))
        assert np.median(np.abs(1 / depth - 1 / PLANE)) < 3 * disparity_step()  # JPEG is not exact
    probe.send(compressed(JPEG, probe.header(), "16UC1; compressedDepth png"), topic)
    probe.wait_for_log("is a depth image")
    probe.retire(topic)
    probe.ask()
