"""Depth (H, W) float32 [m] → picture bgr (H, W, 3) uint8 on a fixed range: near is red, far blue, unknown black."""

import cv2
import numpy as np

MAPS = {
    "turbo": cv2.COLORMAP_TURBO,
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "viridis": cv2.COLORMAP_VIRIDIS,
    "bone": cv2.COLORMAP_BONE,
}


def colourise(depth: np.ndarray, nearest: float, farthest: float, name: str = "turbo") -> np.ndarray:
    """Paint depth [m] between nearest and farthest [m] with the named map; the range does not move with the scene."""
    valid = cv2.inRange(depth, 0.0, float(np.finfo(np.float32).max))  # NaN and infinite are outside every range
    scale = -255.0 / (farthest - nearest)
    levels = cv2.convertScaleAbs(np.clip(depth, nearest, farthest), alpha=scale, beta=-scale * farthest)
    picture = cv2.applyColorMap(levels, MAPS[name])
    return cv2.bitwise_and(picture, picture, mask=valid)
