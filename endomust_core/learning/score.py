"""Scores of networks in training on cached sequences: depth, motion and reflectance against truth, photometric loss."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from endomust_core.learning.geometry import pose_matrix
from endomust_core.learning.losses import specular_mask
from endomust_core.learning.networks.depth import inverse_depth
from endomust_core.learning.steps import ALIGNMENT, Forward, LossOptions
from endomust_core.learning.triplets import Triplets
from endomust_core.metrics import ate_5frame, ate_rmse, chained, depth_metrics, mean_metrics, scale_ratio_std

RANGE = (1e-3, 0.3)  # depths scored [m]


@torch.no_grad()
def score_depth(network: nn.Module, sequences, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Depth metrics per sequence and over `all` images, each image median-scaled; lengths in metres.

    `scale_std` is the spread of the scale ratio within a sequence (std of ratio / median ratio), averaged over
    sequences in `all`. Sequences without truth are left out.
    """
    network.eval()
    device, config = next(network.parameters()).device, network.config
    table, every, spread = {}, [], []
    for sequence in sequences:
        if sequence.depth is None:
            continue
        rows = []
        for i in range(len(sequence.rgb)):
            truth = np.asarray(sequence.depth[i], np.float32)
            image = to_tensor(sequence.rgb[i], device)
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=True)
            inverse = inverse_depth(network(image, scales=(0,))[0].float(), config.min_depth, config.max_depth)
            inverse = F.interpolate(inverse, size=truth.shape, mode="bilinear", align_corners=False)
            depth = 1 / inverse[0, 0].cpu().numpy()
            if np.any((truth > RANGE[0]) & (truth < RANGE[1])):
                rows.append(depth_metrics(depth, np.nan_to_num(truth), *RANGE))
        if rows:
            std = scale_ratio_std([row["ratio"] for row in rows])
            table[sequence.name] = mean_metrics(rows) | {"scale_std": std, "images": len(rows)}
            every += rows
            spread.append(std)
    if every:
        table["all"] = mean_metrics(every) | {"scale_std": float(np.mean(spread)), "images": len(every)}
    return table


@torch.no_grad()
def score_motion(network: nn.Module, sequences) -> dict[str, dict[str, float]]:
    """Motion of consecutive frames against true poses, per sequence and as the mean over them in `all`.

    ate, ate_rms: 5-frame windows [m]; ate_full: the chained trajectory after alignment with scale [m], and length, what
    it is to be seen against; rotation_error [rad] per frame; focal_error: mean of |fx/true-1| and |fy/true-1| with the
    intrinsics averaged over the sequence, where the true ones are known.
    """
    network.eval()
    device, table = next(network.parameters()).device, {}
    for sequence in sequences:
        if sequence.T_world_camera is None or len(sequence.rgb) < 3:
            continue
        pred, true, intrinsics = [], [], []
        for i in range(1, len(sequence.rgb)):
            pose = network(to_tensor(sequence.rgb[i - 1], device), to_tensor(sequence.rgb[i], device))
            pred.append(pose_matrix(pose.rotation.double(), pose.translation.double())[0].cpu().numpy())
            before, now = (np.asarray(sequence.T_world_camera[k], np.float64) for k in (i - 1, i))
            true.append(np.linalg.inv(before) @ now)
            intrinsics.append(pose.intrinsics[0].cpu().numpy())
        pred, true = np.stack(pred), np.stack(true)
        row = {key: value for key, value in ate_5frame(pred, true).items() if key != "std"}
        p, g = chained(pred), chained(true)
        row["ate_full"] = ate_rmse(p, g)
        row["length"] = float(np.linalg.norm(np.diff(g, axis=0), axis=1).sum())
        turn = np.swapaxes(pred[:, :3, :3], 1, 2) @ true[:, :3, :3]
        cosine = np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1)
        row["rotation_error"] = float(np.mean(np.arccos(cosine)))
        if sequence.intrinsics is not None:
            found, known = np.mean(intrinsics, 0), np.asarray(sequence.intrinsics)
            row["focal_error"] = float(np.mean(np.abs(found[:2] / known[:2] - 1)))
            row["centre_error"] = float(np.mean(np.abs(found[2:] - known[2:])))
        table[sequence.name] = row
    if table:
        rows = list(table.values())
        table["all"] = {key: float(np.mean([row[key] for row in rows if key in row])) for key in rows[0]}
    return table


