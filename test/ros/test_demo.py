"""The demo from end to end with a tiny recording and the mock bundle, and what it says when something is wrong."""

import os
import signal

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")
pytest.importorskip("onnx", reason="writes the mock bundle")

import rclpy
from mock_bundle import write_mock_bundle
from sensor_msgs.msg import CompressedImage
from small_recording import CAMERA, image_at, write_small_recording

from endomust_core.importing import import_frames
from endomust_core.recording import COMPRESSED_TOPIC, POSE_TOPIC, RecordingReader
from endomust_core.recording_writer import RecordingWriter
from endomust_ros import demo as demo_module
from endomust_ros.demo import DEPTH, MODEL_INFO, ODOM, POINTS, main
from endomust_ros.demo_report import Run
from endomust_ros.player import Played
from endomust_ros.process import NodeProcess, NodeProcessError, ProcessUse

pytestmark = pytest.mark.ros
FRAMES = 12
RATE = 5.0  # Hz; slow, so that a busy machine still answers every image


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "small.mcap"
    return write_small_recording(path, frames=FRAMES, rate=RATE, depth_every=3)


@pytest.fixture(scope="module")
def mock(tmp_path_factory):
    return write_mock_bundle(tmp_path_factory.mktemp("demo") / "mock", translation=(0.0006, 0.0002, 0.0001))


def told_by_a_complete_demo(capsys, recording, bundle, out):
    """What the demo prints. Exit code 1 says that this machine had no time for it, so it is tried again, twice."""
    for _ in range(3):
        code = main(["--recording", str(recording), "--bundle", str(bundle), "--out", str(out)])
        told = capsys.readouterr().out
        if code != 1:
            break
    assert code == 0
    return told


