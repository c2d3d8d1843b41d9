"""Videos, image folders, recordings, rendered folders → sequences of frames (H,W,3) uint8 RGB, and their decoded cache.

Depth is in metres along the optical axis, NaN where unknown. Intrinsics are normalised: fx/W, fy/H, (cx+0.5)/W,
(cy+0.5)/H with pixel centres at integers, so that a resize leaves them as they are.
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import yaml

from endomust_core.camera import Camera, CameraError, load_camera
from endomust_core.data import DataError
from endomust_core.data.rendered import RenderedFolder
from endomust_core.data.simcol3d import METRES_PER_UNIT, SimCol3D
from endomust_core.decoding import DecodingError, camera_from, rgb_from, stamp_ns_from_cdr
from endomust_core.importing import IMAGE_SUFFIXES, open_source
from endomust_core.odometry import matrix_from_quaternion, se3
from endomust_core.recording import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, RecordingError, RecordingReader

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".webm", ".wmv", ".ts")
SIMCOL3D_INTRINSICS = (227.60416 / 475, 227.60416 / 475, 0.5, 0.5)  # one camera for the whole data set, 475x475
CACHE_FORMAT = 1  # raised when the files of a cache change their meaning
SKIPS_SHOWN = 10  # warnings per sequence before only the count goes on
LAYOUT = """expected one of
  video:/path/film.mp4         one video, or a folder of videos
  folder:/path                 a folder of images, or a folder of such folders
  recording:/path/run.mcap     a recording (rosbag2 folders too); recording:/path/run.mcap#/topic chooses a topic
  rendered:/path               what `endomust render DOMAIN --out FOLDER` writes, one or many
  simcol3d:/path               folders with FrameBuffer_0000.png and Depth_0000.png"""
log = logging.getLogger(__name__)


class NothingUsable(DataError):
    """A sequence without a single frame that can be used."""


@dataclass(frozen=True)
class Frame:
    """One frame: rgb (H,W,3) uint8, depth (H,W) float32 [m] or None, instrument (H,W) bool or None, pose (4,4) [m]."""

    index: int  # position in time; jumps where frames are missing
    rgb: np.ndarray
    depth: np.ndarray | None = None
    instrument: np.ndarray | None = None
    T_world_camera: np.ndarray | None = None


@dataclass(frozen=True)
class Entry:
    """A place in a sequence: `load` returns its Frame or raises; `count` frames are lost when it raises."""

    name: str
    load: Callable[[], Frame]
    count: int = 1


@dataclass
class Sequence:
    """Frames in the order of time, read anew by every iteration; `skipped` counts what the last one left out."""

    name: str
    source: Path
    entries: Callable[[], Iterator[Entry]]
    files: tuple[Path, ...]  # what the cache depends on
    announced: int = 0  # frames said to be there; 0: unknown
    intrinsics: tuple[float, ...] | None = None
    lens: Camera | None = None  # a camera that bends rays: its frames are straightened to a pinhole of the same K
    has_truth: bool = False
    on_error: str = "stop"
    part: str = ""  # what of the source is read: a recording's topic
    skipped: int = field(default=0, compare=False)

    def __iter__(self) -> Iterator[Frame]:
        return self.frames(self.on_error)

    def frames(self, on_error: str) -> Iterator[Frame]:
        """Frames in order; one that is missing, does not decode or has another size than the first is a DataError
        ("stop"), or is logged, counted and leaves a gap in the index ("skip").
        """
        check_on_error(on_error)
        size, self.skipped = None, 0
        for entry in self.entries():
            try:
                frame = entry.load()
                size = size or frame.rgb.shape[:2]
                for what, image in (("", frame.rgb), ("depth of ", frame.depth), ("mask of ", frame.instrument)):
                    if image is not None:
                        _check_size(what + entry.name, image.shape[:2], size)
            except (DataError, RecordingError, OSError) as error:
                if on_error == "stop":
                    raise DataError(f"{self.source}: {error}; mend it, or go on without it: on_error: skip") from error
                self.skipped += entry.count
                if self.skipped <= SKIPS_SHOWN:
                    log.warning("%s: %s; skipped", self.source, error)
                continue
            yield frame if self.lens is None else straightened(frame, self.lens)
        if self.skipped:
            log.warning("%s: %d frames are missing or unusable and were skipped", self.source, self.skipped)
        if size is None:
            raise NothingUsable(f"{self.source} holds no frame that can be used; {LAYOUT}")


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


def check_on_error(on_error: str) -> None:
    """DataError unless `on_error` is stop or skip."""
    if on_error not in ("stop", "skip"):
        raise DataError(f"on_error is {on_error!r}; write stop or skip")


def open_sequences(spec: str, on_error: str = "stop") -> list[Sequence]:
    """`KIND:/path`, or a path that says its kind by itself, → sequences; DataError with the expected layout.

    Kinds: video, folder, recording, rendered, simcol3d. A video or recording of several that does not open is an
    error ("stop") or is logged and left out ("skip").
    """
    check_on_error(on_error)
    kind, place = _split(str(spec))
    path, _, topic = place.partition("#") if kind == "recording" else (place, "", "")
    path = Path(path).expanduser()
    if not place:
        raise DataError(f"{spec}: say where it lies, as in {kind}:/path; {LAYOUT}")
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path of the training data")
    found = []
    for source, opener in _sources(kind, path, topic):
        try:
            found.append(opener(source))
        except (DataError, RecordingError, CameraError) as error:
            if on_error == "stop":
                raise DataError(str(error)) from error
            log.warning("%s; skipped", error)
    if not found:
        raise DataError(f"{path} holds nothing that opens as {kind}; {LAYOUT}")
    for sequence in found:
        sequence.on_error = on_error
    return found


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


def _read_image(path: Path, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    try:
        return decode_image(path.read_bytes(), flag)
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path.parent.name}/{path.name} is missing") from None


def _check_size(name: str, found: tuple[int, int], first: tuple[int, int]) -> None:
    if found != first:
        raise DataError(f"{name} is {found[1]}x{found[0]}, the first frame {first[1]}x{first[0]}")


def _missing(names: str, count: int) -> Entry:
    def load():
        raise DataError(f"{names} {'is' if count == 1 else 'are'} missing")

    return Entry(names, load, count)


# --- which kind


def _split(spec: str) -> tuple[str, str]:
    kind, colon, place = spec.partition(":")
    if colon and kind in OPENERS:
        return kind, place
    path = Path(spec.partition("#")[0]).expanduser()
    if colon and not path.exists():
        near = difflib.get_close_matches(kind, OPENERS, n=1)
        advice = f"did you mean {near[0]}:{place}?" if near else LAYOUT
        raise DataError(f"{spec}: unknown kind {kind!r}; {advice}")
    if not path.exists():
        raise DataError(f"{spec} does not exist; check the path of the training data")
    return _guess(path), spec


def _guess(path: Path) -> str:
    if path.is_file():
        return "recording" if path.suffix in (".mcap", ".db3", ".bag") else "video"
    if (path / "metadata.yaml").exists():
        return "recording"
    inside = [file for file in path.rglob("*") if file.is_file()]
    if any(file.name == "meta.yaml" and (file.parent / "rgb").is_dir() for file in inside):
        return "rendered"
    if any(file.name.startswith("FrameBuffer_") and file.suffix == ".png" for file in inside):
        return "simcol3d"
    kinds = {
        "folder": any(file.suffix.lower() in IMAGE_SUFFIXES for file in inside),
        "video": any(file.suffix.lower() in VIDEO_SUFFIXES for file in path.iterdir()),
        "recording": any(file.suffix == ".mcap" for file in path.iterdir()),
    }
    possible = [kind for kind, there in kinds.items() if there]
    if len(possible) != 1:
        what = f"holds several kinds ({', '.join(possible)})" if possible else "holds no frames"
        raise DataError(f"{path} {what}; {LAYOUT}")
    return possible[0]


def _sources(kind: str, path: Path, topic: str) -> list[tuple[Path, Callable[[Path], Sequence]]]:
    opener = OPENERS[kind]
    if kind == "rendered":
        return [(sequence, opener) for sequence in RenderedFolder(path).sequences]
    if kind == "simcol3d":
        return [(folder, opener) for folder in sorted({image.parent for image in SimCol3D(path).images})]
    if kind == "recording":
        whole = path.is_file() or (path / "metadata.yaml").exists()
        bags = [path] if whole else sorted(path.glob("*.mcap"))
        return [(bag, lambda source: opener(source, topic)) for bag in bags]
    if path.is_file():
        return [(path, opener)]
    if kind == "video":
        return [(file, opener) for file in sorted(path.iterdir()) if file.suffix.lower() in VIDEO_SUFFIXES]
    if _images(path):
        return [(path, opener)]
    return [(folder, opener) for folder in sorted(path.rglob("*")) if folder.is_dir() and _images(folder)]


def _images(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]


# --- one opener per kind


def _open_video(path: Path) -> Sequence:
    source = open_source(path)
    source.frames.close()

    def entries():
        opened, count = open_source(path), 0
        for name, bgr in opened.frames:
            frame = Frame(count, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
            yield Entry(name, lambda frame=frame: frame)
            count += 1
        lost = opened.announced - count
        if lost > max(2, opened.announced // 50):  # containers announce a frame or two too many
            yield _missing(f"the last {lost} of {opened.announced} frames", lost)

    return Sequence(path.stem, path, entries, (path,), source.announced, *_calibration_file(path.with_suffix(".yaml")))


def _open_folder(path: Path) -> Sequence:
    if not path.is_dir():
        raise DataError(f"{path} is a file; {LAYOUT}")
    files = [Path(path, name) for name in sorted((f.name for f in _images(path)), key=_natural)]
    numbers = _numbers([file.stem for file in files])

    def entries():
        for position, file in enumerate(files):
            lost = numbers[position] - numbers[position - 1] - 1 if position else 0
            if lost:
                yield _missing(_between(lost, files[position - 1].name, file.name), lost)
            yield Entry(file.name, lambda file=file, index=numbers[position]: Frame(index, _read_image(file)))

    return Sequence(path.name, path, entries, tuple(files), numbers[-1] + 1, *_calibration_file(path / "camera.yaml"))


def _open_simcol3d(path: Path) -> Sequence:
    images = sorted(path.glob("FrameBuffer_*.png"))
    numbers = _numbers([image.stem for image in images])

    def load(image, index):
        truth = image.with_name(image.name.replace("FrameBuffer", "Depth"))
        return Frame(index, _read_image(image), _read_depth(truth, METRES_PER_UNIT))

    def entries():
        for position, image in enumerate(images):
            lost = numbers[position] - numbers[position - 1] - 1 if position else 0
            if lost:
                yield _missing(_between(lost, images[position - 1].name, image.name), lost)
            yield Entry(image.name, lambda image=image, index=numbers[position]: load(image, index))

    files = tuple(sorted(path.glob("*.png")))
    return Sequence(path.name, path, entries, files, numbers[-1] + 1, SIMCOL3D_INTRINSICS, has_truth=True)


def _open_rendered(path: Path) -> Sequence:
    try:
        meta = yaml.safe_load((path / "meta.yaml").read_text())
        numbers = [int(image.stem) for image in (path / "rgb").glob("*.png")]
        count = max(*numbers, meta.get("frames", 0) - 1, 0) + 1
        unit = float(meta["depth_unit_m"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is no sequence of `endomust render` ({type(error).__name__}: {error}); "
            "expected meta.yaml with depth_unit_m, rgb/000000.png, depth/000000.png"
        ) from error
    poses = _tum_poses(path / "poses.txt", count)
    masks = (path / "truth").is_dir()

    def load(index):
        name = f"{index:06d}"
        rgb = _read_image(path / "rgb" / f"{name}.png")
        depth = _read_depth(path / "depth" / f"{name}.png", unit)
        instrument = _instrument(path / "truth" / f"{name}.npz") if masks else None
        return Frame(index, rgb, depth, instrument, None if poses is None else poses[index])

    def entries():
        for index in range(count):
            yield Entry(f"frame {index:06d}", lambda index=index: load(index))

    files = tuple(file for part in ("rgb", "depth", "truth") for file in sorted((path / part).glob("*.*")))
    files += tuple(file for file in (path / "meta.yaml", path / "poses.txt", path / "camera.yaml") if file.exists())
    return Sequence(path.name, path, entries, files, count, *_calibration_file(path / "camera.yaml"), has_truth=True)


def _open_recording(path: Path, topic: str = "") -> Sequence:
    with RecordingReader(path) as reader:
        topic = topic or reader.image_topic()
        kind = reader.topics.get(topic)
        if kind not in (IMAGE, COMPRESSED_IMAGE):
            raise DataError(f"{path} has no images on {topic}; its topics: {reader.describe_topics()}")
        announced = reader.count(topic)
        interval = _stamp_interval(reader, topic)
        intrinsics, lens = _recorded_calibration(reader, topic)

    def entries():
        index, last, done = 0, None, 0
        with RecordingReader(path) as reader:
            messages = reader.messages([topic])
            while True:
                try:
                    _, msgtype, _, cdr = next(messages)
                except StopIteration:
                    return
                except RecordingError as error:
                    yield Entry("the rest", lambda error=error: _fail(error), announced - done)
                    return
                stamp = stamp_ns_from_cdr(cdr)
                if last is not None:  # frames that the recorder dropped leave a gap in the index
                    index += max(1, round((stamp - last) / interval))
                last, done = stamp, done + 1
                name = f"image {done - 1}"
                yield Entry(name, lambda n=name, m=msgtype, c=cdr, i=index: Frame(i, _message_rgb(reader, n, m, c)))

    files = (path,) if path.is_file() else tuple(sorted(file for file in path.iterdir() if file.is_file()))
    return Sequence(path.stem, path, entries, files, announced, intrinsics, lens, part=topic)


OPENERS = {
    "video": _open_video,
    "folder": _open_folder,
    "recording": _open_recording,
    "rendered": _open_rendered,
    "simcol3d": _open_simcol3d,
}


def _fail(error: Exception) -> Frame:
    raise error


def _message_rgb(reader: RecordingReader, name: str, msgtype: str, cdr: bytes) -> np.ndarray:
    message = reader.deserialize(msgtype, cdr)
    try:
        return decode_image(bytes(message.data)) if msgtype == COMPRESSED_IMAGE else rgb_from(message)
    except (DataError, DecodingError) as error:
        raise DataError(f"{name} of the recording: {error}") from error


def _stamp_interval(reader: RecordingReader, topic: str, sample: int = 64) -> float:
    stamps = []
    for _, _, _, cdr in reader.messages([topic]):
        stamps.append(stamp_ns_from_cdr(cdr))
        if len(stamps) == sample:
            break
    steps = np.diff(stamps)
    if not (steps > 0).any():
        return float("inf")
    usual = np.median(steps[steps > 0])
    return float(steps[(steps > 0.5 * usual) & (steps < 1.5 * usual)].mean())


def _recorded_calibration(reader: RecordingReader, topic: str) -> tuple[tuple[float, ...] | None, Camera | None]:
    infos = sorted(name for name, kind in reader.topics.items() if kind == CAMERA_INFO and reader.count(name))
    beside = [name for name in infos if name.rsplit("/", 1)[0] == topic.removesuffix("/compressed").rsplit("/", 1)[0]]
    for name in beside or infos[:1]:
        for _, msgtype, _, cdr in reader.messages([name]):
            return _calibration(camera_from(reader.deserialize(msgtype, cdr)))
    return None, None


def _calibration_file(path: Path) -> tuple[tuple[float, ...] | None, Camera | None]:
    return _calibration(load_camera(path)) if path.exists() else (None, None)


def _calibration(camera: Camera | None) -> tuple[tuple[float, ...] | None, Camera | None]:
    """Normalised intrinsics, and the camera itself where its lens has to be straightened."""
    if camera is None:
        return None, None
    width, height = camera.width, camera.height
    normalised = (camera.fx / width, camera.fy / height, (camera.cx + 0.5) / width, (camera.cy + 0.5) / height)
    return normalised, camera if camera.is_distorted else None


def straightened(frame: Frame, lens: Camera) -> Frame:
    """The frame as a pinhole camera with the lens's K sees it; black, without depth, where the lens saw nothing."""
    height, width = frame.rgb.shape[:2]
    x, y = _straight_maps(lens.resized(width, height))
    nearest = {"interpolation": cv2.INTER_NEAREST, "borderMode": cv2.BORDER_CONSTANT}
    depth, tool = frame.depth, frame.instrument
    return replace(
        frame,
        rgb=cv2.remap(frame.rgb, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT),
        depth=None if depth is None else cv2.remap(depth, x, y, borderValue=float("nan"), **nearest),
        instrument=None if tool is None else cv2.remap(tool.astype(np.uint8), x, y, **nearest) > 0,
    )


