"""Predicted and true motions of a sequence, frame to frame -> errors of windows, steps and the whole trajectory.

Windows are scored by `metrics`, steps and the whole trajectory by `evo` where it is installed (pip install
'endomust_ros[evaluate]'), else by `metrics` too: the definitions are the same and the tests hold them together.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable

import numpy as np

from endomust_core.metrics import (
    align,
    ate_5frame,
    ate_rmse,
    chained_poses,
    relative_pose_error,
    sfmlearner_ate,
)

MOST_POINTS = 2000  # of a trajectory that goes into a report
KEYS = ("ate_5frame", "ate_5frame_std", "ate_5frame_rms", "rpe_translation", "rpe_rotation",
        "ate_full", "ate_full_se3", "length", "rotation_error")  # fmt: skip
log = logging.getLogger(__name__)


class Motions:
    """What a sequence says of the camera's motion, in pieces without a gap; 256 bytes per frame, so it may be long."""

    def __init__(self):
        self.pieces: list[tuple[array, array]] = []  # 16 numbers per predicted and per true T_prev_curr
        self.intrinsics = np.zeros(4)
        self.said_intrinsics = 0
        self.true_intrinsics: np.ndarray | None = None
        self._open = False

    def cut(self) -> None:
        """The next motion does not start where the last one ended."""
        self._open = False

    def add(self, pred: np.ndarray, true: np.ndarray) -> None:
        """One more step: predicted and true (4,4) T_prev_curr [m]."""
        if not self._open:
            self.pieces.append((array("d"), array("d")))
            self._open = True
        for numbers, T in zip(self.pieces[-1], (pred, true), strict=True):
            numbers.extend(np.asarray(T, np.float64).ravel())

    def add_intrinsics(self, said: np.ndarray) -> None:
        """Intrinsics (4,) predicted from one pair: they are averaged over the sequence."""
        self.intrinsics = self.intrinsics + said
        self.said_intrinsics += 1

    def __len__(self) -> int:
        return sum(len(pred) // 16 for pred, _ in self.pieces)

    def motions(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(predicted, true) motions, (M,4,4) each, of every piece."""
        return [tuple(np.array(numbers).reshape(-1, 4, 4) for numbers in piece) for piece in self.pieces]

    def scores(self) -> tuple[dict, dict]:
        """Errors of the sequence [m, rad], and its trajectory {truth, estimate} after alignment with scale.

        Windows and steps are those of all pieces; the whole trajectory is the longest piece, of `frames` frames.
        """
        pieces = self.motions()
        pred, true = max(pieces, key=lambda piece: len(piece[0]))
        whole = whole_trajectory(pred, true)
        row = {key: None for key in KEYS} | _windows(pieces) | whole["errors"]
        row["frames"], row["pieces"] = len(pred) + 1, len(pieces)
        row["length"] = float(np.linalg.norm(np.diff(whole["truth"], axis=0), axis=1).sum())
        thin = thinned(len(whole["truth"]))
        return row, {key: np.round(whole[key][thin], 7).tolist() for key in ("truth", "estimate")}

    def intrinsics_row(self) -> dict | None:
        """Predicted, true and relative error, each fx/W, fy/H, cx/W, cy/H; None where none were predicted."""
        if not self.said_intrinsics:
            return None
        said, true = self.intrinsics / self.said_intrinsics, self.true_intrinsics
        error = None if true is None else (np.abs(said - true) / np.abs(true)).tolist()
        return {
            "predicted": said.tolist(),
            "true": None if true is None else true.tolist(),
            "relative_error": error,
            "pairs": self.said_intrinsics,
        }


def _windows(pieces: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Five-frame errors over the windows of all pieces."""
    published = [sfmlearner_ate(*piece) for piece in pieces]
    honest = [ate_5frame(*piece) for piece in pieces]
    counts = [max(len(pred) - 1, 1) for pred, _ in pieces]
    mean = _weighted((row["ate"] for row in published), counts)
    square = _weighted((row["std"] ** 2 + row["ate"] ** 2 for row in published), counts)
    return {
        "ate_5frame": mean,
        "ate_5frame_std": float(np.sqrt(max(square - mean**2, 0))),
        "ate_5frame_rms": _weighted((row["ate_rms"] for row in honest), [len(pred) for pred, _ in pieces]),
        "rotation_error": _weighted((row["rotation"] for row in published), counts),
    }


def _weighted(values: Iterable[float], counts: list[int]) -> float:
    return float(np.average(list(values), weights=counts))


def whole_trajectory(pred: np.ndarray, true: np.ndarray) -> dict:
    """Motions (M,4,4) -> {errors: {ate_full, ate_full_se3, rpe_…}, truth, estimate: (M+1,3) [m], by}.

    Root mean squares. `ate_full` after alignment with scale, `ate_full_se3` without; steps are compared at the scale of
    that alignment. `by` names who computed them.
    """
    p, g = chained_poses(pred), chained_poses(true)
    scale, R, t = align(p[:, :3, 3], g[:, :3, 3])
    estimate = scale * p[:, :3, 3] @ R.T + t
    errors = _by_evo(p, g)
    by = "evo"
    if errors is None:
        steps = relative_pose_error(pred, true, scale)
        errors = {
            "ate_full": ate_rmse(p[:, :3, 3], g[:, :3, 3]),
            "ate_full_se3": ate_rmse(p[:, :3, 3], g[:, :3, 3], with_scale=False),
            "rpe_translation": steps["translation"],
            "rpe_rotation": steps["rotation"],
        }
        by = "endomust_core.metrics"
    return {"errors": errors, "truth": g[:, :3, 3], "estimate": estimate, "by": by}


def _by_evo(pred: np.ndarray, true: np.ndarray) -> dict[str, float] | None:
    """The errors of (N,4,4) poses as evo computes them; None where it is not installed or refuses the path.

    It refuses straight and still paths, whose rotation cannot be told; their error is defined all the same.
    """
    if evo_version() is None:
        return None
    from evo.core.geometry import GeometryException
    from evo.core.metrics import APE, RPE, PoseRelation, StatisticsType
    from evo.core.trajectory import PosePath3D

    def error(metric, estimate):
        metric.process_data((truth, estimate))
        return float(metric.get_statistic(StatisticsType.rmse))

    truth = PosePath3D(poses_se3=list(true))
    scaled, rigid = PosePath3D(poses_se3=list(pred)), PosePath3D(poses_se3=list(pred))
    try:
        scaled.align(truth, correct_scale=True)
        rigid.align(truth)
    except GeometryException as refusal:
        log.debug("evo does not align this trajectory (%s); endomust_core.metrics does", refusal)
        return None
    return {
        "ate_full": error(APE(PoseRelation.translation_part), scaled),
        "ate_full_se3": error(APE(PoseRelation.translation_part), rigid),
        "rpe_translation": error(RPE(PoseRelation.translation_part), scaled),
        "rpe_rotation": error(RPE(PoseRelation.rotation_angle_rad), scaled),
    }


def evo_version() -> str | None:
    """The version of evo that scores whole trajectories, None where it is not installed."""
    try:
        import evo
    except ImportError:
        return None
    return evo.__version__.removeprefix("v")


def thinned(count: int, most: int = MOST_POINTS) -> np.ndarray:
    """Numbers of at most `most` of `count` points, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def mean_row(rows: list[dict]) -> dict:
    """The unweighted mean over sequences; `frames`, `pieces` and `length` are summed. What no sequence has is None."""
    table = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        summed = key in ("frames", "pieces", "length")
        table[key] = (sum(values) if summed else float(np.mean(values))) if values else None
    return table


def mean_intrinsics(rows: list[dict]) -> dict:
    """The mean over sequences of `intrinsics_row`, entry by entry, over the sequences that have it."""
    table = {"pairs": sum(row["pairs"] for row in rows)}
    for key in ("predicted", "true", "relative_error"):
        known = [row[key] for row in rows if row[key] is not None]
        table[key] = np.mean(known, axis=0).tolist() if known else None
    return table
