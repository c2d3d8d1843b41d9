"""Grey images (H,W) uint8 + depth (h,w) + motion → does the depth explain how far points have moved? Log of depth.

Optical flow (DIS, 0.4 ms) between this image and one some way back, warped by depth and motion: what is left along the
epipolar line is an error of depth, what is left across it is motion of the scene. Flow needs the whole image (H,W);
all else is done on every STEP-th pixel, a grid (h,w).
"""

from __future__ import annotations

import functools
import math
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.temporal import Warp, common, warp

STEP = 2
SHIFT = 8.0  # pixels a point at the median depth should move sideways between the images compared
LONGEST = 25  # images back, at most
KEEP = 0.9  # of what earlier images said of a point
PRIOR = 10.0  # pixels²: parallax seen until a measured error is believed by half
STRETCH_GAIN, MOST_STRETCH = 0.2, 1.2  # of the motion's length, log
DAMPING = 5e2 * np.eye(6, dtype=np.float32)  # keeps the correction of the motion small where little is seen
GRID = np.s_[1::4, 1::4]  # pixels that are enough to find six numbers
RIGHT, WRONG = 0.8, 1.2  # pixels of correction that errors of depth alone would ask for, and that they never do
TYPICAL_DIFFERENCE = 0.5
MARGIN = 3  # pixels at the edge of the earlier image where flow is worth nothing


@dataclass(frozen=True)
class Seen:
    """What the parallax says; each (h,w) float32, finite."""

    error: np.ndarray  # |log(depth seen / depth given)|, common scale aside, drawn to 0 where little was seen
    unseen: np.ndarray  # 1 where nothing is known of a point, to 0 where much is
    photometric: np.ndarray  # 0..2, difference of local contrast after the warp


