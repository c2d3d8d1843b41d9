"""Walls in front of a moving camera (168x224, f 200 px): warps known by hand, a filter that calms and never smears."""

import numpy as np
import pytest

from endomust_core.camera import Camera
from endomust_core.temporal import FARTHEST, ScaleJumps, TemporalFilter, common, log_depth, warp

CAMERA = Camera(224, 168, 200.0, 200.0, 111.5, 83.5)
STILL = np.eye(4)


def moved(x=0.0, y=0.0, z=0.0):
    """T_prev_curr of a camera that went by x, y, z [m] along its axes."""
    T = np.eye(4)
    T[:3, 3] = x, y, z
    return T


def wall(distance=0.05):
    return np.full((168, 224), distance, np.float32)


def test_without_motion_every_pixel_was_where_it_is():
    found = warp(wall(), CAMERA, STILL)
    v, u = np.mgrid[:168, :224]
    np.testing.assert_allclose(found.x, u, atol=1e-3)
    np.testing.assert_allclose(found.y, v, atol=1e-3)
    np.testing.assert_allclose(found.depth, 0.05, rtol=1e-6)


def test_a_step_to_the_right_moves_points_by_focal_length_over_depth():
    found = warp(wall(), CAMERA, moved(x=0.001), with_parallax=True)
    assert found.x[84, 100] - 100 == pytest.approx(200 * 0.001 / 0.05, abs=1e-3)
    assert found.parallax[0][84, 100] == pytest.approx(-200 * 0.001 / 0.05, abs=1e-3)  # farther points move less


def test_a_step_ahead_means_the_wall_was_farther_before():
    np.testing.assert_allclose(warp(wall(), CAMERA, moved(z=0.005)).depth, 0.055, rtol=1e-5)


def test_parallax_is_the_derivative_of_the_position():
    T = moved(0.002, -0.001, 0.003)
    low, high, middle = (warp(wall(0.05 * np.exp(e)), CAMERA, T, with_parallax=True) for e in (-0.005, 0.005, 0.0))
    np.testing.assert_allclose(middle.parallax[0], (high.x - low.x) / 0.01, rtol=1e-3, atol=2e-2)
    np.testing.assert_allclose(middle.parallax[1], (high.y - low.y) / 0.01, rtol=1e-3, atol=2e-2)


def test_invalid_depth_and_points_behind_the_camera_were_nowhere():
    depth = wall()
    depth[10, 10], depth[11, 11], depth[12, 12] = np.nan, 0, np.inf
    sample = warp(depth, CAMERA, STILL).sample(wall())
    assert np.isnan(sample[10, 10]) and np.isnan(sample[11, 11]) and np.isnan(sample[12, 12])
    assert np.isnan(warp(wall(), CAMERA, moved(z=-0.06)).sample(wall())).all()


def test_a_distorted_camera_or_another_grid_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="undistort"):
        warp(wall(), CAMERA.resized(112, 84), STILL)
    with pytest.raises(ValueError, match="undistort"):
        warp(wall(), Camera(224, 168, 200.0, 200.0, 111.5, 83.5, "plumb_bob", (-0.1, 0, 0, 0)), STILL)


def test_log_depth_has_nan_where_depth_says_nothing_and_common_ignores_it():
    depth = wall()
    depth[:60] = (np.nan, 0, -1, np.inf) * 56
    log = log_depth(depth)
    assert np.isnan(log[:60]).all() and common(log) == pytest.approx(np.log(0.05), rel=1e-5)
    assert common(np.full((168, 224), np.nan)) is None


def filtered(depths, strength=0.8, T=STILL):
    smooth = TemporalFilter()
    return [depth * smooth.apply(depth, CAMERA, None if i == 0 else T, strength) for i, depth in enumerate(depths)]


@pytest.mark.parametrize(("T", "strength", "camera"), [(None, 0.8, CAMERA), (STILL, 0.0, CAMERA), (STILL, 0.8, None)])
def test_nothing_is_filtered_without_motion_strength_or_camera(T, strength, camera):
    smooth = TemporalFilter()
    smooth.apply(wall(0.05), CAMERA, None, strength)
    assert (smooth.apply(wall(0.06), camera, T, strength) == 1).all()


def test_the_first_image_and_the_one_after_a_reset_are_left_alone():
    smooth = TemporalFilter()
    assert (smooth.apply(wall(), CAMERA, STILL, 0.9) == 1).all()
    smooth.reset()
    assert (smooth.apply(wall(0.055), CAMERA, STILL, 0.9) == 1).all()


def test_a_scale_that_flickers_becomes_calm():
    rng = np.random.default_rng(0)
    raw = [wall(0.05 * np.exp(0.03 * rng.standard_normal())) for _ in range(100)]
    spread = lambda images: np.std(np.diff([np.log(np.median(d)) for d in images[20:]]))  # noqa: E731
    assert spread(filtered(raw)) < 0.35 * spread(raw)


