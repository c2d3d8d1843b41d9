"""Lets a service of a single-threaded node wait for another thread, or for some seconds, while images go on."""

import threading
import time
from collections.abc import Callable

PAUSE = 0.003  # s; rclpy asks an unfinished coroutine again and again, without a pause of its own


class Once:
    """A result that another thread leaves behind; `set` takes the first one only."""

    def __init__(self):
        self._done, self._result, self._error = threading.Event(), None, None

    def run(self, work: Callable) -> None:
        """Call `work` here and keep what it returns or raises."""
        try:
            self._result = work()
        except Exception as error:
            self._error = error
        self._done.set()

    def give_up(self, error: Exception) -> None:
        """Nobody will do the work."""
        if not self._done.is_set():
            self._error = error
            self._done.set()

    async def wait(self, seconds: float):
        """What `work` returned. Raises what it raised, and TimeoutError."""
        await until(self._done.is_set, seconds)
        if not self._done.is_set():
            raise TimeoutError(f"no answer within {seconds:.0f} s")
        if self._error is not None:
            raise self._error
        return self._result


async def until(done: Callable[[], bool], seconds: float) -> None:
    """Come back when `done()` is true, at the latest after so many seconds; other callbacks run in between."""
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(PAUSE)
        await _Yield()


class _Yield:
    """Gives other callbacks of the executor a turn."""

    def __await__(self):
        yield
