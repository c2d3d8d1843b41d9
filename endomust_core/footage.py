"""A recording, a video or a folder of images → one stream of decoded images (H,W,3) RGB and camera_info. Stamps in ns.

What cannot be decoded comes out as an image without pixels and a sentence, so that it can be counted; the rest goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from endomust_core.decoding import DecodingError, compressed_to_rgb, image_to_rgb, stamp_ns
from endomust_core.importing import IMAGE_SUFFIXES, START_NS, checked_rate, open_source
from endomust_core.recording import CAMERA_INFO_TOPIC, COMPRESSED_IMAGE, IMAGE_TOPIC, RecordingError, RecordingReader

RECORDING_SUFFIXES = (".mcap", ".db3", ".bag")
FRAME_ID = "endoscope_optical_frame"  # of videos and folders, which have none


@dataclass(frozen=True)
class Shot:
    """One image of the source; `rgb` is None where it cannot be used, and `problem` says why."""

    name: str
    stamp_ns: int
    log_ns: int  # when a player sends it
    frame_id: str
    rgb: np.ndarray | None
    problem: str = ""
    encoding: str = ""
    compressed: bytes | None = None  # the message as it was recorded, where that is a CompressedImage


@dataclass(frozen=True)
class Info:
    """One camera_info of a recording."""

    message: object
    msgtype: str
    cdr: bytes
    log_ns: int


@dataclass
class Footage:
    """An opened source. `items` may be read once; `notes` and `problems` are sentences, complete when it has ended."""

    path: Path
    kind: str  # recording | video | folder
    image_topic: str
    info_topic: str | None
    announced: int  # images, 0 where the source does not say
    seconds: float  # length of the source, 0 where it does not say
    items: Iterator[Shot | Info]
    first_info: object | None = None  # CameraInfo that holds from the start
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def open_footage(source: str | Path, topic: str | None = None, rate: float | None = None) -> Footage:
    """Open a source; RecordingError in words when it is none, or when it does not say which images are meant.

    `topic` chooses the images of a recording, `rate` [Hz] is needed for a folder of images.
    """
    path = Path(source)
    if not path.exists():
        raise RecordingError(f"{path} does not exist; give a recording, a video file or a folder of images")
    if path.suffix in RECORDING_SUFFIXES or (path.is_dir() and (path / "metadata.yaml").exists()):
        if rate is not None:
            raise RecordingError(f"{path} is a recording and has stamps of its own; leave the rate out")
        return _open_recording(path, topic)
    if topic is not None:
        raise RecordingError(f"{path} is no recording, so it has no topic {topic}; leave the topic out")
    if path.is_dir():
        _refuse_loose_recordings(path)
    return _open_frames(path, rate)


def _open_recording(path: Path, asked: str | None) -> Footage:
    with RecordingReader(path, recover=True) as reader:
        topic = reader.camera_topic(asked)
        info_topic = reader.camera_info_topic(topic)
        first = reader.first(info_topic) if info_topic else None
        announced, length = reader.count(topic), reader.duration_s
    footage = Footage(path, "recording", topic, info_topic, announced, length, iter(()), first)
    footage.items = _recorded(footage)
    return footage


def _recorded(footage: Footage) -> Iterator[Shot | Info]:
    """Opens the file again: the thread that reads a SQLite file must be the one that opened it."""
    topics = [footage.image_topic] + ([footage.info_topic] if footage.info_topic else [])
    index = 0
    with RecordingReader(footage.path, recover=True) as reader:
        try:
            for topic, msgtype, log_ns, cdr in reader.messages(topics):
                if topic != footage.image_topic:
                    yield from _info(reader, footage, msgtype, cdr, log_ns)
                    continue
                yield _shot(reader, f"image {index}", msgtype, cdr, log_ns)
                index += 1
        except RecordingError as error:  # damage that cannot be stepped over
            footage.problems.append(f"{error}; {index} images were read before that")
        footage.problems += reader.faults
    missing = footage.announced - index
    if missing > 0:
        footage.problems.append(f"{missing} of {footage.announced} images could not be read from {footage.path.name}")


def _info(reader: RecordingReader, footage: Footage, msgtype: str, cdr: bytes, log_ns: int) -> Iterator[Info]:
    try:
        yield Info(reader.deserialize(msgtype, cdr), msgtype, cdr, log_ns)
    except RecordingError as error:
        footage.problems.append(str(error))


def _shot(reader: RecordingReader, name: str, msgtype: str, cdr: bytes, log_ns: int) -> Shot:
    try:
        message = reader.deserialize(msgtype, cdr)
    except RecordingError as error:
        return Shot(name, log_ns, log_ns, "", None, str(error))
    compressed = msgtype == COMPRESSED_IMAGE
    encoding = message.format if compressed else message.encoding
    stamp, frame_id = stamp_ns(message), message.header.frame_id
    try:
        rgb = compressed_to_rgb(message) if compressed else image_to_rgb(message)
    except DecodingError as error:
        return Shot(name, stamp, log_ns, frame_id, None, str(error), encoding)
    return Shot(name, stamp, log_ns, frame_id, rgb, "", encoding, cdr if compressed else None)


def _open_frames(path: Path, rate: float | None) -> Footage:
    source = open_source(path, skip_broken=True)
    rate = checked_rate(source.rate if rate is None else rate, path)
    kind = "folder" if path.is_dir() else "video"
    seconds = source.announced / rate
    footage = Footage(path, kind, f"{IMAGE_TOPIC}/compressed", CAMERA_INFO_TOPIC, source.announced, seconds, iter(()))
    footage.items = _numbered(source, footage, 1e9 / rate)
    return footage


def _numbered(source, footage: Footage, interval_ns: float) -> Iterator[Shot]:
    index = 0
    for index, (name, bgr) in enumerate(source.frames, start=1):
        stamp = START_NS + round((index - 1) * interval_ns)
        broken = "it does not decode as an image; remove or mend it" if bgr is None else ""
        yield Shot(name, stamp, stamp, FRAME_ID, None if bgr is None else bgr[..., ::-1], broken, "bgr8")
    if index == 0:
        raise RecordingError(f"{footage.path} opened, but no frame of it decodes; convert it to H.264 or PNG images")
    lost = footage.announced - index
    if lost > 0:  # containers announce a frame or two too many; more than that is a film cut short
        sentence = f"{footage.path.name} announces {footage.announced} frames, {index} decoded"
        few = lost <= max(2, footage.announced // 50)
        (footage.notes if few else footage.problems).append(sentence + ("" if few else ": it is cut short or damaged"))


def _refuse_loose_recordings(path: Path) -> None:
    if any(f.suffix.lower() in IMAGE_SUFFIXES for f in path.iterdir()):
        return
    found = sorted(f.name for f in path.iterdir() if f.suffix in RECORDING_SUFFIXES)
    if found:
        raise RecordingError(
            f"{path} holds recordings but no metadata.yaml, so their order is not known; name one: {', '.join(found)}"
        )
