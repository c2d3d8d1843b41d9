"""Start from a bundle: the networks that were exported come back whole, work at other sizes, or nothing comes back."""

import copy
import shutil

import numpy as np
import onnx
import pytest
import torch
import yaml

from endomust_core.bundle import BundleError, default_bundle, load_bundle, resize_rgb, write_manifest
from endomust_core.golden import load_golden, pairs_of
from endomust_core.learning.build import DepthPart, PosePart, build_depth, build_pose
from endomust_core.learning.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from endomust_core.learning.export import DepthGraph, PoseGraph, export_bundle, round_weights
from endomust_core.learning.from_bundle import is_bundle, load_depth, load_pose, module_of, unbaked_position
from endomust_core.learning.lora import LoraConfig
from endomust_core.learning.networks.depth import PRESETS, DepthConfig, DepthNetwork
from endomust_core.learning.networks.pose import PoseConfig, PoseNetwork
from endomust_core.learning.networks.relative_depth import RelativeDepth
from endomust_core.learning.networks.resnet import ResNet18
from endomust_core.learning.networks.vit import resize_position

ROUNDED = 2e-3  # golden answers are those of float32 weights, before they were stored as float16
SIZE = (56, 70)  # 4×5 patches
SMALL = DepthConfig(
    dim=24, blocks=4, heads=2, features=16, out_channels=(4, 6, 8, 8), taps=(0, 1, 2, 3), necks=(1, 3), pos_grid=4,
    stem_channels=8, head_channels=8,
)  # fmt: skip
LINEAR = DepthConfig(
    dim=24, blocks=5, heads=3, features=16, out_channels=(4, 6, 8, 8), taps=(0, 1, 2, 4), necks=(2,), pos_grid=4,
    neck_dim=5, patch_stem="linear", head_channels=8, normalization="none", min_depth=0.01, max_depth=0.5,
)  # fmt: skip
PYRAMID = DepthConfig(
    dim=24, blocks=2, heads=2, features=8, out_channels=(8, 8, 8, 8), taps=(0, 1), necks=(1,), pos_grid=4,
    patch_stem="pyramid", stem_channels=8, pyramid_units=(1, 1),
)  # fmt: skip


def frames(size=SIZE):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(3)]


def trained(network, seed=0):
    """Weights far from their initial values, so that every branch contributes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.3 * torch.rand(buffer.shape, generator=generator))
    return network.eval()


def write(out, depth, pose=None, size=SIZE, **changes):
    request = dict(name="test", provenance={}, scores={}, frames=frames(size), weight_dtype="float32")
    return export_bundle(depth, pose, out, size, **(request | changes))


def disparity(network, size=SIZE, scales=(0,)):
    image = torch.from_numpy(frames(size)[0]).permute(2, 0, 1)[None] / 255.0
    with torch.inference_mode():
        return torch.cat([value.flatten() for value in network(image, scales=scales).values()])


def motion(network, size=SIZE):
    previous, current = (torch.from_numpy(frame).permute(2, 0, 1)[None] / 255.0 for frame in frames(size)[:2])
    with torch.inference_mode():
        return network(previous, current)


def assert_same(found, expected, tolerance):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def without_configs(root):
    """The bundle as older versions wrote it."""
    file = root / "manifest.yaml"
    manifest = yaml.safe_load(file.read_text())
    assert manifest.pop("networks")
    file.write_text(yaml.safe_dump(manifest))
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Depth and pose networks and the bundle written from them, weights as they are."""
    depth, pose = trained(DepthNetwork(SMALL)), trained(PoseNetwork("tiny"))
    return depth, pose, write(tmp_path_factory.mktemp("models") / "test", depth, pose)


@pytest.fixture
def copied(bundle, tmp_path):
    """A copy of that bundle to tamper with."""
    return shutil.copytree(bundle[2], tmp_path / "copy")


def tamper(root, change, file="depth.onnx"):
    """Change a graph and let the manifest vouch for it."""
    model = onnx.load(root / file)
    change(model.graph)
    onnx.save(model, root / file)
    write_manifest(root, yaml.safe_load((root / "manifest.yaml").read_text()))
    return root


def stored(graph, name):
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    return tensor


