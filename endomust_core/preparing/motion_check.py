"""Do poses and depth tell one story? Points of one frame, moved by the poses, against the depth of another frame."""

from __future__ import annotations

import numpy as np

from endomust_core.data import DataError, Dataset, Sample
from endomust_core.odometry import inverse

PAIRS = 8
GAP = 10  # frames between the two of a pair
STRIDE = 8  # px
BAD = 0.02  # relative error of depth that good poses stay under


def check_motion(sequence: Dataset) -> str | None:
    """A sentence where something else explains the depths much better than the poses as stored; None where all is well.

    Tried are the inverse poses, translations that are a thousand times too large or small, and no motion at all.
    """
    posed = [number for number, item in enumerate(sequence.items) if item.T_world_camera is not None]
    if len(posed) <= GAP:
        return None
    starts = sorted({round(at) for at in np.linspace(0, len(posed) - 1 - GAP, PAIRS)})
    rows = [row for at in starts if (row := _errors(sequence, posed[at], posed[at + GAP])) is not None]
    if len(rows) < 2:
        return None
    errors = dict(zip(("stored", "inverted", "larger", "smaller", "none"), np.median(rows, axis=0), strict=True))
    best = min(errors, key=errors.get)
    if best == "stored" or errors["stored"] < BAD or errors[best] > 0.6 * errors["stored"]:
        return None
    why = {
        "inverted": "they look inverted (world to camera instead of camera to world)",
        "larger": "their lengths look a thousand times too small",
        "smaller": "their lengths look a thousand times too large",
        "none": "no motion at all explains it better",
    }[best]
    return (
        f"poses and depth disagree: carrying one frame's points to another misses its depth by "
        f"{100 * errors['stored']:.1f} %, and {why} ({100 * errors[best]:.1f} %)"
    )


def _errors(sequence: Dataset, first: int, second: int) -> tuple[float, ...] | None:
    """Median relative error of depth under each way to read the poses; None where the pair says nothing."""
    try:
        a, b = sequence.read(first), sequence.read(second)
    except DataError:
        return None
    if a.depth is None or b.depth is None or a.camera is None:
        return None
    motion = inverse(b.T_world_camera) @ a.T_world_camera
    backward = b.T_world_camera @ inverse(a.T_world_camera)
    ways = (motion, backward, _scaled(motion, 1e3), _scaled(motion, 1e-3), np.eye(4))
    errors = tuple(_error(a, b, T) for T in ways)
    return None if not np.isfinite(errors[0]) and not np.isfinite(errors[-1]) else errors


def _scaled(T: np.ndarray, factor: float) -> np.ndarray:
    scaled = T.copy()
    scaled[:3, 3] *= factor
    return scaled


def _error(a: Sample, b: Sample, T_b_a: np.ndarray) -> float:
    """Median |z moved - z there| / z there over the points that fall into b's known depth; 1 where none does."""
    points = a.camera.back_project(a.depth)[::STRIDE, ::STRIDE].reshape(-1, 3).astype(np.float64)
    points = points[np.isfinite(points).all(1)] @ T_b_a[:3, :3].T + T_b_a[:3, 3]
    pixels = b.camera.project(points)
    height, width = b.depth.shape
    seen = np.isfinite(pixels).all(1)
    seen[seen] = ((pixels[seen] > -0.5) & (pixels[seen] < (width - 0.5, height - 0.5))).all(1)
    x, y = np.rint(pixels[seen]).astype(int).T
    there = b.depth[y, x]
    known = np.isfinite(there)
    if known.sum() < 50:
        return 1.0
    return float(np.median(np.abs(points[seen][known, 2] - there[known]) / there[known]))
