"""Points (N,3) [m] + colours (N,3) uint8, and paths → HTML: a scene to turn with mouse or finger; no library or GPU.

The points are drawn into a pixel buffer with a depth buffer in plain JavaScript: 60 000 points take a few milliseconds,
and the page looks the same on a hospital computer without WebGL. Axes as in the camera: x right, y down, z forward.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_POINTS = 60_000
LONGEST = 2000  # vertices of a path
TURN = "Drag to turn, wheel or pinch to zoom, shift-drag to move, double click to start again."


@dataclass(frozen=True)
class Path3D:
    """A line through (N,3) positions [m], not finite ones left out; `style` is a colour of the page's style sheet."""

    positions: np.ndarray
    style: str = "first"
    width: float = 2.0  # CSS pixels
    start: bool = True  # a dot where it starts


def cloud_view(
    points: np.ndarray, colours: np.ndarray | None, identifier: str = "cloud", paths: Sequence[Path3D] = ()
) -> str:
    """A canvas with the finite points and paths; more than MOST_POINTS are thinned out evenly, with a fixed seed.

    The camera of the points sits at the origin, where lines of 1 cm show its axes. Two views on one page need two
    identifiers.
    """
    points, colours = _thinned(points, colours)
    if not len(points):
        return '<p class="note">The cloud has no points.</p>'
    centre = np.median(points, axis=0)
    radius = float(np.quantile(np.linalg.norm(points - centre, axis=1), 0.95))
    words = f"{len(points)} points. {TURN} {_axes_words('at the camera', 'x (right), y (down) and z (forward), 1 cm')}"
    return _view(points, colours, paths, centre, radius, ([0.0, 0.0, 0.0], 0.01), words, identifier)


def path_view(paths: Sequence[Path3D], identifier: str = "path") -> str:
    """A canvas with paths alone in a box that holds them; lengths in the text under it."""
    known = [positions for path in paths if len(positions := _finite(path.positions))]
    if not known:
        return '<p class="note">There is no path.</p>'
    joined = np.concatenate(known)
    low, high = joined.min(axis=0), joined.max(axis=0)
    centre, radius = (low + high) / 2, float(np.linalg.norm(high - low)) * 0.6 or 0.01
    length = 10.0 ** math.floor(math.log10(radius))
    sides = " x ".join(f"{1e3 * side:.3g}" for side in high - low)
    words = f"The box is {sides} mm. {TURN} {_axes_words('in the corner', f'x, y and z, {1e3 * length:g} mm')}"
    box = [Path3D(edge, "muted", 0.6, start=False) for edge in _box_edges(low, high)]
    none = np.zeros((0, 3))
    return _view(none, none, [*box, *paths], centre, radius, (low.tolist(), length), words, identifier)


def _axes_words(where: str, axes: str) -> str:
    return f"The red, green and blue lines {where} are {axes} long."


def _view(points, colours, paths, centre, radius, axes, words: str, identifier: str) -> str:
    xyz = base64.b64encode(np.asarray(points, "<f4").tobytes()).decode()
    rgb = base64.b64encode(np.asarray(colours, np.uint8).tobytes()).decode()
    scene = {
        "centre": [float(v) for v in centre],
        "radius": radius if radius > 0 else 0.01,
        "origin": axes[0],
        "axis": axes[1],
        "paths": [_vertices(path) for path in paths],
    }
    return (
        f'<div class="cloud"><canvas id="{identifier}" tabindex="0" aria-label="three-dimensional view; arrow keys '
        f'turn it"></canvas><p class="note">{words}</p></div>'
        f'<script type="text/plain" id="{identifier}-xyz">{xyz}</script>'
        f'<script type="text/plain" id="{identifier}-rgb">{rgb}</script>'
        f"<script>({SCRIPT})({json.dumps(identifier)}, {json.dumps(scene)});</script>"
    )


def _vertices(path: Path3D) -> dict:
    positions = _finite(path.positions)
    positions = positions[:: max(1, math.ceil(len(positions) / LONGEST))]
    flat = [float(f"{value:.6g}") for value in positions.ravel()]
    return {"style": path.style, "width": path.width, "start": path.start, "xyz": flat}


def _finite(positions: np.ndarray) -> np.ndarray:
    positions = np.asarray(positions, np.float64).reshape(-1, 3)
    return positions[np.isfinite(positions).all(axis=1)]


def _box_edges(low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    corners = np.array(list(itertools.product((0, 1), repeat=3)))
    edges = [pair for pair in itertools.combinations(corners, 2) if np.abs(pair[0] - pair[1]).sum() == 1]
    return [np.where(np.array(edge), high, low) for edge in edges]


def _thinned(points: np.ndarray, colours: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(points, np.float32).reshape(-1, 3)
    colours = np.full((len(points), 3), 150, np.uint8) if colours is None else np.asarray(colours, np.uint8)
    finite = np.isfinite(points).all(axis=1)
    points, colours = points[finite], colours.reshape(-1, 3)[finite]
    if len(points) > MOST_POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(points), MOST_POINTS, replace=False))
        points, colours = points[chosen], colours[chosen]
    return points, np.ascontiguousarray(colours)