def test_a_depth_network_comes_back_to_the_bit_but_for_its_coarse_heads(bundle):
    depth, _, root = bundle
    found = load_depth(root)
    own, given = found.state_dict(), depth.state_dict()
    same = [name for name in own if torch.equal(own[name], given[name])]
    rest = {name for name in own if name not in same}
    coarse = {name for name in own if name.startswith(("depth_head.conv_depth_2", "depth_head.conv_depth_3"))}
    coarse |= {name for name in own if name.startswith("depth_head.conv_depth_4")}
    assert rest == coarse | {"encoder.pos_embed"}
    assert_same(own["encoder.pos_embed"], given["encoder.pos_embed"], 1e-5)  # 4×4 was enlarged to 4×5
    assert found.config == depth.config and not found.training
    assert_same(disparity(found), disparity(depth), 1e-5)


def test_it_works_at_another_size_and_as_a_checkpoint(bundle, tmp_path):
    depth, _, root = bundle
    found = load_depth(root / "manifest.yaml")
    assert_same(disparity(found, (84, 42)), disparity(depth, (84, 42)), 1e-4)
    read, _ = load_checkpoint(save_checkpoint(tmp_path / "depth.pt", found), "depth")
    assert torch.equal(disparity(read), disparity(found))


def test_a_pose_network_comes_back_to_the_bit(bundle):
    _, pose, root = bundle
    found = load_pose(root)
    for name, value in pose.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert found.config == pose.config and all(
        torch.equal(*pair) for pair in zip(motion(found), motion(pose), strict=True)
    )


def test_float16_weights_come_back_rounded(bundle, tmp_path):
    depth, pose, _ = bundle
    root = write(tmp_path / "half", depth, pose, weight_dtype="float16")
    assert_same(disparity(load_depth(root)), disparity(round_weights(copy.deepcopy(depth), "float16")), 1e-5)
    assert_same(disparity(load_depth(root)), disparity(depth), 5e-3)
    rounded = round_weights(copy.deepcopy(pose), "float16")
    for found, exact in zip(motion(load_pose(root)), motion(rounded), strict=True):
        assert_same(found, exact, 1e-5)


@pytest.mark.parametrize(
    ("config", "motion_config"),
    [(SMALL, PoseConfig(radius=2, rotation_gain=0.5)), (LINEAR, PoseConfig("compact", 0.02, 0.005))],
    ids=["conv stem, correlation", "linear stem, compact"],
)
def test_an_older_bundle_shows_its_configs_in_the_graphs(config, motion_config, tmp_path):
    depth, pose = trained(DepthNetwork(config)), trained(PoseNetwork(motion_config))
    root = without_configs(write(tmp_path / "old", depth, pose))
    found, moved = load_depth(root), load_pose(root)
    assert_same(disparity(found), disparity(depth), 1e-5)
    for name in ("dim", "blocks", "heads", "taps", "necks", "head_channels", "normalization", "min_depth", "max_depth"):
        assert getattr(found.config, name) == getattr(config, name), name
    assert moved.config.encoder == motion_config.encoder
    assert moved.config.rotation_gain == pytest.approx(motion_config.rotation_gain)
    assert motion_config.encoder == "compact" or moved.config.radius == motion_config.radius
    for answer, expected in zip(motion(moved), motion(pose), strict=True):
        assert_same(answer, expected, 1e-5)


def test_equal_weights_stored_once_find_all_their_places(tmp_path):
    depth, pose = DepthNetwork(SMALL).eval(), PoseNetwork("tiny").eval()  # untrained: many ones and zeros
    torch.nn.init.normal_(depth.encoder.norm.weight)  # or the graph would compute this norm and the next block's once
    root = write(tmp_path / "fresh", depth, pose)
    names = [tensor.name for tensor in onnx.load(root / "depth.onnx").graph.initializer]
    assert "network.encoder.blocks.3.norm2.bias" not in names
    assert_same(disparity(load_depth(root)), disparity(depth), 1e-5)
    assert_same(motion(load_pose(root)).rotation, motion(pose).rotation, 1e-5)


def test_a_pyramid_comes_back(tmp_path):
    depth = trained(DepthNetwork(PYRAMID))
    found = load_depth(write(tmp_path / "pyramid", depth, weight_dtype="float16"))
    assert found.config == PYRAMID
    assert_same(disparity(found), disparity(round_weights(depth, "float16")), 1e-5)


