"""Decoding without ROS: anything with the fields of the message does; views where the bytes allow, words where not."""

import resource
import struct
from array import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from endomust_core.camera import Camera, CameraError
from endomust_core.decoding import (
    ENCODINGS,
    MAX_PIXELS,
    DecodingError,
    UnknownEncoding,
    camera_from,
    camera_from_info,
    compressed_size,
    compressed_to_rgb,
    depth_from,
    image_to_rgb,
    looks_rectified,
    restamped_cdr,
    rgb_from,
    stamp_ns,
)

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def image(pixels, encoding, padding=0, **changes):
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    fields = {"height": rows.shape[0], "width": pixels.shape[1], "encoding": encoding, "is_bigendian": 0}
    return SimpleNamespace(**{**fields, "step": rows.shape[1], "data": rows.reshape(-1), **changes})


def info(**changes):
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    K, P = Camera(8, 6, 10.0, 11.0, 3.5, 2.5).K, np.array([[9, 0, 3, 0], [0, 9, 2, 0], [0, 0, 1, 0]], float)
    fields = {
        "width": 8,
        "height": 6,
        "distortion_model": "plumb_bob",
        "d": np.zeros(5),
        "k": K.ravel(),
        "p": P.ravel(),
    }
    return SimpleNamespace(**{**fields, "binning_x": 0, "binning_y": 0, "roi": roi, **changes})


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(("encoding", "pixels"), [("rgb8", RGB), ("bgr8", RGB[..., ::-1])])
def test_red_green_and_blue_in_either_order_are_seen_not_copied(encoding, pixels, padding):
    message = image(pixels, encoding, padding)
    rgb = image_to_rgb(message)
    np.testing.assert_array_equal(rgb, RGB)
    assert np.shares_memory(rgb, message.data)
    assert rgb_from(message).flags.c_contiguous


def test_words_of_either_order_and_grey():
    wide = RGB.astype(np.uint16) << 8 | 17
    np.testing.assert_array_equal(image_to_rgb(image(wide.astype("<u2"), "rgb16")), RGB)
    np.testing.assert_array_equal(image_to_rgb(image(wide.astype(">u2"), "rgb16", is_bigendian=1)), RGB)
    np.testing.assert_array_equal(image_to_rgb(image(RGB[..., 0], "mono8")), np.dstack([RGB[..., 0]] * 3))


def test_jpeg_and_png():
    picture = np.full((16, 16, 3), (200, 90, 30), np.uint8)
    for suffix, tolerance in ((".png", 0), (".jpg", 3)):
        data = np.frombuffer(cv2.imencode(suffix, np.ascontiguousarray(picture[..., ::-1]))[1].tobytes(), np.uint8)
        found = compressed_to_rgb(SimpleNamespace(format=suffix, data=data))
        assert np.abs(found.astype(int) - picture).max() <= tolerance
    with pytest.raises(DecodingError, match="has no end marker"):
        compressed_to_rgb(SimpleNamespace(format="jpeg", data=data[:-10]))
    with pytest.raises(DecodingError, match="is a depth image; point the input at a colour topic"):
        compressed_to_rgb(SimpleNamespace(format="32FC1; compressedDepth", data=data))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": 3}, "step is 3; correct step at the source"),
        ({"data": np.zeros(10, np.uint8)}, "the frame is cut short"),
        ({"data": np.zeros(0, np.uint8)}, "has no data"),
        ({"width": 0}, "sends frames without a size"),
        ({"encoding": "nv12", "height": 5}, "nv12 needs an even size"),
    ],
)
def test_damaged_images_are_refused_in_words(changes, words):
    with pytest.raises(DecodingError, match=words):
        image_to_rgb(image(RGB, **{"encoding": "rgb8", **changes}))


def test_an_unknown_encoding_lists_the_known_ones():
    with pytest.raises(UnknownEncoding, match="'8SC9' is not understood; send one of rgb8, bgr8") as error:
        image_to_rgb(image(RGB, "8SC9"))
    assert all(name in str(error.value) for name in ENCODINGS)


def test_camera_info_raw_rectified_cropped_and_binned():
    assert camera_from_info(info(), rectified=False) == Camera(8, 6, 10.0, 11.0, 3.5, 2.5)
    assert camera_from_info(info(), rectified=True) == Camera(8, 6, 9.0, 9.0, 3.0, 2.0)
    roi = SimpleNamespace(x_offset=2, y_offset=2, width=4, height=4)
    assert camera_from_info(info(roi=roi, binning_x=2, binning_y=2), False) == Camera(2, 2, 5.0, 5.5, 0.5, 0.0)
    for changes, words in (({"k": np.zeros(9)}, "uncalibrated"), ({"k": np.full(9, np.inf)}, "not finite")):
        with pytest.raises(CameraError, match=words):
            camera_from_info(info(**changes), rectified=False)


