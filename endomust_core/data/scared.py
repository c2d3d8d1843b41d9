"""SCARED (Allan et al. 2021): porcine abdomen, 1280x1024, with depth in mm and camera poses → Samples.

Three trees open: that of AF-SfMLearner, that of EndoDAC and EndoMUST, and what `endomust prepare scared` writes. The
download itself (rgb.mp4 and tar files) has to be prepared first. Frames count from 1, as in the published lists; the
truth of frame n is scene_points and frame_data n-1. Stacked truth is left above right; X, Y, Z are mm in the
camera frame.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from endomust_core.camera import Camera, load_camera
from endomust_core.data import DataError, Dataset, Item, Protocol, Sample
from endomust_core.data.reading import (
    images_of,
    number_in,
    pose_of,
    positive,
    read_depth,
    read_image,
    read_tum,
    same_size,
    upper_half,
)
from endomust_core.odometry import inverse

FIELD_K = (0.82, 1.02, 0.5, 0.5)  # fx/W fy/H cx/W cy/H, what every published method takes for all of SCARED
# Validation is every frame from 2 to the last of these, and so needs no list: keyframe → last frame.
VALIDATION = {
    "dataset2/keyframe3": 285,
    "dataset3/keyframe3": 285,
    "dataset4/keyframe3": 285,
    "dataset5/keyframe3": 285,
    "dataset6/keyframe3": 285,
    "dataset7/keyframe3": 286,
}
# Whole sequences on which camera motion is published (their numbers of motions: 2113, 410, 2196; 410, 833).
POSE_SEQUENCES = {
    "pose": ("dataset2/keyframe4", "dataset5/keyframe4", "dataset7/keyframe4"),
    "pose-af": ("dataset5/keyframe4", "dataset3/keyframe4"),
}
LISTS = {"train": "train_files.txt", "val": "val_files.txt", "test": "test_files.txt"}


@dataclass(frozen=True)
class Keyframe:
    """One keyframe folder with its video's frames: images by frame number from 1, and how their truth is found."""

    folder: Path
    images: dict[int, Path]
    image_path: Callable[[int], Path]
    truth_path: Callable[[int], Path] | None
    pose_path: Callable[[int], Path] | None  # a JSON per frame
    prepared: dict | None = None  # meta.yaml of what `endomust prepare` wrote


