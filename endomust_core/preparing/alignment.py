"""Does every depth belong to its image? Edges of depth against edges of the images up to five frames away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from endomust_core.data import DataError, Dataset

REACH = 5  # frames to either side
SAMPLES = 24  # depths that are compared, spread over the sequence
WIDTH = 320  # px
LEAST_GAIN = 0.01  # of correlation; less than this decides nothing


@dataclass(frozen=True)
class Alignment:
    """How far the images are from the depths they are stored with."""

    offset: int  # image i + offset fits depth i best
    decided: bool  # the best offset stands out from zero (or zero from the others)
    correlations: tuple[float, ...]  # mean over the samples, for -REACH to REACH
    samples: int

    def sentence(self) -> str | None:
        """What a person has to know, None where all is well or nothing can be said."""
        if not self.decided or self.offset == 0:
            return None
        side = "after" if self.offset > 0 else "before"
        best, zero = self.correlations[self.offset + REACH], self.correlations[REACH]
        return (
            f"image and depth look shifted: the image {abs(self.offset)} frames {side} "
            f"fits each depth better (correlation of edges {best:.3f} against {zero:.3f}, {self.samples} frames); "
            "extract the frames again, with a decoder that drops and repeats none"
        )


def check_alignment(sequence: Dataset) -> Alignment | None:
    """The offset at which edges of images correlate best with those of depth; None where too little is known.

    Measured on up to 24 depths of one sequence. An offset other than zero counts where it beats zero on average by
    0.01 of correlation and by two standard errors over the samples.
    """
    numbers = {item.index: number for number, item in enumerate(sequence.items)}
    middles = [index for index in numbers if all(index + k in numbers for k in range(-REACH, REACH + 1))]
    if not middles:
        return None
    chosen = sorted({middles[round(at)] for at in np.linspace(0, len(middles) - 1, SAMPLES)})
    edges = lru_cache(maxsize=2 * REACH + 1)(lambda index: _image_edges(sequence.read(numbers[index], depth=False).rgb))
    rows = [row for index in chosen if (row := _correlations(sequence.read, numbers[index], index, edges)) is not None]
    if len(rows) < 3:
        return None
    table = np.array(rows)
    mean = table.mean(0)
    best = int(mean.argmax())
    others = np.where(np.arange(len(mean)) == REACH, -np.inf, mean)
    gain = table[:, best] - table[:, REACH if best != REACH else int(others.argmax())]
    stands_out = gain.mean() > LEAST_GAIN and gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain))
    return Alignment(best - REACH, bool(stands_out), tuple(float(value) for value in mean), len(rows))


def _correlations(read: Callable, number: int, index: int, image_edges: Callable) -> np.ndarray | None:
    """(2·REACH+1,) correlation of the depth's edges with those of the images around it."""
    try:
        depth = read(number).depth
        around = [image_edges(index + k) for k in range(-REACH, REACH + 1)]
    except DataError:
        return None
    if depth is None:
        return None
    edges, counted = _depth_edges(depth)
    if counted.sum() < 500 or edges[counted].std() == 0:
        return None
    scores = []
    for near in around:
        near = near[counted]
        scores.append(np.corrcoef(edges[counted], near)[0, 1] if near.std() > 0 else 0.0)
    return np.array(scores)


def _small(shape: tuple[int, ...]) -> tuple[int, int]:
    width = min(WIDTH, shape[1])
    return width, max(1, round(shape[0] * width / shape[1]))


def _image_edges(rgb: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = cv2.resize(grey, _small(rgb.shape), interpolation=cv2.INTER_AREA)
    return _gradient(np.log(grey + 8))


def _depth_edges(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Size of the gradient of log depth, and where it is known on all sides."""
    size = _small(depth.shape)
    known = np.isfinite(depth) & (depth > 0)
    share = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    logs = np.where(known, np.log(np.where(known, depth, 1)), 0).astype(np.float32)
    logs = cv2.resize(logs, size, interpolation=cv2.INTER_AREA) / np.maximum(share, 1e-6)
    whole = cv2.erode((share > 0.99).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    return _gradient(np.where(share > 0, logs, 0)), whole


def _gradient(image: np.ndarray) -> np.ndarray:
    """Log of the gradient's size, blurred a little: edges of both kinds are rarely on the same pixel."""
    x, y = cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)
    return np.log(cv2.GaussianBlur(np.hypot(x, y), (0, 0), 1.0) + 1e-3)
