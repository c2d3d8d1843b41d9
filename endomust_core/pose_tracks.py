"""Poses as they come -> clean windows of them: ring buffers, spikes, means over pieces of time. Stamps [s], poses [m].

Both trajectories are averaged over the same pieces of time, so that what averaging takes from one it takes from both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

NODE = 0.1  # s; length of a piece, long enough to make white noise small
LONGEST_WINDOW = 120.0  # s that can be remembered
SMALLEST_GAP = 0.0045  # s; robot poses that come faster are thinned out
LONGEST_GAP = 0.25  # s without a robot pose: nothing is interpolated across
STEP_LENGTH, STEP_SPEED = 0.002, 0.3  # m, m/s; a pose that stays farther from the last is a moved base, not a motion


class PoseBuffer:
    """The newest poses with increasing stamps, (12,) each: position, then the rotation row by row; and a number."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._rows = np.empty((2 * capacity, 14))  # stamp, number, pose
        self.clear()

    def clear(self) -> None:
        """Forget every pose."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def newest(self) -> float | None:
        """The stamp of the newest pose."""
        return float(self._rows[self._count - 1, 0]) if self._count else None

    def append(self, stamp: float, T: np.ndarray, number: float = 0.0) -> int:
        """Take one (4,4) pose; returns by how many places the older ones moved down."""
        dropped = 0
        if self._count == len(self._rows):
            dropped = self._count - self._capacity
            self._rows[: self._capacity] = self._rows[dropped:].copy()
            self._count = self._capacity
        row = self._rows[self._count]
        row[0], row[1], row[2:5], row[5:] = stamp, number, T[:3, 3], T[:3, :3].ravel()
        self._count += 1
        return dropped

    def rows(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """(n,14) stamp, number, position, rotation: a view."""
        return self._rows[first : self._count if last is None else last]

    def since(self, stamp: float) -> int:
        """Place of the first pose that is not older."""
        return int(np.searchsorted(self._rows[: self._count, 0], stamp))


class RobotPoses:
    """The newest poses of the robot in optical axes; refuses what cannot be a pose and leaves out spikes."""

    def __init__(self):
        self._poses = PoseBuffer(int((LONGEST_WINDOW + 2) / SMALLEST_GAP))
        self.refused: dict[str, int] = {}
        self.clear()

    def clear(self) -> None:
        """Forget every pose."""
        self._poses.clear()
        self._judged = 0  # poses before this place are marked as kept (1) or as a spike (0)

    @property
    def newest(self) -> float | None:
        """The stamp of the newest pose."""
        return self._poses.newest

    def append(self, stamp: float, T: np.ndarray) -> None:
        """Take one (4,4) pose [m]; anything else than a newer, finite, rigid one is counted in `refused`."""
        if not math.isfinite(stamp) or T.shape != (4, 4) or not np.isfinite(T).all():
            return self._refuse("not finite")
        R = T[:3, :3]
        if np.abs(R @ R.T - np.eye(3)).max() > 0.02 or np.linalg.det(R) < 0:
            return self._refuse("no rotation")
        last = -math.inf if self.newest is None else self.newest
        if stamp < last - 1:
            self._refuse("clock went back")
            self.clear()
        elif stamp <= last:
            return self._refuse("stamp repeated or going back")
        elif stamp < last + SMALLEST_GAP:
            return None  # more than is needed
        self._judged = max(self._judged - self._poses.append(stamp, T), 0)
        return None

    def window(self, since: float) -> RobotWindow | None:
        """The poses from `since` on, spikes left out; None below ten."""
        self._judge()
        rows = self._poses.rows(self._poses.since(since), self._judged)
        rows = rows[rows[:, 1] > 0]
        return RobotWindow(rows[:, 0], rows[:, 2:]) if len(rows) >= 10 else None

    def _refuse(self, why: str) -> None:
        self.refused[why] = self.refused.get(why, 0) + 1

    def _judge(self) -> None:
        """Compare every pose with the median of the seven around it (Hampel 1974), once three have come after it."""
        start, end = max(self._judged - 200, 0), len(self._poses)
        if end - start < 7 or end - 3 <= self._judged:
            return
        rows = self._poses.rows(start, end)
        around = np.lib.stride_tricks.sliding_window_view(rows[:, 2:], 7, axis=0)
        away = np.abs(rows[3:-3, 2:] - np.median(around, axis=-1))
        position, rotation = away[:, :3].max(axis=1), away[:, 3:].max(axis=1)
        spike = position > max(9 * float(np.median(position)), 2e-4)
        spike |= rotation > max(9 * float(np.median(rotation)), 5e-3)
        fresh = max(self._judged - start, 3)
        rows[fresh:-3, 1] = ~spike[fresh - 3 :]
        self._judged = end - 3


class RobotWindow:
    """Some seconds of clean robot poses: means over pieces of time from running integrals."""

    def __init__(self, stamps: np.ndarray, values: np.ndarray):
        """stamps (n,) increasing [s]; values (n,12): position [m], rotation row by row."""
        self.stamps = stamps
        steps = np.linalg.norm(np.diff(values[:, :3], axis=0), axis=1)
        gaps = np.diff(stamps)
        breaks = (gaps > LONGEST_GAP) | (steps > STEP_LENGTH + STEP_SPEED * gaps)
        self._piece = np.concatenate([[0], np.cumsum(breaks)])
        self.jumps = int((breaks & (gaps <= LONGEST_GAP)).sum())
        values = values - np.concatenate([values[0, :3], np.zeros(9)])
        self._all = _integral(stamps, values)
        self._even = stamps[::2], _integral(stamps[::2], values[::2, :3])
        self._odd = stamps[1::2], _integral(stamps[1::2], values[1::2, :3])

    def means(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Over [a, b] (...,) [s]: position (...,3), rotation (...,3,3), piece (...,), -1 where there is none."""
        mean = _mean(self.stamps, self._all, a, b)
        first = np.searchsorted(self.stamps, a) - 2
        last = np.searchsorted(self.stamps, b) + 1
        known = (first >= 0) & (last < len(self.stamps))
        first, last = np.clip(first, 0, None), np.clip(last, None, len(self.stamps) - 1)
        whole = known & (self._piece[first] == self._piece[last])
        return mean[..., :3], mean[..., 3:].reshape(*a.shape, 3, 3), np.where(whole, self._piece[first], -1)

    def twice(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean positions (...,3) over [a, b] from the even poses alone, and from the odd ones."""
        return _mean(*self._even, a, b), _mean(*self._odd, a, b)


@dataclass(frozen=True)
class Nodes:
    """The visual trajectory in pieces of NODE seconds: n pieces."""

    start: np.ndarray  # (n,) [s]
    end: np.ndarray
    segment: np.ndarray  # (n,) int
    position: np.ndarray  # (n,3) [network units]
    rotation: np.ndarray  # (n,3,3)

    @property
    def middle(self) -> np.ndarray:
        """(n,) [s]."""
        return (self.start + self.end) / 2

    def since(self, stamp: float) -> Nodes:
        """The pieces that begin at `stamp` [s] or later."""
        kept = self.start >= stamp
        return Nodes(self.start[kept], self.end[kept], self.segment[kept], self.position[kept], self.rotation[kept])


def nodes_from(stamps: np.ndarray, segments: np.ndarray, poses: np.ndarray) -> Nodes:
    """stamps (m,) increasing, segments (m,), poses (m,12) -> pieces that never mix two segments."""
    period = float(np.median(np.diff(stamps))) if len(stamps) > 1 else NODE
    pieces = np.floor(stamps / NODE + 1e-6)
    new = np.flatnonzero((np.diff(pieces) != 0) | (np.diff(segments) != 0)) + 1
    first = np.concatenate([[0], new])
    last = np.concatenate([new, [len(stamps)]]) - 1
    mean = np.add.reduceat(poses, first, axis=0) / (last - first + 1)[:, None]
    start, end = stamps[first] - period / 2, stamps[last] + period / 2
    return Nodes(start, end, segments[first], mean[:, :3], mean[:, 3:].reshape(-1, 3, 3))


def _integral(t: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,), (n,k) -> (n,k) running integral by trapezia."""
    areas = (values[1:] + values[:-1]) * (np.diff(t) / 2)[:, None]
    return np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(areas, axis=0)])


def _mean(t: np.ndarray, integral: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean over [a, b] (...,) of what `integral` (n,k) is the integral of -> (...,k)."""

    def at(x):
        i = np.clip(np.searchsorted(t, x) - 1, 0, len(t) - 2)
        share = ((x - t[i]) / (t[i + 1] - t[i]))[..., None]
        return integral[i] * (1 - share) + integral[i + 1] * share

    return (at(b) - at(a)) / (b - a)[..., None]