def test_a_shape_that_flickers_becomes_calm():
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:168, :224] / 40.0
    raw = [wall() * np.exp(0.02 * np.sin(u + rng.uniform(0, 6)) * np.sin(v)).astype(np.float32) for _ in range(60)]
    error = lambda images: np.mean([np.abs(np.log(d / 0.05)).mean() for d in images[20:]])  # noqa: E731
    assert error(filtered(raw)) < 0.6 * error(raw)


def test_coming_nearer_is_motion_and_no_flicker():
    smooth, depth = TemporalFilter(), 0.08
    for _ in range(30):
        factor = smooth.apply(wall(depth), CAMERA, moved(z=0.001), 0.9)
        np.testing.assert_allclose(factor, 1, atol=1e-4)
        depth -= 0.001


@pytest.mark.parametrize("strength", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("change", [0.7, 1.3, 3.0])
def test_a_real_change_of_scale_has_settled_after_a_second(strength, change):
    answers = filtered([wall(0.05)] * 30 + [wall(0.05 * change)] * 26, strength)
    assert np.median(answers[-1]) == pytest.approx(0.05 * change, rel=0.05)


def test_depth_is_never_moved_by_more_than_the_limit():
    rng = np.random.default_rng(0)
    smooth = TemporalFilter()
    for _ in range(60):
        factor = smooth.apply(wall(0.05 * np.exp(rng.normal(0, 1))), CAMERA, moved(*rng.normal(0, 0.05, 3)), 0.99)
        assert np.isfinite(factor).all() and (np.abs(np.log(factor)) <= FARTHEST + 1e-6).all()


def test_a_motion_that_is_always_too_long_does_not_carry_depth_away():
    answers = filtered([wall()] * 200, 0.9, moved(z=0.0005))  # the wall stays, the odometry says it comes nearer
    assert abs(np.log(np.median(answers[-1]) / 0.05)) < 0.15
    assert np.median(answers[-1]) == pytest.approx(np.median(answers[-50]), rel=1e-3)


def test_an_instrument_that_passes_is_not_smeared_into_the_tissue_behind():
    depths = []
    for i in range(30):
        depth = wall(0.08)
        depth[60:90, 4 * i : 4 * i + 30] = 0.04
        depths.append(depth)
    answer = filtered(depths, 0.95)[-1]
    np.testing.assert_allclose(answer, depths[-1], rtol=0.01)


def test_newly_seen_tissue_takes_the_common_scale_and_no_seam():
    smooth = TemporalFilter()
    smooth.apply(wall(0.05), CAMERA, None, 0.8)
    factor = smooth.apply(wall(0.052), CAMERA, moved(x=0.005), 0.8)
    assert np.ptp(factor) < 1e-4 and factor[0, 0] < 0.99


def test_invalid_depth_gives_a_finite_factor_and_no_harm_later():
    smooth = TemporalFilter()
    hole = wall()
    hole[50:100, 50:100] = np.nan
    for depth in (wall(), hole, wall(), np.full_like(hole, np.nan), wall()):
        assert np.isfinite(smooth.apply(depth, CAMERA, STILL, 0.9)).all()


def test_a_strength_of_one_would_never_forget_and_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.0\.99"):
        TemporalFilter().apply(wall(), CAMERA, STILL, 1.0)


def test_pixels_without_confidence_have_no_say_in_the_common_scale():
    smooth, confidence, depth = TemporalFilter(), np.ones((168, 224), np.float32), wall()
    confidence[:, :140] = 0
    smooth.apply(depth, CAMERA, None, 0.8, confidence)
    depth = depth.copy()
    depth[:, :140] *= 1.5
    np.testing.assert_allclose(smooth.apply(depth, CAMERA, STILL, 0.8, confidence), 1, atol=1e-3)


def test_a_jump_of_scale_is_counted_once_and_usual_wandering_never():
    rng = np.random.default_rng(0)
    jumps = ScaleJumps()
    said = [jumps.add(r) for r in np.exp(0.02 * rng.standard_normal(100))]
    assert not any(said)
    assert jumps.add(1.3) and not jumps.add(1.01) and jumps.add(0.7)
    assert jumps.count == 2


def test_a_restless_scale_widens_the_band():
    rng = np.random.default_rng(0)
    jumps = ScaleJumps()
    for ratio in np.exp(0.06 * rng.standard_normal(60)):
        jumps.add(ratio)
    assert not jumps.add(1.2)


def test_an_unknown_ratio_is_no_jump():
    jumps = ScaleJumps()
    assert not any(jumps.add(ratio) for ratio in (None, float("nan"), 0.0, -1.0))
    jumps.add(2.0)
    jumps.reset()
    assert jumps.count == jumps.images == 0
