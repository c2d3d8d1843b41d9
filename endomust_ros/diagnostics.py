"""Counts by reason, statistics of the last images, and how both become diagnostic messages (see reporter.py)."""

import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
WINDOW = 300  # images that the statistics look back on
PERCENTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
QUIET = 5.0  # s between two log lines that say the same


class Tally:
    """Counts events by reason and logs each kind of sentence at most every QUIET seconds. Safe from every thread."""

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._log, self._clock = log, clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._said: dict[tuple[str, str], float] = {}
        self.last = ""

    def count(self, reason: str) -> None:
        with self._lock:
            self._counts[reason] += 1

    def note(self, reason: str, sentence: str) -> None:
        """Count, and log unless a sentence that differs in numbers only was logged a moment ago."""
        key, now = (reason, re.sub(r"\d+", "#", sentence)), self._clock()
        with self._lock:
            self._counts[reason] += 1
            self.last = sentence
            quiet = now - self._said.get(key, -np.inf) < QUIET
            if not quiet:
                self._said[key] = now
                total = self._counts[reason]
        if not quiet:
            self._log(sentence if total == 1 else f"{sentence} ({reason}: {total} so far)")

    def __getitem__(self, reason: str) -> int:
        with self._lock:
            return self._counts[reason]

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)


class Statistics:
    """The last samples of named quantities. Safe from every thread."""

    def __init__(self, window: int = WINDOW):
        self._lock, self._window = threading.Lock(), window
        self._samples: dict[str, deque[float]] = {}

    def add(self, **values: float) -> None:
        with self._lock:
            for name, value in values.items():
                self._samples.setdefault(name, deque(maxlen=self._window)).append(value)

    def look_back(self, window: int) -> None:
        """Keep so many samples from now on; the newest of those that are there stay."""
        with self._lock:
            self._window = window
            self._samples = {name: deque(samples, maxlen=window) for name, samples in self._samples.items()}

    def percentiles(self, name: str) -> tuple[float, ...] | None:
        """The PERCENTILES, None without a sample."""
        with self._lock:
            samples = list(self._samples.get(name, ()))
        return tuple(np.percentile(samples, tuple(PERCENTILES.values()))) if samples else None

    def last(self, name: str) -> float | None:
        with self._lock:
            samples = self._samples.get(name)
            return samples[-1] if samples else None

    def names(self) -> list[str]:
        with self._lock:
            return list(self._samples)

    def rate(self, name: str) -> float:
        """Events per second from samples that are times [s]; 0 with fewer than two."""
        with self._lock:
            samples = list(self._samples.get(name, ()))
        span = samples[-1] - samples[0] if samples else 0.0
        return (len(samples) - 1) / span if span > 0 else 0.0


def status(name: str, level, sentence: str, values: dict, hardware: str = "") -> DiagnosticStatus:
    """One task; floats are written with four digits."""
    message = DiagnosticStatus(name=name, level=level, message=sentence, hardware_id=hardware)
    message.values = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
    return message


def array_of(stamp, statuses: list) -> DiagnosticArray:
    message = DiagnosticArray(status=statuses)
    message.header.stamp = stamp
    return message


def percentile_values(statistics: Statistics, name: str, label: str, factor: float = 1.0) -> dict[str, float]:
    """{'<label> p50': …, …, '<label> max': …}, empty without a sample."""
    got = statistics.percentiles(name)
    return {} if got is None else {f"{label} {q}": value * factor for q, value in zip(PERCENTILES, got, strict=True)}


def _text(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
