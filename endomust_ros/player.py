"""Plays a recording into ROS at its own pace: serialised messages go from the file to DDS, nothing is decoded.

Stamps stay as recorded unless `now` is asked for; then every header moves by the same time, so that an image and its
camera_info still carry equal stamps.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from endomust_core.decoding import restamped_cdr, stamp_ns_from_cdr
from endomust_core.recording import COMPRESSED_IMAGE, IMAGE, RecordingError, RecordingReader
from endomust_ros.dds_profile import ProfileError
from endomust_ros.transport import fast_dds_environment

LATCHED = ("/tf_static",)  # late subscribers need these too
LOOK_EVERY = 0.02  # seconds between two looks at the graph, or at what is not acknowledged yet
ACKNOWLEDGE_WITHIN = 2.0  # seconds


class PlayError(RuntimeError):
    """Playing cannot go on; the message says what to do next."""


@dataclass
class Played:
    """What was sent: messages per topic, seconds it took, and how late [s] each message left against the recording."""

    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    lateness: list[float] = field(default_factory=list)
    acknowledged: bool = True

    def late_p95(self) -> float:
        """95th percentile of lateness [s]; 0 when nothing was sent."""
        return float(np.percentile(self.lateness, 95)) if self.lateness else 0.0


def message_class(msgtype: str):
    """`sensor_msgs/msg/Image` → the Python class; PlayError names the package that is not installed."""
    package, _, name = msgtype.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise PlayError(
            f"{msgtype} is not installed here; install the ROS package {package}, or leave its topics out with --topics"
        ) from error


class Player:
    """Publishers for the chosen topics of one recording; `play` sends it once."""

    def __init__(self, node: Node, recording: RecordingReader, topics: list[str] | None = None):
        """`topics` None plays all; raises RecordingError for a topic that is not there."""
        self._node = node
        self._recording = recording
        self.topics = list(recording.topics) if topics is None else topics
        for topic in self.topics:
            if topic not in recording.topics:
                raise RecordingError(
                    f"{recording.path} has no topic {topic}; its topics: {recording.describe_topics()}"
                )
        self._restampable = {t: recording.has_header(recording.topics[t]) for t in self.topics}
        self._publishers = {
            t: node.create_publisher(message_class(recording.topics[t]), t, _qos(t)) for t in self.topics
        }

    def wait_for_subscribers(self, topics: list[str], timeout: float) -> list[str]:
        """Wait until every one of `topics` has a subscriber; returns those that still have none after `timeout` [s]."""
        deadline = time.monotonic() + timeout
        while True:
            missing = [t for t in topics if self._publishers[t].get_subscription_count() == 0]
            if not missing or time.monotonic() >= deadline or not rclpy.ok(context=self._node.context):
                return missing
            time.sleep(LOOK_EVERY)

    def play(
        self,
        rate: float = 1.0,
        now: bool = False,
        on_sent: Callable[[str, int, bytes, float], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Played:
        """Send the recording once, `rate` times as fast as recorded, and wait until subscribers acknowledge the end.

        `on_sent(topic, log time of the recording [ns], bytes as sent, monotonic time before sending [s])` sees each
        message; it must be quick. `stop` is asked before each message.
        """
        played = Played({t: 0 for t in self.topics})
        started = time.monotonic()
        shift_base = time.time_ns()
        origin = self._recording.start_ns
        for topic, _, log_ns, cdr in self._recording.messages(self.topics):
            due = started + (log_ns - origin) / 1e9 / rate
            if stop() or not _sleep_until(due, stop):
                break
            if now and self._restampable[topic]:
                cdr = restamped_cdr(cdr, shift_base + round((stamp_ns_from_cdr(cdr) - origin) / rate))
            sent_at = time.monotonic()
            self._publishers[topic].publish(cdr)
            played.counts[topic] += 1
            played.lateness.append(sent_at - due)
            if on_sent is not None:
                on_sent(topic, log_ns, cdr, sent_at)
        played.seconds = time.monotonic() - started
        played.acknowledged = self._wait_for_acknowledgement()
        return played

    def _wait_for_acknowledgement(self) -> bool:
        """True when every subscriber has confirmed everything. Asks without waiting, because rclpy waits with the
        interpreter locked, and a recorder in this process would stand still meanwhile."""
        deadline = time.monotonic() + ACKNOWLEDGE_WITHIN
        waiting = list(self._publishers.values())
        while waiting and time.monotonic() < deadline:
            waiting = [p for p in waiting if not p.wait_for_all_acked(Duration(seconds=0))]
            time.sleep(LOOK_EVERY)
        return not waiting

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)


def main(arguments: list[str] | None = None) -> int:
    """`endomust play REC`: returns the exit code; prints what was sent."""
    options = _parse(arguments)
    try:
        os.environ.update(fast_dds_environment(os.environ))
        with RecordingReader(options.recording) as recording:
            return _run(recording, options)
    except (RecordingError, PlayError, ProfileError, FileNotFoundError) as error:
        print(f"endomust play: {error}", file=sys.stderr)
        return 2


def _run(recording: RecordingReader, options: argparse.Namespace) -> int:
    context = rclpy.Context()
    rclpy.init(args=[], context=context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    node = rclpy.create_node("endomust_player", context=context, start_parameter_services=False)
    try:
        player = Player(node, recording, options.topics or None)
        _wait(player, recording, options.wait)
        _announce(recording, player, options)
        while True:
            _report(player.play(options.rate, options.now))
            if not options.loop:
                return 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def _wait(player: Player, recording: RecordingReader, timeout: float) -> None:
    images = [t for t in player.topics if recording.topics[t] in (IMAGE, COMPRESSED_IMAGE) and "ground_truth" not in t]
    missing = player.wait_for_subscribers(images, timeout)
    if missing and timeout > 0:
        print(f"nobody subscribed to {', '.join(missing)} within {timeout:g} s; playing anyway", file=sys.stderr)


def _announce(recording: RecordingReader, player: Player, options: argparse.Namespace) -> None:
    total = sum(recording.count(t) for t in player.topics)
    loop = ", again and again until Ctrl-C" if options.loop else ""
    print(f"{recording.path}: {recording.duration_s / options.rate:.1f} s, {total} messages{loop}", flush=True)
    for topic in player.topics:
        print(f"  {topic} ({recording.topics[topic]}, {recording.count(topic)})", flush=True)


def _report(played: Played) -> None:
    text = f"sent {sum(played.counts.values())} messages in {played.seconds:.1f} s, "
    text += f"95 % of them at most {played.late_p95() * 1e3:.1f} ms late"
    print(text + ("" if played.acknowledged else "; a subscriber did not acknowledge all of them"), flush=True)


def _qos(topic: str) -> QoSProfile:
    # RELIABLE serves both kinds of subscribers. Ten deep: a message waits for its acknowledgement, none is replaced.
    durability = DurabilityPolicy.TRANSIENT_LOCAL if topic in LATCHED else DurabilityPolicy.VOLATILE
    return QoSProfile(
        depth=10, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE, durability=durability
    )


def _sleep_until(due: float, stop: Callable[[], bool]) -> bool:
    """Sleep in slices, so that `stop` is heard within 0.2 s; False when it was."""
    while (left := due - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))
        if left > 0.2 and stop():
            return False
    return True


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="endomust play", description="Play a recording into ROS at its own pace.")
    add_arguments(parser)
    return parser.parse_args(arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `endomust play`, for the command line of the project."""
    parser.add_argument("recording", type=Path, help="an .mcap file or a rosbag2 folder")
    parser.add_argument("--rate", type=_positive, default=1.0, help="times as fast as recorded (default 1)")
    parser.add_argument("--loop", action="store_true", help="start again at the end, until Ctrl-C")
    parser.add_argument("--topics", nargs="+", metavar="TOPIC", help="play these topics only (default: all)")
    parser.add_argument("--wait", type=float, default=5.0, metavar="SECONDS", help="for a subscriber (default 5)")
    parser.add_argument("--now", action="store_true", help="move header stamps to the current time, like a camera")


if __name__ == "__main__":
    sys.exit(main())
