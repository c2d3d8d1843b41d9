"""The report of one evaluation (a dict as in report.json) and a few frames → one HTML page that needs nothing else.

Numbers come in metres, radians and seconds and are shown in millimetres, degrees and milliseconds; null is shown as a
dash, and a part that was not evaluated is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import cv2
import numpy as np

from endomust_core import report as html
from endomust_core.charts import Interval, Series, binned_chart, colour_bar, interval_chart, small_chart
from endomust_core.cloud_view import Path3D, path_view
from endomust_core.corruptions import CORRUPTIONS

if TYPE_CHECKING:
    from endomust_core.evaluate import Shown

ALL = "all"
DASH = "–"
ERROR_LIMIT = 0.3  # relative error at the ends of the colours
BASELINE_STYLES = ("second", "third", "fourth")
MOST_PATHS = 12  # sequences drawn; the table holds all
MOST_PROBLEMS = 30
KINDS = ("best", "median", "worst")
DEPTH_COLUMNS = (  # key, name, factor, digits
    ("abs_rel", "AbsRel", 1, 3),
    ("sq_rel", "SqRel [mm]", 1e3, 3),
    ("rmse", "RMSE [mm]", 1e3, 2),
    ("rmse_log", "RMSElog", 1, 3),
    ("a1", "δ<1.25", 1, 3),
    ("a2", "δ<1.25²", 1, 3),
    ("a3", "δ<1.25³", 1, 3),
    ("scale_std", "scale std", 1, 3),
)
MOTION_COLUMNS = (
    ("ate_5frame", "ATE 5 frames, /N [mm]", 1e3, 4),
    ("ate_5frame_std", "its std [mm]", 1e3, 4),
    ("ate_5frame_rms", "with /√N [mm]", 1e3, 4),
    ("rpe_translation", "RPE [mm]", 1e3, 3),
    ("rpe_rotation", "RPE [°]", 180 / math.pi, 3),
    ("rotation_error", "rotation error [°]", 180 / math.pi, 3),
    ("ate_full", "whole path [mm]", 1e3, 2),
    ("ate_full_se3", "without scale [mm]", 1e3, 2),
    ("length", "path length [mm]", 1e3, 1),
    ("frames", "frames", 1, 0),
)
DEGRADED = (  # key, name, factor, digits, whether more is worse (1) or less (-1)
    ("abs_rel", "AbsRel", 1, 3, 1),
    ("a1", "δ<1.25", 1, 3, -1),
    ("scale_std", "scale std", 1, 3, 1),
    ("aligned_change", "depth change, aligned", 1, 4, 1),
    ("ate_5frame", "ATE 5 frames [mm]", 1e3, 4, 1),
)
GLOSSARY = (
    ("AbsRel", "mean of |predicted - true| / true over the pixels of an image, then over images; 0 is perfect"),
    ("SqRel", "mean of (predicted - true)² / true; far and gross errors weigh more"),
    ("RMSE, RMSElog", "root of the mean squared error of depth, and of its natural logarithm"),
    ("δ<1.25", "share of pixels where predicted/true or its inverse is below 1.25; 1 is perfect"),
    ("scale std", "how unsteady the unknown scale is from image to image: std of ratio/median(ratio); 0: one scale"),
    ("95 % interval", "Student's t over images taken as independent, as published; neighbouring frames are not, so it "
     "is too narrow. endomust compare has intervals that allow for it"),
    ("ATE 5 frames, /N", "SfMLearner's number: √Σ|error|² divided by N over windows of five frames with their own "
     "scale. The /√N beside it is the true root mean square; published tables hold the first"),
    ("RPE", "root mean square error of the motion from one frame to the next"),
    ("whole path", "root mean square distance after moving the whole path onto the truth with rotation, translation "
     "and scale; `without scale` leaves out the scale"),
    ("depth change", "median over pixels of |ln(depth now / depth before)|, frame to frame at the same pixel; "
     "aligned: after the median ratio is taken out. The camera's motion is in it, so compare with the truth's"),
)  # fmt: skip


def page(report: dict, shown: Sequence[Shown] = ()) -> str:
    """The whole page; `shown` are frames with depth as it was scored and true depth."""
    model, data = report.get("model") or {}, report.get("data") or {}
    sections = [
        html.headline(_cards(report)),
        _incomplete(report),
        _depth_section(report),
        _frames_section(shown),
        _curves_section(report),
        _sequences_section(report),
        _motion_section(report),
        _intrinsics_section(report),
        _latency_section(report),
        _degradation_section(report),
        _glossary_section(),
        html.table_section("How to get these numbers again", _facts(report)),
    ]
    return html.page(f"{model.get('name') or 'Model'} on {data.get('name') or 'data'}", _subtitle(report), sections)


def number(value, digits: int = 3, factor: float = 1.0) -> str:
    """A number in words of the page; a dash for null and what is not finite."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{factor * value:.{digits}f}"


