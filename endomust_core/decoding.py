"""Messages → numpy: colour (H,W,3) uint8 RGB, depth (H,W) float32 [m], camera, pose (4,4) [m], clouds (N,3) + (N,3).

Works on any object with the fields of the ROS message, so the node and the offline tools decode with the same lines. An
image whose bytes are red, green and blue, in whichever order, comes out as a view on the message, not as a copy. What a
message says of itself is believed only after it was checked: nothing is read or allocated by its word alone.
"""

from __future__ import annotations

import re
import struct
from operator import index
from typing import NamedTuple

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
MAX_PIXELS = 64_000_000  # twice an 8K image; a header that says more is damaged, or made to fill the memory
REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
BAYER_SMALLEST = 3  # pixels on a side; OpenCV answers with black below
JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
SEGMENTS = 1000  # of a JPEG before its size; encoders write about ten
# Topics of rectified images, as image_proc and stereo_image_proc name them.
RECTIFIED = ("image_rect", "image_rect_color", "image_rect_mono")
POINT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}


class DecodingError(ValueError):
    """A message cannot be turned into numbers; the text says why and what to change at its source."""


class UnknownEncoding(DecodingError):
    """An image in an encoding outside the table; where ROS is installed, cv_bridge may know it."""


def stamp_ns(message) -> int:
    """Header stamp in nanoseconds."""
    return int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)  # int: numpy's would wrap


def stamp_ns_from_cdr(cdr: bytes) -> int:
    """Header stamp [ns] of a serialised message that begins with std_msgs/Header, without reading the rest."""
    seconds, nanoseconds = struct.unpack_from(_stamp_format(cdr), cdr, 4)
    return seconds * 10**9 + nanoseconds


def restamped_cdr(cdr: bytes, new_stamp_ns: int) -> bytes:
    """A copy of a serialised message that begins with std_msgs/Header, with another header stamp."""
    seconds, nanoseconds = divmod(new_stamp_ns, 10**9)
    changed = bytearray(cdr)
    try:
        struct.pack_into(_stamp_format(cdr), changed, 4, seconds, nanoseconds)
    except struct.error:
        raise DecodingError(f"the stamp {new_stamp_ns} ns does not fit a ROS header; 1901 to 2038 do") from None
    return bytes(changed)


def rgb_from(message) -> np.ndarray:
    """Image or CompressedImage → (H,W,3) uint8 RGB, red first in memory; DecodingError names what is wrong."""
    rgb = compressed_to_rgb(message) if hasattr(message, "format") else image_to_rgb(message)
    return np.ascontiguousarray(rgb)


def image_to_rgb(msg) -> np.ndarray:
    """sensor_msgs/Image to rgb (H, W, 3) uint8; a view on the message for rgb8 and bgr8. Raises DecodingError."""
    layout = _layout(msg)
    if layout.encoding in PACKED:
        return _packed_to_rgb(layout, *PACKED[layout.encoding])
    if layout.encoding in PLANAR:
        return _planar_to_rgb(layout, PLANAR[layout.encoding])
    if layout.data.size == 0:
        raise DecodingError(f"the image ({layout}) has no data")
    raise UnknownEncoding(f"encoding '{layout.encoding}' is not understood; send one of {', '.join(ENCODINGS)}")


