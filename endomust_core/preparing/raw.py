"""One raw sequence and how it is written; any data set that opens is a source of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from endomust_core.data import DataError, Dataset
from endomust_core.preparing.writer import SequenceWriter

NAMED = 5  # frames that a sentence names before it only counts


@dataclass(frozen=True)
class RawSequence:
    """A sequence of a download: its name in the output, what it is made of, and who writes it."""

    name: str
    files: tuple[Path, ...]
    announced: int  # frames
    write: Callable[[SequenceWriter, Callable[[], None]], None]  # calls the second argument after every frame


def sequences_of(dataset: Dataset) -> list[RawSequence]:
    """The groups of a data set, or its single images where each has a camera of its own."""
    if dataset.STILLS:
        return [_raw(dataset, item.name, [number]) for number, item in enumerate(dataset.items)]
    return [_raw(dataset, group, numbers) for group, numbers in dataset.groups().items()]


def listed(what: str, indices: list[int]) -> str:
    """`depth of frame 3`, `depth of frames 3, 4 and 12 more`."""
    named = ", ".join(str(index) for index in indices[:NAMED])
    more = f" and {len(indices) - NAMED} more" if len(indices) > NAMED else ""
    return f"{what} of frame{'s' if len(indices) > 1 else ''} {named}{more}"


def _raw(dataset: Dataset, name: str, numbers: list[int]) -> RawSequence:
    chosen = [dataset.items[number] for number in numbers]
    files = tuple(
        dict.fromkeys(f for item in chosen for f in (item.image, item.truth, item.mask) if f is not None and f.exists())
    )
    return RawSequence(name, files, len(numbers), partial(_write, dataset, numbers))


def _write(dataset: Dataset, numbers: list[int], writer: SequenceWriter, tick: Callable[[], None]) -> None:
    """Every frame that can be read; the others are named in the writer's problems, images without depth kept."""
    no_image, no_depth, no_pose, why = [], [], [], ""
    for number in numbers:
        index = dataset.items[number].index - dataset.FIRST_INDEX
        try:
            sample = dataset.read(number)
        except DataError as error:
            why = why or str(error)
            try:
                sample = dataset.read(number, depth=False)
                no_depth.append(index)
            except DataError:
                no_image.append(index)
                tick()
                continue
        writer.add_rgb(index, sample.rgb)
        if sample.depth is not None:
            writer.add_depth(index, sample.depth)
        if sample.mask is not None:
            writer.add_mask(index, sample.mask)
        if sample.T_world_camera is not None:
            writer.poses[index] = sample.T_world_camera
        elif "pose" in dataset.tasks:
            no_pose.append(index)
        writer.camera = writer.camera or sample.camera
        tick()
    for what, missing in (("image", no_image), ("depth", no_depth)):
        if missing:
            writer.problems.append(
                f"{listed(what, missing)} missing or broken, of {len(numbers)} frames (first: {why})"
            )
    if no_pose:
        writer.problems.append(f"{listed('pose', no_pose)} missing, of {len(numbers)} frames")
