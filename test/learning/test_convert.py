"""Convert: every published family is told by its names, and its bundle says what the published network would say."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from endomust_core.backends import open_network  # noqa: E402
from endomust_core.bundle import load_bundle, sha256_of  # noqa: E402
from endomust_core.estimator import Estimator  # noqa: E402
from endomust_core.learning.checkpoint import CheckpointError, depth_config_of  # noqa: E402
from endomust_core.learning.convert import PairPose, convert, recognise, weight_files  # noqa: E402
from endomust_core.learning.geometry import pose_matrix  # noqa: E402
from endomust_core.learning.lora import LoraConfig, adapt  # noqa: E402
from endomust_core.learning.networks.depth import PRESETS, DepthConfig, DepthNetwork, inverse_depth, resize  # noqa: E402
from endomust_core.learning.networks.pose import Pose, PoseNetwork  # noqa: E402
from endomust_core.learning.networks.relative_depth import RelativeDepth  # noqa: E402
from endomust_core.learning.networks.unet_depth import UNetDepth  # noqa: E402

SIZE, ENCODER_SIZE = (64, 80), (56, 70)
SMALL = dataclasses.replace(
    PRESETS["paper"], dim=24, blocks=4, heads=1, features=16, out_channels=(6, 8, 10, 12), taps=(0, 1, 2, 3),
    necks=(1, 3), neck_dim=6, pos_grid=6, head_channels=8,
)  # fmt: skip
TWELVE = DepthConfig(
    dim=24, blocks=12, heads=1, features=16, out_channels=(6, 8, 10, 12), taps=(8, 9, 10, 11), necks=(), pos_grid=4,
    patch_stem="linear", head_channels=8, normalization="imagenet", min_depth=0.01, max_depth=100.0, neck_dim=0,
    layer_scale=1e-5,
)  # fmt: skip


def randomise(network, seed=0, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two structured images of endoscope size as files, to verify on."""
    folder, rng, paths = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number in range(2):
        blobs = cv2.GaussianBlur(rng.integers(0, 256, (96, 120, 3), dtype=np.uint8), (0, 0), 5)
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), cv2.normalize(blobs, None, 0, 255, cv2.NORM_MINMAX))
    return paths


def tensor_of(path, size):
    """An image as the bundle gets it: uint8 (H,W,3), and the same B×3×H×W in [0,1]."""
    rgb = cv2.resize(cv2.imread(str(path))[..., ::-1], size[::-1], interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(rgb), torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None] / 255.0


def with_zeros(run, last: torch.nn.Conv2d) -> None:
    """Set the last bias so that a ReLU network gives zero on about a third of what `run` shows it."""
    with torch.no_grad():
        last.bias.fill_(100.0)
        last.bias.fill_(100.0 - run().quantile(0.3))


def relative_error(found, expected):
    return (np.abs(found - expected) / np.abs(expected)).max()


def published_adapters(layers: str) -> DepthNetwork:
    """A depth network with random adapters, as the authors compute it: never merged."""
    network = DepthNetwork(SMALL)
    adapt(network, LoraConfig(kind="dvlora", rank=4, layers=layers, vectors="random"))
    return randomise(network)


def save_adapted(network: DepthNetwork, folder: Path) -> None:
    """depth_model.pth with everything that the published one carries besides."""
    state = dict(network.state_dict()) | {"height": SIZE[0], "width": SIZE[1], "use_stereo": False}
    state["encoder.mask_token"] = torch.zeros(1, 24)
    for conv in ("conv1", "conv2"):
        state[f"depth_head.scratch.refinenet4.resConfUnit1.{conv}.weight"] = torch.zeros(16, 16, 3, 3)
        state[f"depth_head.scratch.refinenet4.resConfUnit1.{conv}.bias"] = torch.zeros(16)
    torch.save(state, folder / "depth_model.pth")


