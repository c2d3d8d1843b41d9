"""Supervised pretraining: geometry survives augmentation, losses have known values, a stopped run goes on exactly."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")

from endomust_core.learning.augment import View, cut, random_view  # noqa: E402
from endomust_core.learning.checkpoint import load_checkpoint  # noqa: E402
from endomust_core.learning.config import ConfigError, load_config  # noqa: E402
from endomust_core.learning.geometry import warp_by_flow  # noqa: E402
from endomust_core.learning.networks.depth import DepthConfig, DepthNetwork  # noqa: E402
from endomust_core.learning.networks.pose import Pose  # noqa: E402
from endomust_core.learning.pretrain import (  # noqa: E402
    PretrainConfig,
    Training,
    Views,
    depth_losses,
    fit,
    flow_batch,
    flow_losses,
    pose_losses,
    pretrain,
)
from endomust_core.learning.supervised import (  # noqa: E402
    log_depth_losses,
    masked_mean,
    motion_field,
    motion_losses,
    rotation_matrix,
    scale_agreement,
)
from endomust_core.simulation.dataset import generate  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SMALL = Training(size=(56, 70), steps=4, batch=2, warm_up=2, save_every=2, bfloat16=False)
TINY = DepthConfig(
    dim=32, blocks=4, heads=2, features=8, out_channels=(8, 8, 8, 8), taps=(0, 1, 2, 3), necks=(1,), pos_grid=5
)


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    torch.set_num_threads(1)
    files = generate(
        tmp_path_factory.mktemp("scenes"), {"colon": 1, "laparo": 1}, 7, 1, (64, 80), detail=128, workers=1
    )
    return Views(files)


def view_of(half=(1.0, 1.0), centre=(0.0, 0.0), flip=(1.0, 1.0)):
    return View(*(torch.tensor([value], dtype=torch.float32) for value in (*half, *centre, *flip)))


def test_generate_makes_each_scene_once(tmp_path):
    first = generate(tmp_path, {"sinus": 1}, 3, 1, (64, 80), detail=128, workers=1)
    stamp = first[0].stat().st_mtime_ns
    assert generate(tmp_path, {"sinus": 1}, 3, 1, (64, 80), detail=128, workers=1)[0].stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="made with .*'pairs': 1.* remove it"):
        generate(tmp_path, {"sinus": 1}, 3, 2, (64, 80), detail=128, workers=1)
    scene = np.load(first[0])
    assert scene["rgb"].shape == (2, 64, 80, 3) and scene["depth"].dtype == np.float16
    assert np.linalg.norm(scene["T_world_camera"][1] - scene["T_world_camera"][0]) > 1e-5  # the two views differ


def test_cut_without_a_crop_is_the_image_and_a_flip_mirrors_it():
    image = torch.rand(1, 3, 6, 8)
    torch.testing.assert_close(cut(image, view_of(), (6, 8)), image)
    torch.testing.assert_close(cut(image, view_of(flip=(-1.0, 1.0)), (6, 8)), image.flip(3))
    half = cut(image, view_of(half=(0.5, 0.5), centre=(-0.5, 0.5)), (3, 4))
    torch.testing.assert_close(half, image[:, :, 3:, :4])


@pytest.mark.parametrize("flip", [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)])
def test_intrinsics_and_motion_follow_the_cut(flip):
    """The motion field of the cut camera and mirrored motion is the cut of the original motion field."""
    depth = 0.05 + 0.02 * torch.rand(1, 1, 24, 32)
    k = torch.tensor([[0.8, 1.0, 0.52, 0.47]])
    rotation, translation = torch.tensor([[0.01, -0.02, 0.03]]), torch.tensor([[1e-3, -2e-3, 5e-4]])
    transform = torch.eye(4)[None].clone()
    transform[:, :3, :3], transform[:, :3, 3] = rotation_matrix(rotation), translation
    view = view_of(half=(0.5, 0.5), centre=(0.5, -0.5), flip=flip)
    before = cut(motion_field(depth, k, transform[:, :3, :3], transform[:, :3, 3]), view, (12, 16))
    mirrored = view.mirror(transform)
    after = motion_field(cut(depth, view, (12, 16)), view.intrinsics(k), mirrored[:, :3, :3], mirrored[:, :3, 3])
    expected = before * torch.tensor(flip).view(1, 2, 1, 1) * 2  # in units of an image half as large
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-4)


def test_random_views_stay_inside_the_image():
    view = random_view(200, 0.5, 1.8, torch.Generator().manual_seed(0))
    assert (view.centre_x.abs() + view.half_x <= 1 + 1e-6).all() and (
        view.centre_y.abs() + view.half_y <= 1 + 1e-6
    ).all()
    assert set(view.flip_x.tolist()) == {-1.0, 1.0}


def test_depth_losses_by_hand():
    truth = torch.full((1, 1, 4, 4), 0.05)
    mask = torch.ones_like(truth, dtype=torch.bool)
    scaled = log_depth_losses(torch.log(truth) + 0.3, truth, mask)
    assert scaled["shape"].item() == pytest.approx(0, abs=1e-6)  # a common factor is no error of shape ...
    assert scaled["scale"].item() == pytest.approx(0.3, abs=1e-6)  # ... but one of scale
    step = torch.log(truth).clone()
    step[..., 2:] += 0.2
    split = log_depth_losses(step, truth, mask)
    assert split["shape"].item() == pytest.approx(0.1, abs=1e-6)
    # One of three columns of differences at stride 1 is 0.2; at stride 2 the only one is; larger strides see one pixel.
    assert split["gradient"].item() == pytest.approx(0.2 / 3 + 0.2, abs=1e-6)
    mask[..., 2:] = False
    assert log_depth_losses(step, truth, mask)["gradient"].item() == pytest.approx(0, abs=1e-6)
    assert masked_mean(truth, torch.zeros_like(mask)).item() == 0


def test_scale_agreement_is_the_difference_of_partners():
    truth = torch.full((4, 1, 2, 2), 0.05)
    mask = torch.ones_like(truth, dtype=torch.bool)
    error = torch.tensor([0.1, 0.2, 0.4, -0.3]).view(4, 1, 1, 1)  # partners: 0 and 2, 1 and 3
    found = scale_agreement(torch.log(truth) + error, truth, mask)
    torch.testing.assert_close(found, torch.tensor([0.3, 0.5, 0.3, 0.5]), atol=1e-5, rtol=0)
    mask[2] = False  # nothing is known of it: as if it had no error
    assert scale_agreement(torch.log(truth) + error, truth, mask)[0].item() == pytest.approx(0.1, abs=1e-5)


def test_steady_batches_show_every_scene_twice(views):
    class Recorder(torch.nn.Module):
        config = TINY

        def forward(self, images):
            self.seen = images
            return {scale: torch.full((4, 1, -(-56 // 2**scale), -(-70 // 2**scale)), 0.5) for scale in range(4)}

    recorder, options = Recorder(), replace(SMALL, batch=4, steady=0.5, colour=0.0)
    for step in range(4):
        losses = depth_losses(recorder, views, options, 1, step)
        first, second = recorder.seen.chunk(2)
        assert (first - second).abs().mean() < 0.1, step
        assert losses["steady"].shape == (4,)
        torch.testing.assert_close(losses["steady"][:2], losses["steady"][2:])
    assert "steady" not in depth_losses(recorder, views, replace(options, steady=0.0), 1, 0)


def test_depth_loss_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    truth = 0.05 + 0.01 * torch.rand(1, 1, 6, 6, generator=generator, dtype=torch.float64)
    guess = (
        torch.log(truth) + 0.3 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    ).requires_grad_()
    mask = torch.rand(truth.shape, generator=generator) > 0.2
    assert torch.autograd.gradcheck(
        lambda g: sum(log_depth_losses(g, truth, mask).values()), (guess,), eps=1e-7, atol=1e-4
    )


def test_motion_losses_vanish_for_the_truth_and_count_a_shift():
    depth, mask = torch.full((1, 1, 6, 8), 0.05), torch.ones(1, 1, 6, 8, dtype=torch.bool)
    k = torch.tensor([[0.8, 1.0, 0.5, 0.5]])
    rotation, translation = torch.tensor([[0.01, 0.0, -0.02]]), torch.tensor([[1e-3, 0.0, 0.0]])
    exact = motion_losses(Pose(rotation, translation, k), rotation, translation, k, depth, mask)
    assert all(value.item() == pytest.approx(0, abs=1e-4) for value in exact.values())
    moved = motion_losses(
        Pose(rotation, translation + torch.tensor([[1e-4, 0, 0]]), k), rotation, translation, k, depth, mask
    )
    assert moved["translation"].item() == pytest.approx(0.1 / 3, rel=1e-3)
    # 0.1 mm at 50 mm under a focal length of 0.8 images is 1.6 thousandths of the image, before saturation.
    assert moved["field"].item() == pytest.approx(1.6 / (1 + 1.6 / 50), rel=0.03)


def test_batches_depend_on_seed_and_step_alone(views):
    torch.manual_seed(0)
    network = DepthNetwork(TINY)
    first, again, other = (depth_losses(network, views, SMALL, 1, step) for step in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["shape/0"], other["shape/0"])
    assert all(value.shape == (2,) for value in first.values())


def test_a_stopped_run_ends_with_the_same_weights(views, tmp_path):
    def run(folder, steps):
        torch.manual_seed(3)
        folder.mkdir(exist_ok=True)
        options = replace(SMALL, steps=SMALL.steps)
        if steps < SMALL.steps:  # stopped: the check after step 2 raises, like a signal would
            with pytest.raises(KeyboardInterrupt):
                fit(DepthNetwork(TINY), depth_losses, views, options, 1, folder, "depth", stop)
            return None
        return fit(DepthNetwork(TINY), depth_losses, views, options, 1, folder, "depth", lambda network: "")

    def stop(network):
        raise KeyboardInterrupt

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "stopped", 2)
    resumed = run(tmp_path / "stopped", 4)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_lowers_the_loss_it_is_given(views, tmp_path):
    torch.manual_seed(0)
    network = DepthNetwork(TINY)
    options = replace(
        SMALL, steps=40, batch=4, learning_rate=3e-3, colour=0.0, smallest_crop=1.0, stretch=1.0, average=0.5
    )
    before = sum(value.mean() for value in depth_losses(network, views, options, 1, 0).values()).item()
    trained = fit(network, depth_losses, views, options, 1, tmp_path, "depth", lambda network: "")
    after = sum(value.mean() for value in depth_losses(trained, views, options, 1, 0).values()).item()
    assert after < 0.8 * before


def test_pose_batches_carry_consistent_truth(views):
    """A network that answers with the truth of a pair at rest has no loss there; the loss is finite for any pair."""
    from endomust_core.learning.networks.pose import PoseNetwork

    torch.manual_seed(0)
    losses = pose_losses(PoseNetwork(), views, replace(SMALL, smallest_crop=0.85), 1, 0)
    assert set(losses) == {"field", "rotation", "translation", "intrinsics"}
    assert all(torch.isfinite(value).all() and value.shape == (2,) for value in losses.values())


def test_a_loss_that_is_not_finite_stops_the_run(views, tmp_path):
    broken = lambda network, *_: {"shape": torch.full((2,), float("nan"), requires_grad=True)}  # noqa: E731
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        fit(DepthNetwork(TINY), broken, views, SMALL, 1, tmp_path, "depth", lambda network: "")


def test_configuration_reads_overrides_and_refuses_unknown_keys(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: mine\ndepth: {learning_rate: 1e-3, size: [56, 70]}\ntrain: {count: {colon: 2}}\n")
    config = load_config(PretrainConfig, path, ["depth.steps=7", "seed=3"])
    assert (config.name, config.depth.steps, config.depth.size, config.seed) == ("mine", 7, (56, 70), 3)
    assert config.depth.learning_rate == 1e-3 and config.train.count == {"colon": 2}
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        load_config(PretrainConfig, path, ["depth.learning_rat=1"])
    with pytest.raises(ConfigError, match="key=value"):
        load_config(PretrainConfig, path, ["depth.steps"])
    with pytest.raises(ConfigError, match="type int"):
        load_config(PretrainConfig, path, ["depth.steps=many"])
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(PretrainConfig, tmp_path / "none.yaml")
    path.write_text("name: [unclosed")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(PretrainConfig, path)


def test_flow_truth_brings_the_source_onto_the_target(views):
    plain = replace(SMALL, batch=4, colour=0.0)
    for step in range(3):
        source, target, flow, mask = flow_batch(views, plain, 1, step)
        known = mask.expand_as(target)
        moved = (warp_by_flow(source, flow) - target).abs()[known].mean()
        assert moved < 0.8 * (source - target).abs()[known].mean()


def test_flow_losses_vanish_for_the_truth(views):
    _, _, truth, mask = flow_batch(views, SMALL, 1, 2)
    assert mask.any()
    right = flow_losses(lambda source, target: {0: truth, 1: truth, 2: truth, 3: truth}, views, SMALL, 1, 2)
    wrong = flow_losses(lambda source, target: {k: truth + torch.ones(2, 1, 1) for k in range(4)}, views, SMALL, 1, 2)
    for scale, weight in enumerate((1.0, 0.5, 0.25, 0.125)):
        assert right[f"flow/{scale}"].abs().max() == 0
        expected = weight * 8 * 2**0.5 / (8 + 2**0.5)  # one pixel off in both directions
        assert torch.allclose(wrong[f"flow/{scale}"], torch.full((2,), expected), atol=1e-4)


SHARED = """
name: shared
train: {count: {colon: 2}, wide: 0.5, first_seed: 7, pairs: 1, size: [64, 80], detail: 128}
validation: {count: {colon: 1}, pairs: 1, size: [64, 80], detail: 128}
test: {count: {colon: 2}, wide: 0.5, first_seed: 9, pairs: 1, size: [64, 80], detail: 128}
depth: {size: [56, 70], steps: 2, batch: 2, warm_up: 1, bfloat16: false}
pose: {size: [56, 70], steps: 2, batch: 2, warm_up: 1}
"""


def test_processes_share_a_run_and_wide_scenes_stand_beside_plain_ones(tmp_path):
    torch.set_num_threads(1)
    (tmp_path / "shared.yaml").write_text(SHARED)
    run = pretrain(tmp_path / "shared.yaml", out=tmp_path / "run", workers=1, only="depth")
    assert (run / "depth.pt").exists() and not (run / "pose.pt").exists() and not (run / "scores.yaml").exists()
    first = load_checkpoint(run / "depth.pt", "depth")[0].state_dict()
    assert [path.name for path in (run / "scenes" / "train").glob("*.npz")] == ["colon-7.npz"]
    assert [path.name for path in (run / "scenes" / "train-wide").glob("*.npz")] == ["colon-100007.npz"]
    with pytest.raises(ConfigError, match="make depth.batch 3 even"):
        pretrain(tmp_path / "shared.yaml", ["depth.steady=1", "depth.batch=3"], run)
    pretrain(tmp_path / "shared.yaml", out=run, workers=1)
    again = load_checkpoint(run / "depth.pt", "depth")[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)  # what was trained alone is kept
    scores = yaml.safe_load((run / "scores.yaml").read_text())
    assert set(scores["depth"]) == {"colon", "colon wide", "all"} and "rotation_error" in scores["pose"]

    start = [f"scenes={run / 'scenes'}", f"depth.init={run}", "depth.steps=0"]
    start += [f"pose.init={run / 'pose.pt'}", "pose.steps=0"]
    taken = pretrain(tmp_path / "shared.yaml", start, tmp_path / "taken", workers=1)
    assert not (taken / "scenes").exists()  # those of the first run
    copied = load_checkpoint(taken / "depth.pt", "depth")[0].state_dict()
    assert all(torch.equal(first[name], copied[name]) for name in first)  # no steps: taken as it is
    with pytest.raises(ConfigError, match="no 'flow' to make alone; choose one of scenes, depth, pose, optical_flow"):
        pretrain(tmp_path / "shared.yaml", out=run, only="flow")


@pytest.mark.parametrize(
    "name", ["pretrain-tiny", "pretrain-small", "pretrain-two-domains", "refine-tiny", "refine-small"]
)
def test_shipped_configurations_load_and_their_batches_can_be_halved(name):
    config = load_config(PretrainConfig, ROOT / "config" / f"{name}.yaml", [])
    assert config.depth.steps > 0 and not (config.depth.steady and config.depth.batch % 2)
    assert not config.pose.steps or config.pose.warm_up < config.pose.steps


def test_the_script_for_a_gpu_says_what_it_can_make():
    found = subprocess.run(
        ["sh", "models/train-on-gpu.sh", "all"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 2 and "no stage all; choose scenes or networks" in found.stderr
