"""Image, depth (h,w), motion → confidence (h,w) in 0..1: how probably a pixel's depth is right to 10 %, scale aside.

Each term can only lower the confidence. The strongest compares the depth with the parallax that is seen: optical flow
against an image some way back says where a point really went, and the depth says where it should have gone.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.parallax import STEP, Parallax, contrast
from endomust_core.temporal import common, log_depth, warp
from endomust_core.validity import Border, instrument_mask, specular_mask

# Terms of one image, then those that need the motion of the camera, in the order of the weights.
SINGLE = ("slope", "distance", "light", "bright", "grey", "edge")
MOTION = ("parallax", "unseen", "flicker", "residual", "photometric")
# python -m endomust_core.simulation.confidence_check --fit
ALONE = (1.6, -0.391, -0.251, -0.467, -0.274, -1.92, -1.06)
TOGETHER = (2.41, -0.0439, -0.263, -0.412, -0.263, -1.6, -1.06, -7.39, -0.174, -0.216, -0.291, -0.379)
MOST_SCALE = 2.0  # |log| of the common ratio of depths; beyond, the two images show different scenes
DARK = 12  # brightest channel of 255 up to which a pixel shows nothing
FADE = 0.9  # how much of what earlier images said of a point is kept


@dataclass(frozen=True)
class Judgement:
    """What may be believed of one depth image; arrays (h,w)."""

    value: np.ndarray  # float32 0..1, 0 where depth is invalid or ignored, in the surround, a highlight, the dark
    specular: np.ndarray  # bool
    border: np.ndarray  # bool
    masked: np.ndarray  # bool: ignored as the caller wished, or taken for an instrument
    scale_ratio: float | None  # depth of this image / that of the one before, at the same points; None: unknown
    shares: dict[str, float]  # of the image: valid, specular, border, dark, masked, confident


class Confidence:
    """Judges one depth image after another; remembers some images back and what they said of each point.

    `instruments` uses the built-in detector of instruments where no mask is given.
    """

    def __init__(self, instruments: bool = True):
        self.instruments = instruments
        self.reset()

    def reset(self) -> None:
        """Forget all images: the next one is judged alone."""
        self._border = Border()
        self._forget()

    def _forget(self) -> None:
        self._before: np.ndarray | None = None  # (h,w,2) float32: log depth of the image before, flicker of its points
        self._parallax = Parallax()

    def judge(
        self,
        rgb: np.ndarray,
        depth: np.ndarray,
        camera: Camera | None,
        T_prev_curr: np.ndarray | None,
        mask: np.ndarray | None = None,
    ) -> Judgement:
        """rgb (h,w,3) uint8, depth (h,w) float32, NaN invalid, T_prev_curr (4,4) in the unit of depth → Judgement.

        Without a pinhole camera of this grid or without motion, from the single image. mask (h,w) bool: True is
        ignored, and takes the place of the detector of instruments. Raises ValueError where sizes differ.
        """
        _check(rgb, depth, mask)
        terms, found = self.terms(rgb, depth, camera, T_prev_curr, mask)
        value = probability(terms)
        value = cv2.resize(value, depth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        value[~found.valid | found.border | found.specular | found.ignored | found.dark] = 0
        shares = {
            "valid": found.valid,
            "specular": found.specular,
            "border": found.border,
            "dark": found.dark & ~found.border,
            "masked": found.masked,
            "confident": value > 0.5,
        }
        shares = {name: np.count_nonzero(mask) / depth.size for name, mask in shares.items()}
        return Judgement(value, found.specular, found.border, found.masked, found.scale_ratio, shares)

    def terms(self, rgb, depth, camera, T_prev_curr, mask=None) -> tuple[dict[str, np.ndarray], Found]:
        """What `judge` makes its mind up from, each (h/2,w/2) float32, larger is worse, and the masks (h,w)."""
        border = self._border.update(rgb)
        specular = specular_mask(rgb, border)
        tools = instrument_mask(rgb, border) if self.instruments and mask is None else np.zeros(depth.shape, bool)
        ignored = np.zeros(depth.shape, bool) if mask is None else mask.astype(bool, copy=False)
        thin = np.ascontiguousarray(depth[::STEP, ::STEP])
        log = log_depth(thin)
        usable = np.isfinite(log) & ~(border | ignored)[::STEP, ::STEP]
        small = cv2.resize(rgb, log.shape[::-1], interpolation=cv2.INTER_NEAREST)
        terms = _single_terms(small, log, usable, tools[::STEP, ::STEP])
        scale_ratio = None
        moves = camera is not None and T_prev_curr is not None and bool(np.isfinite(T_prev_curr).all())
        if not moves or (self._before is not None and self._before.shape[:2] != log.shape):
            self._forget()
        grey = contrast(rgb)
        flicker = None
        if self._before is not None:
            more, flicker, scale_ratio = self._motion_terms(grey, thin, camera.strided(STEP), T_prev_curr, usable)
            terms |= more
        unknown = np.full(log.shape, math.nan, np.float32)
        self._before = cv2.merge([log, unknown if flicker is None else flicker])
        self._parallax.remember(grey)
        valid = (depth > 0) & (depth < np.inf)
        dark = cv2.inRange(rgb, (0, 0, 0), (DARK, DARK, DARK)) > 0
        return terms, Found(valid, specular, border, ignored | tools, ignored, dark, scale_ratio)

    def _motion_terms(self, grey, depth, camera, T_prev_curr, usable):
        """What the images before say: MOTION terms, flicker to remember, and the common ratio of scales."""
        moved = warp(depth, camera, self._parallax.stretched(T_prev_curr))
        before, past = cv2.split(moved.sample(self._before))
        with np.errstate(invalid="ignore", divide="ignore"):
            residual = np.log(moved.depth) - before
        scale = common(residual, usable)
        if scale is None or abs(scale) > MOST_SCALE:
            self._forget()
            return {}, None, None
        step = np.minimum(np.abs(residual - np.float32(scale)), np.float32(0.5))
        step = np.where(np.isfinite(step), step, np.float32(common(step, usable) or 0.0))
        flicker = np.where(np.isfinite(past), np.float32(FADE) * past + np.float32(1 - FADE) * step, step)
        seen = self._parallax.compare(grey, depth, camera, T_prev_curr, moved, usable)
        terms = {
            "parallax": seen.error,
            "unseen": seen.unseen,
            "flicker": np.log1p(50 * flicker),
            "residual": np.log1p(50 * step),
            "photometric": seen.photometric,
        }
        return terms, flicker, math.exp(scale)


def probability(terms: dict[str, np.ndarray]) -> np.ndarray:
    """Terms (h,w) → (h,w) float32 in 0..1: the logistic model of their sum, by weights fitted once."""
    weights = TOGETHER if len(terms) > len(SINGLE) else ALONE
    score = np.full(next(iter(terms.values())).shape, weights[0], np.float32)
    for weight, term in zip(weights[1:], terms.values(), strict=True):
        if weight:
            score += np.float32(weight) * term
    return 1 / (1 + np.exp(-score))


@dataclass(frozen=True)
class Found:
    """Masks (h,w) bool, and the common ratio of scales."""

    valid: np.ndarray
    specular: np.ndarray
    border: np.ndarray
    masked: np.ndarray
    ignored: np.ndarray
    dark: np.ndarray
    scale_ratio: float | None


def _single_terms(rgb, log, usable, instrument) -> dict[str, np.ndarray]:
    """What one image says; rgb (h,w,3) uint8, log of depth, where it is usable, and instruments, all (h,w)."""
    centre = common(log, usable) or 0.0
    log = np.where(np.isfinite(log), log, np.float32(centre))
    red, green, blue = cv2.split(rgb)
    brightest = cv2.max(cv2.max(red, green), blue)
    slope = cv2.magnitude(*(cv2.Sobel(log, cv2.CV_32F, dx, 1 - dx, scale=0.125 / STEP) for dx in (0, 1)))
    slope = cv2.blur(cv2.dilate(slope, np.ones((3, 3), np.uint8)), (3, 3))  # a veil lies on both sides of an edge
    away = np.clip(log - np.float32(centre), -1.5, 1.5)
    # A lamp beside the lens lights with the inverse square of distance: dark and near, bright and far do not fit.
    light = cv2.blur(GAMMA_LOG[brightest], (5, 5)) + 2 * away
    light = np.minimum(np.abs(light - np.float32(common(light, usable) or 0.0)), np.float32(2.5))
    return {
        "slope": np.log1p(30 * slope),
        "distance": away * away,
        "light": light,
        "bright": cv2.subtract(brightest, 230).astype(np.float32) / 25,
        "grey": cv2.blur(instrument.astype(np.float32), (3, 3)),
        "edge": _edge(*log.shape),
    }


@functools.lru_cache(maxsize=2)
def _edge(height: int, width: int) -> np.ndarray:
    """(h,w) float32: 0 in the middle of the image to 1 at its edges; shared, so leave it as it is."""
    v, u = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (np.maximum(u * u, v * v) ** 2).astype(np.float32)


# Log of linear light for each of 256 values of a display with gamma 2.2; deep black counts as 4.
GAMMA_LOG = (2.2 * np.log(np.maximum(np.arange(256), 4) / 255)).astype(np.float32)


def _check(rgb: np.ndarray, depth: np.ndarray, mask: np.ndarray | None) -> None:
    if rgb.shape != (*depth.shape, 3) or rgb.dtype != np.uint8:
        raise ValueError(
            f"the image must be uint8 of the shape {(*depth.shape, 3)} of its depth, got {rgb.dtype} {rgb.shape}; "
            "resize it with endomust_core.bundle.resize_rgb"
        )
    if mask is not None and mask.shape != depth.shape:
        raise ValueError(f"the mask is {mask.shape}, the depth {depth.shape}; resize it to the depth grid first")