def save_encoder(state: dict, prefix: str, path: Path, **more) -> None:
    """A ResNet in the published form, with the classifier it never uses."""
    tensors = {"encoder." + name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    tensors |= {"encoder.fc.weight": torch.zeros(1000, 512), "encoder.fc.bias": torch.zeros(1000)}
    torch.save(tensors | more, path)


def save_pose(network: PoseNetwork, folder: Path, intrinsics: bool = True) -> None:
    state = network.state_dict()
    save_encoder(state, "encoder.encoder.", folder / "pose_encoder.pth")
    decoder = {name.removeprefix("decoder."): t for name, t in state.items() if name.startswith("decoder.")}
    torch.save(decoder, folder / "pose.pth")
    if intrinsics:
        head = {name.removeprefix("intrinsics_head."): t for name, t in state.items() if "intrinsics_head" in name}
        unused = {"convs_suqeeze.weight": torch.zeros(256, 512, 1, 1), "convs_suqeeze.bias": torch.zeros(256)}
        torch.save(head | unused, folder / "intrinsics_head.pth")


def save_unet(network: UNetDepth, folder: Path) -> None:
    state = network.state_dict()
    size = {"height": SIZE[0] // 2 * 2, "width": 96, "use_stereo": False}
    save_encoder(state, "encoder.", folder / "encoder.pth", **size)
    decoder = {name.removeprefix("decoder."): t for name, t in state.items() if name.startswith("decoder.")}
    heads = {f"decoder.1{name.removeprefix('heads.')}": t for name, t in state.items() if name.startswith("heads.")}
    torch.save(decoder | heads, folder / "depth.pth")


def save_depth_anything(network: RelativeDepth, path: Path) -> None:
    """Published .pth names: the head is called output_conv, and a unit that is never used lies beside."""
    places = {"head.0": "output_conv1", "head.2": "output_conv2.0", "head.4": "output_conv2.2"}
    state = {}
    for name, tensor in network.state_dict().items():
        name = re.sub(r"^encoder\.", "pretrained.", name)
        if match := re.fullmatch(r"depth_head\.conv_depth_1\.(head\.\d)\.(.*)", name):
            name = f"depth_head.scratch.{places[match[1]]}.{match[2]}"
        state[name] = tensor
    state["pretrained.mask_token"] = torch.zeros(1, 24)
    state["depth_head.scratch.refinenet4.resConfUnit1.conv1.weight"] = torch.zeros(16, 16, 3, 3)
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path)


@pytest.fixture(scope="module")
def endomust(tmp_path_factory, images):
    """A folder like EndoMUST's, its networks, and the bundle made of it."""
    folder = tmp_path_factory.mktemp("endomust")
    depth, pose = published_adapters("full"), randomise(PoseNetwork("paper"), seed=1, scale=0.02)
    save_adapted(depth, folder)
    save_pose(pose, folder)
    torch.save({"state": {}}, folder / "adam.pth")
    report = convert(folder, folder / "bundle", frames_from=images)
    return folder, depth, pose, report


def test_the_endomust_bundle_gives_the_depth_of_the_unmerged_network(endomust, images):
    folder, network, _, report = endomust
    bundle = load_bundle(report.bundle)
    rgb, image = tensor_of(images[0], SIZE)
    found = open_network(bundle.depth, threads=1).run({"image": rgb[None]})["disparity"]
    with torch.no_grad():
        disparity = network(resize(image, ENCODER_SIZE), scales=(0,), size=SIZE)[0][:, 0]
    expected = inverse_depth(disparity, 0.1, 150.0).numpy()
    assert found.shape == (1, *SIZE) and np.ptp(expected) > 0.1 * expected.mean()
    assert relative_error(found, expected) <= 1e-4
    bare = DepthNetwork(SMALL).eval()  # the adapters matter: without them the answer is another
    bare.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if "lora_" not in name})
    with torch.no_grad():
        without = inverse_depth(bare(resize(image, ENCODER_SIZE), scales=(0,), size=SIZE)[0][:, 0], 0.1, 150.0)
    assert relative_error(without.numpy(), expected) > 1e-3


