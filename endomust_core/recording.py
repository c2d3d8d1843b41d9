"""Recordings on disk: numpy → one rosbag2 MCAP file, and any rosbag2 recording → messages. Stamps are integers [ns].

A finished recording is one `.mcap` file with the message definitions, a chunk index and a summary inside, so `ros2 bag
play`, `ros2 bag info` and viewers open it without a `metadata.yaml` beside it. While it is written it lives in a hidden
folder next to its final name; a writer that fails or is interrupted leaves nothing under that name.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, TypesysError, get_typestore

from endomust_core.camera import Camera
from endomust_core.odometry import quaternion_from_matrix

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
POSE_STAMPED = "geometry_msgs/msg/PoseStamped"

IMAGE_TOPIC = "/endoscope/image_raw"
COMPRESSED_TOPIC = "/endoscope/image_raw/compressed"
CAMERA_INFO_TOPIC = "/endoscope/camera_info"
POSE_TOPIC = "/endoscope/ground_truth/pose"
DEPTH_TOPIC = "/endoscope/ground_truth/depth"
DEPTH_PNG_TOPIC = "/endoscope/ground_truth/depth/png"

DEPTH_UNIT_M = 1e-3 / 128  # one step of the PNG form: 7.8 µm, reaching 0.512 m; 0 says "no depth here"
DEPTH_PNG_FORMAT = f"16UC1; png; metres_per_unit={DEPTH_UNIT_M!r}"

DISTORTION = {  # Camera.model → ROS distortion_model, number of coefficients ROS tools expect when there are none
    "pinhole": ("plumb_bob", 5),
    "plumb_bob": ("plumb_bob", 5),
    "rational_polynomial": ("rational_polynomial", 8),
    "equidistant": ("equidistant", 4),
}
log = logging.getLogger(__name__)


class RecordingError(RuntimeError):
    """A recording cannot be read or written; the message says what to do next."""


class RecordingWriter:
    """Context manager that writes one MCAP file; leaving it by an exception leaves no file."""

    def __init__(self, path: str | Path, overwrite: bool = True, compress: bool = False):
        """`compress` packs chunks with zstd: smaller depth and clouds, more processor time while recording."""
        self.path = Path(path)
        if self.path.suffix != ".mcap":
            raise RecordingError(f"{self.path}: a recording's name ends in .mcap; name it {self.path.stem}.mcap")
        if self.path.is_dir():
            raise RecordingError(f"{self.path} is a folder; choose another name for the recording")
        if self.path.exists() and not overwrite:
            raise RecordingError(f"{self.path} exists already; remove it, choose another name, or allow overwriting")
        self._folder = self.path.parent / f".{self.path.name}.{os.getpid()}.unfinished"
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._connections: dict[str, object] = {}
        self.counts: dict[str, int] = {}
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            # Version 8 writes QoS as numbers, which Humble reads too; the content is otherwise that of version 9.
            self._bag = Writer(self._folder, version=8, storage_plugin=StoragePlugin.MCAP)
            if compress:
                self._bag.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            self._bag.open()
        except OSError as error:
            raise RecordingError(f"cannot write {self.path}: {error.strerror}; check its folder") from error

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()

    def close(self) -> Path:
        """Write index and summary and move the file to its name; RecordingError when nothing was written."""
        if not any(self.counts.values()):
            self.abort()
            raise RecordingError(f"{self.path}: nothing was recorded, so no file was written")
        try:
            self._bag.close()
            finished = self._folder / f"{self._folder.name}.mcap"
            _flush_to_disk(finished)
            os.replace(finished, self.path)
        except OSError as error:
            raise RecordingError(f"cannot finish {self.path}: {error.strerror}; is the disk full?") from error
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        return self.path

    def abort(self) -> None:
        """Drop everything written so far; the final name is left as it was."""
        if self._bag.storage is not None:
            self._bag.storage.abort()
        shutil.rmtree(self._folder, ignore_errors=True)

    def write_raw(self, topic: str, msgtype: str, cdr: bytes, stamp_ns: int) -> None:
        """Write one serialised message (CDR with its four-byte header) at its log time."""
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._connect(topic, msgtype)
        elif connection.msgtype != msgtype:
            raise RecordingError(f"{topic} carries {connection.msgtype}; {msgtype} cannot be written to it too")
        try:
            self._bag.write(connection, int(stamp_ns), cdr)
        except OSError as error:
            raise RecordingError(f"cannot write {self.path}: {error.strerror}; is the disk full?") from error
        self.counts[topic] += 1

    def write_image(self, topic: str, image: np.ndarray, stamp_ns: int, frame_id: str, encoding: str = "rgb8") -> None:
        """Write (H,W), (H,W,C) uint8, uint16 or float32 pixels as they are, as sensor_msgs/Image."""
        rows = np.ascontiguousarray(image)
        message = self._new(
            IMAGE,
            header=self._header(stamp_ns, frame_id),
            height=rows.shape[0],
            width=rows.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=rows.strides[0],
            data=rows.reshape(-1).view(np.uint8),
        )
        self._write(topic, IMAGE, message, stamp_ns)

    def write_compressed(
        self, topic: str, data: bytes, stamp_ns: int, frame_id: str, format: str = "rgb8; jpeg compressed bgr8"
    ) -> None:
        """Write JPEG or PNG bytes as sensor_msgs/CompressedImage; the default format is what image_transport writes."""
        message = self._new(
            COMPRESSED_IMAGE,
            header=self._header(stamp_ns, frame_id),
            format=format,
            data=np.frombuffer(data, np.uint8),
        )
        self._write(topic, COMPRESSED_IMAGE, message, stamp_ns)

    def write_camera_info(
        self, topic: str, camera: Camera | None, stamp_ns: int, frame_id: str, size: tuple[int, int] | None = None
    ) -> None:
        """Write camera_info; without a camera, K = 0 at `size` (width, height): "uncalibrated" by ROS convention."""
        if camera is None and size is None:
            raise ValueError("camera_info without a camera needs the image size (width, height)")
        K = np.zeros((3, 3)) if camera is None else np.asarray(camera.K, np.float64)
        width, height = size if camera is None else (camera.width, camera.height)
        model, zeros = DISTORTION["pinhole" if camera is None else camera.model]
        coefficients = () if camera is None else camera.D
        message = self._new(
            CAMERA_INFO,
            header=self._header(stamp_ns, frame_id),
            height=int(height),
            width=int(width),
            distortion_model=model,
            d=np.array(coefficients if len(coefficients) else [0.0] * zeros, np.float64),
            k=K.reshape(-1),
            r=np.eye(3).reshape(-1),
            p=np.hstack([K, np.zeros((3, 1))]).reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=self._new(
                "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
            ),
        )
        self._write(topic, CAMERA_INFO, message, stamp_ns)

    def write_pose(self, topic: str, T_frame_camera: np.ndarray, stamp_ns: int, frame_id: str = "world") -> None:
        """Write a (4,4) pose [m] of the optical camera frame in `frame_id` as geometry_msgs/PoseStamped."""
        x, y, z, w = (float(value) for value in quaternion_from_matrix(np.asarray(T_frame_camera)[:3, :3]))
        px, py, pz = (float(value) for value in np.asarray(T_frame_camera)[:3, 3])
        pose = self._new(
            "geometry_msgs/msg/Pose",
            position=self._new("geometry_msgs/msg/Point", x=px, y=py, z=pz),
            orientation=self._new("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
        )
        message = self._new(POSE_STAMPED, header=self._header(stamp_ns, frame_id), pose=pose)
        self._write(topic, POSE_STAMPED, message, stamp_ns)

    def write_depth(self, topic: str, depth: np.ndarray, stamp_ns: int, frame_id: str, compact: bool = False) -> None:
        """Write (H,W) depth [m] as Image 32FC1 (NaN unknown) or, compact, as a 16-bit PNG of DEPTH_UNIT_M steps."""
        if not compact:
            self.write_image(topic, np.asarray(depth, np.float32), stamp_ns, frame_id, "32FC1")
            return
        _, png = cv2.imencode(".png", depth_to_units(depth), [cv2.IMWRITE_PNG_COMPRESSION, 6])
        self.write_compressed(topic, png.tobytes(), stamp_ns, frame_id, DEPTH_PNG_FORMAT)

    def _connect(self, topic: str, msgtype: str):
        try:
            connection = self._bag.add_connection(topic, msgtype, typestore=self._types)
        except (TypesysError, WriterError) as error:
            raise RecordingError(f"{topic}: the type {msgtype} is not known here, so it cannot be recorded") from error
        self._connections[topic] = connection
        self.counts[topic] = 0
        return connection

    def _new(self, msgtype: str, **fields):
        return self._types.types[msgtype](**fields)

    def _header(self, stamp_ns: int, frame_id: str):
        seconds, nanoseconds = divmod(int(stamp_ns), 10**9)
        stamp = self._new("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
        return self._new("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)

    def _write(self, topic: str, msgtype: str, message, stamp_ns: int) -> None:
        self.write_raw(topic, msgtype, bytes(self._types.serialize_cdr(message, msgtype)), stamp_ns)


class RecordingReader:
    """Opens one .mcap file or a rosbag2 folder (mcap or sqlite3); a context manager, usable without `with` too."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        _check_kind(self.path)
        try:
            self._bag = AnyReader([self.path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
            self._bag.open()
        except Exception as error:  # the reader meets foreign bytes here: it may fail in any way
            raise RecordingError(_why_unreadable(self.path, error)) from error
        self.topics: dict[str, str] = {c.topic: c.msgtype for c in self._bag.connections}
        self._counts: dict[str, int] = {}
        for connection in self._bag.connections:
            self._counts[connection.topic] = self._counts.get(connection.topic, 0) + connection.msgcount
        self.start_ns: int = self._bag.start_time if self._counts else 0
        self.duration_s: float = max(0, self._bag.duration - 1) / 1e9 if sum(self._counts.values()) else 0.0

    def __enter__(self) -> RecordingReader:
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; harmless when called twice."""
        if self._bag.stack is not None:
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
        chosen = [c for c in self._bag.connections if topics is None or c.topic in topics]
        if not chosen:
            return
        try:
            for connection, stamp_ns, cdr in self._bag.messages(chosen):
                yield connection.topic, connection.msgtype, stamp_ns, bytes(cdr)
        except RecordingError:
            raise
        except Exception as error:  # a damaged chunk in the middle
            raise RecordingError(f"{self.path} is damaged: {error}; copy or record it again") from error

    def deserialize(self, msgtype: str, cdr: bytes):
        """CDR bytes → object with the fields of the ROS message (arrays are numpy)."""
        try:
            return self._bag.deserialize(cdr, msgtype)
        except Exception as error:
            raise RecordingError(f"{self.path}: a {msgtype} message cannot be read: {error}") from error

    def has_header(self, msgtype: str) -> bool:
        """Whether the message begins with std_msgs/Header, so that its stamp sits in bytes 4 to 12 of the CDR."""
        fields = self._bag.typestore.fielddefs[msgtype][1]
        return bool(fields) and fields[0][1][1] == "std_msgs/msg/Header"


def depth_to_units(depth: np.ndarray) -> np.ndarray:
    """(H,W) depth [m] → (H,W) uint16 in DEPTH_UNIT_M; 0 where unknown, not positive or beyond 0.512 m."""
    units = np.asarray(depth, np.float64) / DEPTH_UNIT_M
    known = np.isfinite(units) & (units >= 0.5) & (units < 65535.5)
    return np.where(known, np.rint(np.where(known, units, 0)), 0).astype(np.uint16)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _check_kind(path: Path) -> None:
    if not path.exists():
        raise RecordingError(f"{path} does not exist; check the path, or record or import it first")
    if path.is_dir() and not (path / "metadata.yaml").exists():
        raise RecordingError(f"{path} is a folder without metadata.yaml, so no rosbag2 recording; name its .mcap file")
    if path.suffix == ".bag":
        raise RecordingError(f"{path} is a ROS 1 bag; convert it: rosbags-convert --src {path} --dst {path.stem}")
    if path.is_file() and path.suffix not in (".mcap", ".db3"):
        raise RecordingError(
            f"{path} is not a recording (.mcap, or a rosbag2 folder); a video or images become one with endomust import"
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
    return f"{path} cannot be opened as a rosbag2 recording: {error}"
