"""Answers of the pipeline → files of a replay: recording, trajectory, fused cloud, video, pictures for the report.

Everything is written into one hidden folder; `finish` moves it to its names when all of it is whole, `abandon` removes
it. `record` and `show` are called from one thread each.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.cloud import fill_cloud
from endomust_core.film import Film
from endomust_core.footage import Footage, Info, Shot
from endomust_core.fusion import Fusion, write_ply
from endomust_core.odometry import OdometryState
from endomust_core.pipeline import Answer
from endomust_core.recording import COMPRESSED_IMAGE, RecordingError
from endomust_core.recording_writer import RecordingWriter
from endomust_core.report import FramePicture
from endomust_core.trajectory import Thinned, TrajectoryWriter

NODE = "/endomust"
DEPTH, DEPTH_INFO = f"{NODE}/depth/image_rect", f"{NODE}/depth/camera_info"
ODOM, POINTS, MODEL_INFO = f"{NODE}/odom", f"{NODE}/points", f"{NODE}/model_info"
RECORDING, FILM, REPORT, SUMMARY = "replay.mcap", "depth.mp4", "report.html", "summary.json"
PATTERNS = (RECORDING, FILM, REPORT, SUMMARY, "trajectory*.txt", "cloud*.ply")  # what an earlier replay may have left
JPEG_QUALITY = 90
FUSED_PER_SECOND = 5.0  # of image time; more show the same surface again
MOST_STRETCHES = 20  # of stamps between two jumps that get a trajectory and a cloud of their own
PICTURES, PICTURE_WIDTH = 5, 320
SPARE_BYTES = 64 << 20  # that a disk must keep free beyond the recording


@dataclass(frozen=True)
class Result:
    """One image with all that was found; `stretch` counts how often stamps went back before it."""

    shot: Shot
    answer: Answer
    state: OdometryState | None
    transform: bool
    cloud: bool
    stretch: int
    given: Camera | None = None  # of the images, where the user gave one; written in place of camera_info


@dataclass
class Stretch:
    """Trajectory and fused cloud between two jumps of time."""

    trajectory: TrajectoryWriter
    fusion: Fusion
    last_fused_ns: int | None = None


@dataclass(frozen=True)
class Made:
    """What `finish` leaves behind: paths, and what the report draws."""

    files: dict[str, Path]
    trajectories: list[tuple[int, float, list]]  # poses, length [m], thinned [(stamp ns, (3,) m)]
    cloud: tuple[np.ndarray, np.ndarray] | None  # of the longest stretch, in the odometry frame
    voxel: float  # m
    pictures: list[FramePicture]
    unwritten: int  # stretches beyond MOST_STRETCHES


class Outputs:
    """The files of one replay; see the module."""

    def __init__(
        self,
        out: Path,
        footage: Footage,
        *,
        rate: float,
        points_stride: int | None,
        color: bool,
        fused: bool,
        odom_frame: str,
        stream=None,
    ):
        """`points_stride` None leaves clouds out of the recording; `stream` sees every Result too."""
        self.out, self._footage = out, footage
        self._points_stride, self._color, self._fused, self._odom_frame = points_stride, color, fused, odom_frame
        self._stream = stream
        self.folder = out / f".replay.{os.getpid()}.unfinished"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._bag = RecordingWriter(self.folder / RECORDING)
        self._film = Film(self.folder / FILM, rate) if color else None
        self._stretches: list[Stretch] = []
        self._unwritten = 0
        self._current: Stretch | None = None
        self._stretch = -1
        self._pictures: Thinned[FramePicture] = Thinned(4 * PICTURES)
        self._points: np.ndarray | None = None
        self._start_ns: int | None = None
        self._image_topic = footage.image_topic.removesuffix("/compressed") + "/compressed"

    # ---- called from the recording thread ----

    def begin(self, model_info: dict, log_ns: int) -> None:
        """Write what is said once."""
        self._bag.write_string(MODEL_INFO, json.dumps(model_info, sort_keys=True), log_ns, latched=True)

    def record(self, item) -> None:
        """Take a Result, an Info, or diagnostics (statuses, stamp [ns], log time [ns])."""
        if isinstance(item, Result):
            self._record(item)
        elif isinstance(item, Info):
            self._bag.write_raw(self._footage.info_topic, item.msgtype, item.cdr, item.log_ns)
        else:
            self._bag.write_diagnostics(*item)

    def _record(self, result: Result) -> None:
        shot, answer, state = result.shot, result.answer, result.state
        stamp, frame_id, log_ns = answer.stamp_ns, answer.frame_id, result.shot.log_ns
        if self._color:
            self._write_image(shot)
        if result.given is not None:
            topic = self._footage.info_topic or self._image_topic.rsplit("/", 2)[0] + "/camera_info"
            self._bag.write_camera_info(topic, result.given, shot.stamp_ns, shot.frame_id, log_ns=log_ns)
        self._bag.write_image(DEPTH, answer.depth, stamp, frame_id, "32FC1", log_ns)
        if answer.camera is not None:
            self._bag.write_camera_info(DEPTH_INFO, answer.camera, stamp, frame_id, log_ns=log_ns)
        if state is not None:
            self._bag.write_odometry(ODOM, state, stamp, self._odom_frame, frame_id, log_ns)
            self._follow(result)
        if result.transform:
            self._bag.write_transform(state.T_odom_camera, stamp, self._odom_frame, frame_id, log_ns)
        if result.cloud and self._points_stride is not None:
            self._bag.write_cloud(POINTS, self._cloud(result), stamp, frame_id, log_ns)
        if self._stream is not None:
            self._stream.show(result)

    def _write_image(self, shot: Shot) -> None:
        """Compressed images go through untouched; others become JPEG, or the recording would double in size."""
        if shot.compressed is not None:
            self._bag.write_raw(self._image_topic, COMPRESSED_IMAGE, shot.compressed, shot.log_ns)
            return
        bgr = np.ascontiguousarray(shot.rgb[..., ::-1])
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
        self._bag.write_compressed(self._image_topic, jpeg, shot.stamp_ns, shot.frame_id, log_ns=shot.log_ns)

    def _cloud(self, result: Result) -> np.ndarray:
        answer, stride = result.answer, self._points_stride
        shape = -(-answer.depth.shape[0] // stride), -(-answer.depth.shape[1] // stride), 4
        if self._points is None or self._points.shape != shape:
            self._points = np.empty(shape, np.float32)
        return fill_cloud(self._points, answer.depth, answer.picture, answer.camera, stride)

    def _follow(self, result: Result) -> None:
        """Trajectory and fused cloud of the stretch that this image belongs to."""
        if result.stretch != self._stretch:
            self._stretch, self._current = result.stretch, None
            if len(self._stretches) < MOST_STRETCHES:
                number = len(self._stretches) + 1
                name = f"trajectory_{number}.txt" if number > 1 else "trajectory.txt"
                self._current = Stretch(TrajectoryWriter(self.folder / name), Fusion())
                self._stretches.append(self._current)
            else:
                self._unwritten += 1
        stretch, stamp = self._current, result.answer.stamp_ns
        if stretch is None:
            return
        stretch.trajectory.add(stamp, result.state.T_odom_camera)
        last = stretch.last_fused_ns
        rested = last is None or stamp - last >= 1e9 / FUSED_PER_SECOND - 1e6
        if self._fused and rested and result.state.state != "LOST":
            stretch.last_fused_ns = stamp
            depth, camera = result.answer.depth, result.answer.camera
            stretch.fusion.add(depth, result.answer.picture, camera, result.state.T_odom_camera)

    # ---- called from the film's thread ----

    def show(self, result: Result) -> None:
        """One more frame of the video, and now and then a picture for the report."""
        rgb, depth = result.answer.picture, result.answer.depth
        if self._start_ns is None:
            self._start_ns = result.shot.log_ns
        seconds = (result.shot.log_ns - self._start_ns) / 1e9
        if self._film is not None:
            self._film.add(rgb, depth, seconds)
        picture = FramePicture(f"{seconds:.2f} s", _small(rgb), _small(depth)) if self._pictures.is_due() else None
        self._pictures.add(picture)

    # ---- called when both have ended ----

    def finish(self) -> Made:
        """Close everything; the files still lie in the hidden folder. RecordingError where one is not whole."""
        files, trajectories, largest, voxel = {}, [], None, 0.0
        for number, stretch in enumerate(self._stretches, start=1):
            path = stretch.trajectory
            path.close()
            files[path.path.name] = path.path
            trajectories.append((path.poses, path.length, path.shape.values))
            if stretch.fusion.images:
                name = "cloud.ply" if number == 1 else f"cloud_{number}.ply"
                cloud = stretch.fusion.cloud()
                comment = f"metres, {self._odom_frame}: x forward, y left, z up; voxel {stretch.fusion.voxel:g}"
                files[name] = write_ply(self.folder / name, *cloud, comment)
                if path.poses == max(t.trajectory.poses for t in self._stretches):
                    largest, voxel = cloud, stretch.fusion.voxel
        if self._film is not None and self._film.close() is not None:
            files[FILM] = self.folder / FILM
        files[RECORDING] = self._bag.close()
        pictures = _spread(self._pictures.values, PICTURES)
        return Made(files, trajectories, largest, voxel, pictures, self._unwritten)

    def publish(self, names: Sequence[str]) -> dict[str, Path]:
        """Move the finished files to `out`, in this order, in place of those of an earlier replay."""
        for pattern in PATTERNS:
            for old in self.out.glob(pattern):
                old.unlink()
        moved = {}
        for name in names:
            os.replace(self.folder / name, self.out / name)
            moved[name] = self.out / name
        shutil.rmtree(self.folder, ignore_errors=True)
        return moved

    def abandon(self) -> None:
        """Remove everything that was written; harmless after `publish`."""
        if self._film is not None:
            self._film.abandon()
        for stretch in self._stretches:
            stretch.trajectory.close()
        self._bag.abort()
        shutil.rmtree(self.folder, ignore_errors=True)


def check_room(out: Path, images: int, width: int, height: int, points_stride: int | None) -> None:
    """RecordingError where the recording of so many images cannot fit: depth takes four bytes a pixel, and is most."""
    pixels = width * height
    cloud = 16 * pixels // points_stride**2 if points_stride is not None else 0
    needed, free = images * (4 * pixels + cloud) + SPARE_BYTES, shutil.disk_usage(out).free
    if needed > free:
        raise RecordingError(
            f"{images} depth images of {width}x{height} take {needed / 1e9:.1f} GB and {out} has {free / 1e9:.1f} GB; "
            "free some space, choose another folder, or replay a part of the source"
        )


def refuse_existing(out: Path, source: Path, overwrite: bool) -> None:
    """RecordingError where results would take the place of others, or of the source."""
    found = sorted(old for pattern in PATTERNS for old in out.glob(pattern))
    if any(old.resolve() == source.resolve() for old in found):
        raise RecordingError(f"{source} would be replaced by its own replay; choose another folder than {out}")
    if found and not overwrite:
        names = ", ".join(old.name for old in found)
        raise RecordingError(f"{out} holds the results of another replay ({names}); choose another or --overwrite")


def _spread(values: list, count: int) -> list:
    """At most `count` of the values, evenly spaced, the first and the last among them."""
    return [values[i] for i in sorted({round(x) for x in np.linspace(0, len(values) - 1, count)})] if values else []


def _small(image: np.ndarray) -> np.ndarray:
    """A copy of rgb or depth that is at most PICTURE_WIDTH wide."""
    height, width = image.shape[:2]
    if width <= PICTURE_WIDTH:
        return np.ascontiguousarray(image)
    size = PICTURE_WIDTH, max(1, round(height * PICTURE_WIDTH / width))
    return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST if image.ndim == 2 else cv2.INTER_AREA)
