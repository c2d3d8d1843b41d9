"""A plain folder of images, or a folder of such folders: pictures without any truth → Samples."""

from __future__ import annotations

from pathlib import Path

from endomust_core.camera import Camera, load_camera
from endomust_core.data import Dataset, Item, Protocol, Sample
from endomust_core.data.reading import images_of, number_in, one_name, read_image


class ImageFolder(Dataset):
    """Images in the natural order of their names; a camera.yaml beside them is their calibration."""

    name = "folder"
    protocol = Protocol(1e-3, 0.3, note="images only: there is nothing to score against")
    tasks = ()
    LAYOUT = """expected
  <path>/0001.png, 0002.png …        images of one sequence (png, jpg, bmp, tif), or
  <path>/case1/0001.png …            a folder for each sequence
  <path>/case1/camera.yaml           its ROS calibration, if there is one"""

    def scan(self) -> list[Item]:
        below = sorted(folder for folder in self.root.rglob("*") if folder.is_dir())
        self.cameras: dict[str, Camera | None] = {}
        items = []
        for folder in [self.root, *below]:
            files = images_of(folder)
            if files:
                group = one_name(folder, self.root)
                calibration = folder / "camera.yaml"
                self.cameras[group] = load_camera(calibration) if calibration.exists() else None
                items += _items(files, group)
        if not items:
            raise self.wrong(f"{self.root} holds no images")
        return self.only_group(items)

    def load(self, item: Item, depth: bool = True) -> Sample:
        rgb = read_image(item.image)
        camera = self.cameras[item.group]
        if camera is not None:
            camera = camera.resized(rgb.shape[1], rgb.shape[0])
        return Sample(item.name, item.group, rgb, None, item.index, camera)

    def camera(self, group: str) -> Camera | None:
        return self.cameras[group]


def _items(files: list[Path], group: str) -> list[Item]:
    numbers = [number_in(file.stem) for file in files]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(len(files)))
    return [Item(f"{group}/{file.stem}", group, number, file) for number, file in zip(numbers, files, strict=True)]
