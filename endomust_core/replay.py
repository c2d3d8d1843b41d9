"""Recording, video or folder of images → what the node would have answered to every image, as files. No ROS.

The pipeline is the node's own (endomust_core/pipeline.py); no image is dropped and none waits for a clock. One thread
reads and decodes ahead, one runs the depth network, this one the pose network, two more write behind it: the slowest
of them sets the pace. Two networks at once waste less of the cores than one after the other, as each waits now and
then for its own threads.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import math
import os
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from endomust_core import __version__
from endomust_core.bundle import Bundle, default_bundle, load_bundle
from endomust_core.camera import Camera, load_camera
from endomust_core.conveyor import Sink, ahead
from endomust_core.engines import EngineOptions
from endomust_core.estimator import Estimator
from endomust_core.footage import Footage, Info, Shot, open_footage
from endomust_core.importing import fitted_camera
from endomust_core.pipeline import (
    Answer,
    Calibration,
    Pipeline,
    Seen,
    Settings,
    depth_facts,
    model_facts,
    model_info,
)
from endomust_core.recording import RecordingError
from endomust_core.replay_outputs import REPORT, SUMMARY, Made, Outputs, Result, check_room, refuse_existing
from endomust_core.replay_page import replay_page
from endomust_core.report import write_page
from endomust_core.resources import versions
from endomust_core.settings import words_of
from endomust_core.trajectory import Thinned

DIAGNOSTICS_PERIOD_NS = 10**9  # of image time
SWITCH_INTERVAL = 2e-4  # s
STAGES = ("preprocess", "depth", "pose", "postprocess")
EXAMPLES = 5  # images that a problem names before only the count goes on
WITHOUT_CAMERA = ("no_info", "uncalibrated", "size")
OK, WARN = 0, 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplayResult:
    """What a replay made. `complete` is False when a part of the source could not be answered; `problems` say which."""

    out: Path
    complete: bool
    summary: dict  # what summary.json holds
    files: dict[str, Path]

    @property
    def problems(self) -> list[str]:
        """Sentences about what is missing from the results."""
        return self.summary["problems"]

    @property
    def notes(self) -> list[str]:
        """Sentences about what a reader of the results should know."""
        return self.summary["notes"]


@dataclass
class Book:
    """What is counted while images go through; a few thousand numbers at most, however long the source is."""

    answered: int = 0
    without_depth: int = 0
    with_odometry: int = 0
    unusable: list[str] = field(default_factory=list)  # the first few, in words
    unusable_count: int = 0
    reasons: Counter = field(default_factory=Counter)
    sentences: dict[str, str] = field(default_factory=dict)  # reason → the first sentence
    encodings: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    curve: Thinned = field(default_factory=lambda: Thinned(2000))  # (seconds, share valid, median depth [m] or NaN)
    times: Thinned = field(default_factory=lambda: Thinned(4000))  # seconds of STAGES
    first_ns: int = 0
    last_ns: int = 0

    def note(self, reason: str, sentence: str) -> None:
        """Count; the pipeline calls this."""
        self.reasons[reason] += 1
        self.sentences.setdefault(reason, sentence)

    def refuse(self, shot: Shot) -> None:
        """Count an image that cannot be used."""
        self.unusable_count += 1
        if len(self.unusable) < EXAMPLES:
            self.unusable.append(f"{shot.name}: {shot.problem}")

    def answer(self, shot: Shot, answer: Answer, moved: bool) -> None:
        """Count an image that was answered."""
        self.first_ns = self.first_ns or shot.log_ns
        self.last_ns = shot.log_ns
        share, median = depth_facts(answer.depth)
        self.curve.add(((shot.log_ns - self.first_ns) / 1e9, share, math.nan if median is None else median))
        self.times.add([answer.timing[stage] for stage in STAGES])
        self.answered += 1
        self.with_odometry += moved
        self.without_depth += median is None
        self.encodings[shot.encoding] += 1
        self.sizes["{1}x{0}".format(*shot.rgb.shape[:2])] += 1

    @property
    def without_camera(self) -> int:
        """Images that were answered with depth only for lack of a calibration."""
        return sum(self.reasons[reason] for reason in WITHOUT_CAMERA)


def replay(
    source: str | Path,
    bundle: Bundle | str | Path | None,
    out: str | Path,
    *,
    topic: str | None = None,
    camera: Camera | str | Path | None = None,
    rate: float | None = None,
    scale: float = 1.0,
    settings: Settings | None = None,
    points: bool = False,
    points_stride: int = 4,
    color: bool = True,
    fused: bool = True,
    overwrite: bool = False,
    rerun: str | None = None,
    providers: Sequence[str] = ("cpu",),
    threads: int = 0,
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> ReplayResult:
    """Run every image of `source` through the node's pipeline and write the answers into the folder `out`.

    `bundle` None takes the one that ships. `topic` chooses among several image streams; `camera` (or its ROS YAML file)
    stands in for camera_info; `rate` [Hz] is for folders of images. `scale` multiplies depth and motion, `settings` are
    the node's other parameters. `points` adds clouds of every `points_stride`-th pixel to the recording, at the node's
    rate; `color` False leaves images and video out, `fused` False the joint cloud. `rerun` shows it while it runs (see
    rerun_stream.py). Raises RecordingError, BundleError, BackendError or CameraError in words, and then leaves nothing
    in `out`.
    """
    source, out = Path(source), Path(out)
    if not (isinstance(points_stride, int) and 1 <= points_stride <= 32):
        raise RecordingError(f"points_stride is {points_stride}; choose a whole number from 1 to 32")
    refuse_existing(out, source, overwrite)
    footage = open_footage(source, topic, rate)
    given = camera if camera is None or isinstance(camera, Camera) else load_camera(camera)
    loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle or default_bundle())
    estimator = Estimator(loaded, options=EngineOptions(providers, precision, threads))
    chosen = settings or Settings()
    settings = dataclasses.replace(chosen, scale_factor=float(scale) * chosen.scale_factor)
    stream = _stream(rerun)
    existed = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    stride = points_stride if points else None
    outputs = Outputs(
        out,
        footage,
        rate=_film_rate(footage, rate),
        points_stride=stride,
        color=color,
        fused=fused,
        odom_frame=settings.frames_odom,
        stream=stream,
    )
    try:
        with _threads_that_share():
            work = _Work(footage, estimator, settings, given, outputs, stride, progress)
            work.run()
            made = outputs.finish()
            summary = _summary(work, made, source, out)
            facts = _environment(
                estimator, source, _command(source, out, bundle, topic, camera, rate, scale, points, chosen)
            )
            page = replay_page(summary, made, list(work.book.curve.values), np.array(work.book.times.values), facts)
            write_page(outputs.folder / REPORT, page)
            text = json.dumps({**summary, "environment": facts}, indent=2, allow_nan=False)
            (outputs.folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
        files = outputs.publish([*made.files, REPORT, SUMMARY])
    except OSError as error:
        raise RecordingError(f"cannot write to {out}: {error.strerror or error}; is the disk full?") from error
    finally:
        outputs.abandon()
        if stream is not None:
            stream.close()
        if not existed and not any(out.iterdir()):
            out.rmdir()
    for sentence in summary["problems"]:
        log.warning("%s", sentence)
    return ReplayResult(out, summary["complete"], summary, files)


class _Work:
    """The images of one source on their way through decoding, networks and files."""

    def __init__(self, footage: Footage, estimator, settings, given: Camera | None, outputs: Outputs, stride, progress):
        self.footage, self.estimator, self.outputs = footage, estimator, outputs
        self.book = Book()
        self.seconds = 0.0  # from the first image to the last
        self.busy: dict[str, float] = {}  # thread → seconds it worked
        self._given, self._stride, self._progress = given, stride, progress
        self._calibration = Calibration()
        self.pipeline = Pipeline(estimator, settings, self._calibration, self.book.note)
        self._decoding = 0.0
        self._camera: Camera | None = None  # the given one at the size of the images
        self._next_diagnostics: int | None = None

    def run(self) -> None:
        """All images, in order."""
        if self._given is None and self.footage.first_info is not None:
            self._calibration.update(self.footage.first_info)
        self.estimator.warm_up(1)
        start = time.perf_counter()
        record, show = Sink(self.outputs.record, "record"), Sink(self.outputs.show, "film")
        try:
            with ahead(self._timed(self.footage.items)) as items, ahead(self._looked(items), nice=0) as looked:
                for item, seen in looked:
                    self._take(item, seen, record, show)
            if not self.book.answered:
                self._refuse_nothing()
            self._diagnose(record, self.book.last_ns)
            record.close()
            show.close()
        finally:
            record.abandon()
            show.abandon()
        self.seconds = time.perf_counter() - start
        inference = float(np.sum(self.book.times.values) * self.book.times.every)
        self.busy = {"decode": self._decoding, "networks": inference, "record": record.busy_s, "film": show.busy_s}

    def _looked(self, items: Iterator[Shot | Info]) -> Iterator[tuple[Shot | Info, Seen | None]]:
        """Each item with what the depth network says of it; None where it is no image that can be used.

        Calibrations take effect here, so that an image is seen with the one that came before it.
        """
        for item in items:
            if isinstance(item, Info) and self._given is None:
                self._calibration.update(item.message)
            usable = isinstance(item, Shot) and item.rgb is not None
            if usable and self._given is not None and self._camera is None:
                height, width = item.rgb.shape[:2]
                self._camera = fitted_camera(self._given, (width, height))
                self._calibration.hold(self._camera)
            yield item, self.pipeline.look(item.rgb) if usable else None

    def _take(self, item: Shot | Info, seen: Seen | None, record: Sink, show: Sink) -> None:
        if isinstance(item, Info):
            if self._given is None:
                record.put(item)
            return
        if item.rgb is None:
            self.book.refuse(item)
            return
        if not self.book.answered:
            self._begin(item)
        answer = self.pipeline.estimate(item.rgb, item.stamp_ns, item.frame_id, seen)
        state = self.pipeline.move(answer)
        transform = state is not None and self.pipeline.transform_is_due(answer, state)
        cloud = self._stride is not None and self.pipeline.cloud_is_due(answer)
        result = Result(item, answer, state, transform, cloud, self.book.reasons["jump"], self._camera)
        record.put(result)
        show.put(result)
        self.book.answer(item, answer, state is not None)
        if self._next_diagnostics is None or item.log_ns >= self._next_diagnostics:
            self._diagnose(record, item.log_ns)
        if self._progress is not None:
            self._progress(self.book.answered + self.book.unusable_count, self.footage.announced)

    def _begin(self, shot: Shot) -> None:
        """What can be said and checked once the first image is there."""
        height, width = shot.rgb.shape[:2]
        check_room(self.outputs.out, self.footage.announced, width, height, self._stride)
        self.outputs.begin(model_info(self.estimator, __version__), shot.log_ns)

    def _timed(self, items: Iterator) -> Iterator:
        """The same items; adds up how long they take to read and decode."""
        while True:
            start = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._decoding += time.perf_counter() - start
            yield item

    def _diagnose(self, record: Sink, log_ns: int) -> None:
        self._next_diagnostics = log_ns + DIAGNOSTICS_PERIOD_NS
        record.put((_statuses(self.book, self.pipeline), log_ns, log_ns))

    def _refuse_nothing(self) -> None:
        reasons = "; ".join(self.book.unusable + self.footage.problems) or "it holds no images"
        raise RecordingError(f"{self.footage.path}: not one image can be used: {reasons}")


def _statuses(book: Book, pipeline: Pipeline) -> list[tuple[str, int, str, dict]]:
    """The node's four tasks, in short: (name, level, sentence, values)."""
    track, curve = pipeline.track, book.curve.values[-1]
    counts = {"answered": book.answered, "unusable": book.unusable_count, **book.reasons}
    unusable = f"{book.unusable_count} images cannot be used: {book.unusable[-1]}" if book.unusable else "replay"
    times = {f"{stage} [ms]": f"{1e3 * value:.4g}" for stage, value in zip(STAGES, book.times.values[-1], strict=True)}
    depth = {"valid [%]": f"{100 * curve[1]:.4g}", "median [m]": f"{curve[2]:.4g}"}
    odometry = {"state": track.state, "steps": track.steps, "lost": track.lost, "resets": track.resets}
    odometry |= {"path [m]": f"{track.path:.4g}", "position sigma [m]": f"{track.sigma:.4g}"}
    lost = f"lost for {track.lost} images so far" if track.lost else track.state
    no_camera = book.without_camera > 0
    return [
        ("endomust: input", WARN if book.unusable or no_camera else OK, unusable, counts),
        ("endomust: inference", OK, "replay", {**model_facts(pipeline.estimator), **times}),
        ("endomust: depth", OK, f"{100 * curve[1]:.0f} % of the pixels have depth", depth),
        ("endomust: odometry", WARN if track.lost else OK, "no calibration" if no_camera else lost, odometry),
    ]


