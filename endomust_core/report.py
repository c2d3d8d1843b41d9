"""Results → one HTML page that needs nothing else: images, depth [m], cloud, trajectory [m], latency [s], tables.

Every section is a function that takes arrays and returns HTML; `page` joins them. A page holds its images, styles and
scripts itself, so that it can be mailed, archived and opened without a network.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np

from endomust_core.charts import Mark, Series, colour_bar, histogram, line_chart
from endomust_core.cloud_view import cloud_view

PICTURE_WIDTH = 320  # pixels of the small pictures
UNKNOWN = (128, 128, 128)  # grey where there is no depth
DIVERGING = ((24, 68, 140), (92, 152, 205), (246, 246, 243), (232, 128, 96), (158, 22, 36))  # blue, white, red


@dataclass(frozen=True)
class FramePicture:
    """One column of the strip: rgb (H,W,3) uint8, depth and, where it is known, true depth (h,w) float32 [m]."""

    caption: str
    rgb: np.ndarray
    depth: np.ndarray
    truth: np.ndarray | None = None


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """A whole HTML document."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><main><header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n"
        + "\n".join(part for part in sections if part)
        + "<footer>EndoMUST for ROS 2. Research software, not a medical device.</footer></main></body></html>\n"
    )


def write_page(path: str | Path, html: str) -> Path:
    """Write the page under its name at once, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".html", delete=False) as file:
        file.write(html)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    return path


def section(title: str, body: str, note: str = "") -> str:
    """A titled block with an explaining sentence under the title."""
    note_html = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note_html}{body}</section>"


def headline(numbers: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers: (value, what it is, a small explanation)."""
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(detail)}</small></div>'
        for value, name, detail in numbers
    )
    return f'<section class="cards">{cards}</section>'


