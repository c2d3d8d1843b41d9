"""Records topics as they arrive: serialised messages go to an MCAP file in their own thread; nothing is decoded.

Arrival times are monotonic seconds of this process, taken before anything else happens to the message.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from endomust_core.decoding import DecodingError, stamp_ns_from_cdr
from endomust_core.recording import RecordingError
from endomust_core.recording_writer import RecordingWriter
from endomust_ros.player import message_class

WAITING = 256  # messages that may wait for the disk; a full queue drops and counts


@dataclass(frozen=True)
class Topic:
    """One topic to record. `keep` False notes arrivals only; `latched` also gets what was published before."""

    name: str
    msgtype: str
    depth: int = 10
    latched: bool = False
    stamped: bool = True
    keep: bool = True


@dataclass(frozen=True)
class Arrival:
    """When a message came: its header stamp [ns] (0 without header) and the monotonic clock [s]."""

    topic: str
    stamp_ns: int
    at: float


class Recorder:
    """Subscribes on its own node's executor thread and writes in a second thread until `close`."""

    def __init__(self, node: Node, path: str | Path, topics: list[Topic]):
        self.arrivals: list[Arrival] = []
        self.latest: dict[str, bytes] = {}  # last message of each latched topic
        self.dropped = 0
        self.failure: RecordingError | None = None
        self._node = node
        self._writer = RecordingWriter(path)
        self._queue: queue.Queue = queue.Queue(maxsize=WAITING)
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._subscriptions = [self._subscribe(topic) for topic in topics]
        self._threads = [
            threading.Thread(target=self._spin, name="recorder-spin", daemon=True),
            threading.Thread(target=self._write, name="recorder-write", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def put(self, topic: str, msgtype: str, cdr: bytes, log_ns: int) -> None:
        """Record a message that did not come over DDS; drops and counts when the disk does not keep up."""
        try:
            self._queue.put_nowait((topic, msgtype, cdr, log_ns))
        except queue.Full:
            self.dropped += 1

    def close(self) -> Path:
        """Stop listening, write what waits, finish the file; RecordingError when writing failed or nothing came."""
        self._stop()
        if self.failure is not None:
            self._writer.abort()
            raise self.failure
        return self._writer.close()

    def abandon(self) -> None:
        """Stop listening and leave no file."""
        self._stop()
        self._writer.abort()

    def first_arrivals(self, topic: str) -> dict[int, float]:
        """Header stamp [ns] → monotonic time [s] of its first arrival on `topic`."""
        found: dict[int, float] = {}
        for arrival in self.arrivals:
            if arrival.topic == topic:
                found.setdefault(arrival.stamp_ns, arrival.at)
        return found

    def count(self, topic: str) -> int:
        """Arrivals on `topic` so far."""
        return sum(arrival.topic == topic for arrival in self.arrivals)

    def _subscribe(self, topic: Topic):
        durability = DurabilityPolicy.TRANSIENT_LOCAL if topic.latched else DurabilityPolicy.VOLATILE
        qos = QoSProfile(
            depth=topic.depth,
            history=HistoryPolicy.KEEP_LAST,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=durability,
        )

        def arrived(cdr: bytes) -> None:
            at = time.monotonic()
            self.arrivals.append(Arrival(topic.name, _stamp(cdr) if topic.stamped else 0, at))
            if topic.latched:
                self.latest[topic.name] = cdr
            if topic.keep:
                self.put(topic.name, topic.msgtype, cdr, time.time_ns())

        return self._node.create_subscription(message_class(topic.msgtype), topic.name, arrived, qos, raw=True)

    def _stop(self) -> None:
        self._executor.shutdown(timeout_sec=2.0)
        self._threads[0].join(timeout=5.0)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        self._queue.put(None)
        self._threads[1].join()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.failure is not None:
                continue  # keep emptying the queue; close() reports
            try:
                self._writer.write_raw(*item)
            except RecordingError as error:
                self.failure = error


def _stamp(cdr: bytes) -> int:
    try:
        return stamp_ns_from_cdr(cdr)
    except DecodingError:
        return 0