def _summary(work: _Work, made: Made, source: Path, out: Path) -> dict:
    """What summary.json says; plain numbers in SI units, None where unknown."""
    book, footage, track = work.book, work.footage, work.pipeline.track
    problems, notes = _words(book, footage, work.pipeline, made)
    times = np.array(book.times.values)
    length = (book.last_ns - book.first_ns) / 1e9
    curve = np.array(book.curve.values)
    known = curve[np.isfinite(curve[:, 2]), 2]
    bundle = work.estimator.bundle
    return {
        "format": 1,
        "complete": not problems,
        "problems": problems,
        "notes": notes,
        "source": {
            "path": str(source),
            "kind": footage.kind,
            "topic": footage.image_topic if footage.kind == "recording" else None,
            "camera_info": footage.info_topic if footage.first_info is not None else None,
            "announced": footage.announced,
            "seconds": length,
            "sizes": dict(book.sizes),
            "encodings": dict(book.encodings),
        },
        "images": {
            "answered": book.answered,
            "unusable": book.unusable_count,
            "with_odometry": book.with_odometry,
            "without_depth": book.without_depth,
        },
        "model": {"name": bundle.name, "version": bundle.version, "digest": bundle.digest, "metric": bundle.metric},
        "scale": work.pipeline.settings.scale_factor,
        "depth": {
            "median": float(np.median(known)) if known.size else None,
            "valid": float(curve[:, 1].mean()),
        },
        "odometry": {
            "stretches": [{"poses": poses, "length": length} for poses, length, _ in made.trajectories],
            "lost": book.reasons["lost"],
            "last_state": track.state,
        },
        "cloud": None if made.cloud is None else {"points": len(made.cloud[0]), "voxel": made.voxel},
        "speed": {
            "seconds": work.seconds,
            "images_per_second": book.answered / work.seconds,
            "times_real_time": length / work.seconds,
            "busy_seconds": work.busy,
            "stages": {
                stage: {"p50": float(p50), "p95": float(p95)}
                for stage, p50, p95 in zip(STAGES, *np.percentile(times, (50, 95), axis=0), strict=True)
            },
        },
        "files": [*made.files, REPORT, SUMMARY],
        "out": str(out),
    }