def compressed_to_rgb(msg, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """sensor_msgs/CompressedImage (JPEG or PNG) to rgb (H, W, 3) uint8. Raises DecodingError in words.

    With `at_least` (width, height) a JPEG is decoded at 1/2, 1/4 or 1/8, rounded up, where that is no smaller than
    this: each step leaves out a part of the work. `compressed_size` still says the full size.
    """
    data = _bytes_of(msg)
    if data.size == 0:
        raise DecodingError("the compressed image has no data; the encoder at the source sent an empty message")
    if "compressedDepth" in str(msg.format):
        raise DecodingError(f"'{msg.format}' is a depth image; point the input at a colour topic")
    _check_jpeg_is_whole(data)
    bgr = _imdecode(msg, data, _colour_flag(data, _size_in_header(msg, data), at_least) | cv2.IMREAD_IGNORE_ORIENTATION)
    return bgr[..., ::-1]


def compressed_size(msg) -> tuple[int, int]:
    """Full (width, height) of a CompressedImage, read from the header of its JPEG or PNG. Raises DecodingError."""
    return _size_in_header(msg, _bytes_of(msg))


def camera_from_info(msg, rectified: bool) -> Camera:
    """sensor_msgs/CameraInfo to Camera: P where the images are rectified, K and D where they are raw.

    Region of interest and binning are applied, so the camera is the one of the image that is sent. Raises CameraError,
    and nothing else, whatever the message says.
    """
    try:
        return _camera_from_info(msg, rectified)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CameraError):
            raise
        raise CameraError(f"this is no sensor_msgs/CameraInfo ({error}); correct it at its source") from error


def looks_rectified(topic: str, info=None) -> bool:
    """True for the topic, compressed or not, of images that image_proc has rectified: P is their camera, not K and D.

    False where `info` (CameraInfo) has no P and no distortion: such a driver says all that it knows in K.
    """
    parts = [part for part in topic.split("/") if part]
    if parts and parts[-1] == "compressed":
        parts.pop()
    named = bool(parts) and parts[-1] in RECTIFIED
    return named and (info is None or bool(info.p[0]) or any(info.d))


def depth_from(message) -> np.ndarray:
    """Image 32FC1 [m] or 16UC1 [mm], or a recording's 16-bit PNG → (H,W) float32 [m], NaN where unknown."""
    if hasattr(message, "format"):
        unit = re.search(r"metres_per_unit=([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)", message.format)
        if unit is None:
            raise DecodingError(f"the format {message.format!r} names no metres_per_unit, so it is no depth of ours")
        data = _bytes_of(message)
        _size_in_header(message, data)
        units = _imdecode(message, data, cv2.IMREAD_UNCHANGED)
        if units.ndim != 2:
            raise DecodingError(f"the picture that says it is depth ({message.format!r}) has colours, so it is none")
        return _units_to_metres(units, float(unit.group(1)))
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


