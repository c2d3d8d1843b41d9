"""SERV-CT (Edwards et al. 2022): 16 rectified stereo stills of porcine tissue with depth from CT → Samples.

Depth is uint16 / 256 mm. Blue in the occlusion image means that CT does not cover the pixel.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.data import DataError, Dataset, Item, Protocol, Sample
from endomust_core.data.reading import images_of, read_depth, read_image, same_size

OUTSIDE_REFERENCE = (255, 0, 0)  # BGR


class ServCT(Dataset):
    """Left images of Experiment_1 and Experiment_2; groups are experiments, their images are stills, no video."""

    name = "servct"
    protocol = Protocol(
        1e-3,
        0.180,
        note="1 to 180 mm (AF-SfMLearner); Endo-GeDE uses 200 mm; the set's own toolkit reports errors in mm for "
        "all and for non-occluded pixels, here all count that CT covers",
    )
    STILLS = True
    LAYOUT = """expected
  <path>/Experiment_1/Left_rectified/001.png               colour, 720x576
  <path>/Experiment_1/Ground_truth_CT/DepthL/001.png       16-bit depth
  <path>/Experiment_1/Ground_truth_CT/OcclusionL/001.png   occlusion colours
  <path>/Experiment_1/Rectified_calibration/001.json       with P1"""

    def scan(self) -> list[Item]:
        folders = sorted({left.parent for left in self.root.rglob("Left_rectified") if left.is_dir()})
        if not folders:
            raise self.wrong(f"{self.root} holds no Experiment_N/Left_rectified")
        items = [item for folder in folders for item in _items(folder)]
        if items and all(item.more.exists() for item in items):
            self.tasks = ("depth", "intrinsics")
        return self.only_group(items)

    def load(self, item: Item, depth: bool = True) -> Sample:
        rgb = read_image(item.image)
        camera = _camera(item.more, rgb.shape) if item.more.exists() else None
        truth = self._truth(item, rgb) if depth else None
        return Sample(item.name, item.group, rgb, truth, item.index, camera)

    def camera(self, group: str) -> None:
        return None  # each still has its own; samples carry it

    def _truth(self, item: Item, rgb: np.ndarray) -> np.ndarray:
        truth = same_size(read_depth(item.truth, 1e-3 / 256), rgb, item.truth.name)
        occlusion = item.truth.parent.parent / "OcclusionL" / item.truth.name
        if not occlusion.exists():
            raise DataError(f"OcclusionL/{occlusion.name} is missing; it says which pixels CT covers")
        colours = read_image(occlusion, cv2.IMREAD_UNCHANGED)
        if colours.ndim != 3:
            raise DataError(f"OcclusionL/{occlusion.name} is grey; expected the colours of the set")
        truth[(colours[..., :3] == OUTSIDE_REFERENCE).all(-1)] = np.nan
        return truth


def _items(folder: Path) -> list[Item]:
    items = []
    for image in images_of(folder / "Left_rectified"):
        truth = folder / "Ground_truth_CT" / "DepthL" / image.name
        calibration = folder / "Rectified_calibration" / f"{image.stem}.json"
        number = int(image.stem) if image.stem.isdigit() else len(items)
        name = f"{folder.name}/{image.stem}"
        items.append(Item(name, folder.name, number, image, truth, more=calibration))
    return items


def _camera(path: Path, shape: tuple[int, ...]) -> Camera:
    """The left camera from P1 (3x4), whether it stands as nested lists or as {rows, cols, data}."""
    try:
        P1 = json.loads(path.read_text())["P1"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path.name} holds no matrix P1 ({error!r})") from error
    P1 = np.asarray(P1["data"] if isinstance(P1, dict) else P1, np.float64)
    if P1.size != 12:
        raise DataError(f"P1 of {path.name} has {P1.size} numbers, 3x4 are expected")
    return Camera.from_K(P1.reshape(3, 4)[:, :3], shape[1], shape[0])