class Parallax:
    """Remembers the last images, how the camera moved since, and what they said of each point."""

    def __init__(self):
        self._images: deque[list] = deque(maxlen=LONGEST)  # [grey, T_then_now]
        self._evidence: np.ndarray | None = None  # (h,w,2) float32: weighted error and its weight
        self._doubt_pixels = RIGHT  # mean correction of the last images [pixels]
        self._stretch = 0.0  # log of how much longer the motions are than the depth wants them

    @property
    def is_empty(self) -> bool:
        """True when there is no image to compare with."""
        return not self._images

    def stretched(self, T_prev_curr: np.ndarray) -> np.ndarray:
        """The motion (4,4) in the scale of the depth, as far as it is known by now."""
        T = T_prev_curr.copy()
        T[:3, 3] *= math.exp(-self._stretch)
        return T

    def remember(self, grey: np.ndarray) -> None:
        """The image (h,w) of now, as `contrast` gives it, for the next ones."""
        self._images.append([grey, np.eye(4)])

    def compare(
        self, grey: np.ndarray, depth: np.ndarray, camera: Camera, T_prev_curr: np.ndarray, moved: Warp, usable
    ) -> Seen:
        """grey (H,W) of now; depth, usable (h,w) with their camera; `moved` leads to the image remembered last."""
        for image in self._images:
            image[1] = image[1] @ T_prev_curr
        then, T = self._pick(depth, camera, usable)
        there = warp(depth, camera, self.stretched(T), with_parallax=True)
        height, width = depth.shape
        seen = usable & (there.x > MARGIN) & (there.x < width - MARGIN - 1)
        seen &= (there.y > MARGIN) & (there.y < height - MARGIN - 1)
        expected = _as_seen_now(then, there)
        flow = _flow().calc(grey, expected, None)
        flow_x, flow_y = cv2.split(np.ascontiguousarray(flow[::STEP, ::STEP]))
        doubt = self._correct_motion(flow_x, flow_y, there, camera, seen)
        error, weight = _along(flow_x, flow_y, there.parallax, seen)
        offset = common(error, weight > 2)
        if offset is not None:
            self._stretch = float(np.clip(self._stretch + STRETCH_GAIN * offset, -MOST_STRETCH, MOST_STRETCH))
            error -= np.float32(offset)
        weight *= np.float32(1 - 0.7 * doubt)
        now = cv2.merge([error * weight, weight])
        if self._evidence is None:
            self._evidence = now
        else:
            self._evidence = cv2.addWeighted(moved.sample(self._evidence, 0.0), KEEP, now, 1.0, 0.0)
        total, known = cv2.split(self._evidence)
        believed = known + np.float32(PRIOR)
        difference = cv2.resize(cv2.absdiff(grey, expected), (width, height), interpolation=cv2.INTER_AREA)
        difference = cv2.blur(difference, (3, 3)).astype(np.float32) / 32
        return Seen(
            np.minimum(np.abs(total) / believed, np.float32(0.5)),
            np.float32(PRIOR) / believed,
            np.where(seen, np.minimum(difference, np.float32(2)), np.float32(TYPICAL_DIFFERENCE))
            * np.float32(1 - doubt)
            + np.float32(TYPICAL_DIFFERENCE * doubt),
        )

    def _correct_motion(self, flow_x, flow_y, there: Warp, camera: Camera, seen: np.ndarray) -> float:
        """Take out of the flow what is an error of the motion; returns the doubt, 0 for a motion that is right, to 1.

        A good motion is left alone: a correction would also take out what is an error of the depth.
        """
        motion, size = _motion_error(flow_x, flow_y, there, camera, seen)
        if motion is None:
            return self._doubt
        self._doubt_pixels += (1 - KEEP) * (min(size, 5.0) - self._doubt_pixels)
        if self._doubt > 0:
            across, down = _moves(motion, there, camera)
            flow_x -= np.float32(self._doubt) * across
            flow_y -= np.float32(self._doubt) * down
        return self._doubt

    @property
    def _doubt(self) -> float:
        return min(max((self._doubt_pixels - RIGHT) / (WRONG - RIGHT), 0.0), 1.0)

    def _pick(self, depth: np.ndarray, camera: Camera, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The newest image from which a point at the median depth moved far enough, or the oldest there is."""
        middle = common(depth, usable)
        wanted = math.inf if middle is None else SHIFT * middle / (STEP * camera.fx)
        for grey, T in reversed(self._images):
            if np.linalg.norm(T[:3, 3]) >= wanted:
                return grey, T
        grey, T = self._images[0]
        return grey, T


def contrast(rgb: np.ndarray) -> np.ndarray:
    """(h,w,3) uint8 → (h,w) uint8 grey whose local mean is 128 and local deviation about 40: the lamp moves along.

    Smooth tissue needs it most: without, flow finds nothing to hold on to in a sinus.
    """
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean = cv2.blur(grey, (15, 15))
    centred = grey - mean
    deviation = cv2.sqrt(cv2.blur(centred * centred, (15, 15)))
    return cv2.convertScaleAbs(np.maximum(centred * (40 / (deviation + np.float32(2.5))) + 128, 0))


def _as_seen_now(then: np.ndarray, there: Warp) -> np.ndarray:
    """The earlier image (H,W) uint8, warped to now; `there` is on the coarse grid."""
    height, width = there.x.shape
    moved = cv2.merge([there.x - _pixels(height, width)[..., 0], there.y - _pixels(height, width)[..., 1]])
    moved = cv2.resize(moved, then.shape[::-1], interpolation=cv2.INTER_LINEAR)
    moved *= STEP
    moved += _pixels(*then.shape)
    return cv2.remap(then, moved, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@functools.lru_cache(maxsize=4)
def _pixels(height: int, width: int) -> np.ndarray:
    """(h,w,2) float32: x and y of every pixel; shared, so leave it as it is."""
    v, u = np.mgrid[:height, :width].astype(np.float32)
    pixels = cv2.merge([u, v])
    pixels.setflags(write=False)
    return pixels


def _motion_error(flow_x, flow_y, there: Warp, camera: Camera, seen: np.ndarray):
    """The slight change of the motion, (6,) as `_interaction` counts it, that explains most of the flow; its pixels.

    Robust weighted least squares on a coarse grid with the interaction matrix of image-based control (Chaumette and
    Hutchinson 2006); None, 0 where too little was seen.
    """
    good = seen[GRID].ravel()
    if np.count_nonzero(good) < 40:
        return None, 0.0
    rows = _interaction(there.x[GRID], there.y[GRID], there.depth[GRID], camera)
    A = np.concatenate([row.reshape(6, -1)[:, good] for row in rows], axis=1)
    b = np.concatenate([flow_x[GRID].ravel()[good], flow_y[GRID].ravel()[good]])
    motion = np.zeros(6, np.float32)
    for _ in range(3):
        left = b - motion @ A
        weighted = A / (1 + left * left)  # moving things and wrong depths have little say
        motion = np.linalg.solve(weighted @ A.T + DAMPING, weighted @ b).astype(np.float32)
    across, down = np.split(motion @ A, 2)
    return motion, float(np.median(np.hypot(across, down)))


def _interaction(x, y, depth, camera: Camera):
    """Two (6,h,w) [pixels]: how pixels of a point move with 1 of translation per typical depth, then 1 rad of turn."""
    x, y, near = _normalised(x, y, depth, camera)
    nothing, xy = np.zeros_like(x), x * y
    across = np.stack([near, nothing, -x * near, -xy, 1 + x * x, -y])
    down = np.stack([nothing, near, -y * near, -1 - y * y, xy, x])
    return across * np.float32(STEP * camera.fx), down * np.float32(STEP * camera.fy)


def _moves(motion: np.ndarray, there: Warp, camera: Camera):
    """What `_interaction` of all pixels makes of one motion (6,), as two (h,w) [pixels]; cheaper than the product."""
    x, y, near = _normalised(there.x, there.y, there.depth, camera)
    vx, vy, vz, wx, wy, wz = motion.astype(np.float32)
    turn = y * wx - x * wy
    across = near * (vx - x * vz) - x * turn + wy - y * wz
    down = near * (vy - y * vz) - y * turn - wx + x * wz
    return across * np.float32(STEP * camera.fx), down * np.float32(STEP * camera.fy)


def _normalised(x, y, depth, camera: Camera):
    x, y = (x - np.float32(camera.cx)) / np.float32(camera.fx), (y - np.float32(camera.cy)) / np.float32(camera.fy)
    near = np.float32(np.median(depth[::3, ::3])) / np.maximum(depth, np.float32(1e-6))
    return np.clip(x, -5, 5), np.clip(y, -5, 5), near


def _along(flow_x, flow_y, parallax, seen):
    """Flow (h,w) that is left → error of log depth along the epipolar line, and its weight [pixels²].

    Flow across the line is motion of the scene, or flow gone astray: it takes weight away.
    """
    gx, gy = (STEP * direction for direction in parallax)
    square = gx * gx + gy * gy
    error = np.clip((flow_x * gx + flow_y * gy) / (square + np.float32(1e-3)), -0.5, 0.5)
    sideways = np.abs(flow_x * gy - flow_y * gx) / np.sqrt(square + np.float32(0.01))
    weight = np.minimum(square, np.float32(100)) / (1 + sideways * sideways)
    return np.where(seen, error, np.float32(0)), np.where(seen, weight, np.float32(0))


def _flow():
    """A new one for each image: it keeps nothing, and one that is shared between threads would."""
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
