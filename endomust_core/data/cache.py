"""Sequences decoded once, at one size, into memory-mapped arrays; and from them the gaps at which frames moved enough.

rgb (N,H,W,3) uint8, depth (N,H,W) float16 [m], masks bool. A cache is whole or absent, and is made again when its
source has changed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from endomust_core.data import DataError
from endomust_core.data.sequences import LAYOUT, NothingUsable, Sequence

CACHE_FORMAT = 1  # raised when the files of a cache change their meaning
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedSequence:
    """A sequence decoded to disk at one size: rgb (N,H,W,3) uint8, index (N,), depth (N,H,W) float16 [m] or None,
    instrument (N,H,W) bool or None, T_world_camera (N,4,4) or None; the large ones are memory-mapped.
    """

    name: str
    folder: Path
    rgb: np.ndarray
    index: np.ndarray
    depth: np.ndarray | None
    instrument: np.ndarray | None
    intrinsics: np.ndarray | None  # (4,) normalised
    T_world_camera: np.ndarray | None
    skipped: int

    def __len__(self) -> int:
        return len(self.index)


def cache(
    sequences: list[Sequence],
    folder: str | Path,
    size: tuple[int, int],
    on_error: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[CachedSequence]:
    """Decode every sequence once to `folder` at `size` (height, width), or reuse what lies there from the same files.

    Colour is averaged down, depth takes the nearest pixel, an instrument covers every pixel that it touches. A second
    process that wants the same cache waits for the first. `progress(done, announced)` counts frames. `on_error`
    defaults to the sequences' own. Raises DataError for bad frames ("stop") and for a full disk, with the space needed.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)  # closing releases it, and so does the end of the process, however it comes
    except OSError as error:
        raise DataError(f"cannot write the cache {folder}: {error.strerror}; choose another folder") from error
    with lock:
        chosen = [sequence.on_error if on_error is None else on_error for sequence in sequences]
        places = [_cache_place(folder, sequence, size) for sequence in sequences]
        keys = [_cache_key(sequence) for sequence in sequences]
        fresh = [not _reusable(*row) for row in zip(places, keys, chosen, strict=True)]
        new = [sequence for sequence, write in zip(sequences, fresh, strict=True) if write]
        needed = sum(_cache_bytes(sequence, size) for sequence in new)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise DataError(_disk_full(folder, needed, free))
        done, announced, ready = 0, sum(sequence.announced for sequence in new), []
        for sequence, place, key, errors, write in zip(sequences, places, keys, chosen, fresh, strict=True):
            try:
                for _ in _write_cache(sequence, place, key, size, errors) if write else ():
                    done += 1
                    if progress is not None:
                        progress(done, announced)
            except NothingUsable as error:
                if errors == "stop":
                    raise
                log.warning("%s; skipped", error)
                continue
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise DataError(f"cannot write the cache {place}: {error}; choose another folder") from error
                raise DataError(_disk_full(folder, needed, shutil.disk_usage(folder).free)) from error
            ready.append(load_cached(place))
    if not ready:
        raise DataError(f"none of {len(sequences)} sequences holds a frame that can be used; {LAYOUT}")
    return ready


def load_cached(folder: str | Path) -> CachedSequence:
    """Open one folder that `cache` has written; DataError where there is none."""
    folder = Path(folder)
    try:
        meta = json.loads((folder / "meta.json").read_text())
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r" if name in ("rgb", "depth", "instrument") else None)
            for name in meta["arrays"]
        }
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} is no cache of a sequence ({error}); remove it and start again") from error
    known = meta["intrinsics"]
    return CachedSequence(
        meta["name"],
        folder,
        arrays["rgb"],
        arrays["index"],
        arrays.get("depth"),
        arrays.get("instrument"),
        None if known is None else np.array(known, np.float32),
        arrays.get("poses"),
        meta["skipped"],
    )


def choose_gaps(cached: CachedSequence, least_px: float = 2.0, most_px: float = 12.0, max_gap: int = 8) -> np.ndarray:
    """Frame gap k (N,) int per frame: the smallest with a median optical flow of `least_px` or more to i-k and to i+k.

    0 where a frame has no neighbours without a gap in time between, or moves too little even over `max_gap`. Frames
    that already move more than `most_px` [px of the cached width] to either side at their k are counted in the log.
    Kept in the cache folder.
    """
    if not 0 < least_px <= most_px or max_gap < 1:
        raise DataError(f"gaps of 1 to {max_gap} frames with {least_px:g} to {most_px:g} px: give 0 < least <= most")
    kept = cached.folder / f"gaps_{least_px:g}_{most_px:g}_{max_gap}.npy"
    if kept.exists():
        return np.load(kept)
    motion = _Motion(cached)
    gaps = np.zeros(len(cached), np.int64)
    still = fast = 0
    for i in range(len(cached)):
        reach = [k for k in range(1, max_gap + 1) if valid_triplet(cached.index, i, k)]
        for k in reach:
            before, after = motion(i - k, k), motion(i, k)
            if min(before, after) >= least_px:
                gaps[i] = k
                fast += max(before, after) > most_px
                break
        still += bool(reach) and not gaps[i]
    if still:
        log.info("%s: %d of %d frames move less than %g px and are left out", cached.name, still, len(gaps), least_px)
    if fast:
        log.info("%s: %d of %d frames move more than %g px", cached.name, fast, len(gaps), most_px)
    part = kept.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.save(file, gaps)
    part.replace(kept)
    return gaps


