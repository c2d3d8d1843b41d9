"""Frames and what a teacher says of them: decoded once, asked once, inverse depth [1/m] kept on the disk as float16.

A teacher is a bundle on its engine, or a run's depth network in PyTorch; it sees the clean frame. Its answers go by its
digest and by the frames' files, so another teacher or other frames never meet old answers.
"""

import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from endomust_core.data import DataError, open_dataset
from endomust_core.data.cache import CachedSequence, cache
from endomust_core.data.sequences import Entry, Frame, Sequence, open_sequences
from endomust_core.learning.checkpoint import CheckpointError
from endomust_core.learning.config import ConfigError
from endomust_core.learning.eager import open_eager
from endomust_core.learning.from_bundle import is_bundle
from endomust_core.learning.run import RunError
from endomust_core.predictions import BundlePredictor, Predictor

TODO, GOOD, BAD = 0, 1, 2  # state of a frame: not asked yet, answered, answered with what is no depth
KEEP_EVERY = 32  # answers after which they are safe on the disk
SAY_EVERY = 20.0  # seconds between lines of progress
RELATIVE = "none: relative depth"  # how `endomust convert` says that scale and offset are unknown
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameSources:
    """Which frames: the sources of `endomust train`, and `scenes:/path`, the views that pretraining has rendered."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()  # other cases than those; without any, scores are of the training frames
    size: tuple[int, ...] = ()  # at which they are kept, height and width; default: what the teacher takes
    cache: str = ""  # where they are kept; default: the folder `cache` of the run
    on_error: str = "stop"  # stop | skip: what a frame that cannot be read does

    def __post_init__(self):
        if isinstance(self.train, str) or isinstance(self.validation, str):
            raise ValueError("train and validation are lists of sources; write [video:/data/case1.mp4]")
        if self.size and (len(self.size) != 2 or min(self.size) < 32):
            raise ValueError(f"size {self.size} must be height and width, each at least 32")
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}; choose stop or skip")


@dataclass(frozen=True)
class Teacher:
    """Whoever is learned from: its predictor, (H,W) of its maps, its depths [m], and whether they mean only shape."""

    predictor: Predictor
    size: tuple[int, int]
    range_m: tuple[float, float]
    relative: bool = False  # inverse depth up to scale and offset


class Answers(NamedTuple):
    """What the teacher says of a sequence: inverse (N,h,w) float16 [1/m], memory-mapped; good (N,), where it does."""

    inverse: np.ndarray
    good: np.ndarray


def open_teacher(path: str, backend: str = "cpu") -> Teacher:
    """A bundle on its engine, or a run's networks in PyTorch."""
    if not path:
        raise ConfigError("teacher names nothing to learn from; as in teacher=runs/base, or the folder of a bundle")
    place = Path(path)
    if not place.exists():
        raise ConfigError(f"teacher {path} does not exist; give the folder of a bundle or of a run, or its depth.pt")
    if is_bundle(place):
        predictor = BundlePredictor(place, (backend,))
        bundle = predictor.bundle
        relative = bundle.manifest["scale"].get("source") == RELATIVE
        return Teacher(predictor, bundle.depth.size, bundle.range_m, relative)
    if backend not in ("cpu", "cuda"):
        raise ConfigError(f"{path} runs in PyTorch, which has no {backend}; export it, or write teacher_backend=cpu")
    predictor = open_eager(place, backend)
    known = predictor.depth.config
    return Teacher(predictor, predictor.size, (known.min_depth, known.max_depth))


def kind_of(source: str) -> str:
    """The kind that a source begins with; 'source' where it lets its path speak."""
    kind, colon, _ = source.partition(":")
    return kind if colon and kind.isalnum() else "source"