def test_the_endomust_bundle_gives_pose_and_intrinsics(endomust, images):
    _, _, network, report = endomust
    bundle = load_bundle(report.bundle)
    pairs = [tensor_of(path, SIZE) for path in images]
    found = open_network(bundle.pose, threads=1).run({"images": np.stack([rgb for rgb, _ in pairs])[None]})
    with torch.no_grad():
        expected = network(*(image for _, image in pairs))._asdict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-4, atol=1e-4 * value.abs().max().item())


def test_the_node_runs_the_bundle_and_it_is_not_metric(endomust, images):
    report = endomust[-1]
    bundle = load_bundle(report.bundle)
    assert bundle.metric is False and bundle.range_m == (0.1, 150.0)
    assert bundle.depth.size == bundle.pose.size == SIZE
    estimator = Estimator(bundle, threads=1)
    frames = [cv2.imread(str(path))[..., ::-1].copy() for path in images]
    first, second = (estimator.estimate(frame) for frame in frames)
    assert first.T_prev_curr is None and second.T_prev_curr.shape == (4, 4)
    assert second.depth.shape == frames[0].shape[:2] and np.isfinite(second.depth).all()


def test_the_report_and_the_manifest_say_what_was_used(endomust):
    folder, _, _, report = endomust
    text = str(report)
    assert text.startswith("EndoMUST in ") and "DV-LoRA, rank 4, full; merged differs from unmerged by" in text
    assert "as drawn, so never trained" not in text  # randomise moved them
    manifest = load_bundle(report.bundle).manifest
    origin = manifest["provenance"]
    names = ("depth_model.pth", "intrinsics_head.pth", "pose.pth", "pose_encoder.pth")
    assert origin["files"] == {name: sha256_of(folder / name) for name in names}
    assert origin["family"] == "EndoMUST" and origin["folder"] == folder.name
    assert manifest["licence"] == "not stated by the authors" and "scale.factor" in manifest["description"]
    assert manifest["verification"]["weights"] == "float32"
    assert manifest["verification"]["depth"]["weight_rounding_max_rel"] == 0


def test_endodac_has_adapters_in_the_mlp_only_and_may_come_without_pose(tmp_path, images):
    network = published_adapters("part")
    save_adapted(network, tmp_path)
    report = convert(tmp_path / "depth_model.pth", tmp_path / "bundle", frames_from=images)
    assert report.family.title == "EndoDAC" and "no odometry" in str(report)
    bundle = load_bundle(report.bundle)
    rgb, image = tensor_of(images[1], SIZE)
    found = open_network(bundle.depth, threads=1).run({"image": rgb[None]})["disparity"]
    with torch.no_grad():
        expected = inverse_depth(network(resize(image, ENCODER_SIZE), scales=(0,), size=SIZE)[0][:, 0], 0.1, 150.0)
    assert relative_error(found, expected.numpy()) <= 1e-4
    assert bundle.pose is None


def test_untrained_vectors_are_recognised(tmp_path, images):
    network = DepthNetwork(SMALL)
    adapt(network, LoraConfig(rank=4, layers="part", vectors="random"))
    for module in network.modules():  # enough of them for a mean square that tells
        if hasattr(module, "lora_V"):
            torch.nn.init.uniform_(module.lora_V, -1, 1, generator=torch.Generator().manual_seed(3))
    save_adapted(network, tmp_path)
    state = torch.load(tmp_path / "depth_model.pth", weights_only=True)
    values = torch.cat([tensor.flatten() for name, tensor in state.items() if name.endswith("lora_V")])
    drawn = abs(values.square().mean().item() - 1 / 3) < 0.01
    report = convert(tmp_path, tmp_path / "bundle", frames_from=images)
    assert ("as drawn, so never trained" in str(report)) == drawn