def interval_words(row: Mapping, key: str, factor: float = 1.0, digits: int = 3) -> str:
    """`0.046 to 0.049`, or nothing where the report has no interval."""
    interval = (row.get("ci95") or {}).get(key)
    if not interval or any(value is None for value in interval):
        return ""
    return " to ".join(number(value, digits, factor) for value in interval)


def overall(groups: Mapping[str, Mapping]) -> Mapping:
    """The row of all images: `all`, or the only sequence."""
    return groups.get(ALL) or (next(iter(groups.values())) if len(groups) == 1 else {})


def sequences(groups: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """Rows of single sequences."""
    return {name: row for name, row in groups.items() if name != ALL}


def scaling_words(report: Mapping) -> str:
    """How depth was scaled before it was scored."""
    return "in its own metres" if report.get("scaling") == "none" else "median-scaled per image"


def corruption_words(report: Mapping) -> str:
    """`smoke, severity 3`, or nothing."""
    fault = report.get("corruption")
    return f"{fault['name']}, severity {fault['severity']}" if fault else ""


def _subtitle(report: Mapping) -> str:
    model, data = report.get("model") or {}, report.get("data") or {}
    parts = [
        f"version {model['version']}" if model.get("version") else "",
        str(model.get("backend") or ""),
        f"split {data['split']}" if data.get("split") else "",
        f"{data.get('images', 0)} images in {len(data.get('groups') or ())} sequences",
        f"corrupted: {corruption_words(report)}" if report.get("corruption") else "",
        str(report.get("date") or "")[:10],
    ]
    return ", ".join(part for part in parts if part)


def _cards(report: Mapping) -> list[tuple[str, str, str]]:
    depth = report.get("depth") or {}
    row = overall(depth.get("model") or {})
    cards = []
    if row:
        interval = interval_words(row, "abs_rel")
        detail = f"{interval}, {scaling_words(report)}" if interval else scaling_words(report)
        cards.append((number(row.get("abs_rel")), "AbsRel", detail))
        cards.append((number(row.get("a1"), 1, 100) + " %", "of pixels within 25 %", "δ<1.25"))
        cards += _against_baseline(row, depth)
        cards.append((number(row.get("scale_std")), "scale std", "0: one scale fits all images"))
    motion = overall(report.get("motion") or {})
    if motion:
        cards.append((f"{number(motion.get('ate_5frame'), 3, 1e3)} mm", "motion, ATE 5 frames", "SfMLearner's, /N"))
    latency = (report.get("latency") or {}).get("depth")
    if latency:
        cards.append((f"{number(latency.get('p50'), 0, 1e3)} ms", "per image", f"depth, {_backend(report)}, median"))
    return cards


def _against_baseline(row: Mapping, depth: Mapping) -> list[tuple[str, str, str]]:
    rivals = {name: overall(groups).get("abs_rel") for name, groups in depth.items() if name != "model"}
    rivals = {name: value for name, value in rivals.items() if value}
    if not rivals or row.get("abs_rel") is None:
        return []
    best = min(rivals, key=rivals.get)
    change = 100 * (row["abs_rel"] / rivals[best] - 1)
    words = "less error" if change < 0 else "MORE error"
    return [(f"{abs(change):.0f} %", f"{words} than guessing", f"best baseline: {best}, {rivals[best]:.3f}")]


def _backend(report: Mapping) -> str:
    return str((report.get("model") or {}).get("backend") or "")


def _incomplete(report: Mapping) -> str:
    problems = list(report.get("problems") or ())
    more = len(problems) - MOST_PROBLEMS
    if more > 0:
        problems = [*problems[:MOST_PROBLEMS], f"and {more} more; report.json has them all"]
    if not report.get("complete", True) and not problems:
        problems = ["The report says that it is incomplete, and not why."]
    title = "Incomplete: these images are missing from the numbers" if not report.get("complete", True) else "Problems"
    notes = list(report.get("notes") or ())
    return html.warning(title, problems) + html.warning("Good to know", notes, quiet=True)


def _depth_section(report: Mapping) -> str:
    depth = report.get("depth") or {}
    if not depth:
        return ""
    rows = []
    for name, groups in depth.items():
        row = overall(groups)
        cells = [number(row.get(key), digits, factor) for key, _, factor, digits in DEPTH_COLUMNS]
        rows.append([_predictor(name, report), cells[0], interval_words(row, "abs_rel") or DASH, *cells[1:],
                     str(row.get("images", DASH))])  # fmt: skip
    first, *rest = [column[1] for column in DEPTH_COLUMNS]
    header = ["", first, "95 %", *rest, "images"]
    protocol = (report.get("data") or {}).get("protocol") or {}
    limits = [number(protocol.get(key), 0, 1e3) for key in ("min_depth", "max_depth")]
    note = (
        f"{scaling_words(report).capitalize()}, true depth between {limits[0]} and {limits[1]} mm, mean over images. "
        "Below the model: what a guess without any learning gets, always median-scaled."
    )
    return html.section("Depth", html.scores_table(header, rows, strong=[0]), note)


def _predictor(name: str, report: Mapping) -> str:
    return str((report.get("model") or {}).get("name") or "model") if name == "model" else name


def _sequences_section(report: Mapping) -> str:
    """Each sequence: the model with its interval, the baselines as marks, and what is steady over time."""
    depth = report.get("depth") or {}
    groups = sequences(depth.get("model") or {})
    if not groups:
        return ""
    baselines = [name for name in depth if name != "model"]
    styles = dict(zip(baselines, BASELINE_STYLES, strict=False))
    rows = []
    for group, row in groups.items():
        others = [(value, styles[name]) for name in styles if (value := depth[name].get(group, {}).get("abs_rel"))]
        rows.append(Interval(group, _float(row.get("abs_rel")), *_limits(row, "abs_rel"), "first", others))
    names = html.legend([(_predictor("model", report), "first"), *styles.items()])
    chart = f'<div class="scroll">{interval_chart(rows, "AbsRel")}</div>' if len(groups) > 1 else ""
    return html.section(
        "Sequences", (names + chart if chart else "") + _sequence_table(groups, report.get("temporal") or {})
    )


def _sequence_table(groups: Mapping[str, Mapping], temporal: Mapping[str, Mapping]) -> str:
    shown = [column for column in DEPTH_COLUMNS if column[0] in ("abs_rel", "rmse", "a1", "scale_std")]
    changes = (("depth_change", "depth change"), ("aligned_change", "aligned"),
               ("true_depth_change", "true depth change"), ("true_aligned_change", "true, aligned"))  # fmt: skip
    changes = [(key, name) for key, name in changes if any(row.get(key) is not None for row in temporal.values())]
    header = ["", *(column[1] for column in shown), "coverage", *(name for _, name in changes), "images"]
    rows = []
    for group, row in groups.items():
        over_time = temporal.get(group) or {}
        rows.append([
            group,
            *(number(row.get(key), digits, factor) for key, _, factor, digits in shown),
            number(row.get("coverage")),
            *(number(over_time.get(key), 4) for key, _ in changes),
            str(row.get("images", DASH)),
        ])  # fmt: skip
    return html.scores_table(header, rows)


def _frames_section(shown: Sequence[Shown]) -> str:
    if not shown:
        return ""
    ordered = sorted(shown, key=lambda s: KINDS.index(s.kind) if s.kind in KINDS else len(KINDS))
    panels = "".join(_panel_row(frame) for frame in ordered)
    shares = np.linspace(-ERROR_LIMIT, ERROR_LIMIT, 24)
    words, limit = "error [% of the true depth]; blue: too near, red: too far, grey: no truth", 100 * ERROR_LIMIT
    bar = colour_bar(html.signed(shares[None], ERROR_LIMIT)[0], -limit, limit, words, "error-colours")
    note = "Depth as it was scored. Red is near and blue is far, on one scale per row; grey is unknown."
    return html.section(
        "Best, median and worst", f'<div class="scroll"><div class="panels">{panels}</div></div>{bar}', note
    )


def _panel_row(frame: Shown) -> str:
    low, high = html.common_range([frame.truth])
    depth, truth = (_resized(a, cv2.INTER_NEAREST) for a in (frame.depth, frame.truth))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = (depth - truth) / truth
    scale = f"{1e3 * low:.0f} to {1e3 * high:.0f} mm"
    pictures = (
        (_resized(frame.rgb, cv2.INTER_AREA), 88, "image"),
        (html.turbo(depth, low, high), 92, f"predicted depth, {scale}"),
        (html.turbo(truth, low, high), 92, f"true depth, {scale}"),
        (html.signed(error, ERROR_LIMIT), 92, _error_words(error)),
    )
    title = f"<h3><b>{escape(frame.kind)}</b> <span>{escape(frame.caption)}, AbsRel {frame.abs_rel:.3f}</span></h3>"
    return title + "".join(_figure(*picture) for picture in pictures)


def _error_words(error: np.ndarray) -> str:
    known = error[np.isfinite(error)]
    if not known.size:
        return "error: nothing to compare"
    far, near = (100 * np.mean(wrong) for wrong in (known > 0.1, known < -0.1))
    return f"error over 10 %: {far:.0f} % of pixels too far, {near:.0f} % too near"


def _figure(rgb: np.ndarray, quality: int, words: str) -> str:
    uri = html.data_uri(np.ascontiguousarray(rgb), quality)
    height, width = rgb.shape[:2]
    image = f'<img alt="{escape(words)}" width="{width}" height="{height}" src="{uri}">'
    return f"<figure>{image}<figcaption>{escape(words)}</figcaption></figure>"


def _resized(picture: np.ndarray, interpolation: int) -> np.ndarray:
    height, width = picture.shape[:2]
    if width <= html.PICTURE_WIDTH:
        return picture
    size = (html.PICTURE_WIDTH, max(1, round(height * html.PICTURE_WIDTH / width)))
    return cv2.resize(picture, size, interpolation=interpolation)


def _curves_section(report: Mapping) -> str:
    curves = report.get("curves") or {}
    charts = []
    for key, label, factor in (("distance", "true distance [mm]", 1e3), ("brightness", "brightness of the pixel", 1.0)):
        curve = curves.get(key)
        if curve:
            edges = np.array(curve["edges"], float) * factor
            pixels = np.array(curve["pixels"], float)
            charts.append(binned_chart(edges, _floats(curve["abs_rel"]), pixels, label, "AbsRel"))
    if not charts:
        return ""
    note = "Mean relative error of the pixels in each bin. The grey bars show how densely the pixels lie there."
    return html.section("Error against distance and brightness", html.grid(charts), note)


def _motion_section(report: Mapping) -> str:
    motion, trajectories = report.get("motion") or {}, report.get("trajectories") or {}
    if not motion:
        return ""
    columns = [column for column in MOTION_COLUMNS if any(row.get(column[0]) is not None for row in motion.values())]
    groups = motion if len(sequences(motion)) > 1 else sequences(motion)
    rows = [[g, *(number(row.get(key), digits, f) for key, _, f, digits in columns)] for g, row in groups.items()]
    strong = [number for number, row in enumerate(rows) if row[0] == ALL]
    table = html.scores_table(["", *(column[1] for column in columns)], rows, strong)
    drawn = [(g, t) for g, t in trajectories.items() if len(t.get("truth") or ()) > 1][:MOST_PATHS]
    paths = "".join(
        html.folded(f"Trajectory of {group}", _paths(pair, motion.get(group, {}), f"path-{number}"), number == 0)
        for number, (group, pair) in enumerate(drawn)
    )
    left = len(trajectories) - len(drawn)
    words = f'<p class="note">{left} more sequences are in report.json.</p>' if left > 0 and drawn else ""
    note = "Paths are moved onto the truth by rotation, translation and scale: a single camera does not know the scale."
    return html.section("Camera motion", table + paths + words, note)


def _paths(pair: Mapping, row: Mapping, identifier: str) -> str:
    truth, estimate = (np.array(pair[key], float).reshape(-1, 3) for key in ("truth", "estimate"))
    course = np.linspace(0, max((row.get("frames") or len(truth)) - 1, 1), len(truth))
    view = path_view([Path3D(truth, "second", 4.0), Path3D(estimate, "first", 1.8)], identifier)
    return html.trajectory_charts(course, estimate, truth, "frame") + view


def _intrinsics_section(report: Mapping) -> str:
    intrinsics = report.get("intrinsics") or {}
    groups = intrinsics if len(sequences(intrinsics)) > 1 else sequences(intrinsics)
    rows = [[group, *_intrinsics_cells(row)] for group, row in groups.items() if row.get("predicted")]
    if not rows:
        return ""
    note = "Predicted for true, as shares of the image width and height, and the relative error."
    strong = [number for number, row in enumerate(rows) if row[0] == ALL]
    table = html.scores_table(["", "fx/W", "fy/H", "cx/W", "cy/H"], rows, strong)
    return html.section("Intrinsics", table, note)


def _intrinsics_cells(row: Mapping) -> list[str]:
    unknown = [None] * len(row["predicted"])
    cells = []
    for said, true, error in zip(row["predicted"], row.get("true") or unknown, row.get("relative_error") or unknown,
                                 strict=True):  # fmt: skip
        beside = f" for {number(true)}, {number(error, 1, 100)} %" if true is not None else ""
        cells.append(number(said) + beside)
    return cells


def _latency_section(report: Mapping) -> str:
    rows = []
    for task, row in (report.get("latency") or {}).items():
        if row:
            values = [number(row.get(key), 1, 1e3) for key in ("p50", "p95", "max")]
            rate = number(1 / row["p50"], 1) if row.get("p50") else DASH
            rows.append([task, *values, rate, str(row.get("calls", DASH))])
    if not rows:
        return ""
    note = f"The network and its preprocessing on {_backend(report)}; images that came from the cache are not counted."
    table = html.scores_table(["", "p50 [ms]", "p95 [ms]", "max [ms]", "images/s at p50", "images"], rows)
    return html.section("Latency", table, note)


def _degradation_section(report: Mapping) -> str:
    degradation = report.get("degradation") or {}
    faults = {name: rows for name, rows in degradation.items() if name != "clean"}
    if not faults:
        return ""
    clean = degradation.get("clean") or {}
    parts = []
    for key, name, *rest in DEGRADED:
        if any(row.get(key) is not None for rows in faults.values() for row in rows.values()):
            table = _heat(faults, clean, key, name, *rest)
            parts.append(table if key == "abs_rel" else html.folded(name, table))
    note = (
        "The same images with faults of rising severity, scored by the same rules. Darker: worse than clean. "
        "The dashed line is the clean score. Dropped frames change motion alone."
    )
    return html.section("Under corruption", _curves_of_faults(faults, clean) + "".join(parts), note)


def _curves_of_faults(faults: Mapping, clean: Mapping) -> str:
    level = _float(clean.get("abs_rel"))
    values = [_float(row.get("abs_rel")) for rows in faults.values() for row in rows.values()] + [level]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    y_range = (0.0, max(known) * 1.1)
    charts = []
    for name, rows in faults.items():
        severities = sorted(int(s) for s in rows)
        course = [_float(rows[str(s)].get("abs_rel")) for s in severities]
        x, y = np.array([0, *severities], float), np.array([level, *course])
        charts.append(small_chart([Series(x, y, f"{name}, severity")], _readable(name), y_range, level))
    return "<h3>AbsRel over severity</h3>" + html.smalls(charts)


def _heat(faults: Mapping, clean: Mapping, key: str, name: str, factor: float, digits: int, worse: int) -> str:
    base = _float(clean.get(key))
    losses = [worse * (_float(row.get(key)) - base) for rows in faults.values() for row in rows.values()]
    far = max([loss for loss in losses if math.isfinite(loss)], default=0.0)
    severities = sorted({int(s) for rows in faults.values() for s in rows})
    table = []
    for fault, rows in faults.items():
        cells = [(number(clean.get(key), digits, factor), 0.0)]
        for severity in severities:
            value = _float((rows.get(str(severity)) or {}).get(key))
            loss = worse * (value - base)
            cells.append((number(value, digits, factor), loss / far if far > 0 and math.isfinite(loss) else 0.0))
        table.append((_readable(fault), cells))
    return html.heat_table([name, "clean", *map(str, severities)], table)


def _readable(fault: str) -> str:
    return fault.replace("_", " ")


def _glossary_section() -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(words)}</td></tr>" for name, words in GLOSSARY)
    return f"<section>{html.folded('What the numbers mean', f'<table>{rows}</table>')}</section>"


