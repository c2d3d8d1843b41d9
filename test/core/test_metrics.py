"""Depth and trajectory scores against answers worked out by hand."""

import math

import numpy as np
import pytest

from endomust_core.metrics import (
    align,
    ate_5frame,
    ate_rmse,
    chained_poses,
    depth_metrics,
    mean_interval,
    mean_metrics,
    relative_pose_error,
    rotation_angles,
    scale_ratio_std,
    sfmlearner_ate,
    student_t,
    temporal_change,
)
from endomust_core.odometry import se3, so3_exp

STRAIGHT = np.tile(se3(np.eye(3), [0, 0, 1.0]), (8, 1, 1))


def test_depth_metrics_by_hand_without_scaling():
    scores = depth_metrics(np.array([[2.0, 4.0]]), np.array([[1.0, 5.0]]), scaling="none")
    assert scores["abs_rel"] == pytest.approx((1 + 0.2) / 2)
    assert scores["sq_rel"] == pytest.approx((1 + 0.2) / 2)
    assert scores["rmse"] == pytest.approx(1.0)
    assert scores["rmse_log"] == pytest.approx(math.sqrt((math.log(2) ** 2 + math.log(0.8) ** 2) / 2))
    assert (scores["a1"], scores["a2"], scores["a3"]) == (0.0, 0.5, 0.5)  # ratios 2 and exactly 1.25: not below
    assert scores["ratio"] == 1.0 and scores["coverage"] == 1.0


def test_median_scaling_by_hand():
    """Medians 2 and 20 give the ratio 10; scaled, only the last of three pixels is wrong, 40 for 30."""
    scores = depth_metrics(np.array([[1.0, 2.0, 4.0]]), np.array([[10.0, 20.0, 30.0]]))
    assert scores["ratio"] == pytest.approx(10)
    assert scores["abs_rel"] == pytest.approx(10 / 30 / 3)
    assert scores["sq_rel"] == pytest.approx(100 / 30 / 3)
    assert scores["rmse"] == pytest.approx(10 / math.sqrt(3))
    assert scores["a1"] == pytest.approx(2 / 3) and scores["a2"] == 1.0  # 4/3 lies between 1.25 and 1.5625


def test_a_perfect_prediction_at_another_scale_has_no_error():
    gt = np.linspace(1, 100, 50).reshape(5, 10)
    scores = depth_metrics(gt / 37, gt)
    assert scores["ratio"] == pytest.approx(37)
    assert max(scores[key] for key in ("abs_rel", "sq_rel", "rmse", "rmse_log")) < 1e-12
    assert scores["a1"] == scores["a2"] == scores["a3"] == 1.0


def test_the_limits_choose_pixels_by_gt_and_clamp_the_prediction():
    pred = np.array([5.0, 5.0, 5.0, 5.0, 500.0])
    gt = np.array([0.0, 150.0, np.nan, 5.0, 100.0])
    scores = depth_metrics(pred, gt, scaling="none")  # only the last two count; 500 is clamped to 150
    assert scores["abs_rel"] == pytest.approx(0.25) and scores["coverage"] == 1.0
    assert depth_metrics(pred, gt, max_depth=1000, scaling="none")["abs_rel"] == pytest.approx((145 / 150 + 0 + 4) / 3)


def test_pixels_that_were_not_predicted_are_counted():
    pred = np.array([2.0, np.nan, 0.0, -1.0])
    scores = depth_metrics(pred, np.full(4, 2.0), scaling="none")
    assert scores["coverage"] == 0.25 and scores["abs_rel"] == 0.0


def test_depth_metrics_refuse_what_cannot_be_compared():
    with pytest.raises(ValueError, match="resize pred as disparity"):
        depth_metrics(np.ones((2, 2)), np.ones((4, 4)))
    with pytest.raises(ValueError, match="check the unit"):
        depth_metrics(np.ones(3), np.full(3, 200.0))
    with pytest.raises(ValueError, match="check the unit"):
        depth_metrics(np.full(3, np.nan), np.ones(3))
    with pytest.raises(ValueError, match="use 'median' or 'none'"):
        depth_metrics(np.ones(3), np.ones(3), scaling="mean")


def test_mean_metrics_is_unweighted():
    assert mean_metrics([{"rmse": 1.0, "a1": 0.5}, {"rmse": 4.0, "a1": 1.0}]) == {"rmse": 2.5, "a1": 0.75}
    with pytest.raises(ValueError, match="no image"):
        mean_metrics([])


