"""ResNet-18 encoder: k images stacked in channels, B×3k×H×W → five maps at strides 2 to 32.

At the full width of 64 the maps have 64, 64, 128, 256 and 512 channels. Parameter names are torchvision's, without the
classifier, for either kind of normalisation. Odd sides are rounded up: a map at stride s has ceil(H/s)×ceil(W/s).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = (64, 64, 128, 256, 512)
NORMS = ("batch", "group")


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with normalisation and a shortcut, projected where shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: str = "batch"):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm_layer(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm_layer(norm, channels)
        self.downsample = None
        if stride != 1 or channels_in != channels:
            projection = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, norm_layer(norm, channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        inner = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(inner)) + shortcut)


class ResNet18(nn.Module):
    """forward(B×3k×H×W) → list of five maps, fine to coarse, of `channels` (w, w, 2w, 4w, 8w) at width w.

    `norm` is "batch", as published, or "group", which works the same with any batch, in training and afterwards.
    """

    def __init__(self, images: int = 1, width: int = 64, norm: str = "batch"):
        super().__init__()
        self.images = images
        self.channels = tuple(width * factor for factor in (1, 1, 2, 4, 8))
        self.conv1 = nn.Conv2d(3 * images, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(norm, width)
        stages = zip((1, 2, 3, 4), self.channels[:-1], self.channels[1:], (1, 2, 2, 2), strict=True)
        for number, channels_in, channels, stride in stages:
            blocks = ResidualBlock(channels_in, channels, stride, norm), ResidualBlock(channels, channels, 1, norm)
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = [F.relu(self.bn1(self.conv1(images)))]
        features = F.max_pool2d(maps[0], 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
            maps.append(features)
        return maps


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Batch norm, or group norm of eight groups (fewer where eight do not divide the channels)."""
    if kind not in NORMS:
        raise ValueError(f"norm is {kind!r}; choose one of {', '.join(NORMS)}")
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(math.gcd(8, channels), channels)


def tile_first_conv(weight: torch.Tensor, images: int) -> torch.Tensor:
    """ImageNet's first convolution 64×3×7×7 → 64×3k×7×7 with the same response to k equal images."""
    return weight.repeat(1, images, 1, 1) / images
