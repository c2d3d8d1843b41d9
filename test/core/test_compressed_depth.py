"""compressedDepth: what a reader made from the plugin's format alone sees, hand-computed bytes, damaged ones."""

import struct

import cv2
import numpy as np
import pytest

from endomust_core.compressed_depth import (
    CompressedDepthError,
    Quantiser,
    decode,
    decode_rvl,
    encode,
    encode_rvl,
    format_of,
)

# ---- a reader that shares nothing with ours: one nibble, one pixel at a time ---------------------------------------


def plugin_reads(data: bytes, kind: str) -> np.ndarray:
    """Depth [m] as a subscriber of image_transport gets it: float32 arithmetic, zero is not a number."""
    form, a, b = struct.unpack("<iff", data[:12])
    assert form == 0
    if kind == "rvl":
        codes = rvl_read(data[12:])
    else:
        codes = cv2.imdecode(np.frombuffer(data[12:], np.uint8), cv2.IMREAD_UNCHANGED)
    depth = [np.nan if v == 0 else np.float32(a) / (np.float32(v) - np.float32(b)) for v in codes.ravel()]
    return np.array(depth, np.float32).reshape(codes.shape)


def rvl_read(data: bytes) -> np.ndarray:
    columns, rows = struct.unpack("<II", data[:8])
    assert columns * rows <= 5 * len(data), "readers take this for damaged"
    words = struct.unpack(f"<{(len(data) - 8) // 4}I", data[8 : 8 + (len(data) - 8) // 4 * 4])
    nibbles = iter([word >> shift & 15 for word in words for shift in range(28, -1, -4)])

    def number():
        value = shift = 0
        while True:
            nibble = next(nibbles)
            value |= (nibble & 7) << shift
            shift += 3
            if nibble < 8:
                return value

    codes, last = [], 0
    while len(codes) < columns * rows:
        codes += [0] * number()
        for _ in range(number()):
            folded = number()
            last += folded // 2 if folded % 2 == 0 else -(folded + 1) // 2
            codes.append(last)
    return np.array(codes, np.uint16).reshape(rows, columns)


@pytest.mark.parametrize("kind", ["png", "rvl"])
def test_a_ramp_from_one_millimetre_to_half_a_metre_survives(kind):
    ramp = np.geomspace(0.001, 0.5, 64 * 48).astype(np.float32).reshape(48, 64)
    read = plugin_reads(encode(ramp, 0.001, 0.5, kind), kind)
    half_a_step = np.array([[Quantiser(0.001, 0.5).step(d) / 2 for d in row] for row in ramp])
    assert np.isfinite(read).all() and (np.abs(read - ramp) <= half_a_step * 1.02).all()
    assert np.array_equal(decode(encode(ramp, 0.001, 0.5, kind), kind), read)


def test_constants_and_step_are_those_computed_by_hand():
    """1 mm to 0.5 m: A = 65534 / (1000 - 2), B = 1 - 2 A; a step at 5 cm is 0.05² / A."""
    quantiser = Quantiser.of_range(0.001, 0.5)
    assert np.isclose(quantiser.a, 65.66533, rtol=1e-6) and np.isclose(quantiser.b, -130.33066, rtol=1e-6)
    assert np.isclose(quantiser.step(0.05), 3.8072e-5, rtol=1e-4)  # 0.04 mm
    codes = quantiser.codes(np.array([[0.001, 0.5, 0.002, 0.25]], np.float32))
    assert codes.tolist() == [[65535, 1, 32702, 132]]  # 65.66533 / 0.002 - 130.33066 = 32702.3, at 0.25 m 132.3


def test_the_default_range_of_the_node_is_coded_finely():
    quantiser = Quantiser.of_range(0.003, 0.5)
    assert quantiser.step(0.05) < 13e-6 and quantiser.step(0.5) < 1.3e-3


def test_what_is_no_depth_is_not_a_number_for_the_reader():
    depth = np.array([[np.nan, np.inf, -np.inf, 0.0], [-0.1, 0.0029, 0.5001, 0.1]], np.float32)
    for kind in ("png", "rvl"):
        read = plugin_reads(encode(depth, 0.003, 0.5, kind), kind)
        assert np.isnan(read.ravel()[:-1]).all() and np.isclose(read[1, 3], 0.1, rtol=1e-3)


def test_a_range_that_begins_at_zero_is_cut_at_a_millimetre():
    assert Quantiser.of_range(0.0, 0.5) == Quantiser(0.001, 0.5)
    assert Quantiser.of_range(0.0, 0.001) == Quantiser(0.0005, 0.001)  # and never turned around
    read = plugin_reads(encode(np.array([[0.0005, 0.002]], np.float32), 0.0, 0.5), "png")
    assert np.isnan(read[0, 0]) and np.isclose(read[0, 1], 0.002, rtol=1e-4)


def test_header_and_format_are_those_of_the_plugin():
    data = encode(np.full((2, 3), 0.1, np.float32), 0.001, 0.5)
    assert data[:4] == b"\0\0\0\0" and data[12:16] == b"\x89PNG"
    assert [format_of(kind) for kind in ("png", "rvl")] == ["32FC1; compressedDepth png", "32FC1; compressedDepth rvl"]


@pytest.mark.parametrize("level", [0, 1, 9])
def test_every_level_of_png_is_lossless(level):
    depth = np.random.default_rng(1).uniform(0.01, 0.4, (20, 30)).astype(np.float32)
    assert encode(depth, 0.003, 0.5, level=level) and np.array_equal(
        decode(encode(depth, 0.003, 0.5, level=level), "png"), decode(encode(depth, 0.003, 0.5, "rvl"), "rvl")
    )


# ---- RVL ------------------------------------------------------------------------------------------------------------


def test_rvl_by_hand():
    """0 0 5 4 | 0: two zeros, two values (+5 → 10, -1 → 1), one zero, no value; then the last word is filled up.

    10 is 2 with more, then 1. Nibbles 2 2 A 1 1 1 0 → word 0x22A11100, little-endian.
    """
    data = encode_rvl(np.array([[0, 0, 5, 4, 0]], np.uint16))
    assert data == struct.pack("<II", 5, 1) + bytes.fromhex("0011a122")


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((3, 4)),
        np.full((3, 4), 65535),
        np.array([[65535, 1, 65535, 0, 0, 0, 1, 65535]]),
        np.array([[7]]),
        np.array([[0]]),
        np.tile([0, 9], (5, 7)),
    ],
    ids=["nothing", "all alike", "far jumps", "one", "one zero", "every second"],
)
def test_rvl_of_small_worlds(codes):
    codes = codes.astype(np.uint16)
    assert np.array_equal(rvl_read(encode_rvl(codes)), codes)
    assert np.array_equal(decode_rvl(encode_rvl(codes)), codes)