def test_scale_ratio_std_by_hand():
    assert scale_ratio_std([2.0, 2.0, 2.0]) == 0.0
    assert scale_ratio_std([1.0, 2.0, 3.0]) == pytest.approx(math.sqrt(0.5 / 3))  # 0.5, 1, 1.5 about their mean 1
    assert scale_ratio_std([100.0, 200.0, 300.0]) == pytest.approx(scale_ratio_std([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="one per image"):
        scale_ratio_std([])


def test_ate_of_the_right_path_at_another_scale_is_zero():
    shorter = STRAIGHT.copy()
    shorter[:, 2, 3] = 0.2
    scores = ate_5frame(shorter, STRAIGHT)
    assert scores["ate"] == pytest.approx(0, abs=1e-12) and scores["std"] == pytest.approx(0, abs=1e-12)


def test_ate_of_one_window_by_hand():
    """gt goes 1 along z, pred 1 along x: p·g = 0, so s = 0 and the error is gt itself: sqrt(0 + 1) over 2 positions."""
    sideways = np.array([se3(np.eye(3), [1.0, 0, 0])])
    scores = ate_5frame(sideways, STRAIGHT[:1])
    assert scores["ate"] == pytest.approx(1 / 2)
    assert scores["ate_rms"] == pytest.approx(1 / math.sqrt(2))


def test_ate_windows_slide_by_one_and_get_shorter_at_the_end():
    """Sideways again, six motions: windows of 5, 5, 5, 4, 3, 2 positions at 0, 1, 2, … along z."""
    sideways = np.tile(se3(np.eye(3), [1.0, 0, 0]), (6, 1, 1))
    windows = [math.sqrt(sum(k * k for k in range(n))) / n for n in (5, 5, 5, 4, 3, 2)]
    scores = ate_5frame(sideways, STRAIGHT[:6])
    assert scores["ate"] == pytest.approx(np.mean(windows))
    assert scores["std"] == pytest.approx(np.std(windows))


def test_ate_chains_rotations():
    """A quarter turn then a step: a prediction that forgets the turn goes the wrong way from the second step on."""
    turn = se3(so3_exp([0, math.pi / 2, 0]), [0, 0, 1.0])
    gt, pred = np.array([turn, STRAIGHT[0]]), STRAIGHT[:2]
    # Window 1: gt (0,0,1), (1,0,1); pred (0,0,1), (0,0,2): s = (1 + 2)/(1 + 4) = 0.6.
    first = math.sqrt(0.4**2 + 1 + 0.2**2) / 3
    assert ate_5frame(pred, gt)["ate"] == pytest.approx((first + 0) / 2)
    assert ate_5frame(gt, gt)["ate"] == pytest.approx(0, abs=1e-12)


def test_ate_of_a_camera_that_says_it_stands_still():
    still = np.tile(np.eye(4), (1, 1, 1))
    assert ate_5frame(still, STRAIGHT[:1])["ate"] == pytest.approx(0.5)


def test_ate_refuses_what_does_not_match():
    with pytest.raises(ValueError, match="pred has 2 motions, gt 3"):
        ate_5frame(STRAIGHT[:2], STRAIGHT[:3])
    with pytest.raises(ValueError, match="at least 1"):
        ate_5frame(STRAIGHT[:0], STRAIGHT[:0])
    with pytest.raises(ValueError, match=r"\(M,4,4\)"):
        ate_5frame(np.zeros((3, 3)), STRAIGHT[:3])


def test_align_finds_the_similarity_that_was_applied():
    points = np.random.default_rng(0).normal(size=(20, 3))
    R, t = so3_exp([0.4, -0.8, 1.5]), np.array([1.0, -2.0, 3.0])
    scale, found_R, found_t = align(points, 2.5 * points @ R.T + t)
    assert scale == pytest.approx(2.5)
    np.testing.assert_allclose(found_R, R, atol=1e-12)
    np.testing.assert_allclose(found_t, t, atol=1e-12)
    assert ate_rmse(points, 2.5 * points @ R.T + t) == pytest.approx(0, abs=1e-12)
    assert ate_rmse(points, points @ R.T + t, with_scale=False) == pytest.approx(0, abs=1e-12)
    assert align(points, 2.5 * points, with_scale=False)[0] == 1.0


def test_align_never_mirrors():
    points = np.random.default_rng(1).normal(size=(20, 3))
    _, R, _ = align(points, points * (1, 1, -1))
    assert np.linalg.det(R) == pytest.approx(1)
    assert ate_rmse(points, points * (1, 1, -1)) > 0.1


def test_ate_rmse_by_hand():
    """A line of -1, 0, 1 against -2, 0, 2: without scale both ends are 1 off, sqrt(2/3); with scale nothing is."""
    pred, gt = np.array([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0]]), np.array([[-2.0, 0, 0], [0, 0, 0], [2, 0, 0]])
    assert ate_rmse(pred, gt, with_scale=False) == pytest.approx(math.sqrt(2 / 3))
    assert ate_rmse(pred, gt) == pytest.approx(0, abs=1e-12)


def test_ate_rmse_of_standing_still_is_the_spread_of_gt():
    gt = np.array([[0.0, 0, 0], [0, 0, 2.0]])
    assert ate_rmse(np.zeros((2, 3)), gt) == pytest.approx(1.0)


def test_trajectories_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="pred has 2 positions, gt 3; match them by time stamp"):
        ate_rmse(np.zeros((2, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"\(N,3\)"):
        ate_rmse(np.zeros((0, 3)), np.zeros((0, 3)))


def test_the_published_ate_leaves_out_the_last_window():
    """Sideways, six motions without rotation: the windows of `ate_5frame` but for the last, of 2 positions."""
    sideways = np.tile(se3(np.eye(3), [1.0, 0, 0]), (6, 1, 1))
    windows = [math.sqrt(sum(k * k for k in range(n))) / n for n in (5, 5, 5, 4, 3)]
    scores = sfmlearner_ate(sideways, STRAIGHT[:6])
    assert scores["ate"] == pytest.approx(np.mean(windows)) and scores["std"] == pytest.approx(np.std(windows))
    assert scores["rotation"] == 0.0
    assert sfmlearner_ate(sideways[:1], STRAIGHT[:1])["ate"] == pytest.approx(1 / 2)  # one motion, one window


def test_the_published_ate_chains_the_motions_the_other_way():
    """A quarter turn about y while 1 forward; seen as T_curr_prev the first step goes to R⁻¹(0,0,-1) = (1,0,0)."""
    turn = se3(so3_exp([0, math.pi / 2, 0]), [0, 0, 1.0])
    gt, pred = np.array([turn, STRAIGHT[0]]), STRAIGHT[:2]
    # gt: (1,0,0), then R⁻¹(0,0,-1) on top: (2,0,0). pred: (0,0,-1), (0,0,-2). They are at right angles, so s = 0.
    assert sfmlearner_ate(pred, gt)["ate"] == pytest.approx(math.sqrt(1 + 4) / 3)
    assert sfmlearner_ate(pred, gt)["rotation"] == pytest.approx((0 + math.pi / 2 + math.pi / 2) / 3)
    assert sfmlearner_ate(gt, gt) == pytest.approx({"ate": 0, "std": 0, "rotation": 0}, abs=1e-9)


def test_relative_pose_error_by_hand():
    """Steps of 1 along z said to be 0.5: wrong by 0.5, right at scale 2; a turn of 0.1 that is missed is 0.1 wrong."""
    half = STRAIGHT.copy()
    half[:, 2, 3] = 0.5
    assert relative_pose_error(half, STRAIGHT) == pytest.approx({"translation": 0.5, "rotation": 0.0})
    assert relative_pose_error(half, STRAIGHT, scale=2.0)["translation"] == pytest.approx(0)
    turned = STRAIGHT.copy()
    turned[0] = se3(so3_exp([0.1, 0, 0]), [0, 0, 1.0])
    assert relative_pose_error(STRAIGHT[:4], turned[:4])["rotation"] == pytest.approx(0.1 / math.sqrt(4))
    with pytest.raises(ValueError, match="at least 1"):
        relative_pose_error(STRAIGHT[:0], STRAIGHT[:0])


def test_rotation_angles_are_exact_for_small_and_large_ones():
    angles = np.array([0.0, 1e-9, 0.3, math.pi])
    R = np.array([so3_exp([0, angle, 0]) for angle in angles])
    np.testing.assert_allclose(rotation_angles(R), angles, rtol=1e-7, atol=1e-12)


def test_chained_poses_start_at_the_identity():
    poses = chained_poses(STRAIGHT[:3])
    assert poses.shape == (4, 4, 4) and (poses[0] == np.eye(4)).all() and poses[3][2, 3] == 3.0


def test_temporal_change_by_hand():
    """Two pixels go 1 to 2 and 1 to 4: |ln| is ln 2 and 2 ln 2; less their median 1.5 ln 2, half a ln 2 each."""
    before, now = np.array([[1.0, 1.0, np.nan]]), np.array([[2.0, 4.0, 3.0]])
    assert temporal_change(before, now) == pytest.approx((1.5 * math.log(2), 0.5 * math.log(2)))
    assert temporal_change(before, 3 * before) == pytest.approx((math.log(3), 0.0))  # a change of scale is forgiven
    assert temporal_change(before, now, np.array([[True, False, True]]))[0] == pytest.approx(math.log(2))
    assert temporal_change(before, np.zeros((1, 3))) is None


def test_confidence_interval_of_a_mean_by_hand():
    """1, 2, 3: mean 2, standard error 1/√3, and 4.303 is the quantile of two degrees of freedom."""
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)))
    assert mean_interval([1.0]) is None and mean_interval([]) is None
    known = {1: 12.706, 6: 2.447, 7: 2.365, 10: 2.228, 30: 2.042, 120: 1.980, 10**6: 1.960}  # printed tables
    assert {n: round(student_t(n), 3) for n in known} == pytest.approx(known, abs=1.1e-3)
