"""Depth (h,w) over time: where a pixel was in the image before, a filter against flicker, jumps of scale; T_prev_curr.

Everything works on logarithms of depth, so units do not matter as long as depth and T_prev_curr share them.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.cloud import ray_planes

NOWHERE = -1e4  # pixel coordinate of what was not seen
CONSISTENT = 0.06  # relative difference of shape at which the filter trusts a pixel's past by 1/e
CHANGED = 0.05  # steady difference of scale at which the filter lets go of the past by 1/e
STEADY = 0.2  # how fast the mean of that difference follows, per image
FARTHEST = 0.25  # log: the filter never moves depth by more than this, whatever it remembers
FEWEST = 200  # pixels seen in both images, below which nothing is said about their common scale


@dataclass(frozen=True)
class Warp:
    """Where the pixels of an image were in an earlier one."""

    x: np.ndarray  # (h,w) float32 pixel there; NOWHERE where the depth is invalid or the point lay behind the camera
    y: np.ndarray
    depth: np.ndarray  # (h,w) float32 depth of the point as seen from there
    parallax: tuple[np.ndarray, np.ndarray] | None  # (h,w) [pixels]: how x, y move when log depth grows by one

    def sample(self, image: np.ndarray, outside: float = np.nan) -> np.ndarray:
        """The earlier image (h,w) or (h,w,n) float32 as it looks from now; `outside` where it was not seen."""
        return cv2.remap(
            image, self.x, self.y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(outside,) * 4
        )


def warp(depth: np.ndarray, camera: Camera, T_prev_curr: np.ndarray, with_parallax: bool = False) -> Warp:
    """depth (h,w) and the motion (4,4), in one unit, and a pinhole camera of that grid → Warp. Raises ValueError."""
    if camera.is_distorted or (camera.height, camera.width) != depth.shape:
        raise ValueError(
            f"depth is {depth.shape[1]}x{depth.shape[0]} and the camera {camera.width}x{camera.height} "
            f"({camera.model}); undistort the image and give camera.pinhole().resized(width, height) of the depth grid"
        )
    x, y, _ = ray_planes(camera)
    T = T_prev_curr.astype(np.float32)
    t = T[:3, 3]
    valid = (depth > 0) & (depth < np.inf)  # False for NaN
    z = np.where(valid, depth, np.float32(1))
    ax, ay, az = (x * row[0] + (y * row[1] + row[2]) for row in T[:3, :3])
    Z = az * z + t[2]
    ahead = valid & (Z > 1e-3 * z) & np.isfinite(Z)
    inverse = 1 / np.where(ahead, Z, np.float32(1))
    fx, fy = np.float32(camera.fx), np.float32(camera.fy)
    u = (ax * z + t[0]) * (fx * inverse) + np.float32(camera.cx)
    v = (ay * z + t[1]) * (fy * inverse) + np.float32(camera.cy)
    parallax = None
    if with_parallax:
        steep = z * inverse * inverse  # the derivative of the quotient
        parallax = fx * steep * (ax * t[2] - az * t[0]), fy * steep * (ay * t[2] - az * t[1])
    # Far outside is as good as nowhere; larger numbers overflow the fixed-point coordinates of OpenCV.
    ahead &= (np.abs(u) < -NOWHERE) & (np.abs(v) < -NOWHERE)
    u, v = np.where(ahead, u, np.float32(NOWHERE)), np.where(ahead, v, np.float32(NOWHERE))
    return Warp(u, v, Z, parallax)


def log_depth(depth: np.ndarray) -> np.ndarray:
    """(h,w) depth → its logarithm, float32, NaN where it is not positive and finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((depth > 0) & (depth < np.inf), np.log(depth), np.nan).astype(np.float32)


def common(residual: np.ndarray, mask: np.ndarray | None = None) -> float | None:
    """Median of the finite values (h,w) on a coarse grid, where `mask` is True; None when too few are left."""
    coarse = residual[::2, ::2]
    good = np.isfinite(coarse)
    if mask is not None:
        good &= mask[::2, ::2]
    values = coarse[good]
    if values.size < FEWEST:
        return None
    middle = values.size // 2
    values.partition(middle)  # np.median looks for NaN again and costs twice as much
    return float(values[middle])


