"""Our own layouts: scene files of pretraining (.npz), folders of `endomust render` and `endomust prepare` → Samples."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import yaml

from endomust_core.camera import Camera, load_camera
from endomust_core.data import PREPARED, DataError, Dataset, Item, Protocol, Sample
from endomust_core.data.reading import images_of, number_in, one_name, read_depth, read_image, read_tum, same_size

log = logging.getLogger(__name__)


class Scenes(Dataset):
    """Scene files `<domain>-<seed>.npz` of a pretraining run; groups are domains."""

    name = "scenes"
    protocol = Protocol(1e-3, 0.3, note="rendered scenes that pretraining has kept; only inside the field of view")
    LAYOUT = """expected
  <path>/<domain>-<seed>.npz   with rgb, depth [m] and fov; a folder such as runs/scenes/test"""

    def scan(self) -> list[Item]:
        files = sorted(self.root.glob("*.npz"))
        if not files:
            raise self.wrong(f"{self.root} holds no <domain>-<seed>.npz")
        by_domain = sorted(files, key=lambda file: file.stem.split("-")[0])  # stable: seeds stay in their order
        return self.only_group([item for file in by_domain for item in _scene_items(file)])

    def load(self, item: Item, depth: bool = True) -> Sample:
        scene = _scene(item.image)
        known = np.where(scene["fov"], scene["depth"][item.more].astype(np.float32), np.float32(np.nan))
        return Sample(item.name, item.group, scene["rgb"][item.more], known if depth else None, item.index)


def _scene_items(file: Path) -> list[Item]:
    try:
        with zipfile.ZipFile(file) as archive, archive.open("rgb.npy") as array:
            version = np.lib.format.read_magic(array)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            count = header(array)[0][0]
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise DataError(f"{file} is no scene file ({error}); remove it or render the scenes again") from error
    domain = file.stem.split("-")[0]
    return [Item(f"{file.stem}/{i}", domain, i, file, more=i) for i in range(count)]


@lru_cache(maxsize=1)
def _scene(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as scene:
        return {key: scene[key] for key in ("rgb", "depth", "fov")}


class RenderedFolder(Dataset):
    """A sequence written by `endomust render` or `endomust prepare`, or a folder of such sequences; groups are
    sequences. Prepared sequences keep the name, the protocol and the masks of the data set they come from.
    """

    name = "rendered"
    protocol = Protocol(1e-3, 0.3, note="exact depth of the renderer")
    LAYOUT = """expected
  <path>/[<sequence>/]meta.yaml             with depth_unit_m
  <path>/[<sequence>/]rgb/000000.png        colour (or .jpg)
  <path>/[<sequence>/]depth/000000.png      16-bit depth in that unit, 0 where unknown
  <path>/[<sequence>/]poses.txt             stamp x y z qx qy qz qw, camera to world [m], if known
  <path>/[<sequence>/]camera.yaml           ROS calibration, if known
