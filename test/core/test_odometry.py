"""Rigid motions and odometry: a 10° turn, closed loops, twist, covariance, gates, and nothing that is ever NaN."""

import math

import numpy as np
import pytest

from endomust_core.odometry import (
    OPTICAL_TO_BODY,
    START_VARIANCE,
    UNKNOWN_VARIANCE,
    Odometry,
    adjoint,
    hat,
    inverse,
    matrix_from_quaternion,
    orthonormalise,
    quaternion_from_matrix,
    se3,
    se3_log,
    so3_exp,
    so3_log,
    to_body,
)

AXES = [np.array(axis) / np.linalg.norm(axis) for axis in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, -2, 3], [-1, -1, 0.01])]
TEN_DEGREES = math.radians(10)
STEP = se3(so3_exp([0.02, -0.03, 0.01]), [0.001, -0.002, 0.003])


def random_motion(seed, translation=0.005, rotation=0.1):
    rng = np.random.default_rng(seed)
    return se3(so3_exp(rng.normal(0, rotation, 3) / 2), rng.normal(0, translation, 3) / 2)


def assert_sound(state):
    """Finite everywhere, a real rotation, symmetric positive definite covariances."""
    assert np.isfinite(state.T_odom_camera).all()
    R = state.T_odom_camera[:3, :3]
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(R) > 0
    for covariance in (state.pose_covariance, state.twist_covariance):
        assert np.isfinite(covariance).all()
        np.testing.assert_array_equal(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance).min() > 0
    assert state.twist is None or np.isfinite(state.twist).all()


def test_a_ten_degree_turn_is_exact():
    c, s = math.cos(TEN_DEGREES), math.sin(TEN_DEGREES)
    np.testing.assert_allclose(so3_exp([0, 0, TEN_DEGREES]), [[c, -s, 0], [s, c, 0], [0, 0, 1]], atol=1e-15)
    np.testing.assert_allclose(so3_exp([TEN_DEGREES, 0, 0]), [[1, 0, 0], [0, c, -s], [0, s, c]], atol=1e-15)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("angle", [0, 1e-12, 1e-8, 9e-5, 1.1e-4, 0.1, 1, 3, math.pi - 1e-4, math.pi - 1e-8])
