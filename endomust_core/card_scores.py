"""Models × data sets → the numbers of a model card: scores with intervals over sequences, mean ± sd over seeds.

Lengths in metres, angles in radians. Frames of one sequence show nearly the same, so every 95 % interval comes from
drawing whole sequences again, not from images taken one by one.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from endomust_core.bootstrap import block_bootstrap
from endomust_core.card_protocol import Group
from endomust_core.compare import CompareError, read_run
from endomust_core.data import DataError, Dataset, open_dataset
from endomust_core.evaluate import EvaluationError, evaluate
from endomust_core.evaluation_run import MODEL, Shown
from endomust_core.predictions import Predictor

ALL = "all"
OF_MODEL, OF_BASELINES = ("abs_rel", "a1", "rmse"), ("abs_rel",)
MOTION = ("ate_5frame", "ate_5frame_rms", "ate_full", "drift", "length", "rpe_translation", "rpe_rotation")
OVER_SEEDS = ("abs_rel", "a1", "scale_std", "ate_5frame", "ate_full", "fx")
log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass
class Scored:
    """What one model is worth on one data set: numbers as card.json has them, and frames worth a look."""

    numbers: dict
    shown: Sequence[Shown] = ()


class Scorer:
    """Scores models on data sets, each pair once; data sets stay open, a folder `cache` keeps predictions."""

    def __init__(self, cache: str | Path | None = None, progress: Callable[[], Progress] | None = None):
        self.cache, self.progress = cache, progress
        self._datasets: dict[str, Dataset | str] = {}  # or why there is none
        self._known: dict[tuple[str, str, str], Scored] = {}

    def score(self, predictor: Predictor, group: Group) -> Scored:
        """Numbers of one model on one data set; `at_hand` is False where it cannot be scored, `problems` say why."""
        key = predictor.digest, predictor.backend, group.name
        if key not in self._known:
            log.info("%s on %s", predictor.name, group.name)
            self._known[key] = self._score(predictor, group)
        return self._known[key]

    def over_seeds(
        self, paths: Sequence[str | Path], open_model: Callable[[Path], Predictor], groups: Sequence[Group]
    ) -> dict:
        """Models of one recipe → {models, missing: paths, groups: {group: {metric: {mean, sd, values}}}}."""
        there = [path for path in paths if Path(path).exists()]
        values: dict[str, dict[str, list[float]]] = {group.name: {} for group in groups}
        for path in there:
            predictor = open_model(Path(path))
            for group in groups:
                found = self.score(predictor, group).numbers
                for key in OVER_SEEDS:
                    if (value := value_of(found, key)) is not None:
                        values[group.name].setdefault(key, []).append(value)
        return {
            "models": [str(path) for path in there],
            "missing": [str(path) for path in paths if path not in there],
            "groups": {name: {key: mean_and_sd(some) for key, some in found.items()} for name, found in values.items()},
        }

    def under_faults(self, predictor: Predictor, group: Group, faults: Sequence[str], limit: int) -> dict | None:
        """AbsRel {clean, and each fault} of the first `limit` images of every sequence; None where absent."""
        if not faults or not self.score(predictor, group).numbers["at_hand"]:
            return None
        found = {}
        for fault in ("", *faults):
            log.info("%s on %s %s", predictor.name, group.name, fault)
            report = evaluate(
                predictor,
                self._dataset(group),
                tasks=["depth"],
                scaling=group.scaling or None,
                cache=self.cache,
                corruption=fault,
                limit=limit,
                progress=self.progress() if self.progress else None,
            ).report
            found[fault or "clean"] = report["depth"].get(MODEL, {}).get(ALL, {}).get("abs_rel")
        return found

    def _score(self, predictor: Predictor, group: Group) -> Scored:
        dataset = self._dataset(group)
        if isinstance(dataset, str):
            return _absent(dataset)
        if "depth" not in dataset.tasks:
            return _absent("not scored (it has no true depth)")
        tasks = [task for task in dataset.tasks if task == "depth" or has_motion(predictor)]
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = evaluate(
                    predictor,
                    dataset,
                    tasks=tasks,
                    scaling=group.scaling or None,
                    cache=self.cache,
                    out=folder,
                    limit=group.limit,
                    progress=self.progress() if self.progress else None,
                )
                rows = read_run(Path(folder)).rows
        except (EvaluationError, CompareError) as error:
            return _absent(f"not scored ({error})")
        return Scored(numbers(found.report, rows), found.shown)

    def _dataset(self, group: Group) -> Dataset | str:
        if group.name not in self._datasets:
            try:
                self._datasets[group.name] = open_dataset(group.data, group.split or None)
            except DataError as error:
                self._datasets[group.name] = f"not at hand ({str(error).splitlines()[0].removesuffix('; expected')})"
        return self._datasets[group.name]


def numbers(report: Mapping, rows: Mapping[str, Mapping[str, Mapping]]) -> dict:
    """A report of `evaluate` and its rows {predictor: {image: row}} → the numbers of one data set.

    Scores are {value, interval}; the interval is None where there is one image, and `interval_over` says what was
    drawn: sequences, or frames of the only one. Motion and scale_std are means over sequences.
    """
    depth, protocol = report["depth"], report["data"]["protocol"]
    sequences = {name: row for name, row in depth[MODEL].items() if name != ALL}
    motion = {name: row | {"drift": _drift(row)} for name, row in report["motion"].items() if name != ALL}
    moved = {key: {g: [row[key]] for g, row in motion.items() if row[key] is not None} for key in MOTION}
    several = {name: [row["scale_std"]] for name, row in sequences.items() if row["images"] > 1}
    return {
        "at_hand": True,
        "problems": list(report["problems"]),
        "notes": list(report["notes"]),
        "images": depth[MODEL][ALL]["images"],
        "sequences": len(sequences),
        "interval_over": "sequences" if len(sequences) > 1 else "frames",
        "scaling": report["scaling"],
        "range_m": [protocol["min_depth"], protocol["max_depth"]],
        "protocol_note": protocol["note"],
        "depth": {
            name: {
                key: with_interval(_by_sequence(rows[name], key))
                for key in (OF_MODEL if name == MODEL else OF_BASELINES)
            }
            for name in depth
        },
        "scale_std": with_interval(several) if several else None,
        "ratio": float(np.median([row["ratio"] for row in rows[MODEL].values()])),
        "motion": {key: with_interval(values) for key, values in moved.items() if values},
        "intrinsics": report["intrinsics"].get(ALL, {}).get("relative_error"),
        "temporal": report["temporal"].get(ALL),
        "curves": report["curves"],
        "by_sequence": {
            name: {key: row[key] for key in (*OF_MODEL, "scale_std", "images")}
            | {key: motion[name][key] for key in MOTION if name in motion}
            for name, row in sequences.items()
        },
    }


def with_interval(values_by_sequence: Mapping[str, Sequence[float]]) -> dict:
    """Values of each sequence in order of time → {value: their mean, interval: 95 % [lower, upper] or None}."""
    value, lower, upper = block_bootstrap(values_by_sequence, resample_groups=True)
    return {"value": value, "interval": [lower, upper] if np.isfinite([lower, upper]).all() else None}


def value_of(found: Mapping, key: str) -> float | None:
    """One score out of the numbers of a data set; None where it has none."""
    if not found["at_hand"]:
        return None
    if key == "fx":  # relative error of the focal length
        return found["intrinsics"][0] if found["intrinsics"] else None
    if key == "scale_std":
        cell = found["scale_std"]
    else:
        cell = found["motion"].get(key) if key in MOTION else found["depth"][MODEL].get(key)
    return None if cell is None else cell["value"]


def mean_and_sd(values: Sequence[float]) -> dict:
    """{mean, sd: with n - 1, None for one value, values}."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "values": list(values)}


def has_motion(predictor: Predictor) -> bool:
    """Whether the model says how the camera moves: it is asked, with two grey images."""
    grey = np.full((56, 70, 3), 128, np.uint8)
    return predictor.motion(grey, grey) is not None


def _by_sequence(rows: Mapping[str, Mapping], key: str) -> dict[str, list[float]]:
    """Rows of one predictor → sequence → its values in order of time."""
    found: dict[str, list[float]] = {}
    for row in sorted(rows.values(), key=lambda row: (row["group"], row["index"])):
        found.setdefault(row["group"], []).append(row[key])
    return found


def _drift(row: Mapping) -> float | None:
    """Error of the whole path by its length."""
    return row["ate_full"] / row["length"] if row["ate_full"] is not None and row["length"] else None


def _absent(reason: str) -> Scored:
    return Scored({"at_hand": False, "problems": [reason]})
