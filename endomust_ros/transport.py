"""Environment of a process that moves camera images over DDS: environment in, the same with our DDS profile out.

By default Fast DDS has 512 kB of shared memory per participant, and an endoscope image of 4 MB that does not fit is
often lost: best-effort subscribers got none to a third of them. Our profile gives room for several whole images
(dds_profile.py) and keeps UDP for other machines; the publishing process needs it.
"""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from endomust_core.resources import share
from endomust_ros.dds_profile import (
    MEGABYTE,
    SIZE,
    cache_folder,
    image_size,
    node_messages,
    segment_bytes,
    write_profile,
)

VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")  # Fast DDS 3, Fast DDS 2
SWITCH = "ENDOMUST_DDS_PROFILE"  # auto, none, or the path of a profile
SHARED_MEMORY = Path("/dev/shm")
PARTICIPANTS = 2  # the camera driver and the node, on one machine; each takes its whole segment when it starts

Messages = Callable[[int, int], Mapping[str, int]]  # image width and height → what is published, and its bytes


def fast_dds_environment(env: Mapping[str, str], messages: Messages = node_messages) -> dict[str, str]:
    """`env` with RMW_IMPLEMENTATION defaulted and, where it is of use, the Fast DDS profile for large images.

    Nothing that the user has set is changed. Raises FileNotFoundError when ENDOMUST_DDS_PROFILE names no file, and
    ProfileError when ENDOMUST_IMAGE_SIZE is no size.
    """
    env = _with_wheels(dict(env))
    env.setdefault("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    profile, _ = dds_profile(env, messages)
    if profile is not None:
        env.update(dict.fromkeys(VARIABLES, str(profile)))
    return env


def dds_profile(env: Mapping[str, str], messages: Messages = node_messages) -> tuple[Path | None, str]:
    """The profile to set, written to the user's cache, or None, and a sentence that says why."""
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
    width, height = image_size(env.get(SIZE, ""))
    segment = segment_bytes(messages(width, height).values())
    missing = _too_little_memory(segment, f"{width}x{height}")
    return (None, missing) if missing else _sized(env, segment, f"{width}x{height}")


def _sized(env: Mapping[str, str], segment: int, size: str) -> tuple[Path, str]:
    room = f"Fast DDS uses {segment // MEGABYTE} MB of shared memory for images up to {size}"
    try:
        return write_profile(cache_folder(env), segment), f"{room} ({SIZE})"
    except OSError as error:
        fixed = share("config", "fastdds_large_images.xml")
        return fixed, f"Fast DDS uses 64 MB of shared memory: the profile for {size} cannot be written ({error})"


def _too_little_memory(segment: int, size: str) -> str:
    """A sentence with a remedy where the camera driver and the node would not find room; else empty."""
    free, wanted = _free_shared_memory(), PARTICIPANTS * segment
    if free is None or free >= wanted:
        return ""
    room = 1 << (2 * wanted // MEGABYTE - 1).bit_length()
    return (
        f"{SHARED_MEMORY} has {free // MEGABYTE} MB free; camera and node want {wanted // MEGABYTE} MB for images "
        f"of {size}, so large raw images get lost; start the container with --ipc=host or --shm-size={room}m, or say "
        f"so where your images are smaller ({SIZE}=640x512, image_size:=640x512)"
    )


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
