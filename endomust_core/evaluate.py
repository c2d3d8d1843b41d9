"""A model and a data set with ground truth → report.json, images.jsonl and the frames worth a look.

Depth per image beside three baselines, its steadiness from frame to frame, motion and intrinsics per sequence, under
the protocol of the data set. One image at a time: memory does not grow with the length of the data.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np

from endomust_core import __version__, corruptions
from endomust_core.baselines import BASELINES, centre_is_far, constant_depth, inverse_square_brightness
from endomust_core.corruptions import SEVERITIES
from endomust_core.data import Dataset
from endomust_core.depth_scores import ALL
from endomust_core.evaluation_run import MODEL, EvaluationError, Run, Shown, chosen
from endomust_core.motion_scores import evo_version
from endomust_core.predictions import CachedPredictor, Predictor, TimedPredictor
from endomust_core.resources import versions

__all__ = ["BASELINES", "constant_depth", "centre_is_far", "inverse_square_brightness"]  # they lived here first
__all__ += ["Evaluation", "EvaluationError", "Shown", "evaluate", "markdown"]

FORMAT = 1
TASKS = ("depth", "pose", "intrinsics")
SCALINGS = ("median", "none")
COLUMNS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "scale_std", "images")


@dataclass
class Evaluation:
    """What `evaluate` found: the content of report.json and a few frames for pictures."""

    report: dict
    shown: list[Shown] = field(default_factory=list)


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    *,
    tasks: Sequence[str] | None = None,
    scaling: str | None = None,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    corruption: str | tuple[str, int] | None = None,
    limit: int = 0,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score `predictor` and the baselines on `dataset`; lengths in metres, angles in radians.

    tasks: of depth, pose and intrinsics (default: what the data set has truth for). scaling: "median" per image, or
    "none" for metric models (default: the protocol's); baselines are always scaled. cache: folder of predictions kept
    for the next time. out: folder for report.json and images.jsonl, which appear when they are complete. corruption:
    "smoke:3" or ("smoke", 3) scores corrupted images only; "smoke", "smoke,blood" or "all" scores clean images and then
    all five severities of each (`degradation`). limit: only the first so many images of every sequence. `command` is
    noted in the report. `progress(done, announced)` counts images.

    Images that are missing, broken or without truth are counted in `problems`, and `complete` is then False. Raises
    EvaluationError for wrong arguments, where nothing at all can be scored, and for a full disk.
    """
    tasks = _checked_tasks(tasks, dataset)
    scaling = dataset.protocol.scaling if scaling is None else scaling
    if scaling not in SCALINGS:
        raise EvaluationError(f"scaling is '{scaling}'; use 'median' or 'none'")
    fixed, degrading = parse_corruption(corruption)
    timed = TimedPredictor(predictor)
    asked = timed if cache is None else CachedPredictor(timed, cache)
    count = sum(len(numbers) for numbers in chosen(dataset, limit).values())
    announced = count * (1 + len(degrading) * len(SEVERITIES))
    progress = progress or (lambda done, announced: None)
    with _rows_file(out) as write:
        run = Run(asked, dataset, tasks, scaling, fixed, limit, BASELINES, write)
        run.all(lambda done: progress(done, announced))
        if not run.images:
            raise EvaluationError(f"none of {count} images can be read; the first: {run.problems.first()}")
        degradation, sentences = None, run.problems.sentences()
        if degrading:
            degradation, worse = _degradation(run, degrading, lambda done: progress(count + done, announced))
            sentences += worse
    report = {
        "format": FORMAT,
        "model": _model(predictor),
        "data": _data(dataset, run, limit),
        "tasks": list(tasks),
        "scaling": scaling,
        "corruption": None if fixed is None else {"name": fixed[0], "severity": fixed[1]},
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
        **run.results(),
        "latency": _latency(timed),
        "predictions": {"kept": asked.hits, "new": asked.misses} if cache is not None else None,
        "degradation": degradation,
        "notes": run.notes() + _model_notes(predictor, scaling, tasks, run),
        "problems": sentences,
        "complete": not sentences,
    }
    shown = run.shown()
    if out is not None:
        _write_atomically(Path(out) / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    return Evaluation(report, shown)


def parse_corruption(asked: str | tuple[str, int] | None) -> tuple[tuple[str, int] | None, list[str]]:
    """What `evaluate` was asked for → (one name and severity or None, names to degrade by); EvaluationError."""
    if asked is None or asked == "":
        return None, []
    if not isinstance(asked, str):
        name, severity = asked
    elif asked == "all":
        return None, list(corruptions.CORRUPTIONS)
    elif ":" not in asked:
        names = [name.strip() for name in asked.split(",")]
        for name in names:
            _check_known(name)
        return None, list(dict.fromkeys(names))
    else:
        name, _, severity = asked.partition(":")
    _check_known(name)
    if str(severity) not in [str(known) for known in SEVERITIES]:
        raise EvaluationError(f"the severity of {name} is {severity!r}; write {name}:1 (slight) to {name}:5 (severe)")
    return (name, int(severity)), []


def _check_known(name: str) -> None:
    try:
        corruptions.corruption(name)
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def markdown(table: dict) -> str:
    """The `depth` part of a report as Markdown, lengths in millimetres; a single sequence stands for `all`."""
    lines = [
        "| predictor | group | AbsRel | SqRel [mm] | RMSE [mm] | RMSElog | δ<1.25 | scale std | images |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for predictor, groups in table.items():
        for group, row in groups.items():
            if group == ALL and len(groups) == 2:
                continue
            values = [1e3 * row[key] if key in ("sq_rel", "rmse") else row[key] for key in COLUMNS]
            cells = [f"{value:.3f}" for value in values[:-1]] + [str(values[-1])]
            lines.append(f"| {predictor} | {group} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def environment() -> dict:
    """What the numbers were computed with."""
    optional = versions(("onnxruntime", "onnxruntime-gpu", "tensorrt", "torch"))
    packages = {"numpy": np.__version__, "opencv": cv2.__version__, **optional}
    evo = evo_version()
    return {
        "endomust": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "packages": packages,
        "trajectories_by": f"evo {evo}" if evo else "endomust_core.metrics (pip install evo to have them from evo)",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _degradation(clean: Run, names: list[str], progress: Callable[[int], None]) -> tuple[dict, list[str]]:
    """Every severity of every named corruption, the model alone → `degradation` of the report, and new problems."""
    table, problems, done = {"clean": _short(clean)}, [], 0
    for name in names:
        table[name] = {}
        for severity in SEVERITIES:
            run = clean.corrupted(name, severity)
            run.all(lambda count, before=done: progress(before + count))
            done += sum(len(numbers) for numbers in chosen(run.dataset, run.limit).values())
            table[name][str(severity)] = _short(run)
            problems += [f"{name} {severity}: {words}" for words in run.problems.sentences(beside=clean.problems)]
    return table, problems


def _short(run: Run) -> dict:
    """abs_rel, a1, scale_std, aligned_change, ate_5frame [m] and images of a run; None for what it does not have."""
    found = run.results()
    depth = found["depth"].get(MODEL, {}).get(ALL, {})
    return {
        **{key: depth.get(key) for key in ("abs_rel", "a1", "scale_std")},
        "aligned_change": found["temporal"].get(ALL, {}).get("aligned_change"),
        "ate_5frame": found["motion"].get(ALL, {}).get("ate_5frame"),
        "images": run.images,
    }


def _checked_tasks(tasks: Sequence[str] | None, dataset: Dataset) -> tuple[str, ...]:
    if tasks is None:
        return tuple(task for task in TASKS if task in dataset.tasks)
    for task in [tasks] if isinstance(tasks, str) else tasks:
        if task not in TASKS:
            raise EvaluationError(f"the task '{task}' is unknown; choose from {', '.join(TASKS)}")
        if task not in dataset.tasks:
            has = ", ".join(dataset.tasks) or "nothing"
            raise EvaluationError(f"{dataset.name} at {dataset.root} has no truth for '{task}', only for {has}")
    return tuple(task for task in TASKS if task in tasks)


def _model(predictor: Predictor) -> dict:
    keys = ("name", "version", "digest", "backend", "path", "metric")
    return {key: getattr(predictor, key, None) for key in keys}


def _data(dataset: Dataset, run: Run, limit: int) -> dict:
    protocol = asdict(dataset.protocol)
    protocol["crop"] = None if protocol["crop"] is None else list(protocol["crop"])
    return {
        "name": dataset.name,
        "path": str(dataset.root),
        "split": dataset.split,
        "groups": {group: len(numbers) for group, numbers in chosen(dataset, limit).items()},
        "images": run.images,
        "limit": limit,
        "protocol": protocol,
    }


def _latency(timed: TimedPredictor) -> dict:
    """Seconds per image of what really ran: p50, p95, max and calls; None where everything came from the cache."""
    table = {}
    for what, seconds in timed.seconds.items():
        values = np.asarray(seconds)
        p50, p95, most = (float(np.percentile(values, q)) for q in (50, 95, 100)) if len(values) else (None,) * 3
        table[what] = {"p50": p50, "p95": p95, "max": most, "calls": len(values)} if len(values) else None
    return table


def _model_notes(predictor: Predictor, scaling: str, tasks: Sequence[str], run: Run) -> list[str]:
    found = []
    if scaling == "none" and not predictor.metric:
        found.append("the model does not claim real metres, and was scored without scaling")
    if "intrinsics" in tasks and run.pairs and not any(motions.said_intrinsics for motions in run.motions.values()):
        found.append("the model says no intrinsics")
    return found


@contextmanager
def _rows_file(out: str | Path | None) -> Iterator[Callable[[dict], None]]:
    """A function that writes rows to out/images.jsonl, which takes its name at the end; EvaluationError in words."""
    if out is None:
        yield lambda row: None
        return
    path = Path(out) / "images.jsonl"
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            yield lambda row: file.write(json.dumps(row, allow_nan=False) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise _in_words(error, Path(out)) from error
    finally:
        part.unlink(missing_ok=True)


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise _in_words(error, path.parent) from error
    finally:
        part.unlink(missing_ok=True)


def _in_words(error: OSError, out: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EvaluationError(f"the disk of {out} is full; make room or give another --out, predictions are kept")
    return EvaluationError(f"cannot write to {out} ({error.strerror}); give another --out")