def test_a_graph_that_resizes_its_image_and_takes_two(tmp_path):
    depth = trained(DepthNetwork(SMALL))
    root = write(tmp_path / "resizing", depth, size=(64, 80), encoder_size=SIZE, batch=2)
    assert_same(disparity(load_depth(root)), disparity(depth), 1e-5)


def test_batch_norms_come_back_and_mean_the_same_in_training(tmp_path):
    pose = trained(PoseNetwork("paper"))
    root = write(tmp_path / "paper", trained(DepthNetwork(SMALL)), pose)
    found = load_pose(root)
    for answer, expected in zip(motion(found), motion(pose), strict=True):
        assert_same(answer, expected, 1e-4)
    norm = found.encoder.encoder.bn1
    assert norm.running_mean.abs().max() > 0.01  # of the images, not a placeholder
    pattern = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = resize_rgb(pattern, SIZE)
    pair = torch.from_numpy(np.stack([image, np.roll(image, 2, axis=1)])).permute(0, 3, 1, 2)[:, None] / 255.0
    with torch.no_grad():
        calm = found.encoder(pair[0], pair[1])
        trains = found.train().encoder(pair[0], pair[1])
    assert_same(trains, calm, 1e-3)
    assert sum(isinstance(module, ResNet18) for module in found.modules()) == 1


def test_the_shipped_bundle_comes_back_and_gives_its_golden_answers():
    bundle = load_bundle(default_bundle())
    golden = load_golden(bundle)
    depth, pose = load_depth(default_bundle()), load_pose(default_bundle())
    trained = bundle.manifest["provenance"]["config"]["depth"]
    assert depth.config == PRESETS[trained["preset"]] and pose.config == PoseConfig()
    graph = DepthGraph(copy.deepcopy(depth), bundle.depth.size)
    with torch.inference_mode():
        for image, wanted in zip(golden["depth_images"], golden["disparity"], strict=True):
            answer = graph(torch.from_numpy(image[None]))[0].numpy()
            np.testing.assert_allclose(answer, wanted, rtol=ROUNDED)
        pairs = pairs_of(golden["pose_images"])
        answers = [PoseGraph(pose)(torch.from_numpy(pair)) for pair in pairs]
    for place, name in enumerate(("rotation", "translation", "intrinsics")):
        found = np.concatenate([answer[place].numpy() for answer in answers])
        np.testing.assert_allclose(found, golden[name], atol=5 * ROUNDED * np.abs(golden[name]).max())
    larger = disparity(depth, (224, 280))
    assert torch.isfinite(larger).all() and larger.std() > 0


def test_training_starts_from_a_bundle(bundle):
    depth, pose, root = bundle
    found = build_depth(DepthPart(preset="tiny", init=str(root), lora=LoraConfig(rank=2)))
    assert any(".lora_A" in name for name, _ in found.named_parameters())
    assert_same(disparity(found.eval()), disparity(depth), 1e-5)  # adapters start as the identity
    moved = build_pose(PosePart(init=str(root)))
    assert_same(motion(moved).translation, motion(pose).translation, 1e-5)
    assert is_bundle(root) and not is_bundle(root.parent)


def test_a_graph_whose_arithmetic_was_changed_is_refused(copied):
    def steeper(graph):
        (mul,) = (node for node in graph.node if node.name == "/Mul")
        tensor = stored(graph, mul.input[1])
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name)
        )

    with pytest.raises(CheckpointError, match="gives other answers than PyTorch"):
        load_depth(tamper(copied, steeper))


def test_a_weight_without_a_place_is_refused(copied):
    extra = onnx.numpy_helper.from_array(np.ones(24, np.float32), "network.encoder.extra.weight")
    with pytest.raises(CheckpointError, match="1 weights without a place .network.encoder.extra.weight."):
        load_depth(tamper(copied, lambda graph: graph.initializer.append(extra)))


def test_a_parameter_without_a_weight_is_refused(copied):
    def rename(graph):
        (node,) = (node for node in graph.node if node.name == "/network/encoder/blocks.2/norm2/LayerNormalization")
        node.name = "/network/encoder/blocks.2/norm7/LayerNormalization"

    with pytest.raises(CheckpointError, match=r"2 missing \(encoder.blocks.2.norm2.*2 unexpected"):
        load_depth(tamper(copied, rename))


