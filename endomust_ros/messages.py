"""ROS messages ↔ arrays: Image → rgb (H, W, 3) uint8; depth (H, W) float32 [m] → Image; points [m] → PointCloud2.

Pure functions. An image whose bytes are red, green and blue, in whichever order, is a view on the message, not a copy.
Large outputs are written into `array.array('B')`, the one form that every ROS distribution from Humble on serialises
without looking at each byte; the previous message, given as `into`, lends its memory (safe once `publish` is back).
"""

import array
import functools
import sys

import cv2
import numpy as np
from geometry_msgs.msg import Quaternion, TransformStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from endomust_core.bundle import resize_rgb
from endomust_core.camera import Camera, CameraError
from endomust_core.odometry import quaternion_from_matrix

BIG_ENDIAN = sys.byteorder == "big"

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


class ImageError(ValueError):
    """An image message that cannot be used; the text says why and what to change at the source."""


# ---- in -------------------------------------------------------------------------------------------------------------


def image_to_rgb(msg) -> np.ndarray:
    """sensor_msgs/Image to rgb (H, W, 3) uint8; a view on the message for rgb8 and bgr8. Raises ImageError in words."""
    if msg.width == 0 or msg.height == 0:
        raise ImageError(f"the image is {msg.width}x{msg.height}; the source sends frames without a size")
    if msg.encoding in PACKED:
        return _packed_to_rgb(msg, *PACKED[msg.encoding])
    if msg.encoding in PLANAR:
        return _planar_to_rgb(msg, PLANAR[msg.encoding])
    return _foreign_to_rgb(msg)


