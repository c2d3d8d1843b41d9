"""Scale from robot kinematics: a camera on a known path [m], a robot that reports it badly, images in another unit."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from endomust_core.metric_scale import AXES, KinematicScale, ScaleSettings, to_optical
from endomust_core.odometry import OPTICAL_TO_BODY, inverse, se3, so3_exp
from endomust_core.pose_tracks import RobotPoses

FACTOR = 0.37  # m per network unit
T_BASE_WORLD = se3(so3_exp(np.array([0.3, -1.1, 0.7])), np.array([0.4, -0.2, 0.1]))


def path(t, size=0.012, pace=1.0):
    """(4,4) T_world_camera [m] of a camera that sways about a place, and turns with it."""
    p = size * np.array([math.sin(1.3 * pace * t), math.sin(0.9 * pace * t + 1), 0.8 * math.sin(0.7 * pace * t + 2)])
    return se3(so3_exp(0.2 * np.array([math.sin(0.8 * pace * t), math.sin(1.1 * pace * t + 2), 0.1])), p)


def at_rest(t, until=0.0):
    """The path until some time, and then no motion."""
    return path(min(t, until))


class World:
    """A robot at 100 Hz and images at 25 Hz along one path; what is not true of them is said at the start."""

    def __init__(self, pose=path, settings=None, seed=0, white=1e-4, visual=5e-5, delay=0.0, axes="dvrk", rate=100.0):
        self.pose, self.white, self.visual, self.delay, self.rate = pose, white, visual, delay, rate
        self.rng, self.axes = np.random.default_rng(seed), np.linalg.inv(AXES[axes])
        self.factor, self.segment, self.outliers, self.T_base_world = FACTOR, 0, 0.0, T_BASE_WORLD
        self.scale, self.now, self.asked = KinematicScale(settings or ScaleSettings()), 0.0, []
        self._sent = 0

    def go(self, seconds, ask=True):
        """Let time pass; returns the estimate at its end. Asks five times a second, as the node does, or at the end."""
        for _ in range(round(seconds * 25)):
            self.now += 0.04
            while self._sent / self.rate + self.delay <= self.now:
                self.robot(self._sent / self.rate)
                self._sent += 1
            self.image(self.now)
            if ask and round(self.now * 25) % 5 == 0:
                self.asked.append(self.scale.estimate())
        return self.scale.estimate()

    def robot(self, t):
        T = self.T_base_world @ self.pose(t) @ self.axes
        T[:3, 3] += self.rng.normal(0, self.white, 3)
        if self.rng.random() < self.outliers:
            T[:3, 3] += self.rng.normal(0, 0.02, 3)
        self.scale.add_pose(t + self.delay, T)

    def image(self, t):
        T = inverse(self.pose(0)) @ self.pose(t)
        T[:3, 3] = (T[:3, 3] + self.rng.normal(0, self.visual, 3)) / self.factor
        self.scale.add_motion(t, T, self.segment)


def test_the_factor_is_found_and_locked_whatever_the_base_frame():
    world = World()
    estimate = world.go(6)
    assert estimate.state == "locked" and estimate.locked
    assert estimate.factor == pytest.approx(FACTOR, rel=0.01)
    assert abs(estimate.factor / FACTOR - 1) < 3 * estimate.sigma < 0.08
    assert estimate.pairs > 100 and 0.015 < estimate.baseline < 0.06
    assert estimate.depth_sigma > estimate.sigma


@pytest.mark.parametrize("axes", ["dvrk", "optical", "ros"])
def test_axes_of_every_convention_become_optical(axes):
    estimate = World(axes=axes, settings=ScaleSettings(scale_pose_axes=axes)).go(5)
    assert estimate.factor == pytest.approx(FACTOR, rel=0.01)
    assert estimate.axes_angle < math.radians(3) and "scale.pose_axes" not in estimate.reason


def test_to_optical_turns_points_as_the_conventions_say():
    T = se3(so3_exp(np.array([0.1, 0.2, 0.3])), np.array([1.0, 2.0, 3.0]))
    right, ahead = np.array([1.0, 0, 0, 1]), np.array([0, 0, 1.0, 1])  # in optical axes
    np.testing.assert_allclose(to_optical(T, "dvrk") @ right, T @ (-1, 0, 0, 1))
    np.testing.assert_allclose(to_optical(T, "ros") @ ahead, T @ (1, 0, 0, 1))
    np.testing.assert_allclose(to_optical(T, "ros") @ right, T @ (0, -1, 0, 1))
    np.testing.assert_allclose(AXES["ros"], OPTICAL_TO_BODY)
    np.testing.assert_allclose(to_optical(T, "optical"), T)
    with pytest.raises(ValueError, match="dvrk, optical, ros"):
        to_optical(T, "opencv")


def test_wrong_axes_leave_the_factor_right_and_are_named():
    estimate = World(axes="optical", settings=ScaleSettings(scale_pose_axes="dvrk")).go(6)
    assert estimate.factor == pytest.approx(FACTOR, rel=0.01)
    assert estimate.axes_angle == pytest.approx(math.pi, abs=0.1)
    assert "'optical' would fit" in estimate.reason


def test_an_endoscope_that_looks_askew_is_no_harm():
    tilt = se3(so3_exp(np.radians([30.0, 0, 0])), np.zeros(3))  # a 30 degree scope that the robot takes for straight
    world = World()
    world.axes = tilt @ world.axes
    estimate = world.go(6)
    assert estimate.factor == pytest.approx(FACTOR, rel=0.01)  # without the turn found it would be 0.87 of that
    assert math.degrees(estimate.axes_angle) == pytest.approx(30, abs=3)


def test_noise_of_either_side_does_not_pull_the_factor():
    """A ratio of squares would be some 3 % too large with this robot, as much too small with these images."""
    robots = [World(seed=s, white=1e-3, pose=lambda t: path(t, 0.008)).go(6, ask=False).factor for s in range(5)]
    images = [World(seed=s, visual=6e-4, pose=lambda t: path(t, 0.008)).go(6, ask=False).factor for s in range(5)]
    assert np.mean(robots) == pytest.approx(FACTOR, rel=0.008)
    assert np.mean(images) == pytest.approx(FACTOR, rel=0.008)


@pytest.mark.parametrize("walks", [True, False])
def test_sigma_is_honest(walks):
    """Errors of odometry add up; for them sigma is right. For white errors, which average out, it may be wide."""
    settings, shares = ScaleSettings(scale_estimate_delay=False), []
    for seed in range(20):
        world = World(seed=seed, visual=0.0 if walks else 4e-4, settings=settings, rate=50.0)
        if walks:
            walk = np.cumsum(np.random.default_rng(seed + 100).normal(0, 1e-4, (200, 3)), axis=0)  # 0.5 mm in a second
            world.image = lambda t, world=world, walk=walk: drifted(world, t, walk[round(t * 25)])
        estimate = world.go(5, ask=False)
        shares.append(abs(estimate.factor / FACTOR - 1) / estimate.sigma)
    assert np.mean(np.array(shares) < 2) >= 0.9
    assert (0.3 if walks else 0.1) < np.median(shares) < 1.1


def drifted(world, t, drift):
    T = inverse(world.pose(0)) @ world.pose(t)
    T[:3, 3] = (T[:3, 3] + drift) / world.factor
    world.scale.add_motion(t, T, 0)


@pytest.mark.parametrize("delay", [0.08, 0.2, -0.12])
def test_a_delay_is_found(delay):
    world = World(delay=delay, pose=lambda t: path(t, pace=2.0))
    estimate = world.go(8)
    assert estimate.delay == pytest.approx(delay, abs=0.012)
    assert abs(estimate.delay - delay) < 4 * estimate.delay_sigma
    assert estimate.factor == pytest.approx(FACTOR, rel=0.01)


def test_a_time_offset_says_the_same_as_the_delay_found():
    world = World(delay=0.15, settings=ScaleSettings(scale_time_offset=-0.15, scale_estimate_delay=False))
    estimate = world.go(6)
    assert estimate.delay == 0 and estimate.delay_sigma is None
    assert estimate.factor == pytest.approx(FACTOR, rel=0.01)


def test_a_delay_that_no_motion_shows_stays_zero():
    def steady(t):
        return se3(np.eye(3), np.array([0.004 * t, 0, 0.002 * t]))

    estimate = World(pose=steady).go(8)
    assert estimate.delay == 0 and estimate.delay_sigma is None
    assert estimate.factor == pytest.approx(FACTOR, rel=0.02)


def test_a_shake_that_repeats_itself_is_not_taken_for_a_delay():
    def shake(t):
        return se3(np.eye(3), np.array([0.006 * math.sin(2 * math.pi * t / 0.4), 0, 0.003 * t]))

    estimate = World(pose=shake).go(8)  # half a period later all is the same but for the sign
    assert abs(estimate.delay) < 0.02


def test_outliers_of_the_robot_are_left_out():
    world = World()
    world.outliers = 0.05
    estimate = world.go(8)
    assert estimate.factor == pytest.approx(FACTOR, rel=0.015)
    assert estimate.residual < 5e-4


def test_a_base_that_is_moved_once_is_no_motion_of_the_camera():
    world = World()
    world.go(4)
    world.T_base_world = se3(so3_exp(np.array([0.0, 0.2, 0.1])), np.array([0.05, 0.02, -0.04])) @ world.T_base_world
    estimate = world.go(3)
    assert estimate.locked and estimate.jumps == 0
    assert estimate.factor == pytest.approx(FACTOR, rel=0.015)


def robot_of(count, spikes=(), jump_at=None, gap_at=None):
    """A robot at 100 Hz along the path, some poses 5 mm off, all from `jump_at` on 20 mm elsewhere, a gap of 0.4 s."""
    robot = RobotPoses()
    for number in range(count):
        T = path(number * 0.01).copy()
        T[0, 3] += 0.005 * (number in spikes) + 0.02 * (jump_at is not None and number >= jump_at)
        robot.append(number * 0.01 + 0.4 * (gap_at is not None and number >= gap_at), T)
    return robot


def test_spikes_leave_the_window_and_nothing_else_does():
    spikes = (20, 57, 90, 130)
    window = robot_of(200, spikes).window(0.0)
    kept = set(np.rint(window.stamps * 100).astype(int))
    assert set(range(3, 197)) - kept == set(spikes)  # at either end there are not three neighbours yet
    assert window.jumps == 0


def test_a_jump_and_a_gap_part_the_poses_and_no_mean_spans_them():
    for window, jumps in ((robot_of(200, jump_at=100).window(0.0), 1), (robot_of(200, gap_at=100).window(0.0), 0)):
        start = np.array([0.5, 0.95, 1.55])
        position, _, piece = window.means(start, start + 0.1)
        assert window.jumps == jumps and piece.tolist() == [0, -1, 1]
    inside, _, _ = robot_of(200).window(0.0).means(np.array([0.5, 1.5]), np.array([0.6, 1.6]))
    true = [np.mean([path(t)[:3, 3] for t in np.linspace(a, a + 0.1, 200)], axis=0) for a in (0.5, 1.5)]
    np.testing.assert_allclose(inside[1] - inside[0], true[1] - true[0], atol=2e-6)


def test_motions_are_never_compared_across_segments():
    world = World()
    world.go(3)
    turned = se3(so3_exp(np.array([1.0, 0.5, 0.2])), np.array([5.0, 2.0, 1.0]))
    world.image = lambda t: world.scale.add_motion(t, turned @ network_pose(world, t), 1)
    estimate = world.go(3)
    assert estimate.factor == pytest.approx(FACTOR, rel=0.015) and estimate.outliers < 0.1 * estimate.pairs


def network_pose(world, t):
    T = world.pose(t).copy()
    T[:3, 3] = T[:3, 3] / world.factor
    return T


def test_a_robot_that_does_not_move_this_camera_gives_no_scale():
    world = World()
    other = World(pose=lambda t: path(3.7 * t + 50, 0.02), seed=5)
    world.robot = lambda t: world.scale.add_pose(t, other.T_base_world @ other.pose(t) @ other.axes)
    estimate = world.go(8)
    assert not estimate.locked and estimate.factor is None
    assert "do not show the same motion" in estimate.reason


def test_images_that_turn_farther_than_the_robot_point_at_the_focal_length():
    def wrong_focal(t):
        T = path(t)
        return se3(so3_exp(0.2 * 1.6 * np.array([math.sin(0.8 * t), math.sin(1.1 * t + 2), 0.1])), T[:3, 3])

    world = World()
    world.image = lambda t: world.scale.add_motion(t, replace_translation(wrong_focal(t), world.factor), 0)
    estimate = world.go(6)
    assert not estimate.locked and "focal length" in estimate.reason


def replace_translation(T, factor):
    return se3(T[:3, :3], T[:3, 3] / factor)


def test_nothing_is_known_before_anything_came():
    scale = KinematicScale()
    estimate = scale.estimate()
    assert (estimate.state, estimate.factor, estimate.sigma) == (
        "waiting",
        None,
        None,
    ) and "odometry" in estimate.reason
    scale.add_motion(1.0, np.eye(4), 0)
    assert "robot pose" in scale.estimate().reason


def test_clocks_that_do_not_fit_are_named():
    world = World()
    world.delay = 0.0
    world.robot = lambda t: world.scale.add_pose(t + 3600, path(t))
    estimate = world.go(3)
    assert estimate.state == "waiting" and "+3600" in estimate.reason and "use_sim_time" in estimate.reason


def test_a_camera_at_rest_is_asked_to_move_and_motion_below_the_baseline_too():
    estimate = World(pose=at_rest).go(5)
    assert estimate.state == "moving needed" and estimate.factor is None and "move the endoscope" in estimate.reason
    estimate = World(pose=lambda t: path(t, 0.001)).go(5)
    assert estimate.state == "moving needed" and "5.0 mm are needed" in estimate.reason


def test_a_lock_survives_rest_as_it_is():
    world = World(pose=lambda t: at_rest(t, 6.0))
    locked = world.go(6)
    assert locked.locked
    rested = world.go(20)
    assert rested.locked and rested.age > 10
    assert rested.factor == pytest.approx(locked.factor, rel=0.01)
    assert rested.sigma <= 1.5 * locked.sigma
    assert "move" in rested.reason


def test_without_a_lock_what_was_measured_is_kept_through_rest():
    world = World(pose=lambda t: at_rest(t, 3.0), visual=8e-4, settings=ScaleSettings(scale_lock_sigma=1e-3))
    world.go(3)
    rested = world.go(20)
    assert rested.state == "moving needed" and rested.factor == pytest.approx(FACTOR, rel=0.1)


def test_a_scale_that_jumps_ends_the_lock_and_is_said():
    world = World()
    before = world.go(8)
    world.factor, world.segment = 2 * FACTOR, 1  # the network's unit changes, as on another kind of tissue
    asked = len(world.asked)
    unlocked = world.go(7)
    after = world.go(5)
    assert unlocked.jumps == 1
    assert before.locked and any("scale jump" in estimate.reason for estimate in world.asked[asked:])
    assert after.jumps == 1
    assert after.factor == pytest.approx(2 * FACTOR, rel=0.03) and after.locked


def test_a_lock_does_not_wander_while_nothing_changes():
    world = World(visual=3e-4)
    world.go(30)
    factors = np.array([e.factor for e in world.asked if e.locked])
    assert len(factors) > 100 and np.ptp(factors) / FACTOR < 0.03 and world.asked[-1].jumps == 0
    late = factors[len(factors) // 2 :]
    assert abs(late.mean() / FACTOR - 1) < 0.006


def test_reset_forgets_the_lock():
    world = World()
    assert world.go(5).locked
    world.scale.reset()
    assert world.scale.estimate().state == "waiting" and world.scale.estimate().factor is None


def test_nonsense_of_the_robot_is_counted_and_changes_nothing():
    good, world = World(), World()
    expected = good.go(5)
    robot = world.robot

    def with_nonsense(t):
        robot(t)
        nan = np.full((4, 4), np.nan)
        world.scale.add_pose(t + 0.001, nan)
        world.scale.add_pose(math.nan, np.eye(4))
        world.scale.add_pose(t, path(t + 1))  # the same stamp again
        world.scale.add_pose(t - 0.5, path(t + 1))  # an older one
        world.scale.add_pose(t + 0.002, np.diag([2.0, 2, 2, 1]))  # no rotation
        world.scale.add_pose(t + 0.002, np.diag([-1.0, 1, 1, 1]))  # a mirror
        world.scale.add_pose(t + 0.002, np.eye(3))

    world.robot = with_nonsense
    estimate = world.go(5)
    assert estimate.factor == expected.factor and estimate.sigma == expected.sigma
    refused = world.scale.refused
    assert (
        refused["not finite"] > 900 and refused["no rotation"] > 900 and refused["stamp repeated or going back"] > 900
    )


def test_nonsense_of_the_images_changes_nothing():
    good, world = World(), World()
    expected = good.go(5)
    image = world.image

    def with_nonsense(t):
        image(t)
        world.scale.add_motion(t + 0.01, np.full((4, 4), np.nan), 0)
        world.scale.add_motion(t, 3 * np.eye(4), 0)
        world.scale.add_motion(math.inf, np.eye(4), 0)

    world.image = with_nonsense
    assert world.go(5).factor == expected.factor


def test_stamps_that_start_again_are_another_recording():
    world = World()
    world.go(6)
    world.now, world._sent = 0.0, 0
    estimate = world.go(6)
    assert estimate.locked and estimate.factor == pytest.approx(FACTOR, rel=0.01)
    assert world.scale.refused["clock went back"] == 1


def test_every_number_is_finite_whatever_comes():
    world = World()
    world.outliers = 0.3
    world.go(6)
    for estimate in world.asked:
        numbers = [getattr(estimate, name) for name in ("baseline", "residual", "delay", "axes_angle", "age")]
        numbers += [n for n in (estimate.factor, estimate.sigma, estimate.delay_sigma) if n is not None]
        assert np.isfinite(numbers).all() and estimate.reason


def test_an_estimate_is_fast_and_memory_is_bounded():
    world = World(rate=100.0)
    world.go(12)
    took = []
    for _ in range(20):
        start = time.thread_time()
        world.scale.estimate()
        took.append(time.thread_time() - start)
    assert np.median(took) < 0.01  # 2 ms where nothing else runs
    before = world.scale._robot._poses._rows.nbytes + world.scale._images._rows.nbytes
    for number in range(40000):  # 1 kHz, which is thinned out
        world.scale.add_pose(world.now + number * 1e-3, np.eye(4))
    assert world.scale._robot._poses._rows.nbytes + world.scale._images._rows.nbytes == before < 8e6
    assert world.scale.estimate().reason


def test_settings_say_what_is_wrong_with_them():
    for wrong, words in (
        ({"scale_pose_axes": "opencv"}, "dvrk, optical, ros"),
        ({"scale_window": 0.0}, "scale_window"),
        ({"scale_window": 600.0}, "120 s"),
        ({"scale_min_baseline": math.nan}, "scale_min_baseline"),
        ({"scale_lock_sigma": -1.0}, "scale_lock_sigma"),
        ({"scale_time_offset": math.nan}, "scale_time_offset"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(ScaleSettings(), **wrong)


def test_the_check_on_rendered_motion_measures_the_estimator_alone():
    pytest.importorskip("torch", reason="the check renders")
    from endomust_core.simulation import scale_check

    rng, sequence = np.random.default_rng(0), scale_check.Sequence("sway-0", path)
    motion = scale_check.true_motion(path, 5.2, rng, FACTOR)
    run = scale_check.run("a", sequence, motion, rng, FACTOR, base_moves=True)
    assert sorted(run.read) == [2, 5] and run.truth == {2: FACTOR, 5: FACTOR}
    ((kind, truth, _, runs, silent, median, *_),) = [row for row in scale_check.summary([run]) if row[2] == 5]
    assert (kind, truth, runs, silent) == ("a", "unit", 1, 0) and median < 3
    assert abs(run.delay_error) < 0.02 and run.locked_after < 5.2
    assert "| a | unit | 5 | 1 | 0 |" in scale_check.table([run])
