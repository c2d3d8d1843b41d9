"""Processor, container limits, disk and cache folder: what /proc, /sys and the file system say → findings."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from endomust_core.checks import FAIL, OK, WARN, Finding, size_words, text_of

FLAGS = {  # in /proc/cpuinfo → as people write them; what ONNX Runtime's CPU kernels make use of
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "asimddp": "dot product",
    "i8mm": "int8 matrices",
    "sve": "SVE",
}
SELF_SCALING = ("intel_pstate", "amd-pstate-epp")  # their "powersave" still raises the clock under load
MEMORY_TIGHT, MEMORY_TOO_LITTLE = 1.0e9, 0.4e9  # bytes: the node with the default bundle takes some 0.3 GB
DISK_TIGHT, DISK_TOO_LITTLE = 2.0e9, 0.2e9  # bytes: an engine of a large model takes some 0.5 GB


class Limits(NamedTuple):
    """What the control group allows; None where it does not limit."""

    cores: float | None = None
    memory: int | None = None


def cpu(cpuinfo: str, cores: int, architecture: str) -> Finding:
    """Enough cores, and the vector instructions that make inference quick."""
    fields = dict(line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    present = (fields.get("flags") or fields.get("Features") or "").split()
    known = [words for flag, words in FLAGS.items() if flag in present]
    model = fields.get("model name") or fields.get("Model") or architecture
    sentence = f"{cores} cores, {model}, {', '.join(known) or 'no vector extensions seen'}"
    if architecture == "x86_64" and present and "avx2" not in present:
        return Finding(WARN, f"{sentence}: without AVX2 inference is several times slower", _virtual(present))
    if cores < 2:
        return Finding(WARN, sentence, "give the node two cores or more: one decodes and publishes while one infers")
    return Finding(OK, sentence)


def _virtual(present: Sequence[str]) -> str:
    if "hypervisor" in present:
        return "let the virtual machine pass the host's processor through (QEMU: -cpu host)"
    return "take a processor with AVX2, or a GPU"


def governor(governors: Sequence[str], driver: str | None) -> Finding:
    """The clock of the processor rises when work comes."""
    kinds = sorted(set(governors))
    if not kinds:
        return Finding(OK, "no frequency control is visible here (container or virtual machine)")
    sentence = f"{', '.join(kinds)}{f' ({driver})' if driver else ''}"
    if "powersave" in kinds and driver not in SELF_SCALING:
        remedy = "sudo cpupower frequency-set -g performance; on Jetson sudo jetson_clocks"
        return Finding(WARN, f"{sentence}: the clock stays at its lowest", remedy)
    return Finding(OK, sentence)


def read_governors(root: str | Path = "/sys/devices/system/cpu") -> tuple[list[str], str | None]:
    """(governor of every core, name of the driver)."""
    found = [text_of(path) for path in sorted(Path(root).glob("cpu[0-9]*/cpufreq/scaling_governor"))]
    return [text for text in found if text], text_of(Path(root) / "cpu0/cpufreq/scaling_driver")


def read_limits(root: str | Path = "/sys/fs/cgroup", own: str | None = None) -> Limits:
    """The tightest of this process's control group and those above it (version 2), or of version 1's usual places."""
    root = Path(root)
    own = text_of("/proc/self/cgroup") if own is None else own
    place = next((line[3:] for line in (own or "").splitlines() if line.startswith("0::")), "/")
    steps = [part for part in PurePosixPath(place).parts if part not in ("/", "..")]
    folders = [root.joinpath(*steps[:count]) for count in range(len(steps) + 1)]
    cores = [_quota(text_of(folder / "cpu.max")) for folder in folders]
    memory = [_bytes(text_of(folder / "memory.max")) for folder in folders]
    quota, period = text_of(root / "cpu/cpu.cfs_quota_us"), text_of(root / "cpu/cpu.cfs_period_us")
    if quota and period:
        cores.append(_quota(f"{quota} {period}"))
    memory.append(_bytes(text_of(root / "memory/memory.limit_in_bytes")))
    return Limits(_least(cores), _least(memory))


def _quota(text: str | None) -> float | None:
    """'150000 100000' → 1.5 cores."""
    numbers = (text or "").split()
    limited = len(numbers) == 2 and numbers[0].isdigit() and numbers[1].isdigit() and int(numbers[1]) > 0
    return int(numbers[0]) / int(numbers[1]) if limited else None


def _bytes(text: str | None) -> int | None:
    # Version 1 writes a number near 2^63 for "no limit".
    return int(text) if text and text.isdigit() and int(text) < 1 << 60 else None


def _least(values: list):
    return min((value for value in values if value is not None), default=None)


def limits(found: Limits, cores: int, memory_total: int | None) -> Finding:
    """The container or service leaves the node enough processor time and memory."""
    memory = _least([found.memory, memory_total])
    allowed = cores if found.cores is None else min(found.cores, cores)
    sentence = f"{allowed:.3g} of {cores} cores" + (f", {size_words(memory)} of memory" if memory else "")
    if memory is not None and memory < MEMORY_TOO_LITTLE:
        return Finding(FAIL, f"{sentence}: too little memory for the node", "raise the limit (docker run --memory=2g)")
    if found.cores is not None and found.cores < cores:
        threads = max(1, int(found.cores))
        remedy = f"set model.threads to {threads}, or raise the limit (docker run --cpus, systemd CPUQuota)"
        return Finding(WARN, f"{sentence}: ONNX Runtime would start {cores} threads and be held up", remedy)
    if memory is not None and memory < MEMORY_TIGHT:
        return Finding(WARN, f"{sentence}: tight", "raise the limit (docker run --memory=2g)")
    return Finding(OK, sentence)


def memory_total(meminfo: str | None) -> int | None:
    """Bytes, from /proc/meminfo."""
    lines = (line.split() for line in (meminfo or "").splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[:1] == ["MemTotal:"]), None)


def disk(folder: str | Path, free: int) -> Finding:
    """Room for engines, logs and recordings."""
    sentence = f"{size_words(free)} free at {folder}"
    if free < DISK_TOO_LITTLE:
        return Finding(FAIL, sentence, f"make room at {folder}")
    if free < DISK_TIGHT:
        return Finding(WARN, sentence, f"make room at {folder}; recordings and engines need more")
    return Finding(OK, sentence)


def engine_cache(folder: Path) -> Finding:
    """Built engines can be kept; else every start builds them again."""
    parent = existing(folder)
    if not parent.is_dir():
        return Finding(FAIL, f"{folder} cannot be made: {parent} is a file", f"move {parent} out of the way")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        remedy = f"give the user the folder {parent}, or set XDG_CACHE_HOME to one that can be written"
        return Finding(WARN, f"{folder} cannot be written ({error.strerror}): every start would build again", remedy)
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    used = sum(path.stat().st_size for path in files)
    return Finding(OK, f"{folder}, {len(files)} files, {size_words(used)}")


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above that exists."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder
