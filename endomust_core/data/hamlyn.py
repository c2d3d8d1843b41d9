"""Hamlyn, rectified by Recasens et al. 2021 (Endo-Depth-and-Motion): left images with stereo depth → Samples.

Depth is uint16 mm from stereo matching, 0 where unknown: a pseudo truth. Images of 720x288 of the sequences after 13
are cut to columns 180 to 590, as the published evaluations do.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from endomust_core.camera import Camera
from endomust_core.data import DataError, Dataset, Item, Protocol, Sample
from endomust_core.data.reading import images_of, number_in, read_depth, read_image, same_size

CROP = (180, 0, 590, 288)  # x0, y0, x1, y1
CROP_AFTER = 13
CROPPED_SIZE = (720, 288)


class Hamlyn(Dataset):
    """All frames of all sequences; groups are the folders rectifiedNN.

    A frame counts, as in the published lists, where both cameras have an image and a depth; where the right camera's
    folders were not downloaded, the left ones decide.
    """

    name = "hamlyn"
    protocol = Protocol(
        1e-6,
        0.150,
        crop=CROP,
        note="zero-shot on every frame, 1e-3 to 150 mm (AF-SfMLearner, EndoDAC, EndoMUST); Endo-Depth uses "
        "1 to 300 mm; crop only in sequences after 13; depth is stereo pseudo truth; published tables differ in frames "
        "and caps",
    )
    LAYOUT = """expected
  <path>/rectified01/image01/0000000001.jpg    left image (image02: right)
  <path>/rectified01/depth01/0000000001.png    its 16-bit depth in mm (depth02: right)
  <path>/calibration/01/intrinsics.txt         3x3, if there is one"""

    def scan(self) -> list[Item]:
        folders = sorted({left.parent for left in self.root.rglob("image01") if left.is_dir()})
        if not folders:
            raise self.wrong(
                f"{self.root} holds no rectifiedNN/image01 (first missing: {self.root}/rectified01/image01)"
            )
        self.cameras, items = {}, []
        for folder in folders:
            group = folder.name
            self.cameras[group] = self._camera(folder)
            items += _items(folder, group)
        if not items:
            raise self.wrong(f"{folders[0]} has no frame with image and depth (first missing: {folders[0]}/depth01)")
        items = self.only_group(items)
        if all(self.cameras[group] is not None for group in {item.group for item in items}):
            self.tasks = ("depth", "intrinsics")
        return items

    def load(self, item: Item, depth: bool = True) -> Sample:
        rgb = read_image(item.image)
        truth = same_size(read_depth(item.truth, 1e-3), rgb, item.truth.name) if depth else None
        camera = self.cameras[item.group]
        box = _crop(item.group, rgb.shape)
        if box is not None:
            x0, y0, x1, y1 = box
            rgb = np.ascontiguousarray(rgb[y0:y1, x0:x1])
            truth = None if truth is None else truth[y0:y1, x0:x1]
        return Sample(item.name, item.group, rgb, truth, item.index, camera)

    def camera(self, group: str) -> Camera | None:
        return self.cameras[group]

    def _camera(self, folder: Path) -> Camera | None:
        """The calibration of a sequence at the size of its (cut) images."""
        number = _sequence_number(folder.name)
        files = [
            folder / "intrinsics.txt",
            *(above / "calibration" / f"{number:02d}" / "intrinsics.txt" for above in (folder.parent, self.root)),
        ]
        known = next((file for file in files if file.exists()), None)
        if known is None:
            return None
        K = np.array([float(word) for word in known.read_text().replace(",", " ").split()])
        if K.size not in (9, 12):
            raise DataError(f"{known} holds {K.size} numbers, a matrix of 3x3 is expected")
        K = K.reshape(3, -1)[:, :3]
        first = images_of(folder / "image01")
        if not first:
            return None
        height, width = read_image(first[0]).shape[:2]
        camera = Camera.from_K(K, width, height)
        box = _crop(folder.name, (height, width))
        return camera if box is None else camera.cropped(box[0], box[1], box[2] - box[0], box[3] - box[1])


def _items(folder: Path, group: str) -> list[Item]:
    parts = {part: {number_in(f.stem): f for f in images_of(folder / part)} for part in ("image01", "depth01")}
    right = [set(map(_number, images_of(folder / part))) for part in ("image02", "depth02") if (folder / part).is_dir()]
    numbers = sorted(parts["image01"])
    items = []
    for number in numbers:
        if all(number in there for there in right):
            truth = parts["depth01"].get(number, folder / "depth01" / f"{number:010d}.png")
            items.append(Item(f"{group}/{number:010d}", group, number, parts["image01"][number], truth))
    return items


def _number(file: Path) -> int | None:
    return number_in(file.stem)


def _sequence_number(name: str) -> int:
    found = re.search(r"\d+", name)
    return int(found[0]) if found else 0


def _crop(group: str, shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """The box of the published evaluations for this sequence, None where the whole image is used."""
    if _sequence_number(group) <= CROP_AFTER:
        return None
    if (shape[1], shape[0]) != CROPPED_SIZE:
        raise DataError(
            f"images of {group} are {shape[1]}x{shape[0]}; the published crop is meant for "
            f"{CROPPED_SIZE[0]}x{CROPPED_SIZE[1]}, so this is another version of the set"
        )
    return CROP