def test_a_shape_that_was_changed_by_hand_is_refused(tmp_path, images):
    save_adapted(published_adapters("full"), tmp_path)
    state = torch.load(tmp_path / "depth_model.pth", weights_only=True)
    del state["encoder.blocks.2.mlp.fc2.lora_V"]
    torch.save(state, tmp_path / "depth_model.pth")
    with pytest.raises(CheckpointError, match=r"lacks encoder\.blocks\.2\.mlp\.fc2\.lora_V"):
        convert(tmp_path, tmp_path / "bundle", frames_from=images)
    state["encoder.blocks.2.mlp.fc2.lora_V"] = torch.full((24, 1), float("nan"))
    torch.save(state, tmp_path / "depth_model.pth")
    with pytest.raises(CheckpointError, match="the weights hold NaN"):
        convert(tmp_path, tmp_path / "bundle", frames_from=images)
    assert not (tmp_path / "bundle").exists()


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A folder like AF-SfMLearner's without its flow networks, and its networks."""
    folder = tmp_path_factory.mktemp("af")
    depth, pose = randomise(UNetDepth(), scale=0.02), randomise(PoseNetwork("paper"), seed=1, scale=0.02)
    save_unet(depth, folder)
    save_pose(pose, folder, intrinsics=False)
    return folder, depth, pose


@pytest.mark.parametrize("family", ["af-sfmlearner", "iid-sfmlearner"])
def test_convolutional_bundles_give_depth_and_motion_the_right_way_round(tmp_path, unet, images, family):
    source, depth, pose = unet
    folder = shutil.copytree(source, tmp_path / "weights")
    sign = {"af-sfmlearner": "position.pth", "iid-sfmlearner": "adjust_net.pth"}[family]
    torch.save({"decoder.0.conv.conv.weight": torch.zeros(1)}, folder / sign)
    report = convert(folder, tmp_path / "bundle", frames_from=images)
    assert f"not needed for a bundle: {sign}" in str(report)
    bundle = load_bundle(report.bundle)
    assert bundle.depth.size == (64, 96) and bundle.metric is False
    assert "intrinsics" not in bundle.pose.outputs
    pairs = [tensor_of(path, (64, 96)) for path in images]
    found = open_network(bundle.depth, threads=1).run({"image": pairs[0][0][None]})["disparity"]
    with torch.no_grad():
        expected = inverse_depth(depth(pairs[0][1])[0][:, 0], 0.1, 150.0).numpy()
        motion = pose(*(image for _, image in pairs))
    assert relative_error(found, expected) <= 1e-4
    answer = open_network(bundle.pose, threads=1).run({"images": np.stack([rgb for rgb, _ in pairs])[None]})
    T_prev_curr = pose_matrix(torch.from_numpy(answer["rotation"]), torch.from_numpy(answer["translation"]))
    said = pose_matrix(motion.rotation, motion.translation)
    expected = said if family == "af-sfmlearner" else torch.linalg.inv(said)
    assert torch.allclose(T_prev_curr, expected, atol=1e-6)
    assert Estimator(bundle, threads=1).estimate(pairs[0][0]).intrinsics is None


def test_motion_is_inverted_exactly():
    class Turn(torch.nn.Module):
        def forward(self, previous, current):
            return Pose(torch.tensor([[0.1, -0.4, 0.3]]), torch.tensor([[0.2, 0.5, -1.0]]), torch.zeros(1, 4))

    forward, backward = (PairPose(Turn(), backwards)(None, None) for backwards in (False, True))
    product = pose_matrix(forward.rotation, forward.translation) @ pose_matrix(backward.rotation, backward.translation)
    assert torch.allclose(product, torch.eye(4)[None], atol=1e-6) and backward.intrinsics is None