def _camera_from_info(msg, rectified: bool) -> Camera:
    numbers, name = (msg.p, "P") if rectified else (msg.k, "K")
    matrix = np.asarray(numbers, np.float64).reshape(3, 4 if rectified else 3)[:, :3]
    if not np.isfinite(matrix).all():
        raise CameraError(f"camera_info carries numbers in {name} that are not finite; calibrate the camera again")
    if matrix[0, 0] == 0.0:
        raise CameraError(f"camera_info says the camera is uncalibrated ({name}[0] is 0); calibrate it to get geometry")
    model, D = ("pinhole", ()) if rectified else _lens(msg.distortion_model, msg.d)
    camera = Camera.from_K(matrix, index(msg.width), index(msg.height), model, D).plausible()
    roi = msg.roi
    if roi.width and roi.height:
        camera = camera.cropped(roi.x_offset, roi.y_offset, roi.width, roi.height)
    if msg.binning_x > 1 or msg.binning_y > 1:
        camera = camera.resized(camera.width // max(msg.binning_x, 1), camera.height // max(msg.binning_y, 1))
    return camera


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


class _Layout(NamedTuple):
    """The fields of a sensor_msgs/Image that were looked at; `data` are its bytes as (N,) uint8, not copied."""

    width: int
    height: int
    step: int
    encoding: str
    is_bigendian: bool
    data: np.ndarray

    def __str__(self):
        return f"{self.width}x{self.height} {self.encoding}"


def _layout(msg) -> _Layout:
    data = _bytes_of(msg)
    try:
        width, height, step = index(msg.width), index(msg.height), index(msg.step)
        is_bigendian, encoding = bool(msg.is_bigendian), msg.encoding
    except (AttributeError, TypeError, ValueError) as error:
        raise DecodingError(f"this is no sensor_msgs/Image ({error}); correct it at its source") from error
    if not isinstance(encoding, str):
        raise DecodingError(f"the encoding is {encoding!r}, not a name; send one of {', '.join(ENCODINGS)}")
    if width <= 0 or height <= 0 or not 0 <= step < 1 << 32:  # uint32 in the message
        raise DecodingError(f"the image is {width}x{height} with step {step}; the source sends frames without a size")
    _check_pixels(width, height)
    return _Layout(width, height, step, encoding, is_bigendian, data)


def _bytes_of(msg) -> np.ndarray:
    """(N,) uint8 view on `msg.data`."""
    try:
        view = memoryview(msg.data)
        return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
    except (AttributeError, TypeError, ValueError, BufferError) as error:
        raise DecodingError(f"the message holds no bytes ({error}); correct it at its source") from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodingError(
            f"the image says it is {width}x{height}, more than {MAX_PIXELS // 1_000_000} megapixels; it is damaged, or "
            "the source has to send smaller ones"
        )


def _imdecode(message, data: np.ndarray, flag: int) -> np.ndarray:
    try:
        if data[: len(PNG)].tobytes() == PNG:
            _check_chunks(data)
        image = cv2.imdecode(data, flag)
    except (cv2.error, struct.error, ValueError):
        image = None
    if image is None:
        raise _undecodable(message, data)
    return image


def _undecodable(message, data: np.ndarray) -> DecodingError:
    return DecodingError(
        f"{data.size} bytes that say they are '{message.format}' cannot be decoded; JPEG and PNG are understood, "
        "check the encoder and the link"
    )


def _size_in_header(message, data: np.ndarray) -> tuple[int, int]:
    """(width, height) as the decoder will find them, before it allocates anything by them."""
    try:
        width, height = _size_of(data)
    except (struct.error, ValueError):
        raise _undecodable(message, data) from None
    _check_pixels(width, height)
    return width, height


def _size_of(data: np.ndarray) -> tuple[int, int]:
    """(width, height) in the header of a PNG or JPEG; ValueError or struct.error where there is none."""
    start = data[:24].tobytes()
    if start.startswith(PNG) and start[12:16] == b"IHDR":
        width, height = struct.unpack(">II", start[16:24])
    elif start.startswith(JPEG):
        height, width = _size_of_jpeg(data.tobytes())
    else:
        raise ValueError("neither JPEG nor PNG")
    if not width or not height:
        raise ValueError("no size")
    return width, height


def _check_chunks(data: np.ndarray) -> None:
    """ValueError or struct.error unless the chunks of a PNG, a still image, lie within the data, to the end.

    OpenCV 5.0 believes the length in the header of a chunk, and takes gigabytes and seconds for a thousand bytes.
    """
    place, kind = len(PNG), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, place)
        place += 12 + length
        if place > data.size or kind == b"acTL":
            raise ValueError("a chunk beyond the data, or an animation")


def _size_of_jpeg(data: bytes) -> tuple[int, int]:
    """(height, width) from the first start-of-frame segment (ITU T.81, B.1.1.3 and B.2.2)."""
    place = len(JPEG)
    for _ in range(SEGMENTS):
        place = data.index(b"\xff", place)  # like libjpeg, over what stands between segments
        while data[place : place + 1] == b"\xff":
            place += 1
        marker, length = struct.unpack_from(">BH", data, place)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return struct.unpack_from(">HH", data, place + 4)
        alone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7  # without a length
        if not alone and (length < 2 or marker == 0xDA):
            break
        place += 1 if alone else 1 + length
    raise ValueError("no start of frame")


