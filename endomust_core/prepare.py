"""A public data set as downloaded → sequences in our layout, resumable, with checksums and a self-check."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from endomust_core.data import PREPARED, DataError, dataset_class
from endomust_core.data.rendered import RenderedFolder
from endomust_core.preparing import scared_raw
from endomust_core.preparing.alignment import REACH, check_alignment
from endomust_core.preparing.motion_check import check_motion
from endomust_core.preparing.raw import RawSequence, sequences_of
from endomust_core.preparing.writer import CHECKSUMS, SequenceWriter, read_checksums

FORMAT = 1  # raised when what is written changes its meaning; finished sequences are then done again
DEPTH_UNIT_M = 1e-5  # 16 bits reach 0.655 m
COARSE_UNIT_M = 5e-5  # 3.28 m, for sets in units of centimetres
NOTHING_TO_DO = ("rendered", "scenes", "folder")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedSequence:
    """What one sequence holds now."""

    name: str
    frames: int
    depth_frames: int
    depth_range_m: tuple[float, float] | None
    poses: int
    reused: bool  # it was there already
    problems: tuple[str, ...]  # something is missing or wrong
    remarks: tuple[str, ...]  # worth knowing


@dataclass
class PrepareReport:
    """What `prepare` has done; `complete` is False where anything is missing or wrong."""

    name: str
    out: Path
    sequences: list[PreparedSequence] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # of sequences that could not be written at all

    @property
    def complete(self) -> bool:
        """Whether every sequence was written with everything that belongs to it."""
        return not self.problems and not any(sequence.problems for sequence in self.sequences)

    def text(self) -> str:
        """For people: a line per sequence, and what is wrong below."""
        lines = [f"{self.name} → {self.out}: {len(self.sequences)} sequences"]
        for one in self.sequences:
            near = (
                ""
                if one.depth_range_m is None
                else " ({:.1f} to {:.1f} mm)".format(*(1e3 * z for z in one.depth_range_m))
            )
            again = ", was there" if one.reused else ""
            lines.append(
                f"  {one.name}: {one.frames} frames, {one.depth_frames} depths{near}, {one.poses} poses{again}"
            )
            lines += [f"    {sentence}" for sentence in (*one.problems, *one.remarks)]
        lines += [f"  {sentence}" for sentence in self.problems]
        lines.append("complete" if self.complete else "INCOMPLETE: mend what is named above and run the command again")
        return "\n".join(lines)


def prepare(
    name: str,
    raw: str | Path,
    out: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> PrepareReport:
    """Write every sequence of the download `raw` of data set `name` below `out`.

    A sequence that is finished and whose raw files have not changed is left as it is; one that is not finished has no
    folder under its name. `progress(done, announced)` counts frames. Ends with checksums.txt over everything (check it
    with `verify`, or sha256sum -c). Raises DataError for a wrong tree and for a full disk; anything less is named in
    the report and the rest is done.
    """
    kind = dataset_class(name)
    if name in NOTHING_TO_DO:
        raise DataError(f"{name} needs no preparing; open it as {name}:{raw}")
    raw, out = Path(raw).expanduser(), Path(out).expanduser()
    _check_places(raw, out)
    sequences = scared_raw.sequences(raw) if name == "scared" and scared_raw.is_raw(raw) else sequences_of(kind(raw))
    report, done, announced = PrepareReport(name, out), 0, sum(sequence.announced for sequence in sequences)

    def tick(count: int = 1) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, announced), announced)

    for sequence in sequences:
        key = _key(name, raw, sequence)
        if _finished(out / sequence.name, key):
            report.sequences.append(_described(sequence.name, out / sequence.name, reused=True))
            tick(sequence.announced)
            continue
        try:
            report.sequences.append(_prepare_one(name, kind, sequence, out, key, tick))
        except DataError as error:
            log.warning("%s: %s", sequence.name, error)
            report.problems.append(f"{sequence.name} could not be prepared: {error}")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(_full(out)) from error
            raise DataError(f"cannot write below {out}: {error}; choose another folder") from error
    if not report.sequences:
        raise DataError("nothing could be prepared: " + "; ".join(report.problems[:3]))
    _close(report)
    return report


def _prepare_one(name: str, kind: type, sequence: RawSequence, out: Path, key: str, tick) -> PreparedSequence:
    """Write, check and name one sequence; leaves nothing behind when it fails."""
    unit = COARSE_UNIT_M if kind.protocol.max_depth > 0.6 else DEPTH_UNIT_M
    place = out / sequence.name
    writer = SequenceWriter(place, name, sequence.name, kind.protocol, unit)
    try:
        sequence.write(writer, tick)
        if not writer.frames:
            raise DataError(writer.problems[0] if writer.problems else "it holds no frame that can be read")
        if writer.out_of_range:
            writer.remarks.append(
                f"{writer.out_of_range} depth values beyond {65535 * unit:.2f} m are stored as unknown"
            )
        writer.describe()
        _check(writer)
        writer.finish(key)
    finally:
        writer.abandon()
    return _described(sequence.name, place, reused=False)


def _check(writer: SequenceWriter) -> None:
    """What can be known of the written frames from themselves."""
    written = RenderedFolder(writer.part)
    if writer.depths and writer.depth_range is None:
        writer.problems.append("no depth image holds a single known value; are they the right files?")
    if writer.depths and len(writer.frames) > 2 * REACH:
        alignment = check_alignment(written)
        if alignment is None or not alignment.decided:
            writer.remarks.append(
                "whether image and depth belong together could not be decided (too few frames or edges)"
            )
        elif alignment.sentence():
            writer.problems.append(alignment.sentence())
    sentence = check_motion(written) if writer.depths and writer.poses else None
    if sentence is not None:
        writer.problems.append(sentence)


def _described(name: str, place: Path, reused: bool) -> PreparedSequence:
    meta = yaml.safe_load((place / "meta.yaml").read_text(encoding="utf-8"))
    poses = place / "poses.txt"
    count = sum(not line.startswith("#") for line in poses.read_text().splitlines()) if poses.exists() else 0
    near = None if meta["depth_range_m"] is None else tuple(meta["depth_range_m"])
    problems, remarks = tuple(meta["problems"]), tuple(meta["remarks"])
    return PreparedSequence(name, meta["frames"], meta["depth_frames"], near, count, reused, problems, remarks)


def _finished(place: Path, key: str) -> bool:
    """Whether the sequence is there, from the same raw files, with every file that it had."""
    try:
        meta = yaml.safe_load((place / "meta.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return False
    names = read_checksums(place / CHECKSUMS)
    return bool(names) and meta.get("source") == key and all((place / name).is_file() for name in names)


def _key(name: str, raw: Path, sequence: RawSequence) -> str:
    """The state of the raw files: a change makes the sequence anew."""
    described: list = [FORMAT, name, sequence.name]
    for file in sequence.files:
        if file.exists():
            status = file.stat()
            described.append([os.path.relpath(file, raw), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _check_places(raw: Path, out: Path) -> None:
    if not raw.is_dir():
        raise DataError(f"{raw} {'is no folder' if raw.exists() else 'does not exist'}; give the unpacked download")
    inside, outer = out.resolve(), raw.resolve()
    if inside == outer or outer in inside.parents:
        raise DataError(f"{out} lies in the download {raw}; choose a folder outside it")
    known = out / PREPARED
    if out.is_dir() and any(out.iterdir()) and not known.exists() and not any(out.rglob(CHECKSUMS)):
        if not any(file.name.endswith(".part") for file in out.rglob("*.part")):
            raise DataError(
                f"{out} holds something else; choose a new folder, or one that `endomust prepare` has begun"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write below {out}: {error.strerror}; choose another folder") from error


def _close(report: PrepareReport) -> None:
    """checksums.txt over all sequences, and the mark that says what this folder is."""
    lines = []
    for sequence in report.sequences:
        for name, digest in read_checksums(report.out / sequence.name / CHECKSUMS).items():
            lines.append(f"{digest}  {sequence.name}/{name}\n")
    summary = {
        "data_set": report.name,
        "sequences": {one.name: {"frames": one.frames, "depths": one.depth_frames} for one in report.sequences},
        "complete": report.complete,
    }
    _replace(report.out / CHECKSUMS, "".join(lines))
    _replace(report.out / PREPARED, yaml.safe_dump(summary, sort_keys=False))


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _full(out: Path) -> str:
    free = shutil.disk_usage(out).free
    return f"the disk of {out} is full ({free / 1e9:.2f} GB free); make room and run the command again, it goes on"
