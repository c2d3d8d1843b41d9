"""One walk through a data set with one model: every image once, in order of time → sums, scores and numbers.

Of images only the last one is kept, of each image its scores, of each frame its motion: what is held does not grow with
the pixels of the data.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from endomust_core.corruptions import corrupt, keeps, seed_of
from endomust_core.data import DataError, Dataset, Sample
from endomust_core.depth_scores import ALL, METRICS, Curves, DepthScores, as_scored
from endomust_core.estimator import to_depth
from endomust_core.metrics import depth_metrics, temporal_change
from endomust_core.motion_scores import Motions, mean_intrinsics, mean_row
from endomust_core.odometry import inverse
from endomust_core.predictions import Predictor

MODEL = "model"  # the predictor beside the baselines
SHOWN_EACH = 2  # best, median and worst frames
DROPPED = "dropped_frames"  # the corruption that acts on the sequence
log = logging.getLogger(__name__)


class EvaluationError(ValueError):
    """The evaluation cannot be done as asked; the message says what to change."""


@dataclass(frozen=True)
class Shown:
    """A frame worth a look: depth (H,W) [m] scaled as it was scored and truth (H,W) [m], NaN where unknown."""

    caption: str
    kind: str  # best | median | worst
    rgb: np.ndarray
    depth: np.ndarray
    truth: np.ndarray
    abs_rel: float


def chosen(dataset: Dataset, limit: int = 0) -> dict[str, Sequence[int]]:
    """Sequence → numbers of its images, in order of time; at most the first `limit` of each."""
    return {group: numbers[:limit] if limit else numbers for group, numbers in dataset.groups().items()}


class Run:
    """One walk through the data set; keeps sums and numbers, and of images only the last one."""

    def __init__(
        self,
        predictor: Predictor,
        dataset: Dataset,
        tasks: Sequence[str],
        scaling: str,
        corruption: tuple[str, int] | None,
        limit: int,
        baselines: dict[str, Callable[[np.ndarray], np.ndarray]],
        write: Callable[[dict], None],
    ):
        self.predictor, self.dataset, self.tasks, self.scaling = predictor, dataset, tuple(tasks), scaling
        self.corruption, self.limit, self.baselines, self.write = corruption, limit, baselines, write
        self.protocol = dataset.protocol
        # Without any truth there is still something to say of depth: how steady it is, and how long it takes.
        self.sees_depth = "depth" in tasks or not tasks
        self.sees_motion = "pose" in tasks or "intrinsics" in tasks
        self.depth = DepthScores()
        self.curves = Curves(self.protocol.min_depth, self.protocol.max_depth)
        self.changes: dict[str, Means] = {}
        self.motions: dict[str, Motions] = {}
        self.scored: list[tuple[float, int, str, str, float]] = []  # abs_rel, number, name, group, ratio
        self.problems = Problems()
        self.steps: dict[str, int] = {}  # usual distance between frames of a sequence: more is a gap
        self.images = self.dropped = self.pairs = 0
        self._previous: Seen | None = None

    def corrupted(self, name: str, severity: int) -> Run:
        """The same walk over corrupted images, the model alone."""
        corruption, nowhere = (name, severity), lambda row: None
        return Run(self.predictor, self.dataset, self.tasks, self.scaling, corruption, self.limit, {}, nowhere)

    def all(self, progress: Callable[[int], None]) -> None:
        """Every chosen image of every sequence, in order of time."""
        done = 0
        for group, numbers in chosen(self.dataset, self.limit).items():
            self._previous = None
            self.steps[group] = usual_step([self.dataset.items[number].index for number in numbers])
            for number in numbers:
                sample = self._read(number)
                if sample is not None:
                    self._take(sample, number, group)
                done += 1
                progress(done)

    def _read(self, number: int) -> Sample | None:
        try:
            needs_truth = "depth" in self.tasks
            return self.dataset[number] if needs_truth else self.dataset.read(number, depth=False)
        except DataError as error:
            self.problems.add("images cannot be read", str(error))
            return None

    def _take(self, sample: Sample, number: int, group: str) -> None:
        """Everything there is to say of one image."""
        if self.corruption is not None:
            name, severity = self.corruption
            if name == DROPPED and not keeps(sample.index, severity, seed_of(group)):
                self.dropped += 1
                if self._previous is not None:
                    self._previous.bridged += 1
                return
            rgb = corrupt(sample.rgb, name, severity, seed_of(group))
        else:
            rgb = sample.rgb
        self.images += 1
        now = Seen(sample.index, rgb, sample.T_world_camera)
        linked = self._previous is not None and self._previous.leads_to(now, self.steps[group])
        if self.sees_depth:
            self._take_depth(sample, now, number, group, linked)
        if self.sees_motion:
            self._take_motion(sample, now, group, linked)
        self._previous = now

    def _take_depth(self, sample: Sample, now: Seen, number: int, group: str, linked: bool) -> None:
        disparity = self.predictor.disparity(now.rgb)
        truth = self._truth(sample)
        now.depth = to_depth(disparity, *disparity.shape[::-1])
        if truth is not None:
            size = disparity.shape[::-1]
            now.truth = cv2.resize(truth, size, interpolation=cv2.INTER_NEAREST)
        if linked:
            self._take_change(now, group)
        if "depth" not in self.tasks:
            return
        if truth is None:
            self.problems.add("images have no true depth", sample.name)
            return
        if truth.shape != now.rgb.shape[:2]:
            self.problems.add("images differ in size from their true depth", sample.name)
            return
        height, width = truth.shape
        depth = to_depth(disparity, width, height)
        ratio = self._score(MODEL, depth, truth, sample, number, group, self.scaling)
        if ratio is not None:
            self.curves.add(now.rgb, as_scored(depth, ratio, *self._limits), truth)
        for name, predict in self.baselines.items():
            self._score(name, predict(now.rgb), truth, sample, number, group, "median")

    @property
    def _limits(self) -> tuple[float, float]:
        return self.protocol.min_depth, self.protocol.max_depth

    def _truth(self, sample: Sample) -> np.ndarray | None:
        """True depth (H,W) [m], NaN where it is unknown or masked; None without any."""
        if sample.depth is None or sample.mask is None:
            return sample.depth
        return np.where(sample.mask, sample.depth, np.float32(np.nan))

    def _score(self, name: str, depth, truth, sample: Sample, number: int, group: str, scaling: str) -> float | None:
        """Score one predictor on one image → its scale ratio, None (and a problem) where nothing can be compared."""
        try:
            metrics = depth_metrics(depth, truth, *self._limits, scaling=scaling)
        except ValueError:
            if name == MODEL:
                known = np.any((truth > self._limits[0]) & (truth < self._limits[1]))
                what = "predictions hold no valid depth" if known else "images have no true depth within the limits"
                self.problems.add(what, sample.name)
            return None
        self.depth.add(name, group, metrics)
        if name == MODEL:
            self.scored.append((metrics["abs_rel"], number, sample.name, group, metrics["ratio"]))
        row = {"name": sample.name, "group": group, "index": sample.index, "predictor": name}
        self.write(row | {key: metrics[key] for key in METRICS})
        return metrics["ratio"]

    def _take_change(self, now: Seen, group: str) -> None:
        """Depth against that of the frame before, of the model and of the truth, at the size of the network."""
        means, previous = self.changes.setdefault(group, Means()), self._previous
        if previous.depth is None or previous.depth.shape != now.depth.shape:
            return
        said = temporal_change(previous.depth, now.depth)
        if said is not None:
            means.add(depth_change=said[0], aligned_change=said[1])
        if previous.truth is None or now.truth is None:
            return
        inside = [(truth > self._limits[0]) & (truth < self._limits[1]) for truth in (previous.truth, now.truth)]
        both = inside[0] & inside[1]
        true, said = temporal_change(previous.truth, now.truth, both), temporal_change(previous.depth, now.depth, both)
        if true is not None:
            means.add(true_depth_change=true[0], true_aligned_change=true[1])
        if true is not None and said is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = previous.depth / previous.truth, now.depth / now.truth
            means.add(change_error=temporal_change(*ratios, both)[1])

    def _take_motion(self, sample: Sample, now: Seen, group: str, linked: bool) -> None:
        motions = self.motions.setdefault(group, Motions())
        if sample.camera is not None and motions.true_intrinsics is None:
            motions.true_intrinsics = normalised_intrinsics(sample.camera)
        if not linked:
            motions.cut()
            return
        self.pairs += 1
        found = self.predictor.motion(self._previous.rgb, now.rgb)
        if found is None:
            raise EvaluationError(
                "this model has no network for the motion of the camera; leave out the tasks pose and intrinsics, "
                "or give a bundle or run with one"
            )
        T_prev_curr, intrinsics = found
        if intrinsics is not None:
            motions.add_intrinsics(np.asarray(intrinsics, np.float64))
        if self._previous.T is None or now.T is None:
            motions.cut()
            if "pose" in self.tasks:
                self.problems.add("images have no true pose", sample.name)
        elif not np.isfinite(T_prev_curr).all():
            motions.cut()
            self.problems.add("predicted motions are not finite", sample.name)
        else:
            motions.add(T_prev_curr, inverse(self._previous.T) @ now.T)

    def results(self) -> dict:
        """depth, temporal, motion, intrinsics, curves and trajectories of the report."""
        rows, trajectories = {}, {}
        if "pose" in self.tasks:
            moved = {group: motions for group, motions in sorted(self.motions.items()) if len(motions)}
            for group, motions in moved.items():
                rows[group], trajectories[group] = motions.scores()
            if rows:
                rows[ALL] = mean_row(list(rows.values()))
        said = {group: motions.intrinsics_row() for group, motions in sorted(self.motions.items())}
        said = {group: row for group, row in said.items() if row is not None and "intrinsics" in self.tasks}
        if said:
            said[ALL] = mean_intrinsics(list(said.values()))
        return {
            "depth": self.depth.table(),
            "temporal": self._temporal(),
            "motion": rows,
            "intrinsics": said,
            "curves": self.curves.table() if self.scored else None,
            "trajectories": trajectories,
        }

    def _temporal(self) -> dict:
        table = {group: means.row() for group, means in sorted(self.changes.items()) if means.counts}
        if table:
            every = Means()
            for means in self.changes.values():
                every.join(means)
            table[ALL] = every.row()
        return table

    def notes(self) -> list[str]:
        """What a reader must know that is no fault."""
        found = []
        if self.limit:
            found.append(f"only the first {self.limit} images of every sequence were scored")
        apart = [f"{group} ({step})" for group, step in self.steps.items() if step > 1]
        if apart and (self.sees_motion or self.changes):
            found.append(f"frames that follow each other stand more than one apart in {listed(apart)}")
        cut = [f"{g} ({len(m.pieces)})" for g, m in self.motions.items() if len(m.pieces) > 1]
        if cut and "pose" in self.tasks:
            found.append(f"gaps cut these sequences into pieces, whose longest gives ate_full: {listed(cut)}")
        if self.sees_motion and not self.pairs:
            found.append("no two frames follow each other, so there is no motion to score")
        if self.dropped:
            found.append(f"{self.dropped} frames were dropped on purpose")
        return found

    def shown(self) -> list[Shown]:
        """Best, median and worst frames, read and predicted once more; from different sequences where there are."""
        ordered = sorted(self.scored)
        middle = len(ordered) // 2
        outwards = sorted(range(len(ordered)), key=lambda place: abs(place - middle))
        orders = {"best": ordered, "median": [ordered[place] for place in outwards], "worst": ordered[::-1]}
        groups = {entry[3] for entry in ordered}
        found, used = [], set()
        for kind, order in orders.items():
            for entry in spread(order, SHOWN_EACH, len(groups), len(ordered) // 20, used):
                used.add(entry[1])
                found.append(self._shown(kind, *entry))
        return found

    def _shown(self, kind: str, abs_rel: float, number: int, name: str, group: str, ratio: float) -> Shown:
        sample = self.dataset[number]
        rgb = sample.rgb if self.corruption is None else corrupt(sample.rgb, *self.corruption, seed_of(group))
        truth = self._truth(sample)
        depth = to_depth(self.predictor.disparity(rgb), truth.shape[1], truth.shape[0])
        low, high = self._limits
        known = np.where((truth > low) & (truth < high), truth, np.float32(np.nan))
        return Shown(name, kind, rgb, as_scored(depth, ratio, low, high), known, abs_rel)


@dataclass
class Seen:
    """The last image: what the next one is compared with."""

    index: int
    rgb: np.ndarray
    T: np.ndarray | None  # T_world_camera
    depth: np.ndarray | None = None  # (H,W) [m] at the size of the network
    truth: np.ndarray | None = None  # the same size
    bridged: int = 0  # frames dropped on purpose since

    def leads_to(self, now: Seen, step: int) -> bool:
        """Whether `now` follows without a gap of the data set's own, whose frames stand `step` apart."""
        return 0 < now.index - self.index <= step * (1 + self.bridged)