class TemporalFilter:
    """Blends depth with what the image before says of it, moved by the motion of the camera; per pixel and for scale.

    A convex blend of the network's depth with a prediction, so it forgets on its own. Three things keep it honest: a
    pixel whose past does not fit (an instrument, new tissue, an edge) keeps the network's shape; a difference of scale
    that stays the same for some images is a real change and is followed within a second; and the filter never moves
    depth by more than FARTHEST.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget the image before."""
        self._before: np.ndarray | None = None  # (h,w) float32 log of the filtered depth
        self._steady = 0.0  # mean of the last differences of scale, log

    def apply(
        self,
        depth: np.ndarray,
        camera: Camera | None,
        T_prev_curr: np.ndarray | None,
        strength: float,
        confidence: np.ndarray | None = None,
    ) -> np.ndarray:
        """→ factor (h,w) float32 to multiply depth (h,w) with, always positive and finite.

        strength 0..0.99 is the share of the past; ones when it is 0, without motion, and on the first image.
        `confidence` (h,w) 0..1: pixels below 0.1 have no say in the common scale and no past. Raises ValueError.
        """
        if not 0 <= strength < 1:
            raise ValueError(f"the strength of the temporal filter is {strength}; it must lie in 0..0.99")
        now = log_depth(depth)
        if self._before is not None and self._before.shape != now.shape:
            self.reset()
        usable = camera is not None and T_prev_curr is not None and np.isfinite(T_prev_curr).all()
        if strength == 0 or not usable or self._before is None:
            self._before, self._steady = now, 0.0
            return np.ones(depth.shape, np.float32)
        change = self._change(depth, now, warp(depth, camera, T_prev_curr), strength, confidence)
        self._before = now + change
        return np.exp(change)

    def _change(self, depth, now, moved: Warp, strength: float, confidence) -> np.ndarray:
        """(h,w) float32 to add to the log of depth."""
        with np.errstate(invalid="ignore", divide="ignore"):
            # What a point has gained in depth by the motion is added to its depth as it was before.
            residual = moved.sample(self._before) - np.log(moved.depth)
        trusted = None if confidence is None else confidence >= 0.1
        scale = common(residual, trusted)
        if scale is None:
            self._steady = 0.0
            return np.zeros(depth.shape, np.float32)
        self._steady += STEADY * (scale - self._steady)
        strength *= math.exp(-((self._steady / CHANGED) ** 2))
        shape = residual - np.float32(scale)
        weight = np.exp(-np.square(shape / np.float32(CONSISTENT)))
        known = np.isfinite(weight) if trusted is None else np.isfinite(weight) & trusted
        weight = np.where(known, weight, np.float32(0))
        weight = cv2.blur(cv2.erode(weight, np.ones((3, 3), np.uint8)), (3, 3))  # no seam where the past ends
        shape = np.where(known, shape, np.float32(0))
        return np.clip(np.float32(strength) * (np.float32(scale) + weight * shape), -FARTHEST, FARTHEST)


class ScaleJumps:
    """Says when the common scale of the depth leaps between two images, and counts; feeds on `scale_ratio`s.

    A jump is a ratio more than 15 % and more than 5 robust sigmas (median absolute deviation of the last 100 ratios)
    away from the usual one.
    """

    LEAST, SIGMAS, WINDOW, FIRST = math.log(1.15), 5.0, 100, 10

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget all; the count starts again."""
        self._last: deque[float] = deque(maxlen=self.WINDOW)
        self.count = 0
        self.images = 0

    def add(self, ratio: float | None) -> bool:
        """The ratio of this image's scale to the one before → True for a jump; None where it is not known."""
        if ratio is None or not (math.isfinite(ratio) and ratio > 0):
            return False
        value, usual, sigma = math.log(ratio), 0.0, 0.02
        if len(self._last) >= self.FIRST:
            values = np.array(self._last)
            usual = float(np.median(values))
            sigma = max(1.4826 * float(np.median(np.abs(values - usual))), 1e-3)
        self._last.append(value)
        self.images += 1
        jumped = abs(value - usual) > max(self.LEAST, self.SIGMAS * sigma)
        self.count += jumped
        return jumped
