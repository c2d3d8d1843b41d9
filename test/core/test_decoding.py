"""Decoding without ROS: anything with the fields of the message does; views where the bytes allow, words where not."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from endomust_core.camera import Camera, CameraError
from endomust_core.decoding import (
    ENCODINGS,
    DecodingError,
    UnknownEncoding,
    camera_from,
    camera_from_info,
    compressed_to_rgb,
    image_to_rgb,
    rgb_from,
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