class Frames:
    """Usable frames of all sequences with the teacher's answers: what `fit` calls views."""

    def __init__(self, cached: list[CachedSequence], answers: list[Answers], groups: list[str], relative, device):
        self.cached, self.answers, self.groups = cached, answers, groups  # group: the name a score is averaged under
        self.relative, self.device = relative, device
        places = [np.stack((np.full(len(a.good), n), np.arange(len(a.good))), 1)[a.good] for n, a in enumerate(answers)]
        self.rows = np.concatenate(places)  # (M,2): sequence, frame
        self.skipped = sum(len(a.good) for a in answers) - len(self.rows) + sum(c.skipped for c in cached)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def with_truth(self) -> bool:
        """Whether any sequence has true depth."""
        return any(sequence.depth is not None for sequence in self.cached)

    def at(self, rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images B×3×H×W in [0,1], teacher's inverse depth B×1×h×w [1/m], true depth B×1×H×W [m], 0 where unknown."""
        found = [self.frame(int(row)) for row in rows]
        rgb, inverse, truth = (torch.from_numpy(np.stack(part)).to(self.device) for part in zip(*found, strict=True))
        return rgb.permute(0, 3, 1, 2).float() / 255, inverse[:, None].float(), truth[:, None].float()

    def frame(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(H,W,3) uint8, (h,w) float16 [1/m], (H,W) float16 [m] of one row."""
        number, i = self.rows[row]
        sequence = self.cached[number]
        rgb = np.asarray(sequence.rgb[i])
        unknown = np.zeros(rgb.shape[:2], np.float16)
        truth = unknown if sequence.depth is None else np.nan_to_num(sequence.depth[i], posinf=0.0, neginf=0.0)
        return rgb, np.asarray(self.answers[number].inverse[i]), truth


def collect(name: str, options: FrameSources, teacher: Teacher, folder: Path, device: str) -> Frames:
    """Decode the sources `name` (train, validation) and ask the teacher, into `folder`; only what is not there yet.

    Raises ConfigError without a source, DataError where none of its frames can be used.
    """
    sources, cached, groups = getattr(options, name), [], []
    if not sources:
        raise ConfigError(f"frames.{name} names no source; as in frames.{name}='[video:/data/case1.mp4]'")
    keep = Path(options.cache) if options.cache else folder / "cache"
    for source in sources:
        kind = kind_of(source)
        opened = scene_sequences(source) if kind == "scenes" else open_sequences(source, options.on_error)
        found = cache(opened, keep, tuple(options.size) or teacher.size, options.on_error)
        cached += found
        # Scores travel with a bundle, and the name of a file may be a patient's: groups are kinds of sources.
        groups += [sequence.name if kind == "scenes" else kind for sequence in found]
    total = sum(map(len, cached))
    log.info("%s: %d sequences, %d frames", name, len(cached), total)
    report = Progress(f"{name}: frames that the teacher has seen", total)
    answers = [ask(teacher, sequence, folder / "teacher", report) for sequence in cached]
    frames = Frames(cached, answers, groups, teacher.relative, device)
    if not len(frames):
        raise DataError(
            f"the teacher {teacher.predictor.name} gave no finite depth for any of {total} frames of frames.{name}; "
            "look at what it says with `endomust evaluate`, or export it again"
        )
    if refused := total - len(frames):
        log.warning("%s: the teacher's map of %d of %d frames is not finite; left out", name, refused, total)
    return frames


def scene_sequences(source: str) -> list[Sequence]:
    """`scenes:/path` → one sequence per domain: the views in the order of their files, with true depth."""
    dataset = open_dataset(source)

    def sequence(group: str, numbers: list[int]) -> Sequence:
        def load(number: int, position: int) -> Frame:
            sample = dataset.read(number)
            return Frame(position, sample.rgb, sample.depth)

        def entries():
            for position, number in enumerate(numbers):
                yield Entry(dataset.items[number].name, partial(load, number, position))

        files = dataset.files(group)
        return Sequence(
            group, dataset.root, entries, files, len(numbers), has_truth=True, part=f"scenes {group} {dataset.split}"
        )

    return [sequence(group, numbers) for group, numbers in dataset.groups().items()]


def ask(teacher: Teacher, cached: CachedSequence, folder: Path, report=None) -> Answers:
    """The teacher's inverse depth of every frame of a sequence; what lies in `folder` from before is not asked again.

    Maps (N,h,w) float16 are written as they come; of an interrupted call no answer older than the last `KEEP_EVERY`
    is lost. A map with a value that is not finite or negative counts as none.
    """
    place = folder / cached.folder.name
    shape = (len(cached), *teacher.size)
    frames = json.loads((cached.folder / "meta.json").read_text())["key"]
    key = {"teacher": teacher.predictor.digest, "backend": teacher.predictor.backend, "frames": frames, "shape": shape}
    key = json.loads(json.dumps(key))
    maps, states, record = (place / name for name in ("inverse_depth.npy", "states.npy", "meta.json"))
    if not record.is_file() or json.loads(record.read_text()) != key:
        place.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(place).free
        if needed > free:
            raise RunError(
                f"the disk of {folder} is too full: the teacher's maps of {cached.name} take {needed / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free; make room or choose another --out"
            )
        np.lib.format.open_memmap(maps, "w+", np.float16, shape).flush()
        write_whole(states, np.zeros(len(cached), np.uint8))
        record.write_text(json.dumps(key))
    inverse, state = np.load(maps, mmap_mode="r+"), np.load(states)
    missing = np.flatnonzero(state == TODO)
    if report is not None:
        report.skip(len(cached) - len(missing))

    def keep():
        inverse.flush()  # the maps first: a state never promises a map that is not there
        write_whole(states, state)

    try:
        for count, i in enumerate(missing, 1):
            state[i] = answer(teacher, np.array(cached.rgb[i]), inverse[i])
            if count % KEEP_EVERY == 0:
                keep()
            if report is not None:
                report.one()
    finally:
        if len(missing):
            keep()
    return Answers(inverse, state == GOOD)


def answer(teacher: Teacher, rgb: np.ndarray, into: np.ndarray) -> int:
    """Ask for one frame (H,W,3) uint8, put the map (h,w) `into` its place; GOOD, or BAD where it is no depth."""
    found = teacher.predictor.disparity(rgb)
    if found.shape != into.shape:
        raise CheckpointError(f"the teacher gave a map of {found.shape}, its size is {into.shape}; export it again")
    with np.errstate(over="ignore", invalid="ignore"):
        half = found.astype(np.float16)
    if not (np.isfinite(half).all() and half.min() >= 0 and half.max() > 0):
        return BAD
    into[:] = half
    return GOOD


def write_whole(path: Path, values: np.ndarray) -> None:
    """np.save under another name, then renamed."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        np.save(file, values)
    os.replace(part, path)


class Progress:
    """Says every `SAY_EVERY` seconds how far a long job is, and how long the rest takes."""

    def __init__(self, what: str, total: int):
        self.what, self.total = what, total
        self.known = self.done = 0
        self.begin = self.last = time.monotonic()

    def skip(self, count: int) -> None:
        """So many were done before."""
        self.known += count

    def one(self) -> None:
        """One more is done."""
        self.done += 1
        now, so_far = time.monotonic(), self.known + self.done
        if now - self.last >= SAY_EVERY or so_far == self.total:
            self.last = now
            left = (now - self.begin) / self.done * (self.total - so_far)
            log.info("%s: %d of %d, %d s left", self.what, so_far, self.total, left)
