"""Every image encoding to RGB and back, damaged messages, cameras and clouds, against values worked out by hand."""

import array

import cv2
import numpy as np
import pytest

pytest.importorskip("sensor_msgs", reason="needs the ROS message packages: pip install 'endomust_ros[ros]'")

from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from endomust_core.camera import Camera, CameraError
from endomust_core.odometry import Odometry, se3, so3_exp, to_body
from endomust_ros import messages
from endomust_ros.messages import ImageError, compressed_to_rgb, image_to_rgb

HEADER = Header(frame_id="camera")
HEADER.stamp.sec, HEADER.stamp.nanosec = 12, 345678901
RED, GREEN, BLUE = (200, 20, 30), (10, 180, 40), (15, 25, 220)
RGB = np.array([[RED, GREEN], [BLUE, RED]], np.uint8).repeat(8, 0).repeat(8, 1)  # (16, 16, 3), four squares
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
CAMERA = Camera(16, 12, 20.0, 21.0, 7.0, 6.0)


def image(pixels: np.ndarray, encoding: str, padding: int = 0, **fields) -> Image:
    """A message of rows of bytes, each followed by `padding` bytes of rubbish."""
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    message = Image(header=HEADER, height=rows.shape[0], width=pixels.shape[1], encoding=encoding, step=rows.shape[1])
    message.data = array.array("B", rows.tobytes())
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def bayer(pattern: str) -> np.ndarray:
    """RGB seen through a colour filter whose top left 2x2 is `pattern`."""
    mosaic = np.empty(RGB.shape[:2], np.uint8)
    for place, colour in enumerate(pattern):
        row, column = divmod(place, 2)
        mosaic[row::2, column::2] = RGB[row::2, column::2, "rgb".index(colour)]
    return mosaic


EXACT = {
    "rgb8": RGB,
    "bgr8": RGB[..., ::-1],
    "rgba8": np.dstack([RGB, GREY]),
    "bgra8": np.dstack([RGB[..., ::-1], GREY]),
    "rgb16": RGB.astype("<u2") << 8 | 77,
    "bgr16": RGB[..., ::-1].astype("<u2") << 8 | 77,
    "rgba16": np.dstack([RGB, GREY]).astype("<u2") << 8,
    "bgra16": np.dstack([RGB[..., ::-1], GREY]).astype("<u2") << 8,
}


@pytest.mark.parametrize("padding", [0, 14])
@pytest.mark.parametrize("encoding", EXACT)
def test_colour_encodings_are_exact_with_and_without_padding(encoding, padding):
    assert np.array_equal(image_to_rgb(image(EXACT[encoding], encoding, padding)), RGB)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1", "mono16"])
@pytest.mark.parametrize("padding", [0, 6])
def test_grey_goes_to_all_three_channels(encoding, padding):
    pixels = GREY.astype("<u2") << 8 if encoding == "mono16" else GREY
    assert np.array_equal(image_to_rgb(image(pixels, encoding, padding)), np.dstack([GREY] * 3))


@pytest.mark.parametrize("encoding", ["rgb16", "mono16"])
def test_words_are_read_in_the_order_that_the_message_says(encoding):
    expected = RGB if encoding == "rgb16" else np.dstack([GREY] * 3)
    words = (RGB if encoding == "rgb16" else GREY).astype(np.uint16) << 8
    assert np.array_equal(image_to_rgb(image(words.astype(">u2"), encoding, is_bigendian=1)), expected)
    assert not np.array_equal(image_to_rgb(image(words.astype(">u2"), encoding, is_bigendian=0)), expected)


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns_give_the_colour_in_the_middle_of_each_square(pattern, size):
    mosaic = bayer(pattern) if size == 8 else bayer(pattern).astype("<u2") << 8
    rgb = image_to_rgb(image(mosaic, f"bayer_{pattern}{size}"))
    for v, u in ((4, 4), (4, 12), (12, 4), (12, 12)):
        assert np.abs(rgb[v, u].astype(int) - RGB[v, u]).max() <= 1


