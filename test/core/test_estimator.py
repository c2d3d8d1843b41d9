"""The estimator on the mock bundle: known tilted plane, known motion, exact repeats, bad images, no torch."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mock_bundle import disparity_step, image_of_depth, tilted_plane, write_mock_bundle

from endomust_core.bundle import load_bundle
from endomust_core.estimator import Estimator, to_depth

NEAR, FAR = 0.02, 0.2
TURN = np.deg2rad(10)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Turns 10° about y and moves (1, 2, 3) mm in every frame; brighter by all of the scale adds 10 mm along z."""
    root = tmp_path_factory.mktemp("bundle") / "mock"
    return load_bundle(
        write_mock_bundle(
            root,
            near=NEAR,
            far=FAR,
            rotation=(0, TURN, 0),
            translation=(0.001, 0.002, 0.003),
            brightness_gain=(0, 0, 0.01),
        )
    )


def plain(red, height=48, width=64):
    return np.full((height, width, 3), red, dtype=np.uint8)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (640, 512), (1280, 1024), (300, 700), (31, 17)])
def test_a_tilted_plane_keeps_its_depth_at_every_size_and_aspect(bundle, width, height):
    plane = tilted_plane(width, height, left=0.03, right=0.15)
    depth = Estimator(bundle).estimate(image_of_depth(plane, NEAR, FAR)).depth
    assert depth.shape == (height, width) and depth.dtype == np.float32
    # In the outer half of the outer network pixels cv2.resize repeats the edge instead of continuing the plane.
    edge = math.ceil(width / 64)
    error = np.abs(1 / depth - 1 / plane)[:, edge:-edge]
    assert error.max() < disparity_step(NEAR, FAR)


def test_depth_follows_the_image_content_from_top_to_bottom(bundle):
    plane = tilted_plane(512, 640, left=0.03, right=0.15).T  # nearest at the top
    depth = Estimator(bundle).estimate(image_of_depth(plane, NEAR, FAR)).depth
    assert depth[0].max() < 0.032 and depth[-1].min() > 0.14
    assert np.abs(1 / depth - 1 / plane)[12:-12].max() < disparity_step(NEAR, FAR)


@pytest.mark.parametrize(
    ("resolution", "shape"), [("input", (96, 128)), ("network", (48, 64)), ((100, 30), (30, 100)), ((64, 48), (48, 64))]
)
def test_resolution_of_the_depth_image(bundle, resolution, shape):
    depth = Estimator(bundle, resolution=resolution).estimate(plain(255, 96, 128)).depth
    assert depth.shape == shape
    np.testing.assert_allclose(depth, NEAR, rtol=1e-5)


def test_the_resize_is_bilinear_in_disparity():
    """Between 10 and 30 1/m the middle is 20 1/m = 50 mm, not the 66.7 mm that averaging the depths gives."""
    depth = to_depth(np.array([[10.0, 30.0]], np.float32), width=4, height=1)
    np.testing.assert_allclose(depth, [[1 / 10, 1 / 15, 1 / 25, 1 / 30]], rtol=1e-6)


def test_scale_multiplies_depth_and_translation_only(bundle):
    estimator = Estimator(bundle)
    estimator.estimate(plain(0))
    once = estimator.estimate(plain(0))
    twice = estimator.estimate(plain(0), scale=2.0)
    np.testing.assert_array_equal(twice.depth, 2 * once.depth)
    np.testing.assert_array_equal(twice.T_prev_curr[:3, 3], 2 * once.T_prev_curr[:3, 3])
    np.testing.assert_array_equal(twice.T_prev_curr[:3, :3], once.T_prev_curr[:3, :3])
    np.testing.assert_array_equal(twice.intrinsics, once.intrinsics)


def test_the_first_image_has_no_motion_and_the_next_has_the_known_one(bundle):
    estimator = Estimator(bundle)
    first = estimator.estimate(plain(100))
    assert first.T_prev_curr is None and first.intrinsics is None
    second = estimator.estimate(plain(100))
    c, s = math.cos(TURN), math.sin(TURN)
    expected = [[c, 0, s, 0.001], [0, 1, 0, 0.002], [-s, 0, c, 0.003], [0, 0, 0, 1]]
    np.testing.assert_allclose(second.T_prev_curr, expected, atol=1e-7)
    assert second.T_prev_curr.dtype == np.float64
    np.testing.assert_allclose(second.intrinsics, [0.8, 1.0, 0.5, 0.5], rtol=1e-6)


def test_the_pose_network_sees_the_previous_image_first_then_the_current(bundle):
    estimator = Estimator(bundle)
    estimator.estimate(plain(0))
    assert estimator.estimate(plain(255)).T_prev_curr[2, 3] == pytest.approx(0.003 + 0.01, abs=1e-7)
    assert estimator.estimate(plain(255)).T_prev_curr[2, 3] == pytest.approx(0.003, abs=1e-7)
    assert estimator.estimate(plain(0)).T_prev_curr[2, 3] == pytest.approx(0.003 - 0.01, abs=1e-7)