def valid_triplet(index: np.ndarray, i: int, k: int) -> bool:
    """Whether frames i-k, i, i+k exist with no frame missing between them; `index` (N,) are positions in time."""
    return i >= k and i + k < len(index) and index[i + k] - index[i] == k == index[i] - index[i - k]


def _cache_place(folder: Path, sequence: Sequence, size: tuple[int, int]) -> Path:
    origin = hashlib.sha256(f"{sequence.source.resolve()}#{sequence.part}".encode()).hexdigest()[:8]
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', sequence.name)}-{size[0]}x{size[1]}-{origin}"


def _cache_key(sequence: Sequence) -> str:
    described = [CACHE_FORMAT, str(sequence.source.resolve()), sequence.part, sequence.intrinsics, repr(sequence.lens)]
    for file in sequence.files:
        status = file.stat()
        described.append([os.path.relpath(file, sequence.source), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _reusable(place: Path, key: str, on_error: str) -> bool:
    try:
        meta = json.loads((place / "meta.json").read_text())
    except (OSError, ValueError):
        return False
    if meta.get("key") != key:
        return False
    if meta["skipped"]:
        log.warning("%s: %d frames are missing or unusable and were skipped", meta["source"], meta["skipped"])
        return on_error == "skip"  # reading it again names the frame that stops it
    return True


def _cache_bytes(sequence: Sequence, size: tuple[int, int]) -> int:
    return sequence.announced * size[0] * size[1] * (6 if sequence.has_truth else 3)


def _disk_full(folder: Path, needed: int, free: int) -> str:
    return (
        f"the disk of {folder} is too full: decoding takes about {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
        "make room, choose another cache folder, or a smaller size"
    )


def _write_cache(sequence: Sequence, place: Path, key: str, size: tuple[int, int], on_error: str) -> Iterator[None]:
    """Decode one sequence into `place`, yielding after every frame; leaves nothing there unless it is complete."""
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    files, index, poses = {}, [], []
    try:
        for frame in sequence.frames(on_error):
            if not index:
                shown = {"rgb": frame.rgb, "depth": frame.depth, "instrument": frame.instrument}
                files = {name: _Rows(part / f"{name}.npy") for name, image in shown.items() if image is not None}
            files["rgb"].append(_resized(frame.rgb, size))
            if "depth" in files:
                depth = cv2.resize(frame.depth, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
                files["depth"].append(depth.astype(np.float16))
            if "instrument" in files:
                files["instrument"].append(_resized(frame.instrument.astype(np.float32), size) > 1e-3)
            index.append(frame.index)
            poses.append(frame.T_world_camera)
            yield
        for rows in files.values():
            rows.close()
        small = {"index": np.array(index, np.int64)}
        if poses[0] is not None:
            small["poses"] = np.stack(poses)
        for name, array in small.items():
            np.save(part / f"{name}.npy", array)
        meta = {
            "name": sequence.name,
            "source": str(sequence.source),
            "key": key,
            "size": list(size),
            "frames": len(index),
            "skipped": sequence.skipped,
            "intrinsics": sequence.intrinsics,
            "arrays": [*files, *small],
        }
        (part / "meta.json").write_text(json.dumps(meta, indent=1))
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    finally:
        for rows in files.values():
            rows.file.close()
        shutil.rmtree(part, ignore_errors=True)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    smaller = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


class _Rows:
    """An .npy file that grows row by row: its header keeps its length while the number of rows becomes known."""

    def __init__(self, path: Path):
        self.file = path.open("wb")
        self.count, self.row = 0, None
        self.file.write(bytes(128))

    def append(self, row: np.ndarray) -> None:
        self.row = row
        self.file.write(np.ascontiguousarray(row).data)
        self.count += 1

    def close(self) -> None:
        described = {
            "descr": np.lib.format.dtype_to_descr(self.row.dtype),
            "fortran_order": False,
            "shape": (self.count, *self.row.shape),
        }
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + repr(described).ljust(117).encode() + b"\n")
        self.file.close()


class _Motion:
    """Median optical flow [px of the cached width] from frame i to i + k over lit pixels, each pair measured once."""

    WIDTH = 80

    def __init__(self, cached: CachedSequence):
        height, width = cached.rgb.shape[1:3]
        self.size = (min(width, self.WIDTH), max(16, round(height * min(width, self.WIDTH) / width)))
        self.scale = width / self.size[0]
        self.rgb, self.grey, self.known = cached.rgb, {}, {}
        self.flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self.flow.setFinestScale(0)

    def __call__(self, i: int, k: int) -> float:
        if (i, k) not in self.known:
            first = self._grey(i)
            moved = self.flow.calc(first, self._grey(i + k), None)
            lit = first > 12  # the dark border of an endoscope stands still
            length = np.hypot(moved[..., 0], moved[..., 1])[lit]
            self.known[i, k] = float(np.median(length)) * self.scale if length.size else 0.0
        return self.known[i, k]

    def _grey(self, i: int) -> np.ndarray:
        if i not in self.grey:
            small = cv2.resize(np.asarray(self.rgb[i]), self.size, interpolation=cv2.INTER_AREA)
            self.grey[i] = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        return self.grey[i]
