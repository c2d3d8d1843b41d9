"""ROS messages ↔ arrays: Image → rgb (H, W, 3) uint8; depth (H, W) float32 [m] → Image; points [m] → PointCloud2.

Pure functions. An image whose bytes are red, green and blue, in whichever order, is a view on the message, not a copy.
Large outputs are written into `array.array('B')`, the one form that every ROS distribution from Humble on serialises
without looking at each byte; the previous message, given as `into`, lends its memory (safe once `publish` is back).
"""

import array
import sys

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, PoseWithCovarianceStamped, Quaternion, TransformStamped
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
from endomust_core.odometry import inverse, matrix_from_quaternion, quaternion_from_matrix, se3

BIG_ENDIAN = sys.byteorder == "big"
FARTHEST = 1e3  # m; no robot's camera is farther from its base

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


def depth_to_millimetres(depth: np.ndarray, header, into=None) -> Image:
    """depth (H, W) float32 [m] to a 16UC1 Image [mm] (REP-118), 0 where invalid or beyond 65.535 m."""
    millimetres = np.nan_to_num(depth * 1e3 + 0.5, nan=0.0, posinf=0.0, neginf=0.0)
    return _image(np.where(millimetres < 65536, millimetres, 0).astype(np.uint16), "16UC1", header, into)


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


def jpeg_message(bgr: np.ndarray, header) -> CompressedImage:
    """bgr (H, W, 3) uint8 to a JPEG, as image_transport's compressed writes it."""
    message = CompressedImage(header=header, format="bgr8; jpeg compressed bgr8")
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])
    data = array.array("B")
    data.frombytes(jpeg.tobytes())
    _attach(message, data)
    return message


def color_to_image(bgr: np.ndarray, header, into=None) -> Image:
    """bgr (H, W, 3) uint8, as OpenCV draws, to a bgr8 Image."""
    return _image(np.asarray(bgr, np.uint8), "bgr8", header, into)


CLOUD_FIELDS = {
    "xyz": ("x", "y", "z"),
    "xyzrgb": ("x", "y", "z", "rgb"),
    "xyzrgbc": ("x", "y", "z", "rgb", "confidence"),
}


def cloud_message(
    depth: np.ndarray,
    rgb: np.ndarray,
    camera: Camera,
    header,
    into=None,
    stride: int = 1,
    fields: str = "xyzrgb",
    confidence: np.ndarray | None = None,
    least: float = 0.0,
) -> PointCloud2:
    """Organised cloud of every stride-th pixel: depth (H, W) [m], rgb (H, W, 3), their camera → x, y, z [m] and rgb.

    4 bytes a field; depth that is invalid, or whose confidence (H, W) is below `least`, gives NaN in x, y and z.
    Everything is computed inside the memory of the message.
    """
    height, width, names = -(-camera.height // stride), -(-camera.width // stride), CLOUD_FIELDS[fields]
    fits = into is not None and (into.height, into.width, len(into.fields)) == (height, width, len(names))
    message = into if fits else _cloud_layout(width, height, names)
    message.header = header
    out = np.frombuffer(message.data, np.float32).reshape(height, width, len(names))
    fill_cloud(out, depth, rgb, camera, stride, confidence, least)
    return message


def _cloud_layout(width: int, height: int, names: tuple[str, ...]) -> PointCloud2:
    step = 4 * len(names)
    message = PointCloud2(height=height, width=width, point_step=step, row_step=step * width)
    message.is_bigendian = BIG_ENDIAN
    message.is_dense = False
    message.fields = [
        PointField(name=name, offset=4 * place, datatype=PointField.FLOAT32, count=1)
        for place, name in enumerate(names)
    ]
    _attach(message, array.array("B", bytes(step * width * height)))
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
    _fill_pose(pose, state)
    twist.covariance = np.ascontiguousarray(state.twist_covariance, np.float64).ravel()
    if state.twist is not None:
        linear, angular = twist.twist.linear, twist.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, state.twist)
    return message


def pose_message(state, stamp, odom_frame: str) -> PoseWithCovarianceStamped:
    """OdometryState → geometry_msgs/PoseWithCovarianceStamped [m] in odom_frame."""
    message = PoseWithCovarianceStamped(header=Header(stamp=stamp, frame_id=odom_frame))
    _fill_pose(message.pose, state)
    return message


class PoseError(ValueError):
    """A pose that is none; the text says why."""


def pose_matrix(pose: Pose) -> np.ndarray:
    """geometry_msgs/Pose of a child in its parent → T_parent_child (4, 4) [m]. Raises PoseError in words."""
    q, p = pose.orientation, pose.position
    place = np.array([p.x, p.y, p.z])
    if not (np.isfinite(place).all() and np.abs(place).max() < FARTHEST):
        raise PoseError(f"its position {place.tolist()} is no place; check who publishes it")
    try:
        return se3(matrix_from_quaternion((q.x, q.y, q.z, q.w)), place)
    except ValueError as error:
        raise PoseError(str(error)) from None


def covariance_matrix(numbers) -> np.ndarray:
    """36 numbers, row by row → (6, 6), symmetric. Raises PoseError where they are no covariance."""
    covariance = np.asarray(numbers, np.float64).reshape(6, 6)
    covariance = (covariance + covariance.T) / 2
    if not np.isfinite(covariance).all() or np.linalg.eigvalsh(covariance).min() < -1e-9 * abs(covariance).max():
        raise PoseError("its covariance is not positive; send zeros where the pose is certain")
    return covariance


def pose_of(T: np.ndarray) -> Pose:
    """T_parent_child (4, 4) [m] → geometry_msgs/Pose of the child in the parent."""
    pose = Pose(orientation=_quaternion(T))
    pose.position.x, pose.position.y, pose.position.z = map(float, T[:3, 3])
    return pose


def stamp_message(stamp_ns: int) -> Time:
    """Nanoseconds → builtin_interfaces/Time."""
    whole, nanoseconds = divmod(stamp_ns, 10**9)
    return Time(sec=whole, nanosec=nanoseconds)


def transform_message(T: np.ndarray, stamp, parent: str, child: str) -> TransformStamped:
    """T_parent_child (4, 4) [m] → TransformStamped."""
    message = TransformStamped(header=Header(stamp=stamp, frame_id=parent), child_frame_id=child)
    place = message.transform.translation
    place.x, place.y, place.z = map(float, T[:3, 3])
    message.transform.rotation = _quaternion(T)
    return message


def inverted(transform: TransformStamped) -> TransformStamped:
    """The same transform with parent and child changed over."""
    q, t = transform.transform.rotation, transform.transform.translation
    T = inverse(se3(matrix_from_quaternion((q.x, q.y, q.z, q.w)), np.array([t.x, t.y, t.z])))
    return transform_message(T, transform.header.stamp, transform.child_frame_id, transform.header.frame_id)


def _fill_pose(pose, state) -> None:
    """Pose and covariance; a withheld state has a quaternion of zeros, which rtabmap and others read as lost."""
    pose.pose = pose_of(state.T_odom_camera)
    if state.withheld:
        pose.pose.orientation = Quaternion(x=0.0, y=0.0, z=0.0, w=0.0)
    pose.covariance = np.ascontiguousarray(state.pose_covariance, np.float64).ravel()


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