def test_log_inverts_exp_from_zero_to_pi(axis, angle):
    np.testing.assert_allclose(so3_log(so3_exp(angle * axis)), angle * axis, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("axis", AXES)
def test_at_exactly_pi_either_sign_of_the_axis_is_the_answer(axis):
    w = so3_log(2 * np.outer(axis, axis) - np.eye(3))
    assert np.linalg.norm(w) == pytest.approx(math.pi)
    np.testing.assert_allclose(w * np.sign(w @ axis), math.pi * axis, atol=1e-7)


def test_exp_and_log_do_not_jump_where_the_series_takes_over():
    below, above = so3_exp([0.999e-4, 0, 0]), so3_exp([1.001e-4, 0, 0])
    np.testing.assert_allclose(above - below, hat([2e-7, 0, 0]), atol=1e-10)


def test_exp_of_nonsense_is_nan_not_an_error():
    assert np.isnan(so3_exp([math.inf, 0, 0])).all()
    assert np.isnan(so3_exp([math.nan, 0, 0])).all()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("angle", [0, 1e-9, 0.5, 2, 3, math.pi])
def test_quaternion_round_trip(axis, angle):
    R = so3_exp(angle * axis)
    quaternion = quaternion_from_matrix(R)
    assert np.linalg.norm(quaternion) == pytest.approx(1) and quaternion[3] >= 0
    np.testing.assert_allclose(matrix_from_quaternion(quaternion), R, atol=1e-12)
    np.testing.assert_allclose(matrix_from_quaternion(-3 * quaternion), R, atol=1e-12)


def test_quaternion_by_hand():
    np.testing.assert_allclose(quaternion_from_matrix(np.eye(3)), [0, 0, 0, 1])
    half = math.sqrt(0.5)
    np.testing.assert_allclose(quaternion_from_matrix([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), [0, 0, half, half])
    np.testing.assert_allclose(matrix_from_quaternion([1, 0, 0, 0]), np.diag([1, -1, -1]))


@pytest.mark.parametrize("quaternion", [[0, 0, 0, 0], [math.nan, 0, 0, 1]])
def test_a_quaternion_that_is_no_rotation_is_refused(quaternion):
    with pytest.raises(ValueError, match="is no rotation"):
        matrix_from_quaternion(quaternion)


def test_orthonormalise_finds_the_nearest_rotation():
    R = so3_exp([0.3, -0.2, 0.5])
    np.testing.assert_allclose(orthonormalise(1.001 * R), R, atol=1e-12)
    assert np.linalg.det(orthonormalise(np.diag([1.0, 1.0, -0.1]))) == pytest.approx(1)


def test_inverse_and_adjoint():
    np.testing.assert_allclose(inverse(STEP) @ STEP, np.eye(4), atol=1e-15)
    np.testing.assert_allclose(adjoint(STEP) @ adjoint(inverse(STEP)), np.eye(6), atol=1e-14)
    # A small motion ξ in the old frame a is T ξ T⁻¹ in the frame b: what the adjoint must say.
    xi = np.array([1, 2, 3, 0.4, 0.5, 0.6])
    matrix = np.zeros((4, 4))
    matrix[:3, :3], matrix[:3, 3] = hat(xi[3:]), xi[:3]
    carried = STEP @ matrix @ inverse(STEP)
    expected = np.concatenate([carried[:3, 3], [carried[2, 1], carried[0, 2], carried[1, 0]]])
    np.testing.assert_allclose(adjoint(STEP) @ xi, expected, atol=1e-14)


def test_se3_log_is_the_constant_velocity_on_an_arc():
    """Speed 1 along x while turning about z: after the angle θ the position is (sin θ, 1 - cos θ, 0) / θ."""
    for angle in (1e-6, 0.1, 1.0, 3.0):
        T = se3(so3_exp([0, 0, angle]), [math.sin(angle) / angle, (1 - math.cos(angle)) / angle, 0])
        np.testing.assert_allclose(se3_log(T), [1, 0, 0, 0, 0, angle], atol=1e-9)
    np.testing.assert_allclose(se3_log(se3(np.eye(3), [1, 2, 3])), [1, 2, 3, 0, 0, 0])


def test_the_first_frame_is_init_at_the_origin():
    state = Odometry().step(None, 12.5)
    assert state.state == "INIT" and state.twist is None and state.stamp == 12.5
    np.testing.assert_array_equal(state.T_odom_camera, np.eye(4))
    np.testing.assert_array_equal(np.diagonal(state.pose_covariance), [START_VARIANCE] * 6)
    assert_sound(state)


def test_without_a_pose_network_it_stays_init():
    odometry = Odometry()
    assert [odometry.step(None, stamp).state for stamp in range(3)] == ["INIT"] * 3


def test_steps_multiply_on_the_right():
    """Turn 90° about y in nine steps (optical: to the right), then 10 mm forward: that is along +x of the start."""
    odometry = Odometry()
    odometry.step(None, 0.0)
    for stamp in range(9):
        odometry.step(se3(so3_exp([0, TEN_DEGREES, 0]), [0, 0, 0]), stamp + 1.0)
    state = odometry.step(se3(np.eye(3), [0, 0, 0.01]), 10.0)
    assert state.state == "OK"
    np.testing.assert_allclose(state.T_odom_camera[:3, 3], [0.01, 0, 0], atol=1e-12)
    np.testing.assert_allclose(state.T_odom_camera[:3, :3], [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-12)


def test_a_closed_loop_comes_home():
    odometry = Odometry()
    odometry.step(None, 0.0)
    for stamp in range(36):  # a polygon of 36 sides, 1 mm each, 10° a corner
        state = odometry.step(se3(so3_exp([0, TEN_DEGREES, 0]), [0, 0, 0.001]), 1.0 + stamp)
    np.testing.assert_allclose(state.T_odom_camera, np.eye(4), atol=1e-12)
    there = [random_motion(seed) for seed in range(20)]
    for stamp, T in enumerate(there + [inverse(T) for T in reversed(there)]):
        state = odometry.step(T, 100.0 + stamp)
        assert state.state == "OK"
    np.testing.assert_allclose(state.T_odom_camera, np.eye(4), atol=1e-12)


def test_twist_is_velocity_in_the_camera_frame():
    odometry = Odometry()
    odometry.step(None, 1.0)
    odometry.step(se3(so3_exp([0, TEN_DEGREES, 0]), [0, 0, 0]), 1.04)  # the pose must not turn the twist
    state = odometry.step(se3(np.eye(3), [0.001, 0, 0.002]), 1.08)
    np.testing.assert_allclose(state.twist, [0.025, 0, 0.05, 0, 0, 0], atol=1e-12)
    state = odometry.step(se3(so3_exp([0, 0, TEN_DEGREES]), [0, 0, 0]), 1.12)
    np.testing.assert_allclose(state.twist, [0, 0, 0, 0, 0, TEN_DEGREES / 0.04], atol=1e-12)


def test_twist_covariance_is_the_step_s_over_dt_squared():
    odometry = Odometry(sigma_translation=1e-3, sigma_rotation=2e-3)
    odometry.step(None, 0.0)
    state = odometry.step(STEP, 0.1)
    np.testing.assert_allclose(np.diagonal(state.twist_covariance), [1e-4] * 3 + [4e-4] * 3)


@pytest.mark.parametrize("dt", [0.0, -0.04, -1e9, 1e-300, math.nan, math.inf, -math.inf])
def test_time_that_stands_still_or_goes_back_gives_no_twist_and_no_nan(dt):
    odometry = Odometry()
    odometry.step(None, 100.0)
    state = odometry.step(STEP, 100.0 + dt)
    assert state.state == "OK" and state.twist is None
    np.testing.assert_array_equal(state.twist_covariance, UNKNOWN_VARIANCE * np.eye(6))
    np.testing.assert_allclose(state.T_odom_camera, STEP, atol=1e-15)
    assert_sound(state)


def test_a_very_short_step_stays_finite():
    odometry = Odometry()
    odometry.step(None, 0.0)
    state = odometry.step(STEP, 2e-6)
    assert state.twist is not None and state.twist_covariance.max() <= UNKNOWN_VARIANCE
    assert_sound(state)


def test_covariance_grows_with_every_step_and_stays_sound():
    odometry = Odometry()
    last = odometry.step(None, 0.0)
    for seed in range(200):
        state = odometry.step(random_motion(seed), 0.04 * (seed + 1))
        assert_sound(state)
        assert np.linalg.slogdet(state.pose_covariance)[1] > np.linalg.slogdet(last.pose_covariance)[1]
        grown = state.pose_covariance[3:, 3:] - last.pose_covariance[3:, 3:]
        assert np.linalg.eigvalsh(grown).min() > 0
        last = state


def test_covariance_of_a_straight_line_by_hand():
    """n steps of L along z: rotation n·r², along n·t², across n·t² + L²·r²·(0² + 1² + … + (n-1)²)."""
    t, r, L, n = 1e-4, 1e-2, 0.01, 10
    odometry = Odometry(sigma_translation=t, sigma_rotation=r)
    for _ in range(n):
        state = odometry.step(se3(np.eye(3), [0, 0, L]), 0.0)
    variance = np.diagonal(state.pose_covariance) - START_VARIANCE
    leverage = START_VARIANCE * (n * L) ** 2
    across = n * t**2 + L**2 * r**2 * sum(k * k for k in range(n)) + leverage
    np.testing.assert_allclose(variance, [across, across, n * t**2, n * r**2, n * r**2, n * r**2], rtol=1e-9)


def test_covariance_agrees_with_what_noise_really_does():
    """Monte Carlo in odom axes: 3000 noisy runs of a curved path against the propagated covariance."""
    rng = np.random.default_rng(3)
    sigma_t, sigma_r, steps, runs = 5e-4, 1e-2, 12, 3000
    odometry = Odometry(sigma_translation=sigma_t, sigma_rotation=sigma_r)
    true = np.eye(4)
    noisy = np.tile(np.eye(4), (runs, 1, 1))
    step = se3(so3_exp([0.05, 0.2, -0.1]), [0.002, -0.001, 0.008])
    for _ in range(steps):
        state = odometry.step(step, 0.0)
        true = true @ step
        R = np.array([so3_exp(w) for w in rng.normal(0, sigma_r, (runs, 3))]) @ step[:3, :3]
        t = step[:3, 3] + rng.normal(0, sigma_t, (runs, 3))
        noisy[:, :3, 3] += np.einsum("nij,nj->ni", noisy[:, :3, :3], t)
        noisy[:, :3, :3] = noisy[:, :3, :3] @ R
    rotation = np.array([so3_log(R @ true[:3, :3].T) for R in noisy[:, :3, :3]])
    sampled = np.cov(np.hstack([noisy[:, :3, 3] - true[:3, 3], rotation]).T)
    scale = np.sqrt(np.diagonal(sampled))
    difference = (state.pose_covariance - sampled) / np.outer(scale, scale)
    assert np.abs(difference).max() < 0.1  # 3000 samples: a standard deviation of 0.026


NONSENSE = {
    "too far": se3(np.eye(3), [0.021, 0, 0]),
    "too much turn": se3(so3_exp([0, 0.36, 0]), [0, 0, 0]),
    "half a turn": se3(so3_exp([0, math.pi, 0]), [0, 0, 0]),
    "NaN translation": se3(np.eye(3), [math.nan, 0, 0]),
    "NaN rotation": se3(np.full((3, 3), math.nan), [0, 0, 0]),
    "infinite": se3(np.eye(3), [0, -math.inf, 0]),
    "not a rotation": se3(np.zeros((3, 3)), [0, 0, 0]),
    "mirror": se3(np.diag([1, 1, -1]), [0, 0, 0]),
    "nothing": None,
}


@pytest.mark.parametrize("reason", NONSENSE)
def test_an_unusable_motion_is_lost_for_one_frame_and_the_pose_is_held(reason):
    odometry = Odometry()
    odometry.step(None, 0.0)
    before = odometry.step(STEP, 0.04)
    lost = odometry.step(NONSENSE[reason], 0.08)
    assert lost.state == "LOST" and lost.twist is None and lost.stamp == 0.08
    np.testing.assert_array_equal(lost.T_odom_camera, before.T_odom_camera)
    np.testing.assert_array_equal(lost.pose_covariance, UNKNOWN_VARIANCE * np.eye(6))
    np.testing.assert_array_equal(lost.twist_covariance, UNKNOWN_VARIANCE * np.eye(6))
    after = odometry.step(STEP, 0.12)
    assert after.state == "OK"
    np.testing.assert_allclose(after.T_odom_camera, STEP @ STEP, atol=1e-15)
    np.testing.assert_allclose(after.twist, se3_log(STEP) / 0.04)
    # What was missed may be as large as the gates: the pose is less certain than before for good.
    assert np.diagonal(after.pose_covariance)[:3].min() > 0.02**2
    assert np.diagonal(after.pose_covariance)[3:].min() > 0.35**2
    assert np.diagonal(after.pose_covariance).max() < 1
    assert_sound(lost)
    assert_sound(after)


def test_a_motion_exactly_at_the_gate_passes():
    odometry = Odometry(max_translation=0.01, max_rotation=0.2)
    assert odometry.step(se3(np.eye(3), [0, 0, 0.01]), 0.0).state == "OK"
    assert odometry.step(se3(so3_exp([0, 0.19999, 0]), [0, 0, 0]), 0.0).state == "OK"
    assert odometry.step(se3(np.eye(3), [0, 0, 0.010001]), 0.0).state == "LOST"
    assert odometry.step(se3(so3_exp([0, 0.20001, 0]), [0, 0, 0]), 0.0).state == "LOST"


def test_many_lost_frames_stay_finite():
    odometry = Odometry()
    for stamp in range(1000):
        state = odometry.step(NONSENSE["NaN rotation"], stamp)
    assert_sound(state)
    assert_sound(odometry.step(STEP, 1001.0))


def test_a_long_run_does_not_drift_away_from_a_rotation():
    odometry = Odometry()
    for seed in range(3000):
        state = odometry.step(STEP.astype(np.float32), float(seed))  # float32: each step is off by 1e-8
    assert_sound(state)


def test_reset_starts_again_at_the_given_pose():
    odometry = Odometry()
    odometry.step(None, 0.0)
    odometry.step(STEP, 1.0)
    odometry.reset()
    state = odometry.step(None, 2.0)
    assert state.state == "INIT" and state.twist is None
    np.testing.assert_array_equal(state.T_odom_camera, np.eye(4))
    start = se3(so3_exp([0, 0, 1.0]), [1, 2, 3])
    odometry.reset(start)
    assert odometry.step(None, 3.0).state == "INIT"
    np.testing.assert_allclose(odometry.step(STEP, 4.0).T_odom_camera, start @ STEP, atol=1e-12)
    with pytest.raises(ValueError, match="finite 4x4"):
        odometry.reset(np.full((4, 4), math.nan))


def test_a_motion_of_the_wrong_shape_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match=r"4x4, it has the shape \(3, 4\)"):
        Odometry().step(np.eye(4)[:3], 0.0)


def test_states_do_not_change_afterwards():
    odometry = Odometry()
    first = odometry.step(STEP, 0.0)
    kept = first.T_odom_camera.copy(), first.pose_covariance.copy()
    first_again = odometry.step(STEP, 1.0)
    first_again.T_odom_camera[:] = 0
    first_again.pose_covariance[:] = 0
    np.testing.assert_array_equal(first.T_odom_camera, kept[0])
    np.testing.assert_array_equal(first.pose_covariance, kept[1])
    assert_sound(odometry.step(STEP, 2.0))


def test_body_axes_are_forward_left_up():
    """Optical right, down, forward is body -y, -z, +x."""
    odometry = Odometry(sigma_translation=1e-4, sigma_rotation=1e-2)
    for stamp in range(5):
        state = odometry.step(se3(np.eye(3), [0.001, 0.002, 0.003]), stamp)
    body = to_body(state)
    np.testing.assert_allclose(body.T_odom_camera[:3, 3], [0.015, -0.005, -0.010], atol=1e-15)
    np.testing.assert_array_equal(body.T_odom_camera[:3, :3], OPTICAL_TO_BODY[:3, :3])
    optical = np.diagonal(state.pose_covariance)
    np.testing.assert_allclose(np.diagonal(body.pose_covariance), optical[[2, 0, 1, 5, 3, 4]])
    assert body.state == "OK" and body.stamp == state.stamp
    np.testing.assert_array_equal(body.twist, state.twist)
    assert_sound(body)


def test_body_axes_of_a_lost_frame_are_still_9999():
    lost = to_body(Odometry().step(NONSENSE["infinite"], 0.0))
    np.testing.assert_array_equal(lost.pose_covariance, UNKNOWN_VARIANCE * np.eye(6))
