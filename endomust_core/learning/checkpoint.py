"""Weights in and out of files: our own runs, and published ones through visible tables of names; all of it or an error.

Tensors are plain PyTorch state dicts. A foreign file passes through one table of rules (pattern → our name, or DROP);
whatever no rule names, whatever is missing and whatever has another shape is a CheckpointError, so a network is never
half loaded.
"""

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from endomust_core.bundle import sha256_of
from endomust_core.learning.lora import merged_state
from endomust_core.learning.networks.decomposition import (
    Decomposition,
    DecompositionConfig,
    LightAdjust,
    LightAdjustConfig,
)
from endomust_core.learning.networks.depth import DepthConfig, DepthNetwork
from endomust_core.learning.networks.flow import AppearanceFlow, FlowConfig, OpticalFlow
from endomust_core.learning.networks.pose import PoseConfig, PoseNetwork
from endomust_core.learning.networks.resnet import ResNet18, tile_first_conv
from endomust_core.learning.networks.unet_depth import UNetDepth

FORMAT = 1
KINDS = {
    "depth": (DepthNetwork, DepthConfig),
    "pose": (PoseNetwork, PoseConfig),
    "optical_flow": (OpticalFlow, FlowConfig),
    "appearance_flow": (AppearanceFlow, FlowConfig),
    "decomposition": (Decomposition, DecompositionConfig),
    "light_adjust": (LightAdjust, LightAdjustConfig),
}

DROP = None

