"""Export: a bundle that says what PyTorch says, in small self-contained files, or no bundle at all."""

import cv2
import numpy as np
import onnx
import pytest
import torch
import yaml

from endomust_core.backends import open_network
from endomust_core.bundle import load_bundle
from endomust_core.learning import export
from endomust_core.learning.export import ExportError, export_bundle, fold_batch_norm, largest_difference
from endomust_core.learning.networks.depth import (
    DepthConfig,
    DepthNetwork,
    depth_from_disparity,
    inverse_depth,
    resize,
)
from endomust_core.learning.networks.pose import Pose, PoseNetwork
from endomust_core.learning.networks.resnet import ResNet18
from endomust_core.learning.networks.unet_depth import UNetDepth

SIZE = (56, 70)
SMALL = DepthConfig(
    dim=24, blocks=4, heads=2, features=16, out_channels=(4, 6, 8, 8), taps=(0, 1, 2, 3), necks=(1, 3), pos_grid=6,
    stem_channels=8, head_channels=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(3)]


def trained(network, seed=0):
    """Weights far from their initial values, so that every branch contributes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def write(out, frames, depth=None, pose=None, **changes):
    depth = trained(DepthNetwork(SMALL)) if depth is None else depth
    request = dict(size=SIZE, name="test", provenance={"seed": 0}, scores={"abs_rel": 0.5}, frames=frames)
    return export_bundle(depth, pose, out, **(request | changes))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, frames):
    """Depth and pose networks and the bundle written from them."""
    depth, pose = trained(DepthNetwork(SMALL)), trained(PoseNetwork("tiny"))
    return depth, pose, write(tmp_path_factory.mktemp("models") / "test", frames, depth, pose)


def test_the_bundle_gives_the_depth_of_the_network(bundle, frames):
    depth, _, root = bundle
    spec = load_bundle(root).depth
    answer = open_network(spec, threads=1).run({"image": frames[0][None]})["disparity"]
    with torch.no_grad():
        disparity = depth(torch.from_numpy(frames[0]).permute(2, 0, 1)[None] / 255.0)[0]
        expected = depth_from_disparity(disparity, 0.002, 0.35)[0].numpy()
    assert answer.shape == (1, *SIZE) and answer.dtype == np.float32
    assert np.ptp(expected) > 0.01 * expected.mean()  # a flat map would hide a swapped axis
    np.testing.assert_allclose(1.0 / answer, expected, rtol=5e-3)  # float16 weights


def test_the_bundle_gives_the_pose_of_the_network(bundle, frames):
    _, pose, root = bundle
    spec = load_bundle(root).pose
    answer = open_network(spec, threads=1).run({"images": np.stack(frames[:2])[None]})
    with torch.no_grad():
        previous, current = (torch.from_numpy(frame).permute(2, 0, 1)[None] / 255.0 for frame in frames[:2])
        expected = pose(previous, current)._asdict()
    for name, value in expected.items():
        np.testing.assert_allclose(answer[name], value.numpy(), atol=0.01 * value.abs().max().item())


def test_the_manifest_tells_what_was_verified(bundle):
    manifest = yaml.safe_load((bundle[2] / "manifest.yaml").read_text())
    verification = manifest["verification"]
    assert verification["frames"] == 3 and verification["weights"] == "float16"
    for network in ("depth", "pose"):
        assert 0 <= verification[network]["onnx_vs_pytorch_max_rel"] <= 1e-4
        assert 0 < verification[network]["weight_rounding_max_rel"] < 0.05
        assert verification[network]["bytes"] == (bundle[2] / f"{network}.onnx").stat().st_size
    assert manifest["depth"]["range_m"] == [0.002, 0.35] and manifest["pose"]["convention"] == "T_prev_curr"
    assert manifest["provenance"] == {"seed": 0} and manifest["scores"] == {"abs_rel": 0.5}


def test_graphs_are_single_files_of_fixed_shape_with_facts_inside(bundle):
    root = bundle[2]
    assert sorted(path.name for path in root.iterdir()) == ["depth.onnx", "manifest.yaml", "pose.onnx"]
    for network in ("depth", "pose"):
        model = onnx.load(root / f"{network}.onnx", load_external_data=False)
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [17]
        for value in (*model.graph.input, *model.graph.output):
            assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim)
        modes = [attribute.s for node in model.graph.node for attribute in node.attribute if attribute.name == "mode"]
        assert b"cubic" not in modes  # the position embedding is baked
        large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 1024]
        halves = [tensor for tensor in large if tensor.data_type == onnx.TensorProto.FLOAT16]
        assert len(halves) > 0.9 * len(large)
        facts = {entry.key: entry.value for entry in model.metadata_props}
        assert facts["endomust_bundle"] == "test"
    assert facts["convention"] == "T_prev_curr"


def test_float16_halves_the_file_and_float32_stores_exactly(bundle, frames, tmp_path):
    exact = write(tmp_path / "exact", frames, bundle[0], bundle[1], weight_dtype="float32")
    verification = load_bundle(exact).manifest["verification"]
    for network in ("depth", "pose"):
        assert verification[network]["weight_rounding_max_rel"] == 0
        half, full = ((root / f"{network}.onnx").stat().st_size for root in (bundle[2], exact))
        assert half < 0.75 * full  # in a small graph the node list weighs too


def test_frames_of_any_size_are_resized_and_pose_is_optional(tmp_path, frames):
    larger = [np.repeat(np.repeat(frame, 2, axis=0), 2, axis=1) for frame in frames[:2]]
    root = write(tmp_path / "depth_only", larger)
    assert load_bundle(root).pose is None and not (root / "pose.onnx").exists()


def test_a_graph_that_differs_is_not_published(bundle, frames, tmp_path, monkeypatch):
    root = write(tmp_path / "model", frames, bundle[0])
    before = (root / "depth.onnx").read_bytes()
    other = trained(DepthNetwork(SMALL), seed=5)
    honest = export.compress_weights

    def spoil(path, *rest):
        honest(path, *rest)
        model = onnx.load(path)
        halves = (tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16)
        tensor = max(halves, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(tensor) * np.float16(1.1)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(export, "compress_weights", spoil)
    with pytest.raises(ExportError, match="depth.onnx: ONNX Runtime differs from PyTorch"):
        write(root, frames, other)
    assert (root / "depth.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load_bundle(root)


def test_a_network_that_answers_nan_is_not_published(frames, tmp_path):
    network = trained(DepthNetwork(SMALL))
    network.encoder.norm.bias.data[0] = float("nan")
    with pytest.raises(ExportError, match="differs from PyTorch"):
        write(tmp_path / "nan", frames, network)
    assert not (tmp_path / "nan").exists()


def test_weights_beyond_float16_are_refused(frames, tmp_path):
    network = trained(DepthNetwork(SMALL))
    network.encoder.blocks[0].mlp.fc1.weight.data[0, 0] = 1e6
    with pytest.raises(ExportError, match=r"fc1\.weight has values beyond float16; export with weight_dtype float32"):
        write(tmp_path / "big", frames, network)


def test_a_given_network_is_left_as_it_was(bundle, frames, tmp_path):
    network = trained(DepthNetwork(SMALL)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    write(tmp_path / "again", frames, network)
    assert network.training and all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_folded_batch_norms_answer_the_same():
    network = trained(ResNet18(images=2))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    image = torch.rand(1, 6, 64, 64)
    with torch.no_grad():
        expected = network(image)
        found = fold_batch_norm(network)(image)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.abs().max()) for a, b in zip(found, expected, strict=True))


def test_the_graph_may_resize_the_image_for_the_transformer(frames, tmp_path):
    network = trained(DepthNetwork(SMALL))
    root = write(tmp_path / "resized", frames, network, size=(64, 80), encoder_size=SIZE, weight_dtype="float32")
    spec = load_bundle(root).depth
    image = cv2.resize(frames[0], (80, 64), interpolation=cv2.INTER_LINEAR)
    answer = open_network(spec, threads=1).run({"image": image[None]})["disparity"]
    with torch.no_grad():
        small = resize(torch.from_numpy(image).permute(2, 0, 1)[None] / 255.0, SIZE)
        disparity = network(small, scales=(0,), size=(64, 80))[0][:, 0]
        expected = inverse_depth(disparity, 0.002, 0.35).numpy()
    assert spec.size == (64, 80) and answer.shape == (1, 64, 80)
    np.testing.assert_allclose(answer, expected, rtol=1e-4)


def test_a_pose_network_may_say_no_intrinsics(frames, tmp_path):
    class Still(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(1, 3))

        def forward(self, previous, current):
            mean = (current - previous).mean(dim=(2, 3))
            return Pose(self.gain * mean, 2 * mean, None)

    bundle = load_bundle(write(tmp_path / "still", frames, pose=Still()))
    assert set(bundle.pose.outputs) == {"rotation", "translation"}


def test_relative_depth_is_compared_with_its_largest_value():
    reference, answer = (
        [{"disparity": np.array([[[0.0, 1.0, 10.0]]])}],
        [{"disparity": np.array([[[1e-4, 1.0, 10.0]]])}],
    )
    assert largest_difference(answer, reference, pixelwise=False) == pytest.approx(1e-5)
    assert largest_difference(answer, reference) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": UNetDepth(), "size": (56, 70)}, "multiples of 32"),
        ({"encoder_size": (56, 71)}, r"\(56, 71\) must be .* multiples of 14"),
        ({"weight_dtype": "int8"}, "choose float16 or float32"),
        ({"size": (56, 72)}, "multiples of 14"),
        ({"frames": []}, "at least two consecutive frames"),
        ({"frames": [np.zeros((56, 70, 3), np.float32)] * 2}, "uint8 RGB"),
    ],
)
def test_impossible_requests_are_refused_in_words(tmp_path, frames, changes, message):
    with pytest.raises(ExportError, match=message):
        write(tmp_path / "no", **({"frames": frames} | changes))
    assert not list(tmp_path.iterdir())
