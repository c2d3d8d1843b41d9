"""Depth images and their truth, one at a time -> the table of scores, and error against distance and brightness.

Per image only its eleven numbers are kept, so that a data set may be as long as it likes.
"""

from __future__ import annotations

from array import array

import numpy as np

from endomust_core.baselines import LUMINANCE
from endomust_core.metrics import mean_interval, scale_ratio_std

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "a2", "a3", "ratio", "coverage")
WITH_INTERVAL = ("abs_rel", "sq_rel", "rmse", "rmse_log", "a1")
BINS = 16
ALL = "all"  # the group that stands for every image


class DepthScores:
    """Scores per predictor and sequence."""

    def __init__(self):
        self._columns: dict[str, dict[str, dict[str, array]]] = {}

    def add(self, predictor: str, group: str, metrics: dict[str, float]) -> None:
        """The metrics of one image."""
        columns = self._columns.setdefault(predictor, {}).setdefault(group, {})
        for key in METRICS:
            columns.setdefault(key, array("d")).append(metrics[key])

    def values(self, predictor: str, key: str) -> np.ndarray:
        """One metric of every image, in the order of the sequences and of time."""
        groups = self._columns.get(predictor, {}).values()
        return np.concatenate([np.asarray(columns[key]) for columns in groups]) if groups else np.zeros(0)

    def table(self) -> dict[str, dict[str, dict]]:
        """{predictor: {group: means, scale_std, images, ci95}}, the group "all" last: the mean over images."""
        found = {}
        for predictor, groups in self._columns.items():
            found[predictor] = {group: _row(groups[group]) for group in sorted(groups)}
            every = {key: np.concatenate([np.asarray(columns[key]) for columns in groups.values()]) for key in METRICS}
            found[predictor][ALL] = _row(every)
        return found


def _row(columns: dict) -> dict:
    return {
        **{key: float(np.mean(columns[key])) for key in METRICS},
        "scale_std": scale_ratio_std(columns["ratio"]),
        "images": len(columns["ratio"]),
        "ci95": {key: _interval(columns[key]) for key in WITH_INTERVAL},
    }


def _interval(values) -> list[float] | None:
    interval = mean_interval(values)
    return None if interval is None else list(interval)


class Curve:
    """Mean |error| / truth over pixels, in bins of another quantity of the pixel."""

    def __init__(self, edges: np.ndarray):
        self.edges = np.asarray(edges, dtype=np.float64)
        self._sum = np.zeros(len(self.edges) - 1)
        self._pixels = np.zeros(len(self.edges) - 1, dtype=np.int64)

    def add(self, quantity: np.ndarray, error: np.ndarray) -> None:
        """Pixels (N,) with their quantity and relative error; what lies outside the edges is not counted."""
        bins = np.searchsorted(self.edges, quantity, side="right") - 1
        bins[quantity == self.edges[-1]] = len(self._sum) - 1
        inside = (bins >= 0) & (bins < len(self._sum))
        self._sum += np.bincount(bins[inside], weights=error[inside], minlength=len(self._sum))
        self._pixels += np.bincount(bins[inside], minlength=len(self._sum))

    def table(self) -> dict[str, list]:
        """{edges, abs_rel, pixels}; abs_rel is None in bins without pixels."""
        means = [float(s / n) if n else None for s, n in zip(self._sum, self._pixels, strict=True)]
        return {"edges": self.edges.tolist(), "abs_rel": means, "pixels": self._pixels.tolist()}


class Curves:
    """Error of the model against distance [m] and against brightness 0..255."""

    def __init__(self, min_depth: float, max_depth: float):
        self.limits = min_depth, max_depth
        nearest = max(min_depth, max_depth / 50)
        self.distance = Curve([min_depth, *np.geomspace(nearest, max_depth, BINS)[int(nearest == min_depth) :]])
        self.brightness = Curve(np.linspace(0, 255, BINS + 1))

    def add(self, rgb: np.ndarray, depth: np.ndarray, truth: np.ndarray) -> None:
        """One image: depth (H,W) [m] as it was scored, NaN where it says nothing."""
        low, high = self.limits
        counted = (truth > low) & (truth < high) & np.isfinite(depth)
        true, said = truth[counted].astype(np.float64), depth[counted]
        error = np.abs(said - true) / true
        self.distance.add(true, error)
        self.brightness.add(rgb[counted] @ LUMINANCE, error)

    def table(self) -> dict:
        """{distance: …, brightness: …} as the report holds them."""
        return {"distance": self.distance.table(), "brightness": self.brightness.table()}


def as_scored(depth: np.ndarray, ratio: float, min_depth: float, max_depth: float) -> np.ndarray:
    """(H,W) depth after the scaling and clamping that its scores were computed with; NaN stays NaN [m]."""
    with np.errstate(invalid="ignore"):
        valid = np.isfinite(depth) & (depth > 0)
        return np.where(valid, np.clip(depth * ratio, min_depth, max_depth), np.nan).astype(np.float32)