@lru_cache(maxsize=4)
def _straight_maps(lens: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of the pinhole camera lie in the image of the lens."""
    rays = lens.pinhole().rays()
    places = lens.project(np.dstack([rays, np.ones(rays.shape[:2])])).astype(np.float32)
    return places[..., 0], places[..., 1]


def _read_depth(path: Path, unit: float) -> np.ndarray:
    units = _read_image(path, cv2.IMREAD_UNCHANGED)
    if units.dtype != np.uint16:
        raise DataError(f"{path.name} is not a 16-bit PNG")
    units = units if units.ndim == 2 else units[..., 0]
    return np.where(units > 0, units * np.float32(unit), np.nan).astype(np.float32)


def _instrument(path: Path) -> np.ndarray:
    try:
        with np.load(path) as truth:
            return truth["instrument"]
    except FileNotFoundError:
        raise DataError(f"truth/{path.name} is missing") from None
    except Exception as error:  # a broken zip fails in many ways
        raise DataError(f"truth/{path.name} is unreadable ({error})") from error


def _tum_poses(path: Path, count: int) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        rows = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path} is no list of poses ({error}); render it again") from error
    if rows.shape != (count, 8):
        raise DataError(f"{path} has {len(rows)} poses, the sequence {count} frames; render it again")
    return np.stack([se3(matrix_from_quaternion(row[4:]), row[1:4]) for row in rows])


def _natural(name: str) -> list:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _numbers(stems: list[str]) -> list[int]:
    """Positions in time from the last number in names that differ in nothing else, else simply 0, 1, 2, …"""
    parts = [re.fullmatch(r"(.*?)(\d+)(\D*)", stem) for stem in stems]
    alike = all(parts) and len({(part[1], part[3]) for part in parts}) == 1
    steps = np.diff([int(part[2]) for part in parts]) if alike else np.zeros(1, int)
    if not alike or (steps <= 0).any():
        return list(range(len(stems)))
    step = int(np.median(steps)) if len(steps) else 1  # every tenth frame of a film is no film with nine missing
    return [0, *np.cumsum(np.maximum(1, np.rint(steps / step).astype(int))).tolist()]


def _between(count: int, before: str, after: str) -> str:
    return f"{'a frame' if count == 1 else f'{count} frames'} between {before} and {after}"


# --- the cache


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
