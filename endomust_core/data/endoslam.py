"""EndoSLAM (Ozyoruk et al. 2021), its synthetic part UnityCam: 320x320 with depth and poses → Samples.

Depth is the red channel of an 8-bit image in centimetres of Unity, so it comes in steps of 1 cm. Poses are Unity's,
left-handed, in its world units; they become right-handed by mirroring y. The real cameras of the set have
no dense depth.
"""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.data import DataError, Dataset, Item, Protocol, Sample
from endomust_core.data.reading import (
    MIRROR_Y,
    images_of,
    number_in,
    pose_from_quaternion,
    read_image,
    read_numbers,
    same_size,
)

CAMERA = Camera(320, 320, 156.0418, 155.7529, 178.5604, 181.8043)
log = logging.getLogger(__name__)


class EndoSlam(Dataset):
    """Frames of UnityCam; groups are organs. Poses go by the order of lines: the file has no frame numbers."""

    name = "endoslam"
    protocol = Protocol(
        0.005,
        2.55,
        note="no rule is agreed on; our range is what 8 bits of centimetres hold; steps of 1 cm bound "
        "what can be scored",
    )
    LAYOUT = """expected
  <path>/UnityCam/Colon/Frames/image_0000.png                     colour, 320x320
  <path>/UnityCam/Colon/Pixelwise Depths/aov_image_0000.png       depth of the same number
  <path>/UnityCam/Colon/Poses/colon_position_rotation.csv         tX,tY,tZ,rX,rY,rZ,rW,time
(also Small Intestine and Stomach; the zip files inside the download have to be unpacked)"""

    def scan(self) -> list[Item]:
        depths = sorted(folder for folder in self.root.rglob("Pixelwise Depths") if folder.is_dir())
        if not depths:
            real = any((self.root / part).is_dir() for part in ("HighCam", "LowCam", "Cameras", "Cameras/HighCam"))
            why = " (the real cameras of the set have no dense depth: folder:/path opens their images)" if real else ""
            raise self.wrong(f"{self.root} holds no folder 'Pixelwise Depths'{why}")
        items = self.only_group([item for folder in depths for item in _items(folder.parent)])
        known = any(item.T_world_camera is not None for item in items)
        self.tasks = ("depth", "pose", "intrinsics") if known else ("depth", "intrinsics")
        return items

    def load(self, item: Item, depth: bool = True) -> Sample:
        rgb = read_image(item.image)
        truth = same_size(_centimetres(item.truth), rgb, item.truth.name) if depth else None
        camera = CAMERA.resized(rgb.shape[1], rgb.shape[0])
        return Sample(item.name, item.group, rgb, truth, item.index, camera, item.T_world_camera)

    def camera(self, group: str) -> Camera:
        return CAMERA


def _items(folder: Path) -> list[Item]:
    images, group = images_of(folder / "Frames"), folder.name
    if not images:
        raise DataError(f"{folder / 'Frames'} holds no images; unpack the zip of {group}'s frames there")
    poses = _poses(folder, len(images))
    items = []
    for position, image in enumerate(images):
        number = number_in(image.stem)
        truth = folder / "Pixelwise Depths" / f"aov_{image.name}"
        pose = poses[position] if position < len(poses) else None
        items.append(Item(f"{group}/{number:05d}", group, number, image, truth, pose))
    return items


def _centimetres(path: Path) -> np.ndarray:
    pixels = read_image(path, cv2.IMREAD_UNCHANGED)
    if pixels.dtype != np.uint8:
        raise DataError(f"{path.name} is {pixels.dtype}; expected 8 bits with centimetres in the red channel")
    red = pixels if pixels.ndim == 2 else pixels[..., 2]
    return np.where(red > 0, red * np.float32(1e-2), np.float32(np.nan))


def _poses(folder: Path, frames: int) -> list[np.ndarray | None]:
    files = sorted((folder / "Poses").glob("*.csv"))
    if not files:
        return []
    rows = read_numbers(files[0], 8, 1)  # the last line of some files is cut short, and left out
    if len(rows) != frames:
        log.warning("%s: %d poses for %d frames; they are matched in order", files[0], len(rows), frames)
    poses = [pose_from_quaternion(row[:3], row[3:7]) for row in rows]
    return [None if pose is None else MIRROR_Y @ pose @ MIRROR_Y for pose in poses]