SCRIPT = """function (id, scene) {
  const bytes = name => Uint8Array.from(atob(document.getElementById(id + name).textContent), c => c.charCodeAt(0));
  const xyz = new Float32Array(bytes('-xyz').buffer), rgb = bytes('-rgb'), count = xyz.length / 3;
  const canvas = document.getElementById(id), context = canvas.getContext('2d');
  const {centre, radius} = scene;
  let yaw, pitch, zoom, shiftX, shiftY, image, depth, waiting = false;
  function home() { yaw = -0.45; pitch = -0.3; zoom = 1; shiftX = 0; shiftY = 0; }
  function ask() { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } }
  function fit() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const pixels = length => Math.max(1, Math.round(length * ratio));
    const w = pixels(canvas.clientWidth), h = pixels(canvas.clientHeight);
    if (canvas.width !== w || canvas.height !== h || !image) {
      canvas.width = w; canvas.height = h; image = context.createImageData(w, h); depth = new Float32Array(w * h); }
  }
  function draw() {
    fit();
    const w = canvas.width, h = canvas.height, pixels = new Uint32Array(image.data.buffer);
    pixels.fill(0); depth.fill(Infinity);
    const cy = Math.cos(yaw), sy = Math.sin(yaw), cp = Math.cos(pitch), sp = Math.sin(pitch);
    const far = radius * 2.3 / zoom, focal = Math.min(w, h) * 1.25;
    const dot = Math.max(1, Math.round(Math.min(w, h) / 170));
    const project = (x, y, z) => {
      x -= centre[0]; y -= centre[1]; z -= centre[2];
      const a = cy * x + sy * z, b = -sy * x + cy * z, c = cp * y - sp * b, d = sp * y + cp * b + far;
      return d > 0.01 * far ? [w / 2 + shiftX + focal * a / d, h / 2 + shiftY + focal * c / d, d] : null;
    };
    for (let i = 0; i < count; i++) {
      const p = project(xyz[3 * i], xyz[3 * i + 1], xyz[3 * i + 2]);
      if (!p) continue;
      const colour = 0xff000000 | rgb[3 * i + 2] << 16 | rgb[3 * i + 1] << 8 | rgb[3 * i];
      const size = Math.min(8, Math.max(1, Math.round(dot * far / p[2])));
      const u = Math.round(p[0] - size / 2), v = Math.round(p[1] - size / 2);
      for (let y = Math.max(0, v); y < Math.min(h, v + size); y++)
        for (let x = Math.max(0, u); x < Math.min(w, u + size); x++)
          if (p[2] < depth[y * w + x]) { depth[y * w + x] = p[2]; pixels[y * w + x] = colour; }
    }
    context.putImageData(image, 0, 0);
    const ratio = canvas.width / canvas.clientWidth, colours = getComputedStyle(canvas);
    const colour = style => colours.getPropertyValue('--' + style) || '#888';
    const pen = (style, width) => {
      context.strokeStyle = context.fillStyle = style; context.lineWidth = width * ratio;
      context.lineJoin = 'round'; context.beginPath(); };
    for (const path of scene.paths) {
      pen(colour(path.style), path.width);
      let down = false, first = null;
      for (let i = 0; i < path.xyz.length; i += 3) {
        const p = project(path.xyz[i], path.xyz[i + 1], path.xyz[i + 2]);
        if (p) { if (down) context.lineTo(p[0], p[1]); else context.moveTo(p[0], p[1]); first = first || p; }
        down = p !== null;
      }
      context.stroke();
      if (path.start && first) {
        context.beginPath(); context.arc(first[0], first[1], 4 * ratio, 0, 7); context.fill(); }
    }
    const [ox, oy, oz] = scene.origin, origin = project(ox, oy, oz), l = scene.axis;
    [['#d33', l, 0, 0], ['#2a2', 0, l, 0], ['#36d', 0, 0, l]].forEach(([style, x, y, z]) => {
      const tip = project(ox + x, oy + y, oz + z);
      if (!origin || !tip) return;
      pen(style, 2);
      context.moveTo(origin[0], origin[1]); context.lineTo(tip[0], tip[1]); context.stroke();
    });
  }
  const fingers = new Map();
  const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
  const zoomBy = factor => { zoom = Math.min(12, Math.max(0.3, zoom * factor)); ask(); };
  canvas.addEventListener('pointerdown', e => {
    canvas.setPointerCapture(e.pointerId);
    fingers.set(e.pointerId, {x: e.clientX, y: e.clientY});
  });
  canvas.addEventListener('pointermove', e => {
    const last = fingers.get(e.pointerId);
    if (!last) return;
    const before = fingers.size === 2 ? spread() : 0, dx = e.clientX - last.x, dy = e.clientY - last.y;
    last.x = e.clientX; last.y = e.clientY;
    if (fingers.size === 2) { if (before > 0) zoomBy(spread() / before); return; }
    if (e.shiftKey) { const ratio = canvas.width / canvas.clientWidth; shiftX += dx * ratio; shiftY += dy * ratio; }
    else { yaw -= dx * 0.008; pitch = Math.max(-1.55, Math.min(1.55, pitch + dy * 0.008)); }
    ask();
  });
  const lift = e => fingers.delete(e.pointerId);
  ['pointerup', 'pointercancel'].forEach(name => canvas.addEventListener(name, lift));
  const wheel = e => { e.preventDefault(); zoomBy(Math.exp(-e.deltaY * 0.0015)); };
  canvas.addEventListener('wheel', wheel, {passive: false});
  canvas.addEventListener('dblclick', () => { home(); ask(); });
  canvas.addEventListener('keydown', e => {
    const turn = {ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1]}[e.key];
    if (turn) { yaw += turn[0]; pitch = Math.max(-1.55, Math.min(1.55, pitch + turn[1])); ask(); e.preventDefault(); }
    if (e.key === '+' || e.key === '-') zoomBy(e.key === '+' ? 1.15 : 1 / 1.15);
  });
  new ResizeObserver(ask).observe(canvas);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', ask);
  home(); draw();
}"""
