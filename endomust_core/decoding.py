"""Messages → numpy: colour (H,W,3) uint8 RGB, depth (H,W) float32 [m], camera, pose (4,4) [m], clouds (N,3) + (N,3).

Works on any object with the fields of the ROS message, so the node and the offline tools decode with the same lines. An
image whose bytes are red, green and blue, in whichever order, comes out as a view on the message, not as a copy.
"""

from __future__ import annotations

import re
import struct

import cv2
import numpy as np

from endomust_core.camera import Camera, CameraError
from endomust_core.odometry import matrix_from_quaternion, se3

SWAP = "swap"  # blue, green, red: seen from the other end it is RGB
# encoding → (channels, bytes per sample, OpenCV code to RGB, or None where the bytes already are RGB, or SWAP).
PACKED = {
    "rgb8": (3, 1, None),
    "bgr8": (3, 1, SWAP),
    "rgba8": (4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": (1, 1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": (3, 2, None),
    "bgr16": (3, 2, SWAP),
    "rgba16": (4, 2, cv2.COLOR_RGBA2RGB),
    "bgra16": (4, 2, cv2.COLOR_BGRA2RGB),
    "mono16": (1, 2, cv2.COLOR_GRAY2RGB),
    "yuv422": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, 1, cv2.COLOR_YUV2RGB_YUY2),
}
# OpenCV names a Bayer pattern by its second row, ROS by its first: rggb is OpenCV's "BG".
PACKED |= {
    f"bayer_{pattern}{8 * size}": (1, size, code)
    for size in (1, 2)
    for pattern, code in (
        ("rggb", cv2.COLOR_BayerBG2RGB),
        ("bggr", cv2.COLOR_BayerRG2RGB),
        ("gbrg", cv2.COLOR_BayerGR2RGB),
        ("grbg", cv2.COLOR_BayerGB2RGB),
    )
}
PLANAR = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
ENCODINGS = (*PACKED, *PLANAR)
POINT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}


class DecodingError(ValueError):
    """A message cannot be turned into numbers; the text says why and what to change at its source."""


class UnknownEncoding(DecodingError):
    """An image in an encoding outside the table; where ROS is installed, cv_bridge may know it."""


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
    """Image or CompressedImage → (H,W,3) uint8 RGB, red first in memory; DecodingError names what is wrong."""
    rgb = compressed_to_rgb(message) if hasattr(message, "format") else image_to_rgb(message)
    return np.ascontiguousarray(rgb)


def image_to_rgb(msg) -> np.ndarray:
    """sensor_msgs/Image to rgb (H, W, 3) uint8; a view on the message for rgb8 and bgr8. Raises DecodingError."""
    if msg.width == 0 or msg.height == 0:
        raise DecodingError(f"the image is {msg.width}x{msg.height}; the source sends frames without a size")
    if msg.encoding in PACKED:
        return _packed_to_rgb(msg, *PACKED[msg.encoding])
    if msg.encoding in PLANAR:
        return _planar_to_rgb(msg, PLANAR[msg.encoding])
    if len(msg.data) == 0:
        raise DecodingError(f"the image ({msg.width}x{msg.height} {msg.encoding}) has no data")
    raise UnknownEncoding(f"encoding '{msg.encoding}' is not understood; send one of {', '.join(ENCODINGS)}")


def compressed_to_rgb(msg) -> np.ndarray:
    """sensor_msgs/CompressedImage (JPEG or PNG) to rgb (H, W, 3) uint8. Raises DecodingError in words."""
    data = np.frombuffer(msg.data, np.uint8)
    if data.size == 0:
        raise DecodingError("the compressed image has no data; the encoder at the source sent an empty message")
    if "compressedDepth" in msg.format:
        raise DecodingError(f"'{msg.format}' is a depth image; point the input at a colour topic")
    _check_jpeg_is_whole(data)
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        raise DecodingError(
            f"{data.size} bytes that say they are '{msg.format}' cannot be decoded; JPEG and PNG are understood, "
            "check the encoder and the link"
        )
    return bgr[..., ::-1]


