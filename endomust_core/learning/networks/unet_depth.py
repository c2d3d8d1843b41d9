"""Convolutional depth network of AF-SfMLearner and IID-SfMLearner: RGB B×3×H×W in [0,1] → disparity at four scales.

ResNet-18, U-Net decoder, one sigmoid head a scale (the layout of Godard et al. 2019). Disparity in (0,1) is an affine
form of inverse depth, as in depth.py.
"""

from dataclasses import dataclass

import torch
from torch import nn

from endomust_core.learning.networks.depth import SCALES
from endomust_core.learning.networks.normalize import NormalizeRGB
from endomust_core.learning.networks.resnet import ResNet18
from endomust_core.learning.networks.unet import ReflectConv, UNet


@dataclass(frozen=True)
class UNetDepthConfig:
    """What the network is built from; the defaults are the published ones, depths in network units."""

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)  # of the decoder, fine to coarse
    upsample: str = "nearest"
    normalization: str = "none"
    min_depth: float = 0.1
    max_depth: float = 150.0

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(f"depth range {self.min_depth} to {self.max_depth} must be positive and increasing")


class UNetDepth(nn.Module):
    """forward(image B×3×H×W in [0,1]) → {scale: disparity B×1×h×w in (0,1)}; `scales` and `size` as in DepthNetwork."""

    def __init__(self, config: UNetDepthConfig | None = None):
        super().__init__()
        self.config = config = config or UNetDepthConfig()
        self.normalize = NormalizeRGB(config.normalization)
        self.encoder = ResNet18(1)
        self.decoder = UNet(self.encoder.channels, config.widths, config.upsample)
        self.heads = nn.ModuleList(ReflectConv(config.widths[scale], 1) for scale in SCALES)

    def forward(
        self, image: torch.Tensor, scales: tuple[int, ...] = SCALES, size: tuple[int, int] | None = None
    ) -> dict[int, torch.Tensor]:
        size = size or tuple(image.shape[-2:])
        features = self.decoder(self.encoder(self.normalize(image)), size)
        return {scale: torch.sigmoid(self.heads[scale](features[scale])) for scale in scales}
