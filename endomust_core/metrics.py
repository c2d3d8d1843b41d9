"""Scores of depth maps and trajectories against ground truth; arrays in, plain floats out, no files.

Depth and positions may be in any unit as long as both sides agree; the default limits are those of the published
tables on SCARED, in millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DEGREE_OF_ACCURACY = 1.25  # δ < 1.25, 1.25², 1.25³
T_TABLE = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469)  # 97.5 % quantiles for 1 to 6 degrees of freedom


def depth_metrics(
    pred: np.ndarray,
    gt: np.ndarray,
    min_depth: float = 1e-3,
    max_depth: float = 150.0,
    scaling: str = "median",
) -> dict[str, float]:
    """Compare (H,W) depths where min_depth < gt < max_depth; scaling "median" multiplies pred by med(gt)/med(pred).

    Pixels that pred leaves invalid (NaN, <= 0) are not scored but counted: `coverage` is the share that was. After
    scaling pred is clamped to the limits, as in the published evaluations. ValueError when nothing can be compared.
    """
    pred, gt = np.asarray(pred, dtype=np.float64), np.asarray(gt, dtype=np.float64)
    if pred.shape != gt.shape:
        raise ValueError(f"pred is {pred.shape}, gt is {gt.shape}; resize pred as disparity to the size of gt")
    if scaling not in ("median", "none"):
        raise ValueError(f"scaling is '{scaling}'; use 'median' or 'none'")
    known = (gt > min_depth) & (gt < max_depth)
    scored = known & np.isfinite(pred) & (pred > 0)
    if not scored.any():
        raise ValueError(f"no pixel has gt in ({min_depth}, {max_depth}) and a valid pred; check the unit of both")
    p, g = pred[scored], gt[scored]
    ratio = float(np.median(g) / np.median(p)) if scaling == "median" else 1.0
    return {
        **_errors(np.clip(p * ratio, min_depth, max_depth), g),
        "ratio": ratio,
        "coverage": float(scored.sum() / known.sum()),
    }


def mean_metrics(images: Sequence[dict[str, float]]) -> dict[str, float]:
    """The unweighted mean over images, key by key."""
    if not images:
        raise ValueError("there is no image to average over")
    return {key: float(np.mean([image[key] for image in images])) for key in images[0]}


def scale_ratio_std(ratios: Sequence[float]) -> float:
    """How unsteady the scale is from image to image: std of ratio / median(ratio); 0 means one scale fits all."""
    ratios = np.asarray(ratios, dtype=np.float64)
    if ratios.size == 0:
        raise ValueError("there is no ratio; give one per image")
    return float(np.std(ratios / np.median(ratios)))


def ate_5frame(pred: np.ndarray, gt: np.ndarray, frames: int = 5) -> dict[str, float]:
    """Trajectory error over sliding windows of `frames` poses, from relative motions (M,4,4) T_prev_curr.

    Each window starts at the identity, chains up to frames-1 motions (fewer at the end) and gets its own scale
    s = Σ g·p / Σ p². Per window of N positions: `ate` = sqrt(Σ |s p - g|²) / N, the formula of the published tables
    (SfMLearner), and `ate_rms` with √N in its place, the true root mean square. Mean over windows, `std` of `ate`.
    What those tables do to the motions before is in `sfmlearner_ate`.
    """
    pred, gt = _pairs(pred, gt)
    sums, counts = [], []
    for start in range(len(pred)):
        p, g = (chained(motions[start : start + frames - 1]) for motions in (pred, gt))
        sums.append(np.sqrt(np.sum((_scale(p, g) * p - g) ** 2)))
        counts.append(len(p))
    ate, ate_rms = np.array(sums) / np.array(counts), np.array(sums) / np.sqrt(counts)
    return {"ate": float(ate.mean()), "std": float(ate.std()), "ate_rms": float(ate_rms.mean())}


def sfmlearner_ate(pred: np.ndarray, gt: np.ndarray, frames: int = 5) -> dict[str, float]:
    """The 5-frame numbers of the published tables on SCARED, from the same (M,4,4) T_prev_curr as `ate_5frame`.

    Their evaluation differs in two ways from what one would do: it chains motions of the previous camera into the
    current one, T_curr_prev, as if they were the other direction, and leaves out the last window. `ate` and `std` are
    as in `ate_5frame` [unit of the translations], `rotation` is the angle [rad] between the chained rotations, averaged
    over the positions of a window (the first of which always agrees) and over windows.
    """
    pred, gt = (np.linalg.inv(motions) for motions in _pairs(pred, gt))
    ates, angles = [], []
    for start in range(max(len(pred) - 1, 1)):
        p, g = (chained_poses(motions[start : start + frames - 1]) for motions in (pred, gt))
        ates.append(np.linalg.norm(_scale(p[:, :3, 3], g[:, :3, 3]) * p[:, :3, 3] - g[:, :3, 3]) / len(p))
        angles.append(rotation_angles(g[:, :3, :3] @ np.swapaxes(p[:, :3, :3], 1, 2)).mean())
    return {"ate": float(np.mean(ates)), "std": float(np.std(ates)), "rotation": float(np.mean(angles))}


def relative_pose_error(pred: np.ndarray, gt: np.ndarray, scale: float = 1.0) -> dict[str, float]:
    """Root mean square of what is left of each motion, gt⁻¹ pred: `translation`, and `rotation` [rad].

    pred and gt are (M,4,4) T_prev_curr; `scale` multiplies pred's translations first, usually that of `align`. The
    definition is that of Sturm et al. 2012, for steps of one frame.
    """
    pred, gt = _pairs(pred, gt)
    pred = pred.copy()
    pred[:, :3, 3] *= scale
    left = np.linalg.inv(gt) @ pred
    angles = rotation_angles(left[:, :3, :3])
    return {
        "translation": float(np.sqrt(np.mean(np.sum(left[:, :3, 3] ** 2, axis=1)))),
        "rotation": float(np.sqrt(np.mean(angles**2))),
    }


def rotation_angles(R: np.ndarray) -> np.ndarray:
    """(N,3,3) rotations -> (N,) angles [rad] in [0, π], exact for small ones too."""
    skew = R - np.swapaxes(R, 1, 2)
    twice_sine = np.linalg.norm(np.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]]), axis=0)
    return np.arctan2(twice_sine, np.trace(R, axis1=1, axis2=2) - 1)


def temporal_change(
    previous: np.ndarray, current: np.ndarray, allowed: np.ndarray | None = None
) -> tuple[float, float] | None:
    """How much depth changes from one frame to the next at the same pixel: (`depth_change`, `aligned_change`).

    With r = ln(current) - ln(previous) over pixels where both (H,W) depths are positive and finite (and `allowed`):
    mean |r|, and mean |r - median(r)|, which forgives a change of the scale of the whole image. A camera that moves
    changes depth too, so the number is read beside that of the truth, never against 0. None without such pixels.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.log(current) - np.log(previous)
    r = r[np.isfinite(r) if allowed is None else np.isfinite(r) & allowed]
    if r.size == 0:
        return None
    return float(np.mean(np.abs(r))), float(np.mean(np.abs(r - np.median(r))))


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean by Student's t, as the published tables give it; None below two values.

    It takes the values for independent. Frames of one video are not, so it is too narrow; `bootstrap` is for that.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size < 2:
        return None
    reach = student_t(values.size - 1) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return float(values.mean()) - reach, float(values.mean()) + reach


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to 3 digits: a table, then its expansion (Abramowitz & Stegun 26.7.5)."""
    if freedom <= len(T_TABLE):
        return T_TABLE[freedom - 1]
    z = 1.959963984540054
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def align(pred: np.ndarray, gt: np.ndarray, with_scale: bool = True) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale s, rotation R (3,3), translation t (3,) of the least Σ|s R p + t - g|² over (N,3) points (Umeyama 1991)."""
    pred, gt = _positions(pred), _positions(gt)
    if len(pred) != len(gt):
        raise ValueError(f"pred has {len(pred)} positions, gt {len(gt)}; match them by time stamp first")
    pred_mean, gt_mean = pred.mean(axis=0), gt.mean(axis=0)
    p, g = pred - pred_mean, gt - gt_mean
    U, singular, Vt = np.linalg.svd(g.T @ p)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])  # a mirror image is no rotation
    R = (U * signs) @ Vt
    power = np.sum(p * p)
    scale = float(np.sum(singular * signs) / power) if with_scale and power > 0 else 1.0
    return scale, R, gt_mean - scale * R @ pred_mean


