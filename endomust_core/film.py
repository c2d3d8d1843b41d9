"""Colour and depth (H,W) [m] of every image, side by side → an MP4 video with a fixed colour scale [mm].

The scale is chosen from the first second and then stays: a scale that follows the scene would hide what a user looks
for, depth that jumps or swells from one image to the next.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from endomust_core.recording import RecordingError

PANEL = 480  # pixels, the widest each half may be; encoding larger ones would hold up the networks on two cores
FIRST = 25  # images from which the range is chosen
MARGIN = (0.8, 1.25)  # of the 2nd and the 98th percentile of depth in them
BAR = 26  # pixels, height of the strip with the scale
FONT, INK = cv2.FONT_HERSHEY_SIMPLEX, (235, 235, 235)
UNKNOWN = (90, 90, 90)  # grey where there is no depth


class Film:
    """`add` images of any size; the first one decides the size of the video. MPEG-4 Part 2, which OpenCV brings."""

    def __init__(self, path: str | Path, rate: float):
        self.path, self.rate = Path(path), rate
        self.images = 0
        self.range_m: tuple[float, float] | None = None
        self._first: list[tuple[np.ndarray, np.ndarray, float]] = []
        self._size: tuple[int, int] | None = None  # width, height of a panel
        self._video: cv2.VideoWriter | None = None

    def add(self, rgb: np.ndarray, depth: np.ndarray, seconds: float) -> None:
        """One image with its depth; `seconds` since the start is shown. RecordingError when no video can be made."""
        if self._size is None:
            height, width = rgb.shape[:2]
            scale = min(1.0, PANEL / width)
            self._size = max(2, round(width * scale) // 2 * 2), max(2, round(height * scale) // 2 * 2)
        picture = _small_bgr(rgb, self._size)
        small = cv2.resize(depth, self._size, interpolation=cv2.INTER_NEAREST)  # an average would mix in unknown pixels
        if self.range_m is not None:
            self._write(picture, small, seconds)
            return
        self._first.append((picture, small, seconds))
        if len(self._first) == FIRST:
            self._begin()

    def close(self) -> Path | None:
        """Finish the video and look whether it is whole; None when there was no image."""
        if self._first:
            self._begin()
        if self._video is None:
            return None
        self._video.release()
        self._video = None
        check = cv2.VideoCapture(str(self.path))
        frames = int(check.get(cv2.CAP_PROP_FRAME_COUNT)) if check.isOpened() else 0
        check.release()
        if frames != self.images:  # OpenCV says nothing when the disk takes no more
            raise RecordingError(f"{self.path.name} holds {frames} of {self.images} frames; is the disk full?")
        return self.path

    def abandon(self) -> None:
        """Let go of the file, whatever is in it."""
        if self._video is not None:
            self._video.release()

    def _begin(self) -> None:
        coarse = [depth[::8, ::8] for _, depth, _ in self._first]
        joined = np.concatenate([depth[np.isfinite(depth)] for depth in coarse])
        low, high = np.percentile(joined, (2, 98)) if joined.size else (0.01, 0.1)
        self.range_m = float(low) * MARGIN[0], float(high) * MARGIN[1]
        width, height = self._size
        size = (2 * width, height + BAR)
        self._video = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), self.rate, size)
        if not self._video.isOpened():
            raise RecordingError(f"{self.path.name} cannot be written: OpenCV has no MPEG-4 encoder here")
        self._bar = _scale_bar(width, *self.range_m)
        first, self._first = self._first, []
        for picture, depth, seconds in first:
            self._write(picture, depth, seconds)

    def _write(self, bgr: np.ndarray, depth: np.ndarray, seconds: float) -> None:
        width, height = self._size
        frame = np.empty((height + BAR, 2 * width, 3), np.uint8)
        frame[:height, :width] = bgr
        frame[:height, width:] = painted(depth, *self.range_m)
        frame[height:, :width] = 0
        frame[height:, width:] = self._bar
        cv2.putText(frame, f"{seconds:8.2f} s", (6, height + BAR - 8), FONT, 0.45, INK, 1, cv2.LINE_8)
        self._video.write(frame)
        self.images += 1


def painted(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H,W) float32 depth [m] → (H,W,3) uint8 BGR: near is red, far is blue, grey where unknown."""
    known = cv2.inRange(depth, 1e-9, float(np.finfo(np.float32).max))  # NaN and infinite are outside every range
    scale = -255.0 / (high - low)
    levels = cv2.convertScaleAbs(np.clip(depth, low, high), alpha=scale, beta=-scale * high)
    bgr = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)
    if cv2.countNonZero(known) < known.size:
        bgr[known == 0] = UNKNOWN
    return bgr


def _small_bgr(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H,W,3) RGB → BGR of `size` (width, height); what is BGR seen from the other end is not turned twice."""
    mirrored = rgb.strides[2] < 0
    image = rgb[..., ::-1] if mirrored else rgb
    while image.shape[1] >= 2 * size[0] and image.shape[0] >= 2 * size[1]:  # halves are means, and fast
        half = image.shape[1] // 2, image.shape[0] // 2
        image = cv2.resize(image, half, interpolation=cv2.INTER_AREA)
    if (image.shape[1], image.shape[0]) != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return image if mirrored else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)


def _scale_bar(width: int, low: float, high: float) -> np.ndarray:
    """(BAR,width,3) BGR: the colours with their depth in millimetres."""
    bar = np.zeros((BAR, width, 3), np.uint8)
    left, right = 70, width - 90
    if right - left < 40:
        return bar
    ramp = np.linspace(low, high, right - left, dtype=np.float32)[None].repeat(BAR - 14, 0)
    bar[7 : BAR - 7, left:right] = painted(ramp, low, high)
    cv2.putText(bar, f"{low * 1e3:.0f} mm", (8, BAR - 8), FONT, 0.45, INK, 1, cv2.LINE_8)
    cv2.putText(bar, f"{high * 1e3:.0f} mm", (right + 8, BAR - 8), FONT, 0.45, INK, 1, cv2.LINE_8)
    return bar
