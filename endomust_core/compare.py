"""Folders that `endomust evaluate` wrote → models side by side, paired image by image, with confidence intervals.

The first folder is the reference; a difference is that of the other minus the reference. Only images that all runs
have are compared. Intervals come from blocks of neighbouring frames (bootstrap.py), because frames of one sequence are
not independent; pairing takes out what makes an image hard for everybody.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from endomust_core.bootstrap import DRAWS, best_block, block_bootstrap
from endomust_core.corruptions import CORRUPTIONS

FORMAT = 1
ALL = "all"
OTHERS = "all, other sequences"  # the same mean, with an interval that speaks of sequences not seen
FEWEST_SEQUENCES = 3  # for that interval
METRICS = {"abs_rel": -1, "rmse": -1, "a1": 1}  # what is compared, and whether less or more is better
ANCHOR = "constant"  # this predictor looks at nothing but the truth, so it must score the same in all runs
MOST_DOTS = 2000  # pairs kept for the picture
SAME = ("name", "split")  # of the data: must be equal
RULES = ("min_depth", "max_depth", "scaling", "crop")  # of the protocol: must be equal


class CompareError(ValueError):
    """The runs cannot be compared; the message says why, and what to do."""


@dataclass
class Run:
    """One folder: its report, and {predictor: {image: row}} of its images."""

    folder: Path
    label: str
    report: dict
    rows: dict[str, dict[str, dict]]
    broken: int = 0  # lines of images.jsonl that are not rows


def compare(
    folders: Sequence[str | Path],
    *,
    metrics: Sequence[str] = tuple(METRICS),
    draws: int = DRAWS,
    block: int | None = None,
    seed: int = 0,
) -> dict:
    """Read the runs in `folders`, the first being the reference, and compare them; lengths in metres.

    Returns what compare.json holds: {format, reference, labels, runs, images, block, scores, baselines, motion,
    intrinsics, latency, degradation, dots, notes}. scores: {metric: {group: {label: {value, interval, difference,
    difference_interval, verdict, better, images}}}}, group `all` and `all, other sequences` last. CompareError for
    fewer than two folders, a folder without results, and runs whose data, protocol or scaling differ.
    """
    if len(folders) < 2:
        raise CompareError("one run has nothing to be compared with; give two or more folders of endomust evaluate")
    runs = [read_run(Path(folder)) for folder in folders]
    _name_apart(runs)
    for other in runs[1:]:
        _check_same(runs[0], other)
    images = _common(runs)
    _check_anchor(runs, images)
    labels = [run.label for run in runs]
    return {
        "format": FORMAT,
        "reference": labels[0],
        "labels": labels,
        "runs": [_run_facts(run, images) for run in runs],
        "data": runs[0].report["data"],
        "scaling": runs[0].report.get("scaling"),
        "images": sum(len(names) for names in images.values()),
        "bootstrap": {"draws": draws, "block": block, "seed": seed, "level": 0.95},
        "scores": {metric: _scores(runs, images, metric, draws, block, seed) for metric in metrics},
        "baselines": _baselines(runs[0], images, metrics),
        "motion": _side_by_side(runs, "motion", ("ate_5frame", "rpe_translation", "rpe_rotation", "ate_full")),
        "intrinsics": _side_by_side(runs, "intrinsics", ("relative_error",)),
        "latency": {run.label: (run.report.get("latency") or {}).get("depth") for run in runs},
        "degradation": {run.label: run.report["degradation"] for run in runs if run.report.get("degradation")},
        "dots": {run.label: _dots(runs[0], run, images) for run in runs[1:]},
        "notes": _notes(runs, images),
        "complete": all(run.report.get("complete", True) and not run.broken for run in runs),
    }


def read_run(folder: Path) -> Run:
    """Read report.json and images.jsonl; a line that is not a whole row is counted, not used."""
    report_path, rows_path = folder / "report.json", folder / "images.jsonl"
    for path in (report_path, rows_path):
        if not path.is_file():
            raise CompareError(f"{folder} has no {path.name}; run endomust evaluate with --out {folder} first")
    try:
        report = json.loads(report_path.read_text(encoding="utf-8"))
        report["data"]["name"], report["model"]["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise CompareError(f"{report_path} is not a report of endomust evaluate ({error}); evaluate again") from error
    run = Run(folder, "", report, {})
    with rows_path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                _take_row(run, line)
    if not run.rows.get("model"):
        raise CompareError(f"{rows_path} scores no image of a model; evaluate again with the task depth")
    return run


def markdown(comparison: Mapping) -> str:
    """All metrics as Markdown: value, difference to the reference and its 95 % interval; lengths in millimetres."""
    labels, reference = comparison["labels"], comparison["reference"]
    lines = []
    for metric, groups in comparison["scores"].items():
        head = [f"{metric_name(metric)}", reference]
        for label in labels[1:]:
            head += [label, f"minus {reference}", "95 %", "images better"]
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for group, row in groups.items():
            cells = [group, shown(row[reference]["value"], metric)]
            for label in labels[1:]:
                cells += difference_cells(row[label], metric)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines + [f"{note}." for note in comparison["notes"]]).rstrip() + "\n"


def difference_cells(cell: Mapping, metric: str) -> list[str]:
    """Value, difference with a star where its interval excludes 0, interval, share of images that are better."""
    interval = cell["difference_interval"]
    star = " *" if cell["verdict"] in ("better", "worse") else ""
    words = "–" if interval is None else " to ".join(shown(value, metric, signed=True) for value in interval)
    return [shown(cell["value"], metric), shown(cell["difference"], metric, signed=True) + star, words,
            f"{100 * cell['better']:.0f} %"]  # fmt: skip


def metric_name(metric: str) -> str:
    """As in the papers' tables."""
    names = {"abs_rel": "AbsRel", "rmse": "RMSE [mm]", "a1": "δ<1.25", "sq_rel": "SqRel [mm]", "rmse_log": "RMSElog"}
    return names.get(metric, metric)


