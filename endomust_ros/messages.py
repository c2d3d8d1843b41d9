"""ROS messages ↔ arrays: Image → rgb (H, W, 3) uint8; depth (H, W) float32 [m] → Image; points [m] → PointCloud2.

Pure functions. An image whose bytes are red, green and blue, in whichever order, is a view on the message, not a copy.
Large outputs are written into `array.array('B')`, the one form that every ROS distribution from Humble on serialises
without looking at each byte; the previous message, given as `into`, lends its memory (safe once `publish` is back).
"""

import array
import sys

import cv2
import numpy as np
from geometry_msgs.msg import Quaternion, TransformStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from endomust_core import compressed_depth, decoding
from endomust_core.camera import Camera
from endomust_core.cloud import fill_cloud
from endomust_core.decoding import ENCODINGS as ENCODINGS  # an alias of the same name: part of this module too
from endomust_core.decoding import DecodingError as ImageError
from endomust_core.decoding import UnknownEncoding
from endomust_core.decoding import camera_from_info as camera_from_info
from endomust_core.decoding import compressed_to_rgb as compressed_to_rgb
from endomust_core.odometry import quaternion_from_matrix

BIG_ENDIAN = sys.byteorder == "big"

# ---- in -------------------------------------------------------------------------------------------------------------


def image_to_rgb(msg) -> np.ndarray:
    """sensor_msgs/Image to rgb (H, W, 3) uint8, a view for rgb8 and bgr8; what our table lacks goes through cv_bridge.

    Raises ImageError in words.
    """
    try:
        return decoding.image_to_rgb(msg)
    except UnknownEncoding as error:
        return _foreign_to_rgb(msg, error)


def _foreign_to_rgb(msg, unknown: UnknownEncoding) -> np.ndarray:
    try:
        from cv_bridge import CvBridge
    except ImportError:
        raise ImageError(f"{unknown}, or install cv_bridge") from None
    try:
        return CvBridge().imgmsg_to_cv2(msg, "rgb8")
    except Exception as error:
        raise ImageError(f"{unknown}; cv_bridge does not read it either: {error}") from error


# ---- out ------------------------------------------------------------------------------------------------------------


def depth_to_image(depth: np.ndarray, header, into=None) -> Image:
    """depth (H, W) float32 [m], NaN where invalid, to a 32FC1 Image (REP-118)."""
    return _image(np.asarray(depth, np.float32), "32FC1", header, into)


def compressed_depth_message(
    depth: np.ndarray, header, low: float, high: float, kind: str = "png", level: int = 1
) -> CompressedImage:
    """depth (H, W) float32 [m], valid from low to high, to what subscribers of the plugin compressedDepth read."""
    message = CompressedImage(header=header, format=compressed_depth.format_of(kind))
    data = array.array("B")
    data.frombytes(compressed_depth.encode(depth, low, high, kind, level))
    _attach(message, data)
    return message


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
    height, width = -(-camera.height // stride), -(-camera.width // stride)
    fits = into is not None and (into.height, into.width) == (height, width)
    message = into if fits else _cloud_layout(width, height)
    message.header = header
    fill_cloud(np.frombuffer(message.data, np.float32).reshape(height, width, 4), depth, rgb, camera, stride)
    return message


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
