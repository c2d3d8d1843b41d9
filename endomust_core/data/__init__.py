"""Data sets on disk → samples: colour, true depth, camera and pose as numpy; one file per data set."""

from __future__ import annotations

import collections.abc
import difflib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from endomust_core.camera import Camera, CameraError


class DataError(ValueError):
    """A folder does not hold the data set it is said to hold, or a file of it is broken; the message says which."""


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it."""

    name: str  # unique in the data set, as in "dataset1/keyframe3/000012"
    group: str  # sequence, scene or domain: what scores are averaged over
    rgb: np.ndarray  # (H,W,3) uint8
    depth: np.ndarray | None  # (H,W) float32 [m] along the optical axis, NaN where unknown; None: no truth at all
    index: int = 0  # frame number in its sequence; a gap is a real gap
    camera: Camera | None = None  # of rgb; with D where images are not straightened
    T_world_camera: np.ndarray | None = None  # (4,4) float64 [m]
    mask: np.ndarray | None = None  # (H,W) bool, False on instruments and borders; None: nothing is known


@dataclass(frozen=True)
class Protocol:
    """How the field scores this set; lengths in metres."""

    min_depth: float
    max_depth: float
    scaling: str = "median"  # median | none
    crop: tuple[int, int, int, int] | None = None  # x0, y0, x1, y1 of the image that is used; already applied
    note: str = ""  # where the rules come from, caveats


@dataclass(frozen=True)
class Item:
    """Where one sample lies: what a data set knows of it before reading it."""

    name: str
    group: str
    index: int  # frame number in its sequence
    image: Path  # the image, or the video that holds it
    truth: Path | None = None  # the file of its depth
    T_world_camera: np.ndarray | None = None  # (4,4) [m], where poses come with the list
    mask: Path | None = None  # the file of its mask
    more: Any = None  # whatever else the data set needs to read it


class Dataset(collections.abc.Sequence):
    """Samples by number, read when asked for; items of one group stand together, in the order of time.

    A subclass says its `name`, `protocol`, `LAYOUT` (the expected tree, in words of the error messages), finds its
    items in `scan` and reads one in `load`. Construction raises DataError where the tree is not as expected.
    """

    name = ""
    protocol = Protocol(1e-3, 0.3)
    tasks: tuple[str, ...] = ("depth",)  # of "depth", "pose", "intrinsics": what it has truth for
    LAYOUT = ""
    STILLS = False  # single images, each with a camera of its own
    FIRST_INDEX = 0  # number of a sequence's first frame
    SPLITS: tuple[str, ...] = ()  # names that `split` may have beside those of groups

    def __init__(self, root: str | Path, split: str | None = None):
        self.root = Path(root).expanduser()
        self.split = split
        if not self.root.is_dir():
            raise self.wrong(f"{self.root} is no folder" if self.root.exists() else f"{self.root} does not exist")
        self.items = self.scan()
        if not self.items:
            raise self.wrong(f"{self.root} holds no image of {self.name}")

    def scan(self) -> list[Item]:
        """The items in order; DataError with the expected tree where there are none."""
        raise NotImplementedError

    def load(self, item: Item, depth: bool = True) -> Sample:
        """Read one item; DataError, OSError, ValueError or KeyError where a file of it is missing or broken."""
        raise NotImplementedError

    def camera(self, group: str) -> Camera | None:
        """The camera of a group's samples where one is known."""
        return None

    def files(self, group: str) -> tuple[Path, ...]:
        """The files there are that a group's samples come from: what a cache of them depends on."""
        mine = (item for item in self.items if item.group == group)
        named = dict.fromkeys(file for item in mine for file in (item.image, item.truth, item.mask) if file)
        return tuple(file for file in named if file.exists())

    def has_poses(self, group: str) -> bool:
        """Whether every sample of a group has a pose."""
        return all(item.T_world_camera is not None for item in self.items if item.group == group)

    def groups(self) -> dict[str, list[int]]:
        """Group → numbers of its samples in the order of time."""
        found: dict[str, list[int]] = {}
        for number, item in enumerate(self.items):
            found.setdefault(item.group, []).append(number)
        return found

    def read(self, number: int, depth: bool = True) -> Sample:
        """Sample `number`; without its depth (None) where only image, camera and pose are wanted.

        Raises DataError for a sample that is missing or broken, with its name; the caller counts and goes on.
        """
        item = self.items[number]
        try:
            return self.load(item, depth)
        except DataError as error:
            raise DataError(f"{self.name} {item.name}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, CameraError) as error:
            raise DataError(f"{self.name} {item.name} cannot be read ({type(error).__name__}: {error})") from error

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Sample:
        return self.read(number)

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(number) for number in range(len(self)))

    def wrong(self, what: str) -> DataError:
        """The error for a tree that is not as expected."""
        return DataError(f"{what}; {self.LAYOUT}")

    def unknown_split(self, groups: collections.abc.Iterable[str] = ()) -> DataError:
        """The error for a split that does not exist."""
        names = [*self.SPLITS, *list(dict.fromkeys(groups))[:8]]
        near = difflib.get_close_matches(str(self.split), names, n=1)
        advice = f"did you mean {near[0]}? " if near else ""
        choices = ", ".join(names) if names else "none: leave it out"
        return DataError(f"{self.name} has no split {self.split!r}; {advice}There are {choices}")

    def only_group(self, items: list[Item]) -> list[Item]:
        """The items of the group that `split` names, all where there is no split; else DataError."""
        if self.split is None:
            return items
        chosen = [item for item in items if item.group == self.split]
        if not chosen:
            raise self.unknown_split(item.group for item in items)
        return chosen