def test_the_whole_chain(small, mock, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    out = tmp_path / "out"
    told = told_by_a_complete_demo(capsys, small, mock, out)
    for step in range(1, 7):
        assert f"{step}/6 " in told
    assert f"answered with depth    {FRAMES} (100.0%)" in told
    assert "over 4 frames (median-scaled" in told, "frames 0, 3, 6, 9 have true depth"
    with RecordingReader(out / "recording.mcap") as recording:
        assert recording.count(DEPTH) == recording.count(COMPRESSED_TOPIC) == recording.count(POSE_TOPIC) == FRAMES
        assert recording.count(ODOM) == FRAMES and recording.count(MODEL_INFO) == 1 and recording.count(POINTS) > 3
    page = (out / "report.html").read_text()
    for title in ("Images and depth", "Point cloud", "Trajectory", "Latency", "Pixels with depth", "Environment"):
        assert f"<h2>{title}</h2>" in page
    assert "mock 0.1.0" in page and "true depth" in page
    assert f"endomust demo --out {out} --recording {small} --bundle {mock}" in page, "what to type to do this again"
    assert sorted(p.name for p in out.iterdir()) == ["node.log", "recording.mcap", "report.html"]


def test_a_node_that_cannot_start_shows_its_last_words(small, mock, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    arguments = ["--recording", str(small), "--bundle", str(mock), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--node-argument=-p", "--node-argument=frames.odom:=/slash"]) == 2
    error = capsys.readouterr().err
    assert "the node ended with code 1" in error and "frames.odom starts with a slash" in error
    assert not (tmp_path / "out" / "recording.mcap").exists()


def test_a_node_without_a_model_is_explained(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    (tmp_path / "empty").mkdir()
    assert main(["--recording", str(small), "--bundle", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "the node could not configure" in error and "configure failed" in error, "the log says why"


def test_a_node_that_dies_while_playing_shows_its_last_words(small, mock, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    began = []
    use = NodeProcess.use  # asked just before playing starts

    def fatal(self):
        if not began:
            began.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)
        return use(self)

    monkeypatch.setattr(NodeProcess, "use", fatal)
    assert main(["--recording", str(small), "--bundle", str(mock), "--out", str(tmp_path / "out")]) == 2
    assert began and "the node ended with code -9" in capsys.readouterr().err
    assert not (tmp_path / "out" / "recording.mcap").exists()


@pytest.mark.parametrize("name", ["endomust", "camera_driver"])
def test_a_running_system_is_left_alone(small, mock, tmp_path, capsys, name):
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    stranger = rclpy.create_node(name, context=context)
    try:
        if name == "camera_driver":
            stranger.create_publisher(CompressedImage, COMPRESSED_TOPIC, 1)
        assert main(["--recording", str(small), "--bundle", str(mock), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert f"/{name} " in error and "ROS_DOMAIN_ID=42" in error
        assert not (tmp_path / "out" / "node.log").exists(), "no node was started"
    finally:
        stranger.destroy_node()
        rclpy.shutdown(context=context)


def test_an_uncalibrated_recording_still_gives_depth(mock, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    (tmp_path / "images").mkdir()
    for index in range(6):
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), image_at(index))
    import_frames(tmp_path / "images", tmp_path / "video.mcap", rate=RATE)
    out = tmp_path / "out"
    told = told_by_a_complete_demo(capsys, tmp_path / "video.mcap", mock, out)
    assert "answered with depth    6 (100.0%)" in told and "answered with odometry 0 (0.0%)" in told
    page = (out / "report.html").read_text()
    assert "holds no calibrated camera_info" in page and "No odometry arrived" in page


def test_a_missing_recording_is_said(tmp_path, capsys, monkeypatch):
    assert main(["--recording", str(tmp_path / "none.mcap"), "--out", str(tmp_path / "out")]) == 2
    assert "none.mcap does not exist" in capsys.readouterr().err
    monkeypatch.setattr(demo_module, "SHIPPED", ("models", "demo", "not_there.mcap"))
    assert main(["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "the demo's recording is missing" in error and "endomust demo --recording FILE.mcap" in error


def test_a_recording_without_images_is_said(tmp_path, capsys):
    with RecordingWriter(tmp_path / "poses.mcap") as writer:
        writer.write_pose("/pose", np.eye(4), 10**9)
    assert main(["--recording", str(tmp_path / "poses.mcap"), "--out", str(tmp_path / "out")]) == 2
    assert "holds no camera images; its topics: /pose" in capsys.readouterr().err


def run_with(answered, sent=20):
    run = Run(COMPRESSED_TOPIC, Played(), ProcessUse())
    run.sent = {stamp: 0.1 * stamp for stamp in range(sent)}
    run.depth_at = {stamp: 0.1 * stamp + 0.02 for stamp in range(answered)}
    return run


@pytest.mark.parametrize(("answered", "code"), [(20, 0), (19, 0), (18, 1), (0, 1)])
def test_the_exit_code_follows_the_share_of_answers(answered, code, capsys):
    assert demo_module._verdict(run_with(answered)) == code
    assert ("were answered with depth, 95% are expected" in capsys.readouterr().err) == bool(code)


def test_latency_is_that_of_the_same_stamp():
    times, latency = run_with(5).latencies()
    np.testing.assert_allclose(times, 0.1 * np.arange(5))
    np.testing.assert_allclose(latency, 0.02)
    assert run_with(5).share({3: 1.0, 99: 1.0}) == pytest.approx(0.05), "answers to others do not count"


def test_a_process_that_ends_by_itself_is_reported(tmp_path):
    with NodeProcess("this", [], tmp_path / "log.txt") as process:
        process._process.wait(10)
        assert not process.alive()
        with pytest.raises(NodeProcessError, match="(?s)ended with code 0.*honking great idea"):
            process.check()


def test_a_process_stops_on_sigint_and_its_time_is_counted(tmp_path):
    (tmp_path / "busy.py").write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(0))\nprint('ready')\n"
        "end = time.monotonic() + 30\nwhile time.monotonic() < end: sum(range(1000))\n"
    )
    log = tmp_path / "log.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        process = NodeProcess("busy", [], log)
    with process:
        before = process.use()
        while "ready" not in log.read_text() or (process.use() - before).cpu_s < 0.1:
            process.check()
        use = process.use() - before
        assert process.stop() == 0
    assert 0 < use.cpu_percent() < 120 and use.peak_mb > 1


def test_a_process_that_ignores_sigint_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("endomust_ros.process.STOP_TIMEOUT", 0.3)
    (tmp_path / "deaf.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready')\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with NodeProcess("deaf", [], tmp_path / "log.txt") as process:
        while "ready" not in (tmp_path / "log.txt").read_text():
            process.check()
        assert process.stop() == -signal.SIGKILL


def test_the_camera_info_beside_the_image_is_chosen(tmp_path):
    with RecordingWriter(tmp_path / "two.mcap") as writer:
        for name in ("/left", "/right"):
            writer.write_image(f"{name}/image_raw", np.zeros((8, 8, 3), np.uint8), 10**9, "camera")
            writer.write_camera_info(f"{name}/camera_info", CAMERA, 10**9, "camera")
    with RecordingReader(tmp_path / "two.mcap") as reader:
        arguments = demo_module._node_arguments(reader, "/right/image_raw", None)
    assert "image:=/right/image_raw" in arguments and "camera_info:=/right/camera_info" in arguments
    assert "input.transport:=raw" in arguments
