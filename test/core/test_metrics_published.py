"""Our scores beside a plain re-statement of the formulas of the public evaluation code, on random arrays; and evo."""

import numpy as np
import pytest

from endomust_core.metrics import ate_5frame, ate_rmse, chained, depth_metrics, relative_pose_error, sfmlearner_ate
from endomust_core.motion_scores import whole_trajectory
from endomust_core.odometry import inverse, se3, so3_exp


def random_depths(seed, shape=(37, 53)):
    """A prediction of another scale and a truth in mm with holes, zeros and values beyond the cap."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(20, 220, shape)
    pred = truth * rng.lognormal(0, 0.4, shape) / 300
    truth[rng.random(shape) < 0.1] = 0
    truth[rng.random(shape) < 0.1] = np.nan
    return pred, truth


def published_depth(pred, truth, cap):
    """Per image: mask, one ratio of medians, clamp, seven numbers."""
    inside = np.logical_and(np.nan_to_num(truth) > 1e-3, np.nan_to_num(truth) < cap)
    d, g = pred[inside], truth[inside]
    ratio = np.median(g) / np.median(d)
    d = ratio * d
    d[d < 1e-3] = 1e-3
    d[d > cap] = cap
    quotient = np.max([g / d, d / g], axis=0)
    return {
        "abs_rel": (abs(g - d) / g).mean(),
        "sq_rel": ((g - d) ** 2 / g).mean(),
        "rmse": ((g - d) ** 2).mean() ** 0.5,
        "rmse_log": ((np.log(g) - np.log(d)) ** 2).mean() ** 0.5,
        "a1": (quotient < 1.25).mean(),
        "a2": (quotient < 1.25**2).mean(),
        "a3": (quotient < 1.25**3).mean(),
        "ratio": ratio,
    }


@pytest.mark.parametrize("cap", [150, 256])
@pytest.mark.parametrize("seed", range(5))
def test_depth_scores_are_the_published_ones(seed, cap):
    pred, truth = random_depths(seed)
    ours = depth_metrics(pred, truth, 1e-3, cap)
    expected = published_depth(pred, truth, cap)
    assert {key: ours[key] for key in expected} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_unit_does_not_matter_but_for_what_has_one(seed):
    pred, truth = random_depths(seed)
    mm, m = depth_metrics(pred, truth, 1e-3, 150), depth_metrics(pred, truth / 1e3, 1e-6, 0.15)
    for key in ("abs_rel", "rmse_log", "a1", "a2", "a3"):
        assert m[key] == pytest.approx(mm[key], rel=1e-9)
    assert 1e3 * m["rmse"] == pytest.approx(mm["rmse"]) and 1e3 * m["sq_rel"] == pytest.approx(mm["sq_rel"])


def random_motions(seed, count=23):
    """True T_prev_curr of a camera that turns a little, and a prediction that is wrong in scale, direction and turn."""
    rng = np.random.default_rng(seed)
    true = [se3(so3_exp(rng.normal(0, 0.02, 3)), rng.normal((0.1, 0, 0.6), 0.2)) for _ in range(count)]
    pred = [se3(T[:3, :3] @ so3_exp(rng.normal(0, 0.01, 3)), 0.3 * T[:3, 3] + rng.normal(0, 0.03, 3)) for T in true]
    return np.array(pred), np.array(true)


def published_pose(world_to_camera, pred_forward, length=5):
    """Global poses P and predictions of P_{t+1} P_t⁻¹ → mean ATE, its std, mean rotation error of the snippets."""
    steps = [
        after @ np.linalg.pinv(before) for before, after in zip(world_to_camera, world_to_camera[1:], strict=False)
    ]

    def walk(relative):
        pose = np.eye(4)
        yield pose
        for step in relative:
            pose = pose @ step
            yield pose

    errors, turns = [], []
    for first in range(len(steps) - 1):
        g = np.array(list(walk(steps[first : first + length - 1])))
        p = np.array(list(walk(pred_forward[first : first + length - 1])))
        gx, px = g[:, :3, 3], p[:, :3, 3] + (g[0, :3, 3] - p[0, :3, 3])
        factor = (gx * px).sum() / (px**2).sum()
        errors.append(np.sqrt(((factor * px - gx) ** 2).sum()) / len(gx))
        turn = 0.0
        for a, b in zip(g[:, :3, :3], p[:, :3, :3], strict=True):
            R = a @ np.linalg.inv(b)
            sine = np.linalg.norm([R[0, 1] - R[1, 0], R[1, 2] - R[2, 1], R[0, 2] - R[2, 0]])
            turn += np.arctan2(sine, np.trace(R) - 1)
        turns.append(turn / len(gx))
    return {"ate": np.mean(errors), "std": np.std(errors), "rotation": np.mean(turns)}


@pytest.mark.parametrize("seed", range(5))
def test_pose_scores_are_the_published_ones(seed):
    pred, true = random_motions(seed)
    T_world_camera = [np.eye(4)]
    for T in true:
        T_world_camera.append(T_world_camera[-1] @ T)
    expected = published_pose([inverse(T) for T in T_world_camera], [inverse(T) for T in pred])
    assert sfmlearner_ate(pred, true) == pytest.approx(expected, rel=1e-9)


def test_the_published_ate_is_near_to_the_one_chained_as_the_camera_moves():
    """Their quirks change little where rotations are small: what was compared across papers stays comparable."""
    pred, true = random_motions(0, count=200)
    assert sfmlearner_ate(pred, true)["ate"] == pytest.approx(ate_5frame(pred, true)["ate"], rel=0.1)
    assert sfmlearner_ate(pred, true)["ate"] != ate_5frame(pred, true)["ate"]


@pytest.mark.parametrize("seed", range(3))
def test_evo_and_ours_agree(seed, monkeypatch):
    pytest.importorskip("evo")
    pred, true = random_motions(seed, count=60)
    by_evo = whole_trajectory(pred, true)
    monkeypatch.setattr("endomust_core.motion_scores.evo_version", lambda: None)
    ours = whole_trajectory(pred, true)
    assert by_evo["by"] == "evo" and ours["by"] == "endomust_core.metrics"
    assert ours["errors"] == pytest.approx(by_evo["errors"], rel=1e-6)
    assert ours["errors"]["ate_full"] == pytest.approx(ate_rmse(chained(pred), chained(true)))
    assert ours["errors"]["ate_full"] < ours["errors"]["ate_full_se3"]


def test_a_straight_path_which_evo_refuses_is_scored_all_the_same():
    straight = np.tile(se3(np.eye(3), [0, 0, 1e-3]), (9, 1, 1))
    half = straight.copy()
    half[:, 2, 3] /= 2
    found = whole_trajectory(half, straight)
    assert found["by"] == "endomust_core.metrics"
    assert found["errors"]["ate_full"] == pytest.approx(0, abs=1e-12) and found["errors"]["ate_full_se3"] > 1e-4
    steps = relative_pose_error(half, straight, 2.0)
    assert found["errors"]["rpe_translation"] == pytest.approx(steps["translation"], abs=1e-12)