def _words(book: Book, footage: Footage, pipeline: Pipeline, made: Made) -> tuple[list[str], list[str]]:
    """Problems, which make a replay incomplete, and notes."""
    problems, notes = list(footage.problems), list(footage.notes)
    if book.unusable_count:
        first = "; ".join(book.unusable)
        more = f" (the first {EXAMPLES})" if book.unusable_count > EXAMPLES else ""
        problems.append(f"{_images(book.unusable_count)} cannot be used{more}: {first}")
    for reason in WITHOUT_CAMERA:
        count = book.reasons[reason]
        if count:
            sentence = _without_camera(reason, count, book)
            (notes if book.without_camera == book.answered else problems).append(sentence)
    jumps, lost = book.reasons["jump"], book.reasons["lost"]
    if jumps:
        often = "once" if jumps == 1 else f"{jumps} times"
        again = f"odometry, trajectory and cloud start again each time (the first: {book.sentences['jump']})"
        notes.append(f"stamps went back {often}; {again}")
    if lost:
        notes.append(f"the motion of {_images(lost)} is not plausible (too far or turned too much); the pose is held")
    if book.reasons["same_stamp"]:
        notes.append(f"{_images(book.reasons['same_stamp'])} with the stamp of the one before, so without speed")
    if book.reasons["slash"]:
        notes.append(f"{book.sentences['slash']} in all outputs")
    if book.reasons["no_frame"]:
        notes.append("the images carry no frame_id, so there are no transforms")
    if book.without_depth:
        notes.append(f"{_images(book.without_depth)} without a pixel whose depth is inside the range of the node")
    if len(book.encodings) > 1:
        listed = ", ".join(f"{name} ({count})" for name, count in book.encodings.items())
        notes.append(f"the encoding of the images changes: {listed}")
    if len(book.sizes) > 1:
        listed = ", ".join(f"{name} ({count})" for name, count in book.sizes.items())
        notes.append(f"the size of the images changes: {listed}")
    if not pipeline.has_motion:
        notes.append("the bundle has no pose network, so there is no odometry")
    if made.unwritten:
        notes.append(f"{made.unwritten} more stretches between jumps have no trajectory and cloud of their own")
    return problems, notes


