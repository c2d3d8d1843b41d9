"""A YAML file → what a model card is made from: data sets, clips, seeds, stages, words; checked, nothing is opened.

Every key is in the dataclasses below. Relative paths are relative to the working directory, as in every command; `base`
alone, another protocol whose keys hold where this one has none, goes from the folder of the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

from endomust_core.evaluate import EvaluationError, parse_corruption


class CardError(ValueError):
    """The card cannot be made as asked; the message says what to change."""


@dataclass(frozen=True)
class Group:
    """A data set with true depth: one row of every table."""

    name: str
    data: str  # NAME:PATH or NAME:PATH#SPLIT, as `endomust evaluate --data` takes it
    what: str = ""  # in words
    licence: str = ""  # of the data
    zero_shot: bool = False  # True: nothing of this domain was seen in training
    indicative: bool = (
        False  # True: too few images or too coarse a truth to conclude from; shown, left out of summaries
    )
    split: str = ""
    scaling: str = ""  # median | none; empty: as the field scores this set
    limit: int = 0  # only the first so many images of every sequence; 0: all
    note: str = ""  # what a reader must know of the truth


@dataclass(frozen=True)
class Clip:
    """Real images without truth, to look at: a video, a recording, or a folder of images."""

    name: str
    source: str
    what: str = ""
    licence: str = ""
    camera: str = ""  # ROS calibration file
    fov_deg: float = 0.0  # across the image, a guess where there is no calibration; 0: depth is judged image by image
    rate: float = 0.0  # images per second; a folder needs one
    frames: int = 0  # the first so many; 0: all
    rows: int = 4  # images shown, beside the one with most of an instrument


@dataclass(frozen=True)
class Protocol:
    """What the card of a model is made from."""

    groups: tuple[Group, ...]
    real: tuple[Clip, ...] = ()
    summary: str = ""  # a paragraph below the title
    uses: tuple[str, ...] = ()  # what it is for
    speed: str = ""  # measured elsewhere, in words; empty: timed here, which other programs disturb
    faults: tuple[str, ...] = ()  # such as smoke:3, as `endomust evaluate --corrupt` has them
    fault_images: int = 10  # of every sequence, the first so many are scored under each fault; 0: all
    limits: tuple[str, ...] = ()  # what nobody measured, beside what is measured here
    replicates: tuple[str, ...] = ()  # bundles or runs of the same recipe with other seeds
    stages: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # name → bundle or run of each seed
    reproduce: tuple[str, ...] = ()  # commands that made model and data
    cite: str = ""


def read_protocol(path: str | Path) -> Protocol:
    """Read and check the file; CardError names the key and what is allowed."""
    path = Path(path)
    protocol = _section(Protocol, _read(path), path.name)
    if not protocol.groups:
        raise CardError(f"{path.name} names no data set; list one or more under groups")
    files = [file_name(entry.name) for entry in (*protocol.groups, *protocol.real)]
    twice = sorted({file for file in files if files.count(file) > 1})
    if twice:
        raise CardError(f"{path.name}: the name '{twice[0]}' stands twice, and pictures go by it; change one")
    for group in protocol.groups:
        if group.scaling not in ("", "median", "none"):
            raise CardError(f"{path.name}: scaling of {group.name} is '{group.scaling}'; use median or none")
    for fault in protocol.faults:
        try:
            known = parse_corruption(fault)[0] is not None
        except EvaluationError as error:
            raise CardError(f"{path.name}: {error}") from error
        if not known:
            raise CardError(f"{path.name}: the fault '{fault}' has no severity; write {fault}:1 to {fault}:5")
    for clip in protocol.real:
        if not 0 <= clip.fov_deg < 180 or clip.rows < 1:
            raise CardError(f"{path.name}: {clip.name} needs rows of 1 or more and fov_deg below 180")
    return protocol


def _read(path: Path, below: tuple[Path, ...] = ()) -> dict:
    """The keys of the file over those of its base; below: the files that led here."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CardError(f"there is no protocol {path}; config/card.yaml is one to start from") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CardError(f"{path} is not YAML ({error}); mend it") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise CardError(f"{path.name} must be a section with keys, it is {values!r}")
    if "base" not in values:
        return values
    base, below = path.parent / str(values.pop("base")), (*below, path.resolve())
    if base.resolve() in below:
        raise CardError(f"{path.name}: base {base.name} leads back to itself; name another file, or none")
    return {**_read(base, below), **values}


def file_name(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^\w-]+", "_", name).strip("_").lower()


def _section(kind: type, values: object, where: str):
    """dict → dataclass `kind`."""
    if not isinstance(values, dict):
        raise CardError(f"{where} must be a section with keys, it is {values!r}")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(hints)}"
            raise CardError(f"{where}: there is no key '{key}'; {advice}")
    fields = dataclasses.fields(kind)
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in needed if name not in values]
    if missing:
        raise CardError(f"{where}: the key '{missing[0]}' is missing; add it")
    return kind(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _value(hint, value, where: str):
    """One value of the kind that its field declares; lists become tuples, one text a list of one."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _section(hint, value, where)
    if origin is tuple:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list):
            raise CardError(f"{where} must be a list, it is {value!r}")
        return tuple(_value(parts[0], one, f"{where}, entry {number}") for number, one in enumerate(values, 1))
    if origin is dict:
        if not isinstance(value, dict):
            raise CardError(f"{where} must be a section of names, it is {value!r}")
        return {str(name): _value(parts[1], one, f"{where}, {name}") for name, one in value.items()}
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise CardError(f"{where} is {value!r}; it must be of the kind {hint.__name__}")
    return value
