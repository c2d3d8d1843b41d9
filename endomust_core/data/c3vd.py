"""C3VD (Bobrow et al. 2023): colonoscopy of a phantom, 1350x1080 fisheye, dense depth and poses → Samples.

Depth along z is uint16 / 65535 * 100 mm, 0 and 65535 unknown. The published evaluations cut the image to 950x720 and
leave the fisheye bent; so do samples, and their `camera` says how it bends: OpenCV's equidistant model, fitted to the
omnidirectional calibration of the set. Whoever needs a pinhole camera straightens with it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from endomust_core.camera import Camera
from endomust_core.data import DataError, Dataset, Item, Protocol, Sample
from endomust_core.data.reading import number_in, one_name, pose_of, read_depth, read_image, read_numbers, same_size

SIZE = (1350, 1080)
CROP = (200, 180, 1150, 900)  # x0, y0, x1, y1
METRES_PER_UNIT = 0.100 / 65535
UNKNOWN = (0, 65535)
# The set's Scaramuzza calibration: a pixel (x, y) at distance r from the centre looks along (x, y, f(r)), f with these
# coefficients.
CENTRE = (678.5448, 542.9759)
POLYNOMIAL = (769.2436, 0.0, -8.12771e-4, 6.256742e-7, -1.196622e-9)
FITTED_RADIUS = 610.0  # px; the far corner of the crop


class C3VD(Dataset):
    """Frames of all videos below a folder, cut as published; groups are videos.

    The calibration's stretch is left out: it is a roll of the camera by 0.17 degrees, 2 px at the far corner.
    """

    name = "c3vd"
    protocol = Protocol(
        1e-6,
        0.100,
        crop=CROP,
        note="1e-3 to 100 mm on the cut fisheye image (EndoDAC, Endo-GeDE); EndoGSLAM straightens and PPSNet has its "
        "own split and scaling: do not compare with those",
    )
    tasks = ("depth", "pose", "intrinsics")
    LAYOUT = """expected
  <path>/cecum_t1_a/0_color.png          colour, 1350x1080 (0000_color.png is fine too)
  <path>/cecum_t1_a/0000_depth.tiff      16-bit depth of the same number
  <path>/cecum_t1_a/pose.txt             16 numbers per line, camera to world, mm"""

    def scan(self) -> list[Item]:
        folders = sorted({image.parent for image in self.root.rglob("*_color.png")})
        if not folders:
            raise self.wrong(f"{self.root} holds no *_color.png")
        items = self.only_group([item for folder in folders for item in self._items(folder)])
        if not any(item.T_world_camera is not None for item in items):
            self.tasks = ("depth", "intrinsics")
        return items

    def load(self, item: Item, depth: bool = True) -> Sample:
        rgb = read_image(item.image)
        if (rgb.shape[1], rgb.shape[0]) != SIZE:
            raise DataError(
                f"{item.image.name} is {rgb.shape[1]}x{rgb.shape[0]}, C3VD is {SIZE[0]}x{SIZE[1]}; its calibration and "
                "crop do not fit other sizes: open a resized or straightened copy as rendered:/path or folder:/path"
            )
        truth = None
        if depth:
            truth = same_size(read_depth(item.truth, METRES_PER_UNIT, UNKNOWN), rgb, item.truth.name)
            truth = _cropped(truth)
        return Sample(item.name, item.group, _cropped(rgb), truth, item.index, fisheye(), item.T_world_camera)

    def camera(self, group: str) -> Camera:
        return fisheye()

    def _items(self, folder: Path) -> list[Item]:
        group = one_name(folder, self.root)
        poses = _poses(folder / "pose.txt")
        numbered = sorted((number_in(image.name), image) for image in folder.glob("*_color.png"))
        items = []
        for number, image in numbered:
            named = (folder / f"{number:04d}_depth.tiff", folder / f"{number}_depth.tiff")
            truth = next((file for file in named if file.exists()), named[0])
            pose = poses[number] if number < len(poses) else None
            items.append(Item(f"{group}/{number:04d}", group, number, image, truth, pose))
        return items


@lru_cache(maxsize=1)
def fisheye() -> Camera:
    """The camera of the cut image: equidistant, within 0.15 px of the omnidirectional calibration over the crop."""
    radius = np.linspace(1, FITTED_RADIUS, 4000)
    angle = np.arctan2(radius, np.polynomial.polynomial.polyval(radius, POLYNOMIAL))
    powers = angle[:, None] ** np.arange(1, 10, 2)
    focal, *bent = np.linalg.lstsq(powers, radius, rcond=None)[0]
    D = tuple(float(k / focal) for k in bent)
    whole = Camera(*SIZE, float(focal), float(focal), *CENTRE, "equidistant", D)
    x0, y0, x1, y1 = CROP
    return whole.cropped(x0, y0, x1 - x0, y1 - y0)


def _cropped(image: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = CROP
    return np.ascontiguousarray(image[y0:y1, x0:x1])


def _poses(path: Path) -> list[np.ndarray | None]:
    """Camera to world [m] by frame number; most files hold transposed matrices, the translation in the last row."""
    if not path.exists():
        return []
    matrices = read_numbers(path, 16, 1).reshape(-1, 4, 4)
    across, down = np.abs(matrices[:, :3, 3]).max(), np.abs(matrices[:, 3, :3]).max()
    if across > 0 and down > 0:
        raise DataError(f"{path} has translations in its last column and in its last row; download it again")
    if down > 0:
        matrices = matrices.transpose(0, 2, 1)
    return [pose_of(M[:3, :3], M[:3, 3] * 1e-3) for M in matrices]
