"""OpenCAS single-shot stills (Maier-Hein et al. 2014): real ex-vivo tissue with points of its CT surface → Samples.

Points are in mm in the frame of the left camera, which bends rays strongly; depth is known at the pixels they fall on.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.data import DataError, Dataset, Item, Protocol, Sample
from endomust_core.data.reading import read_image, read_numbers

# CT sees the back of a fold, the camera does not: a point this much behind another within 3 px is hidden or grazing.
HIDDEN_M = 2e-3


class OpenCas(Dataset):
    """Left images whose folder holds their calibration and CT points; groups are folders."""

    name = "opencas"
    protocol = Protocol(
        1e-3, 0.3, note="a patch of CT surface in one still: metric truth, far too little for a ranking"
    )
    tasks = ("depth", "intrinsics")
    STILLS = True
    LAYOUT = """expected
  <path>/*_IMG_left.bmp                colour (or .png)
  <path>/*_CT_cut.xyz                  points of the CT surface in the left camera, mm
  <path>/*_MASK_eval.png               black where they count, if there is one
  <path>/*_MASK_left.png               white on the markers, if there is one
  <path>/calib.left.intrinsics.txt     3x3
  <path>/calib.left.distortion.txt     k1 k2 p1 p2 k3"""

    def scan(self) -> list[Item]:
        images = sorted(image for suffix in ("bmp", "png") for image in self.root.rglob(f"*_IMG_left.{suffix}"))
        if not images:
            raise self.wrong(f"{self.root} holds no *_IMG_left.bmp")
        items = []
        for index, image in enumerate(images):
            stem, group = image.name.split("_IMG_left")[0], image.parent.name
            truth = image.with_name(f"{stem}_CT_cut.xyz")
            for needed in (
                truth,
                image.parent / "calib.left.intrinsics.txt",
                image.parent / "calib.left.distortion.txt",
            ):
                if not needed.exists():
                    raise self.wrong(f"{needed} is missing")
            items.append(Item(f"{group}/{stem}", group, index, image, truth))
        return self.only_group(items)

    def load(self, item: Item, depth: bool = True) -> Sample:
        rgb = read_image(item.image)
        folder = item.image.parent
        K = read_numbers(folder / "calib.left.intrinsics.txt", 3, 3)[:3]
        D = np.array((folder / "calib.left.distortion.txt").read_text().split(), np.float64)
        camera = Camera.from_K(K, rgb.shape[1], rgb.shape[0], "plumb_bob", D[:5])
        return Sample(item.name, item.group, rgb, _splat(item, camera) if depth else None, item.index, camera)


def _splat(item: Item, camera: Camera) -> np.ndarray:
    """(H,W) float32 [m]: the depth of the nearest point in every pixel that a visible one falls on, NaN elsewhere."""
    points = read_numbers(item.truth, 3, 1) * 1e-3
    pixels = camera.project(points)
    inside = (
        np.isfinite(pixels).all(1)
        & (pixels > -0.5).all(1)
        & (pixels < (camera.width - 0.5, camera.height - 0.5)).all(1)
    )
    if not inside.any():
        raise DataError(f"no point of {item.truth.name} falls into the image; is it in the frame of the left camera?")
    x, y = np.rint(pixels[inside]).astype(int).T
    depth = np.full((camera.height, camera.width), np.inf, np.float32)
    np.minimum.at(depth, (y, x), points[inside, 2].astype(np.float32))
    nearest_around = cv2.erode(depth, np.ones((7, 7)))  # the smallest value in the neighbourhood
    counted = _counted(item.truth, depth.shape) & (depth < nearest_around + HIDDEN_M)
    return np.where(np.isfinite(depth) & counted, depth, np.float32(np.nan))


def _counted(truth: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H,W) bool: the set's masks are white where nothing counts, outside the CT patch and on the markers."""
    counted = np.ones(shape, bool)
    for name in ("MASK_eval", "MASK_left"):
        path = truth.with_name(truth.name.replace("CT_cut.xyz", f"{name}.png"))
        if not path.exists():
            continue
        mask = read_image(path, cv2.IMREAD_GRAYSCALE)
        if mask.shape != shape:
            raise DataError(f"{path.name} is {mask.shape[1]}x{mask.shape[0]}, its image {shape[1]}x{shape[0]}")
        counted &= mask == 0
    return counted
