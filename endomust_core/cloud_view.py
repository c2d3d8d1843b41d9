"""Points (N,3) [m] + colours (N,3) uint8 → HTML: a cloud to turn with mouse or finger; no library, network or GPU.

The points are drawn into a pixel buffer with a depth buffer in plain JavaScript: 60 000 points take a few milliseconds,
and the page looks the same on a hospital computer without WebGL. Axes as in the camera: x right, y down, z forward.
"""

from __future__ import annotations

import base64

import numpy as np

MOST_POINTS = 60_000
HELP = (
    "Drag to turn, wheel or pinch to zoom, shift-drag to move, double click to start again. The red, green and blue "
    "lines at the camera are its x (right), y (down) and z (forward), 1 cm long."
)


def cloud_view(points: np.ndarray, colours: np.ndarray | None, identifier: str = "cloud") -> str:
    """A canvas with the finite points; more than MOST_POINTS are thinned out evenly, at random with a fixed seed."""
    points, colours = _thinned(points, colours)
    if not len(points):
        return '<p class="note">The cloud has no points.</p>'
    xyz = base64.b64encode(points.astype("<f4").tobytes()).decode()
    rgb = base64.b64encode(colours.tobytes()).decode()
    return (
        f'<div class="cloud"><canvas id="{identifier}" tabindex="0" aria-label="point cloud; arrow keys turn it">'
        f'</canvas><p class="note">{len(points)} points. {HELP}</p></div>'
        f'<script type="text/plain" id="{identifier}-xyz">{xyz}</script>'
        f'<script type="text/plain" id="{identifier}-rgb">{rgb}</script>'
        f"<script>({SCRIPT})({identifier!r});</script>"
    )


def _thinned(points: np.ndarray, colours: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    points = np.asarray(points, np.float32).reshape(-1, 3)
    colours = np.full((len(points), 3), 150, np.uint8) if colours is None else np.asarray(colours, np.uint8)
    finite = np.isfinite(points).all(axis=1)
    points, colours = points[finite], colours.reshape(-1, 3)[finite]
    if len(points) > MOST_POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(points), MOST_POINTS, replace=False))
        points, colours = points[chosen], colours[chosen]
    return points, np.ascontiguousarray(colours)


SCRIPT = """function (id) {
  const bytes = name => Uint8Array.from(atob(document.getElementById(id + name).textContent), c => c.charCodeAt(0));
  const xyz = new Float32Array(bytes('-xyz').buffer), rgb = bytes('-rgb'), count = xyz.length / 3;
  const canvas = document.getElementById(id), context = canvas.getContext('2d');
  const median = axis => { const v = new Float32Array(count); for (let i = 0; i < count; i++) v[i] = xyz[3 * i + axis];
    v.sort(); return v[count >> 1]; };
  const centre = [median(0), median(1), median(2)];
  const reach = new Float32Array(count);
  for (let i = 0; i < count; i++) reach[i] = Math.hypot(xyz[3*i]-centre[0], xyz[3*i+1]-centre[1], xyz[3*i+2]-centre[2]);
  const radius = reach.slice().sort()[Math.floor(count * 0.95)] || 0.01;
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
    const origin = project(0, 0, 0);
    [['#d33', 0.01, 0, 0], ['#2a2', 0, 0.01, 0], ['#36d', 0, 0, 0.01]].forEach(([colour, x, y, z]) => {
      const tip = project(x, y, z);
      if (!origin || !tip) return;
      context.strokeStyle = colour; context.lineWidth = Math.max(2, dot); context.beginPath();
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
  home(); draw();
}"""
