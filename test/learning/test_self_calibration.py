"""A camera that looks around in a world far away: its focal length comes out of the images alone."""

import math

import pytest
import torch
from small_run import small_presets, write_config, write_frames

from endomust_core.data import DataError
from endomust_core.learning import self_calibration
from endomust_core.learning.checkpoint import CheckpointError
from endomust_core.learning.geometry import intrinsics_matrix, rotation_matrix
from endomust_core.learning.train import train

TRUE = torch.tensor((0.6, 0.75, 0.5, 0.5))
SIZE = (48, 60)


def view(rotation):
    """What a camera turned by `rotation` (3,) [rad] sees of a smooth texture painted on the sky: 1×3×H×W."""
    K = intrinsics_matrix(TRUE[None], SIZE)[0]
    y, x = torch.meshgrid(torch.arange(SIZE[0]).float(), torch.arange(SIZE[1]).float(), indexing="ij")
    rays = torch.stack(((x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], torch.ones_like(x)), -1)
    sky = torch.nn.functional.normalize(rays @ rotation_matrix(rotation[None])[0].T, dim=-1)
    waves = ((5.0, 17.0, 0.3), (-13.0, 9.0, 1.0), (15.0, -4.0, 2.0))
    return torch.stack([0.5 + 0.25 * torch.sin(a * sky[..., 0] + b * sky[..., 1] + c) for a, b, c in waves])[None]


def test_focal_length_of_a_turning_camera_is_found():
    generator = torch.Generator().manual_seed(0)
    turns = 0.12 * (torch.rand(6, 3, generator=generator) - 0.5)
    targets, sources = view(torch.zeros(3)).repeat(6, 1, 1, 1), torch.cat([view(turn) for turn in turns])
    depth, mask = torch.ones(6, 1, *SIZE), torch.ones(6, 1, *SIZE)
    start = TRUE * torch.tensor((1.25, 1.25, 1.0, 1.0))
    # A point of the target's camera is R_sourceᵀ times it in the source's; the fit starts at rest.
    found, rotation, before, after = self_calibration.fit(
        sources, targets, depth, mask, torch.zeros(6, 3), torch.zeros(6, 3), start, steps=400
    )
    assert after < 0.1 * before
    assert (found / TRUE - 1).abs().max() < 0.02
    assert torch.allclose(rotation, -turns, atol=8e-3)  # at one depth, moving sideways takes a little of it


def test_pairs_that_share_nothing_are_refused():
    images, depth = torch.rand(2, 3, *SIZE), torch.ones(2, 1, *SIZE)
    away = torch.tensor(((0.0, math.pi / 2, 0.0),)).repeat(2, 1)
    with pytest.raises(DataError, match="moves less"):
        self_calibration.fit(images, images, depth, torch.ones(2, 1, *SIZE), away, torch.zeros(2, 3), TRUE, steps=2)


def test_a_run_and_a_sequence_give_a_camera(tmp_path, monkeypatch, caplog):
    small_presets(monkeypatch)
    frames = write_frames(tmp_path / "frames", count=14)
    run = train(write_config(tmp_path / "config.yaml", frames, train__steps=1), [], tmp_path / "run")
    found = self_calibration.calibrate(run, f"folder:{frames}", steps=5, least_px=1.0)
    assert found.after < found.before and found.pairs >= 8
    camera = found.camera(640, 512)
    assert camera.fx == pytest.approx(640 * found.intrinsics[0]) and camera.cx == pytest.approx(
        640 * found.intrinsics[2] - 0.5
    )
    with pytest.raises(DataError, match="longer sequence"):
        self_calibration.calibrate(run, f"folder:{write_frames(tmp_path / 'short', count=4)}", steps=1)
    with pytest.raises(CheckpointError, match="has finished"):
        self_calibration.calibrate(frames, f"folder:{frames}")