def camera_from_info(msg, rectified: bool) -> Camera:
    """sensor_msgs/CameraInfo to Camera: P where the images are rectified, K and D where they are raw.

    Region of interest and binning are applied, so the camera is the one of the image that is sent. Raises CameraError.
    """
    numbers, name = (msg.p, "P") if rectified else (msg.k, "K")
    matrix = np.asarray(numbers, np.float64).reshape(3, -1)[:, :3]
    if not np.isfinite(matrix).all():
        raise CameraError(f"camera_info carries numbers in {name} that are not finite; calibrate the camera again")
    if matrix[0, 0] == 0.0:
        raise CameraError(f"camera_info says the camera is uncalibrated ({name}[0] is 0); calibrate it to get geometry")
    model, D = ("pinhole", ()) if rectified else _lens(msg.distortion_model, msg.d)
    camera = Camera.from_K(matrix, msg.width, msg.height, model, D)
    roi = msg.roi
    if roi.width and roi.height:
        camera = camera.cropped(roi.x_offset, roi.y_offset, roi.width, roi.height)
    if msg.binning_x > 1 or msg.binning_y > 1:
        camera = camera.resized(camera.width // max(msg.binning_x, 1), camera.height // max(msg.binning_y, 1))
    return camera


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
    return Camera.from_K(np.reshape(k, (3, 3)), message.width, message.height, *_lens(message.distortion_model, d))


def _lens(model: str, d) -> tuple[str, tuple[float, ...]]:
    """What camera_info says of the lens → model and coefficients of a Camera.

    Drivers without distortion send [] or zeros under any name; but a fisheye with its four zeros bends rays.
    """
    D = tuple(float(value) for value in d)
    return (model, D) if any(D) or (D and model == "equidistant") else ("pinhole", ())


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


def _packed_to_rgb(msg, channels: int, size: int, code) -> np.ndarray:
    _check_layout(msg, msg.height, channels * size)
    if msg.encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv") and msg.width % 2:
        raise DecodingError(f"{msg.encoding} shares colour between two pixels, so the width {msg.width} cannot be odd")
    shape = (msg.height, msg.width) if channels == 1 else (msg.height, msg.width, channels)
    strides = (msg.step, channels * size, size)[: len(shape)]
    kind = np.dtype(np.uint8) if size == 1 else np.dtype(">u2" if msg.is_bigendian else "<u2")
    pixels = np.ndarray(shape, kind, buffer=msg.data, strides=strides)
    if size == 2:
        pixels = (pixels >> 8).astype(np.uint8)
    if code is None:
        return pixels
    return pixels[..., ::-1] if code is SWAP else cv2.cvtColor(np.ascontiguousarray(pixels), code)


def _planar_to_rgb(msg, code: int) -> np.ndarray:
    if msg.width % 2 or msg.height % 2:
        raise DecodingError(f"{msg.encoding} needs an even size, the message says {msg.width}x{msg.height}")
    rows = msg.height * 3 // 2
    _check_layout(msg, rows, 1)
    planes = np.ndarray((rows, msg.width), np.uint8, buffer=msg.data, strides=(msg.step, 1))
    return cv2.cvtColor(np.ascontiguousarray(planes), code)


def _check_layout(msg, rows: int, pixel_bytes: int) -> None:
    """DecodingError unless the data hold `rows` rows of `step` bytes; the padding of the last one may be missing."""
    used, came = msg.width * pixel_bytes, len(msg.data)
    size = f"{msg.width}x{msg.height} {msg.encoding}"
    if came == 0:
        raise DecodingError(f"the image ({size}) has no data; the driver sent a header without pixels")
    if msg.step < used:
        raise DecodingError(f"a row of {size} takes {used} bytes, but step is {msg.step}; correct step at the source")
    needed = msg.step * (rows - 1) + used
    if came < needed:
        raise DecodingError(f"{size} with step {msg.step} needs {needed} bytes, {came} came; the frame is cut short")


def _check_jpeg_is_whole(data: np.ndarray) -> None:
    """The decoder fills a cut JPEG with grey and says nothing, so the end marker is looked for here."""
    if data[:2].tobytes() == b"\xff\xd8" and b"\xff\xd9" not in data[-64:].tobytes():
        raise DecodingError(f"the JPEG of {data.size} bytes has no end marker; the frame is cut short on its way")