def shown(value: float | None, metric: str, signed: bool = False) -> str:
    """A score in words; lengths in millimetres."""
    if value is None or not math.isfinite(value):
        return "–"
    length = metric in ("rmse", "sq_rel")
    return f"{value * (1e3 if length else 1):{'+' if signed else ''}.{3 if length else 4}f}"


def write(comparison: Mapping, out: str | Path) -> Path:
    """Write compare.json, compare.md and compare.html into `out`, each whole or not at all; → path of the page."""
    from endomust_core.compare_page import page

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "compare.json", json.dumps(comparison, indent=1, allow_nan=False) + "\n")
    _write(out / "compare.md", markdown(comparison))
    return _write(out / "compare.html", page(comparison))


def _write(path: Path, text: str) -> Path:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=path.suffix, delete=False) as file:
        try:
            file.write(text)
            file.flush()
        except OSError:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    return path


def _take_row(run: Run, line: str) -> None:
    try:
        row = json.loads(line)
        whole = all(math.isfinite(row[key]) for key in ("index", *METRICS)) and isinstance(row["group"], str)
        rows = run.rows.setdefault(row["predictor"], {})
    except (ValueError, KeyError, TypeError):
        whole = False
    if whole:
        rows[row["name"]] = row
    else:
        run.broken += 1


def _name_apart(runs: Sequence[Run]) -> None:
    """The model's name, with what else tells the runs apart."""
    for run in runs:
        fault, model = run.report.get("corruption"), run.report["model"]
        run.label = str(model["name"]) + (f" ({fault['name']} {fault['severity']})" if fault else "")
    for part in ("backend", "version"):
        values = [(run.report["model"].get(part) or "") for run in runs]
        if len({run.label for run in runs}) < len(runs) and len(set(values)) > 1:
            for run, value in zip(runs, values, strict=True):
                run.label = f"{run.label} {value}".strip()
    names = [run.label for run in runs]
    for run in runs:
        if names.count(run.label) > 1:
            run.label = f"{run.label} ({run.folder.name or run.folder.resolve().name})"
    names = [run.label for run in runs]
    for number, run in enumerate(runs, 1):
        if names.count(run.label) > 1:
            run.label = f"{run.label} #{number}"


def _check_same(one: Run, other: Run) -> None:
    pairs = [(f"data {key}", one.report["data"].get(key), other.report["data"].get(key)) for key in SAME]
    rules = [run.report["data"].get("protocol") or {} for run in (one, other)]
    pairs += [(f"protocol's {key}", *(rule.get(key) for rule in rules)) for key in RULES]
    pairs.append(("scaling", one.report.get("scaling"), other.report.get("scaling")))
    for what, first, second in pairs:
        if first != second:
            raise CompareError(
                f"{one.folder} and {other.folder} differ in the {what} ({first} and {second}), so their scores cannot "
                "be compared; evaluate both in the same way"
            )


