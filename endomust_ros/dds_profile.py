"""Fast DDS profile sized for camera images: messages [bytes] → shared memory [bytes] → XML → a file in the cache.

A participant gets its shared memory when ROS starts, before the first image is seen, so the image size must be told.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

SIZE = "ENDOMUST_IMAGE_SIZE"  # WIDTHxHEIGHT of the camera's images
LARGEST_EXPECTED = (1920, 1080)  # pixels, where nobody told
CLOUD_STRIDE = 2  # the node's default
DEEP = 4  # of the largest message find room: all that one image gives, or one while slow readers still hold others
MEGABYTE = 1 << 20
FLOOR, CEILING = 16 * MEGABYTE, 512 * MEGABYTE


class ProfileError(ValueError):
    """An image size that cannot be read; the text says how it is written."""


def image_size(text: str) -> tuple[int, int]:
    """'1280x1024' → (1280, 1024); empty is LARGEST_EXPECTED. Raises ProfileError."""
    if not text:
        return LARGEST_EXPECTED
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) < 1 << 15 and 0 < int(height) < 1 << 15):
        raise ProfileError(f"the image size is '{text}'; write WIDTHxHEIGHT such as 1280x1024 ({SIZE}, image_size:=)")
    return int(width), int(height)


def camera_messages(width: int, height: int) -> dict[str, int]:
    """What a camera driver publishes [bytes]."""
    return {"rgb8": 3 * width * height}


def node_messages(width: int, height: int, stride: int = CLOUD_STRIDE) -> dict[str, int]:
    """What the node publishes for an image of this size when everything is subscribed to [bytes]."""
    points = -(-width // stride) * -(-height // stride)
    picture = 3 * width * height
    return {"32FC1": 4 * width * height, "cloud": 16 * points, "rgb8": picture, "colour": picture}


def segment_bytes(messages: Iterable[int]) -> int:
    """Shared memory for a participant that publishes messages of these sizes: whole megabytes, FLOOR to CEILING."""
    return min(max(-(-DEEP * max(messages) // MEGABYTE) * MEGABYTE, FLOOR), CEILING)


def profile_xml(segment: int) -> str:
    """The profile as Fast DDS 2 and 3 read it: `segment` bytes of shared memory, and UDP for other machines."""
    return f"""<?xml version="1.0" encoding="UTF-8" ?>
<!-- Written by endomust_ros for the image size it was started with: shared memory that holds whole images. -->
<dds xmlns="http://www.eprosima.com">
  <profiles>
    <transport_descriptors>
      <transport_descriptor>
        <transport_id>shared_memory_large</transport_id>
        <type>SHM</type>
        <segment_size>{segment}</segment_size>
      </transport_descriptor>
      <transport_descriptor>
        <transport_id>udp</transport_id>
        <type>UDPv4</type>
      </transport_descriptor>
    </transport_descriptors>
    <participant profile_name="large_images" is_default_profile="true">
      <rtps>
        <userTransports>
          <transport_id>shared_memory_large</transport_id>
          <transport_id>udp</transport_id>
        </userTransports>
        <useBuiltinTransports>false</useBuiltinTransports>
      </rtps>
    </participant>
  </profiles>
</dds>
"""


def cache_folder(env: Mapping[str, str]) -> Path:
    """$XDG_CACHE_HOME/endomust, or ~/.cache/endomust."""
    given = env.get("XDG_CACHE_HOME", "")
    home = Path(env.get("HOME") or Path.home())
    return (Path(given) if os.path.isabs(given) else home / ".cache") / "endomust"


def write_profile(folder: Path, segment: int) -> Path:
    """The file with the profile of this size, written whole or not at all: another process may read it meanwhile."""
    path, text = folder / f"fastdds_{segment // MEGABYTE}mb.xml", profile_xml(segment)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
