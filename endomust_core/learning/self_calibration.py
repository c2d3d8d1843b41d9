"""Intrinsics of a camera from its own video: one K for a sequence and a motion for every pair, fitted photometrically.

A trained run says depth and a first guess of motion and K; those two are then fitted freely, because one K that must
suit all pairs and motions that need not come from a network are far more exact than what a network says of each pair.
Depth stays as it is, so its errors limit K; a camera that only moves sideways does not show its focal length at all.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from endomust_core.camera import Camera
from endomust_core.data import DataError
from endomust_core.data.cache import cache, choose_gaps
from endomust_core.data.sequences import open_sequences
from endomust_core.learning import losses as L
from endomust_core.learning.checkpoint import CheckpointError, load_checkpoint
from endomust_core.learning.geometry import in_view, intrinsics_matrix, pose_matrix, rigid_positions, sample
from endomust_core.learning.networks.depth import depth_from_disparity
from endomust_core.learning.score import to_tensor

log = logging.getLogger(__name__)
STEPS = 900
RATES = {"rotation": 1e-3, "translation": 2e-4, "intrinsics": 4e-3}  # rad, share of the median depth, share of the side
TURNING = 4e-3  # rad between two frames about x and y; with less, focal length shows too little


@dataclass(frozen=True)
class Calibration:
    """fx/W, fy/H, cx/W, cy/H as the network said and as fitted; mean photometric distance before and after the fit."""

    guessed: np.ndarray
    intrinsics: np.ndarray
    before: float
    after: float
    turning: float  # median rotation between the frames of a pair about x and y [rad]
    pairs: int

    def camera(self, width: int, height: int) -> Camera:
        """The pinhole camera of images of that size."""
        fx, fy, cx, cy = (float(value) for value in self.intrinsics)
        return Camera(width, height, fx * width, fy * height, cx * width - 0.5, cy * height - 0.5)


def fit(sources, targets, depth, mask, rotation, translation, intrinsics, steps: int = STEPS, progress=None):
    """One K for all pairs and T_source_target of each, by gradient descent on the photometric distance.

    sources, targets P×3×H×W in [0,1]; depth P×1×H×W of the targets; mask P×1×H×W float, what may be compared; rotation
    P×3 [rad] and translation P×3 to start from; intrinsics (4,) fx/W, fy/H, cx/W, cy/H to start from.
    Returns intrinsics (4,), rotation P×3, distance before and after. Raises DataError where nothing overlaps.
    """
    size, unit = tuple(targets.shape[-2:]), depth.median()
    rotation, moved = rotation.clone().requires_grad_(), (translation / unit).requires_grad_()
    intrinsics = intrinsics.clone().requires_grad_()
    values = {"rotation": rotation, "translation": moved, "intrinsics": intrinsics}
    optimiser = torch.optim.Adam([{"params": [values[name]], "lr": rate} for name, rate in RATES.items()])
    found = []
    for step in range(steps):
        K = intrinsics_matrix(intrinsics[None].expand(len(targets), 4), size)
        positions, _ = rigid_positions(depth / unit, K, pose_matrix(rotation, moved))
        seen = in_view(positions, size).float() * mask
        if not seen.any():
            raise DataError("no pixel of any pair is seen twice; choose a sequence that moves less between its frames")
        distance = L.masked_mean(L.photometric(sample(sources, positions), targets), seen).mean()
        optimiser.zero_grad()
        distance.backward()
        optimiser.step()
        found.append(distance.item())
        if progress:
            progress(step + 1, steps)
    return intrinsics.detach(), rotation.detach(), found[0], found[-1]


@torch.no_grad()
def pairs_of(sequence, most: int, least_px: float):
    """(target, frames back to its source) of up to `most` pairs, evenly spread, each with enough flow to see."""
    gaps = choose_gaps(sequence, least_px, 3 * least_px, 8)
    rows = [(i, int(k)) for i, k in enumerate(gaps) if k and i >= k]
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))]


def calibrate(run: str | Path, source: str, *, most: int = 60, steps: int = STEPS, least_px=4.0, progress=None):
    """Networks of a finished training run and one sequence of one camera (`video:/path`, …) → Calibration.

    Raises CheckpointError where the run is not finished, DataError for a sequence that cannot be used. It warns where
    the camera turns so little that its focal length does not show.
    """
    run = Path(run)
    config = run / "config.yaml"
    if not config.is_file():
        raise CheckpointError(
            f"{run} holds no config.yaml; give the folder of a run that `endomust train` has finished"
        )
    settings = yaml.safe_load(config.read_text())
    networks = {kind: load_checkpoint(run / f"{kind}.pt", kind)[0] for kind in ("depth", "pose")}
    opened = open_sequences(source)
    if len(opened) != 1:
        names = ", ".join(sequence.name for sequence in opened[:3])
        raise DataError(f"{source} holds {len(opened)} sequences ({names}, …); give one, of one camera")
    size = tuple(settings["data"]["size"])
    sequence = cache(opened, run / "cache", size)[0]
    rows = pairs_of(sequence, most, least_px)
    if len(rows) < 8:
        raise DataError(
            f"{source}: only {len(rows)} pairs of frames move enough to be compared; give a longer sequence"
        )
    targets = torch.cat([to_tensor(sequence.rgb[i], "cpu") for i, _ in rows])
    sources = torch.cat([to_tensor(sequence.rgb[i - k], "cpu") for i, k in rows])
    depth = depth_of(networks["depth"], targets, tuple(settings["depth"]["size"]))
    with torch.no_grad():
        pose = networks["pose"](sources, targets)
        mask = (L.border_mask(targets, shrink=2) & ~L.specular_mask(targets, grow=1)).float()
    guessed = pose.intrinsics.mean(0)
    found = fit(sources, targets, depth, mask, pose.rotation, pose.translation, guessed, steps, progress)
    intrinsics, rotation, before, after = found
    turning = float(rotation[:, :2].norm(dim=1).median())
    if turning < TURNING:
        log.warning(
            "the camera turns %.1f mrad between compared frames; focal length and depth cannot be told apart, so do "
            "not trust this focal length. Give a sequence in which the camera looks around",
            1e3 * turning,
        )
    return Calibration(guessed.numpy(), intrinsics.numpy(), before, after, turning, len(rows))


@torch.no_grad()
def depth_of(network, images, size):
    """Depth P×1×H×W [m] of images P×3×H×W, the network seeing them at `size`."""
    config, rows = network.config, []
    for image in images.split(1):
        seen = F.interpolate(image, size=size, mode="bilinear", align_corners=True)
        disparity = network(seen, scales=(0,), size=tuple(image.shape[-2:]))[0].float()
        rows.append(depth_from_disparity(disparity, config.min_depth, config.max_depth))
    return torch.cat(rows)