def test_a_fisheye_with_zeros_bends_rays_for_the_node_and_for_data_sets_alike():
    fisheye = info(distortion_model="equidistant", d=[0.0] * 4)
    assert camera_from_info(fisheye, False) == camera_from(fisheye)
    assert camera_from(fisheye).model == "equidistant"
    assert camera_from_info(info(distortion_model="equidistant", d=[]), False).model == "pinhole"


# ---- reduced ----


def packet(data: bytes, kind: str = "jpeg"):
    return SimpleNamespace(format=kind, data=array("B", data))


def picture(width, height):
    v, u = np.mgrid[:height, :width]
    waves = (u / 23, v / 31, (u + v) / 40)
    return np.dstack([127 + 100 * np.sin(wave) for wave in waves]).astype(np.uint8)


def jpeg(rgb, *options):
    return cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95, *options])[1].tobytes()


@pytest.mark.parametrize(
    ("at_least", "factor"),
    [(None, 1), ((643, 1), 1), ((322, 241), 2), ((161, 121), 4), ((160, 122), 2), ((81, 61), 8), ((1, 1), 8)],
)
def test_a_jpeg_is_decoded_no_larger_than_needed(at_least, factor):
    rgb = picture(643, 481)
    found = compressed_to_rgb(packet(jpeg(rgb)), at_least)
    assert found.shape == (-(-481 // factor), -(-643 // factor), 3) and found.dtype == np.uint8
    middle = (np.arange(40, 60) + 0.5) * factor - 0.5  # where a reduced pixel lies in the full image
    u, v = np.meshgrid(middle, middle)
    if factor < 8:
        expected = cv2.remap(rgb, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR)
        assert np.abs(found[40:60, 40:60].astype(int) - expected).max() <= 8


def test_a_png_is_never_reduced():
    data = cv2.imencode(".png", picture(64, 48)[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(compressed_to_rgb(packet(data, "png"), (8, 8)), picture(64, 48))


@pytest.mark.parametrize(
    "data",
    [
        jpeg(picture(83, 47)),
        jpeg(picture(83, 47), cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        cv2.imencode(".png", picture(83, 47))[1].tobytes(),
        b"\xff\xd8\xff\xe1\x00\x08\xff\xc0\x11\x08\x00\x01junk\xff\xff\xff\x01" + jpeg(picture(83, 47))[2:],
    ],
    ids=["jpeg", "progressive", "png", "a frame in its metadata"],
)
def test_the_full_size_stands_in_the_header(data):
    assert compressed_size(packet(data)) == (83, 47)


HUGE_PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 60000, 8, 2, 0, 0, 0) + bytes(40)


def test_a_decompression_bomb_is_refused_before_it_goes_off():
    data = bytearray(jpeg(picture(64, 48)))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    for bomb in (bytes(data), HUGE_PNG):
        for read in (compressed_to_rgb, compressed_size, rgb_from):
            with pytest.raises(DecodingError, match="more than 64 megapixels"):
                read(packet(bomb))
    assert 65535 * 65535 > MAX_PIXELS


def test_a_png_that_lies_about_a_chunk_costs_no_memory():
    data = bytearray(cv2.imencode(".png", picture(40, 24))[1].tobytes())
    place = data.index(b"IDAT")
    data[place - 4 : place] = b"\xaa\x00\x03\xbf"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodingError, match="cannot be decoded"):
        compressed_to_rgb(packet(bytes(data)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # 256 MB; it was 2.8 GB


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xda\x00\x02", b"BM" + bytes(60), HUGE_PNG[:20]])
def test_what_has_no_size_is_refused_in_words(data):
    with pytest.raises(DecodingError, match="cannot be decoded; JPEG and PNG are understood"):
        compressed_size(packet(data))


# ---- hostile ----


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 2**32 - 1, "height": 2**32 - 1}, "more than 64 megapixels"),
        ({"width": 8001, "height": 8000, "encoding": "8SC9"}, "more than 64 megapixels"),
        ({"step": 2**32 - 1}, "the frame is cut short"),
        ({"step": -24}, "with step -24; the source sends frames without a size"),
        ({"step": 2**63, "height": 1}, "with step 9223372036854775808; the source sends frames without a size"),
        ({"height": -6}, "8x-6 with step 24; the source"),
        ({"width": 8.0}, "no sensor_msgs/Image"),
        ({"width": None}, "no sensor_msgs/Image"),
        ({"encoding": 7}, "the encoding is 7, not a name"),
        ({"encoding": ["rgb8"]}, "not a name"),
        ({"encoding": b"rgb8"}, "not a name"),
        ({"data": None}, "holds no bytes"),
        ({"data": "text"}, "holds no bytes"),
        ({"data": [1, 2, 3]}, "holds no bytes"),
        ({"data": np.zeros((144, 2), np.uint8)[:, 0]}, "holds no bytes"),
        ({"encoding": "bayer_rggb8", "width": 2, "height": 2}, "too small to make colours of"),
    ],
)
def test_hostile_images_are_refused_in_words(changes, words):
    with pytest.raises(DecodingError, match=words):
        image_to_rgb(image(RGB, **{"encoding": "rgb8", **changes}))
    with pytest.raises(DecodingError, match="no sensor_msgs/Image"):
        image_to_rgb(SimpleNamespace(data=b"1234"))


def test_an_odd_step_of_words_is_read_all_the_same():
    wide = RGB.astype("<u2") << 8
    np.testing.assert_array_equal(image_to_rgb(image(wide, "rgb16", padding=3)), RGB)


def test_a_colour_picture_is_no_depth():
    data = cv2.imencode(".png", picture(40, 24))[1].tobytes()
    with pytest.raises(DecodingError, match="has colours"):
        depth_from(packet(data, "16UC1; png; metres_per_unit=1e-05"))


NUMBERS = (-1, 0, 1, 2, 3, 5, 7, 8, 9, 16, 24, 25, 48, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 8.0, None)
BUFFERS = (b"", b"x", bytes(1000), array("B", bytes(700)), np.zeros(700, np.uint8), np.zeros(90, np.float64), "x", None)


def mutated_image(rng):
    """A small image in any encoding with one to three fields replaced by something that may not fit."""
    message = image(RGB, str(rng.choice(ENCODINGS)), step=int(rng.choice((8, 16, 24, 32, 48, 64))))
    message.data = np.zeros(int(rng.integers(0, 900)), np.uint8)
    for field in rng.choice(["width", "height", "step", "encoding", "is_bigendian", "data"], rng.integers(1, 4)):
        pools = {"encoding": ("", "rgb8", "x" * 9, 3, None, ("rgb8",)), "data": BUFFERS}
        pool = pools.get(field, NUMBERS if field != "is_bigendian" else (0, 1, 255, -3, None, "x"))
        setattr(message, field, pool[rng.integers(len(pool))])
    return message


def mutated_packet(rng, whole):
    """A JPEG or PNG with bytes changed, cut out or cut off."""
    data = bytearray(whole)
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(0, min(len(data), 700)))
        data[place : place + int(rng.integers(0, 3))] = rng.integers(0, 256, rng.integers(0, 3), np.uint8).tobytes()
    return packet(bytes(data[: int(rng.integers(1, len(data) + 1))]) if rng.random() < 0.1 else bytes(data))


