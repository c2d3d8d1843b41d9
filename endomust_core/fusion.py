"""Depth images with poses → one coloured cloud (N,3) [m], a mean per voxel; memory bounded by the number of voxels.

Points are left out where depth cannot be trusted: at its edges, where a network draws a veil from the near surface to
the far one, and where the image is black, outside the round picture of an endoscope.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from endomust_core.camera import Camera
from endomust_core.cloud import matched, ray_planes

VOXEL = 0.25e-3  # m, finer than the depth of any network
MOST_VOXELS = 200_000
BATCH = 60_000  # points that wait until they are sorted in
POINTS = 6000  # of one image, about; five images a second say the rest
EDGE = 0.04  # relative difference of depth to the next looked-at pixel that counts as an edge
DARK = 12  # brightest channel of 255 below which a pixel says nothing
RANGE = 1 << 20  # voxels from the origin to either side along each axis


class Fusion:
    """`add` takes one depth image after another; `cloud` gives what has come together, `voxel` its grid [m]."""

    def __init__(self, voxel: float = VOXEL, most: int = MOST_VOXELS):
        if most < 8:
            raise ValueError(f"most is {most}; the eight voxels around the origin never become one, so give 8 at least")
        self.voxel = voxel  # doubles whenever there are more than `most` voxels
        self.images = 0
        self._most = most
        self._keys = np.empty(0, np.int64)
        self._sums = np.empty((0, 7))  # x y z r g b and the number of points
        self._waiting: list[np.ndarray] = []
        self._waiting_points = 0

    def add(self, depth: np.ndarray, rgb: np.ndarray, camera: Camera, T_odom_camera: np.ndarray) -> None:
        """depth (H,W) [m], rgb (h,w,3) uint8, camera of the depth grid, pose (4,4) [m]."""
        stride = max(1, round((depth.size / POINTS) ** 0.5))
        points = trusted_points(depth, matched(rgb, depth.shape), camera, stride)
        points[:, :3] = points[:, :3] @ T_odom_camera[:3, :3].T + T_odom_camera[:3, 3]
        self._waiting.append(points)
        self._waiting_points += len(points)
        self.images += 1
        if self._waiting_points >= BATCH:
            self._sort_in()

    def cloud(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (N,3) float32 [m] and colours (N,3) uint8; voxels met once are left out where enough met more."""
        self._sort_in()
        sums = self._sums
        seen_twice = sums[:, 6] > 1
        if self.images > 2 and seen_twice.sum() > 0.3 * len(sums):
            sums = sums[seen_twice]
        means = sums[:, :6] / np.maximum(sums[:, 6:], 1)
        return means[:, :3].astype(np.float32), np.rint(means[:, 3:]).astype(np.uint8)

    def _sort_in(self) -> None:
        if not self._waiting:
            return
        points = np.concatenate(self._waiting).astype(np.float64)
        self._waiting, self._waiting_points = [], 0
        cells = np.floor(points[:, :3] / self.voxel)
        near = (np.abs(cells) < RANGE).all(axis=1)  # NaN is not near either
        points, cells = points[near], cells[near].astype(np.int64)
        keys = ((cells[:, 0] + RANGE) << 42) | ((cells[:, 1] + RANGE) << 21) | (cells[:, 2] + RANGE)
        rows = np.column_stack([points, np.ones(len(points))])
        self._keys, self._sums = _grouped(np.concatenate([self._keys, keys]), np.concatenate([self._sums, rows]))
        while len(self._keys) > self._most:
            self._coarsen()

    def _coarsen(self) -> None:
        """Voxels of twice the size: eight become one."""
        self.voxel *= 2
        axes = [(self._keys >> shift & (2 * RANGE - 1)) - RANGE >> 1 for shift in (42, 21, 0)]
        keys = ((axes[0] + RANGE) << 42) | ((axes[1] + RANGE) << 21) | (axes[2] + RANGE)
        self._keys, self._sums = _grouped(keys, self._sums)


def trusted_points(depth: np.ndarray, rgb: np.ndarray, camera: Camera, stride: int) -> np.ndarray:
    """(N,6) float32: x y z [m] in the optical frame and r g b, of every stride-th pixel that may be trusted."""
    x, y, seen = ray_planes(camera, stride)
    thin, colour = depth[::stride, ::stride], rgb[::stride, ::stride]
    with np.errstate(invalid="ignore"):
        good = thin > 0
        for axis in (0, 1):
            change = np.abs(np.diff(thin, axis=axis, append=np.take(thin, [-1], axis=axis)))
            good &= change < EDGE * thin
            good &= np.abs(np.diff(thin, axis=axis, prepend=np.take(thin, [0], axis=axis))) < EDGE * thin
    good &= colour.max(axis=2) > DARK
    if seen is not None:
        good &= seen > 0
    z = thin[good]
    return np.column_stack([x[good] * z, y[good] * z, z, colour[good]]).astype(np.float32)


def write_ply(path: str | Path, points: np.ndarray, colours: np.ndarray, comment: str = "") -> Path:
    """(N,3) [m] and (N,3) uint8 → binary PLY, under its name at once; OSError where the disk does not take it."""
    path = Path(path)
    rows = np.empty(len(points), np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))
    rows["xyz"], rows["rgb"] = points, colours
    lines = ["ply", "format binary_little_endian 1.0", *([f"comment {comment}"] if comment else [])]
    lines += [f"element vertex {len(rows)}", *(f"property float {axis}" for axis in "xyz")]
    lines += [*(f"property uchar {name}" for name in ("red", "green", "blue")), "end_header", ""]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with temporary.open("wb") as file:
            file.write("\n".join(lines).encode("ascii"))
            file.write(rows.tobytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _grouped(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the rows (N,C) that share a key, and the keys, in order."""
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.int64)
    return keys[starts], np.add.reduceat(rows, starts, axis=0) if len(starts) else rows