class Scared(Dataset):
    """Frames of all keyframes, or of a split; groups are `datasetN/keyframeM`.

    Splits: a list file (`split=/path/file.txt`, lines `dataset1/keyframe3 12 l`); train, val or test, read from
    splits/endovis/{train,val,test}_files.txt in or beside the root; val also without a file, for it is a rule; `pose`
    and `pose-af`, the whole sequences on which EndoMUST and AF-SfMLearner publish camera motion; `keyframes`, the
    stills with structured light in the download itself; or one keyframe. The lists train and test leave frames out by
    no rule that can be repeated, so they are never generated.
    """

    name = "scared"
    protocol = Protocol(
        1e-6,
        0.150,
        note="1e-3 to 150 mm, median scaling, no crop (AF-SfMLearner, IID-SfMLearner, EndoDAC); EndoMUST's evaluation "
        "takes 256 mm: give that cap to compare with it; datasets 4 and 5 have poor calibration; between keyframes "
        "depth is carried along by kinematics; intrinsics are the constants of the field in the published trees",
    )
    FIRST_INDEX = 1
    SPLITS = ("train", "val", "test", "pose", "pose-af", "keyframes")
    LAYOUT = """expected one of
  <path>/dataset1/keyframe1/image_02/data/0000000001.png                       AF-SfMLearner
  <path>/dataset1/keyframe1/image_02/data/groundtruth/scene_points000000.tiff
  <path>/dataset1/keyframe1/image_02/data/frame_data/frame_data000000.json
or
  <path>/train/dataset1/keyframe1/data/left/0000000001.png                     EndoDAC, EndoMUST (test/ for 8, 9)
  <path>/train/dataset1/keyframe1/data/scene_points/scene_points000000.tiff
  <path>/train/dataset1/keyframe1/data/frame_data/frame_data000000.json
or
  <path>/dataset1/keyframe1/rgb/000000.png                                     endomust prepare scared
  <path>/dataset1/keyframe1/{depth/000000.png,poses.txt,camera.yaml,meta.yaml}"""

    def scan(self) -> list[Item]:
        if self.split == "keyframes":
            return self._stills()
        self.keyframes = self._find()
        if not self.keyframes:
            raise self._nothing_found()
        self.poses = {group: _prepared_poses(keyframe) for group, keyframe in self.keyframes.items()}
        items = [self._item(group, frame) for group, frame in self._wanted()]
        self._check_any(items)
        self._describe(items)
        return items

    def load(self, item: Item, depth: bool = True) -> Sample:
        if self.split == "keyframes":
            return _still(item, depth)
        keyframe = self.keyframes[item.group]
        rgb = read_image(item.image)
        truth = self._truth(item, keyframe, rgb) if depth and item.truth is not None else None
        pose = item.T_world_camera if keyframe.prepared is not None else _json_pose(keyframe, item.index)
        camera = self.camera(item.group).resized(rgb.shape[1], rgb.shape[0])
        return Sample(item.name, item.group, rgb, truth, item.index, camera, pose)

    def camera(self, group: str) -> Camera | None:
        """The keyframe's own camera where it was prepared, else the constants of the field at 1280x1024."""
        if self.split == "keyframes":
            return None  # each still has its own; samples carry it
        keyframe = self.keyframes[group]
        if keyframe.prepared is not None and (keyframe.folder / "camera.yaml").exists():
            return load_camera(keyframe.folder / "camera.yaml")
        fx, fy, cx, cy = FIELD_K
        return Camera(1280, 1024, fx * 1280, fy * 1024, cx * 1280, cy * 1024)

    def has_poses(self, group: str) -> bool:
        if self.split == "keyframes":
            return False
        keyframe = self.keyframes[group]
        if keyframe.prepared is not None:
            return super().has_poses(group)
        mine = (item for item in self.items if item.group == group)
        return keyframe.pose_path is not None and all(keyframe.pose_path(item.index).exists() for item in mine)

    # --- the trees

    def _find(self) -> dict[str, Keyframe]:
        found = {}
        for folder in sorted(self.root.glob("dataset*/keyframe*"), key=_by_numbers):
            keyframe = _prepared(folder) or _af(folder)
            if keyframe is not None:
                found[_group(folder)] = keyframe
        for folder in sorted(self.root.glob("t*/dataset*/keyframe*"), key=_by_numbers):
            keyframe = _endodac(folder)
            if keyframe is not None:
                found[_group(folder)] = keyframe
        return found

    def _nothing_found(self) -> DataError:
        raw = next(iter(self.root.glob("**/data/rgb.mp4")), None)
        if raw is not None:
            return DataError(
                f"{self.root} is the download itself (it holds {raw.relative_to(self.root)}); take its frames and "
                f"truth out first: endomust prepare scared --raw {self.root} --out FOLDER"
            )
        return self.wrong(
            f"{self.root} holds no frames of SCARED (first missing: "
            f"{self.root}/dataset1/keyframe1/image_02/data/0000000001.png)"
        )

    def _stills(self) -> list[Item]:
        self.keyframes, items = {}, []
        truths = self.root.glob("dataset*/keyframe*/left_depth_map.tiff")
        for truth in sorted(truths, key=lambda file: _by_numbers(file.parent)):
            group = raw_name(truth.parent)
            dataset, keyframe = group.split("/")
            number = number_in(keyframe)
            items.append(Item(group, dataset, number, truth.with_name("Left_Image.png"), truth))
        if not items:
            raise DataError(
                f"{self.root} holds no dataset_1/keyframe_1/left_depth_map.tiff; the split keyframes takes the stills "
                "of the download itself: give its path"
            )
        self.tasks = ("depth", "intrinsics")
        return items

    # --- which frames

    def _wanted(self) -> list[tuple[str, int]]:
        everything = [(group, frame) for group, keyframe in self.keyframes.items() for frame in sorted(keyframe.images)]
        if self.split is None:
            return everything
        listed = self._list_file()
        if listed is not None:
            wanted = read_split(listed)
            return sorted(wanted, key=lambda row: (_by_numbers(Path(row[0])), row[1]))
        if self.split == "val":
            return [(group, frame) for group, last in VALIDATION.items() for frame in range(2, last + 1)]
        groups = POSE_SEQUENCES.get(self.split, (self.split,))
        chosen = [row for row in everything if row[0] in groups]
        if self.split in LISTS:
            raise DataError(
                f"the {self.split} list of SCARED follows no rule and is not made up here: put "
                f"splits/endovis/{LISTS[self.split]} (from AF-SfMLearner, EndoDAC or EndoMUST) into {self.root}, or "
                "give split=/path/to/the/list.txt"
            )
        missing = [group for group in groups if group not in self.keyframes]
        if self.split in POSE_SEQUENCES and missing:
            raise DataError(f"{self.root} lacks {', '.join(missing)} of the split {self.split!r}")
        if not chosen:
            raise self.unknown_split(self.keyframes)
        return chosen

    def _list_file(self) -> Path | None:
        given = Path(self.split).expanduser()
        if given.suffix == ".txt":
            if not given.is_file():
                raise DataError(
                    f"there is no list {given}; give the path of a file with lines `dataset1/keyframe3 12 l`"
                )
            return given
        if self.split not in LISTS:
            return None
        places = [
            base / "splits" / "endovis" / LISTS[self.split] for base in (self.root, self.root.absolute().parent)
        ] + [self.root / LISTS[self.split]]
        return next((place for place in places if place.is_file()), None)

    def _item(self, group: str, frame: int) -> Item:
        name = f"{group}/{frame:06d}"
        keyframe = self.keyframes.get(group)
        if keyframe is None:  # a list names it, the disk does not have it: an item that cannot be read, with its name
            return Item(name, group, frame, self.root / group, None)
        image = keyframe.images.get(frame, keyframe.image_path(frame))
        truth = None if keyframe.truth_path is None else keyframe.truth_path(frame)
        return Item(name, group, frame, image, truth, self.poses[group].get(frame - 1))

    def _check_any(self, items: list[Item]) -> None:
        """A list of which nothing is there is a wrong tree, not a thousand broken frames."""
        absent = [item.image for item in items if not item.image.is_file()]
        if items and len(absent) == len(items):
            raise self.wrong(
                f"none of the {len(items)} frames of the split {self.split!r} is there; first: {absent[0]}"
            )

    def _describe(self, items: list[Item]) -> None:
        mine = [self.keyframes[group] for group in {item.group for item in items} if group in self.keyframes]
        depth = any(keyframe.truth_path is not None for keyframe in mine)
        pose = any(keyframe.pose_path is not None for keyframe in mine)
        pose = pose or any(item.T_world_camera is not None for item in items)
        self.tasks = (*(("depth",) if depth else ()), *(("pose",) if pose else ()), "intrinsics")

    def read(self, number: int, depth: bool = True) -> Sample:
        item = self.items[number]
        if self.split != "keyframes" and item.group not in self.keyframes:
            raise DataError(f"scared {item.name}: {item.group} is not below {self.root}")
        return super().read(number, depth)

    def _truth(self, item: Item, keyframe: Keyframe, rgb: np.ndarray) -> np.ndarray:
        if keyframe.prepared is not None:
            depth = read_depth(item.truth, float(keyframe.prepared["depth_unit_m"]))
            return same_size(depth, rgb, item.truth.name)
        return same_size(read_scene_points(item.truth), rgb, item.truth.name)