def test_a_position_embedding_of_another_size_is_refused(copied):
    def cut(graph):
        tensor = stored(graph, "network.encoder.pos_embed")
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values[:, :-1, :-1].copy(), tensor.name))

    with pytest.raises(CheckpointError, match="the position embedding is .* of no .4, 5. patches"):
        load_depth(tamper(copied, cut))


def test_two_weights_for_one_parameter_are_refused(copied):
    def rename(graph):
        (node,) = (node for node in graph.node if node.name == "/network/encoder/blocks.2/norm2/LayerNormalization")
        node.name = "/network/encoder/blocks.2/norm1/LayerNormalization"

    with pytest.raises(CheckpointError, match="two weights for encoder.blocks.2.norm1.weight"):
        load_depth(tamper(copied, rename))


def test_a_pose_graph_with_other_arithmetic_is_refused(copied):
    def faster(graph):
        (node,) = (node for node in graph.node if "rotation" in node.output)
        gain = onnx.numpy_helper.from_array(np.array(0.02, np.float32), "/gain")
        graph.initializer.append(gain)
        node.input[1] = "/gain"

    with pytest.raises(CheckpointError, match="pose.onnx gives other answers"):
        load_pose(tamper(copied, faster, "pose.onnx"))


def test_a_damaged_file_is_refused(copied):
    (copied / "depth.onnx").write_bytes((copied / "depth.onnx").read_bytes()[:-7])
    with pytest.raises(BundleError, match="sha256 differs"):
        load_depth(copied)


def test_a_manifest_with_another_config_is_refused(copied):
    manifest = yaml.safe_load((copied / "manifest.yaml").read_text())
    manifest["networks"]["depth"]["colour"] = "red"
    manifest["networks"]["pose"]["radius"] = 2
    write_manifest(copied, manifest)
    with pytest.raises(CheckpointError, match="describes another depth network .*colour"):
        load_depth(copied)
    with pytest.raises(CheckpointError, match="encoder.fine.0.weight is .*in the file"):
        load_pose(copied)


def test_networks_that_nothing_trains_are_refused_in_words(tmp_path):
    relative = write(tmp_path / "relative", trained(RelativeDepth(LINEAR)))
    assert load_bundle(relative).manifest["networks"] == {}
    with pytest.raises(CheckpointError, match="gives relative depth"):
        load_depth(relative)
    with pytest.raises(CheckpointError, match="holds no pose network"):
        load_pose(relative)


def test_a_graph_of_another_kind_is_refused_in_words(copied):
    def convolutional(graph):
        for node in graph.node:
            node.name = node.name.replace("/network/encoder/patch_embed/", "/network/encoder/layer1/")

    with pytest.raises(CheckpointError, match="is no vision transformer"):
        load_depth(tamper(copied, convolutional))


@pytest.mark.parametrize("grid", [(12, 16), (4, 5), (16, 20), (37, 37)])
def test_a_square_embedding_is_found_that_gives_the_baked_one(grid):
    y, x = torch.meshgrid(*(torch.linspace(0, 3, 16),) * 2, indexing="ij")
    smooth = torch.stack([torch.cos(k * x + y) for k in range(3)], dim=-1).flatten(0, 1)
    noise = torch.randn(257, 3, generator=torch.Generator().manual_seed(1))
    for square in (torch.cat([torch.ones(1, 3), smooth])[None], noise[None]):
        baked = resize_position(square, (16, 16), grid)
        found = unbaked_position(baked, grid, 16)
        assert_same(resize_position(found, (16, 16), grid), baked, 1e-5)
        if min(grid) >= 16:  # nothing was lost
            assert_same(found, square, 1e-4)
    if min(grid) >= 12:
        smooth = torch.cat([torch.ones(1, 3), smooth])[None]
        baked = resize_position(smooth, (16, 16), grid)
        assert_same(unbaked_position(baked, grid, 16), smooth, 0.1)  # what is smooth survives shrinking


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("/network/encoder/blocks.0/attn/qkv/MatMul/MatMulAddFusion", "encoder.blocks.0.attn.qkv"),
        ("/network/encoder/mix/mix.1/mix.1.0/Conv", "encoder.mix.1.0"),
        ("/network/encoder/encoder/layer1/layer1.0/conv1/Conv", "encoder.encoder.layer1.0.conv1"),
        ("/network/Mul", ""),
        ("/Div", ""),
        ("", ""),
    ],
)
def test_a_node_is_named_after_its_module(node, module):
    assert module_of(node) == module
