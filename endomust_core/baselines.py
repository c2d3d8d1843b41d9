"""Depth without a network: what colour and position alone say, (H,W,3) uint8 → (H,W) float32 depth of unknown scale.

They stand beside every table of `evaluate`: a model that does not beat them has learned nothing of the scene.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

LUMINANCE = np.array((0.299, 0.587, 0.114), np.float32)  # of red, green, blue (BT.601)
DISPLAY_GAMMA = 2.2
DARKEST = 0.02  # of the display range; below it brightness says nothing about distance


def constant_depth(rgb: np.ndarray) -> np.ndarray:
    """Every pixel equally far."""
    return np.ones(rgb.shape[:2], np.float32)


def centre_is_far(rgb: np.ndarray) -> np.ndarray:
    """Depth falls linearly from the middle of the image to 1/3 at its corners: what a tube looks like on average."""
    return _tube(*rgb.shape[:2])


def inverse_square_brightness(rgb: np.ndarray) -> np.ndarray:
    """A lamp at the camera lights as 1/z²: depth is light^(-1/2), light being the display value to the power 2.2."""
    return np.maximum(rgb @ LUMINANCE / 255, DARKEST) ** (-DISPLAY_GAMMA / 2)


@lru_cache(maxsize=2)
def _tube(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    depth = (1 - (2 / 3) * np.hypot(x, y) / np.sqrt(2)).astype(np.float32)
    depth.setflags(write=False)  # the cache hands the same array to everyone
    return depth


BASELINES = {
    "constant": constant_depth,
    "centre is far": centre_is_far,
    "inverse-square brightness": inverse_square_brightness,
}