# First match wins; patterns match whole names. The single-input fusion block (refinenet4, fusion layer 0) owns a first
# unit that no published network ever calls, and the mask token serves pre-training only.
DEPTH_ANYTHING_RULES = (
    # Depth Anything v1 and v2, .pth
    (r"pretrained\.mask_token", DROP),
    (r"depth_head\.scratch\.(output_conv\d|refinenet4\.resConfUnit1)\..*", DROP),
    (r"pretrained\.(.*)", r"encoder.\1"),
    (r"(depth_head\.(projects|resize_layers|scratch\.layer\d_rn|scratch\.refinenet\d)\..*)", r"\1"),
    # the same networks in transformers' names, .safetensors
    (r"backbone\.embeddings\.mask_token", DROP),
    (r"head\.conv\d\..*", DROP),
    (r"neck\.fusion_stage\.layers\.0\.residual_layer1\..*", DROP),
    (r"backbone\.embeddings\.cls_token", r"encoder.cls_token"),
    (r"backbone\.embeddings\.position_embeddings", r"encoder.pos_embed"),
    (r"backbone\.embeddings\.patch_embeddings\.projection\.(.*)", r"encoder.patch_embed.proj.\1"),
    (
        r"backbone\.encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(.*)",
        r"encoder.blocks.\1.attn.qkv.\3#\2",
    ),
    (r"backbone\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(.*)", r"encoder.blocks.\1.attn.proj.\2"),
    (r"backbone\.encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"encoder.blocks.\1.ls\2.gamma"),
    (r"backbone\.encoder\.layer\.(\d+)\.(norm1|norm2|mlp\.fc1|mlp\.fc2)\.(.*)", r"encoder.blocks.\1.\2.\3"),
    (r"backbone\.layernorm\.(.*)", r"encoder.norm.\1"),
    (r"neck\.reassemble_stage\.layers\.(\d)\.projection\.(.*)", r"depth_head.projects.\1.\2"),
    (r"neck\.reassemble_stage\.layers\.(\d)\.resize\.(.*)", r"depth_head.resize_layers.\1.\2"),
    *((rf"neck\.convs\.{i}\.(.*)", rf"depth_head.scratch.layer{i + 1}_rn.\1") for i in range(4)),
    *(
        (rf"neck\.fusion_stage\.layers\.{i}\.projection\.(.*)", rf"depth_head.scratch.refinenet{4 - i}.out_conv.\1")
        for i in range(4)
    ),
    *(
        (
            rf"neck\.fusion_stage\.layers\.{i}\.residual_layer(\d)\.convolution(\d)\.(.*)",
            rf"depth_head.scratch.refinenet{4 - i}.resConfUnit\1.conv\2.\3",
        )
        for i in range(4)
    ),
)  # fmt: skip
DEPTH_ANYTHING_FRESH = (
    r"encoder\.blocks\.\d+\.residual_\..*|depth_head\.conv_depth_\d\..*"  # not in those files: starts fresh
)
# The same for `RelativeDepth`, which keeps the published head.
RELATIVE_DEPTH_RULES = (
    (r"depth_head\.scratch\.output_conv1\.(.*)", r"depth_head.conv_depth_1.head.0.\1"),
    (r"depth_head\.scratch\.output_conv2\.0\.(.*)", r"depth_head.conv_depth_1.head.2.\1"),
    (r"depth_head\.scratch\.output_conv2\.2\.(.*)", r"depth_head.conv_depth_1.head.4.\1"),
    (r"head\.conv1\.(.*)", r"depth_head.conv_depth_1.head.0.\1"),
    (r"head\.conv2\.(.*)", r"depth_head.conv_depth_1.head.2.\1"),
    (r"head\.conv3\.(.*)", r"depth_head.conv_depth_1.head.4.\1"),
    *DEPTH_ANYTHING_RULES,
)

# The depth_model.pth of EndoMUST and EndoDAC, with the LoRA in it or merged into the weights: our own names, plus the
# sizes of the training images.
ENDOMUST_DEPTH_RULES = (
    (r"height|width|use_stereo|encoder\.mask_token", DROP),
    (r"depth_head\.scratch\.refinenet4\.resConfUnit1\..*", DROP),
    (r"((encoder|depth_head)\..*)", r"\1"),
)
# EndoMUST's pose_encoder.pth, pose.pth and intrinsics_head.pth. The misspelt squeeze convolution is declared there and
# never called.
ENDOMUST_POSE_ENCODER_RULES = ((r"encoder\.fc\..*", DROP), (r"encoder\.(.*)", r"encoder.encoder.\1"))
ENDOMUST_POSE_RULES = ((r"(net\.\d\..*)", r"decoder.\1"),)
ENDOMUST_INTRINSICS_RULES = (
    (r"convs_suqeeze\..*", DROP),
    (r"((focal_length|offsets)_conv\.weight)", r"intrinsics_head.\1"),
)

# The U-Nets of that family, a file for the encoder and one for the decoder, whose list ends with the four heads (in the
# decomposition: with the two convolutions of the light branch and the two heads).
UNET_ENCODER_RULES = ((r"height|width|use_stereo|encoder\.fc\..*", DROP), (r"(encoder\..*)", r"\1"))
UNET_LEVEL_RULE = (r"(decoder\.\d\..*)", r"decoder.\1")
UNET_DECODER_RULES = (UNET_LEVEL_RULE, (r"decoder\.1(\d\..*)", r"heads.\1"))
DECOMPOSITION_RULES = (
    UNET_LEVEL_RULE,
    (r"decoder\.1([01]\..*)", r"light.\1"),
    (r"decoder\.12\.(.*)", r"reflectance_head.\1"),
    (r"decoder\.13\.(.*)", r"shading_head.\1"),
)
LIGHT_ADJUST_RULES = ((r"(decoder\..*)", r"\1"),)

RESNET_RULES = ((r"fc\..*", DROP), (r"((conv1|bn1|layer\d)\..*)", r"\1"))  # torchvision's resnet18


class CheckpointError(ValueError):
    """A file that is not what the network needs; the message names the first keys and what to do."""


@dataclass(frozen=True)
class LoadReport:
    """What became of a foreign file: names loaded, ours that it does not cover, its own that were dropped."""

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        groups = (("fresh", self.fresh), ("dropped", self.dropped))
        rest = "".join(f"; {word} {len(names)} ({_few(names)})" for word, names in groups if names)
        return f"{self.source}: loaded {len(self.loaded)} tensors{rest}"


def load_depth_anything(network: DepthNetwork, path: str | Path, sha256: str | None = None) -> LoadReport:
    """Load a published Depth Anything v1 or v2 (.pth, or transformers' .safetensors) into encoder and DPT decoder.

    Necks and disparity heads stay as they are: these files have none. v1 and v2 files have the same names, so the
    caller says which by the config's taps (`DA_V1_TAPS`, `DA_V2_TAPS`), and wants `normalization="imagenet"`. Raises
    CheckpointError.
    """
    state, dropped = rename(read_weights(path, sha256), DEPTH_ANYTHING_RULES, path)
    return load_state(network, fuse_qkv(state, path), DEPTH_ANYTHING_FRESH, dropped, path)


def load_endomust_depth(network: DepthNetwork, path: str | Path, sha256: str | None = None) -> LoadReport:
    """Load a published depth_model.pth (EndoMUST, EndoDAC) into the `paper` preset, its low-rank updates merged."""
    state, dropped = rename(merge_lora(read_weights(path, sha256), path), ENDOMUST_DEPTH_RULES, path)
    return load_state(network, state, None, dropped, path)


def load_endomust_pose(network: PoseNetwork, folder: str | Path, intrinsics: bool = True) -> LoadReport:
    """Load pose_encoder.pth, pose.pth and intrinsics_head.pth of a published folder into the `paper` preset.

    intrinsics=False is for folders without the third file (AF-SfMLearner, IID-SfMLearner): that head stays as it is.
    """
    files = {"pose_encoder.pth": ENDOMUST_POSE_ENCODER_RULES, "pose.pth": ENDOMUST_POSE_RULES}
    if intrinsics:
        files["intrinsics_head.pth"] = ENDOMUST_INTRINSICS_RULES
    return _load_files(network, folder, files, None if intrinsics else r"intrinsics_head\..*")


def load_flow(network: OpticalFlow, folder: str | Path) -> LoadReport:
    """Load position_encoder.pth and position.pth of a published folder; their heads say (dy, dx), ours (dx, dy)."""
    files = {"position_encoder.pth": UNET_ENCODER_RULES, "position.pth": UNET_DECODER_RULES}
    return _load_files(network, folder, files, change=swap_flow_channels)


def load_appearance(network: AppearanceFlow, folder: str | Path) -> LoadReport:
    """Load transform_encoder.pth and transform.pth of a published folder."""
    files = {"transform_encoder.pth": UNET_ENCODER_RULES, "transform.pth": UNET_DECODER_RULES}
    return _load_files(network, folder, files)


def load_decomposition(network: Decomposition, folder: str | Path) -> LoadReport:
    """Load decompose_encoder.pth and decompose.pth of a published folder (`shading_max` 1, nearest upsampling)."""
    files = {"decompose_encoder.pth": UNET_ENCODER_RULES, "decompose.pth": DECOMPOSITION_RULES}
    return _load_files(network, folder, files)


def load_light_adjust(network: LightAdjust, folder: str | Path) -> LoadReport:
    """Load adjust_net.pth of a published folder."""
    return _load_files(network, folder, {"adjust_net.pth": LIGHT_ADJUST_RULES})


def load_unet_depth(network: UNetDepth, folder: str | Path) -> LoadReport:
    """Load encoder.pth and depth.pth of a published folder (AF-SfMLearner, IID-SfMLearner)."""
    return _load_files(network, folder, {"encoder.pth": UNET_ENCODER_RULES, "depth.pth": UNET_DECODER_RULES})


def load_resnet(encoder: ResNet18, path: str | Path, sha256: str | None = None) -> LoadReport:
    """Load torchvision's ImageNet resnet18 file; the first convolution is tiled over the encoder's images."""
    state, dropped = rename(read_weights(path, sha256), RESNET_RULES, path)
    if "conv1.weight" in state:
        state["conv1.weight"] = tile_first_conv(state["conv1.weight"], encoder.images)
    return load_state(encoder, state, None, dropped, path)


def save_checkpoint(path: str | Path, network: nn.Module, meta: dict | None = None) -> Path:
    """Write a network with its config and `meta` (numbers, strings, lists, dicts, tensors) to one file, atomically.

    The file is read back before it takes its name, so a checkpoint that exists can be loaded. Raises CheckpointError
    for a network of another kind, and for one whose adapters are not merged.
    """
    path = Path(path)
    if any(".lora_" in name for name in network.state_dict()):
        raise CheckpointError(f"the network for {path} still has its adapters; save lora.merge(network) instead")
    content = {
        "format": FORMAT,
        "kind": _kind_of(network),
        "config": dataclasses.asdict(network.config),
        "state_dict": {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()},
        "meta": meta or {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        torch.save(content, partial)
        read_weights(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_checkpoint(path: str | Path, kind: str) -> tuple[nn.Module, dict]:
    """Read what `save_checkpoint` wrote → network (on the CPU, in eval mode) and meta. Raises CheckpointError."""
    content = read_weights(path)
    missing = {"format", "kind", "config", "state_dict", "meta"} - content.keys()
    if missing:
        raise CheckpointError(
            f"{path} is no checkpoint of this project (no {', '.join(sorted(missing))}); published weights load with "
            "load_depth_anything or load_endomust_pose"
        )
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}, this version reads {FORMAT}; train or convert it again"
        )
    if content["kind"] != kind:
        raise CheckpointError(f"{path} holds a {content['kind']} network, not {kind}; give the {kind} checkpoint")
    build, config = KINDS[kind]
    try:
        network = build(config(**content["config"]))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} was written with another {kind} config ({error}); train or convert it again"
        ) from error
    load_state(network, content["state_dict"], None, (), path)
    return network.eval(), content["meta"]


