"""The node's work on an image without ROS: what is due when, what a jump of time does, and what is refused in words."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx", reason="writes the mock bundle")

from mock_bundle import disparity_step, image_of_depth, tilted_plane, write_mock_bundle

from endomust_core.bundle import load_bundle
from endomust_core.camera import Camera
from endomust_core.estimator import Estimator
from endomust_core.odometry import OPTICAL_TO_BODY, se3, so3_exp
from endomust_core.pipeline import Calibration, Pipeline, Settings, depth_facts, model_info, seconds

CAMERA = Camera(160, 128, 150.0, 155.0, 79.0, 64.5)
PLANE = tilted_plane(CAMERA.width, CAMERA.height, left=0.03, right=0.15)
PICTURE = image_of_depth(PLANE)
TRANSLATION, ROTATION = (0.001, -0.0005, 0.002), (0.0, 0.02, 0.01)
MOTION = se3(so3_exp(np.array(ROTATION)), np.array(TRANSLATION))
START = 100 * 10**9


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundle") / "mock"
    return load_bundle(write_mock_bundle(root, translation=TRANSLATION, rotation=ROTATION))


class Bench:
    """A pipeline that remembers its notes; a camera that films 30 images a second."""

    def __init__(self, bundle, calibrated=True, **settings):
        self.notes = []
        calibration = Calibration()
        if calibrated:
            calibration.hold(CAMERA)
        note = lambda reason, sentence: self.notes.append((reason, sentence))  # noqa: E731
        self.pipeline = Pipeline(Estimator(bundle, threads=1), Settings(**settings), calibration, note)
        self.stamp = START

    def show(self, step=10**9 // 30, frame="camera", rgb=PICTURE):
        self.stamp += step
        answer = self.pipeline.estimate(rgb, self.stamp, frame)
        return answer, self.pipeline.move(answer)

    @property
    def reasons(self):
        return [reason for reason, _ in self.notes]


def test_depth_camera_and_pose_of_a_known_world(bundle):
    bench = Bench(bundle)
    bench.show()
    answer, state = bench.show()
    assert np.abs(1 / answer.depth - 1 / PLANE)[:, 4:-4].max() < disparity_step()
    assert answer.camera == CAMERA and answer.calibration == "calibrated" and bench.notes == []
    np.testing.assert_allclose(state.T_odom_camera, OPTICAL_TO_BODY @ MOTION, atol=1e-6)
    assert bench.pipeline.track.steps == 1 and bench.pipeline.track.path == pytest.approx(np.linalg.norm(TRANSLATION))


def test_scale_and_range_are_those_of_the_settings(bundle):
    bench = Bench(bundle, scale_factor=2.0, depth_max_range=0.2)
    bench.show()
    answer, state = bench.show()
    assert np.nanmax(answer.depth) <= 0.2 and np.isnan(answer.depth).any()
    assert np.linalg.norm(state.T_odom_camera[:3, 3]) == pytest.approx(2 * np.linalg.norm(TRANSLATION), rel=1e-5)


def test_the_pose_network_rests_while_odometry_is_off_and_goes_on_from_the_image_before(bundle, monkeypatch):
    bench = Bench(bundle, odom_enable=False)
    runs, real = [], bench.pipeline.estimator._run_pose
    monkeypatch.setattr(bench.pipeline.estimator, "_run_pose", lambda pair: runs.append(pair.copy()) or real(pair))
    bench.show()
    before = np.full_like(PICTURE, 77)
    assert bench.show(rgb=before) and not runs
    bench.pipeline.settings = Settings()
    answer, state = bench.show()
    assert len(runs) == 1 and (runs[0][0, 0] == 77).all() and answer.timing["pose"] > 0
    assert state.state == "INIT" or bench.pipeline.track.steps == 1


def test_a_stamp_that_goes_back_starts_everything_again(bundle):
    bench = Bench(bundle)
    for _ in range(3):
        bench.show()
    answer, state = bench.show(step=-50 * 10**9)
    assert state.state == "INIT"
    assert bench.reasons == ["jump"] and "given up: 2 steps" in bench.notes[0][1]
    assert bench.pipeline.transform_is_due(answer, state) and bench.pipeline.cloud_is_due(answer)


def test_equal_stamps_are_said_and_have_no_speed(bundle):
    bench = Bench(bundle)
    bench.show()
    answer, state = bench.show(step=0)
    assert bench.reasons == ["same_stamp"] and state.state == "OK" and state.twist is None


def test_transforms_are_due_once_per_stamp_with_a_frame_and_never_while_lost(bundle):
    bench = Bench(bundle)
    answer, state = bench.show()
    assert [bench.pipeline.transform_is_due(answer, state) for _ in range(2)] == [True, False]
    assert not bench.pipeline.transform_is_due(*bench.show(frame=""))
    bench.pipeline.settings = Settings(odom_max_translation=1e-4)
    answer, state = bench.show()
    assert state.state == "LOST" and not bench.pipeline.transform_is_due(answer, state)
    assert bench.reasons == ["no_frame", "lost"]


def test_ten_clouds_a_second_out_of_thirty_images(bundle):
    bench = Bench(bundle)
    assert [bench.pipeline.cloud_is_due(bench.show()[0]) for _ in range(9)] == [True, False, False] * 3


@pytest.mark.parametrize(
    ("info", "reason", "words"),
    [
        (None, "no_info", "no camera_info has come yet"),
        ({"k": np.zeros(9)}, "uncalibrated", "the camera is uncalibrated"),
        ({"k": np.full(9, np.nan)}, "uncalibrated", "not finite"),
        ({"width": 320, "height": 256}, "size", "camera_info is for 320x256"),
    ],
)
def test_without_a_usable_camera_there_is_depth_and_no_odometry(bundle, info, reason, words):
    bench = Bench(bundle, calibrated=False)
    if info is not None:
        bench.pipeline._calibration.update(camera_info(**info))
    answer, state = bench.show()
    assert np.isfinite(answer.depth).all() and answer.camera is None and state is None
    assert answer.calibration == reason and bench.reasons == [reason] and words in bench.notes[0][1]
    assert not bench.pipeline.cloud_is_due(answer)


def test_a_leading_slash_is_cut_and_a_given_frame_wins(bundle):
    bench = Bench(bundle)
    assert bench.show(frame="/ecm")[0].frame_id == "ecm" and bench.reasons == ["slash"]
    assert Bench(bundle, frames_camera_optical="tip").show(frame="/ecm")[0].frame_id == "tip"


def test_small_things(bundle):
    depth = np.full((64, 64), np.nan, np.float32)
    assert depth_facts(depth) == (0.0, None)
    depth[:, :32] = 0.05
    assert depth_facts(depth) == (0.5, pytest.approx(0.05))
    assert seconds(12_345_678_901) == 12 + 1e-9 * 345678901
    info = model_info(Estimator(bundle, threads=1), "1.2.3")
    assert info["name"] == "mock" and info["node_version"] == "1.2.3" and info["digest"] == bundle.digest


def camera_info(**changes):
    """Anything with the fields of sensor_msgs/CameraInfo."""
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    fields = {"width": 160, "height": 128, "distortion_model": "plumb_bob", "d": np.zeros(5), "k": CAMERA.K.ravel()}
    fields |= {"p": np.zeros(12), "binning_x": 0, "binning_y": 0, "roi": roi}
    return SimpleNamespace(**{**fields, **changes})