def test_any_mutation_of_an_image_is_a_picture_of_its_size_or_a_decoding_error():
    rng, pictures = np.random.default_rng(0), 0
    for _ in range(4000):
        message = mutated_image(rng)
        try:
            rgb = image_to_rgb(message)
        except DecodingError as error:
            assert len(str(error)) > 20
            continue
        pictures += 1
        assert rgb.shape == (message.height, message.width, 3) and rgb.dtype == np.uint8
        assert int(rgb.sum()) >= 0  # every byte can be read
    assert 200 < pictures < 3500


def test_any_mutation_of_a_packet_is_a_picture_of_its_size_or_a_decoding_error(capfd):
    rng, pictures = np.random.default_rng(0), 0
    wholes = jpeg(picture(40, 24)), cv2.imencode(".png", picture(40, 24))[1].tobytes()
    for turn in range(1500):
        message = mutated_packet(rng, wholes[turn % 2])
        try:
            width, height = compressed_size(message)
            if width * height > 1 << 15:
                continue  # allowed, but slow
            rgb = compressed_to_rgb(message, None if turn % 3 else (10, 6))
        except DecodingError as error:
            assert len(str(error)) > 20
            continue
        pictures += 1
        full = rgb.shape[:2] == (height, width)
        assert full or rgb.shape[:2] in {(-(-height // by), -(-width // by)) for by in (2, 4, 8)}
    assert 200 < pictures < 1400


HOSTILE = (0.0, -0.0, 1.0, -1.0, 8.0, np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 1e-300, 1e-9, 1e9)


def mutated_info(rng):
    """A CameraInfo with some of its fields replaced by something that may not fit."""
    message = info(d=np.array([0.1, -0.05, 0.001, 0.002, 0.0]))
    for _ in range(rng.integers(1, 4)):
        field = rng.choice(["k", "p", "d", "width", "height", "distortion_model", "roi", "binning_x", "binning_y"])
        if field in ("k", "p"):
            numbers = getattr(message, field).copy()
            numbers[rng.integers(9) % max(len(numbers), 1) :][:1] = rng.choice(HOSTILE)
            message.__dict__[field] = numbers if rng.random() < 0.9 else numbers[: rng.integers(0, 9)]
        elif field == "d":
            message.d = rng.choice(HOSTILE, rng.integers(0, 16)) if rng.random() < 0.8 else np.zeros(5)
        elif field == "distortion_model":
            names = (
                "",
                "none",
                "pinhole",
                "plumb_bob",
                "rational_polynomial",
                "equidistant",
                "fisheye",
                "x",
                3,
                None,
                [],
            )
            message.distortion_model = names[rng.integers(len(names))]
        elif field == "roi":
            names = "x_offset", "y_offset", "width", "height"
            message.roi = SimpleNamespace(**{name: NUMBERS[rng.integers(len(NUMBERS))] for name in names})
        else:
            message.__dict__[field] = NUMBERS[rng.integers(len(NUMBERS))]
    return message


@pytest.mark.filterwarnings("error")
def test_any_mutation_of_a_camera_info_is_a_camera_or_a_camera_error():
    rng, cameras = np.random.default_rng(0), 0
    for _ in range(4000):
        message = mutated_info(rng)
        try:
            camera = camera_from_info(message, rectified=bool(rng.integers(2)))
        except CameraError as error:
            assert len(str(error)) > 20
            continue
        cameras += 1
        if camera.width * camera.height < 1 << 16:
            assert camera.rays().shape == (camera.height, camera.width, 2)
            assert camera.project(np.array([[0.0, 0.0, 0.1], [1e300, 1.0, 1e-300], [1.0, 1.0, -1.0]])).shape == (3, 2)
    assert 300 < cameras < 3500


def test_an_image_of_a_lens_that_cannot_be_says_what_to_look_at():
    with pytest.raises(CameraError, match="is K in pixels and for this size"):
        camera_from_info(info(k=Camera(8, 6, 1e-9, 1e-9, 3.5, 2.5).K.ravel()), rectified=False)
    with pytest.raises(CameraError, match="no sensor_msgs/CameraInfo"):
        camera_from_info(SimpleNamespace(), rectified=False)


@pytest.mark.parametrize(
    ("topic", "rectified"),
    [
        ("/ecm/left/image_rect", True),
        ("/ecm/left/image_rect_color/compressed", True),
        ("image_rect_mono", True),
        ("/ecm/left/image_raw", False),
        ("/image_rect/image_raw", False),
        ("/ecm/image_rect/compressedDepth", False),
        ("/compressed", False),
        ("", False),
    ],
)
def test_a_topic_of_rectified_images_is_known_by_its_name(topic, rectified):
    assert looks_rectified(topic) is rectified
    assert looks_rectified(topic, info()) is rectified
    assert not looks_rectified(topic, info(p=np.zeros(12)))  # K is all that this driver fills in
    assert looks_rectified(topic, info(p=np.zeros(12), d=np.ones(5))) is rectified  # no: it forgot P, and will be told


def test_stamps_before_1970_and_beyond_the_header():
    stamp = SimpleNamespace(sec=np.int32(-5), nanosec=np.uint32(999_999_999))
    assert stamp_ns(SimpleNamespace(header=SimpleNamespace(stamp=stamp))) == -4_000_000_001
    cdr = b"\x00\x01\x00\x00" + bytes(12)
    assert restamped_cdr(cdr, -4_000_000_001)[4:12] == struct.pack("<iI", -5, 999_999_999)
    with pytest.raises(DecodingError, match="does not fit a ROS header"):
        restamped_cdr(cdr, 2**63)
