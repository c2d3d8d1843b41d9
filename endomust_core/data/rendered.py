"""What our renderer has written: scene files of pretraining (.npz) and folders of `endomust render` → Samples."""

from pathlib import Path

import cv2
import numpy as np
import yaml

from endomust_core.data import DataError, Sample


class Scenes:
    """Scene files `<domain>-<seed>.npz` of a pretraining run; groups are domains."""

    def __init__(self, path):
        self.files = sorted(Path(path).glob("*.npz"))
        if not self.files:
            raise DataError(
                f"{path} holds no <domain>-<seed>.npz; give a folder such as runs/endomust-tiny/scenes/test"
            )

    def __len__(self):
        return sum(len(np.load(path)["rgb"]) for path in self.files)

    def __iter__(self):
        for path in self.files:
            scene = np.load(path)
            for i, (rgb, depth) in enumerate(zip(scene["rgb"], scene["depth"], strict=True)):
                known = np.where(scene["fov"], depth.astype(np.float32), np.float32(np.nan))
                yield Sample(f"{path.stem}/{i}", path.stem.split("-")[0], rgb, known)


class RenderedFolder:
    """A sequence written by `endomust render DOMAIN --out FOLDER`, or a folder of such sequences."""

    def __init__(self, path):
        self.sequences = sorted(meta.parent for meta in Path(path).rglob("meta.yaml"))
        if not self.sequences:
            raise DataError(
                f"{path} holds no sequence; expected meta.yaml, rgb/000000.png, depth/000000.png, "
                "as `endomust render DOMAIN --out FOLDER` writes them"
            )

    def __len__(self):
        return sum(len(list((sequence / "rgb").glob("*.png"))) for sequence in self.sequences)

    def __iter__(self):
        for sequence in self.sequences:
            meta = yaml.safe_load((sequence / "meta.yaml").read_text())
            for image in sorted((sequence / "rgb").glob("*.png")):
                bgr = cv2.imread(str(image))
                units = cv2.imread(str(sequence / "depth" / image.name), cv2.IMREAD_UNCHANGED)
                if bgr is None or units is None:
                    raise DataError(
                        f"{sequence}: rgb/{image.name} or depth/{image.name} is missing or unreadable; render it again"
                    )
                depth = np.where(units > 0, units * np.float32(meta["depth_unit_m"]), np.nan).astype(np.float32)
                yield Sample(
                    f"{sequence.name}/{image.stem}", meta["domain"], np.ascontiguousarray(bgr[..., ::-1]), depth
                )
