"""Scores of depth maps and trajectories against ground truth; arrays in, plain floats out, no files.

Depth and positions may be in any unit as long as both sides agree; the default limits are those of the published
tables on SCARED, in millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DEGREE_OF_ACCURACY = 1.25  # δ < 1.25, 1.25², 1.25³


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
    """
    pred, gt = _motions(pred), _motions(gt)
    if len(pred) != len(gt) or len(pred) == 0:
        raise ValueError(f"pred has {len(pred)} motions, gt {len(gt)}; both need the same number, at least 1")
    sums, counts = [], []
    for start in range(len(pred)):
        p, g = (chained(motions[start : start + frames - 1]) for motions in (pred, gt))
        power = np.sum(p * p)
        scale = np.sum(g * p) / power if power > 0 else 1.0
        sums.append(np.sqrt(np.sum((scale * p - g) ** 2)))
        counts.append(len(p))
    ate, ate_rms = np.array(sums) / np.array(counts), np.array(sums) / np.sqrt(counts)
    return {"ate": float(ate.mean()), "std": float(ate.std()), "ate_rms": float(ate_rms.mean())}


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
    difference, log_difference = p - g, np.log(p) - np.log(g)
    worse = np.maximum(p / g, g / p)
    return {
        "abs_rel": float(np.mean(np.abs(difference) / g)),
        "sq_rel": float(np.mean(difference**2 / g)),
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "rmse_log": float(np.sqrt(np.mean(log_difference**2))),
        **{f"a{power}": float(np.mean(worse < DEGREE_OF_ACCURACY**power)) for power in (1, 2, 3)},
    }


def chained(motions: np.ndarray) -> np.ndarray:
    """(n,4,4) relative motions T_prev_curr -> (n+1,3) positions, the first at the origin."""
    T, positions = np.eye(4), [np.zeros(3)]
    for motion in motions:
        T = T @ motion
        positions.append(T[:3, 3])
    return np.array(positions)


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
