"""Environment of a process that moves camera images over DDS: environment in, the same with our DDS profile out.

By default Fast DDS has 512 kB of shared memory per participant, and an endoscope image of 4 MB that does not fit is
lost: a best-effort subscriber got 0 of 300. Our profile gives 64 MB and keeps UDP for other machines; the publishing
process needs it.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from endomust_core.resources import share

VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")  # Fast DDS 3, Fast DDS 2
SWITCH = "ENDOMUST_DDS_PROFILE"  # auto, none, or the path of a profile
SEGMENT_BYTES = 64 << 20
SHARED_MEMORY = Path("/dev/shm")


def fast_dds_environment(env: Mapping[str, str]) -> dict[str, str]:
    """`env` with RMW_IMPLEMENTATION defaulted and, where it is of use, the Fast DDS profile for large images.

    Nothing that the user has set is changed. Raises FileNotFoundError when ENDOMUST_DDS_PROFILE names no file.
    """
    env = _with_wheels(dict(env))
    env.setdefault("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    profile, _ = dds_profile(env)
    if profile is not None:
        env.update(dict.fromkeys(VARIABLES, str(profile)))
    return env


def dds_profile(env: Mapping[str, str]) -> tuple[Path | None, str]:
    """The profile to set, or None, and a sentence that says why."""
    choice = env.get(SWITCH, "auto") or "auto"
    rmw = env.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    if choice == "none":
        return None, f"{SWITCH}=none: the DDS profile for large images is not used"
    if not rmw.startswith("rmw_fastrtps"):
        return None, f"{rmw} is in use; the profile for large images is for Fast DDS only"
    for name in (*VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS"):
        if env.get(name):
            return None, f"{name}={env[name]} is kept"
    if choice != "auto":
        return _existing(Path(choice)), f"Fast DDS profile {choice}"
    free = _free_shared_memory()
    if free is not None and free < 2 * SEGMENT_BYTES:
        return None, (
            f"{SHARED_MEMORY} has {free >> 20} MB free, too little for the profile for large images; "
            "start the container with --ipc=host or --shm-size=512m"
        )
    return share("config", "fastdds_large_images.xml"), "Fast DDS uses 64 MB of shared memory for large images"


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{SWITCH} names {path}, which is no file; give auto, none, or the path of a profile")
    return path.resolve()


def _free_shared_memory() -> int | None:
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def _with_wheels(env: dict[str, str]) -> dict[str, str]:
    """An rclpy from pip lives in sys.prefix, and finds its middleware only when AMENT_PREFIX_PATH says so."""
    prefixes = [part for part in env.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if part]
    installed = Path(sys.prefix, "share", "ament_index", "resource_index").is_dir()
    if installed and sys.prefix not in prefixes:
        env["AMENT_PREFIX_PATH"] = os.pathsep.join([*prefixes, sys.prefix])
    return env
