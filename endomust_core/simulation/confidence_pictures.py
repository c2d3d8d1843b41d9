"""Scores and sequences of confidence_check → PNG: sparsification curves, reliability, and a sheet of examples."""

from pathlib import Path

import cv2
import numpy as np

from endomust_core.confidence import Confidence

COLOURS = {  # RGB
    "confidence": (0, 90, 200),
    "geometric alone": (200, 110, 0),
    "photometric alone": (0, 140, 90),
    "oracle": (150, 150, 150),
}
PANEL, LEFT, BOTTOM, TOP = (300, 240), 52, 40, 26  # pixels
WRONG = 0.3  # relative error that is drawn in the last colour
SHOWN = (0.3, 0.5, 0.7, 0.9)  # of a sequence


def draw(sequences, curves: dict, out: Path) -> None:
    """confidence_sparsification.png, confidence_reliability.png, confidence_examples.png; `curves` of `report`."""
    from endomust_core.simulation.confidence_check import DOMAINS, reliability, sparsified

    out.mkdir(parents=True, exist_ok=True)
    domains = [domain for domain in DOMAINS if (domain, "confidence") in curves]
    panels = []
    for domain in domains:
        lines = {}
        for label in ("confidence", "geometric alone", "photometric alone"):
            lines[label] = np.mean([sparsified(v, e) for v, e in curves[domain, label]], axis=0)
        lines["oracle"] = np.mean([sparsified(-e, e) for _, e in curves[domain, "confidence"]], axis=0)
        top = 1.15 * max(line.max() for line in lines.values())
        share = np.arange(50) / 50
        panels.append(panel(domain, {k: (share, v) for k, v in lines.items()}, top, "removed", "mean error"))
    _save(out / "confidence_sparsification.png", np.hstack(panels))
    panels = []
    for domain in domains:
        value, error = (np.concatenate(parts) for parts in zip(*curves[domain, "confidence"], strict=True))
        table = reliability(value, error)
        table = table[table[:, 2] > 0.005]
        lines = {"oracle": (np.array([0, 1]), np.array([0, 1])), "confidence": (table[:, 0], table[:, 1])}
        panels.append(panel(domain, lines, 1.0, "confidence", "share right"))
    _save(out / "confidence_reliability.png", np.hstack(panels))
    rows = [example(next(s for s in sequences if s.name.startswith(domain))) for domain in domains]
    _save(out / "confidence_examples.png", np.vstack(rows))


def panel(title: str, lines: dict, top: float, x_label: str, y_label: str) -> np.ndarray:
    """(h,w,3) uint8 RGB: a small chart of x in 0..1 and y in 0..top; lines: label → (x, y)."""
    width, height = PANEL
    picture = np.full((height + TOP + BOTTOM, width + LEFT + 12, 3), 255, np.uint8)
    place = lambda x, y: (LEFT + np.asarray(x) * width, TOP + (1 - np.asarray(y) / top) * height)  # noqa: E731
    for tick in np.linspace(0, 1, 6):
        (x, y), (_, level) = place(tick, 0), place(0, tick * top)
        cv2.line(picture, (LEFT, int(level)), (LEFT + width, int(level)), (230, 230, 230), 1)
        _write(picture, f"{tick:.1f}", (int(x) - 10, int(y) + 16))
        _write(picture, f"{tick * top:.2f}", (LEFT - 34, int(level) + 4))
    for number, (label, (x, y)) in enumerate(lines.items()):
        points = np.stack(place(x, np.minimum(y, top)), -1).round().astype(np.int32)
        cv2.polylines(picture, [points], False, COLOURS[label], 2, cv2.LINE_AA)
        if title and len(lines) > 2:
            _write(picture, label, (LEFT + 8, TOP + height - 10 - 15 * number), COLOURS[label])
    _write(picture, title, (LEFT, 17), scale=0.5)
    _write(picture, x_label, (LEFT + width // 2 - 24, TOP + height + 33))
    _write(picture, y_label, (LEFT + 60, 17))
    return picture


def example(sequence) -> np.ndarray:
    """(h,w,3) RGB: rows of image with masks, depth, true error and confidence of some images, with refined motion."""
    generator, confidence = np.random.default_rng(0), Confidence()
    shown, columns = {int(share * len(sequence.rgb)) for share in SHOWN}, []
    for i, rgb in enumerate(sequence.rgb):
        T = sequence.motion(i, "refined", generator)
        judgement = confidence.judge(rgb, sequence.depth[i], sequence.camera, T)
        if i in shown:
            truth = np.where(sequence.fov[i], sequence.truth[i], np.nan)
            columns.append(np.vstack(tiles(rgb, sequence.depth[i], judgement, truth)))
    return np.hstack(columns)


def tiles(rgb: np.ndarray, depth: np.ndarray, judgement, truth: np.ndarray | None = None) -> list[np.ndarray]:
    """Four (three without truth) pictures (h,w,3): image with masks, depth, error, confidence (bright is good)."""
    marked = rgb.copy()
    for mask, colour in (
        (judgement.masked, (0, 120, 255)),
        (judgement.specular, (0, 255, 0)),
        (judgement.border, (90, 0, 90)),
    ):
        marked[mask] = (0.45 * marked[mask] + 0.55 * np.array(colour)).astype(np.uint8)
    with np.errstate(invalid="ignore", divide="ignore"):
        inverse = np.nan_to_num(1 / depth)
        rows = [marked, _colour(inverse / max(np.percentile(inverse, 99), 1e-9), cv2.COLORMAP_TURBO)]
        if truth is not None:
            ratio = depth / truth
            error = np.abs(ratio / np.nanmedian(ratio) - 1)
            shown = _colour(np.nan_to_num(error) / WRONG, cv2.COLORMAP_INFERNO)
            rows.append(np.where(np.isfinite(error)[..., None], shown, np.uint8(60)))
    return [*rows, _colour(judgement.value, cv2.COLORMAP_VIRIDIS)]


def _colour(values: np.ndarray, colours: int) -> np.ndarray:
    return cv2.applyColorMap((255 * np.clip(values, 0, 1)).astype(np.uint8), colours)[..., ::-1]


def _write(picture, words: str, place, colour=(40, 40, 40), scale: float = 0.38) -> None:
    cv2.putText(picture, words, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)


def _save(path: Path, picture: np.ndarray) -> None:
    cv2.imwrite(str(path), np.ascontiguousarray(picture[..., ::-1]))