# --- reading


def read_scene_points(path: Path, data: bytes | None = None) -> np.ndarray:
    """A stacked XYZ image of the set → (H,W) float32 depth [m] of the left camera, NaN where unknown (NaN or 0)."""
    if data is None:
        if not path.exists():
            raise DataError(f"{path.parent.name}/{path.name} is missing")
        data = path.read_bytes()
    return upper_half(read_points(data, path.name))


def read_calibration(path: Path, width: int, height: int) -> Camera:
    """The left camera (M1, D1) of an endoscope_calibration.yaml as OpenCV writes it."""
    if not path.exists():
        raise DataError(f"{path} is missing; it belongs to the keyframe's download")
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    try:
        M1, D1 = (storage.getNode(name).mat() for name in ("M1", "D1"))
    finally:
        storage.release()
    if M1 is None or D1 is None:
        raise DataError(f"{path} holds no matrices M1 and D1; download it again")
    return Camera.from_K(M1, width, height, "plumb_bob", D1.ravel()[:5])


def raw_name(folder: Path) -> str:
    """dataset_8/keyframe_0 → dataset8/keyframe1: the lists count the keyframes of datasets 8 and 9 from 1."""
    dataset, keyframe = (number_in(part) for part in (folder.parent.name, folder.name))
    return f"dataset{dataset}/keyframe{keyframe + 1 if dataset in (8, 9) else keyframe}"


def read_points(data: bytes, name: str) -> np.ndarray:
    """(H,W,3) float32 TIFF of X Y Z in mm → (H,W) float32 depth [m], NaN where unknown (NaN or 0)."""
    points = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if points is None:
        raise DataError(f"{name} does not decode as TIFF; it may be cut short, unpack it again")
    if points.ndim != 3 or points.shape[2] != 3 or points.dtype != np.float32:
        raise DataError(f"{name} is {points.dtype} of shape {points.shape}; expected float32 X Y Z")
    return positive(points[..., 0] * np.float32(1e-3))  # OpenCV turns X Y Z around


