"""Predictions equal the node's; kept ones come back to the bit, and never for another model or another image."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from mock_bundle import write_mock_bundle

from endomust_core.bundle import load_bundle
from endomust_core.estimator import Estimator, to_depth
from endomust_core.predictions import BundlePredictor, CachedPredictor, TimedPredictor, digest_of


def images(count=2, seed=0):
    return [np.random.default_rng(seed + i).integers(0, 256, (60, 80, 3), dtype=np.uint8) for i in range(count)]


class Counting:
    """Answers that depend on the image, and how often it was asked."""

    name, version, digest, backend, path, metric = "counting", "1", "ab" * 32, "test/cpu", "nowhere", True

    def __init__(self, digest=digest, factor=1.0, intrinsics=True):
        self.digest, self.factor, self.intrinsics, self.asked = digest, factor, intrinsics, 0

    def disparity(self, rgb):
        self.asked += 1
        return rgb[::10, ::10, 0].astype(np.float32) * np.float32(self.factor)

    def motion(self, previous_rgb, rgb):
        self.asked += 1
        T = np.eye(4)
        T[2, 3] = rgb.mean() - previous_rgb.mean()
        return T, np.array([0.8, 1.0, 0.5, 0.5]) if self.intrinsics else None


def test_a_bundle_says_to_the_bit_what_the_node_says(tmp_path):
    motion = dict(rotation=(0.1, 0, 0), translation=(1e-3, 0, 2e-3), brightness_gain=(0, 0, 0.01))
    bundle = load_bundle(write_mock_bundle(tmp_path / "mock", pose_size=(32, 40), **motion))
    predictor, estimator = BundlePredictor(bundle, threads=1), Estimator(bundle, threads=1)
    first, second = images()
    estimator.estimate(first)
    estimate = estimator.estimate(second)
    np.testing.assert_array_equal(to_depth(predictor.disparity(second), 80, 60), estimate.depth)
    T_prev_curr, intrinsics = predictor.motion(first, second)
    np.testing.assert_array_equal(T_prev_curr, estimate.T_prev_curr)
    np.testing.assert_array_equal(intrinsics, estimate.intrinsics)
    assert (predictor.backend, predictor.name, predictor.metric) == ("onnxruntime/cpu", "mock", False)


def test_a_bundle_without_pose_says_no_motion(tmp_path):
    predictor = BundlePredictor(write_mock_bundle(tmp_path / "mock", pose=False), threads=1)
    assert predictor.motion(*images()) is None


def test_the_digest_changes_with_weights_and_sizes(tmp_path):
    sizes = {digest_of(["aa"], [(1, 2)]), digest_of(["ab"], [(1, 2)]), digest_of(["aa"], [(2, 1)])}
    assert len(sizes) == 3 and all(len(digest) == 64 for digest in sizes)
    near = BundlePredictor(write_mock_bundle(tmp_path / "near", near=0.02), threads=1)
    far = BundlePredictor(write_mock_bundle(tmp_path / "far", near=0.03), threads=1)
    assert near.digest != far.digest


def test_kept_predictions_come_back_to_the_bit(tmp_path):
    model, (first, second) = Counting(), images()
    before = CachedPredictor(model, tmp_path)
    said = before.disparity(first), before.motion(first, second)
    after = CachedPredictor(model, tmp_path)
    np.testing.assert_array_equal(after.disparity(first.copy()), said[0])
    assert after.disparity(first).dtype == np.float32
    T, intrinsics = after.motion(first.copy(), second.copy())
    np.testing.assert_array_equal(T, said[1][0])
    np.testing.assert_array_equal(intrinsics, said[1][1])
    assert model.asked == 2 and (after.hits, after.misses) == (3, 0) and after.name == "counting"
    assert not list(tmp_path.rglob("*.part"))


def test_motion_without_intrinsics_and_no_motion_at_all(tmp_path):
    first, second = images()
    for _ in range(2):
        assert CachedPredictor(Counting(intrinsics=False), tmp_path).motion(first, second)[1] is None
    still = SimpleNamespace(digest="cd" * 32, backend="test/cpu", motion=lambda previous, now: None)
    assert CachedPredictor(still, tmp_path).motion(first, second) is None


def test_another_model_never_meets_an_old_prediction(tmp_path):
    (image,) = images(1)
    old = CachedPredictor(Counting(), tmp_path).disparity(image)
    changed = Counting(digest="ef" * 32, factor=2.0)
    np.testing.assert_array_equal(CachedPredictor(changed, tmp_path).disparity(image), 2 * old)
    elsewhere = Counting(factor=3.0)
    elsewhere.backend = "tensorrt/gpu"  # the same weights, run by another library
    np.testing.assert_array_equal(CachedPredictor(elsewhere, tmp_path).disparity(image), 3 * old)


def test_one_changed_pixel_or_another_order_is_another_image(tmp_path):
    model, (first, second) = Counting(), images()
    cached = CachedPredictor(model, tmp_path)
    cached.motion(first, second)
    assert cached.motion(second, first)[0][2, 3] == -cached.motion(first, second)[0][2, 3]
    changed = first.copy()
    changed[0, 0, 0] ^= 1
    asked = model.asked
    cached.disparity(first), cached.disparity(changed)
    assert model.asked == asked + 2
    flat = first.reshape(80, 60, 3)  # the same bytes in another shape
    cached.disparity(flat)
    assert model.asked == asked + 3


def test_a_damaged_file_is_predicted_again(tmp_path, caplog):
    model, (image,) = Counting(), images(1)
    said = CachedPredictor(model, tmp_path).disparity(image)
    (file,) = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:100])
    for _ in range(2):
        np.testing.assert_array_equal(CachedPredictor(model, tmp_path).disparity(image), said)
    assert model.asked == 2 and "predicted again" in caplog.text


def test_the_cache_stops_at_its_limit_and_says_so(tmp_path, caplog):
    cached = CachedPredictor(Counting(), tmp_path, limit=500)
    for image in images(4):
        cached.disparity(image)
    assert 1 <= len(list(tmp_path.rglob("*.npy"))) < 4
    assert caplog.text.count("the limit") == 1


def test_a_cache_that_cannot_be_written_is_said_and_the_numbers_still_come(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    cached = CachedPredictor(Counting(), tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        found = [cached.disparity(image) for image in images(3)]
    assert len(found) == 3 and "no more predictions are stored" in caplog.text


def test_time_is_measured_but_for_the_first_call():
    timed = TimedPredictor(Counting())
    for image in images(4):
        timed.disparity(image)
    assert len(timed.seconds["depth"]) == 3 and len(timed.seconds["motion"]) == 0
    assert min(timed.seconds["depth"]) > 0 and timed.digest == Counting.digest


@pytest.mark.parametrize("shape", [(60, 80, 3), (30, 40, 3), (101, 77, 3)])
def test_images_of_any_size_give_the_size_of_the_network(tmp_path, shape):
    predictor = BundlePredictor(write_mock_bundle(tmp_path / "mock", size=(48, 64)), threads=1)
    assert predictor.disparity(np.zeros(shape, np.uint8)).shape == (48, 64)
