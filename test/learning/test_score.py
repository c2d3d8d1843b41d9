"""Scores of networks that are right, wrong by a known factor, or still: the numbers are known beforehand."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from endomust_core.data.cache import CachedSequence
from endomust_core.learning.networks.depth import DepthConfig, disparity_from_depth
from endomust_core.learning.networks.pose import Pose
from endomust_core.learning.score import log_error, score_decomposition, score_depth, score_motion
from endomust_core.odometry import se3


def sequence(tmp_path, count=6, **changes):
    """Camera moving 1 mm along x per frame; depth is written into the red channel, in units of 0.5 mm."""
    depth = np.full((count, 28, 42), 0.04, np.float16)
    depth[:, :, 21:] = 0.08
    rgb = np.zeros((count, 28, 42, 3), np.uint8)
    rgb[..., 0] = np.round(depth.astype(np.float32) / 0.0005)
    poses = np.stack([se3(np.eye(3), np.array((0.001 * i, 0, 0))) for i in range(count)])
    values = dict(
        name="s", folder=tmp_path, rgb=rgb, index=np.arange(count), depth=depth, instrument=None,
        intrinsics=np.array((1.0, 1.2, 0.5, 0.5)), T_world_camera=poses, skipped=0,
    )  # fmt: skip
    known = CachedSequence.__dataclass_fields__
    return CachedSequence(**{key: value for key, value in (values | changes).items() if key in known})


class ReadsDepth(nn.Module):
    """A network that reads the depth off the red channel, times a factor that may change from call to call."""

    def __init__(self, *factors):
        super().__init__()
        self.config, self.factors, self.calls = DepthConfig(), factors, 0
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, image, scales):
        factor = self.factors[self.calls % len(self.factors)]
        self.calls += 1
        depth = factor * image[:, :1] * 255 * 0.0005
        return {0: disparity_from_depth(depth, self.config.min_depth, self.config.max_depth)}


def test_right_depth_scores_zero_whatever_its_scale(tmp_path):
    for factor in (1.0, 0.5):
        row = score_depth(ReadsDepth(factor), [sequence(tmp_path)], (28, 42))["all"]
        assert row["abs_rel"] < 0.02 and row["a1"] > 0.97 and row["scale_std"] < 1e-3 and row["images"] == 6


def test_a_scale_that_jumps_shows_in_its_spread(tmp_path):
    row = score_depth(ReadsDepth(1.0, 0.5), [sequence(tmp_path)], (28, 42))["all"]
    assert row["scale_std"] == pytest.approx(np.std((1.0, 2.0)) / 1.5, rel=0.01)


def test_sequences_without_truth_are_left_out(tmp_path):
    assert score_depth(ReadsDepth(1.0), [sequence(tmp_path, depth=None)], (28, 42)) == {}
    assert score_motion(Moves(0.001), [sequence(tmp_path, T_world_camera=None)]) == {}


class Moves(nn.Module):
    """A pose network that always says the same motion along x, and intrinsics 10 % too long."""

    def __init__(self, x, turn=0.0):
        super().__init__()
        self.x, self.turn = x, turn
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, previous, current):
        return Pose(
            torch.tensor([[0.0, self.turn, 0.0]]),
            torch.tensor([[self.x, 0.0, 0.0]]),
            torch.tensor([[1.1, 1.32, 0.5, 0.5]]),
        )


def test_right_motion_scores_zero_and_a_factor_is_no_error(tmp_path):
    for x in (0.001, 0.003):
        row = score_motion(Moves(x), [sequence(tmp_path)])["all"]
        assert row["ate"] < 1e-8 and row["ate_full"] < 1e-8 and row["rotation_error"] < 1e-6
        assert row["length"] == pytest.approx(0.005)
        assert row["focal_error"] == pytest.approx(0.1, rel=1e-5)


def test_a_turn_that_was_none_is_an_error_of_its_angle(tmp_path):
    row = score_motion(Moves(0.001, turn=0.02), [sequence(tmp_path)])["all"]
    assert row["rotation_error"] == pytest.approx(0.02, rel=1e-4) and row["ate_full"] > 1e-5


def test_the_true_albedo_scores_zero_and_the_image_does_not(tmp_path):
    rng = np.random.default_rng(0)
    albedo = (rng.uniform(0.5, 0.9, (28, 42, 1)) * np.array((1.0, 0.4, 0.3))).astype(np.float32)  # red: no highlights
    light = np.linspace(0.2, 1.0, 42, dtype=np.float32)[None, :, None]
    rgb = np.repeat(((albedo * light) ** (1 / 2.2) * 255).astype(np.uint8)[None], 2, 0)
    source = tmp_path / "source"
    (source / "truth").mkdir(parents=True)
    blank = np.zeros((28, 42), bool)
    for i in range(2):
        np.savez(source / "truth" / f"{i:06d}.npz", albedo=albedo, fov=~blank, instrument=blank)
    (tmp_path / "meta.json").write_text(json.dumps({"source": str(source)}))

    class Right(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, image):
            truth = torch.from_numpy(0.7 * albedo).permute(2, 0, 1)[None] ** (1 / 2.2)
            return truth, torch.ones(1, 1, 28, 42)

    row = score_decomposition(Right(), [sequence(tmp_path, count=2, rgb=rgb)], every=1)["all"]
    assert row["albedo_error"] < 1e-3
    assert row["image_error"] == pytest.approx(np.std(np.log(np.broadcast_to(light, albedo.shape))), abs=0.02)


def test_log_error_by_hand():
    found, truth = np.array([[1.0, 2.0]]), np.array([[3.0, 3.0]])
    assert log_error(found, truth, np.ones((1, 2), bool)) == pytest.approx(np.log(2) / 2)
