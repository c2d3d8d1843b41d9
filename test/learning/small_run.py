"""A training run that takes seconds: a moving texture as image folders, networks of a few channels."""

import cv2
import numpy as np
import torch
import yaml

from endomust_core.learning.networks import decomposition, depth, flow

SMALL_FLOW = flow.FlowConfig(encoder_width=8, norm="batch", widths=(8, 8, 8, 8, 8))
SMALL_DECOMPOSITION = decomposition.DecompositionConfig(8, "batch", (8, 8, 8, 8, 8), "imagenet", 4.0)
SMALL_DEPTH = depth.DepthConfig(
    dim=24, blocks=2, heads=2, features=8, out_channels=(8, 8, 8, 8), taps=(0, 0, 1, 1), necks=(1,), pos_grid=4
)


def small_presets(monkeypatch):
    """Add the preset `small` to every network (with batch norm, so that buffers move too)."""
    monkeypatch.setitem(flow.PRESETS, "small", SMALL_FLOW)
    monkeypatch.setitem(decomposition.PRESETS, "small", SMALL_DECOMPOSITION)
    monkeypatch.setitem(depth.PRESETS, "small", SMALL_DEPTH)


def write_frames(folder, count=8, size=(64, 80), seed=0):
    """A smooth texture that moves 2 px to the right per frame under a lamp that brightens."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.random((size[0], size[1] + 2 * count, 3), np.float32), (0, 0), 2)
    texture = (texture - texture.min()) / (texture.max() - texture.min())
    for i in range(count):
        view = texture[:, 2 * (count - i) :][:, : size[1]] * (0.7 + 0.02 * i)
        cv2.imwrite(str(folder / f"{i:04d}.png"), (255 * view).astype(np.uint8))
    return folder


def write_config(path, frames, preset="small", **changes):
    """A configuration file for the frames; changes as section__key=value."""
    values = {
        "name": "small",
        "data": {"train": [f"folder:{frames}"], "size": [64, 80], "gap": 1, "workers": 1},
        "depth": {"preset": preset, "size": [56, 70]},
        "pose": {"preset": "tiny"},
        "optical_flow": {"preset": preset},
        "appearance_flow": {"preset": preset},
        "decomposition": {"preset": preset},
        "train": {"batch": 2, "steps": 4, "learning_rate": 1e-3, "warm_up": 1, "save_every": 2, "device": "cpu"},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        values.setdefault(section, {})[name] = value
    path.write_text(yaml.safe_dump(values))
    return path


def learns_one_picture(network):
    """Whether 80 steps bring a depth network at 56×56 from its start to a fifth of the error on a single picture."""
    network.train()
    row = torch.linspace(0.02, 0.12, 56)
    target = row.expand(1, 1, 56, 56).clone()
    target[:, :, 14:37, 20:41] += 0.1  # a near object with sharp edges
    image = torch.cat([target * 4, torch.rand(1, 1, 56, 56), target], dim=1)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    losses = []
    for _ in range(80):
        error = (network(image, scales=(0,))[0] - target).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        losses.append(error.item())
    return losses[-1] < 0.2 * losses[0]