def compressed_to_rgb(msg) -> np.ndarray:
    """sensor_msgs/CompressedImage (JPEG or PNG) to rgb (H, W, 3) uint8. Raises ImageError in words."""
    data = np.frombuffer(msg.data, np.uint8)
    if data.size == 0:
        raise ImageError("the compressed image has no data; the encoder at the source sent an empty message")
    if "compressedDepth" in msg.format:
        raise ImageError(f"'{msg.format}' is a depth image; point the input at a colour topic")
    _check_jpeg_is_whole(data)
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        raise ImageError(
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
    if rectified or not any(msg.d):  # drivers that have no distortion send [] or zeros under any name
        camera = Camera.from_K(matrix, msg.width, msg.height)
    else:
        camera = Camera.from_K(matrix, msg.width, msg.height, msg.distortion_model, tuple(msg.d))
    roi = msg.roi
    if roi.width and roi.height:
        camera = camera.cropped(roi.x_offset, roi.y_offset, roi.width, roi.height)
    if msg.binning_x > 1 or msg.binning_y > 1:
        camera = camera.resized(camera.width // max(msg.binning_x, 1), camera.height // max(msg.binning_y, 1))
    return camera


def _packed_to_rgb(msg, channels: int, size: int, code) -> np.ndarray:
    _check_layout(msg, msg.height, channels * size)
    if msg.encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv") and msg.width % 2:
        raise ImageError(f"{msg.encoding} shares colour between two pixels, so the width {msg.width} cannot be odd")
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
        raise ImageError(f"{msg.encoding} needs an even size, the message says {msg.width}x{msg.height}")
    rows = msg.height * 3 // 2
    _check_layout(msg, rows, 1)
    planes = np.ndarray((rows, msg.width), np.uint8, buffer=msg.data, strides=(msg.step, 1))
    return cv2.cvtColor(np.ascontiguousarray(planes), code)


def _check_layout(msg, rows: int, pixel_bytes: int) -> None:
    """Raise ImageError unless the data hold `rows` rows of `step` bytes; the padding of the last one may be missing."""
    used, came = msg.width * pixel_bytes, len(msg.data)
    size = f"{msg.width}x{msg.height} {msg.encoding}"
    if came == 0:
        raise ImageError(f"the image ({size}) has no data; the driver sent a header without pixels")
    if msg.step < used:
        raise ImageError(f"a row of {size} takes {used} bytes, but step is {msg.step}; correct step at the source")
    needed = msg.step * (rows - 1) + used
    if came < needed:
        raise ImageError(f"{size} with step {msg.step} needs {needed} bytes, {came} came; the frame is cut short")


def _foreign_to_rgb(msg) -> np.ndarray:
    """An encoding outside the table goes through cv_bridge where that is installed."""
    known = ", ".join(ENCODINGS)
    if len(msg.data) == 0:
        raise ImageError(f"the image ({msg.width}x{msg.height} {msg.encoding}) has no data")
    try:
        from cv_bridge import CvBridge
    except ImportError:
        advice = f"send one of {known}, or install cv_bridge"
        raise ImageError(f"encoding '{msg.encoding}' is not understood; {advice}") from None
    try:
        return CvBridge().imgmsg_to_cv2(msg, "rgb8")
    except Exception as error:
        raise ImageError(f"encoding '{msg.encoding}' is not understood ({error}); send one of {known}") from error


def _check_jpeg_is_whole(data: np.ndarray) -> None:
    """The decoder fills a cut JPEG with grey and says nothing, so the end marker is looked for here."""
    if data[:2].tobytes() == b"\xff\xd8" and b"\xff\xd9" not in data[-64:].tobytes():
        raise ImageError(f"the JPEG of {data.size} bytes has no end marker; the frame is cut short on its way")


# ---- out ------------------------------------------------------------------------------------------------------------


def depth_to_image(depth: np.ndarray, header, into=None) -> Image:
    """depth (H, W) float32 [m], NaN where invalid, to a 32FC1 Image (REP-118)."""
    return _image(np.asarray(depth, np.float32), "32FC1", header, into)


def rgb_to_image(rgb: np.ndarray, header, into=None) -> Image:
    """rgb (H, W, 3) uint8 to an rgb8 Image."""
    if rgb.strides[2] < 0:  # blue, green, red seen from the other end: OpenCV turns it faster than numpy
        rgb = cv2.cvtColor(np.ascontiguousarray(rgb[..., ::-1]), cv2.COLOR_BGR2RGB)
    return _image(np.asarray(rgb, np.uint8), "rgb8", header, into)


def color_to_image(bgr: np.ndarray, header, into=None) -> Image:
    """bgr (H, W, 3) uint8, as OpenCV draws, to a bgr8 Image."""
    return _image(np.asarray(bgr, np.uint8), "bgr8", header, into)


def cloud_message(
    depth: np.ndarray, rgb: np.ndarray, camera: Camera, header, into=None, stride: int = 1
) -> PointCloud2:
    """Organised cloud of every stride-th pixel: depth (H, W) [m], rgb (H, W, 3), their camera → x, y, z [m] and rgb.

    16 bytes a point; invalid depth gives NaN in x, y and z. Everything is computed inside the memory of the message.
    """
    x, y, seen = ray_planes(camera, stride)
    height, width = x.shape
    message = _cloud_layout(width, height) if into is None or (into.height, into.width) != x.shape else into
    message.header = header
    points = np.frombuffer(message.data, np.float32).reshape(height, width, 4)
    thin = np.ascontiguousarray(depth[::stride, ::stride], np.float32)
    z = thin if seen is None else cv2.multiply(thin, seen)
    cv2.merge([cv2.multiply(x, thin), cv2.multiply(y, thin), z, _packed_colour(rgb, stride)], dst=points)
    return message


def matched(rgb: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The picture (H, W, 3) on the grid of a depth image of this shape; itself where it is already."""
    return rgb if rgb.shape[:2] == shape else resize_rgb(rgb, shape)


@functools.lru_cache(maxsize=2)
def ray_planes(camera: Camera, stride: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """x/z and y/z of every stride-th pixel, and 1 or NaN where some pixels have no ray; each (H, W) float32. Cached.

    Only the rays asked for are computed: the inverse of a distortion takes 0.2 s for all pixels of a 640x512 image.
    """
    x, y = (np.ascontiguousarray(plane) for plane in np.moveaxis(camera.strided(stride).rays(), 2, 0))
    missing = np.isnan(x)
    return x, y, np.where(missing, np.float32(np.nan), np.float32(1.0)) if missing.any() else None


def _packed_colour(rgb: np.ndarray, stride: int) -> np.ndarray:
    """rgb (H, W, 3) uint8 to float32 of every stride-th pixel, whose bits are 0x00RRGGBB.

    The top byte is 0, not 255: 0xFFRRGGBB with a red above 127 is a NaN, and readers that skip NaN lose the point.
    Columns are left out after the conversion to four bytes: numpy picks words several times faster than triples.
    """
    mirrored = rgb.strides[2] < 0  # blue, green, red seen from the other end
    rows, code = (rgb[::stride, :, ::-1], cv2.COLOR_BGR2BGRA) if mirrored else (rgb[::stride], cv2.COLOR_RGB2BGRA)
    bits = np.ascontiguousarray(cv2.cvtColor(rows, code).view(np.uint32)[:, ::stride, 0])
    np.bitwise_and(bits, 0x00FFFFFF, out=bits)
    return bits.view(np.float32)


def _cloud_layout(width: int, height: int) -> PointCloud2:
    message = PointCloud2(height=height, width=width, point_step=16, row_step=16 * width)
    message.is_bigendian = BIG_ENDIAN
    message.is_dense = False
    message.fields = [
        PointField(name=name, offset=4 * place, datatype=PointField.FLOAT32, count=1)
        for place, name in enumerate(("x", "y", "z", "rgb"))
    ]
    _attach(message, array.array("B", bytes(16 * width * height)))
    return message


def camera_info_message(camera: Camera, header) -> CameraInfo:
    """CameraInfo of exactly this camera: K, D, R = identity, P = [K | 0]; a pinhole is plumb_bob with zeros."""
    message = CameraInfo(header=header, width=camera.width, height=camera.height)
    pinhole = camera.model == "pinhole"
    message.distortion_model = "plumb_bob" if pinhole else camera.model
    message.d = [0.0] * 5 if pinhole else [float(value) for value in camera.D]
    message.k = [float(value) for value in camera.K.ravel()]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [camera.fx, 0.0, camera.cx, 0.0, 0.0, camera.fy, camera.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return message


def odometry_message(state, stamp, odom_frame: str, child_frame: str) -> Odometry:
    """OdometryState → nav_msgs/Odometry: pose [m] in odom_frame, twist [m/s, rad/s] in child_frame, 6x6 row-major."""
    message = Odometry(header=Header(stamp=stamp, frame_id=odom_frame), child_frame_id=child_frame)
    pose, twist = message.pose, message.twist
    pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = map(float, state.T_odom_camera[:3, 3])
    pose.pose.orientation = _quaternion(state.T_odom_camera)
    pose.covariance = np.ascontiguousarray(state.pose_covariance, np.float64).ravel()
    twist.covariance = np.ascontiguousarray(state.twist_covariance, np.float64).ravel()
    if state.twist is not None:
        linear, angular = twist.twist.linear, twist.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, state.twist)
    return message


def transform_message(T: np.ndarray, stamp, parent: str, child: str) -> TransformStamped:
    """T_parent_child (4, 4) [m] → TransformStamped."""
    message = TransformStamped(header=Header(stamp=stamp, frame_id=parent), child_frame_id=child)
    place = message.transform.translation
    place.x, place.y, place.z = map(float, T[:3, 3])
    message.transform.rotation = _quaternion(T)
    return message


def _quaternion(T: np.ndarray) -> Quaternion:
    x, y, z, w = map(float, quaternion_from_matrix(T[:3, :3]))
    return Quaternion(x=x, y=y, z=z, w=w)


def _image(pixels: np.ndarray, encoding: str, header, into) -> Image:
    message = Image() if into is None else into
    pixels = np.ascontiguousarray(pixels)
    message.header = header
    message.height, message.width = pixels.shape[:2]
    message.encoding = encoding
    message.is_bigendian = int(BIG_ENDIAN)
    message.step = pixels.nbytes // message.height
    if len(message.data) == pixels.nbytes:
        np.frombuffer(message.data, np.uint8)[:] = pixels.reshape(-1).view(np.uint8)
    else:
        data = array.array("B")
        data.frombytes(memoryview(pixels).cast("B"))
        _attach(message, data)
    return message


def _attach(message, data: array.array) -> None:
    """Hand an array to the `data` field; the generated setter would copy it once more where field checks are off."""
    if isinstance(getattr(message, "_data", None), array.array):
        message._data = data
    else:
        message.data = data
