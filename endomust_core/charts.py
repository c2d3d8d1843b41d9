"""Numbers → SVG text: lines, bars, intervals, scatter and a colour bar; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 420, 260  # drawing units; near the size on a phone, so that letters stay readable there
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 40
LONGEST = 1000  # points drawn per line; more are thinned out
WIDE, ROW, NAMES = 640, 24, 190  # drawing units of an interval chart: width, height of a row, room for the names
SMALL_WIDTH, SMALL_HEIGHT = 210, 150  # of a small chart, many of which stand side by side


@dataclass(frozen=True)
class Series:
    """One line of a chart; `style` is a class of the style sheet: first, second, or third. NaN breaks the line."""

    x: np.ndarray
    y: np.ndarray
    label: str
    style: str = "first"


@dataclass(frozen=True)
class Mark:
    """A labelled vertical line."""

    x: float
    label: str


@dataclass(frozen=True)
class Interval:
    """One row: a value with its interval (NaN: none) and other values of the same row as small marks (value, style)."""

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    style: str = "first"
    others: Sequence[tuple[float, str]] = ()


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    equal: bool = False,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines over a common grid; `equal` gives both axes the same scale, for maps. Empty without any finite value."""
    xs, ys = _finite([s.x for s in series]), _finite([s.y for s in series])
    if not xs.size or not ys.size:
        return _empty("no values")
    x_range, y_range = _padded(xs, 0.0 if not equal else 0.05), y_range or _padded(ys, 0.08)
    if equal:
        x_range, y_range = _equalised(x_range, y_range)
    frame = _Frame(x_range, y_range)
    parts = [frame.axes(x_label, y_label)]
    parts += [_path(s, frame) for s in series]
    parts += [_start_dot(s, frame) for s in series if equal]
    return _svg(parts, f"{y_label} over {x_label}")


def histogram(values: np.ndarray, x_label: str, y_label: str, marks: Sequence[Mark] = (), bins: int = 40) -> str:
    """Counts of finite values in equal bins from 0, with labelled marks such as percentiles."""
    values = _finite([values])
    if not values.size:
        return _empty("no values")
    top = max([float(values.max()), *(m.x for m in marks)]) * 1.06 or 1.0
    counts, edges = np.histogram(values, bins=bins, range=(0.0, top))
    frame = _Frame((0.0, top), (0.0, float(counts.max()) * 1.25))
    parts = [frame.axes(x_label, y_label)]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            x, y = frame.x(low), frame.y(count)
            parts.append(f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{max(frame.x(high) - x - 0.8, 0.8):.1f}" '
                         f'height="{frame.y(0) - y:.1f}"/>')  # fmt: skip
    parts += _marks(marks, frame)
    return _svg(parts, f"distribution of {x_label}")


def binned_chart(edges: np.ndarray, values: np.ndarray, shares: np.ndarray, x_label: str, y_label: str) -> str:
    """One value per bin as steps, over bars whose area is what each bin holds; edges (N+1,), values, shares (N,).

    The bars have no axis of their own. A bin that holds nothing, or whose value is NaN, has no step.
    """
    edges, values, shares = (np.asarray(a, float) for a in (edges, values, shares))
    held = np.isfinite(values) & (shares > 0)
    if not held.any():
        return _empty("no values")
    last = int(np.flatnonzero(held)[-1])
    edges, values, shares, held = edges[: last + 2], values[: last + 1], shares[: last + 1], held[: last + 1]
    frame = _Frame((edges[0], edges[-1]), (0.0, float(values[held].max()) * 1.12 or 1.0))
    parts = [frame.axes(x_label, y_label)]
    dense = shares / np.diff(edges)
    tall = (HEIGHT - TOP - BOTTOM) * 0.5 * dense / dense.max()
    for low, high, value, share, bar, known in zip(edges[:-1], edges[1:], values, shares, tall, held, strict=True):
        x, width = frame.x(low), frame.x(high) - frame.x(low)
        parts.append(f'<rect class="share" x="{x + 0.5:.1f}" y="{HEIGHT - BOTTOM - bar:.1f}" '
                     f'width="{max(width - 1, 0.8):.1f}" height="{bar:.1f}"/>')  # fmt: skip
        if known:
            words = f"{low:.4g} to {high:.4g}: {value:.3g}, {share / shares.sum():.1%} of the pixels"
            parts.append(f'<path class="line step first" d="M{x:.1f} {frame.y(value):.1f}h{width:.1f}">'
                         f"<title>{escape(words)}</title></path>")  # fmt: skip
    return _svg(parts, f"{y_label} over {x_label}")


