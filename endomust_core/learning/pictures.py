"""What the networks see in one batch, as a picture: a row per triplet, a column per quantity. (H, W, 3) uint8 RGB."""

import cv2
import numpy as np
import torch

from endomust_core.learning.geometry import sample

COLUMNS = ("input", "depth", "reflectance", "shading", "flow", "visible", "refined", "rebuilt")


@torch.no_grad()
def panel(forward, rows: int = 3, width: int = 200) -> np.ndarray:
    """Target, depth (near is red), reflectance, shading, flow to the next frame, what is compared, the target as bright
    as that frame, and that frame brought here by depth and motion. `forward` is a `Forward`.
    """
    B = len(forward.batch.target)
    flow, seen, refined = forward.flow()[0], forward.visibility(), forward.refined(0)
    rebuilt = sample(forward.sources, forward.rigid(0)[0])
    disparity = forward.disparity()[0]
    parts = forward.decomposition() if "decomposition" in forward.networks else None
    strips = []
    for b in range(min(rows, B)):
        later = B + b  # the next frame's place among the sources
        cells = [as_rgb(forward.batch.target[b]), turbo(disparity[b, 0])]
        if parts is not None:
            reflectance, shading = parts
            light = shading[2 * B + b] / torch.quantile(shading[2 * B + b].float(), 0.99)
            cells += [as_rgb(reflectance[2 * B + b]), as_rgb(light.expand(3, -1, -1))]
        cells += [
            flow_colours(flow[later]),
            as_rgb(seen[later].expand(3, -1, -1)),
            as_rgb(refined[later]),
            as_rgb(rebuilt[later]),
        ]
        height = round(width * cells[0].shape[0] / cells[0].shape[1])
        strips.append(np.hstack([cv2.resize(cell, (width, height), interpolation=cv2.INTER_AREA) for cell in cells]))
    names = [name for name in COLUMNS if parts is not None or name not in ("reflectance", "shading")]
    return np.vstack([heading(names, width), *strips])


def heading(names, width: int) -> np.ndarray:
    """A black strip with the names of the columns."""
    strip = np.zeros((24, width * len(names), 3), np.uint8)
    for i, name in enumerate(names):
        cv2.putText(strip, name, (i * width + 6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return strip


def as_rgb(image: torch.Tensor) -> np.ndarray:
    """3×H×W in [0, 1] → (H, W, 3) uint8."""
    return (255 * image.float().clamp(0, 1)).byte().permute(1, 2, 0).cpu().numpy()


def turbo(values: torch.Tensor) -> np.ndarray:
    """H×W → colours between its 1st and 99th percentile."""
    array = values.float().cpu().numpy()
    low, high = np.percentile(array, (1, 99))
    grey = (255 * np.clip((array - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(grey, cv2.COLORMAP_TURBO)[..., ::-1])


def flow_colours(flow: torch.Tensor) -> np.ndarray:
    """2×H×W → hue for direction, brightness for length."""
    dx, dy = flow.float().cpu().numpy()
    length, angle = cv2.cartToPolar(dx, dy)
    value = np.clip(length / max(float(np.percentile(length, 99)), 1e-6) * 255, 0, 255)
    hsv = np.stack((angle * 90 / np.pi, np.full_like(value, 255), value), -1).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
