"""Depth (H,W) [m] + colour + camera → organised cloud (h,w,3|4|5) float32: x, y, z [m], packed colour, confidence.

Everything is computed inside the memory that is given, and the rays of a camera are made once.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from endomust_core.bundle import resize_rgb
from endomust_core.camera import Camera


def fill_cloud(
    out: np.ndarray,
    depth: np.ndarray,
    rgb: np.ndarray,
    camera: Camera,
    stride: int = 1,
    confidence: np.ndarray | None = None,
    least: float = 0.0,
) -> np.ndarray:
    """Write every stride-th pixel of depth (H,W) [m], rgb (H,W,3) and their camera into out (h,w,c) float32.

    x, y, z [m] in the optical frame, NaN where depth is invalid or `confidence` (H,W) is below `least`; with c = 4 also
    the colour as the bits 0x00RRGGBB of a float, with c = 5 the confidence after it.
    """
    x, y, seen = ray_planes(camera, stride)
    thin = np.ascontiguousarray(depth[::stride, ::stride], np.float32)
    sure = None if confidence is None else np.ascontiguousarray(confidence[::stride, ::stride], np.float32)
    if sure is not None and least > 0:
        thin = np.where(sure >= least, thin, np.float32(np.nan))
    z = thin if seen is None else cv2.multiply(thin, seen)
    planes = [cv2.multiply(x, thin), cv2.multiply(y, thin), z]
    if out.shape[2] > 3:
        planes.append(_packed_colour(rgb, stride))
    if out.shape[2] > 4:
        planes.append(sure)
    return cv2.merge(planes, dst=out)


def matched(rgb: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The picture (H,W,3) on the grid of a depth image of this shape; itself where it is already."""
    return rgb if rgb.shape[:2] == shape else resize_rgb(rgb, shape)


@functools.lru_cache(maxsize=4)
def ray_planes(camera: Camera, stride: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """x/z and y/z of every stride-th pixel, and 1 or NaN where some pixels have no ray; each (h,w) float32. Cached.

    Only the rays asked for are computed: the inverse of a distortion takes 0.2 s for all pixels of a 640x512 image.
    """
    x, y = (np.ascontiguousarray(plane) for plane in np.moveaxis(camera.strided(stride).rays(), 2, 0))
    missing = np.isnan(x)
    return x, y, np.where(missing, np.float32(np.nan), np.float32(1.0)) if missing.any() else None


def _packed_colour(rgb: np.ndarray, stride: int) -> np.ndarray:
    """rgb (H,W,3) uint8 to float32 of every stride-th pixel, whose bits are 0x00RRGGBB.

    The top byte is 0, not 255: 0xFFRRGGBB with a red above 127 is a NaN, and readers that skip NaN lose the point.
    Columns are left out after the conversion to four bytes: numpy picks words several times faster than triples.
    """
    mirrored = rgb.strides[2] < 0  # blue, green, red seen from the other end
    rows, code = (rgb[::stride, :, ::-1], cv2.COLOR_BGR2BGRA) if mirrored else (rgb[::stride], cv2.COLOR_RGB2BGRA)
    bits = np.ascontiguousarray(cv2.cvtColor(rows, code).view(np.uint32)[:, ::stride, 0])
    np.bitwise_and(bits, 0x00FFFFFF, out=bits)
    return bits.view(np.float32)
