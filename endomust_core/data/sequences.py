"""Videos, image folders, recordings, rendered folders → sequences of frames, (H,W,3) uint8 RGB with their truth.

Depth is in metres along the optical axis, NaN where unknown. Intrinsics are normalised: fx/W, fy/H, (cx+0.5)/W,
(cy+0.5)/H with pixel centres at integers, so that a resize leaves them as they are.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import yaml

from endomust_core.camera import Camera, CameraError, load_camera
from endomust_core.data import DATASETS, DataError, Dataset, Sample, open_dataset
from endomust_core.data.reading import decode_image, natural, read_depth, read_image
from endomust_core.data.rendered import RenderedFolder, is_prepared
from endomust_core.data.simcol3d import METRES_PER_UNIT, SimCol3D
from endomust_core.decoding import DecodingError, camera_from, rgb_from, stamp_ns_from_cdr
from endomust_core.importing import IMAGE_SUFFIXES, open_source
from endomust_core.odometry import matrix_from_quaternion, se3
from endomust_core.recording import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, RecordingError, RecordingReader

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".webm", ".wmv", ".ts")
SIMCOL3D_INTRINSICS = (227.60416 / 475, 227.60416 / 475, 0.5, 0.5)  # one camera for the whole data set, 475x475
SKIPS_SHOWN = 10  # warnings per sequence before only the count goes on
LAYOUT = """expected one of
  video:/path/film.mp4         one video, or a folder of videos
  folder:/path                 a folder of images, or a folder of such folders
  recording:/path/run.mcap     a recording (rosbag2 folders too); recording:/path/run.mcap#/topic chooses a topic
  rendered:/path               what `endomust render DOMAIN --out FOLDER` writes, one or many
  simcol3d:/path               folders with FrameBuffer_0000.png and Depth_0000.png
  scared:/path, hamlyn:/path, c3vd:/path, endoslam:/path, stereomis:/path
                               public data sets; scared:/path#train chooses a split"""
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


def check_on_error(on_error: str) -> None:
    """DataError unless `on_error` is stop or skip."""
    if on_error not in ("stop", "skip"):
        raise DataError(f"on_error is {on_error!r}; write stop or skip")


def open_sequences(spec: str, on_error: str = "stop") -> list[Sequence]:
    """`KIND:/path`, or a path that says its kind by itself, → sequences; DataError with the expected layout.

    Kinds: video, folder, recording, rendered, simcol3d and the public data sets that hold sequences. A video or
    recording of several that does not open is an error ("stop") or is logged and left out ("skip").
    """
    check_on_error(on_error)
    kind, place = _split(str(spec))
    path, _, part = place.partition("#") if kind == "recording" or kind in PUBLIC else (place, "", "")
    path = Path(path).expanduser()
    if not place:
        raise DataError(f"{spec}: say where it lies, as in {kind}:/path; {LAYOUT}")
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path of the training data")
    found = []
    for source, opener in _sources(kind, path, part):
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
    if colon and (kind in OPENERS or kind in PUBLIC):
        return kind, place
    path = Path(spec.partition("#")[0]).expanduser()
    if colon and not path.exists():
        near = difflib.get_close_matches(kind, [*OPENERS, *PUBLIC], n=1)
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


def _sources(kind: str, path: Path, part: str) -> list[tuple[Path, Callable[[Path], Sequence]]]:
    if kind in PUBLIC:
        dataset = open_dataset(f"{kind}:{path}", part or None)
        return [(group, lambda group: sequence_of(dataset, group)) for group in dataset.groups()]
    opener = OPENERS[kind]
    if kind == "rendered" and any(is_prepared(folder) for folder in RenderedFolder(path).sequences):
        dataset = RenderedFolder(path)
        return [(group, lambda group: sequence_of(dataset, group)) for group in dataset.groups()]
    if kind == "rendered":
        return [(sequence, opener) for sequence in RenderedFolder(path).sequences]
    if kind == "simcol3d":
        return [(folder, opener) for folder in sorted({image.parent for image in SimCol3D(path).images})]
    if kind == "recording":
        whole = path.is_file() or (path / "metadata.yaml").exists()
        bags = [path] if whole else sorted(path.glob("*.mcap"))
        return [(bag, lambda source: opener(source, part)) for bag in bags]
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
    files = [Path(path, name) for name in sorted((f.name for f in _images(path)), key=natural)]
    numbers = _numbers([file.stem for file in files])

    def entries():
        for position, file in enumerate(files):
            lost = numbers[position] - numbers[position - 1] - 1 if position else 0
            if lost:
                yield _missing(_between(lost, files[position - 1].name, file.name), lost)
            yield Entry(file.name, lambda file=file, index=numbers[position]: Frame(index, read_image(file)))

    return Sequence(path.name, path, entries, tuple(files), numbers[-1] + 1, *_calibration_file(path / "camera.yaml"))


def _open_simcol3d(path: Path) -> Sequence:
    images = sorted(path.glob("FrameBuffer_*.png"))
    numbers = _numbers([image.stem for image in images])

    def load(image, index):
        truth = image.with_name(image.name.replace("FrameBuffer", "Depth"))
        return Frame(index, read_image(image), read_depth(truth, METRES_PER_UNIT))

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
        rgb = read_image(path / "rgb" / f"{name}.png")
        depth = read_depth(path / "depth" / f"{name}.png", unit)
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


def sequence_of(dataset: Dataset, group: str) -> Sequence:
    """One group of a data set as a sequence to train on, a frame at a time, straightened where its lens bends rays.

    Frame numbers become positions in time: steps of their usual size are one. A frame without a mask where others
    have one counts as free of instruments.
    """
    numbers = dataset.groups()[group]
    indices = np.array([dataset.items[number].index for number in numbers])
    steps = np.diff(indices)
    if (steps <= 0).any():
        raise DataError(f"{dataset.name} {group}: frame numbers do not rise, so this is no sequence in time")
    usual = int(np.median(steps)) if len(steps) else 1
    positions = [0, *np.cumsum(np.maximum(1, np.rint(steps / usual).astype(int))).tolist()]
    posed, has_truth = dataset.has_poses(group), "depth" in dataset.tasks
    masked = any(_mask_file(dataset, number) for number in numbers)

    def load(number: int, position: int) -> Frame:
        sample = dataset.read(number)
        instrument = _without(sample) if masked else None
        pose = sample.T_world_camera if posed else None
        if posed and pose is None:
            raise DataError(f"{sample.name} has no valid pose")
        return Frame(position, sample.rgb, sample.depth if has_truth else None, instrument, pose)

    def entries():
        for number, position in zip(numbers, positions, strict=True):
            name = dataset.items[number].name
            yield Entry(name, lambda number=number, position=position: load(number, position))

    files = dataset.files(group)
    calibration = _calibration(dataset.camera(group))
    part = f"{dataset.name} {group} {dataset.split or ''}"
    return Sequence(
        group, dataset.root, entries, files, positions[-1] + 1, *calibration, has_truth=has_truth, part=part
    )


def _mask_file(dataset: Dataset, number: int) -> bool:
    return dataset.items[number].mask is not None


def _without(sample: Sample) -> np.ndarray:
    return np.zeros(sample.rgb.shape[:2], bool) if sample.mask is None else ~sample.mask


# Public data sets that hold sequences; simcol3d and folder have openers of their own, the others are stills.
PUBLIC = tuple(name for name in DATASETS if name in ("scared", "hamlyn", "c3vd", "endoslam", "stereomis"))
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