def ate_rmse(pred: np.ndarray, gt: np.ndarray, with_scale: bool = True) -> float:
    """Root mean square distance of (N,3) positions over the whole trajectory, after `align`."""
    scale, R, t = align(pred, gt, with_scale)
    error = scale * _positions(pred) @ R.T + t - _positions(gt)
    return float(np.sqrt(np.mean(np.sum(error**2, axis=1))))


def _errors(p: np.ndarray, g: np.ndarray) -> dict[str, float]:
    difference, ratio = p - g, p / g
    worse = np.maximum(ratio, g / p)
    return {
        "abs_rel": float(np.mean(np.abs(difference) / g)),
        "sq_rel": float(np.mean(difference**2 / g)),
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "rmse_log": float(np.sqrt(np.mean(np.log(ratio) ** 2))),
        **{f"a{power}": float(np.mean(worse < DEGREE_OF_ACCURACY**power)) for power in (1, 2, 3)},
    }


def chained(motions: np.ndarray) -> np.ndarray:
    """(n,4,4) relative motions T_prev_curr -> (n+1,3) positions, the first at the origin."""
    return chained_poses(motions)[:, :3, 3]


def chained_poses(motions: np.ndarray) -> np.ndarray:
    """(n,4,4) relative motions T_prev_curr -> (n+1,4,4) poses T_first_n, the first the identity."""
    poses = [np.eye(4)]
    for motion in motions:
        poses.append(poses[-1] @ motion)
    return np.array(poses)


def _scale(p: np.ndarray, g: np.ndarray) -> float:
    """The scale of p that comes nearest to g: Σ g·p / Σ p²; 1 where p does not move."""
    power = np.sum(p * p)
    return float(np.sum(g * p) / power) if power > 0 else 1.0


def _pairs(pred: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pred, gt = _motions(pred), _motions(gt)
    if len(pred) != len(gt) or len(pred) == 0:
        raise ValueError(f"pred has {len(pred)} motions, gt {len(gt)}; both need the same number, at least 1")
    return pred, gt


def _motions(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3 or values.shape[1:] != (4, 4):
        raise ValueError(f"relative motions must be (M,4,4), got {values.shape}")
    return values


def _positions(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 3 or len(values) == 0:
        raise ValueError(f"positions must be (N,3) with N >= 1, got {values.shape}")
    return values
