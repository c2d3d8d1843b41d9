"""Depth (H, W) float32 [m] ↔ the bytes of a compressedDepth message: 12 bytes of header, inverse depth in PNG or RVL.

The format is that of image_transport's plugin compressedDepth, whose subscribers read it without being told anything:
int32 0 (inverse depth), float32 A and B, little-endian, then 16-bit codes v with depth = A / (v - B) [m]; v = 0 is
invalid. A and B are ours to choose: `Quantiser` spends all codes on the range in use, where the plugin's own defaults,
made for rooms, lose what is nearer than 0.15 m.

RVL (Wilson, "Fast lossless depth image compression", 2017) is runs of zeros and of differences, in nibbles: three bits,
and one that says whether more follow.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import cv2
import numpy as np

HEADER = struct.Struct("<iff")  # inverse depth is format 0, then A and B
RVL_SIZE = struct.Struct("<II")  # columns, rows
FORMATS = ("png", "rvl")
LARGEST = 65535
PIECE = 1 << 16  # numbers that are worked on at a time, so that they stay in the cache of the processor
NEAREST = 0.001  # m; with a range that begins at zero, inverse depth has no end
RVL_SHARE = 5  # readers take an RVL image of more pixels than this many times its bytes for damaged


class CompressedDepthError(ValueError):
    """Bytes that are no compressedDepth image; the text says what is wrong with them."""


@dataclass(frozen=True)
class Quantiser:
    """depth [m] ↔ uint16: code = A / depth + B, so that `near` is 65535, `far` is 1, and 0 is invalid."""

    near: float  # m
    far: float

    @classmethod
    def of_range(cls, low: float, high: float) -> Quantiser:
        """For depth.min_range and depth.max_range [m]; what is nearer than NEAREST becomes invalid."""
        return cls(max(low, min(NEAREST, high / 2)), high)

    @property
    def a(self) -> float:
        return (LARGEST - 1) / (1 / self.near - 1 / self.far)

    @property
    def b(self) -> float:
        return 1 - self.a / self.far

    def step(self, depth: float) -> float:
        """Distance [m] of two neighbouring codes at this depth [m]; decoding errs by half of it at most."""
        return depth * depth / self.a

    def codes(self, depth: np.ndarray) -> np.ndarray:
        """(H, W) float32 [m] → uint16."""
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.divide(np.float32(self.a), depth)
            codes += np.float32(self.b + 0.5)  # the conversion below cuts off
            valid = (depth >= np.float32(self.near)) & (depth <= np.float32(self.far))
        np.copyto(codes, 0, where=~valid)
        return np.minimum(codes, LARGEST, out=codes).astype(np.uint16)


def encode(depth: np.ndarray, low: float, high: float, kind: str = "png", level: int = 1) -> bytes:
    """Depth (H, W) float32 [m], valid from `low` to `high` [m], to the data of the message; level is PNG's, 0 to 9."""
    quantiser = Quantiser.of_range(low, high)
    codes = quantiser.codes(depth)
    payload = encode_rvl(codes) if kind == "rvl" else _encode_png(codes, level)
    return HEADER.pack(0, quantiser.a, quantiser.b) + payload


def format_of(kind: str) -> str:
    """What the message's `format` says: the encoding that a subscriber gets, and how the bytes are packed."""
    return f"32FC1; compressedDepth {kind}"


def decode(data: bytes, kind: str) -> np.ndarray:
    """Data of a message → depth (H, W) float32 [m], NaN where invalid. Raises CompressedDepthError."""
    if len(data) <= HEADER.size:
        raise CompressedDepthError(f"{len(data)} bytes are too few for a compressedDepth image")
    form, a, b = HEADER.unpack_from(data)
    if form != 0:
        raise CompressedDepthError(f"compressedDepth format {form} is unknown; 0 is inverse depth")
    payload = bytes(data[HEADER.size :])
    codes = decode_rvl(payload) if kind == "rvl" else _decode_png(payload)
    depth = np.full(codes.shape, np.nan, np.float32)
    np.divide(np.float32(a), codes - np.float32(b), out=depth, where=codes > 0)
    return depth


# ---- PNG ------------------------------------------------------------------------------------------------------------


def _encode_png(codes: np.ndarray, level: int) -> bytes:
    # OpenCV's own default is level 1 with one filter for all rows, which is faster than a level that is asked for.
    done, data = cv2.imencode(".png", codes, () if level == 1 else (cv2.IMWRITE_PNG_COMPRESSION, level))
    if not done:
        raise CompressedDepthError(f"OpenCV cannot write a PNG of {codes.shape[1]}x{codes.shape[0]} pixels")
    return data.tobytes()


def _decode_png(payload: bytes) -> np.ndarray:
    codes = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED)
    if codes is None or codes.dtype != np.uint16 or codes.ndim != 2:
        raise CompressedDepthError("the image is no PNG with one channel of 16 bits")
    return codes


# ---- RVL ------------------------------------------------------------------------------------------------------------


