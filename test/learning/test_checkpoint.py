"""Checkpoints: published files load whole or not at all and give transformers' outputs; our own files come back."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from endomust_core.bundle import sha256_of
from endomust_core.learning.checkpoint import (
    DROP,
    ENDOMUST_DEPTH_RULES,
    ENDOMUST_INTRINSICS_RULES,
    ENDOMUST_POSE_ENCODER_RULES,
    ENDOMUST_POSE_RULES,
    UNET_DECODER_RULES,
    UNET_ENCODER_RULES,
    CheckpointError,
    load_appearance,
    load_checkpoint,
    load_decomposition,
    load_depth_anything,
    load_endomust_depth,
    load_endomust_pose,
    load_flow,
    load_light_adjust,
    load_resnet,
    load_unet_depth,
    merge_lora,
    rename,
    save_checkpoint,
)
from endomust_core.learning.lora import LoraConfig, adapt, merge
from endomust_core.learning.networks.decomposition import Decomposition, LightAdjust
from endomust_core.learning.networks.depth import DepthConfig, DepthNetwork
from endomust_core.learning.networks.flow import AppearanceFlow, OpticalFlow
from endomust_core.learning.networks.pose import PoseNetwork
from endomust_core.learning.networks.resnet import ResNet18
from endomust_core.learning.networks.unet_depth import UNetDepth

OFFICIAL_KEYS = Path(__file__).parents[2] / ".." / "shared" / "checkpoints" / "official_keys.txt"
SMALL = DepthConfig(
    dim=24, blocks=8, heads=2, features=16, out_channels=(6, 8, 10, 12), taps=(4, 5, 6, 7), necks=(1, 3, 5, 7),
    pos_grid=4, patch_stem="linear", head_channels=8, normalization="none",
)  # fmt: skip
V2_TAPS = (1, 3, 5, 7)


def randomise(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def paths_of(network: DepthNetwork, image: torch.Tensor) -> list[torch.Tensor]:
    """The fused decoder paths without the necks, which published Depth Anything networks do not have."""
    for block in network.encoder.blocks:
        block.residual_ = None
    with torch.no_grad():
        return network.depth_head.fuse(network.encoder(image)[0])


@pytest.fixture
def depth_anything_pth(tmp_path):
    """A file with the published .pth names and random weights; also the state dict it should load as."""
    network = randomise(DepthNetwork(SMALL))
    body = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if "residual_" not in name and "conv_depth" not in name
    }
    published = {re.sub(r"^encoder\.", "pretrained.", name): tensor for name, tensor in body.items()}
    published["pretrained.mask_token"] = torch.zeros(1, 24)
    published["depth_head.scratch.output_conv1.weight"] = torch.zeros(8, 16, 3, 3)
    published["depth_head.scratch.output_conv2.0.bias"] = torch.zeros(8)
    published["depth_head.scratch.refinenet4.resConfUnit1.conv1.weight"] = torch.zeros(16, 16, 3, 3)
    torch.save(published, tmp_path / "depth_anything.pth")
    return tmp_path / "depth_anything.pth", published, body


@pytest.mark.parametrize("taps", [SMALL.taps, V2_TAPS], ids=["v1", "v2"])
def test_decoder_paths_equal_those_of_transformers(tmp_path, taps):
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=8, num_attention_heads=2, image_size=56, patch_size=14,
        out_indices=[tap + 1 for tap in taps], apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=24, neck_hidden_sizes=[6, 8, 10, 12], fusion_hidden_size=16,
        head_hidden_size=8,
    )  # fmt: skip
    theirs = randomise(transformers.DepthAnythingForDepthEstimation(config))
    theirs.save_pretrained(tmp_path)
    image = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = theirs.backbone(image).feature_maps
        expected = theirs.neck(features, 4, 4)[::-1]  # theirs are coarse to fine

    ours = DepthNetwork(dataclasses.replace(SMALL, taps=taps)).eval()
    report = load_depth_anything(ours, tmp_path / "model.safetensors")
    found = paths_of(ours, image)
    assert [path.shape[-1] for path in found] == [32, 16, 8, 4]
    for path, reference in zip(found, expected, strict=True):
        assert (path - reference).abs().max() <= 1e-4 * reference.abs().max()
    assert all("residual_" in name or "conv_depth" in name for name in report.fresh)


def test_a_published_pth_loads_whole_and_says_what_it_did(depth_anything_pth):
    path, published, body = depth_anything_pth
    network = randomise(DepthNetwork(SMALL), seed=7)
    neck = network.encoder.blocks[1].residual_.conv1.weight.clone()
    report = load_depth_anything(network, path, sha256=sha256_of(path))
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in body.items())
    assert torch.equal(neck, network.encoder.blocks[1].residual_.conv1.weight)
    assert set(report.loaded) == set(body)
    assert set(report.fresh) == set(state) - set(body)
    assert len(report.dropped) == 4 and "pretrained.mask_token" in report.dropped
    assert f"loaded {len(body)} tensors" in str(report)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda state: state.pop("pretrained.blocks.3.attn.qkv.bias"),
            r"1 missing \(encoder\.blocks\.3\.attn\.qkv\.bias\)",
        ),
        (
            lambda state: state.update({"pretrained.register_tokens": torch.zeros(1)}),
            r"1 unexpected \(encoder\.register_tok",
        ),
        (
            lambda state: state.update({"decoder.0.weight": torch.zeros(1)}),
            r"1 unexpected tensors \(decoder\.0\.weight\)",
        ),
        (
            lambda state: state.update({"pretrained.norm.bias": torch.zeros(25)}),
            r"encoder\.norm\.bias is \(25,\) in the file, \(24,\) in the network",
        ),
    ],
    ids=["missing", "extra", "foreign", "shape"],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(depth_anything_pth, damage, message):
    path, published, _ = depth_anything_pth
    damage(published)
    torch.save(published, path)
    network = randomise(DepthNetwork(SMALL), seed=7)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_depth_anything(network, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_an_incomplete_query_key_value_is_refused(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    name = "backbone.encoder.layer.0.attention.attention.{}.weight"
    safetensors.save_file(
        {name.format(part): torch.zeros(2, 2) for part in ("query", "key")}, tmp_path / "half.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"lacks encoder\.blocks\.0\.attn\.qkv\.weight#value"):
        load_depth_anything(DepthNetwork(SMALL), tmp_path / "half.safetensors")


def test_wrong_files_are_refused_in_words(tmp_path, depth_anything_pth):
    network = DepthNetwork(SMALL)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_depth_anything(network, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="expected 000000000000…; fetch the file again"):
        load_depth_anything(network, depth_anything_pth[0], sha256="0" * 64)
    (tmp_path / "page.pth").write_text("<html>quota exceeded</html>")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_depth_anything(network, tmp_path / "page.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_depth_anything(network, tmp_path / "list.pth")


class Trap:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_depth_anything(DepthNetwork(SMALL), tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_merged_lora_answers_like_the_adapted_layer():
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (5, 3), "bias": (5,), "lora_A": (2, 3), "lora_B": (5, 2), "lora_U": (2, 1), "lora_V": (5, 1)}
    state = {f"fc.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weight, bias, a, b, u, v = state.values()
    x = torch.randn(4, 3, generator=generator)
    adapted = x @ weight.T + bias + ((x @ a.T) * u.T) @ b.T * v.T
    merged = merge_lora(state)
    assert merged.keys() == {"fc.weight", "fc.bias"}
    assert torch.allclose(x @ merged["fc.weight"].T + merged["fc.bias"], adapted, atol=1e-5)
    del state["fc.lora_V"]
    with pytest.raises(CheckpointError, match=r"lacks fc\.lora_V"):
        merge_lora(state)


def test_a_published_endomust_depth_file_loads_with_its_lora_merged(tmp_path):
    source = randomise(DepthNetwork(SMALL))
    state = source.state_dict() | {
        "height": torch.tensor(256),
        "width": torch.tensor(320),
        "use_stereo": torch.tensor(False),
    }
    state["encoder.mask_token"] = torch.zeros(1, 24)
    state["depth_head.scratch.refinenet4.resConfUnit1.conv1.bias"] = torch.zeros(16)
    layer = "encoder.blocks.2.mlp.fc1"
    low_rank = {"lora_A": (4, 24), "lora_B": (96, 4), "lora_U": (4, 1), "lora_V": (96, 1)}
    state |= {f"{layer}.{name}": torch.ones(shape) for name, shape in low_rank.items()}
    torch.save(state, tmp_path / "depth_model.pth")
    network = DepthNetwork(SMALL)
    report = load_endomust_depth(network, tmp_path / "depth_model.pth")
    assert not report.fresh and len(report.dropped) == 5
    assert torch.allclose(network.encoder.blocks[2].mlp.fc1.weight, source.encoder.blocks[2].mlp.fc1.weight + 4)
    assert torch.equal(network.encoder.blocks[1].mlp.fc1.weight, source.encoder.blocks[1].mlp.fc1.weight)


def test_a_published_endomust_pose_folder_loads_into_the_paper_preset(tmp_path):
    source = PoseNetwork("paper").eval()
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}

    def part(prefix, keep=""):
        return {keep + name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}

    encoder = part("encoder.encoder.", "encoder.") | {
        "encoder.fc.weight": torch.zeros(1000, 512),
        "encoder.fc.bias": torch.zeros(1000),
    }
    head = part("intrinsics_head.") | {
        "convs_suqeeze.weight": torch.zeros(256, 512, 1, 1),
        "convs_suqeeze.bias": torch.zeros(256),
    }
    files = {"pose_encoder.pth": encoder, "pose.pth": part("decoder."), "intrinsics_head.pth": head}
    for name, tensors in files.items():
        torch.save(tensors, tmp_path / name)
    network = PoseNetwork("paper").eval()
    report = load_endomust_pose(network, tmp_path)
    assert len(report.dropped) == 4 and not report.fresh
    images = torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(network(*images), source(*images), strict=True))
    (tmp_path / "pose.pth").unlink()
    with pytest.raises(CheckpointError, match=r"pose\.pth does not exist"):
        load_endomust_pose(network, tmp_path)


def test_imagenet_weights_are_tiled_over_the_images(tmp_path):
    source = ResNet18(images=1).eval()
    torch.save(
        source.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)},
        tmp_path / "resnet18.pth",
    )
    pair = ResNet18(images=2).eval()
    report = load_resnet(pair, tmp_path / "resnet18.pth")
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(pair(torch.cat([image, image], 1))[-1], source(image)[-1], rtol=1e-3, atol=1e-4)


# --- the U-Nets of the same folders ---


def part_of(state, prefix, replacement=""):
    return {replacement + name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def save_unet(network, folder, encoder, decoder, heads) -> None:
    """Two files in the published form; `heads` gives our name of each entry after the ten of the decoder."""
    state = network.state_dict()
    classifier = {"encoder.fc.weight": torch.zeros(1000, 512), "encoder.fc.bias": torch.zeros(1000)}
    torch.save(part_of(state, "encoder.", "encoder.") | classifier, folder / encoder)
    tensors = part_of(state, "decoder.")
    for number, name in enumerate(heads, start=10):
        tensors |= part_of(state, f"{name}.", f"decoder.{number}.")
    torch.save(tensors, folder / decoder)


UNETS = {
    "optical_flow": (OpticalFlow, load_flow, ("position_encoder.pth", "position.pth"), 2),
    "appearance_flow": (AppearanceFlow, load_appearance, ("transform_encoder.pth", "transform.pth"), 2),
    "decomposition": (Decomposition, load_decomposition, ("decompose_encoder.pth", "decompose.pth"), 1),
    "depth": (UNetDepth, load_unet_depth, ("encoder.pth", "depth.pth"), 1),
}


@pytest.mark.parametrize("kind", UNETS)
def test_published_unets_load_and_answer_the_same(tmp_path, kind):
    build, load, files, images = UNETS[kind]
    make = (lambda: build().eval()) if kind == "depth" else (lambda: build("paper").eval())
    source, network = make(), make()
    heads = ("light.0", "light.1", "reflectance_head", "shading_head") if kind == "decomposition" else None
    save_unet(source, tmp_path, *files, heads or [f"heads.{scale}" for scale in range(4)])
    report = load(network, tmp_path)
    assert set(report.dropped) == {"encoder.fc.weight", "encoder.fc.bias"} and not report.fresh
    pair = torch.rand(images, 1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = network(*pair), source(*pair)
    outputs = (
        zip(found, expected, strict=True) if kind == "decomposition" else ((found[i], expected[i]) for i in range(4))
    )
    for ours, published in outputs:
        assert published.std() > 0
        wanted = published.flip(1) if kind == "optical_flow" else published  # theirs says (dy, dx), ours (dx, dy)
        assert torch.allclose(ours, wanted, atol=1e-6 * wanted.abs().max().item())
    (tmp_path / files[0]).unlink()
    with pytest.raises(CheckpointError, match=f"{files[0]} does not exist"):
        load(network, tmp_path)


def test_light_adjustment_loads(tmp_path):
    source = randomise(LightAdjust())
    torch.save(source.state_dict(), tmp_path / "adjust_net.pth")  # published under the same names
    network = LightAdjust().eval()
    load_light_adjust(network, tmp_path)
    difference = torch.rand(1, 3, 16, 20)
    assert torch.equal(network(difference), source(difference)) and network(difference).std() > 0


def test_a_pose_folder_without_intrinsics_keeps_that_head_fresh(tmp_path):
    state = PoseNetwork("paper").state_dict()
    torch.save(part_of(state, "encoder.encoder.", "encoder."), tmp_path / "pose_encoder.pth")
    torch.save(part_of(state, "decoder."), tmp_path / "pose.pth")
    network = PoseNetwork("paper")
    with pytest.raises(CheckpointError, match=r"intrinsics_head\.pth does not exist"):
        load_endomust_pose(network, tmp_path)
    report = load_endomust_pose(network, tmp_path, intrinsics=False)
    assert set(report.fresh) == {f"intrinsics_head.{name}_conv.weight" for name in ("focal_length", "offsets")}


def test_adapters_are_saved_merged_only(tmp_path):
    network = DepthNetwork(SMALL)
    adapt(network, LoraConfig())
    with pytest.raises(CheckpointError, match="still has its adapters; save lora.merge"):
        save_checkpoint(tmp_path / "depth.pt", network)
    save_checkpoint(tmp_path / "depth.pt", merge(network))
    assert load_checkpoint(tmp_path / "depth.pt", "depth")[0].config == SMALL


OWN = [
    ("depth", DepthNetwork(SMALL)),
    ("pose", PoseNetwork("tiny")),
    ("optical_flow", OpticalFlow("tiny")),
    ("appearance_flow", AppearanceFlow("tiny")),
    ("decomposition", Decomposition("tiny")),
    ("light_adjust", LightAdjust()),
]


@pytest.mark.parametrize(("kind", "network"), OWN, ids=[kind for kind, _ in OWN])
def test_our_own_checkpoint_comes_back_with_config_and_meta(tmp_path, kind, network):
    meta = {"step": 12, "scores": {"abs_rel": 0.1}, "command": ["pretrain", "--seed", "0"]}
    path = save_checkpoint(tmp_path / "runs" / "best.pt", network, meta)
    loaded, found = load_checkpoint(path, kind)
    assert found == meta and loaded.config == network.config and not loaded.training
    ours = network.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == ["best.pt"]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    network = DepthNetwork(SMALL)
    path = save_checkpoint(tmp_path / "best.pt", network, {"step": 1})
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        save_checkpoint(path, network, {"trap": Path("somewhere")})  # not a plain value: would not load
    assert load_checkpoint(path, "depth")[1] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]


def test_foreign_and_mixed_up_checkpoints_are_refused_in_words(tmp_path):
    path = save_checkpoint(tmp_path / "pose.pt", PoseNetwork("tiny"))
    with pytest.raises(CheckpointError, match="holds a pose network, not depth"):
        load_checkpoint(path, "depth")
    content = torch.load(path, weights_only=True)
    torch.save(content | {"format": 9}, path)
    with pytest.raises(CheckpointError, match="has format 9, this version reads 1"):
        load_checkpoint(path, "pose")
    torch.save(content | {"config": content["config"] | {"colour": "red"}}, path)
    with pytest.raises(CheckpointError, match="another pose config"):
        load_checkpoint(path, "pose")
    torch.save(content["state_dict"], path)
    with pytest.raises(CheckpointError, match="no checkpoint of this project"):
        load_checkpoint(path, "pose")
    with pytest.raises(CheckpointError, match="no checkpoint format for a ResNet18"):
        save_checkpoint(tmp_path / "resnet.pt", ResNet18())


# --- the names and shapes that the published code gives its networks ---


def listed(section: str | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one section of the list; None is the depth network at its head."""
    found, current = {}, None
    for line in OFFICIAL_KEYS.read_text().splitlines():
        if line.startswith("==") or line.startswith("resnet"):
            current = line
        match = re.fullmatch(r"\s*([\w.]+) \(([\d, ]*)\)", line)
        wanted = current is None if section is None else current is not None and section in current
        if match and wanted:
            found[match[1]] = tuple(int(side) for side in match[2].split(",") if side.strip())
    return found