def _still(item: Item, depth: bool) -> Sample:
    rgb = read_image(item.image)
    camera = read_calibration(item.image.with_name("endoscope_calibration.yaml"), rgb.shape[1], rgb.shape[0])
    truth = same_size(read_points(item.truth.read_bytes(), item.truth.name), rgb, item.truth.name) if depth else None
    return Sample(item.name, item.group, rgb, truth, item.index, camera)


def read_frame_data(data: bytes | str, name: str) -> np.ndarray | None:
    """A frame_data JSON → T_world_camera (4,4) [m], or None where its numbers are no rigid motion.

    `camera-pose` maps points of the world (the keyframe) into the camera, in mm; this is its inverse.
    """
    try:
        P = np.array(json.loads(data)["camera-pose"], np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name} holds no camera-pose ({type(error).__name__}: {error}); unpack it again") from error
    if P.shape != (4, 4):
        raise DataError(f"{name}: camera-pose has the shape {P.shape}, 4x4 is expected")
    T_camera_world = pose_of(P[:3, :3], P[:3, 3] * 1e-3)
    return None if T_camera_world is None else inverse(T_camera_world)


def read_split(path: Path) -> list[tuple[str, int]]:
    """Lines `datasetN/keyframeM frame side`, parted by any white space → (group, frame) in the order of the file."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) < 2 or not parts[1].isdigit():
            raise DataError(f"{path}, line {number}: {line!r} is not like `dataset1/keyframe3 12 l`")
        rows.append((parts[0].strip("/"), int(parts[1])))
    if not rows:
        raise DataError(f"{path} lists no frame; lines are like `dataset1/keyframe3 12 l`")
    if len(set(rows)) < len(rows):
        raise DataError(f"{path} lists {len(rows) - len(set(rows))} frames twice; take the original list")
    return rows


def _json_pose(keyframe: Keyframe, frame: int) -> np.ndarray | None:
    if keyframe.pose_path is None:
        return None
    path = keyframe.pose_path(frame)
    return read_frame_data(path.read_text(), path.name) if path.exists() else None


def _prepared_poses(keyframe: Keyframe) -> dict[int, np.ndarray | None]:
    if keyframe.prepared is None or not (keyframe.folder / "poses.txt").exists():
        return {}
    stamps, poses = read_tum(keyframe.folder / "poses.txt")
    return {round(stamp): pose for stamp, pose in zip(stamps, poses, strict=True)}


def _prepared(folder: Path) -> Keyframe | None:
    if not (folder / "rgb").is_dir() or not (folder / "meta.yaml").exists():
        return None
    meta = yaml.safe_load((folder / "meta.yaml").read_text())
    if not isinstance(meta, dict) or "depth_unit_m" not in meta:
        raise DataError(f"{folder / 'meta.yaml'} does not say depth_unit_m; prepare the sequence again")
    images = {number_in(file.stem) + 1: file for file in images_of(folder / "rgb")}
    has_depth = any((folder / "depth").glob("*.png"))
    return Keyframe(
        folder,
        images,
        lambda frame: folder / "rgb" / f"{frame - 1:06d}.png",
        (lambda frame: folder / "depth" / f"{frame - 1:06d}.png") if has_depth else None,
        None,
        meta,
    )


def _af(folder: Path) -> Keyframe | None:
    data = folder / "image_02" / "data"
    truths = (data / "groundtruth", folder / "data" / "scene_points")
    return _published(folder, data, truths, (data / "frame_data", folder / "data" / "frame_data"))


def _endodac(folder: Path) -> Keyframe | None:
    data = folder / "data"
    return _published(folder, data / "left", (data / "scene_points",), (data / "frame_data",))


def _published(folder: Path, frames: Path, truths: tuple[Path, ...], motions: tuple[Path, ...]) -> Keyframe | None:
    images = {number_in(file.stem): file for file in images_of(frames)}
    if not images:
        return None
    truth = next((place for place in truths if place.is_dir()), None)
    motion = next((place for place in motions if place.is_dir()), None)
    return Keyframe(
        folder,
        images,
        lambda frame: frames / f"{frame:010d}.png",
        None if truth is None else lambda frame: truth / f"scene_points{frame - 1:06d}.tiff",
        None if motion is None else lambda frame: motion / f"frame_data{frame - 1:06d}.json",
    )


def _group(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _by_numbers(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", _group(folder))]
