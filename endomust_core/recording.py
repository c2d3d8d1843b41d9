"""Recordings on disk: any ROS 1 or 2 recording → messages; names of topics and types. Stamps are integers [ns].

Writing is in recording_writer.py.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from pathlib import Path

from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from endomust_core.mcap_scan import McapScan

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
POSE_STAMPED = "geometry_msgs/msg/PoseStamped"
ODOMETRY = "nav_msgs/msg/Odometry"
POINT_CLOUD = "sensor_msgs/msg/PointCloud2"
TF_MESSAGE = "tf2_msgs/msg/TFMessage"
DIAGNOSTIC_ARRAY = "diagnostic_msgs/msg/DiagnosticArray"
STRING = "std_msgs/msg/String"

IMAGE_TOPIC = "/endoscope/image_raw"
COMPRESSED_TOPIC = "/endoscope/image_raw/compressed"
CAMERA_INFO_TOPIC = "/endoscope/camera_info"
POSE_TOPIC = "/endoscope/ground_truth/pose"
DEPTH_TOPIC = "/endoscope/ground_truth/depth"
DEPTH_PNG_TOPIC = "/endoscope/ground_truth/depth/png"

DEPTH_UNIT_M = 1e-3 / 128  # one step of the PNG form: 7.8 µm, reaching 0.512 m; 0 says "no depth here"
DEPTH_PNG_FORMAT = f"16UC1; png; metres_per_unit={DEPTH_UNIT_M!r}"

log = logging.getLogger(__name__)


class RecordingError(RuntimeError):
    """A recording cannot be read or written; the message says what to do next."""


class RecordingReader:
    """Opens an .mcap or .db3 file, a rosbag2 folder or a ROS 1 .bag; a context manager, usable without `with` too.

    Messages of a ROS 1 bag come out as those of ROS 2 of the same name. `faults` are sentences about what could not be
    read; it fills up while `messages` runs, and only with `recover`.
    """

    def __init__(self, path: str | Path, recover: bool = False):
        """`recover` reads what is left of an .mcap file without end, or with a damaged middle, instead of raising."""
        self.path = Path(path)
        self.faults: list[str] = []
        self._recover = recover and self.path.suffix == ".mcap" and self.path.is_file()
        self._scan: McapScan | None = None
        self._ros2_types = get_typestore(Stores.ROS2_JAZZY)
        _check_kind(self.path)
        try:
            self._bag = AnyReader([self.path], default_typestore=self._ros2_types)
            self._bag.open()
        except Exception as error:  # the reader meets foreign bytes here: it may fail in any way
            self._open_scan(error)
            return
        self.topics: dict[str, str] = {c.topic: c.msgtype for c in self._bag.connections}
        self._counts: dict[str, int] = {}
        for connection in self._bag.connections:
            self._counts[connection.topic] = self._counts.get(connection.topic, 0) + connection.msgcount
        self.start_ns: int = self._bag.start_time if self._counts else 0
        self.duration_s: float = max(0, self._bag.duration - 1) / 1e9 if sum(self._counts.values()) else 0.0

    def _open_scan(self, error: Exception) -> None:
        """Learn what is left of an MCAP file that does not open; RecordingError where that is nothing."""
        words = _why_unreadable(self.path, error)
        if not self._recover:
            raise RecordingError(words) from error
        try:
            self._scan = McapScan(self.path)
        except Exception as damage:  # the bytes are foreign here too
            raise RecordingError(words) from damage
        if not self._scan.counts:
            raise RecordingError(f"{words}; no message can be read from it") from error
        self.topics = {c.topic: c.msgtype for c in self._scan.channels.values()}
        self._counts = dict(self._scan.counts)
        self.start_ns = self._scan.start_ns
        self.duration_s = (self._scan.end_ns - self._scan.start_ns) / 1e9
        found = "; ".join(self._scan.faults) or f"the index cannot be used: {error}"
        total = sum(self._counts.values())
        self.faults.append(f"{self.path.name} is cut short or was never finished ({found}); {total} messages were read")

    def __enter__(self) -> RecordingReader:
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; harmless when called twice."""
        if self._scan is None and self._bag.stack is not None:
            self._bag.close()

    def count(self, topic: str) -> int:
        """Number of messages on `topic`; 0 where there is no such topic."""
        return self._counts.get(topic, 0)

    def image_topic(self) -> str:
        """The camera's topic: the only or, among several, the first colour stream; RecordingError lists the topics."""
        images = [t for t, kind in self.topics.items() if kind in (IMAGE, COMPRESSED_IMAGE) and self.count(t)]
        colour = sorted(t for t in images if "depth" not in t)
        for topic in (COMPRESSED_TOPIC, IMAGE_TOPIC, *colour):
            if topic in colour:
                return topic
        raise RecordingError(f"{self.path} holds no camera images; its topics: {self.describe_topics()}")

    def camera_topic(self, asked: str | None = None) -> str:
        """The images to work on: `asked`, or the only colour stream; RecordingError with the candidates otherwise.

        A stream that is recorded raw and compressed counts once, and its raw form is taken, as the node does.
        """
        images = sorted(t for t, kind in self.topics.items() if kind in (IMAGE, COMPRESSED_IMAGE) and self.count(t))
        if asked is not None:
            for topic in (asked, f"{asked}/compressed"):
                if topic in images:
                    return topic
            raise RecordingError(
                f"{self.path} has no images on {asked}; there are images on: {self._listed(images)}"
                if images
                else f"{self.path} has no images on {asked}; its topics: {self.describe_topics()}"
            )
        streams: dict[str, str] = {}
        for topic in images:  # sorted: /image comes before /image/compressed
            if "depth" not in topic:
                streams.setdefault(topic.removesuffix("/compressed"), topic)
        if len(streams) == 1:
            return next(iter(streams.values()))
        if not streams:
            raise RecordingError(f"{self.path} holds no camera images; its topics: {self.describe_topics()}")
        raise RecordingError(
            f"{self.path} holds {len(streams)} image streams; choose one with --topic: "
            f"{self._listed(list(streams.values()))}"
        )

    def camera_info_topic(self, image_topic: str) -> str | None:
        """The camera_info of an image topic: its sibling, else the only one when there is one camera; None without."""
        infos = [t for t, kind in self.topics.items() if kind == CAMERA_INFO and self.count(t)]
        sibling = image_topic.removesuffix("/compressed").rpartition("/")[0] + "/camera_info"
        if sibling in infos:
            return sibling
        cameras = {
            t.removesuffix("/compressed")
            for t, kind in self.topics.items()
            if kind in (IMAGE, COMPRESSED_IMAGE) and "depth" not in t
        }
        return infos[0] if len(infos) == len(cameras) == 1 else None

    def first(self, topic: str):
        """The first message of a topic, deserialised; None where there is none."""
        for _, msgtype, _, cdr in self.messages([topic]):
            return self.deserialize(msgtype, cdr)
        return None

    def _listed(self, topics: list[str]) -> str:
        return ", ".join(f"{t} ({self.topics[t]}, {self.count(t)})" for t in topics) or "none"

    def describe_topics(self) -> str:
        """`/topic (type, count)` of every topic, for messages to people."""
        if not self.topics:
            return "none"
        return ", ".join(f"{t} ({kind}, {self.count(t)})" for t, kind in sorted(self.topics.items()))

    def messages(self, topics: list[str] | None = None) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, message type, log time [ns], CDR bytes) by log time; RecordingError for unknown topics."""
        if topics is not None:
            for topic in topics:
                if topic not in self.topics:
                    raise RecordingError(f"{self.path} has no topic {topic}; its topics: {self.describe_topics()}")
        if self._scan is not None:
            yield from self._scan.messages(topics)
            return
        seen: dict[str, int] = {}  # topic → log time of its last message
        try:
            for topic, msgtype, log_ns, cdr in self._indexed(topics):
                seen[topic] = log_ns
                yield topic, msgtype, log_ns, cdr
        except RecordingError:
            raise
        except Exception as error:  # a damaged chunk in the middle
            if not self._recover:
                raise RecordingError(f"{self.path} is damaged: {error}; copy or record it again") from error
            yield from self._rest(topics, seen, error)

    def _indexed(self, topics: list[str] | None) -> Iterator[tuple[str, str, int, bytes]]:
        chosen = [c for c in self._bag.connections if topics is None or c.topic in topics]
        if not chosen:
            return
        for connection, log_ns, raw in self._bag.messages(chosen):
            msgtype = connection.msgtype
            if not self._bag.is2:
                raw = self._types_of(msgtype).ros1_to_cdr(raw, msgtype)
            yield connection.topic, msgtype, log_ns, bytes(raw)

    def _rest(self, topics, seen: dict[str, int], error: Exception) -> Iterator[tuple[str, str, int, bytes]]:
        """What lies behind a damaged place, found without the index."""
        scan = McapScan(self.path)
        self.faults.append(f"{self.path.name} is damaged ({'; '.join(scan.faults) or error}); the rest of it was read")
        for topic, msgtype, log_ns, cdr in scan.messages(topics):
            if log_ns > seen.get(topic, -1):
                yield topic, msgtype, log_ns, cdr

    def deserialize(self, msgtype: str, cdr: bytes):
        """CDR bytes → object with the fields of the ROS 2 message (arrays are numpy)."""
        try:
            return self._types_of(msgtype).deserialize_cdr(cdr, msgtype)
        except Exception as error:
            raise RecordingError(f"{self.path}: a {msgtype} message cannot be read: {error}") from error

    def _types_of(self, msgtype: str):
        """The definitions in the file; for ROS 1 those of ROS 2, whose fields have the names that are used here."""
        if self._scan is not None:
            return _types_in(self._scan, self._ros2_types)
        known = msgtype in self._ros2_types.fielddefs
        return self._ros2_types if known and not self._bag.is2 else self._bag.typestore

    def has_header(self, msgtype: str) -> bool:
        """Whether the message begins with std_msgs/Header, so that its stamp sits in bytes 4 to 12 of the CDR."""
        fields = self._types_of(msgtype).fielddefs[msgtype][1]
        return bool(fields) and fields[0][1][1] == "std_msgs/msg/Header"


@functools.lru_cache(maxsize=4)
def _types_in(scan: McapScan, otherwise):
    """The message definitions that a scanned file carries; those of ROS 2 where it carries none."""
    found = {}
    for channel in scan.channels.values():
        if channel.definition and channel.encoding == "ros2msg":
            found |= get_types_from_msg(channel.definition, channel.msgtype)
        elif channel.definition:
            found |= get_types_from_idl(channel.definition)
    if not found:
        return otherwise
    types = get_typestore(Stores.EMPTY)
    types.register(found)
    return types


def _check_kind(path: Path) -> None:
    if not path.exists():
        raise RecordingError(f"{path} does not exist; check the path, or record or import it first")
    if path.is_dir() and not (path / "metadata.yaml").exists():
        raise RecordingError(f"{path} is a folder without metadata.yaml, so no rosbag2 recording; name its .mcap file")
    if path.is_file() and path.suffix not in (".mcap", ".db3", ".bag"):
        raise RecordingError(
            f"{path} is not a recording (.mcap, .db3, ROS 1 .bag, or a rosbag2 folder); a video or images become one "
            "with endomust import"
        )


def _why_unreadable(path: Path, error: Exception) -> str:
    if path.suffix == ".mcap" and path.is_file():
        with path.open("rb") as file:
            if file.read(5) == b"\x89MCAP":
                return (
                    f"{path} is cut short or was never finished ({error}); "
                    "copy it again, or repair it with the MCAP tool: mcap recover"
                )
        return f"{path} is not an MCAP file although its name says so; check where it came from"
    if path.suffix == ".bag":
        return f"{path} cannot be opened as a ROS 1 bag: {error}; try rosbag reindex, or rosbags-convert"
    return f"{path} cannot be opened as a rosbag2 recording: {error}"