def shapes_of(network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


needs_list = pytest.mark.skipif(
    not OFFICIAL_KEYS.is_file(), reason="the list of published names is not beside this checkout"
)


@needs_list
def test_base_has_the_published_names_and_shapes():
    with torch.device("meta"):
        ours = shapes_of(DepthNetwork("base"))
    published = listed(None)
    assert len(published) > 100
    for name in [
        name for name in published if name.startswith("encoder.blocks.0.")
    ]:  # the list repeats blocks 0 and 2 only
        for block in range(1, 12):
            published[name.replace("blocks.0.", f"blocks.{block}.")] = published[name]
    for name in [name for name in published if ".residual_." in name]:
        for block in (5, 8, 11):
            published[name.replace("blocks.2.", f"blocks.{block}.")] = published[name]
    assert len(published) == 437
    published = {name: shape for name, shape in published.items() if ".lora_" not in name}
    renamed, dropped = rename(published, ENDOMUST_DEPTH_RULES)
    assert renamed == ours
    assert "encoder.mask_token" in dropped


@needs_list
def test_paper_pose_has_the_published_names_and_shapes():
    ours = shapes_of(PoseNetwork("paper"))
    pose, _ = rename(listed("pose params"), ENDOMUST_POSE_RULES)
    head, dropped = rename(listed("intr params"), ENDOMUST_INTRINSICS_RULES)
    assert pose == {name: shape for name, shape in ours.items() if name.startswith("decoder.")}
    assert head == {name: shape for name, shape in ours.items() if name.startswith("intrinsics_head.")}
    assert dropped == ["convs_suqeeze.weight", "convs_suqeeze.bias"]
    encoder, _ = rename(listed("resnet2"), ENDOMUST_POSE_ENCODER_RULES)
    assert len(encoder) == 12 and encoder.items() <= ours.items()  # the list shows the first twelve


@needs_list
def test_unets_have_the_published_names_and_shapes():
    with torch.device("meta"):
        networks = {
            "position": OpticalFlow("paper"),
            "transform": AppearanceFlow("paper"),
            "depth(resnet)": UNetDepth(),
        }
        decomposition = Decomposition("paper")
    for section, network in networks.items():
        ours = {name: shape for name, shape in shapes_of(network).items() if name.startswith(("decoder.", "heads."))}
        assert rename(listed(f"{section} params"), UNET_DECODER_RULES) == (ours, [])
    encoder, _ = rename(listed("resnet2"), UNET_ENCODER_RULES)
    assert len(encoder) == 12 and encoder.items() <= shapes_of(networks["position"]).items()
    published = {12: (3, 32, 3, 3), 13: (1, 32, 1, 1)}  # of the decomposition's two heads
    ours = shapes_of(decomposition)
    assert (ours["reflectance_head.conv.weight"], ours["shading_head.weight"]) == tuple(published.values())


def test_rules_take_the_first_match_and_name_what_they_do_not_know():
    rules = ((r"a\.old", DROP), (r"a\.(.*)", r"b.\1"))
    assert rename({"a.old": 1, "a.new": 2}, rules) == ({"b.new": 2}, ["a.old"])
    with pytest.raises(CheckpointError, match=r"4 unexpected tensors \(c, d, e, …\)"):
        rename(dict.fromkeys("cdef"), rules)