def test_reset_forgets_the_previous_image(bundle):
    estimator = Estimator(bundle)
    estimator.estimate(plain(0))
    estimator.reset()
    assert estimator.estimate(plain(255)).T_prev_curr is None
    assert estimator.estimate(plain(255)).T_prev_curr[2, 3] == pytest.approx(0.003, abs=1e-7)


def test_the_remembered_image_is_a_copy(bundle):
    """A driver may write the next frame into the same buffer, also at exactly network size."""
    estimator, buffer = Estimator(bundle), plain(0)
    estimator.estimate(buffer)
    buffer[:] = 255
    assert estimator.estimate(buffer).T_prev_curr[2, 3] == pytest.approx(0.013, abs=1e-7)


def test_the_size_may_change_between_images(bundle):
    estimator = Estimator(bundle)
    estimator.estimate(plain(0, 480, 640))
    estimate = estimator.estimate(plain(255, 100, 90))
    assert estimate.depth.shape == (100, 90)
    assert estimate.T_prev_curr[2, 3] == pytest.approx(0.013, abs=1e-7)


def test_one_resize_serves_both_networks_when_their_sizes_agree(bundle, tmp_path, monkeypatch):
    import endomust_core.estimator as module

    sizes = []
    resize = module.resize_rgb
    monkeypatch.setattr(module, "resize_rgb", lambda rgb, size: sizes.append(size) or resize(rgb, size))
    Estimator(bundle).estimate(plain(0, 96, 128))
    assert sizes == [(48, 64)]
    two_sizes = load_bundle(write_mock_bundle(tmp_path / "two", pose_size=(24, 40), translation=(0, 0, 0.001)))
    estimator = Estimator(two_sizes)
    sizes.clear()
    estimator.estimate(plain(0, 96, 128))
    assert sizes == [(48, 64), (24, 40)]
    assert estimator.estimate(plain(0)).T_prev_curr[2, 3] == pytest.approx(0.001)


def test_without_a_pose_network_there_is_depth_and_no_motion(tmp_path):
    estimator = Estimator(load_bundle(write_mock_bundle(tmp_path / "depth", pose=False)))
    estimator.warm_up(1)
    for _ in range(2):
        estimate = estimator.estimate(plain(255))
        assert estimate.T_prev_curr is None and estimate.intrinsics is None
    np.testing.assert_allclose(estimate.depth, NEAR, rtol=1e-5)


def test_a_pose_network_without_intrinsics(tmp_path):
    estimator = Estimator(load_bundle(write_mock_bundle(tmp_path / "pose", intrinsics=None)))
    estimator.estimate(plain(1))
    estimate = estimator.estimate(plain(1))
    assert estimate.intrinsics is None and estimate.T_prev_curr is not None


def noise_sequence(count=6, size=(96, 130)):
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def bits(estimate):
    motion = b"" if estimate.T_prev_curr is None else estimate.T_prev_curr.tobytes() + estimate.intrinsics.tobytes()
    return estimate.depth.tobytes() + motion


def test_the_same_images_give_the_same_bits_after_reset_after_warm_up_and_in_another_estimator(bundle):
    images = noise_sequence()
    estimator = Estimator(bundle, min_depth=0.03, max_depth=0.1)
    first = [bits(estimator.estimate(image)) for image in images]
    estimator.reset()
    assert [bits(estimator.estimate(image)) for image in images] == first
    other = Estimator(bundle, min_depth=0.03, max_depth=0.1)
    again = []
    for image in images:
        other.warm_up(1)
        again.append(bits(other.estimate(image)))
    assert again == first


def test_a_bgr_image_seen_as_rgb_gives_the_bits_of_its_copy(bundle):
    bgr = noise_sequence(1)[0]
    view, copy = bgr[..., ::-1], np.ascontiguousarray(bgr[..., ::-1])
    assert bits(Estimator(bundle).estimate(view)) == bits(Estimator(bundle).estimate(copy))


@pytest.mark.parametrize("resolution", ["input", "network"])
def test_estimates_are_fresh_arrays(bundle, resolution):
    estimator = Estimator(bundle, resolution=resolution)
    estimates = [estimator.estimate(plain(10)) for _ in range(2)]
    kept = [bits(estimate) for estimate in estimates]
    estimator.estimate(plain(250))
    assert [bits(estimate) for estimate in estimates] == kept
    estimates[0].depth[:] = 0  # writable, and its owner's alone
    assert bits(estimates[1]) == kept[1]


def test_the_image_is_not_changed_and_may_be_read_only(bundle):
    image = noise_sequence(1)[0]
    before = image.copy()
    image.setflags(write=False)
    Estimator(bundle).estimate(image)
    np.testing.assert_array_equal(image, before)


