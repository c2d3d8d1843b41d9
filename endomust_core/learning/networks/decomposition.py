"""Intrinsic decomposition: RGB B×3×H×W in [0,1] → reflectance B×3×H×W and shading B×1×H×W, image ≈ their product.

`LightAdjust` corrects the shading of a warped view: a difference image B×3×H×W → B×1×H×W in (-1,1).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from endomust_core.learning.networks.normalize import NormalizeRGB
from endomust_core.learning.networks.resnet import ResNet18
from endomust_core.learning.networks.unet import ConvBlock, ReflectConv, UNet, enlarge

INITIAL_SHADING = 0.75


@dataclass(frozen=True)
class DecompositionConfig:
    """What a decomposition network is built from; widths are those of the decoder, fine to coarse."""

    encoder_width: int = 64  # channels at stride 2; 64 fits ImageNet weights
    norm: str = "batch"  # batch | group
    widths: tuple[int, ...] = (32, 64, 64, 128, 256)
    normalization: str = "none"
    shading_max: float = 1.0  # above 1 the shading can hold highlights, where the image saturates
    upsample: str = "bilinear"  # bilinear | nearest

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.shading_max < 1.0:
            raise ValueError(f"shading_max is {self.shading_max}; below 1 a white image cannot be explained")


@dataclass(frozen=True)
class LightAdjustConfig:
    """What a light adjustment network is built from."""

    width: int = 32


PRESETS = {
    "tiny": DecompositionConfig(16, "group", (16, 16, 32, 32, 64), "imagenet", shading_max=4.0),
    "base": DecompositionConfig(normalization="imagenet", shading_max=4.0),
    "paper": DecompositionConfig(),
}


class Decomposition(nn.Module):
    """forward(image B×3×H×W in [0,1], sides from 32) → (reflectance B×3×H×W in (0,1), shading B×1×H×W).

    Shading lies in (0, shading_max); it is computed from the finest features of the reflectance and the encoder's map
    at stride 2.
    """

    def __init__(self, config: DecompositionConfig | str = "tiny"):
        super().__init__()
        self.config = config = preset(config)
        width = config.widths[0]
        self.normalize = NormalizeRGB(config.normalization)
        self.encoder = ResNet18(1, config.encoder_width, config.norm)
        self.decoder = UNet(self.encoder.channels, config.widths, config.upsample)
        self.light = nn.ModuleList([ConvBlock(config.encoder_width, width), ConvBlock(2 * width, width)])
        self.reflectance_head = ReflectConv(width, 3)
        self.shading_head = nn.Conv2d(width, 1, 1)
        share = INITIAL_SHADING / config.shading_max
        nn.init.constant_(self.shading_head.bias, math.log(share / (1.0 - share)))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = tuple(image.shape[-2:])
        maps = self.encoder(self.normalize(image))
        features = self.decoder(maps, size)[0]
        light = enlarge(self.light[0](maps[0]), size, self.config.upsample)
        light = self.light[1](torch.cat([light, features], dim=1))
        reflectance = torch.sigmoid(self.reflectance_head(features))
        return reflectance, self.config.shading_max * torch.sigmoid(self.shading_head(light))


class LightAdjust(nn.Module):
    """forward(difference B×3×H×W) → what to add to a shading, B×1×H×W in (-1,1); an untrained network says zero."""

    def __init__(self, config: LightAdjustConfig | None = None):
        super().__init__()
        self.config = config = config or LightAdjustConfig()
        width = config.width
        blocks = [ConvBlock(3, width), ConvBlock(width, width), ConvBlock(width, width)]
        self.decoder = nn.ModuleList([*blocks, nn.Conv2d(width, 1, 1)])  # one list, as in the published files
        nn.init.zeros_(self.decoder[-1].weight)
        nn.init.zeros_(self.decoder[-1].bias)

    def forward(self, difference: torch.Tensor) -> torch.Tensor:
        features = difference
        for layer in self.decoder:
            features = layer(features)
        return torch.tanh(features)


def preset(config: DecompositionConfig | str) -> DecompositionConfig:
    """A preset by name, or the config itself."""
    if isinstance(config, DecompositionConfig):
        return config
    if config not in PRESETS:
        raise ValueError(f"no decomposition preset {config!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[config]