DATASETS: dict[str, tuple[str, str]] = {  # name → file in this folder, class; imported when opened
    "scared": ("scared", "Scared"),
    "hamlyn": ("hamlyn", "Hamlyn"),
    "c3vd": ("c3vd", "C3VD"),
    "simcol3d": ("simcol3d", "SimCol3D"),
    "servct": ("servct", "ServCT"),
    "endoslam": ("endoslam", "EndoSlam"),
    "stereomis": ("stereomis", "StereoMis"),
    "opencas": ("opencas", "OpenCas"),
    "rendered": ("rendered", "RenderedFolder"),
    "scenes": ("rendered", "Scenes"),
    "folder": ("folder", "ImageFolder"),
}


PREPARED = "prepared.yaml"  # what `endomust prepare` leaves in the folder that it has written


def dataset_class(name: str) -> type[Dataset]:
    """The class of a data set; DataError with the nearest name for one that is unknown."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        advice = f"did you mean {near[0]}:/path? " if near else ""
        raise DataError(f"unknown data set {name!r}; {advice}Write NAME:/path with one of {', '.join(DATASETS)}")
    module, kind = DATASETS[name]
    return getattr(importlib.import_module(f"endomust_core.data.{module}"), kind)


def open_dataset(spec: str, split: str | None = None) -> Dataset:
    """`NAME:/path`, or `NAME:/path#split`, → the data set; DataError with the expected tree where it is not there."""
    name, _, path = str(spec).partition(":")
    kind = dataset_class(name)
    if not path:
        raise DataError(f"{spec}: say where it lies, as in {name}:/path")
    if "#" in path and not Path(path).expanduser().exists():
        path, _, inline = path.rpartition("#")
        if split is not None and split != inline:
            raise DataError(f"{spec} names the split {inline!r}, and {split!r} is asked for; give one of them")
        split = inline
    if kind.name != "scared" and (Path(path).expanduser() / PREPARED).is_file():
        return _open_prepared(name, path, split)
    return kind(path, split)


def _open_prepared(name: str, path: str, split: str | None) -> Dataset:
    from endomust_core.data.rendered import RenderedFolder

    dataset = RenderedFolder(path, split)
    if name not in ("rendered", dataset.name):
        raise DataError(f"{path} was prepared from {dataset.name}; write {dataset.name}:{path}")
    return dataset
