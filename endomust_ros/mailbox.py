"""Slots of one item each, and threads that empty them: a new item replaces one that waits, or waits for it itself."""

import threading
from collections.abc import Callable

from endomust_core.conveyor import step_back


class Mailbox:
    """One item a slot; most need one slot only. `put` never waits, `take` waits; a closed mailbox gives None."""

    def __init__(self):
        self._changed = threading.Condition()
        self._items: dict[str, object] = {}  # in the order in which the slots were filled, so that none waits for ever
        self._closed = False

    def put(self, item, slot: str = "") -> bool:
        """Leave an item. True when an older one that nobody had taken was replaced; it keeps the older one's turn."""
        with self._changed:
            if self._closed:
                return False
            replaced = slot in self._items
            self._items[slot] = item
            self._changed.notify()
        return replaced

    def take(self):
        """The item whose slot was filled first, as soon as there is one; None once the mailbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            return None if self._closed else self._items.pop(next(iter(self._items)))

    def close(self) -> list[str]:
        """Forget what waits and let every `take` return None; the slots that were filled."""
        with self._changed:
            self._closed = True
            forgotten = list(self._items)
            self._items.clear()
            self._changed.notify_all()
        return forgotten


class Worker:
    """Runs `handle(item)` for what lies in its mailbox, one at a time, on its own thread, until it is stopped."""

    def __init__(
        self,
        handle: Callable,
        on_error: Callable[[Exception], None],
        patience: float = 30.0,
        name: str = "endomust-worker",
        nice: int = 0,
    ):
        """`on_error` gets every exception of `handle`; `stop` waits `patience` seconds for the item in work.

        `nice` is how far the thread steps back behind the others of the process, where the system knows that (Linux).
        """
        self._handle = handle
        self._on_error = on_error
        self._patience, self._nice = patience, nice
        self._mailbox = Mailbox()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item, slot: str = "") -> bool:
        """True when an older item was replaced."""
        return self._mailbox.put(item, slot)

    def stop(self) -> list[str]:
        """Return when the item in work is done and the thread has ended; TimeoutError when that takes too long.

        The slots whose items nobody took are returned.
        """
        forgotten = self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(self._patience)
        if self._thread.is_alive():
            raise TimeoutError(f"one image has been in work for more than {self._patience:.0f} s; the inference hangs")
        return forgotten

    def _run(self) -> None:
        if self._nice:
            step_back(self._nice)
        while (item := self._mailbox.take()) is not None:
            try:
                self._handle(item)
            except Exception as error:  # one bad frame must not end the stream; it is reported and counted
                self._on_error(error)


class Follower:
    """Runs `handle(item)` on its own thread, one item after the other; `put` waits until the one before is done."""

    def __init__(self, handle: Callable, on_error: Callable[[Exception], None], patience: float = 30.0, name: str = ""):
        """`on_error` gets every exception of `handle`; nobody waits longer than `patience` seconds."""
        self._handle, self._on_error, self._patience = handle, on_error, patience
        self._changed = threading.Condition()
        self._item, self._busy, self._closed = None, False, False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item) -> None:
        """Leave an item as soon as nothing is in work. Raises TimeoutError."""
        with self._changed:
            self._wait()
            self._item, self._busy = item, True
            self._changed.notify_all()

    def settle(self) -> None:
        """Return when nothing is in work. Raises TimeoutError."""
        with self._changed:
            self._wait()

    def stop(self) -> None:
        """Return when the item in work is done and the thread has ended. Raises TimeoutError."""
        with self._changed:
            self._wait()
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(self._patience)

    def _wait(self) -> None:
        if not self._changed.wait_for(lambda: not self._busy, self._patience):
            raise TimeoutError(f"one image has been in work for more than {self._patience:.0f} s; the inference hangs")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._busy or self._closed)
                if self._closed:
                    return
                item, self._item = self._item, None
            try:
                self._handle(item)
            except Exception as error:  # one bad frame must not end the stream; it is reported and counted
                self._on_error(error)
            finally:
                del item
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