def yuv(rgb) -> np.ndarray:
    """(H, W, 3) Y, U, V of BT.601 in the video range, by the formula."""
    r, g, b = np.moveaxis(rgb.astype(float) / 255, 2, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    u, v = (b - y) / 1.772, (r - y) / 1.402
    return np.round(np.dstack([16 + 219 * y, 128 + 224 * u, 128 + 224 * v])).astype(np.uint8)


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21"])
@pytest.mark.parametrize("padding", [0, 4])
def test_video_encodings_are_near_the_true_colour(encoding, padding):
    y, u, v = np.moveaxis(yuv(RGB), 2, 0)
    if encoding.startswith("nv"):
        pair = (u, v) if encoding == "nv12" else (v, u)
        chroma = np.dstack([plane[::2, ::2] for plane in pair]).reshape(8, 16)
        message = image(np.vstack([y, chroma]), encoding, padding, height=16)
    else:
        chroma = np.where(np.arange(16) % 2, v, u)
        pair = (y, chroma) if encoding in ("yuv422_yuy2", "yuyv") else (chroma, y)
        message = image(np.dstack(pair), encoding, padding)
    assert np.abs(image_to_rgb(message).astype(int) - RGB).max() <= 3


def test_red_green_blue_and_its_reverse_are_not_copied():
    for encoding, pixels in (("rgb8", RGB), ("bgr8", RGB[..., ::-1])):
        message = image(pixels, encoding)
        assert np.shares_memory(image_to_rgb(message), np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"width": 0}, "the image is 0x16"),
        ({"height": 0}, "the image is 16x0"),
        ({"data": array.array("B")}, "has no data"),
        ({"data": array.array("B", bytes(767))}, "needs 768 bytes, 767 came"),
        ({"step": 47}, "takes 48 bytes, but step is 47"),
        ({"step": 0}, "but step is 0"),
        ({"encoding": "32FC1"}, "encoding '32FC1' is not understood"),
        ({"encoding": "nonsense"}, "send one of rgb8, bgr8"),
        ({"encoding": ""}, "encoding '' is not understood"),
        ({"encoding": "yuyv", "width": 15}, "the width 15 cannot be odd"),
        ({"encoding": "nv12", "height": 15}, "needs an even size"),
        ({"encoding": "nv12", "height": 22}, "the frame is cut short"),
        ({"encoding": "rgb16"}, "takes 96 bytes, but step is 48"),
    ],
)
def test_a_damaged_image_is_refused_in_words(fields, words):
    if fields.get("encoding", "").startswith(("32", "non")) and _cv_bridge():
        pytest.skip("cv_bridge decides here")
    with pytest.raises(ImageError, match=words.replace("(", r"\(")):
        image_to_rgb(image(RGB, **{"encoding": "rgb8", **fields}))


def test_the_padding_of_the_last_row_may_be_missing():
    message = image(RGB, "rgb8", padding=10)
    message.data = message.data[:-10]
    assert np.array_equal(image_to_rgb(message), RGB)


def _cv_bridge():
    try:
        from cv_bridge import CvBridge

        return CvBridge()
    except ImportError:
        return None


def test_our_conversions_agree_with_cv_bridge():
    bridge = _cv_bridge() or pytest.skip("cv_bridge is not installed")
    for encoding, pixels in EXACT.items():
        message = image(pixels, encoding)
        assert np.array_equal(image_to_rgb(message), bridge.imgmsg_to_cv2(message, "rgb8")), encoding


# ---- compressed -----------------------------------------------------------------------------------------------------