def test_depth_alone_does_not_need_to_say_whose_it_is_but_motion_does(tmp_path, unet, images):
    folder = shutil.copytree(unet[0], tmp_path / "weights")
    with pytest.raises(CheckpointError, match="--family af-sfmlearner or --family iid-sfmlearner"):
        convert(folder, tmp_path / "bundle", frames_from=images)
    files = weight_files(folder)
    states = {path.name: torch.load(path, weights_only=True) for path in files}
    assert recognise(states, files, "iid-sfmlearner") == "iid-sfmlearner"
    with pytest.raises(CheckpointError, match="not of endomust; leave --family out"):
        recognise(states, files, "endomust")
    (folder / "pose_encoder.pth").unlink()
    with pytest.raises(CheckpointError, match=r"has pose\.pth without pose_encoder\.pth"):
        convert(folder, tmp_path / "bundle", frames_from=images, family="af-sfmlearner")
    (folder / "pose.pth").unlink()
    report = convert(folder, tmp_path / "bundle", frames_from=images, size=(32, 64))
    assert report.family.title == "AF-SfMLearner or IID-SfMLearner"
    bundle = load_bundle(report.bundle)
    assert bundle.pose is None and bundle.depth.size == (32, 64)
    assert bundle.manifest["licence"] == "not stated by the authors"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_depth_anything_keeps_its_head_and_has_no_motion(tmp_path, images, version):
    taps = {"v1": (8, 9, 10, 11), "v2": (2, 5, 8, 11)}[version]
    network = randomise(RelativeDepth(dataclasses.replace(TWELVE, taps=taps)))
    rgb, image = tensor_of(images[0], ENCODER_SIZE)
    with_zeros(lambda: network(image)[0], network.depth_head.conv_depth_1.head["4"])
    name = {"v1": "depth_anything_vits14.pth", "v2": "depth_anything_v2_vits.pth"}[version]
    save_depth_anything(network, tmp_path / name)
    report = convert(tmp_path / name, tmp_path / "bundle", frames_from=images, size=ENCODER_SIZE)
    assert report.family.title == f"Depth Anything {version}"
    bundle = load_bundle(report.bundle)
    assert bundle.pose is None and bundle.metric is False
    assert bundle.manifest["licence"] == "Apache-2.0" and "Relative inverse depth" in bundle.manifest["description"]
    found = open_network(bundle.depth, threads=1).run({"image": rgb[None]})["disparity"]
    with torch.no_grad():
        expected = network(image)[0][:, 0].numpy()
    assert 0.2 < (expected == 0).mean() < 0.4 and np.abs(found - expected).max() <= 1e-4 * expected.max()
    depth = Estimator(bundle, threads=1, resolution="network").estimate(rgb).depth
    assert np.array_equal(np.isnan(depth), found[0] <= 0)  # as far as it can say is no depth


