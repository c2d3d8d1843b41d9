"""Numbers → SVG text: line charts, histograms and a colour bar; colours come from the style sheet of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 420, 260  # drawing units; near the size on a phone, so that letters stay readable there
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 40
LONGEST = 1000  # points drawn per line; more are thinned out


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


def colour_bar(colours: np.ndarray, low: float, high: float, unit: str) -> str:
    """Horizontal bar from `low` to `high` with ticks; colours (N,3) uint8 RGB, from low to high."""
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
        f'<defs><linearGradient id="depth-colours">{stops}</linearGradient></defs>'
        f'<rect x="10" y="4" width="400" height="14" rx="3" fill="url(#depth-colours)"/>{ticks}'
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

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]):
        self.x_range, self.y_range = x_range, y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = []
        for value in nice_ticks(*self.x_range):
            x = self.x(value)
            parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{_number(value)}</text>')
        for value in nice_ticks(*self.y_range):
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
        parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
        below, beside = f'x="{(LEFT + right) / 2}" y="{HEIGHT - 6}"', f"translate(12 {(TOP + bottom) / 2}) rotate(-90)"
        parts.append(f'<text {below} text-anchor="middle">{escape(x_label)}</text>')
        parts.append(f'<text transform="{beside}" text-anchor="middle">{escape(y_label)}</text>')
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


def _svg(parts: Sequence[str], label: str) -> str:
    attributes = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}"'
    return f'<svg class="chart" {attributes}>{"".join(parts)}</svg>'


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
