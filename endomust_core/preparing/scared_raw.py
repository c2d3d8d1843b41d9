"""SCARED as it is downloaded: rgb.mp4, scene_points.tar.gz and frame_data.tar.gz per keyframe → frames with truth."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from endomust_core.data import DataError
from endomust_core.data.reading import VideoFrames, number_in, upper_half
from endomust_core.data.scared import raw_name, read_calibration, read_frame_data, read_scene_points
from endomust_core.preparing.raw import RawSequence, listed
from endomust_core.preparing.writer import SequenceWriter

LAYOUT = """expected
  <path>/dataset_1/keyframe_1/endoscope_calibration.yaml
  <path>/dataset_1/keyframe_1/data/rgb.mp4                 left above right
  <path>/dataset_1/keyframe_1/data/scene_points.tar.gz     (or the folder scene_points, unpacked)
  <path>/dataset_1/keyframe_1/data/frame_data.tar.gz       (or the folder frame_data, unpacked)"""
BROKEN_ARCHIVE = (tarfile.TarError, EOFError, zlib.error, OSError)


def is_raw(root: Path) -> bool:
    """Whether a folder holds the download itself."""
    return any(root.glob("dataset*/keyframe*/data/rgb.mp4"))


def sequences(root: Path) -> list[RawSequence]:
    """All keyframes with a video below the root; DataError with the expected tree where there are none."""
    videos = sorted(root.glob("dataset*/keyframe*/data/rgb.mp4"), key=_by_numbers)
    if not videos:
        raise DataError(f"{root} holds no dataset_N/keyframe_M/data/rgb.mp4; {LAYOUT}")
    return [_sequence(video) for video in videos]


def _sequence(video: Path) -> RawSequence:
    data = video.parent
    sources = [source for source in (_truth(data, "scene_points"), _truth(data, "frame_data")) if source is not None]
    files = [video, data.parent / "endoscope_calibration.yaml"]
    for source in sources:
        files += sorted(source.iterdir()) if source.is_dir() else [source]
    frames = VideoFrames(video)
    frames.close()
    return RawSequence(raw_name(data.parent), tuple(files), frames.announced, partial(_write, video))


def _truth(data: Path, name: str) -> Path | None:
    places = (data / name, data / f"{name}.tar.gz", data / f"{name}.tgz", data / f"{name}.tar")
    return next((place for place in places if place.exists()), None)


def _write(video: Path, writer: SequenceWriter, tick: Callable[[], None]) -> None:
    count, size = _write_frames(video, writer, tick)
    writer.camera = read_calibration(video.parent.parent / "endoscope_calibration.yaml", *size)
    _write_poses(video.parent, writer, count)
    _write_depth(video.parent, writer, count)


def _write_frames(video: Path, writer: SequenceWriter, tick: Callable[[], None]) -> tuple[int, tuple[int, int]]:
    """The left images; their number and size (width, height)."""
    frames, count, size = VideoFrames(video), 0, None
    while True:
        try:
            rgb = upper_half(frames.read(count))
        except DataError as error:
            if count == 0:
                raise DataError(f"{video}: {error}") from error
            break
        writer.add_rgb(count, rgb)
        count, size = count + 1, (rgb.shape[1], rgb.shape[0])
        tick()
    frames.close()
    if count < frames.announced:
        writer.problems.append(f"{video.name} announces {frames.announced} frames, {count} decode; download it again")
    return count, size


def _write_poses(data: Path, writer: SequenceWriter, count: int) -> None:
    unusable = []
    for index, name, content in _members(data, "frame_data", writer):
        try:
            pose = read_frame_data(content, name)
        except DataError:
            pose = None
        if index >= count or index in writer.poses:
            continue
        if pose is None:
            unusable.append(index)
        else:
            writer.poses[index] = pose
    if unusable:
        writer.problems.append(f"{listed('pose', unusable)} cannot be read or are no rigid motions")
    _say_missing("pose", set(range(count)) - writer.poses.keys() - set(unusable), count, writer)


def _write_depth(data: Path, writer: SequenceWriter, count: int) -> None:
    unusable, beyond = [], 0
    for index, name, content in _members(data, "scene_points", writer):
        if index >= count:
            beyond += 1
            continue
        try:
            writer.add_depth(index, read_scene_points(Path(name), content))
        except DataError:
            unusable.append(index)
    if unusable:
        writer.problems.append(f"{listed('depth', unusable)} cannot be read")
    if beyond:
        writer.problems.append(f"{beyond} depths lie beyond the last frame of the video; are frames missing there?")
    _say_missing("depth", set(range(count)) - writer.depths - set(unusable), count, writer)


def _say_missing(what: str, missing: set[int], count: int, writer: SequenceWriter) -> None:
    if missing and len(missing) < count:
        writer.problems.append(f"{listed(what, sorted(missing))} missing, of {count} frames")
    elif missing:
        writer.problems.append(f"no {what} at all for {count} frames")


def _members(data: Path, name: str, writer: SequenceWriter) -> Iterator[tuple[int, str, bytes]]:
    """Frame number, file name and content, from the archive in its own order or from the unpacked folder."""
    source = _truth(data, name)
    if source is None:
        writer.problems.append(f"{name}.tar.gz is missing")
        return
    if source.is_dir():
        for file in sorted(source.iterdir()):
            if (index := number_in(file.stem)) is not None:
                yield index, file.name, file.read_bytes()
        return
    read = 0
    try:
        archive = tarfile.open(source)  # closed below; a `with` would also catch what the caller raises
    except BROKEN_ARCHIVE as error:
        writer.problems.append(f"{source.name} does not open ({error}); download it again")
        return
    with archive:
        while True:
            try:
                member = archive.next()
                if member is None:
                    return
                content = archive.extractfile(member).read() if member.isfile() else None
                archive.members = []  # or every header stays in memory
            except BROKEN_ARCHIVE as error:
                why = str(error) or type(error).__name__
                writer.problems.append(
                    f"{source.name} is cut short or broken after {read} files ({why}); download it again"
                )
                return
            index = number_in(Path(member.name).stem)
            if content is None or index is None or Path(member.name).name.startswith("."):
                continue
            read += 1
            yield index, Path(member.name).name, content


def _by_numbers(video: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", "/".join(video.parts[-4:-2]))]
