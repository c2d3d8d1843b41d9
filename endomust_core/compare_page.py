"""A comparison (a dict as in compare.json) → one HTML page that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from endomust_core import report as html
from endomust_core.charts import Interval, Series, interval_chart, scatter_chart, small_chart
from endomust_core.compare import ALL, OTHERS, difference_cells, metric_name, shown

STYLES = ("first", "second", "third", "fourth")
LENGTHS = ("rmse", "sq_rel")


def page(comparison: Mapping) -> str:
    """The whole page: verdicts, table, differences per sequence, image against image, motion, corruption."""
    labels, reference = comparison["labels"], comparison["reference"]
    data = comparison["data"]
    sections = [
        html.headline(_cards(comparison)),
        _notes(comparison),
        _overall_section(comparison),
        *[_difference_section(comparison, metric) for metric in comparison["scores"]],
        _dots_section(comparison),
        _motion_section(comparison),
        _degradation_section(comparison),
        _runs_section(comparison),
    ]
    title = f"{' and '.join(labels[1:])} against {reference}"
    split = f", split {data['split']}" if data.get("split") else ""
    scaling = "own metres" if comparison.get("scaling") == "none" else "median-scaled per image"
    return html.page(title, f"{data['name']}{split}, {comparison['images']} images, {scaling}", sections)


def _widest(groups: Mapping) -> str:
    """The group that says most: other sequences, all, or the only one."""
    return next((group for group in (OTHERS, ALL) if group in groups), next(iter(groups)))


def _cards(comparison: Mapping) -> list[tuple[str, str, str]]:
    cards = []
    for metric, groups in list(comparison["scores"].items())[:1]:
        group = _widest(groups)
        for label in comparison["labels"][1:]:
            cell = groups[group][label]
            words = difference_cells(cell, metric)
            interval = f"95 %: {words[2]}" if cell["difference_interval"] else "no interval"
            name = f"{metric_name(metric)}, {label}"
            cards.append((words[1].rstrip(" *"), name, f"{cell['verdict']}; {interval}"))
    cards.append((str(comparison["images"]), "images in common", f"block bootstrap, {group}"))
    return cards


def _notes(comparison: Mapping) -> str:
    if comparison.get("complete", True):
        return html.warning("Good to know", comparison["notes"], quiet=True)
    return html.warning("Incomplete", comparison["notes"])


def _overall_section(comparison: Mapping) -> str:
    scores, reference = comparison["scores"], comparison["reference"]
    header = [""]
    for metric in scores:
        header += [metric_name(metric), "difference (95 %)"]
    rows = []
    for label in comparison["labels"]:
        row = [label]
        for metric, groups in scores.items():
            cell = groups[_widest(groups)][label]
            row += [shown(cell["value"], metric), "reference" if label == reference else _difference(cell, metric)]
        rows.append(row)
    for name, means in comparison["baselines"].items():
        row = [name]
        for metric in scores:
            row += [shown(means.get(metric), metric), ""]
        rows.append(row)
    note = "A star marks a difference whose 95 % interval leaves out 0. Baselines are guesses without any learning."
    return html.section("Side by side", html.scores_table(header, rows), note)


def _difference_section(comparison: Mapping, metric: str) -> str:
    """Differences per sequence with their intervals, one chart per run, and the table."""
    groups, reference = comparison["scores"][metric], comparison["reference"]
    factor = 1e3 if metric in LENGTHS else 1.0
    charts = []
    for label in comparison["labels"][1:]:
        rows = []
        for group, row in groups.items():
            low, high = row[label]["difference_interval"] or (math.nan, math.nan)
            style = "second" if group in (ALL, OTHERS) else "first"
            rows.append(Interval(group, factor * row[label]["difference"], factor * low, factor * high, style))
        words = f"{metric_name(metric)} of {label} minus {reference}"
        charts.append(interval_chart(rows, words, zero=True))
    header = ["", reference]
    for label in comparison["labels"][1:]:
        header += [label, "difference", "95 %", "images better"]
    table = []
    for group, row in groups.items():
        cells = [group, shown(row[reference]["value"], metric)]
        for label in comparison["labels"][1:]:
            cells += difference_cells(row[label], metric)
        table.append(cells)
    strong = [number for number, row in enumerate(table) if row[0] in (ALL, OTHERS)]
    better = "right" if metric == "a1" else "left"
    note = (
        f"Paired image by image; {better} of the line is better, and shown where the whole interval lies there. "
        "“all” has an interval for other frames of these sequences, “other sequences” one for sequences not seen."
    )
    table = html.folded("Table", html.scores_table(header, table, strong))
    return html.section(f"Difference in {metric_name(metric)}", html.wides(charts) + table, note)


def _dots_section(comparison: Mapping) -> str:
    reference = comparison["reference"]
    charts = []
    for label, pairs in comparison["dots"].items():
        pairs = np.array(pairs, float).reshape(-1, 2)
        charts.append(scatter_chart(pairs[:, 0], pairs[:, 1], f"AbsRel, {reference}", f"AbsRel, {label}"))
    note = f"Each dot is an image. Under the dashed line the other run is better than {reference}."
    return html.section("Image against image", html.grid(charts), note)


def _motion_section(comparison: Mapping) -> str:
    motion, labels = comparison["motion"], comparison["labels"]
    columns = (("ate_5frame", "ATE 5 frames, /N [mm]", 1e3, 4), ("rpe_rotation", "RPE [°]", 180 / math.pi, 3),
               ("ate_full", "whole path [mm]", 1e3, 2))  # fmt: skip
    if not motion:
        return ""
    header = [""] + [f"{name}, {label}" for _, name, _, _ in columns for label in labels]
    rows = []
    for group, row in motion.items():
        values = [(row.get(label) or {}).get(key) for key, *_ in columns for label in labels]
        formats = [(factor, digits) for _, _, factor, digits in columns for _ in labels]
        rows.append([group] + [_number(v, *form) for v, form in zip(values, formats, strict=True)])
    strong = [number for number, row in enumerate(rows) if row[0] == ALL]
    note = "Without intervals: the five-frame windows overlap, and a sequence has one path."
    return html.section("Camera motion", html.scores_table(header, rows, strong), note)


def _degradation_section(comparison: Mapping) -> str:
    found = comparison["degradation"]
    if not found:
        return ""
    styles = dict(zip(found, STYLES, strict=False))
    faults = list(dict.fromkeys(name for table in found.values() for name in table if name != "clean"))
    courses = {
        fault: [_course(found[label], fault, label, style) for label, style in styles.items()] for fault in faults
    }
    values = [v for lines in courses.values() for line in lines for v in line.y if math.isfinite(v)]
    if not values:
        return ""
    charts = [small_chart(lines, fault.replace("_", " "), (0.0, 1.1 * max(values))) for fault, lines in courses.items()]
    body = html.legend(list(styles.items())) + html.smalls(charts)
    return html.section("Under corruption", body, "AbsRel over severity; 0 is the clean image.")


def _course(table: Mapping, fault: str, label: str, style: str) -> Series:
    rows = table.get(fault) or {}
    severities = sorted(int(severity) for severity in rows)
    values = [table.get("clean", {}).get("abs_rel"), *(rows[str(s)].get("abs_rel") for s in severities)]
    y = np.array([math.nan if value is None else value for value in values], float)
    return Series(np.array([0, *severities], float), y, f"{label}, severity", style)


def _runs_section(comparison: Mapping) -> str:
    rows = []
    for run in comparison["runs"]:
        model = run["model"]
        words = f"{model['name']} {model.get('version') or ''} on {model.get('backend')}, {run['images']} images"
        rows += [
            (run["label"], words),
            ("", f"digest {model.get('digest')}"),
            ("", run.get("command") or run["folder"]),
        ]
    options = comparison["bootstrap"]
    block = options["block"] or "chosen from the scores"
    rows.append(("intervals", f"{options['draws']} draws, blocks of neighbouring frames, length {block}"))
    return html.table_section("Runs", rows)


def _difference(cell: Mapping, metric: str) -> str:
    _, difference, interval, _ = difference_cells(cell, metric)
    interval = interval.replace(" ", "\u00a0")  # breaks before the bracket only
    return f"{difference} ({interval})"


def _number(value, factor: float, digits: int) -> str:
    return "–" if value is None else f"{factor * value:.{digits}f}"
