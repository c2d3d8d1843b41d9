"""Files of data sets → arrays: images, 16-bit and float depth, poses, exact frames of a video. DataError in words."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import cv2
import numpy as np

from endomust_core.data import DataError
from endomust_core.odometry import matrix_from_quaternion, se3

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm")
MIRROR_Y = np.diag([1.0, -1.0, 1.0, 1.0])  # Unity's left-handed axes (y up) ↔ those of a camera (y down)
ROTATION_TOLERANCE = 1e-2  # files carry five or six digits


def decode_image(data: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Bytes of an image file → (H,W,3) RGB or, with IMREAD_UNCHANGED, its pixels; DataError where cut short or broken.

    OpenCV fills the missing part of a cut JPEG or PNG with grey and says nothing, so the ends are checked here.
    """
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-1024:]:
        raise DataError("this JPEG is cut short")
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        _check_png(data)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    if pixels is None:
        raise DataError("this does not decode as an image")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if flag == cv2.IMREAD_COLOR else pixels


def read_image(path: Path, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """An image file → what `decode_image` gives; DataError with its name."""
    try:
        return decode_image(path.read_bytes(), flag)
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path.parent.name}/{path.name} is missing") from None


def read_depth(path: Path, unit: float, unknown: tuple[int, ...] = (0,)) -> np.ndarray:
    """A 16-bit image → (H,W) float32 depth [m], value · `unit`; NaN at the values that mean unknown."""
    units = read_image(path, cv2.IMREAD_UNCHANGED)
    if units.dtype != np.uint16:
        raise DataError(f"{path.name} is not a 16-bit PNG or TIFF but {units.dtype}")
    units = units if units.ndim == 2 else units[..., 0]
    depth = (units * np.float64(unit)).astype(np.float32)
    depth[np.isin(units, unknown)] = np.nan
    return depth


def same_size(depth: np.ndarray, rgb: np.ndarray, name: str) -> np.ndarray:
    """The depth itself; DataError where its size is not that of the image."""
    if depth.shape[:2] != rgb.shape[:2]:
        sizes = f"{depth.shape[1]}x{depth.shape[0]}, its image {rgb.shape[1]}x{rgb.shape[0]}"
        raise DataError(f"{name} is {sizes}; both must have one size")
    return depth


def positive(depth: np.ndarray) -> np.ndarray:
    """Depth with everything that is no length (NaN, infinity, 0, negative) as NaN, float32."""
    depth = np.asarray(depth, np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))


def images_of(folder: Path) -> list[Path]:
    """The image files of a folder by the numbers in their names; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    found = (file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(found, key=lambda file: natural(file.name))


def natural(name: str) -> list:
    """Sort key with frame9 before frame10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def number_in(name: str) -> int | None:
    """The last number in a file name without suffix: frame_0012 → 12."""
    found = re.findall(r"\d+", name)
    return int(found[-1]) if found else None


def one_name(folder: Path, root: Path) -> str:
    """The path of a sequence below the root, with slashes; the root's own name where it is the sequence itself."""
    return folder.name if folder == root else folder.relative_to(root).as_posix()


def pose_of(R: np.ndarray, t: np.ndarray) -> np.ndarray | None:
    """(3,3), (3,) [m] → (4,4), its rotation made exact; None where the numbers are no rigid motion (NaN, all 0)."""
    R, t = np.asarray(R, np.float64), np.asarray(t, np.float64)
    if not (np.isfinite(R).all() and np.isfinite(t).all()):
        return None
    if np.abs(R @ R.T - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(R) < 0:
        return None
    U, _, Vt = np.linalg.svd(R)
    return se3(U @ Vt, t)


def pose_from_quaternion(t: np.ndarray, q: np.ndarray) -> np.ndarray | None:
    """Translation [m] and quaternion x y z w → (4,4); None where they are no rigid motion."""
    q = np.asarray(q, np.float64)
    length = np.linalg.norm(q)
    if not np.isfinite(length) or abs(length - 1) > ROTATION_TOLERANCE:
        return None
    return pose_of(matrix_from_quaternion(q / length), t)


def read_tum(path: Path) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """`stamp x y z qx qy qz qw` per line → stamps (N,), poses (4,4) [m] or None; DataError where it is no such list."""
    try:
        rows = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path} is no list of poses ({error}); expected stamp x y z qx qy qz qw per line") from error
    if rows.size and rows.shape[1] != 8:
        raise DataError(f"{path} has {rows.shape[1]} columns; expected stamp x y z qx qy qz qw")
    rows = rows.reshape(-1, 8)
    return rows[:, 0], [pose_from_quaternion(row[1:4], row[4:]) for row in rows]


def read_numbers(path: Path, columns: int, at_least: int = 0) -> np.ndarray:
    """A text file of numbers, separated by spaces or commas → (N,columns), lines with other words or counts left out.

    DataError where fewer than `at_least` lines remain.
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        parts = line.replace(",", " ").replace(";", " ").split()
        try:
            row = [float(part) for part in parts]
        except ValueError:
            continue
        if len(row) == columns:
            rows.append(row)
    if len(rows) < at_least:
        raise DataError(
            f"{path} holds {len(rows)} lines of {columns} numbers, {at_least} are needed; download it again"
        )
    return np.array(rows, np.float64).reshape(-1, columns)


class VideoFrames:
    """The frames of one video by number, exactly: forward by decoding, back by starting again (slow, never wrong)."""

    def __init__(self, path: Path):
        self.path = path
        self._open()
        count = self.video.get(cv2.CAP_PROP_FRAME_COUNT)
        self.announced = int(count) if np.isfinite(count) and 0 < count < 1e9 else 0

    def _open(self) -> None:
        self.video = cv2.VideoCapture(str(self.path))
        self.next = 0
        if not self.video.isOpened():
            raise DataError(f"{self.path.name} is missing or not a video that OpenCV can decode; download it again")

    def read(self, number: int) -> np.ndarray:
        """Frame `number` as (H,W,3) uint8 RGB; DataError where the video ends before it."""
        if number < self.next:
            self.video.release()
            self._open()
        while self.next < number:
            if not self.video.grab():
                raise DataError(f"{self.path.name} ends at frame {self.next}, frame {number} is wanted")
            self.next += 1
        decoded, bgr = self.video.read()
        if not decoded:
            raise DataError(f"{self.path.name} ends at frame {self.next}, frame {number} is wanted")
        self.next += 1
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        """Let go of the file."""
        self.video.release()


def upper_half(stacked: np.ndarray) -> np.ndarray:
    """The left image of a stereo pair stacked left above right."""
    if stacked.shape[0] % 2:
        raise DataError(f"a stacked stereo pair has an even height, this image {stacked.shape[0]}")
    return np.ascontiguousarray(stacked[: stacked.shape[0] // 2])


def _check_png(data: bytes) -> None:
    at, view = 8, memoryview(data)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise DataError("this PNG has damaged data")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise DataError("this PNG is cut short")
