"""StereoMIS (Hayoz et al. 2023): porcine surgery, stereo video with robot poses and tissue masks, no depth → Samples.

Left images are the upper half of the stacked video. Poses are camera to world in metres from the robot's kinematics.
"""

from __future__ import annotations

import configparser
import logging
from pathlib import Path

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.data import DataError, Dataset, Item, Protocol, Sample
from endomust_core.data.reading import VideoFrames, one_name, read_image, read_numbers, read_tum, upper_half

TRAIN = ("P1",)  # sequences for training by the set's own rule; all the others are for testing
log = logging.getLogger(__name__)


class StereoMis(Dataset):
    """Frames of every sequence; groups are sequences. Frames are decoded from the video: read them in order, or
    `endomust prepare stereomis` once.

    With `split` train or test, only the frame ranges of the sequence's own train_split.csv or test_split.csv count,
    start included and end not.
    """

    name = "stereomis"
    protocol = Protocol(1e-3, 0.3, note="no true depth; P1 trains, all others test; poses are robot kinematics")
    tasks = ("pose", "intrinsics")
    SPLITS = ("train", "test")
    LAYOUT = """expected (version 0.0.1 of the download)
  <path>/P1/*.mp4                     1280x2048, left above right
  <path>/P1/StereoCalibration.ini
  <path>/P1/groundtruth.txt           frame tx ty tz qx qy qz qw, metres
  <path>/P1/masks/000000l.png         non-zero on tissue, not for every frame"""

    def scan(self) -> list[Item]:
        folders = sorted({file.parent for file in self.root.rglob("StereoCalibration.ini")})
        if not folders:
            raise self.wrong(f"{self.root} holds no StereoCalibration.ini")
        self.cameras = {one_name(folder, self.root): calibration(folder) for folder in folders}
        self.videos: dict[Path, VideoFrames] = {}
        items = []
        for folder in folders:
            group = one_name(folder, self.root)
            if self.split in (None, group) or (self.split == "train") == (folder.name in TRAIN):
                items += self._items(folder, group)
        if self.split in self.SPLITS:
            if not items:
                raise self.wrong(f"{self.root} holds no sequence of the split {self.split!r} (train: P1, test: others)")
            return items
        return self.only_group(items) if items else self._no_group(folders)

    def load(self, item: Item, depth: bool = True) -> Sample:
        rgb = upper_half(self._video(item.image).read(item.index))
        camera = self.cameras[item.group].resized(rgb.shape[1], rgb.shape[0])
        mask = None
        if item.mask is not None:
            mask = read_image(item.mask, cv2.IMREAD_GRAYSCALE)
            mask = cv2.resize(mask, rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        return Sample(item.name, item.group, rgb, None, item.index, camera, item.T_world_camera, mask)

    def camera(self, group: str) -> Camera:
        return self.cameras[group]

    def _video(self, path: Path) -> VideoFrames:
        if path not in self.videos:
            for other in self.videos.values():  # one open decoder is enough
                other.close()
            self.videos = {path: VideoFrames(path)}
        return self.videos[path]

    def _items(self, folder: Path, group: str) -> list[Item]:
        video = the_video(folder)
        announced = self._video(video).announced
        if not announced:
            raise DataError(f"{video} does not say how many frames it has; write it anew: ffmpeg -i IN -c copy OUT.mp4")
        poses = _poses(folder / "groundtruth.txt")
        masks = {file.stem: file for file in (folder / "masks").glob("*l.png")}
        items = []
        for number in self._wanted(folder, announced):
            # in some sequences every second frame has a mask: the one between takes that of the frame before
            mask = masks.get(f"{number:06d}l", masks.get(f"{number - 1:06d}l"))
            items.append(Item(f"{group}/{number:06d}", group, number, video, None, poses.get(number), mask))
        return items

    def _wanted(self, folder: Path, announced: int) -> list[int]:
        ranges = folder / f"{self.split}_split.csv"
        if self.split not in self.SPLITS or not ranges.exists():
            return list(range(announced))
        numbers = {n for start, end in read_numbers(ranges, 2, 1).astype(int) for n in range(start, end)}
        return sorted(number for number in numbers if number < announced)

    def _no_group(self, folders: list[Path]):
        raise self.unknown_split(one_name(folder, self.root) for folder in folders)


def the_video(folder: Path) -> Path:
    """The one video of a sequence."""
    videos = sorted(folder.glob("*.mp4"))
    if len(videos) != 1:
        what = f"holds {len(videos)} videos" if videos else "holds no .mp4"
        raise DataError(f"{folder} {what}; expected one, left above right")
    return videos[0]


def calibration(folder: Path) -> Camera:
    """The left camera from StereoCalibration.ini; kc_0 to kc_7 are in OpenCV's order."""
    path, parser = folder / "StereoCalibration.ini", configparser.ConfigParser()
    try:
        parser.read_string(path.read_text())
        left = parser["StereoLeft"]
        width, height = (int(float(left[key])) for key in ("res_x", "res_y"))
        fx, fy, cx, cy = (float(left[key]) for key in ("fc_x", "fc_y", "cc_x", "cc_y"))
        D = tuple(float(left.get(f"kc_{i}", "0")) for i in range(8))
    except (configparser.Error, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}); download it again") from error
    if not any(D):
        return Camera(width, height, fx, fy, cx, cy)
    if not any(D[5:]):
        return Camera(width, height, fx, fy, cx, cy, "plumb_bob", D[:5])
    return Camera(width, height, fx, fy, cx, cy, "rational_polynomial", D)


def _poses(path: Path) -> dict[int, np.ndarray | None]:
    if not path.exists():
        log.warning("%s is missing: this sequence has no poses", path)
        return {}
    stamps, poses = read_tum(path)
    return {round(stamp): pose for stamp, pose in zip(stamps, poses, strict=True)}
