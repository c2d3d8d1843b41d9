"""Subscriptions of the node: picks the raw or the compressed image, its camera_info, a QoS that connects, and the rest.

A publisher that starts late, or again with another QoS, is found by `look`, which the node calls a few times a second.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from endomust_core.decoding import stamp_ns
from endomust_ros.stamp_gaps import StampGaps

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

RAW, COMPRESSED = "raw", "compressed"
TYPES = {RAW: Image, COMPRESSED: CompressedImage}
SILENCE = 0.75  # s without an image after which the other kind gets its turn, where both are published


class Frame(NamedTuple):
    """An image as it came."""

    message: object
    compressed: bool


class Topics(NamedTuple):
    raw: str
    compressed: str
    camera_info: str


class Other(NamedTuple):
    """A further topic of the node."""

    message_type: type
    callback: Callable
    depth: int = 1
    wanted: Callable[[], bool] = lambda: True  # asked at every look


class Inputs:
    """Hands every image to `on_image(Frame)` and every CameraInfo to `on_info(message)` until it is closed."""

    def __init__(
        self,
        node,
        transport: str,
        qos: str,
        on_image: Callable,
        on_info: Callable,
        others: dict[str, Other] | None = None,
    ):
        """`others` are further topics, by their name in the node."""
        self._node, self._transport, self._qos = node, transport, qos
        self._on_image, self._on_info = on_image, on_info
        self._others = {node.resolve_topic_name(name): other for name, other in (others or {}).items()}
        self.incompatible: dict[str, str] = {}  # topic → why nothing arrives on it
        self._subscriptions: dict[str, tuple] = {}  # topic → (subscription, reliability)
        self._heard = time.monotonic()  # when the last image came
        self._silent: dict[str, int] = {}  # kind that is published and says nothing → how many publish it
        self.topics = resolve(node)
        self.choice = None if transport == "auto" else transport
        self.gaps = StampGaps()  # of every image that arrives, also of those that the node has no time for
        self.look()

    def look(self) -> None:
        """Subscribe to what is published now, with the QoS that is offered now; does nothing while both still fit."""
        self._choose()
        wanted = {self.topics.camera_info: Other(CameraInfo, self._on_info)}
        for kind in (RAW, COMPRESSED) if self.choice is None else (self.choice,):
            wanted[getattr(self.topics, kind)] = Other(TYPES[kind], self._taker(kind))
        wanted |= {topic: other for topic, other in self._others.items() if other.wanted()}
        for topic in self._subscriptions.keys() - wanted.keys():
            self._unsubscribe(topic)
        for topic, other in wanted.items():
            self._subscribe(topic, other)

    def close(self) -> None:
        for topic in list(self._subscriptions):
            self._unsubscribe(topic)

    def describe(self) -> dict[str, object]:
        """Facts for diagnostics: topic, how many publish it, what they offer and what is used."""
        kind = self.choice or RAW
        topic = getattr(self.topics, kind)
        publishers = self._node.get_publishers_info_by_topic(topic)
        offered = sorted({_word(info.qos_profile.reliability) for info in publishers})
        used = self._subscriptions.get(topic, (None, None))[1]
        return {
            "transport": self.choice or "waiting for a publisher",
            "topic": topic,
            "publishers": len(publishers),
            "published by": ", ".join(sorted({_full_name(info) for info in publishers})) or "nobody",
            "reliability offered": ", ".join(offered) or "-",
            "reliability used": _word(used) if used is not None else "-",
            "camera_info topic": self.topics.camera_info,
        }

    def _choose(self) -> None:
        """`auto` takes what is published, raw before compressed, and listens to both while neither is.

        A camera that was killed stays in the graph for some 20 s, so one that has sent nothing for SILENCE loses its
        turn to the other kind until the number of its publishers changes.
        """
        if self._transport != "auto":
            return
        now = time.monotonic()
        counts = {kind: self._node.count_publishers(getattr(self.topics, kind)) for kind in TYPES}
        if self.choice is not None and all(counts.values()) and now - self._heard > SILENCE:
            self._silent = {self.choice: counts[self.choice]}
        kinds = (kind for kind, number in counts.items() if number and self._silent.get(kind) != number)
        before, self.choice = self.choice, next(kinds, None)
        if before != self.choice:
            self._heard = now
            if before is not None:
                self.gaps.restart()

    def _taker(self, kind: str) -> Callable:
        def take(message):
            if self.choice is None:
                self.choice = kind  # the first image decides
            if self.choice == kind:
                self._heard = time.monotonic()
                self.gaps.add(stamp_ns(message))
                self._on_image(Frame(message, kind == COMPRESSED))

        return take

    def _subscribe(self, topic: str, other: Other) -> None:
        reliability = self._reliability(topic)
        if topic in self._subscriptions:
            if self._subscriptions[topic][1] == reliability:
                return
            self._unsubscribe(topic)
        qos = QoSProfile(depth=other.depth, history=HistoryPolicy.KEEP_LAST, reliability=reliability)
        events = SubscriptionEventCallbacks(incompatible_qos=lambda event: self._say_incompatible(topic, reliability))
        subscription = self._node.create_subscription(
            other.message_type, topic, other.callback, qos, event_callbacks=events
        )
        self._subscriptions[topic] = subscription, reliability

    def _say_incompatible(self, topic: str, reliability) -> None:
        """With `auto` the next look repairs it; a QoS that was asked for stays, and its price is named."""
        if self._qos != "auto":
            sentence = (
                f"a publisher of {topic} cannot serve input.qos={self._qos} ({_word(reliability)}), so none of its "
                "messages arrive; set input.qos to auto"
            )
            self.incompatible[topic] = sentence
            self._node.get_logger().warning(sentence)

    def _unsubscribe(self, topic: str) -> None:
        subscription, _ = self._subscriptions.pop(topic)
        self.incompatible.pop(topic, None)
        if self.choice is None or topic == getattr(self.topics, self.choice):  # not when the other kind is let go
            self.gaps.restart()
        self._node.destroy_subscription(subscription)

    def _reliability(self, topic: str) -> ReliabilityPolicy:
        if self._qos != "auto":
            return ReliabilityPolicy.RELIABLE if self._qos == "reliable" else ReliabilityPolicy.BEST_EFFORT
        offered = [info.qos_profile.reliability for info in self._node.get_publishers_info_by_topic(topic)]
        everyone = all(policy == ReliabilityPolicy.RELIABLE for policy in offered)
        return ReliabilityPolicy.RELIABLE if everyone else ReliabilityPolicy.BEST_EFFORT


def resolve(node) -> Topics:
    """Full topic names. A remap of `image` takes those of the other two along, unless they are remapped themselves."""
    raw, compressed = node.resolve_topic_name("image"), node.resolve_topic_name("image/compressed")
    if not _remapped(node, "image/compressed"):
        compressed = f"{raw}/compressed"
    elif not _remapped(node, "image"):
        raw = compressed.removesuffix("/compressed")
    info = node.resolve_topic_name("camera_info") if _remapped(node, "camera_info") else camera_info_topic(raw)
    return Topics(raw, compressed, info)


def camera_info_topic(image_topic: str) -> str:
    """/endoscope/image_raw → /endoscope/camera_info, as image_transport does."""
    return f"{image_topic.rpartition('/')[0]}/camera_info"


def _full_name(info) -> str:
    """The node behind a publisher; DDS needs a moment to know it, and of programs without ROS never does."""
    unknown = "UNKNOWN" in info.node_name
    return "a node not known yet" if unknown else f"{info.node_namespace.rstrip('/')}/{info.node_name}"


def _remapped(node, name: str) -> bool:
    return node.resolve_topic_name(name) != node.resolve_topic_name(name, only_expand=True)


def _word(policy) -> str:
    return policy.name.lower()
