"""SimCol3D (Rau et al. 2023): synthetic colonoscopy, 475x475 → Samples.

Depth in cm is value / 256 / 255 * 20, stored in steps of 0.78 mm.
"""

from pathlib import Path

import cv2
import numpy as np

from endomust_core.data import DataError, Sample

METRES_PER_UNIT = 0.20 / 255 / 256

LAYOUT = """expected
  <path>/**/FrameBuffer_0000.png   colour
  <path>/**/Depth_0000.png         16-bit depth of the same number"""


class SimCol3D:
    """All frames below a folder, in the order of their names."""

    def __init__(self, path):
        self.root = Path(path)
        self.images = sorted(self.root.rglob("FrameBuffer_*.png"))
        if not self.images:
            raise DataError(f"{self.root} holds no FrameBuffer_*.png; {LAYOUT}")

    def __len__(self):
        return len(self.images)

    def __iter__(self):
        for image in self.images:
            truth = image.with_name(image.name.replace("FrameBuffer", "Depth"))
            bgr, units = cv2.imread(str(image), cv2.IMREAD_COLOR), cv2.imread(str(truth), cv2.IMREAD_UNCHANGED)
            if bgr is None or units is None or units.dtype != np.uint16:
                raise DataError(f"{image if bgr is None else truth} is missing or unreadable; {LAYOUT}")
            units = units if units.ndim == 2 else units[..., 0]
            depth = np.where(units > 0, units * np.float32(METRES_PER_UNIT), np.nan).astype(np.float32)
            yield Sample(image.name, image.parent.name, np.ascontiguousarray(bgr[..., ::-1]), depth)
