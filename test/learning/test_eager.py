"""A run scored in PyTorch says what its bundle says; what is no run is refused with what to give instead."""

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from endomust_core.learning.checkpoint import CheckpointError, save_checkpoint  # noqa: E402
from endomust_core.learning.eager import open_eager  # noqa: E402
from endomust_core.learning.export import export_bundle  # noqa: E402
from endomust_core.learning.networks.depth import DepthConfig, DepthNetwork  # noqa: E402
from endomust_core.learning.networks.pose import PoseNetwork  # noqa: E402
from endomust_core.predictions import BundlePredictor, CachedPredictor  # noqa: E402

SMALL = DepthConfig(dim=24, blocks=2, heads=2, features=8, out_channels=(8, 8, 8, 8), taps=(0, 0, 1, 1), necks=(1,),
                    pos_grid=4)  # fmt: skip


def images(count=3):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (100, 130, 3), dtype=np.uint8) for _ in range(count)]


def trained(network, seed):
    """Weights far from their initial values, so that every branch contributes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def write_run(folder, config, seed=0, pose=True):
    depth = trained(DepthNetwork(SMALL), seed)
    motion = trained(PoseNetwork("tiny"), seed) if pose else None
    save_checkpoint(folder / "depth.pt", depth)
    if pose:
        save_checkpoint(folder / "pose.pt", motion)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "small", **config}))
    return depth, motion


@pytest.mark.parametrize(
    ("config", "size", "encoder_size"),
    [
        ({"depth": {"size": [56, 70]}}, (56, 70), None),  # as pretrain leaves it
        ({"depth": {"size": [56, 70]}, "data": {"size": [64, 80]}}, (64, 80), (56, 70)),  # as train leaves it
        ({"depth": {"size": [56, 70]}, "data": {"size": [56, 70]}}, (56, 70), None),
    ],
)
def test_a_run_says_what_its_bundle_says(tmp_path, config, size, encoder_size):
    depth, pose = write_run(tmp_path / "run", config)
    eager = open_eager(tmp_path / "run")
    bundle = export_bundle(
        depth, pose, tmp_path / "bundle", size, "small", {}, {}, images(), "float32", encoder_size=encoder_size
    )
    exported = BundlePredictor(bundle, threads=1)
    first, second, _ = images()
    disparity = eager.disparity(second)
    assert disparity.shape == size and disparity.dtype == np.float32 and np.ptp(disparity) > 0.01 * disparity.mean()
    np.testing.assert_allclose(disparity, exported.disparity(second), rtol=1e-4)
    (T, intrinsics), (expected, known) = eager.motion(first, second), exported.motion(first, second)
    np.testing.assert_allclose(T, expected, atol=1e-4 * np.abs(expected[:3, 3]).max())
    np.testing.assert_allclose(intrinsics, known, rtol=1e-4)
    assert (eager.backend, eager.name, eager.metric) == ("pytorch/cpu", "small", False)


def test_the_digest_is_that_of_the_weights_and_the_size(tmp_path):
    small = {"depth": {"size": [56, 70]}}
    for name, seed, config in (("one", 0, small), ("two", 1, small), ("three", 0, {"depth": {"size": [70, 84]}})):
        write_run(tmp_path / name, config, seed)
    digests = {open_eager(tmp_path / name).digest for name in ("one", "two", "three")}
    assert len(digests) == 3
    assert open_eager(tmp_path / "one" / "depth.pt").digest == open_eager(tmp_path / "one").digest


def test_training_on_never_meets_the_predictions_of_before(tmp_path):
    (image,) = images(1)
    write_run(tmp_path / "run", {"depth": {"size": [56, 70]}})
    before = CachedPredictor(open_eager(tmp_path / "run"), tmp_path / "cache").disparity(image)
    write_run(tmp_path / "run", {"depth": {"size": [56, 70]}}, seed=1)
    after = CachedPredictor(open_eager(tmp_path / "run"), tmp_path / "cache")
    assert not np.array_equal(after.disparity(image), before) and after.misses == 1


def test_a_run_without_pose_says_no_motion(tmp_path):
    write_run(tmp_path / "run", {"depth": {"size": [56, 70]}}, pose=False)
    assert open_eager(tmp_path / "run").motion(*images(2)) is None


def test_what_is_no_run_is_refused_in_words(tmp_path):
    with pytest.raises(CheckpointError, match="holds no depth.pt.*give the folder of a run"):
        open_eager(tmp_path)
    write_run(tmp_path / "run", {"depth": {"size": [56, 70]}})
    with pytest.raises(CheckpointError, match="device 'nonsense'"):
        open_eager(tmp_path / "run", device="nonsense")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"name": "small", "depth": {"size": [50, 70]}}))
    with pytest.raises(CheckpointError, match="takes multiples of 14"):
        open_eager(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("name: small")
    with pytest.raises(CheckpointError, match="not the configuration of a run"):
        open_eager(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match="at what size to run"):
        open_eager(tmp_path / "run" / "depth.pt")
    with pytest.raises(CheckpointError, match="holds a pose network, not depth"):
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"name": "small", "depth": {"size": [56, 70]}}))
        open_eager(tmp_path / "run" / "pose.pt")
