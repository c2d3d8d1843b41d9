"""Recorded messages → numpy: colour (H,W,3) uint8 RGB, depth (H,W) float32 [m], pose (4,4) [m], clouds (N,3) + (N,3).

Works on any object with the fields of the ROS message, so it needs no ROS; made for reports and offline tools, which
can afford copies (the live node has its own zero-copy conversions).
"""

from __future__ import annotations

import re
import struct

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.odometry import matrix_from_quaternion, se3

TO_RGB = {  # encoding → OpenCV conversion, None: already RGB
    "rgb8": None,
    "bgr8": cv2.COLOR_BGR2RGB,
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
    "mono8": cv2.COLOR_GRAY2RGB,
}
CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
POINT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}


class DecodingError(ValueError):
    """A message cannot be turned into numbers; the message says why."""


def stamp_ns(message) -> int:
    """Header stamp in nanoseconds."""
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def stamp_ns_from_cdr(cdr: bytes) -> int:
    """Header stamp [ns] of a serialised message that begins with std_msgs/Header, without reading the rest."""
    seconds, nanoseconds = struct.unpack_from(_stamp_format(cdr), cdr, 4)
    return seconds * 10**9 + nanoseconds


def restamped_cdr(cdr: bytes, new_stamp_ns: int) -> bytes:
    """A copy of a serialised message that begins with std_msgs/Header, with another header stamp."""
    seconds, nanoseconds = divmod(new_stamp_ns, 10**9)
    changed = bytearray(cdr)
    struct.pack_into(_stamp_format(cdr), changed, 4, seconds, nanoseconds)
    return bytes(changed)


def rgb_from(message) -> np.ndarray:
    """Image or CompressedImage → (H,W,3) uint8 RGB; DecodingError names what is wrong."""
    if hasattr(message, "format"):
        bgr = _imdecode(message, cv2.IMREAD_COLOR)
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    if message.encoding not in TO_RGB:
        raise DecodingError(f"encoding {message.encoding} is not a colour image; supported: {', '.join(TO_RGB)}")
    pixels = _rows(message, np.uint8, CHANNELS[message.encoding])
    conversion = TO_RGB[message.encoding]
    return pixels.copy() if conversion is None else cv2.cvtColor(np.ascontiguousarray(pixels), conversion)


def depth_from(message) -> np.ndarray:
    """Image 32FC1 [m] or 16UC1 [mm], or a recording's 16-bit PNG → (H,W) float32 [m], NaN where unknown."""
    if hasattr(message, "format"):
        unit = re.search(r"metres_per_unit=([0-9.e+-]+)", message.format)
        if unit is None:
            raise DecodingError(f"the format {message.format!r} names no metres_per_unit, so it is no depth of ours")
        return _units_to_metres(_imdecode(message, cv2.IMREAD_UNCHANGED), float(unit.group(1)))
    if message.encoding == "32FC1":
        return _rows(message, np.float32, 1).astype(np.float32)
    if message.encoding == "16UC1":
        return _units_to_metres(_rows(message, np.uint16, 1), 1e-3)
    raise DecodingError(f"encoding {message.encoding} is not depth; supported: 32FC1 [m], 16UC1 [mm]")


def pose_from(message) -> np.ndarray:
    """PoseStamped or Odometry → (4,4) float64 pose [m] of the child in the frame of the header."""
    pose = message.pose if hasattr(message.pose, "position") else message.pose.pose
    q, p = pose.orientation, pose.position
    return se3(matrix_from_quaternion(np.array([q.x, q.y, q.z, q.w])), np.array([p.x, p.y, p.z]))


def camera_from(message) -> Camera | None:
    """CameraInfo → Camera; None where K = 0, which ROS reads as "uncalibrated"."""
    k = message.k if hasattr(message, "k") else message.K
    d = message.d if hasattr(message, "d") else message.D
    if not k[0]:
        return None
    D = tuple(float(value) for value in d)
    bends_rays = any(D) or message.distortion_model == "equidistant"  # a fisheye does even where D is 0
    model = message.distortion_model if bends_rays else "pinhole"
    return Camera.from_K(np.reshape(k, (3, 3)), message.width, message.height, model, D if bends_rays else ())


def cloud_from(message) -> tuple[np.ndarray, np.ndarray | None]:
    """PointCloud2 → (N,3) float32 points [m] that are finite, and their (N,3) uint8 RGB or None without colours."""
    order = ">" if message.is_bigendian else "<"
    fields = {f.name: (f.offset, order + POINT_TYPES[f.datatype]) for f in message.fields}
    if not {"x", "y", "z"} <= fields.keys():
        raise DecodingError(f"a cloud needs the fields x, y, z; this one has {', '.join(fields) or 'none'}")
    dtype = np.dtype(
        {
            "names": list(fields),
            "offsets": [offset for offset, _ in fields.values()],
            "formats": [kind for _, kind in fields.values()],
            "itemsize": message.point_step,
        }
    )
    rows = np.frombuffer(memoryview(message.data), np.uint8)[: message.height * message.row_step]
    rows = rows.reshape(message.height, message.row_step)[:, : message.width * message.point_step]
    points = np.ascontiguousarray(rows).view(dtype).reshape(-1)
    xyz = np.stack([points["x"], points["y"], points["z"]], axis=1).astype(np.float32)
    finite = np.isfinite(xyz).all(axis=1)
    name = next((n for n in ("rgb", "rgba") if n in fields), None)
    if name is None:
        return xyz[finite], None
    packed = np.ascontiguousarray(points[name][finite]).view(order + "u4")
    colours = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
    return xyz[finite], colours


def _stamp_format(cdr: bytes) -> str:
    if len(cdr) < 12 or cdr[0] != 0:
        raise DecodingError(f"{len(cdr)} bytes without a CDR preamble are no serialised message with a header")
    return "<iI" if cdr[1] & 1 else ">iI"


def _imdecode(message, flag: int) -> np.ndarray:
    data = np.frombuffer(memoryview(message.data), np.uint8)
    image = cv2.imdecode(data, flag) if data.size else None
    if image is None:
        raise DecodingError(f"{data.size} bytes of format {message.format!r} do not decode as JPEG or PNG")
    return image


def _rows(message, dtype, channels: int) -> np.ndarray:
    kind = np.dtype(dtype).newbyteorder(">" if message.is_bigendian else "<")
    width = message.width * channels * kind.itemsize
    data = np.frombuffer(memoryview(message.data), np.uint8)
    if message.step < width or data.size < message.height * message.step or not message.height * message.width:
        raise DecodingError(
            f"image of {message.width}x{message.height} {message.encoding} with step {message.step} does not match "
            f"its {data.size} bytes"
        )
    rows = data[: message.height * message.step].reshape(message.height, message.step)[:, :width]
    pixels = np.ascontiguousarray(rows).view(kind).reshape(message.height, message.width, channels)
    return pixels[..., 0] if channels == 1 else pixels


def _units_to_metres(units: np.ndarray, unit: float) -> np.ndarray:
    return np.where(units > 0, units * np.float64(unit), np.nan).astype(np.float32)