class Means:
    """Running means by name."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, **values: float) -> None:
        """One more value of each name; what is not finite is left out."""
        for name, value in values.items():
            if math.isfinite(value):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def join(self, other: Means) -> None:
        """Take in what another one has."""
        for name in other.sums:
            self.sums[name] = self.sums.get(name, 0.0) + other.sums[name]
            self.counts[name] = self.counts.get(name, 0) + other.counts[name]

    def row(self) -> dict:
        """{name: mean, pairs: how many of depth_change}; names without values are None."""
        names = ("depth_change", "aligned_change", "true_depth_change", "true_aligned_change", "change_error")
        means = {name: self.sums[name] / self.counts[name] if name in self.counts else None for name in names}
        return means | {"pairs": self.counts.get("depth_change", 0)}


class Problems:
    """What went wrong, by kind: how often, and the first examples; its size does not grow with the data."""

    EXAMPLES = 3

    def __init__(self):
        self.kinds: dict[str, list] = {}  # count, then examples

    def add(self, kind: str, example: str) -> None:
        """One more of a kind; `kind` reads on after a number, as in "images cannot be read"."""
        entry = self.kinds.setdefault(kind, [0])
        entry[0] += 1
        if entry[0] <= self.EXAMPLES:
            entry.append(example)
        log.debug("%s: %s", kind, example)

    def first(self) -> str:
        """The first example there was."""
        return next((entry[1] for entry in self.kinds.values()), "there are none")

    def sentences(self, beside: Problems | None = None) -> list[str]:
        """One sentence per kind, but for the kinds that `beside` has."""
        kinds = {kind: entry for kind, entry in self.kinds.items() if beside is None or kind not in beside.kinds}
        return [f"{entry[0]} {kind}: {listed(entry[1:], entry[0])}" for kind, entry in kinds.items()]


def usual_step(indices: Sequence[int]) -> int:
    """The most frequent distance between neighbouring frame numbers; 1 for fewer than two."""
    steps = np.diff(indices)
    steps = steps[steps > 0]
    return int(np.bincount(steps).argmax()) if len(steps) else 1


def normalised_intrinsics(camera) -> np.ndarray:
    """fx/W, fy/H, (cx+0.5)/W, (cy+0.5)/H of a camera with pixel centres at integers, as the pose network says them."""
    width, height = camera.width, camera.height
    return np.array([camera.fx / width, camera.fy / height, (camera.cx + 0.5) / width, (camera.cy + 0.5) / height])


def spread(order: list[tuple], wanted: int, groups: int, apart: int, used: set[int]) -> Iterator[tuple]:
    """The first `wanted` entries (abs_rel, number, name, group, …) that differ: by sequence, or `apart` in number."""
    taken: list[tuple] = []
    for strict in (True, False):
        for entry in order:
            if len(taken) == wanted:
                return
            near = [other for other in taken if other[3] == entry[3]]
            if groups <= 1:
                near = [other for other in near if abs(other[1] - entry[1]) < apart]
            if entry in taken or entry[1] in used or (strict and near):
                continue
            taken.append(entry)
            yield entry


def listed(words: Sequence[str], count: int | None = None, most: int = 3) -> str:
    """The first few of so many, as "a; b; c and 5 more"."""
    count = len(words) if count is None else count
    text = "; ".join(words[:most])
    return f"{text} and {count - most} more" if count > most else text
