"""A few seconds of listening: who publishes images, how often, how old, how calibrated; does the node run → facts.

Only looks; the judgement is in doctor.py. Subscribes as the node would, best effort where a publisher offers no more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from endomust_core.checks.calibration import Numbers
from endomust_core.decoding import stamp_ns
from endomust_ros.stamp_gaps import StampGaps

TYPES = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}
SIGN = ("/reset_odometry", "std_srvs/srv/Trigger")  # a service of our node, whatever its name
MOST = 6  # image topics that are listened to; more would measure our own load
SPIN = 0.05  # s
TOPICS_PERIOD = 0.3  # s between two looks at the graph
PATIENCE = 3.5  # s until nobody is there: Fast DDS repeats its announcement every 3 s
DEPTH = 10  # messages that wait for us, so that what is lost was lost on the way


@dataclass
class ImageTopic:
    """What was heard of one image topic; sizes are (H, W), stamps [ns], ages and arrivals [s]."""

    name: str
    kind: str
    publishers: int = 0
    reliability: set[str] = field(default_factory=set)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    encodings: set[str] = field(default_factory=set)
    frames: set[str] = field(default_factory=set)
    stamps: list[int] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    largest: int = 0  # bytes of a message
    gaps: StampGaps = field(default_factory=StampGaps)
    info_topic: str = ""
    info_publishers: int = 0
    info: Numbers | None = None

    @property
    def rate(self) -> float | None:
        """Images that arrived per second; None with fewer than two."""
        span = self.arrivals[-1] - self.arrivals[0] if self.arrivals else 0.0
        return (len(self.arrivals) - 1) / span if span > 0 else None


@dataclass
class Seen:
    """Everything that was heard."""

    seconds: float
    topics: list[ImageTopic] = field(default_factory=list)
    unheard: list[str] = field(default_factory=list)  # image topics beyond MOST
    nodes: dict[str, str] = field(default_factory=dict)  # our nodes: full name → lifecycle state
    complaints: dict[str, str] = field(default_factory=dict)  # "endomust: input" → its newest sentence
    simulated_time: bool = False

    @property
    def camera(self) -> ImageTopic | None:
        """The topic that is most likely the camera: one that delivers, with a calibration beside it."""

        def merit(topic: ImageTopic):
            return topic.info is not None, topic.kind == "raw", len(topic.stamps)

        return max((topic for topic in self.topics if topic.sizes), key=merit, default=None)


def look(seconds: float = 3.0, topic: str | None = None) -> Seen:
    """Listen for that long once there is something to hear; `topic` limits it to one image topic."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node(f"endomust_doctor_{os.getpid()}", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        return _Look(node, executor, topic).run(seconds)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


