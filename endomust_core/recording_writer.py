"""numpy → one rosbag2 MCAP file. Stamps are integers [ns].

A finished recording is one `.mcap` file with the message definitions, a chunk index and a summary inside, so `ros2 bag
play`, `ros2 bag info` and viewers open it without a `metadata.yaml` beside it. While it is written it lives in a hidden
folder next to its final name; a writer that fails or is interrupted leaves nothing under that name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, TypesysError, get_typestore

from endomust_core.camera import Camera
from endomust_core.odometry import OdometryState, quaternion_from_matrix
from endomust_core.recording import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    DEPTH_PNG_FORMAT,
    DEPTH_UNIT_M,
    DIAGNOSTIC_ARRAY,
    IMAGE,
    ODOMETRY,
    POINT_CLOUD,
    POSE_STAMPED,
    STRING,
    TF_MESSAGE,
    RecordingError,
)

DISTORTION = {  # Camera.model → ROS distortion_model, number of coefficients ROS tools expect when there are none
    "pinhole": ("plumb_bob", 5),
    "plumb_bob": ("plumb_bob", 5),
    "rational_polynomial": ("rational_polynomial", 8),
    "equidistant": ("equidistant", 4),
}
# What `ros2 bag play` must offer for a topic that late subscribers need too.
NO_TIME = QosTime(0, 0)
LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    NO_TIME,
    NO_TIME,
    QosLiveliness.SYSTEM_DEFAULT,
    NO_TIME,
    False,
)


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

    def write_raw(
        self, topic: str, msgtype: str, cdr: bytes | memoryview, stamp_ns: int, latched: bool = False
    ) -> None:
        """Write one serialised message (CDR with its four-byte header) at its log time.

        `latched` is for topics whose last message late subscribers get too. The first message of a topic decides.
        """
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._connect(topic, msgtype, latched)
        elif connection.msgtype != msgtype:
            raise RecordingError(f"{topic} carries {connection.msgtype}; {msgtype} cannot be written to it too")
        try:
            self._bag.write(connection, int(stamp_ns), cdr)
        except OSError as error:
            raise RecordingError(f"cannot write {self.path}: {error.strerror}; is the disk full?") from error
        self.counts[topic] += 1

    def write_image(
        self,
        topic: str,
        image: np.ndarray,
        stamp_ns: int,
        frame_id: str,
        encoding: str = "rgb8",
        log_ns: int | None = None,
    ) -> None:
        """Write (H,W), (H,W,C) uint8, uint16 or float32 pixels as they are, as sensor_msgs/Image.

        `log_ns` is the time at which a player sends the message; here and below it defaults to the stamp.
        """
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
        self._write(topic, IMAGE, message, stamp_ns if log_ns is None else log_ns)

    def write_compressed(
        self,
        topic: str,
        data: bytes,
        stamp_ns: int,
        frame_id: str,
        format: str = "rgb8; jpeg compressed bgr8",
        log_ns: int | None = None,
    ) -> None:
        """Write JPEG or PNG bytes as sensor_msgs/CompressedImage; the default format is what image_transport writes."""
        message = self._new(
            COMPRESSED_IMAGE,
            header=self._header(stamp_ns, frame_id),
            format=format,
            data=np.frombuffer(data, np.uint8),
        )
        self._write(topic, COMPRESSED_IMAGE, message, stamp_ns if log_ns is None else log_ns)

    def write_camera_info(
        self,
        topic: str,
        camera: Camera | None,
        stamp_ns: int,
        frame_id: str,
        size: tuple[int, int] | None = None,
        log_ns: int | None = None,
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
        self._write(topic, CAMERA_INFO, message, stamp_ns if log_ns is None else log_ns)

    def write_pose(self, topic: str, T_frame_camera: np.ndarray, stamp_ns: int, frame_id: str = "world") -> None:
        """Write a (4,4) pose [m] of the optical camera frame in `frame_id` as geometry_msgs/PoseStamped."""
        message = self._new(POSE_STAMPED, header=self._header(stamp_ns, frame_id), pose=self._pose(T_frame_camera))
        self._write(topic, POSE_STAMPED, message, stamp_ns)

    def write_depth(self, topic: str, depth: np.ndarray, stamp_ns: int, frame_id: str, compact: bool = False) -> None:
        """Write (H,W) depth [m] as Image 32FC1 (NaN unknown) or, compact, as a 16-bit PNG of DEPTH_UNIT_M steps."""
        if not compact:
            self.write_image(topic, np.asarray(depth, np.float32), stamp_ns, frame_id, "32FC1")
            return
        _, png = cv2.imencode(".png", depth_to_units(depth), [cv2.IMWRITE_PNG_COMPRESSION, 6])
        self.write_compressed(topic, png.tobytes(), stamp_ns, frame_id, DEPTH_PNG_FORMAT)

    def write_odometry(
        self, topic: str, state: OdometryState, stamp_ns: int, odom_frame: str, frame_id: str, log_ns: int | None = None
    ) -> None:
        """Write a pose [m] in `odom_frame` and twist [m/s, rad/s] in `frame_id` as nav_msgs/Odometry."""
        twist = np.zeros(6) if state.twist is None else state.twist
        message = self._new(
            ODOMETRY,
            header=self._header(stamp_ns, odom_frame),
            child_frame_id=frame_id,
            pose=self._new(
                "geometry_msgs/msg/PoseWithCovariance",
                pose=self._pose(state.T_odom_camera),
                covariance=np.ascontiguousarray(state.pose_covariance, np.float64).reshape(-1),
            ),
            twist=self._new(
                "geometry_msgs/msg/TwistWithCovariance",
                twist=self._new(
                    "geometry_msgs/msg/Twist",
                    linear=self._vector(twist[:3]),
                    angular=self._vector(twist[3:]),
                ),
                covariance=np.ascontiguousarray(state.twist_covariance, np.float64).reshape(-1),
            ),
        )
        self._write(topic, ODOMETRY, message, stamp_ns if log_ns is None else log_ns)

    def write_transform(
        self, T_parent_child: np.ndarray, stamp_ns: int, parent: str, child: str, log_ns: int | None = None
    ) -> None:
        """Write one (4,4) transform [m] to /tf."""
        pose = self._pose(T_parent_child)
        transform = self._new(
            "geometry_msgs/msg/TransformStamped",
            header=self._header(stamp_ns, parent),
            child_frame_id=child,
            transform=self._new(
                "geometry_msgs/msg/Transform",
                translation=self._vector(np.asarray(T_parent_child)[:3, 3]),
                rotation=pose.orientation,
            ),
        )
        message = self._new(TF_MESSAGE, transforms=[transform])
        self._write("/tf", TF_MESSAGE, message, stamp_ns if log_ns is None else log_ns)

    def write_cloud(
        self, topic: str, points: np.ndarray, stamp_ns: int, frame_id: str, log_ns: int | None = None
    ) -> None:
        """Write an organised cloud (H,W,4) float32, as `cloud.fill_cloud` makes it: x, y, z [m] and rgb."""
        height, width = points.shape[:2]
        fields = [
            self._new("sensor_msgs/msg/PointField", name=name, offset=4 * place, datatype=7, count=1)
            for place, name in enumerate(("x", "y", "z", "rgb"))
        ]
        message = self._new(
            POINT_CLOUD,
            header=self._header(stamp_ns, frame_id),
            height=height,
            width=width,
            fields=fields,
            is_bigendian=False,
            point_step=16,
            row_step=16 * width,
            data=np.ascontiguousarray(points, np.float32).reshape(-1).view(np.uint8),
            is_dense=False,
        )
        self._write(topic, POINT_CLOUD, message, stamp_ns if log_ns is None else log_ns)

    def write_diagnostics(self, statuses: Iterable[tuple[str, int, str, dict]], stamp_ns: int, log_ns: int) -> None:
        """Write (name, level 0 OK | 1 WARN | 2 ERROR, sentence, values) of every task to /diagnostics."""
        array = [
            self._new(
                "diagnostic_msgs/msg/DiagnosticStatus",
                level=level,
                name=name,
                message=sentence,
                hardware_id="",
                values=[
                    self._new("diagnostic_msgs/msg/KeyValue", key=key, value=str(value))
                    for key, value in values.items()
                ],
            )
            for name, level, sentence, values in statuses
        ]
        message = self._new(DIAGNOSTIC_ARRAY, header=self._header(stamp_ns, ""), status=array)
        self._write("/diagnostics", DIAGNOSTIC_ARRAY, message, log_ns)

    def write_string(self, topic: str, text: str, log_ns: int, latched: bool = False) -> None:
        """Write std_msgs/String."""
        cdr = self._types.serialize_cdr(self._new(STRING, data=text), STRING)
        self.write_raw(topic, STRING, cdr, log_ns, latched)

    def _connect(self, topic: str, msgtype: str, latched: bool = False):
        qos = [LATCHED] if latched else []
        try:
            connection = self._bag.add_connection(topic, msgtype, typestore=self._types, offered_qos_profiles=qos)
        except (TypesysError, WriterError) as error:
            raise RecordingError(f"{topic}: the type {msgtype} is not known here, so it cannot be recorded") from error
        self._connections[topic] = connection
        self.counts[topic] = 0
        return connection

    def _pose(self, T: np.ndarray):
        x, y, z, w = (float(value) for value in quaternion_from_matrix(np.asarray(T)[:3, :3]))
        px, py, pz = (float(value) for value in np.asarray(T)[:3, 3])
        return self._new(
            "geometry_msgs/msg/Pose",
            position=self._new("geometry_msgs/msg/Point", x=px, y=py, z=pz),
            orientation=self._new("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
        )

    def _vector(self, values: np.ndarray):
        x, y, z = (float(value) for value in values)
        return self._new("geometry_msgs/msg/Vector3", x=x, y=y, z=z)

    def _new(self, msgtype: str, **fields):
        return self._types.types[msgtype](**fields)

    def _header(self, stamp_ns: int, frame_id: str):
        seconds, nanoseconds = divmod(int(stamp_ns), 10**9)
        stamp = self._new("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
        return self._new("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)

    def _write(self, topic: str, msgtype: str, message, stamp_ns: int) -> None:
        self.write_raw(topic, msgtype, self._types.serialize_cdr(message, msgtype), stamp_ns)


def depth_to_units(depth: np.ndarray) -> np.ndarray:
    """(H,W) depth [m] → (H,W) uint16 in DEPTH_UNIT_M; 0 where unknown, not positive or beyond 0.512 m."""
    units = np.asarray(depth, np.float64) / DEPTH_UNIT_M
    known = np.isfinite(units) & (units >= 0.5) & (units < 65535.5)
    return np.where(known, np.rint(np.where(known, units, 0)), 0).astype(np.uint16)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
