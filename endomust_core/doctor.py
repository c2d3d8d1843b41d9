"""Will this machine work, and what to do where not: reads the machine, asks the checks, and makes a page or JSON of it.

Knows no ROS; endomust_ros/doctor.py does that half, with the same rows. Nothing here is fatal: a machine on which
everything is missing gets a page that says so.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

from endomust_core import __version__
from endomust_core.checks import (
    FAIL,
    OK,
    WARN,
    Finding,
    Row,
    acceleration,
    calibration,
    examine,
    machine,
    output_of,
    software,
    text_of,
    worst,
)
from endomust_core.engine_cache import default_folder

FORMAT = 1
NAME_WIDTH = 17
EXIT_CODES = {OK: 0, WARN: 0, FAIL: 3}


def examine_machine(
    providers: Sequence[str] = ("cpu",),
    bundle: str | Path | None = None,
    camera: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
) -> list[Row]:
    """The rows of everything but ROS. `bundle` None is the one that ships; `image_size` is (H, W)."""
    installed = installed_packages()
    return [
        *_software(installed),
        *_model(providers, bundle),
        *_acceleration(providers, installed),
        *_hardware(),
        _camera(camera, image_size),
    ]


def installed_packages() -> dict[str, str]:
    """Distribution in lower case → version; of two of the same name the one that Python finds first."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        found.setdefault(name, distribution.version)
    return found


def _software(installed: dict[str, str]) -> list[Row]:
    modules = [*software.REQUIRED, *(["cv_bridge"] if _spec("cv_bridge") else [])]
    imports = software.try_imports(modules)
    rows = [
        examine("Python", software.python, sys.version_info[:3], sys.executable),
        examine("packages", software.libraries, imports),
        examine("duplicates", software.duplicates, installed),
    ]
    if "cv_bridge" in imports:
        rows.append(examine("cv_bridge", software.cv_bridge, imports["cv_bridge"], imports["numpy"].version))
    return rows


def _spec(module: str):
    from importlib.util import find_spec

    return find_spec(module)


def _model(providers: Sequence[str], bundle: str | Path | None) -> list[Row]:
    def run() -> Finding:
        path = _bundle(bundle)
        return acceleration.providers(providers, {name: acceleration.measure_apart(name, path) for name in providers})

    return [examine("bundle", lambda: acceleration.bundle(_bundle(bundle))), examine("providers", run)]


def _bundle(path: str | Path | None) -> Path:
    from endomust_core.bundle import default_bundle

    return Path(path) if path else default_bundle()


def _acceleration(providers: Sequence[str], installed: dict[str, str]) -> list[Row]:
    release = text_of("/etc/nv_tegra_release")
    power = output_of(("nvpmodel", "-q")) if release else None
    listing = None if release else output_of(acceleration.QUERY)
    tensorrt = acceleration.tensorrt_version(installed, acceleration.libnvinfer_files())
    return [
        examine("GPU", acceleration.gpu, listing, providers, release),
        *([examine("Jetson", acceleration.jetson, release, power)] if release else []),
        examine("TensorRT", acceleration.tensorrt, tensorrt, providers, release is not None),
    ]


def _hardware() -> list[Row]:
    cores, cache = usable_cores(), default_folder()
    place = machine.existing(cache)
    return [
        examine("CPU", machine.cpu, text_of("/proc/cpuinfo") or "", cores, platform.machine()),
        examine("CPU clock", machine.governor, *machine.read_governors()),
        examine("limits", lambda: machine.limits(machine.read_limits(), cores, _memory())),
        examine("engine cache", machine.engine_cache, cache),
        examine("disk", lambda: machine.disk(place, shutil.disk_usage(place).free)),
    ]


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int | None:
    return machine.memory_total(text_of("/proc/meminfo"))


def _camera(camera: str | Path | None, image_size: tuple[int, int] | None) -> Row:
    if camera is None:
        return examine("calibration", calibration.nothing_to_check)
    return examine("calibration", calibration.file_calibration, camera, image_size)


# ---- what becomes of the rows ----------------------------------------------------------------------------------------


def exit_code(rows: Sequence[Row]) -> int:
    """0 where nothing fails, warnings allowed; 3 otherwise."""
    return EXIT_CODES[worst(rows)]


def page(rows: Sequence[Row], width: int = 110) -> str:
    """A table of all rows, the remedies below it, and a last line that sums up."""
    lines = [f"endomust {__version__} on {platform.system()} {platform.machine()}", ""]
    for row in rows:
        head = f"{row.level:<5}{row.name:<{NAME_WIDTH - 1}} "
        lines += textwrap.wrap(head + row.sentence, width, subsequent_indent=" " * len(head), break_on_hyphens=False)
    remedies = [row for row in sorted(rows, key=lambda row: row.level != FAIL) if row.remedy]
    if remedies:
        lines += ["", "What to do"]
    for row in remedies:
        head = f"  {row.name}: "
        lines += textwrap.wrap(head + row.remedy, width, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join([*lines, "", summary(rows)])


def summary(rows: Sequence[Row]) -> str:
    """One line: does it work."""
    count = {level: sum(row.level == level for row in rows) for level in (OK, WARN, FAIL)}
    warnings = f"{count[WARN]} warning{'' if count[WARN] == 1 else 's'}"
    if count[FAIL]:
        return f"{count[FAIL]} of {len(rows)} checks failed, {warnings}: this machine will not work as it is."
    return f"{len(rows)} checks, {warnings}, nothing failed."


def to_json(rows: Sequence[Row]) -> str:
    """The same for programs."""
    checks = [{"name": r.name, "level": r.level, "sentence": r.sentence, "remedy": r.remedy} for r in rows]
    report = {"format": FORMAT, "endomust": __version__, "level": worst(rows), "checks": checks}
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"