@torch.no_grad()
def score_decomposition(network: nn.Module, sequences, every: int = 4) -> dict[str, dict[str, float]]:
    """Reflectance against the albedo of rendered sequences, on every so many frames; {} without such truth.

    albedo_error: root mean square of log albedo - log R^2.2 after the best common factor per image (2.2: images are
    display values, albedo is linear light); image_error: the same of the image itself, what R = I would score.
    highlight_reflectance and highlight_shading: how much brighter than 5 to 15 px around them reflectance and shading
    are on highlights (ratio of means): light belongs into shading.
    """
    network.eval()
    device, table = next(network.parameters()).device, {}
    for sequence in sequences:
        meta = json.loads((sequence.folder / "meta.json").read_text())
        truth = Path(meta["source"]) / "truth"
        rows = []
        for i in range(0, len(sequence.rgb), every):
            file = truth / f"{int(sequence.index[i]):06d}.npz"
            if not file.is_file():
                break
            image = to_tensor(sequence.rgb[i], device)
            reflectance, shading = network(image)
            with np.load(file) as arrays:
                albedo, fov = arrays["albedo"].astype(np.float32), arrays["fov"] & ~arrays["instrument"]
            height, width = sequence.rgb.shape[1:3]
            albedo = cv2.resize(albedo, (width, height), interpolation=cv2.INTER_AREA)
            fov = cv2.resize(fov.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
            shiny = specular_mask(image, grow=0)[0, 0].cpu().numpy() & fov
            lit = fov & ~dilated(shiny, 3)
            R, S, colour = (x[0].permute(1, 2, 0).cpu().numpy() for x in (reflectance, shading, image))
            row = {"albedo_error": log_error(R**2.2, albedo, lit), "image_error": log_error(colour**2.2, albedo, lit)}
            around = dilated(shiny, 15) & ~dilated(shiny, 5) & fov
            if shiny.sum() > 10 and around.sum() > 10:
                row["highlight_reflectance"] = float(R[shiny].mean() / R[around].mean())
                row["highlight_shading"] = float(S[shiny].mean() / S[around].mean())
                row["highlight_image"] = float(colour[shiny].mean() / colour[around].mean())
            rows.append(row)
        if rows:
            table[sequence.name] = {k: float(np.mean([r[k] for r in rows if k in r])) for k in union(rows)}
    if table:
        rows = list(table.values())
        table["all"] = {key: float(np.mean([row[key] for row in rows if key in row])) for key in union(rows)}
    return table


def union(rows: list[dict]) -> list[str]:
    """All keys in the order in which they first come."""
    return list(dict.fromkeys(key for row in rows for key in row))


def dilated(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A bool mask grown by so many pixels."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)) > 0


def log_error(found: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Root mean square of the difference of logarithms over the mask, after the best common factor."""
    difference = np.log(np.maximum(found[mask], 1e-3)) - np.log(np.maximum(truth[mask], 1e-3))
    return float(np.std(difference))


@torch.no_grad()
def validation_loss(networks, triplets: Triplets, options: LossOptions, size, world, most: int = 32) -> float:
    """Mean photometric loss of the alignment step over up to `most` triplets: what there is without truth."""
    found, batch = [], min(4, len(triplets))
    for number in range(max(1, min(most, len(triplets)) // batch)):
        rows = triplets.batch(number, batch, seed=0).to(world.device)
        found.append(Forward(networks, rows, options, size).losses(ALIGNMENT)["alignment/photometric"].mean().item())
    return float(np.mean(found))


def to_tensor(rgb: np.ndarray, device) -> torch.Tensor:
    """(H, W, 3) uint8 → 1×3×H×W in [0, 1]."""
    return torch.from_numpy(np.array(rgb)).to(device).permute(2, 0, 1)[None].float() / 255