def _facts(report: Mapping) -> list[tuple[str, str]]:
    model, data = report.get("model") or {}, report.get("data") or {}
    protocol = data.get("protocol") or {}
    fault = report.get("corruption")
    facts = {
        "command": report.get("command"),
        "model": " ".join(str(model[key]) for key in ("name", "version") if model.get(key)),
        "model file": model.get("path"),
        "model digest": model.get("digest"),
        "backend": model.get("backend"),
        "data": f"{data.get('name')} at {data.get('path')}",
        "split": data.get("split"),
        "protocol": protocol.get("note"),
        "corruption": f"{corruption_words(report)}: {CORRUPTIONS[fault['name']].physics}"
        if fault and fault.get("name") in CORRUPTIONS else corruption_words(report),
        "date": report.get("date"),
    }  # fmt: skip
    for name, value in (report.get("environment") or {}).items():
        facts[name.replace("_", " ")] = _listed(value)
    return [(name, str(value)) for name, value in facts.items() if value]


def _listed(value) -> str:
    return (
        ", ".join(f"{name} {version}" for name, version in value.items()) if isinstance(value, Mapping) else str(value)
    )


def _limits(row: Mapping, key: str) -> tuple[float, float]:
    interval = (row.get("ci95") or {}).get(key) or (None, None)
    return _float(interval[0]), _float(interval[1])


def _float(value) -> float:
    return math.nan if value is None else float(value)


def _floats(values: Sequence) -> np.ndarray:
    return np.array([_float(value) for value in values])
