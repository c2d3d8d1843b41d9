"""Images that never came, told from the stamps of those that did: stamps [ns] → period [s], missing, loss [%].

The period of the camera is learned. A camera that stops, jumps back in time or takes another rate has lost nothing.
"""

from collections import deque
from statistics import median
from typing import NamedTuple

import numpy as np

WINDOW = 300  # images that the loss is about
ENOUGH = 20  # gaps before anything is said; as many alike in a row are a camera's own rate
ALIKE = 0.25  # of the median: what stamps of an undisturbed camera deviate
PAUSE_SECONDS, PAUSE_PERIODS = 1.0, 5.0  # a gap longer than both is a camera that stood still
UNEVEN = 0.15  # mean distance of gaps from whole periods; 0.25 is no rhythm at all
TOO_MANY = 5.0  # % missing that diagnostics warn about


class Loss(NamedTuple):
    """Of the last WINDOW images; percent is None while the camera's period is unknown."""

    period: float | None  # s
    missing: int
    percent: float | None

    @property
    def serious(self) -> bool:
        return self.percent is not None and self.percent > TOO_MANY


class StampGaps:
    """`add` the stamp of every image that arrives, whether it is used or not; `loss` tells what lies between them."""

    def __init__(self):
        self._last: int | None = None
        self._gaps: deque[float] = deque(maxlen=WINDOW)
        self._rate: float | None = None  # the period [s] of the newest undisturbed stretch

    def add(self, stamp_ns: int) -> None:
        last, self._last = self._last, stamp_ns
        gap = 0.0 if last is None else 1e-9 * (stamp_ns - last)
        if gap <= 0 or self._is_pause(gap):
            return
        self._gaps.append(gap)
        self._notice_rate()

    def restart(self) -> None:
        """The next stamp has no predecessor: we did not listen in between."""
        self._last = None

    def loss(self) -> Loss:
        period = self._rate or _learned(self._gaps)
        if period is None:
            return Loss(None, 0, None)
        # A late stamp makes one gap long and the next one short, so the short ones count too.
        missing = max(int((np.rint(np.array(self._gaps) / period) - 1).sum()), 0)
        return Loss(period, missing, 100.0 * missing / (missing + len(self._gaps)))

    def _is_pause(self, gap: float) -> bool:
        return gap > max(PAUSE_SECONDS, PAUSE_PERIODS * (self._rate or 0.0))

    def _notice_rate(self) -> None:
        """A stretch of equal gaps shows the period; one that differs from what was known begins the window anew."""
        newest = list(self._gaps)[-ENOUGH:]
        if len(newest) < ENOUGH or not _alike(newest, middle := median(newest)):
            return
        known = self._rate or _learned(self._gaps)
        if known is None or not _alike([middle], known):
            self._gaps = deque(newest, maxlen=WINDOW)
        self._rate = middle


def _alike(gaps, middle: float) -> bool:
    return all(abs(gap - middle) <= ALIKE * middle for gap in gaps)


def _learned(gaps) -> float | None:
    """Period [s] of a stream that was never undisturbed: its shortest gaps, where the others are multiples of them."""
    if len(gaps) < ENOUGH:
        return None
    gaps = np.array(gaps)
    period = float(np.median(gaps[gaps < 1.5 * np.percentile(gaps, 10)]))
    beats = gaps / period
    return period if np.abs(beats - np.rint(beats)).mean() < UNEVEN else None
