"""Work between threads: `ahead` runs a generator in front of its reader, `Sink` takes items to a handler behind it.

Both hold a bounded number of items, so that a fast side waits for a slow one instead of filling the memory, and both
pass exceptions on to the thread that uses them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
WAIT = 0.1  # s between two looks whether the other side is still there
END = object()
NICE = 10  # of threads that fetch and write: they use what the one in front leaves, instead of halving it


@contextlib.contextmanager
def ahead(items: Iterator[Item], most: int = 4, nice: int = NICE) -> Iterator[Iterator[Item]]:
    """The same items, made by another thread up to `most` ahead; leaving the block stops it and closes `items`.

    `nice` is how far the thread steps back behind the others."""
    waiting: queue.Queue = queue.Queue(maxsize=most)
    stop, failure = threading.Event(), []

    def put(item) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(item, timeout=WAIT)
                return

    def run() -> None:
        step_back(nice)
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    break
        except BaseException as error:
            failure.append(error)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            put(END)

    def read() -> Iterator[Item]:
        while (item := waiting.get()) is not END:
            yield item
        if failure:
            raise failure[0]

    thread = threading.Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        yield read()
    finally:
        stop.set()
        thread.join()


class Sink:
    """Calls `handle(item)` for every item in a thread of its own. `put` waits while `most` items wait already."""

    def __init__(self, handle: Callable[[Item], None], name: str, most: int = 4):
        self.busy_s = 0.0  # time spent in `handle`
        self._handle = handle
        self._waiting: queue.Queue = queue.Queue(maxsize=most)
        self._failure: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over one item; raises what `handle` raised before."""
        while True:
            if self._failure is not None:
                raise self._failure
            with contextlib.suppress(queue.Full):
                self._waiting.put(item, timeout=WAIT)
                return

    def close(self) -> None:
        """Wait until everything is handled; raises what `handle` raised."""
        self.put(END)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def abandon(self) -> None:
        """Stop after the item in work and forget the rest; harmless after `close`."""
        self._stopped = True
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(END)
        self._thread.join()

    def _run(self) -> None:
        step_back()
        while not self._stopped and (item := self._waiting.get()) is not END:
            start = time.perf_counter()
            try:
                self._handle(item)
            except BaseException as error:
                self._failure = error
                return
            self.busy_s += time.perf_counter() - start


def step_back(nice: int = NICE) -> None:
    """Lower the priority of the calling thread, where the system has one for each thread (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + nice)
