"""How the process of the node is scheduled while it is configured: cores, priority, garbage collector.

Everything is undone by `release`. What the system refuses is a sentence, never an exception: the node runs without it.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path


class Scheduling:
    """`apply` then `settle` after the warm-up; `problems` holds what the system refused, in words."""

    def __init__(self, cores: Sequence[int] = (), nice: int = 0):
        """`cores` empty and `nice` 0 leave the process as it was started."""
        self.problems: list[str] = []
        self._cores, self._nice = set(cores), nice
        self._before: dict[int, tuple[set[int], int]] = {}  # thread → cores and nice as they were
        self._frozen = False

    def apply(self) -> list[str]:
        """Move every thread that runs; threads made later inherit it. Returns `problems`."""
        if not (self._cores or self._nice):
            return self.problems
        if sys.platform != "linux":
            self.problems.append("realtime.cpu_affinity and realtime.nice have an effect on Linux only")
            return self.problems
        for thread in _threads():
            self._move(thread)
        self.problems = list(dict.fromkeys(self.problems))  # said once, not for every thread
        return self.problems

    def settle(self) -> None:
        """After the warm-up: what lives now lives long, so a full collection need not look at it again.

        It took 14 ms in the middle of an image, and takes less than one without what is frozen. The collector stays on:
        cycles that images leave are found in the young generations, which take .04 ms. A shorter switch interval, and
        collecting between images only, made no difference that could be measured.
        """
        gc.collect()
        gc.freeze()
        self._frozen = True

    def release(self) -> None:
        """As it was before; a priority that was lowered stays low where the system lets only root raise it."""
        if self._frozen:
            gc.unfreeze()
            self._frozen = False
        for thread, (cores, nice) in self._before.items():
            _try(os.sched_setaffinity, thread, cores)
            _try(os.setpriority, os.PRIO_PROCESS, thread, nice)
        self._before = {}

    def describe(self) -> str:
        """For diagnostics."""
        if self.problems:
            return "; ".join(self.problems)
        asked = [f"cores {','.join(map(str, sorted(self._cores)))}"] if self._cores else []
        asked += [f"nice {self._nice}"] if self._nice else []
        return ", ".join(asked) or "as started"

    def _move(self, thread: int) -> None:
        try:
            self._before[thread] = os.sched_getaffinity(thread), os.getpriority(os.PRIO_PROCESS, thread)
        except OSError:
            return  # it has ended
        if self._cores and _try(os.sched_setaffinity, thread, self._cores):
            there = ", ".join(map(str, sorted(self._before[thread][0])))
            wanted = ", ".join(map(str, sorted(self._cores)))
            self.problems.append(f"realtime.cpu_affinity [{wanted}] was refused; this process may use cores {there}")
        if self._nice and _try(os.setpriority, os.PRIO_PROCESS, thread, self._nice):
            self.problems.append(
                f"realtime.nice {self._nice} was refused; allow it with a 'nice' line in /etc/security/limits.conf "
                "(ulimit -e) or CAP_SYS_NICE, or choose 0 or more"
            )


def _threads() -> list[int]:
    """Linux numbers of all threads of this process, the calling one first."""
    mine = threading.get_native_id()
    return [mine, *(int(task.name) for task in Path("/proc/self/task").iterdir() if int(task.name) != mine)]


def _try(change, *arguments) -> OSError | None:
    """What went wrong, None when nothing did, or when the thread has ended meanwhile."""
    try:
        change(*arguments)
    except ProcessLookupError:
        return None
    except (OSError, OverflowError, ValueError) as error:
        return OSError(str(error))
    return None