PNG = cv2.imencode(".png", RGB[..., ::-1])[1].tobytes()
JPEG = cv2.imencode(".jpg", RGB[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def packet(data: bytes, kind: str = "jpeg") -> CompressedImage:
    message = CompressedImage(header=HEADER, format=kind)
    message.data = array.array("B", data)
    return message


def test_png_is_exact_and_jpeg_is_near():
    assert np.array_equal(compressed_to_rgb(packet(PNG, "png")), RGB)
    assert np.abs(compressed_to_rgb(packet(JPEG))[4:12:8, 4:12:8].astype(int) - RGB[4:12:8, 4:12:8]).max() < 8
    padded = compressed_to_rgb(packet(JPEG + bytes(30), "rgb8; jpeg compressed bgr8"))  # some encoders fill up a block
    assert np.array_equal(padded, compressed_to_rgb(packet(JPEG)))


@pytest.mark.parametrize(
    "message, words",
    [
        (packet(b""), "has no data"),
        (packet(b"no picture at all"), "cannot be decoded"),
        (packet(JPEG[:-200]), "has no end marker"),
        (packet(JPEG[:100] + b"\xff\xd9"), "cannot be decoded"),
        (packet(PNG[:40], "png"), "cannot be decoded"),
        (packet(PNG, "16UC1; compressedDepth png"), "is a depth image"),
    ],
    ids=["empty", "noise", "jpeg cut short", "jpeg without a body", "png cut short", "depth"],
)
def test_a_damaged_packet_is_refused_in_words(message, words):
    with pytest.raises(ImageError, match=words):
        compressed_to_rgb(message)


# ---- cameras --------------------------------------------------------------------------------------------------------


def info(**fields) -> CameraInfo:
    message = CameraInfo(width=16, height=12, distortion_model="plumb_bob", d=[0.1, -0.05, 0.001, 0.002, 0.0])
    message.k = [20.0, 0.0, 7.0, 0.0, 21.0, 6.0, 0.0, 0.0, 1.0]
    message.p = [18.0, 0.0, 7.5, 0.0, 0.0, 18.0, 5.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def test_raw_images_use_k_and_d_and_rectified_ones_use_p():
    raw, rectified = messages.camera_from_info(info(), False), messages.camera_from_info(info(), True)
    assert raw == Camera(16, 12, 20.0, 21.0, 7.0, 6.0, "plumb_bob", (0.1, -0.05, 0.001, 0.002, 0.0))
    assert rectified == Camera(16, 12, 18.0, 18.0, 7.5, 5.5)


@pytest.mark.parametrize("d", [[], [0.0] * 5])
def test_no_distortion_is_a_pinhole_under_every_name(d):
    assert messages.camera_from_info(info(d=d), False) == Camera(16, 12, 20.0, 21.0, 7.0, 6.0)


def test_region_and_binning_are_applied():
    message = info(d=[], binning_x=2, binning_y=2)
    message.roi.x_offset, message.roi.y_offset, message.roi.width, message.roi.height = 4, 2, 8, 6
    camera = messages.camera_from_info(message, False)
    assert camera == Camera(16, 12, 20.0, 21.0, 7.0, 6.0).cropped(4, 2, 8, 6).resized(4, 3)


@pytest.mark.parametrize(
    "fields, rectified, words",
    [
        ({"k": [0.0] * 9}, False, r"uncalibrated \(K\[0\] is 0\)"),
        ({"p": [0.0] * 12}, True, r"uncalibrated \(P\[0\] is 0\)"),
        ({"k": [float("nan")] * 9}, False, "numbers in K that are not finite"),
        ({"d": [float("nan")] * 5}, False, "NaN"),
        ({"width": 0}, False, "is not positive"),
        ({"distortion_model": "magic"}, False, "the distortion model 'magic' is unknown"),
        ({"d": [0.1, 0.2]}, False, "takes 0 or 4 or 5"),
    ],
)
def test_an_unusable_calibration_is_refused_in_words(fields, rectified, words):
    with pytest.raises(CameraError, match=words):
        messages.camera_from_info(info(**fields), rectified)


@pytest.mark.parametrize("camera", [CAMERA, messages.camera_from_info(info(), False)], ids=["pinhole", "distorted"])
def test_camera_info_survives_the_way_there_and_back(camera):
    message = messages.camera_info_message(camera, HEADER)
    assert messages.camera_from_info(message, False) == camera and message.header == HEADER
    assert messages.camera_from_info(message, True) == camera.pinhole()


# ---- out ------------------------------------------------------------------------------------------------------------

DEPTH = np.linspace(0.02, 0.2, 12 * 16, dtype=np.float32).reshape(12, 16)
DEPTH[3, 5] = np.nan
PICTURE = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)


def test_depth_image_keeps_every_bit():
    message = messages.depth_to_image(DEPTH, HEADER)
    assert (message.encoding, message.height, message.width, message.step) == ("32FC1", 12, 16, 64)
    assert message.data.tobytes() == DEPTH.tobytes() and message.header == HEADER


@pytest.mark.parametrize("flip", [False, True], ids=["rgb", "bgr seen as rgb"])
def test_pictures_keep_every_bit(flip):
    rgb = np.ascontiguousarray(PICTURE[..., ::-1])[..., ::-1] if flip else PICTURE
    assert messages.rgb_to_image(rgb, HEADER).data.tobytes() == PICTURE.tobytes()
    assert messages.color_to_image(PICTURE, HEADER).encoding == "bgr8"


def test_memory_of_the_last_message_is_used_again_only_where_it_fits():
    first = messages.depth_to_image(DEPTH, HEADER)
    memory = first.data.buffer_info()[0]
    again = messages.depth_to_image(DEPTH * 2, HEADER, first)
    assert again.data.buffer_info()[0] == memory and again.data.tobytes() == (DEPTH * 2).tobytes()
    smaller = messages.depth_to_image(DEPTH[:6], HEADER, again)
    assert (smaller.height, len(smaller.data)) == (6, 6 * 64)


def test_data_is_an_array_of_bytes_which_every_distribution_sends_fast():
    for message in (messages.depth_to_image(DEPTH, HEADER), _cloud(DEPTH, PICTURE)):
        assert isinstance(message.data, array.array) and message.data.typecode == "B"


def _cloud(depth, rgb, camera=CAMERA, into=None):
    return messages.cloud_message(depth, rgb, camera, HEADER, into)


def _points(message) -> np.ndarray:
    return np.frombuffer(message.data, np.float32).reshape(message.height, message.width, 4)


def test_cloud_is_the_back_projection_with_colour():
    message = _cloud(DEPTH, PICTURE)
    assert np.allclose(_points(message)[..., :3], CAMERA.back_project(DEPTH), atol=1e-8, equal_nan=True)
    assert np.isnan(_points(message)[3, 5, :3]).all()
    bits = np.ascontiguousarray(_points(message)[..., 3]).view(np.uint32)
    assert np.array_equal(np.dstack([bits >> 16, bits >> 8 & 255, bits & 255]), PICTURE)
    assert (message.point_step, message.row_step, message.is_dense) == (16, 256, False)


def test_colour_of_a_point_is_never_a_nan():
    """A reader that skips points with a NaN would lose all red tissue if the unused byte were 255."""
    white = np.full((12, 16, 3), 255, np.uint8)
    assert np.isfinite(_points(_cloud(np.full((12, 16), 0.1, np.float32), white))).all()


def test_cloud_of_a_mirrored_view_and_of_used_memory_is_the_same():
    first = _cloud(DEPTH, PICTURE)
    expected = first.data.tobytes()
    mirrored = np.ascontiguousarray(PICTURE[..., ::-1])[..., ::-1]
    assert _cloud(DEPTH, mirrored).data.tobytes() == expected
    memory = first.data.buffer_info()[0]
    _cloud(DEPTH * 3, 255 - PICTURE, into=first)
    again = _cloud(DEPTH, PICTURE, into=first)
    assert again.data.tobytes() == expected and again.data.buffer_info()[0] == memory


def test_a_pixel_without_a_ray_gives_no_point():
    wide = Camera(16, 12, 4.0, 4.0, 7.5, 5.5, "plumb_bob", (-0.4, 0.05, 0.0, 0.0, 0.0))
    missing = np.isnan(wide.rays()[..., 0])
    assert missing.any() and not missing.all()
    points = _points(_cloud(np.full((12, 16), 0.1, np.float32), PICTURE, wide))
    assert np.isnan(points[missing][:, :3]).all() and np.isfinite(points[~missing]).all()


@pytest.mark.parametrize("stride", [2, 3, 5])
def test_a_thinned_cloud_is_every_nth_point_of_the_full_one(stride):
    full = _points(_cloud(DEPTH, PICTURE)).view(np.uint32)[::stride, ::stride]
    thin = messages.cloud_message(DEPTH, PICTURE, CAMERA, HEADER, stride=stride)
    assert np.array_equal(_points(thin).view(np.uint32), full)


def test_cloud_agrees_with_sensor_msgs_py():
    reader = pytest.importorskip("sensor_msgs_py.point_cloud2")
    read = reader.read_points(_cloud(DEPTH, PICTURE), ("x", "y", "z"), skip_nans=True)
    expected = CAMERA.back_project(DEPTH).reshape(-1, 3)
    assert np.allclose(
        np.column_stack([read[name] for name in "xyz"]), expected[np.isfinite(expected[:, 0])], atol=1e-8
    )


def test_odometry_and_transform_carry_the_pose():
    odometry = Odometry()
    odometry.step(None, 1.0)
    motion = se3(so3_exp(np.array([0.0, 0.0, np.pi / 10])), np.array([0.001, 0.002, 0.003]))
    state = to_body(odometry.step(motion, 1.1))
    message = messages.odometry_message(state, HEADER.stamp, "odom", "camera")
    position = message.pose.pose.position
    assert np.allclose([position.x, position.y, position.z], [0.003, -0.001, -0.002])  # forward, left, up
    assert message.header.stamp == HEADER.stamp and message.child_frame_id == "camera"
    assert np.allclose(np.reshape(message.pose.covariance, (6, 6)), state.pose_covariance)
    assert np.isclose(message.twist.twist.angular.z, np.pi)
    transform = messages.transform_message(state.T_odom_camera, HEADER.stamp, "odom", "camera")
    assert transform.transform.rotation == message.pose.pose.orientation
    assert (transform.transform.translation.x, transform.header.frame_id) == (position.x, "odom")