def _common(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Sequence → names of the images that every run scored, in order of time."""
    names = set.intersection(*(set(run.rows["model"]) for run in runs))
    if not names:
        raise CompareError("the runs have no image in common; were they made from the same data set and split?")
    rows = sorted((runs[0].rows["model"][name] for name in names), key=lambda r: (r["group"], r["index"], r["name"]))
    images: dict[str, list[str]] = {}
    for row in rows:
        images.setdefault(row["group"], []).append(row["name"])
    return images


def _check_anchor(runs: Sequence[Run], images: Mapping[str, Sequence[str]]) -> None:
    """Runs that saw the same truth score a constant depth alike, whatever the model and the corruption."""
    first = runs[0].rows.get(ANCHOR, {})
    for other in runs[1:]:
        anchor = other.rows.get(ANCHOR, {})
        known = [name for names in images.values() for name in names if name in first and name in anchor]
        apart = [n for n in known if not math.isclose(first[n]["abs_rel"], anchor[n]["abs_rel"], rel_tol=1e-6)]
        if apart:
            raise CompareError(
                f"{runs[0].folder} and {other.folder} did not see the same truth: on {len(apart)} of {len(known)} "
                f"images of the same name ({apart[0]} is one) a constant depth scores differently; prepare the data "
                "once, and evaluate both on it"
            )


def _scores(runs, images, metric: str, draws: int, block: int | None, seed: int) -> dict:
    reference = _values(runs[0], images, metric)
    groups = {group: [group] for group in images}
    if len(images) > 1:
        groups[ALL] = list(images)
    if len(images) >= FEWEST_SEQUENCES:
        groups[OTHERS] = list(images)
    table = {}
    for group, members in groups.items():
        options = {"draws": draws, "block": block, "seed": seed, "resample_groups": group == OTHERS}
        table[group] = {}
        for run in runs:
            values = _values(run, images, metric)
            part = {name: values[name] for name in members}
            value, *interval = block_bootstrap(part, **options)
            cell = {"value": value, "interval": _known(interval), "images": sum(map(len, part.values()))}
            if run is not runs[0]:
                change = {name: values[name] - reference[name] for name in members}
                cell |= _difference(change, METRICS.get(metric, -1), options)
            table[group][run.label] = cell
    return table


def _difference(change: Mapping[str, np.ndarray], wanted: int, options: Mapping) -> dict:
    difference, *interval = block_bootstrap(change, **options)
    joined = np.concatenate(list(change.values()))
    lower, upper = interval
    verdict = "no difference shown"
    if math.isfinite(lower) and (lower > 0 or upper < 0):
        verdict = "better" if difference * wanted > 0 else "worse"
    return {
        "difference": difference,
        "difference_interval": _known(interval),
        "verdict": verdict,
        "better": float(np.mean(joined * wanted > 0)),
        "block": options["block"] or best_block(list(change.values())),
    }


def _values(run: Run, images: Mapping[str, Sequence[str]], metric: str, predictor: str = "model"):
    """{sequence: (n,) scores in order of time}."""
    rows = run.rows[predictor]
    try:
        return {g: np.array([rows[n][metric] for n in names], np.float64) for g, names in images.items()}
    except KeyError as error:
        raise CompareError(f"{run.folder} has no {metric} for every image; evaluate again ({error})") from error


def _known(interval: Sequence[float]) -> list[float] | None:
    return [float(v) for v in interval] if all(math.isfinite(v) for v in interval) else None


def _baselines(run: Run, images, metrics: Sequence[str]) -> dict:
    """{baseline: {metric: mean over the common images}} of the reference's folder."""
    names = [name for group in images.values() for name in group]
    return {
        predictor: {m: float(np.mean([rows[n][m] for n in names])) for m in metrics}
        for predictor, rows in run.rows.items()
        if predictor != "model" and all(name in rows for name in names)
    }


def _side_by_side(runs: Sequence[Run], part: str, keys: Sequence[str]) -> dict:
    """{group: {label: {key: value}}} of what the reports say per sequence."""
    table: dict[str, dict] = {}
    for run in runs:
        for group, row in (run.report.get(part) or {}).items():
            table.setdefault(group, {})[run.label] = {key: row.get(key) for key in keys}
    return table


def _dots(reference: Run, run: Run, images) -> list[list[float]]:
    """[AbsRel of the reference, of the run] per image, thinned evenly."""
    pairs = [
        [reference.rows["model"][name]["abs_rel"], run.rows["model"][name]["abs_rel"]]
        for names in images.values()
        for name in names
    ]
    return pairs[:: max(1, math.ceil(len(pairs) / MOST_DOTS))]


def _run_facts(run: Run, images) -> dict:
    model, scored = run.report["model"], len(run.rows["model"])
    return {
        "label": run.label,
        "folder": str(run.folder),
        "model": {key: model.get(key) for key in ("name", "version", "digest", "backend", "path")},
        "corruption": run.report.get("corruption"),
        "command": run.report.get("command"),
        "date": run.report.get("date"),
        "images": scored,
        "left_out": scored - sum(len(names) for names in images.values()),
        "complete": bool(run.report.get("complete", True)) and not run.broken,
    }


def _notes(runs: Sequence[Run], images) -> list[str]:
    common = sum(len(names) for names in images.values())
    notes = [f"{common} images in {len(images)} sequences, which all {len(runs)} runs scored"]
    for run in runs:
        left = len(run.rows["model"]) - common
        if left:
            notes.append(f"{left} images of {run.label} are left out: another run does not have them")
        if run.broken:
            notes.append(f"{run.broken} lines of {run.folder / 'images.jsonl'} are broken and were not used")
        if not run.report.get("complete", True):
            notes.append(f"{run.label} is incomplete: {'; '.join(run.report.get('problems') or ['no reason given'])}")
        if (fault := run.report.get("corruption")) and fault.get("name") in CORRUPTIONS:
            notes.append(f"{run.label} saw corrupted images: {CORRUPTIONS[fault['name']].physics.rstrip('.')}")
    digests = [run.report["model"].get("digest") for run in runs]
    if len({digest for digest in digests if digest}) < len([digest for digest in digests if digest]):
        notes.append("some runs used the same weights; their differences come from backend, corruption or chance")
    if len(images) < FEWEST_SEQUENCES:
        notes.append("intervals speak of these sequences only; three or more would also say something about others")
    return notes
