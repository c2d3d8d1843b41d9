"""Two cameras in one process: namespaces, one set of networks, launch arguments, and what the stereo check says."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from diagnostic_msgs.msg import DiagnosticArray
from harness import DEADLINE, ROOT
from mock_bundle import write_mock_bundle
from sensor_msgs.msg import CameraInfo, Image

from endomust_core.camera import Camera
from endomust_core.scale import ScaleState
from endomust_ros.diagnostics import OK, WARN
from endomust_ros.launching import LaunchError
from endomust_ros.messages import camera_info_message, rgb_to_image
from endomust_ros.stereo import judged
from endomust_ros.stereo_launching import STEREO_ARGUMENTS, stereo_node, stereo_words

CAMERA = Camera(320, 256, 300.0, 300.0, 159.5, 127.5)
BASELINE, DISTANCE = 0.005, 0.06  # m; 25 px of disparity
DISPARITY = CAMERA.fx * BASELINE / DISTANCE


def picture(shift=0.0, seed=1):
    """(256,320,3) of a textured wall, whose red channel the mock network reads as a depth of its own."""
    rng = np.random.default_rng(seed)
    wall = cv2.GaussianBlur(rng.uniform(0, 255, (256, 480)).astype(np.float32), (0, 0), 1.5)
    wall = np.clip((wall - wall.mean()) * 4 + 128, 0, 255)
    move = np.float32([[1, 0, -80 - shift], [0, 1, 0]])
    grey = cv2.warpAffine(wall, move, (320, 256)).astype(np.uint8)
    return cv2.merge([np.full_like(grey, 90), grey, grey])


def answer(shift, depth, scale=1.0):
    state = ScaleState("fixed", scale, None, False, "")
    return SimpleNamespace(
        camera=CAMERA, picture=picture(shift), depth=np.full((256, 320), depth, np.float32), scale=state, stamp_ns=0
    )


def test_depth_that_agrees_with_the_baseline_is_said_to():
    level, sentence, values = judged(answer(0, DISTANCE), answer(DISPARITY, DISTANCE), BASELINE)
    assert level == OK and "agrees" in sentence and values["baseline / predicted"] == pytest.approx(1.0, abs=0.03)


def test_depth_that_is_too_far_is_a_warning_that_names_the_factor():
    level, sentence, _ = judged(answer(0, 1.5 * DISTANCE, 1.2), answer(DISPARITY, 1.5 * DISTANCE, 1.2), BASELINE)
    assert level == WARN and "+50 %" in sentence
    factor = float(sentence.split("scale.factor ")[1].split()[0])
    assert factor == pytest.approx(1.2 / 1.5, rel=0.03)


def test_without_calibration_baseline_or_a_common_scene_it_says_so():
    left, right = answer(0, DISTANCE), answer(DISPARITY, DISTANCE)
    assert "P[3] is 0" in judged(left, right, None)[1]
    assert "camera_info of both" in judged(SimpleNamespace(camera=None), right, BASELINE)[1]
    other = answer(DISPARITY, DISTANCE)
    other.picture = picture(seed=9)
    level, sentence, _ = judged(left, other, BASELINE)
    assert level == OK and "nothing to compare" in sentence


def values(**given):
    return {name: default for name, (default, _) in STEREO_ARGUMENTS.items()} | given


def test_a_rig_names_both_cameras():
    words = stereo_words(values(rig="davinci"))
    assert words == [
        *("--namespace", "/endoscope"),
        *("--left-image", "/davinci/left/image_rect_color", "--right-image", "/davinci/right/image_rect_color"),
    ]
    node = stereo_node(values(rig="davinci", scale_mode="fixed", namespace=""))
    assert node["executable"] == "stereo_node" and node["parameters"] == [{"scale.mode": "fixed"}]
    assert node["arguments"][:2] == ["--namespace", ""] and "name" not in node
    with pytest.raises(LaunchError, match="left_image_topic is empty"):
        stereo_words(values())


def test_two_nodes_share_the_networks_and_check_each_other(tmp_path, probe):
    bundle = write_mock_bundle(tmp_path / "mock", near=0.02, far=0.2)
    command = [sys.executable, "-m", "endomust_ros.stereo_node", "--namespace", "/scope"]
    command += ["--left-image", "/cam/left/image_rect", "--right-image", "/cam/right/image_rect", "--ros-args"]
    command += ["-p", f"model.path:={bundle}", "-p", "model.threads:=1", "-p", "diagnostics.period:=0.2"]
    log = open(tmp_path / "log", "wb")  # noqa: SIM115
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROS_LOG_DIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        depths = {side: [] for side in ("left", "right")}
        for side, got in depths.items():
            probe.node.create_subscription(Image, f"/scope/{side}/endomust/depth/image_rect", got.append, 10)
        said = []
        probe.node.create_subscription(DiagnosticArray, "/diagnostics", lambda m: said.extend(m.status), 10)

        def stereo_status():
            _send_pair(probe)
            known = [s for s in said if s.name == "endomust: stereo" and "no calibration" not in s.message]
            return known and known[-1]

        try:
            status = probe.wait(stereo_status, "the stereo check", DEADLINE)
        finally:
            log.flush()
        facts = {pair.key: pair.value for pair in status.values}
        assert float(facts["baseline [m]"]) == pytest.approx(BASELINE) and int(facts["matches"]) > 40
        assert depths["left"] and depths["right"]
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        log.close()
    text = (tmp_path / "log").read_text()
    assert text.count("is ready on cpu") == 2 and "is rectified by its name" in text


def _send_pair(probe):
    header = probe.header()
    for side, shift, tx in (("left", 0.0, 0.0), ("right", DISPARITY, -CAMERA.fx * BASELINE)):
        info = camera_info_message(CAMERA, header)
        info.p[3] = tx
        probe.publisher(f"/cam/{side}/camera_info", CameraInfo).publish(info)
        probe.publisher(f"/cam/{side}/image_rect", Image).publish(rgb_to_image(picture(shift), header))