def load_state(network: nn.Module, state: dict, fresh_pattern: str | None, dropped, source: str | Path) -> LoadReport:
    """Load strictly: names and shapes must be the network's own, apart from those that may stay fresh."""
    own = network.state_dict()
    fresh = [name for name in own if name not in state and fresh_pattern and re.fullmatch(fresh_pattern, name)]
    missing = [
        name for name in own if name not in state and name not in fresh and not name.endswith("num_batches_tracked")
    ]
    extra = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the network"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    found = [f"{len(names)} {what} ({_few(names)})" for what, names in
             (("missing", missing), ("unexpected", extra), ("of another shape", shapes)) if names]  # fmt: skip
    if found:
        raise CheckpointError(
            f"{source} does not fit the network: {'; '.join(found)}. Choose the preset the file was made for"
        )
    network.load_state_dict(own | state, strict=True)
    return LoadReport(str(source), tuple(state), tuple(fresh), tuple(dropped))


def read_weights(path: str | Path, sha256: str | None = None) -> dict:
    """Read a .pth or .safetensors file into a dict, executing nothing in it; `sha256` (hex) is checked if given."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check the path or fetch the file")
    if sha256 is not None and (found := sha256_of(path)) != sha256.lower():
        raise CheckpointError(f"{path}: sha256 is {found[:12]}…, expected {sha256[:12].lower()}…; fetch the file again")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise CheckpointError(f"{path} needs the safetensors package: pip install safetensors") from error
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or foreign file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as weights ({reason}); fetch it again or save a plain state dict"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a state dict; save `model.state_dict()` instead"
        )
    return content


def rename(state: dict, rules: tuple, source: str | Path = "state dict") -> tuple[dict, list[str]]:
    """Pass names through a table of rules → renamed state dict, dropped names. A name without a rule is an error."""
    renamed, dropped, unknown = {}, [], []
    for name, tensor in state.items():
        matches = ((re.fullmatch(pattern, name), replacement) for pattern, replacement in rules)
        match, replacement = next((row for row in matches if row[0]), (None, None))
        if match is None:
            unknown.append(name)
        elif replacement is DROP:
            dropped.append(name)
        else:
            renamed[match.expand(replacement)] = tensor
    if unknown:
        raise CheckpointError(
            f"{source} has {len(unknown)} unexpected tensors ({_few(unknown)}); it is another model or version"
        )
    return renamed, dropped


def merge_lora(state: dict, source: str | Path = "state dict") -> dict:
    """Add the published low-rank updates to their weights: W + (B ⊙ V)(A ⊙ U); A is r×i, B o×r, U r×1, V o×1. Exact."""
    for layer in {name.split(".lora_")[0] for name in state if ".lora_" in name}:
        needed = [f"{layer}.weight", *(f"{layer}.lora_{part}" for part in "ABUV")]
        missing = [name for name in needed if name not in state]
        if missing:
            raise CheckpointError(f"{source} lacks {_few(missing)}; it was not trained with EndoMUST's DV-LoRA")
    return merged_state(state)


def swap_flow_channels(state: dict) -> dict:
    """Exchange the two rows of every flow head: (dy, dx) → (dx, dy)."""
    return {name: tensor.flip(0) if name.startswith("heads.") else tensor for name, tensor in state.items()}


def depth_config_of(state: dict, base: DepthConfig, source: str | Path = "state dict") -> DepthConfig:
    """The config that a depth network's state dict (in our names) was made with, as far as its shapes tell.

    Heads are 64 wide in all published transformers. `base` gives what shapes do not: depth range, normalisation; the
    taps are the last four blocks. Raises CheckpointError where a name is missing that tells a size.
    """
    blocks = {int(match[1]) for name in state if (match := re.match(r"encoder\.blocks\.(\d+)\.norm1\.", name))}
    necks = sorted(int(m[1]) for name in state if (m := re.match(r"encoder\.blocks\.(\d+)\.residual_\.conv1", name)))
    try:
        dim, tokens = state["encoder.cls_token"].shape[-1], state["encoder.pos_embed"].shape[1]
        return dataclasses.replace(
            base,
            dim=dim,
            blocks=len(blocks),
            heads=max(1, dim // 64),
            features=state["depth_head.scratch.layer1_rn.weight"].shape[0],
            out_channels=tuple(state[f"depth_head.projects.{i}.weight"].shape[0] for i in range(4)),
            taps=tuple(range(len(blocks)))[-4:],
            necks=tuple(necks),
            neck_dim=state[f"encoder.blocks.{necks[0]}.residual_.conv1.weight"].shape[0] if necks else 0,
            pos_grid=math.isqrt(tokens - 1),
            patch_stem="linear",
            head_channels=state["depth_head.conv_depth_1.head.2.weight"].shape[0],
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source} is incomplete ({error}); fetch it again") from error


def fuse_qkv(state: dict, source: str | Path = "state dict") -> dict:
    """Join `….qkv.weight#query`, `#key`, `#value` into one `….qkv.weight`, in this order of rows."""
    fused = {name: tensor for name, tensor in state.items() if "#" not in name}
    for name in {name.split("#")[0] for name in state if "#" in name}:
        parts = [f"{name}#{part}" for part in ("query", "key", "value")]
        missing = [part for part in parts if part not in state]
        if missing:
            raise CheckpointError(f"{source} lacks {_few(missing)}; the file is incomplete, fetch it again")
        fused[name] = torch.cat([state[part] for part in parts])
    return fused


def _load_files(network, folder, files: dict[str, tuple], fresh=None, change=None) -> LoadReport:
    """Load several files of a folder, each through its table, as one; `change` is applied to the renamed state dict."""
    folder, state, dropped = Path(folder), {}, []
    for name, rules in files.items():
        renamed, gone = rename(read_weights(folder / name), rules, folder / name)
        state |= renamed
        dropped += gone
    return load_state(network, change(state) if change else state, fresh, dropped, folder)


def _kind_of(network: nn.Module) -> str:
    for kind, (build, _) in KINDS.items():
        if type(network) is build:
            return kind
    raise CheckpointError(f"no checkpoint format for a {type(network).__name__}; known kinds: {', '.join(KINDS)}")


def _few(names) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