def test_rvl_of_many_pieces():
    """More pixels than are worked on at a time, with holes of every length and jumps of every size."""
    random = np.random.default_rng(2)
    values = random.integers(1, 2 ** random.integers(1, 17, (300, 400)))
    codes = (values * (random.random(values.shape) < 0.7)).astype(np.uint16)
    assert np.array_equal(rvl_read(encode_rvl(codes)), codes)
    assert np.array_equal(decode_rvl(encode_rvl(codes)), codes)


def test_an_image_without_depth_is_long_enough_for_careful_readers():
    """Three nibbles would do; readers refuse an image of more than five pixels a byte."""
    data = encode_rvl(np.zeros((480, 640), np.uint16))
    assert 5 * len(data) >= 480 * 640 and not rvl_read(data).any()


@pytest.mark.parametrize(
    "data, words",
    [
        (b"\0" * 12, "too few"),
        (struct.pack("<iff", 3, 1.0, 1.0) + b"x" * 20, "format 3 is unknown"),
        (struct.pack("<iff", 0, 1.0, 1.0) + b"x" * 4, "has no size"),
        (struct.pack("<iffII", 0, 1.0, 1.0, 1000, 1000), "cannot be an RVL image of 1000x1000"),
        (struct.pack("<iffIII", 0, 1.0, 1.0, 3, 3, 0x00000000), "damaged near pixel 0"),
        (struct.pack("<iffIII", 0, 1.0, 1.0, 3, 3, 0x77000000), "damaged near pixel 14 of 9"),
        (struct.pack("<iffIII", 0, 1.0, 1.0, 3, 3, 0x01010101), "ends after 3 of 9"),
        (struct.pack("<iffIIII", 0, 1.0, 1.0, 3, 3, 0xFFFFFFFF, 0xFFFF0000), "more than 30 bits"),
    ],
)
def test_damaged_rvl_is_refused_in_words(data, words):
    with pytest.raises(CompressedDepthError, match=words):
        decode(data, "rvl")


def test_a_png_of_eight_bits_is_refused():
    picture = cv2.imencode(".png", np.zeros((3, 3), np.uint8))[1].tobytes()
    with pytest.raises(CompressedDepthError, match="16 bits"):
        decode(struct.pack("<iff", 0, 1.0, 1.0) + picture, "png")