@pytest.mark.parametrize("taps", [(8, 9, 10, 11), (2, 5, 8, 11)], ids=["v1", "v2"])
def test_depth_anything_of_transformers_says_what_transformers_says(tmp_path, images, taps):
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=12, num_attention_heads=1, image_size=56, patch_size=14,
        out_indices=[tap + 1 for tap in taps], apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=24, neck_hidden_sizes=[6, 8, 10, 12], fusion_hidden_size=16,
        head_hidden_size=8,
    )  # fmt: skip
    theirs = randomise(transformers.DepthAnythingForDepthEstimation(config))
    rgb, image = tensor_of(images[0], (56, 56))
    mean, deviation = (torch.tensor(row).view(1, 3, 1, 1) for row in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with_zeros(lambda: theirs((image - mean) / deviation).predicted_depth, theirs.head.conv3)
    theirs.save_pretrained(tmp_path / "download")
    report = convert(tmp_path / "download", tmp_path / "bundle", frames_from=images, size=(56, 56))
    assert report.family.title == ("Depth Anything v1" if taps[0] == 8 else "Depth Anything v2")
    found = open_network(load_bundle(report.bundle).depth, threads=1).run({"image": rgb[None]})["disparity"]
    with torch.no_grad():
        expected = theirs((image - mean) / deviation).predicted_depth.numpy()
    assert 0.2 < (expected == 0).mean() < 0.4 and np.abs(found - expected).max() <= 1e-4 * expected.max()
    settings = json.loads((tmp_path / "download" / "config.json").read_text())
    (tmp_path / "download" / "config.json").write_text(json.dumps(settings | {"depth_estimation_type": "metric"}))
    with pytest.raises(CheckpointError, match="metres of rooms or streets"):
        convert(tmp_path / "download", tmp_path / "again", frames_from=images)


def test_a_depth_anything_file_of_unknown_version_must_be_told(tmp_path, images):
    path = tmp_path / "weights" / "downloaded.pth"
    save_depth_anything(RelativeDepth(TWELVE), path)
    states = {path.name: torch.load(path, weights_only=True)}
    with pytest.raises(CheckpointError, match="--family depth-anything-v1 or --family depth-anything-v2"):
        recognise(states, [path])
    assert recognise(states, [path], "depth-anything-v2") == "depth-anything-v2"
    with pytest.raises(CheckpointError, match="not of endodac"):
        recognise(states, [path], "endodac")
    with pytest.raises(CheckpointError, match=r"2 files \(downloaded\.pth, other\.pth\); give the one"):
        recognise(states | {"other.pth": {}}, [path])
    with pytest.raises(CheckpointError, match="no family 'dares'; choose one of endomust"):
        convert(path, tmp_path / "bundle", family="dares")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["patch_embed_stages.0.patch_conv.weight", "mhca_stages.0.x"], r"an MPViT \(MonoPCC, DVSMono\)"),
        (["encoder.blocks.0.norm1.weight", "depth_head.projects.0.weight"], "as EndoDAC renamed it"),
        (["encoder.blocks.0.norm1.weight", "depth_head.conv_depth_1.head.0.weight"], "none of EndoMUST's"),
        (["format", "kind", "config", "state_dict", "meta"], "endomust export RUN"),
        (["conv1.weight", "bn1.weight", "fc.weight"], r"no known family: it has bn1\.weight, conv1\.weight, fc\.weig"),
        ([], "it has no tensors"),
    ],
)
def test_other_files_are_refused_in_words(tmp_path, names, message):
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path, tmp_path / "bundle")


def test_folders_are_searched_one_level_deep(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        weight_files(tmp_path / "none")
    (tmp_path / "endodac.zip").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds no .* file \(endodac\.zip\); unpack the download first"):
        weight_files(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    for name in ("pose.pth", "adam.pth", "readme.txt"):
        (tmp_path / "a" / name).write_bytes(b"")
    assert [path.name for path in weight_files(tmp_path)] == ["pose.pth"]
    (tmp_path / "b" / "encoder.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"several folders with weights \(a, b\)"):
        weight_files(tmp_path)


# --- the published names and shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["full", "part"])
def test_the_published_depth_file_is_recognised_and_sized(layers):
    with torch.device("meta"):
        network = DepthNetwork("paper")
        adapt(network, LoraConfig(rank=4, layers=layers))
    state = network.state_dict()
    assert depth_config_of(state, PRESETS["paper"]) == dataclasses.replace(PRESETS["paper"], neck_dim=96)
    family = recognise({"depth_model.pth": state}, [Path("depth_model.pth")])
    assert family == {"full": "endomust", "part": "endodac"}[layers]


@pytest.mark.parametrize("preset", ["small", "base"])
def test_depth_anything_is_sized_by_its_shapes(preset):
    config = dataclasses.replace(PRESETS[preset], necks=())
    with torch.device("meta"):
        state = RelativeDepth(config).state_dict()
    assert depth_config_of(state, PRESETS[preset]) == config
    with pytest.raises(CheckpointError, match="is incomplete"):
        depth_config_of({name: t for name, t in state.items() if "cls_token" not in name}, PRESETS[preset])
