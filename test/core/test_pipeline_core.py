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


# ---- views, masks, confidence, scale --------------------------------------------------------------------------------


def test_a_flipped_part_of_the_image_has_its_own_camera_and_depth(bundle):
    bench = Bench(bundle, input_roi=(40, 16, 80, 96), input_flip="h")
    answer, _ = bench.show()
    part = PLANE[16:112, 40:120][:, ::-1]
    assert answer.depth.shape == part.shape and answer.camera == CAMERA.cropped(40, 16, 80, 96).flipped("h")
    assert np.abs(1 / answer.depth - 1 / part)[:, 4:-4].max() < 2 * disparity_step()
    np.testing.assert_array_equal(answer.picture, PICTURE[16:112, 40:120][:, ::-1])


def test_a_raw_image_is_undistorted_and_its_empty_corners_have_no_depth(bundle):
    bench = Bench(bundle)
    bench.pipeline._calibration.hold(Camera(160, 128, 110.0, 110.0, 79.5, 63.5, "plumb_bob", (0.3, 0.1, 0.0, 0.0, 0.0)))
    answer, state = bench.show()
    assert not answer.camera.is_distorted and state is not None
    assert np.isnan(answer.depth[0, 0]) and np.isfinite(answer.depth[64, 80])


def test_the_mask_reaches_the_confidence_and_a_foreign_one_is_said(bundle):
    bench = Bench(bundle)
    bench.show()
    mask = np.full((128, 160), 255, np.uint8)
    mask[:, :80] = 0
    bench.stamp += 10**9 // 30
    answer = bench.pipeline.estimate(PICTURE, bench.stamp, "camera", mask=mask)
    bench.pipeline.move(answer)
    judgement = bench.pipeline.judge(answer)
    assert judgement.masked[:, :20].all() and not judgement.masked[:, 40:].any()
    assert (answer.confidence[:, :70] == 0).all() and 0 <= answer.confidence.min() <= answer.confidence.max() <= 1
    bench.pipeline.estimate(PICTURE, bench.stamp + 1, "camera", mask=np.ones((9, 9), np.uint8))
    assert bench.reasons == ["mask_size"]


def test_depth_of_low_confidence_is_invalid_where_that_is_asked_for(bundle):
    free, strict = Bench(bundle), Bench(bundle, depth_confidence_threshold=0.999999)
    assert np.isfinite(free.show()[0].depth).all() and np.isnan(strict.show()[0].depth).all()


def test_the_temporal_filter_takes_the_motion_before_the_depth(bundle, monkeypatch):
    bench, order = Bench(bundle, depth_temporal_filter=0.5), []
    for name in ("motion", "depth"):
        real = getattr(bench.pipeline.estimator, name)
        monkeypatch.setattr(
            bench.pipeline.estimator, name, lambda *a, real=real, name=name: order.append(name) or real(*a)
        )
    _, state = bench.show()
    assert order == ["motion", "depth"] and state.state == "INIT"
    bench.show()
    assert order == ["motion", "depth"] * 2, "and once only"


def test_a_surround_that_is_black_has_no_depth(bundle):
    picture = PICTURE.copy()
    v, u = np.mgrid[:128, :160]
    picture[np.hypot(u - 79.5, v - 63.5) > 60] = 0
    assert np.isnan(Bench(bundle).show(rgb=picture)[0].depth[2, 2])
    assert np.isfinite(Bench(bundle, depth_mask_border=False).show(rgb=picture)[0].depth).all()


def test_nothing_metric_goes_out_before_metres_are_known(bundle):
    assert Bench(bundle, scale_require_metric=True).show()[0].withheld
    assert not Bench(bundle, scale_require_metric=True, scale_factor=1.5).show()[0].withheld
    kinematic = Bench(bundle, scale_mode="kinematic", scale_require_metric=True)
    answer, state = kinematic.show()
    assert answer.withheld and state is not None, "odometry goes on inside, or the scale could not be found"


def test_set_pose_goes_on_from_there(bundle):
    bench = Bench(bundle, odom_refine=False, odom_keyframe=False)
    bench.show()
    T = se3(so3_exp(np.array([0.0, 0.0, 0.5])), np.array([1.0, 2.0, 3.0])) @ OPTICAL_TO_BODY
    assert "goes on from (1.0000, 2.0000, 3.0000) m" in bench.pipeline.set_pose(T, np.eye(6) * 1e-6)
    _, state = bench.show()
    np.testing.assert_allclose(state.T_odom_camera, T @ MOTION, atol=1e-6)


@pytest.mark.parametrize("what", ["ignore", "shutdown"])
def test_a_stamp_that_goes_back_can_be_ignored_or_be_the_end(bundle, what):
    bench = Bench(bundle, time_on_jump=what, odom_refine=False, odom_keyframe=False)
    for _ in range(3):
        bench.show()
    bench.show(step=-50 * 10**9)
    assert bench.reasons == ["jump"] and bench.pipeline.ended == (what == "shutdown")
    assert bench.pipeline.track.resets == (0 if what == "ignore" else 1)


def test_a_lens_that_is_left_as_it_is_costs_no_odometry_and_no_confidence(bundle):
    bench = Bench(bundle, input_undistort=False)
    bench.pipeline._calibration.hold(Camera(160, 128, 110.0, 110.0, 79.5, 63.5, "plumb_bob", (0.1, 0.0, 0.0, 0.0, 0.0)))
    for _ in range(2):
        answer, state = bench.show()
        assert np.isfinite(bench.pipeline.judge(answer).value).all()
    assert answer.camera.is_distorted and state.state == "OK"
