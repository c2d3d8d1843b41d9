"""Configuration → the networks of a run, each fresh, from a checkpoint of ours, a bundle, or published weights."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from endomust_core.learning import checkpoint
from endomust_core.learning.checkpoint import CheckpointError
from endomust_core.learning.config import ConfigError
from endomust_core.learning.from_bundle import is_bundle, load_depth, load_pose
from endomust_core.learning.lora import LoraConfig, adapt
from endomust_core.learning.networks import decomposition as decomposition_file
from endomust_core.learning.networks import flow as flow_file
from endomust_core.learning.networks.decomposition import Decomposition, LightAdjust
from endomust_core.learning.networks.depth import DA_V1_TAPS, DA_V2_TAPS, DepthNetwork
from endomust_core.learning.networks.depth import PRESETS as DEPTH_PRESETS
from endomust_core.learning.networks.flow import AppearanceFlow, OpticalFlow
from endomust_core.learning.networks.pose import PRESETS as POSE_PRESETS
from endomust_core.learning.networks.pose import PoseNetwork
from endomust_core.learning.networks.resnet import ResNet18

log = logging.getLogger(__name__)
BUILDERS = {"optical_flow": OpticalFlow, "appearance_flow": AppearanceFlow, "decomposition": Decomposition}
PRESETS = {
    "optical_flow": flow_file.PRESETS,
    "appearance_flow": flow_file.PRESETS,
    "decomposition": decomposition_file.PRESETS,
}
LOADERS = {
    "optical_flow": "load_flow",
    "appearance_flow": "load_appearance",
    "decomposition": "load_decomposition",
}


@dataclass(frozen=True)
class Part:
    """One convolutional network of the run."""

    preset: str = "base"
    # A checkpoint of ours (.pt), a folder of published weights, or torchvision's resnet18 file for the encoder.
    init: str = ""
    rate: float = 1.0  # times train.learning_rate


@dataclass(frozen=True)
class PosePart:
    preset: str = "compact"
    init: str = ""  # as of a Part; or a bundle
    rate: float = 1.0
    translation_gain: float = 0.0  # 0: the preset's. 0.01 of the network's unit diverged on SCARED (DAE, CVPR 2026)


@dataclass(frozen=True)
class DepthPart:
    preset: str = "base"
    init: str = ""  # a checkpoint of ours (.pt), a bundle, Depth Anything's or EndoMUST's published file
    version: str = "v1"  # v1 | v2: of a Depth Anything file, whose names do not tell
    size: tuple[int, ...] = (224, 280)  # of the image the transformer sees, multiples of 14
    rate: float = 1.0
    checkpointing: bool = False  # compute blocks again in the backward pass: less memory, about a third more time
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self):
        if len(self.size) != 2 or any(side % 14 for side in self.size):
            raise ValueError(f"size {self.size} must be height and width in multiples of 14")
        if self.version not in ("v1", "v2"):
            raise ValueError(f"version is {self.version!r}; choose v1 or v2")


def build_networks(config, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """The named networks of a TrainConfig on the CPU; raises CheckpointError or ConfigError in words."""
    networks = {}
    for name in names:
        if name == "depth":
            networks[name] = build_depth(config.depth)
        elif name == "pose":
            networks[name] = build_pose(config.pose)
        elif name == "light_adjust":
            networks[name] = LightAdjust()
        else:
            networks[name] = build_part(name, getattr(config, name))
        if config.train.compile:
            networks[name].compile()
    return networks


def build_depth(part: DepthPart) -> DepthNetwork:
    """The depth network with its adapters; those start as the identity, so it says what its checkpoint said."""
    preset = chosen(DEPTH_PRESETS, part.preset, "depth.preset")
    path = Path(part.init)
    if not part.init:
        network = DepthNetwork(preset)
        log.warning("depth.init is empty: the encoder starts from random numbers, which adapters cannot mend")
    elif is_bundle(path):
        network = load_depth(path)
    elif is_ours(path):
        network, _ = checkpoint.load_checkpoint(path, "depth")
    elif path.name == "depth_model.pth":
        network = DepthNetwork("paper")
        log.info("%s", checkpoint.load_endomust_depth(network, path))
    else:
        network = DepthNetwork(replace(preset, taps=DA_V1_TAPS if part.version == "v1" else DA_V2_TAPS))
        log.info("%s", checkpoint.load_depth_anything(network, path))
    adapt(network, part.lora)
    network.encoder.checkpointing = part.checkpointing
    return network


def build_pose(part: PosePart) -> PoseNetwork:
    """The network of motion and intrinsics."""
    preset = chosen(POSE_PRESETS, part.preset, "pose.preset")
    if part.translation_gain:
        preset = replace(preset, translation_gain=part.translation_gain)
    path = Path(part.init)
    if part.init and is_bundle(path):
        return load_pose(path)
    if part.init and is_ours(path):
        return checkpoint.load_checkpoint(path, "pose")[0]
    if part.init and path.is_dir():
        network = PoseNetwork("paper")
        log.info("%s", checkpoint.load_endomust_pose(network, path))
        return network
    network = PoseNetwork(preset)
    if part.init:
        load_encoder(network, path, "pose.init")
    return network


def build_part(name: str, part: Part) -> nn.Module:
    """One of the convolutional networks."""
    preset = chosen(PRESETS[name], part.preset, f"{name}.preset")
    path = Path(part.init)
    if part.init and is_ours(path):
        return checkpoint.load_checkpoint(path, name)[0]
    network = BUILDERS[name](chosen(PRESETS[name], "paper", name) if part.init and path.is_dir() else preset)
    if part.init and path.is_dir():
        log.info("%s", getattr(checkpoint, LOADERS[name])(network, path))
    elif part.init:
        load_encoder(network, path, f"{name}.init")
    return network


def load_encoder(network: nn.Module, path: Path, key: str) -> None:
    """torchvision's resnet18 into the encoder of a network that has one of that width."""
    encoders = [module for module in network.modules() if isinstance(module, ResNet18)]
    if not encoders:
        raise ConfigError(f"{key}: this preset has no ResNet-18, so {path} does not fit; leave it out")
    log.info("%s", checkpoint.load_resnet(encoders[0], path))


def chosen(presets: dict, name: str, key: str):
    if name not in presets:
        raise ConfigError(f"{key} is {name!r}; choose one of {', '.join(presets)}")
    return presets[name]


def is_ours(path: Path) -> bool:
    """True for a checkpoint that `save_checkpoint` wrote."""
    if path.suffix != ".pt":
        return False
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check the path")
    try:
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception:  # load_checkpoint says what is wrong with it
        return True
    return isinstance(content, dict) and "kind" in content
