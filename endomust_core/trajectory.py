"""Poses T_odom_camera (4,4) [m] → a TUM file while they come, and evenly thinned values for drawing; bounded memory.

TUM: one line `seconds tx ty tz qx qy qz qw` per pose, metres, as evo and most tools for trajectories read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from endomust_core.odometry import quaternion_from_matrix

Value = TypeVar("Value")
HEADER = "# seconds tx ty tz qx qy qz qw; metres, camera (optical axes) in the odometry frame (x forward, z up)\n"


class Thinned(Generic[Value]):
    """Keeps every n-th of what is added, n doubling when more than `most` are kept: even, and bounded."""

    def __init__(self, most: int = 2000):
        self.values: list[Value] = []
        self.every = 1
        self._most, self._count = most, 0

    def add(self, value: Value) -> None:
        """Take the next value, or leave it out."""
        if self.is_due():
            self.values.append(value)
            if len(self.values) > self._most:
                self.values = self.values[::2]
                self.every *= 2
        self._count += 1

    def is_due(self) -> bool:
        """Whether the next value will be kept, for values that cost something to make."""
        return self._count % self.every == 0


class TrajectoryWriter:
    """Writes a TUM file line by line and remembers its length and shape."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.poses = 0
        self.length = 0.0  # m
        self.shape: Thinned[tuple[int, np.ndarray]] = Thinned()  # stamp [ns], position (3,) [m]
        self._last: np.ndarray | None = None
        self._file = self.path.open("w", encoding="utf-8")
        self._file.write(HEADER)

    def add(self, stamp_ns: int, T_odom_camera: np.ndarray) -> None:
        """Append one pose; OSError where the disk does not take it."""
        position = T_odom_camera[:3, 3].copy()
        numbers = (*position, *quaternion_from_matrix(T_odom_camera[:3, :3]))
        whole, nanoseconds = divmod(stamp_ns, 10**9)
        self._file.write(f"{whole}.{nanoseconds:09d} " + " ".join(f"{value:.9f}" for value in numbers) + "\n")
        if self._last is not None:
            self.length += float(np.linalg.norm(position - self._last))
        self._last = position
        self.shape.add((stamp_ns, position))
        self.poses += 1

    def close(self) -> None:
        """Finish the file; harmless when called twice."""
        self._file.close()


def read_trajectory(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A TUM file → seconds (N,) float64 and poses (N,4,4) [m]; ValueError names a line that is none."""
    from endomust_core.odometry import matrix_from_quaternion, se3

    seconds, poses = [], []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        try:
            stamp, x, y, z, *quaternion = map(float, words)
            poses.append(se3(matrix_from_quaternion(np.array(quaternion)), np.array([x, y, z])))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no pose in TUM format: {line[:80]}") from error
        seconds.append(stamp)
    return np.array(seconds), np.array(poses).reshape(-1, 4, 4)
