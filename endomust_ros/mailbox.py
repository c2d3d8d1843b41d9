"""A one-slot mailbox and the thread that empties it: a new image takes the place of one that still waits."""

import threading
from collections.abc import Callable


class Mailbox:
    """Holds at most one item. `put` never waits, `take` waits; a closed mailbox gives None."""

    def __init__(self):
        self._changed = threading.Condition()
        self._item = None
        self._closed = False

    def put(self, item) -> bool:
        """Leave an item. True when an older one that nobody had taken was replaced."""
        with self._changed:
            if self._closed:
                return False
            replaced = self._item is not None
            self._item = item
            self._changed.notify()
        return replaced

    def take(self):
        """The item, as soon as there is one; None once the mailbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._item is not None)
            item, self._item = self._item, None
            return None if self._closed else item

    def close(self) -> None:
        """Forget what waits and let every `take` return None."""
        with self._changed:
            self._closed, self._item = True, None
            self._changed.notify_all()


class Worker:
    """Runs `handle(item)` for what lies in its mailbox, one at a time, on its own thread, until it is stopped."""

    def __init__(self, handle: Callable, on_error: Callable[[Exception], None], patience: float = 30.0):
        """`on_error` gets every exception of `handle`; `stop` waits `patience` seconds for the item in work."""
        self._handle = handle
        self._on_error = on_error
        self._patience = patience
        self._mailbox = Mailbox()
        self._thread = threading.Thread(target=self._run, name="endomust-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item) -> bool:
        """True when an older item was replaced."""
        return self._mailbox.put(item)

    def stop(self) -> None:
        """Return when the item in work is done and the thread has ended; TimeoutError when that takes too long."""
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(self._patience)
        if self._thread.is_alive():
            raise TimeoutError(f"one image has been in work for more than {self._patience:.0f} s; the inference hangs")

    def _run(self) -> None:
        while (item := self._mailbox.take()) is not None:
            try:
                self._handle(item)
            except Exception as error:  # one bad frame must not end the stream; it is reported and counted
                self._on_error(error)