as `endomust render DOMAIN --out FOLDER` and `endomust prepare` write them"""

    def scan(self) -> list[Item]:
        self.sequences = sorted(meta.parent for meta in self.root.rglob("meta.yaml") if _whole(meta.parent, self.root))
        if not self.sequences:
            raise self.wrong(f"{self.root} holds no sequence (no meta.yaml)")
        self.folders = {one_name(folder, self.root): folder for folder in self.sequences}
        self.meta = {group: _meta(folder) for group, folder in self.folders.items()}
        self.cameras = {group: _camera(folder) for group, folder in self.folders.items()}
        items = self.only_group([item for group, folder in self.folders.items() for item in self._items(group, folder)])
        self._describe(items)
        return items

    def load(self, item: Item, depth: bool = True) -> Sample:
        rgb = read_image(item.image)
        truth = None
        if depth and item.truth is not None:
            truth = same_size(read_depth(item.truth, self.meta[item.group]["depth_unit_m"]), rgb, item.truth.name)
        camera, mask = self.cameras[item.group], None
        if camera is not None:
            camera = camera.resized(rgb.shape[1], rgb.shape[0])
        if item.mask is not None:
            mask = read_image(item.mask, cv2.IMREAD_GRAYSCALE) > 0
        return Sample(item.name, item.group, rgb, truth, item.index, camera, item.T_world_camera, mask)

    def camera(self, group: str) -> Camera | None:
        return self.cameras[group]

    def _items(self, group: str, folder: Path) -> list[Item]:
        images = {number_in(file.stem): file for file in images_of(folder / "rgb")}
        truths = {number_in(file.stem): file for file in images_of(folder / "depth")}
        masks = {number_in(file.stem): file for file in images_of(folder / "mask")}
        meta = self.meta[group]
        numbers = sorted({*images, *truths} if "data_set" in meta else {*images, *truths, *range(meta["frames"])})
        poses = _poses(folder, numbers, by_number=meta.get("pose_stamps") == "frame")
        items = []
        for number in numbers:
            image = images.get(number, folder / "rgb" / f"{number:06d}.png")
            truth = truths.get(number, folder / "depth" / f"{number:06d}.png")
            if not truths:
                truth = None
            name = f"{group}/{number:06d}"
            items.append(Item(name, group, number, image, truth, poses.get(number), masks.get(number)))
        return items

    def _describe(self, items: list[Item]) -> None:
        """Name, protocol and tasks from what the sequences say of themselves."""
        groups = {item.group for item in items}
        sets = {self.meta[group].get("data_set") for group in groups}
        if len(sets) == 1 and None not in sets:
            self.name = sets.pop()
            told = [self.meta[group]["protocol"] for group in groups if "protocol" in self.meta[group]]
            if told and all(one == told[0] for one in told):
                crop = told[0].get("crop")
                self.protocol = replace(self.protocol, **{**told[0], "crop": tuple(crop) if crop else None})
        tasks = {
            "depth": any(item.truth is not None for item in items),
            "pose": any(item.T_world_camera is not None for item in items),
            "intrinsics": any(self.cameras[group] is not None for group in groups),
        }
        self.tasks = tuple(task for task, known in tasks.items() if known)


def _whole(folder: Path, root: Path) -> bool:
    """False for what a `prepare` that was ended has left behind."""
    return not any(part.endswith(".part") for part in folder.relative_to(root).parts)


def _meta(folder: Path) -> dict:
    try:
        meta = yaml.safe_load((folder / "meta.yaml").read_text())
        unit, frames = float(meta["depth_unit_m"]), int(meta.get("frames", 0))
        return {**meta, "depth_unit_m": unit, "frames": frames}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder} is no sequence of `endomust render` or `endomust prepare` ({type(error).__name__}: {error}); "
            "expected meta.yaml with depth_unit_m, rgb/000000.png, depth/000000.png"
        ) from error


def _camera(folder: Path) -> Camera | None:
    return load_camera(folder / "camera.yaml") if (folder / "camera.yaml").exists() else None


def _poses(folder: Path, numbers: list[int], by_number: bool) -> dict[int, np.ndarray | None]:
    """Frame number → pose. The stamp is the frame number, or lines are frames one after the other."""
    if not (folder / "poses.txt").exists():
        return {}
    stamps, poses = read_tum(folder / "poses.txt")
    if by_number:
        return {round(stamp): pose for stamp, pose in zip(stamps, poses, strict=True)}
    if len(poses) != len(numbers):
        raise DataError(
            f"{folder / 'poses.txt'} has {len(poses)} poses, the sequence {len(numbers)} frames; render it again"
        )
    return dict(zip(numbers, poses, strict=True))


def is_prepared(folder: Path) -> bool:
    """Whether `endomust prepare` has written the folder or the sequence."""
    if (folder / PREPARED).is_file():
        return True
    meta = folder / "meta.yaml"
    return meta.is_file() and "data_set" in (yaml.safe_load(meta.read_text()) or {})
