"""Results from a recording: known scale, known drift, known share of valid pixels come out as numbers."""

import numpy as np
import pytest
from small_recording import CAMERA, OPTICAL_FRAME, START_NS, depth_at, image_at, pose_at
from test_recording import read_all

from endomust_core.decoding import depth_from
from endomust_core.odometry import se3, so3_exp
from endomust_core.recording import DEPTH_PNG_TOPIC, POSE_TOPIC, RecordingReader
from endomust_core.recording_writer import RecordingWriter
from endomust_core.results import Topics, path_length, results_of, trajectory_of

TOPICS = Topics("/image", "/depth", "/odom", "/points", POSE_TOPIC, (DEPTH_PNG_TOPIC,))
ODOM_SCALE = 0.5


def write_answers(path, frames=8, depth_scale=2.0, truth=True):
    """Depth is the truth times depth_scale with a fifth of it missing; poses are the truth, turned and shrunk."""
    turn = se3(so3_exp(np.array([0.1, -0.4, 0.2])), np.array([0.3, 0.1, 0.0]))
    with RecordingWriter(path) as writer:
        for index in range(frames):
            stamp = START_NS + index * 100_000_000
            writer.write_image("/image", image_at(index), stamp, OPTICAL_FRAME)
            depth = depth_at(index) * np.float32(depth_scale)
            depth[: CAMERA.height // 5] = np.nan
            writer.write_depth("/depth", depth, stamp, OPTICAL_FRAME)
            T = turn @ pose_at(index)
            T[:3, 3] *= ODOM_SCALE
            writer.write_pose("/odom", T, stamp, "odom")
            if truth:
                writer.write_pose(POSE_TOPIC, pose_at(index), stamp)
                writer.write_depth(DEPTH_PNG_TOPIC, depth_at(index), stamp, OPTICAL_FRAME, compact=True)
    return path


def test_scale_valid_share_and_trajectory(tmp_path):
    with RecordingReader(write_answers(tmp_path / "a.mcap")) as recording:
        results = results_of(recording, TOPICS)
    assert results.image_stamps == results.depth_stamps == results.odom_stamps
    assert results.valid == [pytest.approx(0.8)] * 8
    assert results.depth_mean["ratio"] == pytest.approx(0.5, rel=1e-3)
    assert results.depth_mean["abs_rel"] < 1e-3, "only the scale is wrong"
    trajectory = results.trajectory
    assert trajectory.scale == pytest.approx(1 / ODOM_SCALE, rel=1e-6) and trajectory.ate < 1e-9
    np.testing.assert_allclose(trajectory.aligned, trajectory.truth, atol=1e-9)
    np.testing.assert_allclose(trajectory.seconds, np.arange(8) / 10)
    assert trajectory.path == pytest.approx(7 * np.linalg.norm([0.0006, 0.0002, 0.0001]))
    assert results.seconds(results.image_stamps[3]) == pytest.approx(0.3)


def test_pictures_belong_together(tmp_path):
    path = write_answers(tmp_path / "a.mcap", depth_scale=1.0)
    with RecordingReader(path) as recording:
        frames = results_of(recording, TOPICS).frames
    assert [f.caption for f in frames] == ["0.00 s", "0.20 s", "0.40 s", "0.50 s", "0.70 s"]
    np.testing.assert_array_equal(frames[1].rgb, image_at(2))
    np.testing.assert_allclose(frames[1].truth, depth_at(2), atol=1e-5)
    np.testing.assert_array_equal(frames[1].depth, depth_from(read_all(path, "/depth")[2]))


def test_without_ground_truth_nothing_is_scored(tmp_path):
    with RecordingReader(write_answers(tmp_path / "a.mcap", truth=False)) as recording:
        results = results_of(recording, TOPICS)
    assert results.depth_mean is None and results.trajectory.truth is None
    assert np.isnan(results.trajectory.ate) and results.trajectory.path > 0
    assert len(results.frames) == 5 and results.frames[0].truth is None


def test_a_recording_without_answers(tmp_path):
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        writer.write_image("/image", image_at(0), START_NS, OPTICAL_FRAME)
    with RecordingReader(tmp_path / "a.mcap") as recording:
        results = results_of(recording, TOPICS)
    assert results.trajectory is None and results.frames == [] and results.cloud is None and results.valid == []


def test_a_known_error_is_the_error_reported():
    truth = {i: se3(np.eye(3), np.array([0.01 * i, 0.002 * i * i, 0.0])) for i in range(20)}
    moved = {i: T.copy() for i, T in truth.items()}
    for i in moved:
        moved[i][2, 3] += 1e-4 * (-1) ** i  # alternates, so that no alignment takes it away
    moved[99] = np.eye(4)  # a stamp that the truth does not have
    trajectory = trajectory_of(moved, truth, 0)
    assert len(trajectory.seconds) == 20
    assert trajectory.ate == pytest.approx(1e-4, rel=0.05)


def test_path_length_of_nothing_is_zero():
    assert path_length(np.zeros((0, 3))) == path_length(np.zeros((1, 3))) == 0.0
    assert path_length(np.array([[0, 0, 0], [3, 4, 0], [3, 4, 1.0]])) == 6.0
