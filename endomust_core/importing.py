"""A video file or a folder of images → one recording: (H,W,3) frames, camera_info, stamps from the frame rate [Hz]."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.recording import CAMERA_INFO_TOPIC, IMAGE_TOPIC, RecordingError
from endomust_core.recording_writer import RecordingWriter

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm")
START_NS = 10**9  # a video has no clock: stamps count from 1 s, not from 0, which ROS reads as "not set"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Frames to import, how many are announced (0: unknown), and their rate [Hz] where the source knows it."""

    path: Path
    announced: int
    rate: float | None
    frames: Iterator[tuple[str, np.ndarray | None]]  # name for messages to people, (H,W,3) uint8 BGR or None if broken


def import_frames(
    source: str | Path,
    out: str | Path,
    camera: Camera | None = None,
    rate: float | None = None,
    topic: str = IMAGE_TOPIC,
    encoding: str = "jpeg",
    jpeg_quality: int = 95,
    frame_id: str = "endoscope_optical_frame",
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> int:
    """Write every frame of a video or image folder to the recording `out` (.mcap) and return how many there were.

    `rate` [Hz] defaults to the video's own; a folder needs one. `encoding` is jpeg (CompressedImage on
    `topic`/compressed) or raw (Image rgb8 on `topic`). `camera` is scaled to the frames where only the size differs;
    without one, camera_info says uncalibrated (K = 0). `progress(done, announced)` is called after each frame.
    Raises RecordingError in words and then leaves no file behind.
    """
    if encoding not in ("jpeg", "raw"):
        raise RecordingError(f"encoding {encoding} is unknown; choose jpeg or raw")
    opened = open_source(Path(source))
    interval_ns = 1e9 / checked_rate(opened.rate if rate is None else rate, opened.path)
    image_topic = topic.removesuffix("/compressed")
    info_topic = image_topic.rsplit("/", 1)[0] + "/camera_info" if image_topic.count("/") > 1 else CAMERA_INFO_TOPIC
    count, size = 0, None
    with RecordingWriter(out, overwrite=overwrite) as writer:
        for name, bgr in opened.frames:
            if size is None:
                size = (bgr.shape[1], bgr.shape[0])
                scaled = fitted_camera(camera, size)
            check_same_size(opened.path, name, bgr, size)
            stamp_ns = START_NS + round(count * interval_ns)
            if encoding == "jpeg":
                _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
                writer.write_compressed(image_topic + "/compressed", jpeg.tobytes(), stamp_ns, frame_id)
            else:
                writer.write_image(image_topic, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), stamp_ns, frame_id)
            writer.write_camera_info(info_topic, scaled, stamp_ns, frame_id, size=size)
            count += 1
            if progress is not None:
                progress(count, opened.announced)
        if count == 0:
            raise RecordingError(f"{opened.path} opened, but no frame of it decodes; convert it to H.264 or PNG images")
    if opened.announced > count:
        log.warning("%s announces %d frames, %d decoded: it may be cut short", opened.path, opened.announced, count)
    if camera is None:
        log.warning("no camera given: camera_info says uncalibrated (K = 0); calibrate and import again with --camera")
    return count


def open_source(path: Path, skip_broken: bool = False) -> Source:
    """Open a video file or a folder of images; RecordingError when it is neither.

    An image of a folder that does not decode raises RecordingError too or, with `skip_broken`, comes as None.
    """
    if not path.exists():
        raise RecordingError(f"{path} does not exist; check the path of the video or image folder")
    if path.is_dir():
        files = sorted((f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES), key=_natural_order)
        if not files:
            raise RecordingError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}); name the folder that does")
        return Source(path, len(files), None, _folder_frames(files, skip_broken))
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise RecordingError(f"{path} is not a video that OpenCV can decode; convert it: ffmpeg -i {path.name} OUT.mp4")
    announced = video.get(cv2.CAP_PROP_FRAME_COUNT)
    announced = int(announced) if math.isfinite(announced) and 0 < announced < 1e9 else 0
    return Source(path, announced, video.get(cv2.CAP_PROP_FPS), _video_frames(video))


def checked_rate(rate: float | None, path: Path) -> float:
    """Frame rate [Hz] within reason, else RecordingError asking for one."""
    if rate is None:
        raise RecordingError(f"{path} is a folder and knows no frame rate; give one, for example --rate 25")
    if not math.isfinite(rate) or not 0.01 <= rate <= 1000:
        raise RecordingError(f"{path}: a frame rate of {rate:g} Hz is no camera's; give the true one with --rate")
    return float(rate)


def fitted_camera(camera: Camera | None, size: tuple[int, int]) -> Camera | None:
    """The camera at `size` (width, height): as it is, scaled where the shape agrees to 1 %, else RecordingError."""
    if camera is None or (camera.width, camera.height) == size:
        return camera
    width, height = size
    if abs(camera.width * height / (camera.height * width) - 1) > 0.01:
        raise RecordingError(
            f"the camera was calibrated at {camera.width}x{camera.height}, the frames are {width}x{height}: another "
            "shape, so they were cropped or padded; calibrate at the size of the frames, or crop the calibration too"
        )
    log.warning("camera calibrated at %dx%d is scaled to frames of %dx%d", camera.width, camera.height, width, height)
    return camera.resized(width, height)


def check_same_size(path: Path, name: str, bgr: np.ndarray, size: tuple[int, int]) -> None:
    """RecordingError where a frame's size differs from the first one's (width, height)."""
    if (bgr.shape[1], bgr.shape[0]) != size:
        raise RecordingError(
            f"{path}: {name} is {bgr.shape[1]}x{bgr.shape[0]}, the frames before it are {size[0]}x{size[1]}; "
            "one recording holds one camera, import each size on its own"
        )


def stderr_progress(every_s: float = 2.0) -> Callable[[int, int], None]:
    """A progress callback: one line on stderr every few seconds (rewritten in place on a terminal), with time to go."""
    started = time.monotonic()
    last = [started]
    in_place = sys.stderr.isatty()

    def report(done: int, announced: int) -> None:
        now = time.monotonic()
        finished = done == announced
        if now - last[0] < (0.2 if in_place else every_s) and not (finished and last[0] > started):
            return
        last[0] = now
        line = f"{done}/{announced or '?'} frames"
        if announced and not finished:
            line += f", {(now - started) / done * (announced - done):.0f} s to go"
        sys.stderr.write((f"\r{line}   " if in_place else line) + ("\n" if finished or not in_place else ""))
        sys.stderr.flush()

    return report


def _natural_order(path: Path) -> list:
    """Sort key with frame9 before frame10."""
    digits, key = "", []
    for character in path.name + "\0":
        if character.isdigit():
            digits += character
            continue
        if digits:
            key.append((0, int(digits), ""))
            digits = ""
        key.append((1, 0, character))
    return key


def _folder_frames(files: list[Path], skip_broken: bool) -> Iterator[tuple[str, np.ndarray | None]]:
    for file in files:
        bgr = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if bgr is None and not skip_broken:
            raise RecordingError(f"{file} does not decode as an image; remove or mend it and import again")
        yield file.name, bgr


def _video_frames(video: cv2.VideoCapture) -> Iterator[tuple[str, np.ndarray]]:
    try:
        index = 0
        while True:
            decoded, bgr = video.read()
            if not decoded:
                return
            yield f"frame {index}", bgr
            index += 1
    finally:
        video.release()