def _without_camera(reason: str, count: int, book: Book) -> str:
    number = "all images" if count == book.answered else _images(count)
    advice = "give the calibration with --camera FILE.yaml"
    if reason == "no_info":
        return f"{number} without camera_info: depth only, no odometry and no cloud; {advice}"
    sentence = book.sentences[reason].split(": ", 1)[-1]
    return f"{number} without a usable calibration: depth only, no odometry and no cloud ({sentence}); {advice}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _film_rate(footage: Footage, rate: float | None) -> float:
    """Frames per second of the video: those of the source, within what players take."""
    if rate is None:
        rate = footage.announced / footage.seconds if footage.seconds > 0 and footage.announced > 1 else 25.0
    return float(np.clip(rate, 1.0, 240.0))


def _command(source, out, bundle, topic, camera, rate, scale, points, chosen: Settings) -> str:
    """What to type to do this again."""
    words = ["endomust", "replay", str(source), "--out", str(out)]
    words += ["--bundle", str(getattr(bundle, "root", bundle))] if bundle is not None else []
    words += ["--topic", topic] if topic else []
    words += ["--camera", str(camera)] if isinstance(camera, str | Path) else []
    words += ["--rate", f"{rate:g}"] if rate is not None else []
    words += ["--scale", f"{scale:g}"] if scale != 1.0 else []
    words += [word for setting in words_of(chosen) for word in ("--set", setting)]
    return shlex.join(words + (["--points"] if points else []))


def _environment(estimator: Estimator, source: Path, command: str) -> dict[str, str]:
    packages = ("endomust_ros", "numpy", "opencv-python-headless", "onnxruntime", "rosbags")
    bundle = estimator.bundle
    return {
        "model": f"{bundle.name} {bundle.version}",
        "model sha256": bundle.digest,
        "provider": estimator.provider,
        "source": str(source),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform(terse=True)}",
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name, version in versions(packages).items()),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }


def _stream(rerun: str | None):
    if rerun is None:
        return None
    from endomust_core.rerun_stream import RerunStream

    return RerunStream(rerun)


@contextmanager
def _threads_that_share() -> Iterator[None]:
    """One thread for OpenCV, as in the node: its own would take the cores from the networks. And the networks' thread
    must get the interpreter back at once: with Python's 5 ms it waits for the writing threads several times an image.
    """
    threads, interval = cv2.getNumThreads(), sys.getswitchinterval()
    cv2.setNumThreads(1)
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
        sys.setswitchinterval(interval)