def encode_rvl(codes: np.ndarray) -> bytes:
    """(H, W) uint16 → size, then the numbers of zeros, of values, and the values' differences, again and again."""
    height, width = codes.shape
    packed = _pack(_to_nibbles(_numbers(codes.ravel())))
    filler = bytes(max(-(-codes.size // RVL_SHARE) - len(packed), 0))  # nobody reads it, but its length counts
    return RVL_SIZE.pack(width, height) + packed + filler


def decode_rvl(payload: bytes) -> np.ndarray:
    """The inverse. Raises CompressedDepthError."""
    if len(payload) < RVL_SIZE.size:
        raise CompressedDepthError("the RVL image has no size")
    width, height = RVL_SIZE.unpack_from(payload)
    if not 0 < width * height <= RVL_SHARE * len(payload):
        raise CompressedDepthError(f"{len(payload)} bytes cannot be an RVL image of {width}x{height} pixels")
    words = payload[RVL_SIZE.size :]
    numbers = _from_nibbles(_unpack(words[: len(words) // 4 * 4]))
    return _values(numbers, width * height).reshape(height, width)


def _numbers(flat: np.ndarray) -> np.ndarray:
    """Codes (N,) → what RVL writes: for each run zeros, values, and each value's difference with its sign last."""
    present = flat != 0
    edges = np.flatnonzero(present[1:] != present[:-1]) + 1
    bounds = np.concatenate([[0, 0] if present[0] else [0], edges, [flat.size]])
    lengths = np.diff(bounds)
    runs = np.append(lengths, 0) if lengths.size % 2 else lengths  # in turn zeros and values, zeros first
    runs = runs.reshape(-1, 2)
    values = flat[present].astype(np.int32)
    delta = np.diff(values, prepend=np.int32(0))
    starts = np.cumsum(runs[:, 1]) - runs[:, 1] + 2 * np.arange(len(runs))  # of each run in what is written
    numbers = np.empty(values.size + runs.size, np.int32)
    heads = np.zeros(numbers.size, bool)
    heads[starts] = heads[starts + 1] = True
    numbers[heads] = runs.ravel()
    numbers[~heads] = (delta << 1) ^ (delta >> 31)
    return numbers


def _to_nibbles(numbers: np.ndarray) -> np.ndarray:
    """Numbers → nibbles, three bits each from the lowest on; bit 3 says that more follow."""
    pieces = (numbers[start : start + PIECE] for start in range(0, numbers.size, PIECE))
    return np.concatenate([_piece_to_nibbles(piece) for piece in pieces])


def _piece_to_nibbles(rest: np.ndarray) -> np.ndarray:
    largest = int(rest.max())
    columns = max(-(-largest.bit_length() // 3), 1)
    rest = rest.astype(np.uint16 if largest <= LARGEST else np.uint32)
    nibbles, used = np.empty((rest.size, columns), np.uint8), np.ones((rest.size, columns), bool)
    for column in range(columns):
        low, rest = rest & 7, rest >> 3
        more = rest > 0
        nibbles[:, column] = low.astype(np.uint8) | more.view(np.uint8) << 3
        if column + 1 < columns:
            used[:, column + 1] = more
    return nibbles[used]


def _pack(nibbles: np.ndarray) -> bytes:
    """Eight nibbles to a 32-bit word, the first in its highest bits; the word is little-endian."""
    whole = np.zeros(-(-nibbles.size // 8) * 8, np.uint8)
    whole[: nibbles.size] = nibbles
    return (whole[0::2] << 4 | whole[1::2]).view(">u4").astype("<u4").tobytes()


def _unpack(words: bytes) -> np.ndarray:
    pairs = np.frombuffer(words, "<u4").astype(">u4").view(np.uint8)
    return np.stack([pairs >> 4, pairs & 15], 1).ravel()


def _from_nibbles(nibbles: np.ndarray) -> np.ndarray:
    ends = np.flatnonzero(nibbles < 8) + 1
    starts = np.append(0, ends[:-1]) if ends.size else ends
    place = np.arange(ends[-1] if ends.size else 0) - np.repeat(starts, ends - starts)
    if place.size and place.max() > 9:
        raise CompressedDepthError("the RVL image is damaged: a number has more than 30 bits")
    bits = (nibbles[: place.size].astype(np.int64) & 7) << 3 * place
    return np.add.reduceat(bits, starts) if starts.size else bits


def _values(numbers: np.ndarray, size: int) -> np.ndarray:
    """Numbers → codes (size,); Python walks over the runs, numpy over what is in them."""
    codes, place, pixel, last = np.zeros(size, np.uint16), 0, 0, 0
    while pixel < size:
        if place + 2 > numbers.size:
            raise CompressedDepthError(f"the RVL image ends after {pixel} of {size} pixels")
        zeros, values = int(numbers[place]), int(numbers[place + 1])
        differences = numbers[place + 2 : place + 2 + values]
        pixel, place = pixel + zeros + values, place + 2 + values
        if pixel > size or differences.size < values or zeros + values == 0:
            raise CompressedDepthError(f"the RVL image is damaged near pixel {pixel} of {size}")
        found = last + np.cumsum((differences >> 1) ^ -(differences & 1))
        codes[pixel - values : pixel] = found & LARGEST
        last = int(found[-1]) if values else last
    return codes
