"""Hostile messages from a seeded generator, and checks: a message of the node → what is wrong with it, or None.

A Fault is a message, or serialised bytes where Python would refuse the value. `REJECT` must never be answered, `EITHER`
is the choice of the node, as long as what it publishes is sound.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from endomust_core.camera import Camera
from endomust_core.decoding import ENCODINGS
from endomust_ros.messages import camera_info_message, rgb_to_image

REJECT, EITHER = "reject", "either"
FRAME = "endoscope_optical_frame"
CAMERA = Camera(160, 128, 150.0, 155.0, 79.0, 64.5)
NUMBERS = (math.nan, math.inf, -math.inf, 1e308, -1e308, 1e-308, 0.0, -1.0, 1e9)
WORDS = ("", "/", "//", "/cam", " ", "\t\n", "кадр", "內視鏡", "💥" * 50, "x" * 10_000, "a/b/../c", "%s%n", "-1")
HUGE = (2**31 - 1, 2**31, 2**32 - 1)
TYPES = {"image": Image, "compressed": CompressedImage, "camera_info": CameraInfo}
POSES = {"camera_pose": PoseStamped, "set_pose": PoseWithCovarianceStamped}


@dataclass(frozen=True)
class Fault:
    """One hostile message (`content` is a message or CDR bytes) under the name of what is wrong with it."""

    kind: str
    content: object
    verdict: str = EITHER


def picture(rng: np.random.Generator) -> np.ndarray:
    """(128, 160, 3) uint8 RGB: smooth, with some noise, so that no two are alike."""
    x, y = np.meshgrid(np.linspace(0, 1, CAMERA.width), np.linspace(0, 1, CAMERA.height))
    base = np.stack([60 + 150 * x, 40 + 60 * y, 30 + 40 * x * y], axis=-1)
    return np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8)


def good_image(rng: np.random.Generator, header: Header) -> Image:
    """An rgb8 image that every node must answer."""
    return rgb_to_image(picture(rng), header)


def good_compressed(rng: np.random.Generator, header: Header) -> CompressedImage:
    """A JPEG that every node must answer."""
    return _packed(rng, header, ".jpg", "rgb8; jpeg compressed bgr8")


def good_info(header: Header) -> CameraInfo:
    """The calibration of the good images."""
    return camera_info_message(CAMERA, header)


def faults(family: str, rng: np.random.Generator, header: Callable[[], Header]) -> Iterator[Fault]:
    """Hostile messages of a family without end: image, compressed, camera_info, mask, camera_pose, set_pose, or one of
    these with `cdr ` before it for damaged serialised bytes. `header` gives a fresh one with a stamp of its own."""
    make = _MAKERS[family.removeprefix("cdr ")]
    while True:
        if family.startswith("cdr "):
            yield _damaged(rng, _GOOD[family.removeprefix("cdr ")](rng, header()))
        else:
            yield make(rng, header())


# ---- Image ----------------------------------------------------------------------------------------------------------


def _changed(**fields) -> Callable:
    def change(rng, message):
        for name, value in fields.items():
            setattr(message, name, value(rng) if callable(value) else value)

    return change


def _stamp(sec=None, nanosec=None) -> Callable:
    def change(rng, message):
        stamp = message.header.stamp
        stamp.sec = stamp.sec if sec is None else sec(rng, stamp.sec)
        stamp.nanosec = stamp.nanosec if nanosec is None else nanosec

    return change


def _frame(rng, message) -> None:
    message.header.frame_id = str(rng.choice(WORDS))


def _resized(rng, message) -> None:
    """Sizes at the edge: one pixel, one row, one column, longer than wide by thousands; the data fit."""
    width, height = [(1, 1), (1, 300), (300, 1), (2, 2), (16_384, 2), (2, 16_384), (33, 17)][rng.integers(7)]
    message.width, message.height, message.step = width, height, 3 * width
    message.data = rng.integers(0, 256, 3 * width * height, np.uint8).tobytes()


def _short(rng, message) -> None:
    message.data = bytes(message.data)[: int(rng.integers(1, len(message.data)))]


def _long(rng, message) -> None:
    message.data = bytes(message.data) + rng.bytes(int(rng.integers(1, 5_000)))


def _noise(rng, message) -> None:
    message.data = rng.bytes(len(message.data))


def _flat(rng, message) -> None:
    message.data = bytes([int(rng.choice([0, 255]))]) * len(message.data)


def _letters(rng) -> str:
    return "".join(chr(int(code)) for code in rng.integers(33, 0xD000, int(rng.integers(1, 40))))


def _any(choices) -> Callable:
    return lambda rng: choices[int(rng.integers(len(choices)))]


IMAGES = {  # what is wrong → (verdict, change of a good rgb8 image)
    "width 0": (REJECT, _changed(width=0)),
    "height 0": (REJECT, _changed(height=0)),
    "size 0x0": (REJECT, _changed(width=0, height=0)),
    "width huge": (REJECT, _changed(width=_any(HUGE))),
    "height huge": (REJECT, _changed(height=_any(HUGE))),
    "everything huge": (REJECT, _changed(width=2**32 - 1, height=2**32 - 1, step=2**32 - 1)),
    "width larger than the row": (REJECT, _changed(width=lambda rng: CAMERA.width + int(rng.integers(1, 500)))),
    "width smaller than the row": (EITHER, _changed(width=lambda rng: int(rng.integers(1, CAMERA.width)))),
    "height larger than the data": (REJECT, _changed(height=lambda rng: CAMERA.height + int(rng.integers(1, 500)))),
    "height smaller than the data": (EITHER, _changed(height=lambda rng: int(rng.integers(1, CAMERA.height)))),
    "step too short": (REJECT, _changed(step=lambda rng: int(rng.integers(0, 3 * CAMERA.width)))),
    "step too long": (REJECT, _changed(step=lambda rng: 3 * CAMERA.width + int(rng.integers(10, 5_000)))),
    "step huge": (REJECT, _changed(step=_any(HUGE))),
    "encoding of nonsense": (REJECT, _changed(encoding=_letters)),
    "encoding of strange words": (REJECT, _changed(encoding=_any(WORDS))),
    "encoding of depth": (REJECT, _changed(encoding=_any(("32FC1", "64FC1", "32SC4", "8UC7", "RGB8", "rgb8 ")))),
    "encoding of another layout": (EITHER, _changed(encoding=_any(ENCODINGS))),
    "no data": (REJECT, _changed(data=b"")),
    "data too short": (REJECT, _short),
    "data too long": (EITHER, _long),
    "is_bigendian odd": (EITHER, _changed(is_bigendian=lambda rng: int(rng.integers(1, 256)))),
    "stamp negative": (EITHER, _stamp(lambda rng, sec: -int(rng.integers(1, 2**31)))),
    "stamp zero": (EITHER, _stamp(lambda rng, sec: 0, 0)),
    "stamp at the maximum": (EITHER, _stamp(lambda rng, sec: 2**31 - 1, 2**32 - 1)),
    "stamp at the minimum": (EITHER, _stamp(lambda rng, sec: -(2**31), 0)),
    "stamp goes back": (EITHER, _stamp(lambda rng, sec: sec - int(rng.integers(1, 10_000)))),
    "stamp far ahead": (EITHER, _stamp(lambda rng, sec: sec + int(rng.integers(1, 10_000)))),
    "nanosec above a second": (EITHER, _stamp(None, 2**32 - 1)),
    "frame_id strange": (EITHER, _frame),
    "size at the edge": (EITHER, _resized),
    "noise": (EITHER, _noise),
    "all black or all white": (EITHER, _flat),
}


def _image(rng, header) -> Fault:
    return _from_table(IMAGES, "image", rng, good_image(rng, header))


def _from_table(table: dict, family: str, rng, message) -> Fault:
    name = _any(tuple(table))(rng)
    verdict, change = table[name]
    change(rng, message)
    return Fault(f"{family}: {name}", message, verdict)


# ---- CompressedImage ------------------------------------------------------------------------------------------------


def _packed(rng, header, suffix=".jpg", kind="jpeg") -> CompressedImage:
    message = CompressedImage(header=header, format=kind)
    message.data = cv2.imencode(suffix, picture(rng)[..., ::-1])[1].tobytes()
    return message


def _flipped(suffix: str) -> Callable:
    def change(rng, message):
        data = bytearray(_packed(rng, message.header, suffix).data)
        for place in rng.integers(0, len(data), int(rng.integers(1, 30))):
            data[place] ^= 1 << int(rng.integers(8))
        message.data, message.format = bytes(data), suffix[1:]

    return change


def _cut(suffix: str, end: bytes = b"") -> Callable:
    def change(rng, message):
        data = bytes(_packed(rng, message.header, suffix).data)
        message.data, message.format = data[: int(rng.integers(1, len(data) - 64))] + end, suffix[1:]

    return change


def _foreign(rng, message) -> None:
    """A picture in a format that nobody asked for; cut short every third time."""
    suffix = _any((".bmp", ".tiff", ".webp", ".gif", ".ppm", ".jp2"))(rng)
    try:
        data = bytes(_packed(rng, message.header, suffix).data)
    except cv2.error:  # this OpenCV does not write it
        data = {".gif": b"GIF89a\xff\xff\xff\xff\xf7\x00\x00"}.get(suffix, b"II*\x00") + rng.bytes(500)
    message.data = data if rng.integers(3) else data[: len(data) // 2]
    message.format = _any((suffix[1:], "jpeg", "png"))(rng)


def bombs() -> dict[str, bytes]:
    """Headers that promise far more pixels than the bytes behind them hold."""
    cell = np.full((16, 16, 3), 120, np.uint8)
    jpeg, png = (bytearray(cv2.imencode(suffix, cell)[1].tobytes()) for suffix in (".jpg", ".png"))
    frame = jpeg.index(b"\xff\xc0")
    found = {}
    for side in (65_500, 32_000):
        found[f"jpeg {side}"] = bytes(jpeg[: frame + 5] + struct.pack(">HH", side, side) + jpeg[frame + 9 :])
        found[f"png {side}"] = _png_of(png, side, side)
        found[f"ppm {side}"] = b"P6 %d %d 255\n" % (side, side) + bytes(300)
        bmp = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        found[f"bmp {side}"] = b"BM" + struct.pack("<IHHI", 10_000, 0, 0, 54) + bmp + bytes(300)
    found["png 2147483647"] = _png_of(png, 2**31 - 1, 2**31 - 1)
    webp = b"VP8X" + struct.pack("<II", 10, 0) + b"\xff\xff\xff" * 2
    found["webp 16777216"] = b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp
    return found


def _png_of(png: bytearray, width: int, height: int) -> bytes:
    import zlib

    header = b"IHDR" + struct.pack(">II", width, height) + bytes(png[24:29])
    return bytes(png[:12]) + header + struct.pack(">I", zlib.crc32(header)) + bytes(png[33:])


def _bomb(rng, message) -> None:
    name = _any(tuple(bombs()))(rng)
    message.data, message.format = bombs()[name], name.split()[0]


COMPRESSED = {
    "JPEG cut short": (REJECT, _cut(".jpg")),
    "JPEG cut short, with an end marker": (EITHER, _cut(".jpg", b"\xff\xd9")),
    "PNG cut short": (EITHER, _cut(".png")),
    "JPEG with flipped bits": (EITHER, _flipped(".jpg")),
    "PNG with flipped bits": (EITHER, _flipped(".png")),
    "wrong format word": (EITHER, _changed(format=_any((*WORDS, "png", "h264", "rgb8; png compressed ")))),
    "format of a depth image": (REJECT, _changed(format="16UC1; compressedDepth png")),
    "decompression bomb": (REJECT, _bomb),
    "foreign format": (EITHER, _foreign),
    "random bytes": (REJECT, _changed(data=lambda rng: rng.bytes(int(rng.integers(1, 4_000))))),
    "start marker and noise": (REJECT, _changed(data=lambda rng: b"\xff\xd8" + rng.bytes(600) + b"\xff\xd9")),
    "no data": (REJECT, _changed(data=b"")),
    "garbage after the end": (EITHER, _long),
    "stamp negative": IMAGES["stamp negative"],
    "stamp at the maximum": IMAGES["stamp at the maximum"],
    "nanosec above a second": IMAGES["nanosec above a second"],
    "frame_id strange": (EITHER, _frame),
}


def _compressed(rng, header) -> Fault:
    return _from_table(COMPRESSED, "compressed", rng, good_compressed(rng, header))


# ---- CameraInfo, mask, poses ----------------------------------------------------------------------------------------


def _number_in(*fields: str) -> Callable:
    def change(rng, message):
        name = _any(fields)(rng)
        values = [float(value) for value in getattr(message, name)] or [0.0] * 5
        for place in rng.integers(0, len(values), int(rng.integers(1, 4))):
            values[place] = _any(NUMBERS)(rng)
        setattr(message, name, values)

    return change


def _focal(value: Callable) -> Callable:
    def change(rng, message):
        focal = value(rng)
        message.k[0], message.k[4] = focal, focal
        message.p[0], message.p[5] = focal, focal

    return change


def _lens(rng, message) -> None:
    message.distortion_model = _any((*WORDS, "plumb_bob", "equidistant", "rational_polynomial", "fisheye"))(rng)
    message.d = [float(value) for value in rng.normal(0, _any((0.1, 10.0, 1e30))(rng), int(rng.integers(0, 20)))]


def _roi(rng, message) -> None:
    for name in ("x_offset", "y_offset", "width", "height"):
        setattr(message.roi, name, _any((0, 1, 50, 160, 5_000, *HUGE))(rng))


CAMERA_INFOS = {
    "number in K or P": (EITHER, _number_in("k", "p")),
    "number in D or R": (EITHER, _number_in("d", "r")),
    "all zero": (EITHER, _changed(k=[0.0] * 9, p=[0.0] * 12)),
    "negative focal length": (EITHER, _focal(lambda rng: -float(rng.uniform(1, 500)))),
    "focal length out of this world": (EITHER, _focal(_any((1e308, 1e-308, 1e-30, 1e30, 5e-324)))),
    "lens of a wrong kind": (EITHER, _lens),
    "region outside": (EITHER, _roi),
    "binning absurd": (EITHER, _changed(binning_x=_any((0, 7, 161, *HUGE)), binning_y=_any((0, 3, 129, *HUGE)))),
    "another size": (EITHER, _changed(width=_any((0, 1, 161, *HUGE)), height=_any((0, 1, 129, *HUGE)))),
    "stamp negative": IMAGES["stamp negative"],
    "frame_id strange": (EITHER, _frame),
}


def _camera_info(rng, header) -> Fault:
    return _from_table(CAMERA_INFOS, "camera_info", rng, good_info(header))


def _good_mask(rng, header) -> Image:
    message = Image(header=header, width=CAMERA.width, height=CAMERA.height, step=CAMERA.width, encoding="mono8")
    message.data = (255 * (rng.random(CAMERA.width * CAMERA.height) < 0.9)).astype(np.uint8).tobytes()
    return message


def _mask(rng, header) -> Fault:
    fault = _from_table(IMAGES, "mask", rng, _good_mask(rng, header))
    return Fault(fault.kind, fault.content)  # what becomes of the mask is not seen in the count of images


def _posed(kind: type) -> Callable:
    """A good pose, a camera that looks from 5 cm."""

    def make(rng, header) -> object:
        message = kind(header=Header(stamp=header.stamp, frame_id="base"))
        pose = message.pose.pose if kind is PoseWithCovarianceStamped else message.pose
        pose.position.x, pose.orientation.w = float(rng.normal(0, 0.05)), 1.0
        if kind is PoseWithCovarianceStamped:
            message.pose.covariance = np.eye(6).ravel() * 1e-6
        return message

    return make


def _pose(family: str) -> Callable:
    kind = POSES[family]

    def make(rng, header) -> Fault:
        message = _posed(kind)(rng, header)
        pose = message.pose.pose if kind is PoseWithCovarianceStamped else message.pose
        wrong = _any(("position", "orientation", "zero quaternion", "long quaternion", "frame", "stamp", "covariance"))(
            rng
        )
        if wrong in ("position", "orientation"):
            setattr(getattr(pose, wrong), _any("xyz")(rng), _any(NUMBERS)(rng))
        elif wrong == "zero quaternion":
            pose.orientation.w = 0.0
        elif wrong == "long quaternion":
            pose.orientation.w = _any((2.0, 1e30, 1e-30, 1e308))(rng)
        elif wrong == "frame":
            _frame(rng, message)
        elif wrong == "stamp" or kind is PoseStamped:
            wrong, stamp = (
                "stamp",
                _any(("stamp negative", "stamp zero", "stamp at the maximum", "stamp goes back"))(rng),
            )
            IMAGES[stamp][1](rng, message)
        else:
            message.pose.covariance = [_any(NUMBERS)(rng) for _ in range(36)]
        return Fault(f"{family}: {wrong}", message)

    return make


# ---- serialised bytes -----------------------------------------------------------------------------------------------


def _damaged(rng, message) -> Fault:
    """Flipped bits or absurd lengths in the head of the serialised message, or a cut anywhere."""
    cdr, name = bytearray(serialize_message(message)), type(message).__name__
    way = _any(("bits", "bytes", "length", "cut"))(rng)
    head = min(len(cdr), 120)
    if way == "cut":
        cdr = cdr[: int(rng.integers(0, len(cdr)))]
    elif way == "length":
        place = 4 * int(rng.integers(1, head // 4))
        cdr[place : place + 4] = struct.pack("<I", _any((*HUGE, 2**24, 65_536))(rng))
    else:
        for place in rng.integers(4, head, int(rng.integers(1, 8))):
            cdr[place] = cdr[place] ^ (1 << int(rng.integers(8))) if way == "bits" else int(rng.integers(256))
    return Fault(f"cdr {name}: {way}", bytes(cdr))


_MAKERS = {
    "image": _image,
    "compressed": _compressed,
    "camera_info": _camera_info,
    "mask": _mask,
    **{family: _pose(family) for family in POSES},
}
_GOOD = {
    "image": good_image,
    "compressed": good_compressed,
    "camera_info": lambda rng, header: good_info(header),
    "mask": _good_mask,
    **{family: _posed(kind) for family, kind in POSES.items()},
}


# ---- parameters -----------------------------------------------------------------------------------------------------


def hostile_parameters(rng: np.random.Generator, names: list[str]) -> list[Parameter]:
    """One to five settings: any parameter with any type and value, and names that do not exist."""
    strangers = ["", "nosuch", "depth..min", "model.path.", "x" * 5_000, "кадр"]
    chosen = [_any(names if rng.random() < 0.9 else strangers)(rng) for _ in range(int(rng.integers(1, 6)))]
    return [Parameter(name=name, value=_value(rng)) for name in chosen]


def _value(rng) -> ParameterValue:
    value = ParameterValue(type=int(rng.integers(0, 10)))
    kind = value.type
    if kind == ParameterType.PARAMETER_BOOL:
        value.bool_value = bool(rng.integers(2))
    elif kind == ParameterType.PARAMETER_INTEGER:
        value.integer_value = _any((0, 1, -1, 7, 2**62, -(2**63)))(rng)
    elif kind == ParameterType.PARAMETER_DOUBLE:
        value.double_value = _any((*NUMBERS, 0.01, 0.1, 0.5, 5.0))(rng)
    elif kind == ParameterType.PARAMETER_STRING:
        value.string_value = _any((*WORDS, "zero", "rvl", "bone", "raw", "network", "0x0", "nan"))(rng)
    elif kind == ParameterType.PARAMETER_INTEGER_ARRAY:
        value.integer_array_value = [_any((0, -1, 2**62))(rng) for _ in range(int(rng.integers(0, 4)))]
    elif kind == ParameterType.PARAMETER_DOUBLE_ARRAY:
        value.double_array_value = [_any(NUMBERS)(rng) for _ in range(int(rng.integers(0, 4)))]
    elif kind == ParameterType.PARAMETER_STRING_ARRAY:
        value.string_array_value = [_any(WORDS)(rng) for _ in range(int(rng.integers(0, 4)))]
    return value


# ---- what the node says ---------------------------------------------------------------------------------------------


def depth_complaint(message: Image) -> str | None:
    """None where it is a sound 32FC1 image: every value finite and positive, or NaN (or 0 where that stands for it)."""
    if message.encoding == "16UC1" and len(message.data) == 2 * message.width * message.height:
        return None  # millimetres cannot be infinite
    if message.encoding != "32FC1" or len(message.data) != 4 * message.width * message.height or not len(message.data):
        return f"depth of {message.width}x{message.height} {message.encoding} has {len(message.data)} bytes"
    depth = np.frombuffer(message.data, np.float32)
    if not (np.isnan(depth) | (np.isfinite(depth) & (depth >= 0))).all():
        return "depth holds infinite or negative values"
    return None


def confidence_complaint(message: Image) -> str | None:
    """None where every value is from 0 to 1."""
    value = np.frombuffer(message.data, np.float32) if message.encoding == "32FC1" else np.array([np.nan])
    return None if value.size and ((value >= 0) & (value <= 1)).all() else "confidence is not from 0 to 1 everywhere"


def pose_complaint(message: PoseWithCovarianceStamped) -> str | None:
    """None where pose and covariance are finite and the quaternion has length 1."""
    p, q = message.pose.pose.position, message.pose.pose.orientation
    if not np.isfinite([p.x, p.y, p.z, *message.pose.covariance]).all():
        return "pose holds numbers that are not finite"
    length = math.hypot(q.x, q.y, q.z, q.w)
    return None if abs(length - 1) < 1e-6 else f"the quaternion of pose has the length {length:g}"


def odometry_complaint(message) -> str | None:
    """None where pose, twist and covariances are finite, the quaternion has length 1 and variances are positive."""
    p, q = message.pose.pose.position, message.pose.pose.orientation
    linear, angular = message.twist.twist.linear, message.twist.twist.angular
    numbers = [p.x, p.y, p.z, q.x, q.y, q.z, q.w, *(getattr(v, axis) for v in (linear, angular) for axis in "xyz")]
    covariances = np.array([message.pose.covariance, message.twist.covariance], np.float64)
    if not (np.isfinite(numbers).all() and np.isfinite(covariances).all()):
        return "odometry holds numbers that are not finite"
    if abs(math.hypot(q.x, q.y, q.z, q.w) - 1) > 1e-6:
        return f"the quaternion of odometry has the length {math.hypot(q.x, q.y, q.z, q.w):g}"
    if not (covariances.reshape(2, 6, 6)[:, range(6), range(6)] > 0).all():
        return "odometry has a variance that is not positive"
    return None


def cloud_complaint(message) -> str | None:
    """None where x, y and z of every point are all finite or all NaN."""
    if len(message.data) != message.point_step * message.width * message.height or message.point_step < 16:
        return f"cloud of {message.width}x{message.height} points has {len(message.data)} bytes"
    xyz = np.frombuffer(message.data, np.float32).reshape(-1, message.point_step // 4)[:, :3]
    sound = np.isfinite(xyz).all(axis=1) | np.isnan(xyz).all(axis=1)
    return None if sound.all() else f"{np.count_nonzero(~sound)} points of the cloud are neither finite nor all NaN"


def info_complaint(message: CameraInfo) -> str | None:
    """None where every number is finite and the camera is calibrated."""
    numbers = np.concatenate(
        [np.asarray(values, np.float64) for values in (message.k, message.d, message.r, message.p)]
    )
    return None if np.isfinite(numbers).all() and message.k[0] > 0 else "depth/camera_info holds no sound camera"


def diagnostics_complaint(message) -> str | None:
    """None where no value reads nan or inf and every status has a name."""
    for status in message.status:
        for pair in status.values:
            if pair.value.strip().lower() in ("nan", "inf", "-inf", "none"):
                return f"diagnostics of {status.name} say {pair.key} = {pair.value}"
    return None