def interval_chart(rows: Sequence[Interval], x_label: str, zero: bool = False) -> str:
    """Values with their intervals, one row each, names at the left; `zero` marks the line where nothing differs."""
    numbers = [v for r in rows for v in (r.value, r.low, r.high, *(other for other, _ in r.others))]
    known = _finite([numbers])
    if not known.size:
        return _empty("no values")
    height = TOP + ROW * len(rows) + BOTTOM
    x_range = _padded(np.append(known, 0.0), 0.04)
    frame = _Frame(
        x_range if zero else (0.0, max(x_range[1], 1e-9)), (0.0, 1.0), (WIDE, height), NAMES, right=2 * RIGHT
    )
    parts = [frame.x_axis(x_label)]
    if zero:
        parts.append(f'<path class="axis" d="M{frame.x(0):.1f} {TOP}V{height - BOTTOM}"/>')
    parts += [_interval(row, frame, TOP + ROW * (number + 0.5)) for number, row in enumerate(rows)]
    return _svg(parts, x_label, (WIDE, height), "chart wide")


def scatter_chart(x: np.ndarray, y: np.ndarray, x_label: str, y_label: str) -> str:
    """One dot per pair on equal axes, with the diagonal on which both are the same."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return _empty("no values")
    low, top = _padded(np.concatenate([x[known], y[known]]), 0.05)
    frame = _Frame(*_equalised((low, top), (low, top)))
    corner = f"M{frame.x(low):.1f} {frame.y(low):.1f}L{frame.x(top):.1f} {frame.y(top):.1f}"
    dots = "".join(f'<circle cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="2"/>'
                   for a, b in zip(x[known], y[known], strict=True))  # fmt: skip
    parts = [frame.axes(x_label, y_label), f'<path class="mark" d="{corner}"/>', f'<g class="scatter">{dots}</g>']
    return _svg(parts, f"{y_label} over {x_label}")


def small_chart(series: Sequence[Series], title: str, y_range: tuple[float, float], level: float | None = None) -> str:
    """Lines with a dot at each value under a title, for many beside each other; `level` is a dashed line to compare."""
    xs = _finite([s.x for s in series])
    if not xs.size:
        return ""
    frame = _Frame(_padded(xs, 0.04), y_range, (SMALL_WIDTH, SMALL_HEIGHT), 38, top=26, bottom=20)
    parts = [frame.axes("", "", count=3), f'<text class="title" x="4" y="13">{escape(title)}</text>']
    if level is not None and math.isfinite(level):
        parts.append(f'<path class="mark" d="M38 {frame.y(level):.1f}H{SMALL_WIDTH - RIGHT}"/>')
    for line in series:
        parts.append(_path(line, frame))
        parts += [f'<circle class="dot {line.style}" cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="2.6">'
                  f"<title>{escape(line.label)} {a:g}: {b:.3g}</title></circle>"
                  for a, b in zip(line.x, line.y, strict=True) if math.isfinite(b)]  # fmt: skip
    return _svg(parts, title, (SMALL_WIDTH, SMALL_HEIGHT), "chart small")


def colour_bar(colours: np.ndarray, low: float, high: float, unit: str, identifier: str = "depth-colours") -> str:
    """Horizontal bar from `low` to `high` with ticks; colours (N,3) uint8 RGB, from low to high.

    Two different bars on one page need two identifiers.
    """
    shares = np.linspace(0, 1, len(colours))
    stops = "".join(
        f'<stop offset="{share:.3f}" stop-color="rgb({r},{g},{b})"/>'
        for share, (r, g, b) in zip(shares, colours, strict=True)
    )
    ticks = "".join(
        f'<text x="{10 + (value - low) / (high - low) * 400:.1f}" y="34" text-anchor="middle">{_number(value)}</text>'
        for value in nice_ticks(low, high, 6)
    )
    label = escape(f"colours from {low:g} to {high:g}, {unit}")
    return (
        f'<svg class="chart bar-scale" viewBox="0 0 {WIDTH} 52" role="img" aria-label="{label}">'
        f'<defs><linearGradient id="{identifier}">{stops}</linearGradient></defs>'
        f'<rect x="10" y="4" width="400" height="14" rx="3" fill="url(#{identifier})"/>{ticks}'
        f'<text x="210" y="49" text-anchor="middle">{escape(unit)}</text></svg>'
    )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2, 5 × 10ⁿ apart) within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


class _Frame:
    """Data → drawing units inside the margins."""

    def __init__(self, x_range, y_range, size=(WIDTH, HEIGHT), left=LEFT, top=TOP, bottom=BOTTOM, right=RIGHT):
        self.x_range, self.y_range = x_range, y_range
        self.left, self.right, self.top, self.bottom = left, size[0] - right, top, size[1] - bottom
        self.height = size[1]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def axes(self, x_label: str, y_label: str, count: int = 5) -> str:
        parts = [self.x_axis(x_label, count)]
        for value in nice_ticks(*self.y_range, count):
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{self.left} {y:.1f}H{self.right}"/>')
            parts.append(f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
        beside = f"translate(12 {(self.top + self.bottom) / 2}) rotate(-90)"
        parts.append(f'<text transform="{beside}" text-anchor="middle">{escape(y_label)}</text>')
        return "".join(parts)

    def x_axis(self, x_label: str, count: int = 5) -> str:
        parts = []
        for value in nice_ticks(*self.x_range, count):
            x = self.x(value)
            parts.append(f'<path class="grid" d="M{x:.1f} {self.top}V{self.bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{self.bottom + 15}" text-anchor="middle">{_number(value)}</text>')
        parts.append(f'<path class="axis" d="M{self.left} {self.bottom}H{self.right}"/>')
        below = f'x="{(self.left + self.right) / 2}" y="{self.height - 6}"'
        parts.append(f'<text {below} text-anchor="middle">{escape(x_label)}</text>')
        return "".join(parts)


def _interval(row: Interval, frame: _Frame, y: float) -> str:
    name = row.label if len(row.label) <= 28 else "…" + row.label[-27:]  # the end tells sequences apart
    parts = [f'<text x="{NAMES - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>']
    parts += [f'<path class="tick {style}" d="M{frame.x(other):.1f} {y - 6:.1f}v12"/>'
              for other, style in row.others if math.isfinite(other)]  # fmt: skip
    if math.isfinite(row.low) and math.isfinite(row.high):
        bar = f"M{frame.x(row.low):.1f} {y:.1f}H{frame.x(row.high):.1f}"
        parts.append(f'<path class="line thick {row.style}" d="{bar}"/>')
    if math.isfinite(row.value):
        known = math.isfinite(row.low) and math.isfinite(row.high)
        words = f"{row.label}: {row.value:.4g}" + (f", {row.low:.4g} to {row.high:.4g}" if known else "")
        parts.append(f'<circle class="dot {row.style}" cx="{frame.x(row.value):.1f}" cy="{y:.1f}" r="4">'
                     f"<title>{escape(words)}</title></circle>")  # fmt: skip
    return "".join(parts)


def _path(series: Series, frame: _Frame) -> str:
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    stride = max(1, math.ceil(len(x) / LONGEST))
    commands, pen_down = [], False
    for a, b in zip(x[::stride], y[::stride], strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{frame.x(a):.1f} {frame.y(b):.1f}")
        pen_down = True
    return f'<path class="line {series.style}" d="{"".join(commands)}"><title>{escape(series.label)}</title></path>'


def _start_dot(series: Series, frame: _Frame) -> str:
    known = np.isfinite(series.x) & np.isfinite(series.y)
    if not known.any():
        return ""
    first = int(np.argmax(known))
    x, y = frame.x(series.x[first]), frame.y(series.y[first])
    return f'<circle class="dot {series.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'


def _marks(marks: Sequence[Mark], frame: _Frame) -> list[str]:
    parts = []
    for row, mark in enumerate(sorted(marks, key=lambda m: m.x)):
        x, y = frame.x(mark.x), TOP + 10 + 15 * row
        left_of_line = x > WIDTH * 0.6
        parts.append(f'<path class="mark" d="M{x:.1f} {y - 8}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="mark-label" x="{x + (-5 if left_of_line else 5):.1f}" y="{y:.1f}" '
                     f'text-anchor="{"end" if left_of_line else "start"}">{escape(mark.label)}</text>')  # fmt: skip
    return parts


def _svg(parts: Sequence[str], label: str, size: tuple[int, int] = (WIDTH, HEIGHT), kind: str = "chart") -> str:
    attributes = f'viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(label)}"'
    return f'<svg class="{kind}" {attributes}>{"".join(parts)}</svg>'


def _empty(words: str) -> str:
    return _svg([f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">{words}</text>'], words)


def _finite(arrays: Sequence[np.ndarray]) -> np.ndarray:
    joined = np.concatenate([np.asarray(a, float).ravel() for a in arrays]) if arrays else np.zeros(0)
    return joined[np.isfinite(joined)]


def _padded(values: np.ndarray, share: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = (high - low) * share if high > low else max(abs(high) * 0.1, 1e-3)
    return low - pad, high + pad


def _equalised(x_range: tuple[float, float], y_range: tuple[float, float]):
    """Both ranges widened so that one unit is equally long on both axes."""
    per_x = (x_range[1] - x_range[0]) / (WIDTH - LEFT - RIGHT)
    per_y = (y_range[1] - y_range[0]) / (HEIGHT - TOP - BOTTOM)
    per = max(per_x, per_y)

    def widened(limits: tuple[float, float], length: float) -> tuple[float, float]:
        middle, half = sum(limits) / 2, per * length / 2
        return middle - half, middle + half

    return widened(x_range, WIDTH - LEFT - RIGHT), widened(y_range, HEIGHT - TOP - BOTTOM)


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")