def _colour_flag(data: np.ndarray, size: tuple[int, int], at_least: tuple[int, int] | None) -> int:
    """OpenCV's flag for the smallest decoding that is enough; only JPEG is cheaper when reduced."""
    if at_least is None or data[: len(JPEG)].tobytes() != JPEG:
        return cv2.IMREAD_COLOR
    for factor, flag in REDUCED.items():
        if all(-(-full // factor) >= least for full, least in zip(size, at_least, strict=True)):
            return flag
    return cv2.IMREAD_COLOR


def _rows(message, dtype, channels: int) -> np.ndarray:
    layout = _layout(message)
    kind = np.dtype(dtype).newbyteorder(">" if layout.is_bigendian else "<")
    width, height, step, data = layout.width * channels * kind.itemsize, layout.height, layout.step, layout.data
    if step < width or data.size < height * step:
        raise DecodingError(f"image of {layout} with step {step} does not match its {data.size} bytes")
    rows = data[: height * step].reshape(height, step)[:, :width]
    pixels = np.ascontiguousarray(rows).view(kind).reshape(height, layout.width, channels)
    return pixels[..., 0] if channels == 1 else pixels


def _units_to_metres(units: np.ndarray, unit: float) -> np.ndarray:
    return np.where(units > 0, units * np.float64(unit), np.nan).astype(np.float32)


def _packed_to_rgb(layout: _Layout, channels: int, size: int, code) -> np.ndarray:
    width, height, step, encoding, is_bigendian, data = layout
    _check_layout(layout, height, channels * size)
    if encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv") and width % 2:
        raise DecodingError(f"{encoding} shares colour between two pixels, so the width {width} cannot be odd")
    if encoding.startswith("bayer") and min(width, height) < BAYER_SMALLEST:
        raise DecodingError(f"{layout} is too small to make colours of; send at least {BAYER_SMALLEST} pixels a side")
    shape = (height, width) if channels == 1 else (height, width, channels)
    strides = (step, channels * size, size)[: len(shape)]
    kind = np.dtype(np.uint8) if size == 1 else np.dtype(">u2" if is_bigendian else "<u2")
    pixels = np.ndarray(shape, kind, buffer=data, strides=strides)
    if size == 2:
        pixels = (pixels >> 8).astype(np.uint8)
    if code is None:
        return pixels
    return pixels[..., ::-1] if code is SWAP else cv2.cvtColor(np.ascontiguousarray(pixels), code)


def _planar_to_rgb(layout: _Layout, code: int) -> np.ndarray:
    width, height, step, encoding, _, data = layout
    if width % 2 or height % 2:
        raise DecodingError(f"{encoding} needs an even size, the message says {width}x{height}")
    rows = height * 3 // 2
    _check_layout(layout, rows, 1)
    planes = np.ndarray((rows, width), np.uint8, buffer=data, strides=(step, 1))
    return cv2.cvtColor(np.ascontiguousarray(planes), code)


def _check_layout(layout: _Layout, rows: int, pixel_bytes: int) -> None:
    """DecodingError unless the data hold `rows` rows of `step` bytes; the padding of the last one may be missing."""
    used, came, step = layout.width * pixel_bytes, layout.data.size, layout.step
    if came == 0:
        raise DecodingError(f"the image ({layout}) has no data; the driver sent a header without pixels")
    if step < used:
        raise DecodingError(f"a row of {layout} takes {used} bytes, but step is {step}; correct step at the source")
    needed = step * (rows - 1) + used
    if came < needed:
        raise DecodingError(f"{layout} with step {step} needs {needed} bytes, {came} came; the frame is cut short")


def _check_jpeg_is_whole(data: np.ndarray) -> None:
    """The decoder fills a cut JPEG with grey and says nothing, so the end marker is looked for here."""
    if data[:2].tobytes() == b"\xff\xd8" and b"\xff\xd9" not in data[-64:].tobytes():
        raise DecodingError(f"the JPEG of {data.size} bytes has no end marker; the frame is cut short on its way")
