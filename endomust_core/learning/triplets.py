"""Cached sequences → batches of (previous, target, next), B×3×H×W in [0,1], clean and colour-jittered, by threads.

A batch is a pure function of (step, batch size, seed): the number of workers, ranks or interruptions changes nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch

from endomust_core.data import DataError
from endomust_core.data.cache import CachedSequence, choose_gaps, valid_triplet

LUMA = np.array((0.299, 0.587, 0.114))  # ITU-R BT.601
TO_UNIT = np.arange(256, dtype=np.float32) / 255
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a triplet: mirror (probability), and colour jitter (probability and half ranges).

    Defaults are the published ones but for `shared_jitter`: one draw for the three images; False draws anew for each,
    as published. `time_reversal` exchanges previous and next in half of the triplets.
    """

    flip: float = 0.5
    jitter: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1
    shared_jitter: bool = True
    time_reversal: bool = False


NO_AUGMENTATION = Augmentation(flip=0.0, jitter=0.0)


@dataclass
class Batch:
    """One batch: images B×3×H×W in [0,1]; masks B×1×H×W bool, True on instruments; intrinsics (B,4) normalised, NaN
    where unknown; what the networks see is `*_jittered`, what the losses compare is clean.
    """

    target: torch.Tensor
    previous: torch.Tensor
    next: torch.Tensor
    target_jittered: torch.Tensor
    previous_jittered: torch.Tensor
    next_jittered: torch.Tensor
    instrument_target: torch.Tensor
    instrument_previous: torch.Tensor
    instrument_next: torch.Tensor
    intrinsics: torch.Tensor
    names: list[str]

    def state(self) -> dict[str, torch.Tensor | list[str]]:
        """Everything by name, for saving to a file; `Batch(**state)` is the batch again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to(self, device, channels_last: bool = False) -> Batch:
        """The batch on `device`; with channels_last, images in that memory format."""

        def moved(value):
            if not isinstance(value, torch.Tensor):
                return value
            image = channels_last and value.ndim == 4 and value.is_floating_point()
            layout = torch.channels_last if image else torch.preserve_format
            return value.to(device, non_blocking=True, memory_format=layout)

        return Batch(**{name: moved(value) for name, value in self.state().items()})

    def pin(self) -> Batch:
        """The batch in page-locked memory, from where a copy to a GPU runs beside the computation."""
        return Batch(**{n: v.pin_memory() if isinstance(v, torch.Tensor) else v for n, v in self.state().items()})


class Triplets:
    """All triplets (i-k, i, i+k) of cached sequences without a missing frame inside.

    `gap` is k, or "adaptive" (`choose_gaps`, which leaves out what stands still). `limit` keeps that many triplets,
    spread evenly, 0 keeps all. DataError where none is left or the sequences differ in size.
    """

    def __init__(
        self,
        cached: list[CachedSequence],
        gap: int | str = 1,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - frozen
        least_px: float = 2.0,
        most_px: float = 12.0,
        max_gap: int = 8,
        limit: int = 0,
    ):
        sizes = {sequence.rgb.shape[1:3] for sequence in cached}
        if len(sizes) > 1:
            raise DataError(f"sequences of different sizes {sorted(sizes)}; cache them at one size")
        self.sequences, self.augmentation = list(cached), augmentation
        rows = []
        for number, sequence in enumerate(self.sequences):
            gaps = self._gaps(sequence, gap, least_px, most_px, max_gap)
            rows += [(number, i, k) for i, k in enumerate(gaps) if k and valid_triplet(sequence.index, i, k)]
        if not rows:
            raise DataError(
                f"no triplet of {len(self.sequences)} sequences can be used with gap {gap}: too short, too many frames "
                "missing, or standing still; give more frames, or another gap"
            )
        self.rows = np.array(rows, np.int64)  # sequence, frame, gap
        if limit and limit < len(self.rows):
            self.rows = self.rows[np.linspace(0, len(self.rows) - 1, limit).round().astype(int)]
        log.info("%d triplets of %d sequences, gap %s", len(self.rows), len(self.sequences), gap)

    @staticmethod
    def _gaps(sequence, gap, least_px, most_px, max_gap):
        if gap == "adaptive":
            return choose_gaps(sequence, least_px, most_px, max_gap)
        try:
            k = int(gap)
        except ValueError:
            raise DataError(f"gap {gap!r}: write a number of frames or adaptive") from None
        if k < 1:
            raise DataError(f"gap {gap}: write a number of frames from 1 on, or adaptive")
        return np.full(len(sequence), k)

    def __len__(self) -> int:
        return len(self.rows)

    def steps_per_epoch(self, batch: int) -> int:
        """Full batches in one pass; 1 where there are fewer triplets than `batch`, which then repeat."""
        return max(1, len(self) // batch)

    def batch(self, step: int, batch: int, seed: int, rows: slice = slice(None)) -> Batch:  # noqa: B008 - immutable
        """The batch of a step: epoch and place in its permutation follow from `step`; `rows` of it are made.

        All draws are made for the whole batch first, so the parts of several ranks make up the batch of one.
        """
        epoch, place = divmod(step, self.steps_per_epoch(batch))
        order = _permutation(len(self), seed, epoch)
        chosen = np.take(order, range(place * batch, (place + 1) * batch), mode="wrap")
        draws = _draws(self.augmentation, batch, seed, step)
        return self._assemble(self.rows[chosen[rows]], {name: value[rows] for name, value in draws.items()})

    def prefetch(
        self,
        first_step: int,
        batch: int,
        seed: int,
        workers: int = 2,
        rows: slice = slice(None),  # noqa: B008 - immutable
        steps: int | None = None,
        pin: bool = False,
    ) -> Iterator[Batch]:
        """Batches of `first_step`, +1, … (endless, or `steps` of them) in order, made ahead by worker threads.

        An exception in a worker is raised where its batch is due. 0 workers make each batch when asked.
        """

        def make(step):
            made = self.batch(step, batch, seed, rows)
            return made.pin() if pin else made

        todo = iter(range(first_step, first_step + steps) if steps is not None else itertools.count(first_step))
        if workers < 1:
            yield from map(make, todo)
            return
        pool, ahead = ThreadPoolExecutor(workers, thread_name_prefix="triplets"), deque()
        try:
            for step in todo:
                ahead.append(pool.submit(make, step))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _assemble(self, rows: np.ndarray, draws: dict[str, np.ndarray]) -> Batch:
        height, width = self.sequences[0].rgb.shape[1:3]
        clean = torch.empty(3, len(rows), 3, height, width)
        jittered = clean.clone() if draws["jitter"].any() else clean
        masks = torch.zeros(3, len(rows), 1, height, width, dtype=torch.bool)
        intrinsics = torch.full((len(rows), 4), float("nan"))
        names = []
        for b, (number, i, k) in enumerate(rows.tolist()):
            sequence, mirrored = self.sequences[number], draws["flip"][b]
            earlier, later = (i + k, i - k) if draws["reverse"][b] else (i - k, i + k)
            names.append(f"{sequence.name}/{sequence.index[i]}{'-' if draws['reverse'][b] else '+'}{k}")
            for f, at in enumerate((i, earlier, later)):
                rgb = sequence.rgb[at]
                rgb = cv2.flip(rgb, 1) if mirrored else np.ascontiguousarray(rgb)
                cv2.split(cv2.LUT(rgb, TO_UNIT), list(clean[f, b].numpy()))
                if jittered is not clean:
                    if draws["jitter"][b]:
                        cv2.split(colour_jitter(rgb, *draws["colour"][b, f]), list(jittered[f, b].numpy()))
                    else:
                        jittered[f, b] = clean[f, b]
                if sequence.instrument is not None:
                    mask = torch.from_numpy(np.array(sequence.instrument[at]))
                    masks[f, b, 0] = mask.flip(-1) if mirrored else mask
            if sequence.intrinsics is not None:
                intrinsics[b] = torch.from_numpy(sequence.intrinsics)
                if mirrored:
                    intrinsics[b, 2] = 1 - intrinsics[b, 2]
        return Batch(*clean, *jittered, *masks, intrinsics, names)


def colour_jitter(rgb: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """(H,W,3) uint8 RGB → float32 in [0,1]: factors of brightness, contrast (about the mean grey) and saturation, in
    this order as one affine map, then clamped; then the hue turned by `hue` of the circle (HSV).
    """
    mean = brightness * float(np.dot(cv2.mean(rgb)[:3], LUMA)) / 255
    mix = saturation * np.eye(3) + (1 - saturation) * np.tile(LUMA, (3, 1))
    affine = np.hstack([mix * (brightness * contrast / 255), np.full((3, 1), (1 - contrast) * mean)])
    mixed = cv2.transform(rgb.astype(np.float32), affine.astype(np.float32))
    np.clip(mixed, 0, 1, out=mixed)
    if hue == 0:
        return mixed
    hsv = cv2.cvtColor(mixed, cv2.COLOR_RGB2HSV)
    return cv2.cvtColor(cv2.add(hsv, (360 * (hue % 1), 0, 0, 0)), cv2.COLOR_HSV2RGB)  # takes any hue from 0 on


def score_frames(cached: list[CachedSequence], every: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(H,W,3) uint8 RGB and (H,W) float32 depth [m], NaN where unknown, of every so many frames that have a truth."""
    for sequence in cached:
        if sequence.depth is None:
            continue
        for i in range(0, len(sequence), every):
            yield np.array(sequence.rgb[i]), np.asarray(sequence.depth[i], np.float32)


@lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng((seed, epoch)).permutation(length)
    order.setflags(write=False)
    return order


def _draws(options: Augmentation, batch: int, seed: int, step: int) -> dict[str, np.ndarray]:
    """What happens to every triplet; `colour` is (B,3,4): brightness, contrast, saturation, hue per image."""
    random = np.random.default_rng((seed, step, 1))
    chance, colour = random.random((3, batch)), random.uniform(-1, 1, (batch, 3, 4))
    if options.shared_jitter:
        colour[:, 1:] = colour[:, :1]
    ranges = np.array((options.brightness, options.contrast, options.saturation, options.hue))
    return {
        "flip": chance[0] < options.flip,
        "jitter": chance[1] < options.jitter,
        "reverse": (chance[2] < 0.5) & options.time_reversal,
        "colour": np.array((1, 1, 1, 0)) + colour * ranges,
    }
