"""Flow networks: optical flow in pixels of the full grid, B×2×h×w, and appearance flow in (-1,1), B×3×h×w, at 4 scales.

Both read two RGB images B×3×H×W in [0,1]: encoder, U-Net decoder, one head a scale. Scale 0 has the image's size, scale
k sides of ceil(H/2^k).
"""

from dataclasses import dataclass

import torch
from torch import nn

from endomust_core.learning.networks.normalize import NormalizeRGB
from endomust_core.learning.networks.pose import correlate, whiten
from endomust_core.learning.networks.resnet import ResNet18, norm_layer
from endomust_core.learning.networks.unet import ReflectConv, UNet

SCALES = (0, 1, 2, 3)


@dataclass(frozen=True)
class FlowConfig:
    """What a flow network is built from; widths are those of the decoder, fine to coarse."""

    encoder_width: int = 64  # channels at stride 2; 64 fits ImageNet weights
    norm: str = "batch"  # batch | group
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    normalization: str = "imagenet"
    upsample: str = "bilinear"  # bilinear | nearest
    encoder: str = "resnet18"  # of optical flow: resnet18 (the paper's) | correlation, which learns from scratch
    radius: int = 3  # correlation window, ± positions at strides 4 and 8

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.encoder not in ENCODERS:
            raise ValueError(f"no flow encoder {self.encoder!r}; choose one of {', '.join(ENCODERS)}")


class CorrelationPyramid(nn.Module):
    """Where did every small neighbourhood of the target go? B×6×H×W, source first → five maps at strides 2 to 32.

    Both images pass the same convolutions; the match of each target position with its neighbours in the source is
    measured at strides 4 and 8, and the coarser maps are computed from these matches. A ResNet-18 on the stacked images
    has to invent matching first, which photometric losses hardly teach it without ImageNet weights.
    """

    def __init__(self, config: FlowConfig):
        super().__init__()
        width, norm = config.encoder_width, config.norm
        self.radius = config.radius
        self.channels = (width, 2 * width, 3 * width, 4 * width, 6 * width)
        window = (2 * config.radius + 1) ** 2
        self.stem_2 = unit(3, width, norm, stride=2)
        self.stem_4 = nn.Sequential(
            unit(width, 2 * width, norm, stride=2), nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        )
        self.stem_8 = nn.Sequential(
            nn.ReLU(), unit(2 * width, 2 * width, norm, stride=2), nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        )
        self.match_4 = unit(window + 2 * width, 2 * width, norm)
        self.narrow = unit(2 * width, 2 * width, norm, stride=2)
        self.match_8 = unit(window + 4 * width, 3 * width, norm)
        self.deeper_16 = nn.Sequential(unit(3 * width, 4 * width, norm, stride=2), unit(4 * width, 4 * width, norm))
        self.deeper_32 = nn.Sequential(unit(4 * width, 6 * width, norm, stride=2), unit(6 * width, 6 * width, norm))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        pair_2 = self.stem_2(torch.cat(images.chunk(2, dim=1)))
        pair_4 = self.stem_4(pair_2)
        pair_8 = self.stem_8(pair_4)
        map_4 = self.match_4(self.match(pair_4))
        map_8 = self.match_8(torch.cat([self.match(pair_8), self.narrow(map_4)], dim=1))
        map_16 = self.deeper_16(map_8)
        return [pair_2.chunk(2)[1], map_4, map_8, map_16, self.deeper_32(map_16)]

    def match(self, pair: torch.Tensor) -> torch.Tensor:
        """Match maps and whitened target features, always in float32: motion below a position is in their decimals."""
        with torch.autocast(pair.device.type, enabled=False):
            source, target = whiten(pair.float()).chunk(2)
            return torch.cat([correlate(target, source, self.radius), target], dim=1)


def stacked_resnet(config: FlowConfig) -> ResNet18:
    """The paper's encoder: ResNet-18 on both images."""
    return ResNet18(2, config.encoder_width, config.norm)


ENCODERS = {"resnet18": stacked_resnet, "correlation": CorrelationPyramid}

PRESETS = {
    "tiny": FlowConfig(encoder_width=16, norm="group", widths=(8, 16, 16, 32, 64), encoder="correlation"),
    "base": FlowConfig(),
    "paper": FlowConfig(normalization="none"),
}


class OpticalFlow(nn.Module):
    """forward(source, target; B×3×H×W in [0,1]) → {scale: flow B×2×h×w}, with target(x) ≈ source(x + flow(x)).

    Channels are dx, dy, in pixels of scale 0 at every scale. An untrained network says no motion.
    """

    def __init__(self, config: FlowConfig | str = "tiny"):
        super().__init__()
        self.config = config = preset(config)
        self.normalize = NormalizeRGB(config.normalization)
        self.encoder = ENCODERS[config.encoder](config)
        self.decoder = UNet(self.encoder.channels, config.widths, config.upsample)
        self.heads = nn.ModuleList(nn.Conv2d(config.widths[scale], 2, 3, padding=1) for scale in SCALES)
        for head in self.heads:
            start_small(head)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> dict[int, torch.Tensor]:
        maps = self.encoder(torch.cat([self.normalize(source), self.normalize(target)], dim=1))
        features = self.decoder(maps, tuple(target.shape[-2:]))
        return {scale: self.heads[scale](features[scale]) for scale in SCALES}


class AppearanceFlow(nn.Module):
    """forward(registered source, target; B×3×H×W in [0,1]) → {scale: B×3×h×w in (-1,1)} to be added to the target.

    An untrained network says no change.
    """

    def __init__(self, config: FlowConfig | str = "tiny"):
        super().__init__()
        self.config = config = preset(config)
        self.normalize = NormalizeRGB(config.normalization)
        self.encoder = stacked_resnet(config)
        self.decoder = UNet(self.encoder.channels, config.widths, config.upsample)
        self.heads = nn.ModuleList(ReflectConv(config.widths[scale], 3) for scale in SCALES)
        for head in self.heads:
            start_small(head.conv)

    def forward(self, registered: torch.Tensor, target: torch.Tensor) -> dict[int, torch.Tensor]:
        maps = self.encoder(torch.cat([self.normalize(registered), self.normalize(target)], dim=1))
        features = self.decoder(maps, tuple(target.shape[-2:]))
        return {scale: torch.tanh(self.heads[scale](features[scale])) for scale in SCALES}


def preset(config: FlowConfig | str) -> FlowConfig:
    """A preset by name, or the config itself."""
    if isinstance(config, FlowConfig):
        return config
    if config not in PRESETS:
        raise ValueError(f"no flow preset {config!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[config]


def start_small(conv: nn.Conv2d) -> None:
    """Weights of N(0, 1e-5), no bias: the output starts at zero but is not stuck there."""
    nn.init.normal_(conv.weight, std=1e-5)
    nn.init.zeros_(conv.bias)


def unit(channels_in: int, channels: int, norm: str, stride: int = 1) -> nn.Sequential:
    """3×3 convolution, normalisation, ReLU."""
    conv = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, norm_layer(norm, channels), nn.ReLU())
