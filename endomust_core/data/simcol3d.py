"""SimCol3D (Rau et al. 2023): synthetic colonoscopy, 475x475, with depth and camera paths → Samples.

Depth in cm is value / 256 / 255 * 20, stored in steps of 0.78 mm. Poses are camera to world in cm with quaternions
x y z w in Unity's left-handed axes, and become right-handed by mirroring y on both sides.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from endomust_core.camera import Camera
from endomust_core.data import DataError, Dataset, Item, Protocol, Sample
from endomust_core.data.reading import (
    MIRROR_Y,
    number_in,
    one_name,
    pose_from_quaternion,
    read_depth,
    read_image,
    read_numbers,
    same_size,
)

METRES_PER_UNIT = 0.20 / 255 / 256
FOCAL_PX = 227.60416  # of every camera in the set; the centre of the image is the principal point
CAMERA = Camera(475, 475, FOCAL_PX, FOCAL_PX, 237.0, 237.0)
TEST = ("S5", "S10", "S15", "B5", "B10", "B15", "O1", "O2", "O3")  # the challenge's test trajectories
log = logging.getLogger(__name__)


class SimCol3D(Dataset):
    """All frames below a folder; groups are trajectories. Poses where SavedPosition_*.txt lie beside the frames.

    The challenge publishes its test trajectories, so `test` is exact, and `train` is all the others (the challenge
    parts those again at random into training and validation, which no rule can repeat).
    """

    name = "simcol3d"
    protocol = Protocol(
        1e-3,
        0.20,
        note="depth range of the renderer; the challenge scales once per sequence and reports L1 in cm, here every "
        "image is scaled by its median; depth comes in steps of 0.78 mm",
    )
    SPLITS = ("train", "test")
    LAYOUT = """expected
  <path>/SyntheticColon_I/Frames_S1/FrameBuffer_0000.png   colour
  <path>/SyntheticColon_I/Frames_S1/Depth_0000.png         16-bit depth of the same number
  <path>/SyntheticColon_I/SavedPosition_S1.txt             poses, if there are any
  <path>/SyntheticColon_I/SavedRotationQuaternion_S1.txt"""

    def scan(self) -> list[Item]:
        self.images = sorted(self.root.rglob("FrameBuffer_*.png"))
        if not self.images:
            raise self.wrong(f"{self.root} holds no FrameBuffer_*.png")
        folders = sorted({image.parent for image in self.images}, key=lambda folder: folder.as_posix())
        short = len({folder.name for folder in folders}) == len(folders)
        names = {folder: folder.name if short else one_name(folder, self.root) for folder in folders}
        poses = {folder: _poses(folder) for folder in folders}
        for folder in {folder.parent for folder in folders}:
            _check_camera(folder / "cam.txt")
        items = [self._item(image, names[image.parent], poses[image.parent]) for image in self.images]
        items = self._of_split(items)
        if any(item.T_world_camera is not None for item in items):
            self.tasks = ("depth", "pose", "intrinsics")
        return items

    def load(self, item: Item, depth: bool = True) -> Sample:
        rgb = read_image(item.image)
        truth = same_size(read_depth(item.truth, METRES_PER_UNIT), rgb, item.truth.name) if depth else None
        camera = CAMERA.resized(rgb.shape[1], rgb.shape[0])
        return Sample(item.name, item.group, rgb, truth, item.index, camera, item.T_world_camera)

    def camera(self, group: str) -> Camera:
        return CAMERA

    def _item(self, image: Path, group: str, poses: list) -> Item:
        number = number_in(image.stem)
        pose = poses[number] if number < len(poses) else None
        truth = image.with_name(image.name.replace("FrameBuffer", "Depth"))
        return Item(f"{group}/{number:04d}", group, number, image, truth, pose)

    def _of_split(self, items: list[Item]) -> list[Item]:
        if self.split not in self.SPLITS:
            return self.only_group(items)
        chosen = [item for item in items if (_trajectory(item.image.parent) in TEST) == (self.split == "test")]
        if not chosen:
            raise self.wrong(f"{self.root} holds no trajectory of the split {self.split!r} (test: {', '.join(TEST)})")
        return chosen


def _trajectory(folder: Path) -> str:
    return folder.name.removeprefix("Frames_")


def _poses(folder: Path) -> list[np.ndarray | None]:
    """Camera to world [m] by frame number; empty where the set has none for this trajectory."""
    files = [folder.parent / f"Saved{what}_{_trajectory(folder)}.txt" for what in ("Position", "RotationQuaternion")]
    if not any(file.exists() for file in files):
        return []
    for file in files:
        if not file.exists():
            raise DataError(f"{file} is missing; positions and rotations come as a pair, download both again")
    positions, rotations = read_numbers(files[0], 3, 1), read_numbers(files[1], 4, 1)
    if len(positions) != len(rotations):
        log.warning("%s: %d positions and %d rotations; the rest has no pose", folder, len(positions), len(rotations))
    return [_right_handed(t, q) for t, q in zip(positions, rotations, strict=False)]


def _right_handed(position_cm: np.ndarray, quaternion: np.ndarray) -> np.ndarray | None:
    pose = pose_from_quaternion(position_cm * 1e-2, quaternion)
    return None if pose is None else MIRROR_Y @ pose @ MIRROR_Y


def _check_camera(path: Path) -> None:
    """One camera made the whole set; a file that says otherwise belongs to something else."""
    if not path.exists():
        return
    numbers = [float(word) for word in path.read_text().replace(",", " ").split()]
    if not any(abs(number / FOCAL_PX - 1) < 0.01 for number in numbers):
        raise DataError(f"{path} does not hold SimCol3D's focal length of {FOCAL_PX:g} px; is this another data set?")