def test_outside_the_range_is_nan_and_the_limits_may_change(bundle):
    plane = tilted_plane(640, 480, left=0.03, right=0.15)
    image = image_of_depth(plane, NEAR, FAR)
    free = Estimator(bundle).estimate(image).depth
    estimator = Estimator(bundle, min_depth=0.05, max_depth=0.1)
    masked = estimator.estimate(image).depth
    inside = (free >= 0.05) & (free <= 0.1)
    assert inside.any() and (free < 0.05).any() and (free > 0.1).any()
    np.testing.assert_array_equal(np.isfinite(masked), inside)
    np.testing.assert_array_equal(masked[inside], free[inside])
    estimator.min_depth, estimator.max_depth = 0.0, math.inf
    np.testing.assert_array_equal(estimator.estimate(image).depth, free)
    estimator.max_depth = 0.01
    assert np.isnan(estimator.estimate(image).depth).all()


def test_limits_apply_to_the_scaled_depth(bundle):
    estimator = Estimator(bundle, max_depth=0.03)
    assert np.isfinite(estimator.estimate(plain(255)).depth).all()  # 20 mm
    assert np.isnan(estimator.estimate(plain(255), scale=2.0).depth).all()  # 40 mm


@pytest.mark.parametrize("bad", [0.0, -5.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("resolution", ["input", "network"])
def test_a_disparity_that_is_not_positive_and_finite_is_nan(tmp_path, bad, resolution):
    bundle = load_bundle(write_mock_bundle(tmp_path / "bad", disparity=(bad, 0.0), pose=False))
    depth = Estimator(bundle, resolution=resolution).estimate(plain(100, 96, 128)).depth
    assert depth.shape in ((96, 128), (48, 64)) and np.isnan(depth).all()


def test_no_depth_is_made_up_between_an_invalid_pixel_and_its_neighbours(tmp_path):
    bundle = load_bundle(write_mock_bundle(tmp_path / "half", disparity=(-10.0, 60.0), pose=False))
    image = plain(255, 96, 128)
    image[:, :64] = 0  # left half: disparity -10, right half: 50
    depth = Estimator(bundle).estimate(image).depth
    assert np.isnan(depth[:, :64]).all()
    valid = depth[np.isfinite(depth)]
    np.testing.assert_allclose(valid, 0.02, rtol=1e-5)  # a blend of -10 and 50 would give farther depths
    assert np.isfinite(depth[:, 66:]).all()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8, got float32"),
        (np.zeros((4, 4), np.uint8), r"\(height, width, 3\), got \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"\(height, width, 3\), got \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((4, 0, 3), np.uint8), "empty"),
        (None, "got NoneType"),
        ([[1, 2, 3]], "got list"),
    ],
)
def test_a_bad_image_is_refused_in_words_and_the_next_good_one_works(bundle, image, words):
    estimator = Estimator(bundle)
    estimator.estimate(plain(0))
    with pytest.raises(ValueError, match=words):
        estimator.estimate(image)
    assert estimator.estimate(plain(255)).T_prev_curr[2, 3] == pytest.approx(0.013, abs=1e-7)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_scale_is_refused(bundle, scale):
    with pytest.raises(ValueError, match="scale must be positive"):
        Estimator(bundle).estimate(plain(0), scale=scale)


@pytest.mark.parametrize("resolution", ["half", (0, 10), (10.5, 3), (1, 2, 3)])
def test_a_bad_resolution_is_refused(bundle, resolution):
    with pytest.raises(ValueError, match="use 'input', 'network' or"):
        Estimator(bundle, resolution=resolution)


def test_a_motion_that_is_not_finite_reaches_the_odometry_as_nan(tmp_path):
    root = write_mock_bundle(tmp_path / "nan", rotation=(math.inf, 0, 0), translation=(0, math.nan, 0))
    estimator = Estimator(load_bundle(root))
    estimator.estimate(plain(0))
    estimate = estimator.estimate(plain(0))
    assert np.isnan(estimate.T_prev_curr[:3, :3]).all() and np.isnan(estimate.T_prev_curr[1, 3])


def test_timing_and_provider_are_reported(bundle):
    estimator = Estimator(bundle, threads=1)
    assert estimator.provider == "cpu" and estimator.bundle is bundle
    timing = estimator.estimate(plain(0)).timing
    assert list(timing) == ["preprocess", "depth", "pose", "postprocess"]
    assert all(0 <= seconds < 10 for seconds in timing.values()) and timing["depth"] > 0


def test_the_runtime_needs_neither_torch_nor_ros_nor_onnx(bundle):
    """In a fresh interpreter: image -> depth through ONNX Runtime, then look at what was imported."""
    script = f"""
import sys
import numpy as np
from endomust_core import bundle, camera, estimator, metrics, odometry, resources
runner = estimator.Estimator(bundle.load_bundle({str(bundle.root)!r}))
state = odometry.Odometry().step(runner.estimate(np.full((60, 80, 3), 255, np.uint8)).T_prev_curr, 0.0)
estimate = runner.estimate(np.full((60, 80, 3), 255, np.uint8))
assert abs(estimate.depth - 0.02).max() < 1e-6
camera.Camera(80, 60, 70, 70, 39.5, 29.5).back_project(estimate.depth)
assert "onnxruntime" in sys.modules
unwanted = {{"torch", "rclpy", "onnx", "rosbags", "sensor_msgs", "endomust_ros", "endomust_core.learning"}}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
"""
    checkout = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", script], cwd=checkout, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