def table_section(title: str, rows: Sequence[tuple[str, str]], note: str = "") -> str:
    """Two columns: name, value."""
    body = "".join(f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return section(title, f'<div class="scroll"><table>{body}</table></div>', note)


def scores_table(header: Sequence[str], rows: Sequence[Sequence[str]], strong: Sequence[int] = ()) -> str:
    """A table of numbers under a header, the first column their names; rows with an index in `strong` stand out.

    A cell of more than 24 letters may break at its spaces (not at no-break spaces).
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = ""
    for number, (name, *cells) in enumerate(rows):
        values = "".join(_cell(str(cell)) for cell in cells)
        kind = ' class="strong"' if number in strong else ""
        body += f'<tr{kind}><th scope="row">{escape(str(name))}</th>{values}</tr>'
    return (
        f'<div class="scroll"><table class="scores"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(text: str) -> str:
    kind = ' class="long"' if len(text) > 24 else ""
    return f"<td{kind}>{escape(text)}</td>"


def heat_table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """A table whose cells (text, share 0..1) are coloured by their share."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = ""
    for name, cells in rows:
        values = "".join(
            f'<td style="--heat:{100 * min(max(share, 0), 1):.0f}%">{escape(text)}</td>' for text, share in cells
        )
        body += f'<tr><th scope="row">{escape(name)}</th>{values}</tr>'
    return (
        '<div class="scroll"><table class="scores heat"><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def warning(title: str, sentences: Sequence[str], quiet: bool = False) -> str:
    """A block that nobody overlooks, or a quiet one; nothing without sentences."""
    if not sentences:
        return ""
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<section class="warning{" quiet" * quiet}"><h2>{escape(title)}</h2><ul>{lines}</ul></section>'


def folded(title: str, body: str, is_open: bool = False) -> str:
    """Something that unfolds when it is asked for."""
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{body}</details>"


def frames_section(
    frames: Sequence[FramePicture], depth_range: tuple[float, float] | None = None, note: str = ""
) -> str:
    """Images above their depth and the true depth, all on one colour scale with its bar [m]."""
    if not frames:
        return section("Images and depth", '<p class="note">No frames.</p>')
    truths = [f.truth for f in frames if f.truth is not None]
    low, high = depth_range or common_range([f.depth for f in frames] + truths)
    rows = [("image", [_picture(f.rgb, f"image, {f.caption}", 88) for f in frames])]
    rows.append(("depth", [_depth_picture(f.depth, f, "depth", low, high) for f in frames]))
    if truths:
        rows.append(("true depth", [_truth_picture(f, low, high) for f in frames]))
    cells = "".join(f"<div class='name'>{name}</div>" + "".join(cells) for name, cells in rows)
    captions = "<div class='name'></div>" + "".join(f"<div class='caption'>{escape(f.caption)}</div>" for f in frames)
    grid = f'<div class="scroll"><div class="strip" style="--n:{len(frames)}">{cells}{captions}</div></div>'
    bar = colour_bar(turbo(np.linspace(low, high, 24)[None], low, high)[0], low, high, "depth [m]; grey: no depth")
    return section("Images and depth", grid + bar, note)


def cloud_section(points: np.ndarray, colours: np.ndarray | None, note: str = "") -> str:
    """One cloud, (N,3) [m] in the optical frame with (N,3) uint8 colours, to turn around."""
    return section("Point cloud", cloud_view(points, colours), note)


def trajectory_section(
    seconds: np.ndarray, positions: np.ndarray, truth: np.ndarray | None = None, note: str = ""
) -> str:
    """Maps (x-y, x-z) and each axis over time [mm] of (N,3) positions [m], beside the true ones at the same times."""
    return section("Trajectory", trajectory_charts(seconds, positions, truth), note)


def trajectory_charts(
    course: np.ndarray, positions: np.ndarray, truth: np.ndarray | None = None, course_label: str = "time [s]"
) -> str:
    """Maps and each axis [mm] over `course` (N,), of (N,3) positions [m] beside the true ones."""
    paths = [("estimate", "first", np.asarray(positions, float) * 1e3)]
    if truth is not None:
        paths.insert(0, ("ground truth", "second", np.asarray(truth, float) * 1e3))
    maps, courses = [], []
    for across, along in ((0, 1), (0, 2)):
        lines = [Series(p[:, across], p[:, along], label, style) for label, style, p in paths]
        maps.append(line_chart(lines, f"{'xyz'[across]} [mm]", f"{'xyz'[along]} [mm]", equal=True))
    for axis in range(3):
        lines = [Series(course, p[:, axis], label, style) for label, style, p in paths]
        courses.append(line_chart(lines, course_label, f"{'xyz'[axis]} [mm]"))
    names = legend([(label, style) for label, style, _ in paths])
    return names + grid(maps) + grid(courses)


def latency_section(latencies: np.ndarray, seconds: np.ndarray | None = None, note: str = "") -> str:
    """Distribution of latencies [s] with percentiles [ms] and, with the times [s] they belong to, their course."""
    values = np.asarray(latencies, float) * 1e3
    known = values[np.isfinite(values)]
    if not known.size:
        return section("Latency", '<p class="note">No frame was answered.</p>')
    marks = [Mark(value, f"p{p} {value:.0f} ms") for p in (50, 95, 99) for value in [float(np.percentile(known, p))]]
    charts = [histogram(known, "latency [ms]", "frames", marks)]
    if seconds is not None:
        top = float(known.max()) * 1.1
        charts.append(line_chart([Series(seconds, values, "latency")], "time [s]", "latency [ms]", y_range=(0.0, top)))
    return section("Latency", grid(charts), note)


def valid_section(seconds: np.ndarray, shares: np.ndarray, note: str = "") -> str:
    """Share of pixels with depth over time; shares 0..1."""
    percent = np.asarray(shares, float) * 100
    chart = line_chart([Series(seconds, percent, "pixels with depth")], "time [s]", "pixels [%]", y_range=(0.0, 104.0))
    return section("Pixels with depth", grid([chart]), note)


def environment_section(facts: Mapping[str, str]) -> str:
    """Versions, provider, model digest, command: what is needed to get these numbers again."""
    return table_section("Environment", list(facts.items()))


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names of the lines: (label, style)."""
    return '<p class="legend">' + "".join(f'<span class="{s}">{escape(name)}</span>' for name, s in entries) + "</p>"


def grid(charts: Sequence[str]) -> str:
    """Charts side by side, as many as the width takes."""
    return '<div class="charts">' + "".join(f"<div>{chart}</div>" for chart in charts) + "</div>" if charts else ""


def wides(charts: Sequence[str]) -> str:
    """Wide charts, two beside each other where there is room."""
    return '<div class="wides">' + "".join(f'<div class="scroll">{chart}</div>' for chart in charts if chart) + "</div>"


def smalls(charts: Sequence[str]) -> str:
    """Small charts in as many columns as the width takes."""
    return '<div class="smalls">' + "".join(f"<div>{chart}</div>" for chart in charts if chart) + "</div>"


def common_range(depths: Sequence[np.ndarray]) -> tuple[float, float]:
    """2nd and 98th percentile of all finite depths [m], never empty."""
    finite = [d[np.isfinite(d)] for d in depths]
    joined = np.concatenate([f for f in finite if f.size] or [np.array([0.0, 0.1])])
    low, high = (float(v) for v in np.percentile(joined, (2, 98)))
    return (low, high) if high > low else (low * 0.9, low * 1.1 + 1e-3)


def turbo(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H,W) depth [m] → (H,W,3) uint8 RGB: near is red, far is blue, grey where unknown."""
    known = np.isfinite(depth)
    share = np.clip((np.where(known, depth, low) - low) / (high - low), 0, 1)
    levels = np.rint(255 * (1 - share)).astype(np.uint8)
    rgb = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    rgb[~known] = UNKNOWN
    return rgb


def signed(share: np.ndarray, limit: float) -> np.ndarray:
    """(H,W) signed numbers → (H,W,3) uint8 RGB: blue at -limit, white at 0, red at +limit, grey where unknown."""
    known = np.isfinite(share)
    place = np.clip(np.where(known, share, 0) / limit, -1, 1)
    channels = [np.interp(place, np.linspace(-1, 1, len(DIVERGING)), [c[i] for c in DIVERGING]) for i in range(3)]
    rgb = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    rgb[~known] = UNKNOWN
    return rgb


def data_uri(rgb: np.ndarray, quality: int) -> str:
    """(H,W,3) uint8 RGB → the text of a JPEG for an HTML page."""
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def _picture(rgb: np.ndarray, words: str, quality: int) -> str:
    if rgb.shape[1] > PICTURE_WIDTH:
        size = (PICTURE_WIDTH, max(1, round(rgb.shape[0] * PICTURE_WIDTH / rgb.shape[1])))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    height, width = rgb.shape[:2]
    uri = data_uri(np.ascontiguousarray(rgb), quality)
    return f'<img alt="{escape(words)}" width="{width}" height="{height}" src="{uri}">'


def _depth_picture(depth: np.ndarray, frame: FramePicture, words: str, low: float, high: float) -> str:
    if depth.shape[1] > PICTURE_WIDTH:  # nearest: an average would mix unknown pixels into known ones
        size = (PICTURE_WIDTH, max(1, round(depth.shape[0] * PICTURE_WIDTH / depth.shape[1])))
        depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)
    return _picture(turbo(depth, low, high), f"{words}, {frame.caption}", 92)


def _truth_picture(frame: FramePicture, low: float, high: float) -> str:
    if frame.truth is None:
        return '<div class="none">not known</div>'
    return _depth_picture(frame.truth, frame, "true depth", low, high)


STYLE = """
:root{--paper:#fbfbf9;--panel:#fff;--ink:#1d2327;--muted:#5d676e;--line:#dfe3e5;--grid:#eceff0;--first:#0b7285;
--second:#c2620e;--third:#7048a8;--fourth:#5d8a1f;--cloud:#f1f3f4}
@media (prefers-color-scheme:dark){:root{--paper:#14181b;--panel:#1b2024;--ink:#e6eaec;--muted:#9aa5ac;--line:#2d353a;
--grid:#262d32;--first:#4cc3d9;--second:#f0a45d;--third:#b79be0;--fourth:#a3cf62;--cloud:#101416}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 48px}
header p,.note,footer{color:var(--muted)}
h1{font-size:1.6rem;line-height:1.2;margin:0 0 4px;font-weight:650}
header p{margin:0 0 20px}
h2{font-size:1.05rem;margin:0 0 8px;font-weight:650}
.note{font-size:.86rem;margin:0 0 12px;max-width:72ch}
section{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:16px;margin:0 0 16px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,150px),1fr));padding:0;overflow:hidden}
.card{box-shadow:0 0 0 .5px var(--line);padding:14px 16px;display:flex;flex-direction:column}
.card b{font-size:1.5rem;font-weight:650;font-variant-numeric:tabular-nums;line-height:1.25}
.card small{color:var(--muted);font-size:.78rem}
.scroll{overflow-x:auto}
.strip{display:grid;grid-template-columns:3.6rem repeat(var(--n),minmax(132px,1fr));gap:6px;align-items:center}
.strip img{width:100%;height:auto;display:block;border-radius:5px;background:var(--cloud)}
.strip .name{font-size:.8rem;color:var(--muted);line-height:1.2}
.strip .caption{font-size:.78rem;color:var(--muted);text-align:center;font-variant-numeric:tabular-nums}
.strip .none{font-size:.78rem;color:var(--muted);text-align:center;border:1px dashed var(--line);border-radius:5px;
padding:18px 0}
.panels{display:grid;grid-template-columns:repeat(4,minmax(150px,1fr));gap:10px 8px;align-items:start}
.panels h3{grid-column:1/-1;margin:10px 0 0}
.panels img{width:100%;height:auto;display:block;border-radius:5px;background:var(--cloud)}
.panels figure{margin:0}
figcaption{font-size:.78rem;color:var(--muted);font-variant-numeric:tabular-nums;padding-top:3px}
h3{font-size:.92rem;font-weight:600;margin:14px 0 6px}
h3 b{text-transform:capitalize}
h3 span{color:var(--muted);font-weight:400}
details{margin:10px 0 0}
summary{cursor:pointer;font-size:.92rem;font-weight:600;padding:4px 0}
.warning{border-color:var(--second);border-left-width:5px}
.warning.quiet{border-color:var(--line);border-left-color:var(--muted)}
.warning ul{margin:0;padding-left:20px;font-size:.9rem}
.wides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,470px),1fr));gap:12px}
.smalls{display:grid;grid-template-columns:repeat(auto-fill,minmax(175px,1fr));gap:10px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:12px}
svg.chart{width:100%;max-width:410px;height:auto;display:block}
svg.bar-scale{overflow:visible}
svg.wide{max-width:760px;min-width:460px}
svg.small{max-width:240px}
svg.small text{font-size:11px}
svg.small text.title{font-size:12px;fill:var(--ink);font-weight:600}
svg.bar-scale{max-width:420px;margin-top:14px}
svg text{font:12px system-ui,sans-serif;fill:var(--muted);font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--grid);fill:none}
svg .axis{stroke:var(--muted);fill:none}
svg .line{fill:none;stroke-width:1.8;stroke-linejoin:round}
svg .line.first{stroke:var(--first)}
svg .line.second{stroke:var(--second);stroke-width:4;opacity:.55}svg .line.third{stroke:var(--third)}
svg .dot.first{fill:var(--first)}svg .dot.second{fill:var(--second)}svg .dot.third{fill:var(--third)}
svg .line.fourth{stroke:var(--fourth)}svg .dot.fourth{fill:var(--fourth)}
svg .line.thick{stroke-width:4;opacity:.45;stroke-linecap:round}
svg .line.step{stroke-width:3}
svg .tick{stroke-width:2.5;fill:none}
svg .tick.first{stroke:var(--first)}svg .tick.second{stroke:var(--second)}
svg .tick.third{stroke:var(--third)}svg .tick.fourth{stroke:var(--fourth)}
svg .share{fill:var(--line)}
svg .scatter{fill:var(--first);opacity:.5}
svg .bar{fill:var(--first);opacity:.75}
svg .mark{stroke:var(--second);stroke-dasharray:3 3;fill:none}
svg .mark-label{fill:var(--second)}
.legend{margin:0 0 8px;font-size:.86rem}
.legend span{margin-right:18px}
.legend span::before{content:"";display:inline-block;width:18px;height:3px;border-radius:2px;vertical-align:middle;
margin-right:7px;background:currentColor}
.legend .first{color:var(--first)}.legend .second{color:var(--second)}.legend .third{color:var(--third)}
.legend .fourth{color:var(--fourth)}
.charts+.cloud{margin-top:14px}
.cloud canvas{width:100%;height:min(62vh,460px);display:block;border-radius:8px;background:var(--cloud);
touch-action:none;cursor:grab;outline-offset:2px}
.cloud canvas:active{cursor:grabbing}
.cloud .note{margin:8px 0 0}
table{border-collapse:collapse;font-size:.9rem;width:100%}
th{text-align:left;font-weight:500;color:var(--muted);white-space:nowrap;padding-right:20px;vertical-align:top}
th,td{padding-top:5px;padding-bottom:5px;border-bottom:1px solid var(--grid)}
td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
table.scores{font-size:.86rem}
table.scores td,table.scores th:not(:first-child){text-align:right;padding-left:12px;padding-right:0;white-space:nowrap}
table.scores td.long{white-space:normal;max-width:11rem}
table.scores thead th:not(:first-child){white-space:normal;vertical-align:bottom}
table.scores thead th{font-size:.8rem;line-height:1.25;border-bottom:1px solid var(--line)}
table.scores .strong th,table.scores .strong td{font-weight:650;color:var(--ink)}
table.scores .muted{color:var(--muted)}
table.heat td{background:color-mix(in srgb,var(--second) calc(var(--heat)*.75),transparent);text-align:center}
table.heat th:not(:first-child){text-align:center}
tr:last-child th,tr:last-child td{border-bottom:0}
footer{font-size:.8rem;text-align:center;margin-top:24px}
@media (max-width:560px){main{padding:16px 10px 32px}section{padding:12px}.cards{padding:0}th{white-space:normal}}
@media (max-width:640px){.panels{grid-template-columns:repeat(2,minmax(0,1fr))}}
@media print{section{break-inside:avoid}}
"""