class _Look:
    def __init__(self, node, executor, only: str | None):
        self._node, self._executor, self._only = node, executor, only
        self._topics: dict[str, ImageTopic] = {}
        self._asked: dict[str, object] = {}  # node → future of its state
        self._levels: dict[str, tuple[bytes, str]] = {}
        node.create_subscription(DiagnosticArray, "/diagnostics", self._take_diagnostics, 10)

    def run(self, seconds: float) -> Seen:
        start, next_look, end = time.monotonic(), 0.0, None
        seen = Seen(seconds)
        while time.monotonic() < (start + PATIENCE if end is None else end):
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + TOPICS_PERIOD
                self._follow_graph(seen)
                end = time.monotonic() + seconds if end is None and self._topics else end
            self._executor.spin_once(timeout_sec=SPIN)
        seen.topics = [topic for topic in self._topics.values() if topic.publishers]
        seen.nodes = {name: _state(future) for name, future in self._asked.items()}
        prefixes = tuple(f"{name.rpartition('/')[2]}: " for name in seen.nodes)
        bad = {name: sentence for name, (level, sentence) in self._levels.items() if level != b"\x00"}
        seen.complaints = {name: text for name, text in bad.items() if prefixes and name.startswith(prefixes)}
        return seen

    def _follow_graph(self, seen: Seen) -> None:
        for service, kinds in self._node.get_service_names_and_types():
            if service.endswith(SIGN[0]) and SIGN[1] in kinds:
                self._ask(service.removesuffix(SIGN[0]))
        names = dict(self._node.get_topic_names_and_types())
        seen.simulated_time = "/clock" in names and bool(self._node.count_publishers("/clock"))
        wanted = [name for name, kinds in sorted(names.items()) if TYPES.keys() & set(kinds) and self._is_input(name)]
        wanted = [name for name in wanted if name.removesuffix("/compressed") == name or not self._raw_beside(name)]
        seen.unheard = wanted[MOST:]
        for name in wanted[:MOST]:
            self._listen(name, next(kind for kind in names[name] if kind in TYPES))

    def _ask(self, name: str) -> None:
        if name not in self._asked:
            client = self._node.create_client(GetState, f"{name}/get_state")
            self._asked[name] = client.call_async(GetState.Request()) if client.service_is_ready() else None
        elif self._asked[name] is None:
            del self._asked[name]  # it was not ready: ask anew

    def _is_input(self, topic: str) -> bool:
        """Not an output of our node, and the one that was asked for."""
        ours = any(topic.startswith(f"{name}/") for name in self._asked)
        asked = self._only is None or topic in (self._only, f"{self._only}/compressed")
        return asked and not ours and self._node.count_publishers(topic) > 0

    def _raw_beside(self, topic: str) -> bool:
        return self._node.count_publishers(topic.removesuffix("/compressed")) > 0

    def _listen(self, name: str, kind: str) -> None:
        offered = self._node.get_publishers_info_by_topic(name)
        words = {info.qos_profile.reliability.name.lower() for info in offered}
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = ImageTopic(name, "raw" if TYPES[kind] is Image else "compressed")
            base = name.removesuffix("/compressed") if topic.kind == "compressed" else name
            topic.info_topic = f"{base.rpartition('/')[0]}/camera_info"
            self._subscribe(TYPES[kind], name, self._taker(topic), words)
            info_words = self._offered(topic.info_topic)
            self._subscribe(CameraInfo, topic.info_topic, lambda message: _take_info(topic, message), info_words)
        topic.publishers = max(topic.publishers, len(offered))
        topic.reliability |= words
        topic.info_publishers = max(topic.info_publishers, self._node.count_publishers(topic.info_topic))

    def _offered(self, topic: str) -> set[str]:
        return {info.qos_profile.reliability.name.lower() for info in self._node.get_publishers_info_by_topic(topic)}

    def _subscribe(self, kind, name: str, take: Callable, offered: set[str]) -> None:
        reliable = offered == {"reliable"}
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(
            depth=DEPTH,
            history=HistoryPolicy.KEEP_LAST,
            reliability=reliability,
            durability=DurabilityPolicy.VOLATILE,
        )
        self._node.create_subscription(kind, name, take, qos)

    def _taker(self, topic: ImageTopic) -> Callable:
        def take(message) -> None:
            stamp = stamp_ns(message)
            topic.arrivals.append(time.monotonic())
            topic.ages.append(1e-9 * (self._node.get_clock().now().nanoseconds - stamp))
            topic.stamps.append(stamp)
            topic.gaps.add(stamp)
            topic.frames.add(message.header.frame_id)
            topic.largest = max(topic.largest, len(message.data))
            topic.encodings.add(message.encoding if topic.kind == "raw" else message.format)
            if topic.kind == "raw":
                topic.sizes.add((message.height, message.width))
            elif not topic.sizes:
                topic.sizes |= _size_of_jpeg(message)

        return take

    def _take_diagnostics(self, message) -> None:
        for status in message.status:
            self._levels[status.name] = bytes(status.level), status.message


def _take_info(topic: ImageTopic, message) -> None:
    D = [float(value) for value in message.d]
    K = [float(value) for value in message.k]
    topic.info = Numbers(message.width, message.height, K, D, message.distortion_model, message.header.frame_id)


def _size_of_jpeg(message) -> set[tuple[int, int]]:
    import cv2
    import numpy as np

    image = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
    return set() if image is None else {image.shape[:2]}


def _state(future) -> str:
    """The label of the lifecycle state, or that there was no answer."""
    if future is None or not future.done() or future.result() is None:
        return "gives no answer"
    return future.result().current_state.label
