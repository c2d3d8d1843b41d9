"""U-Net decoder: five encoder maps at strides 2 to 32 → features at the image's size and at 1/2, 1/4 and 1/8 of it.

The published decoders are one list: `decoder.0` to `decoder.9` are the convolutions here, from the coarsest level to
the finest, two a level (before and after enlarging), and the heads follow. So `decoder.N.conv.conv.weight` of such a
file is `decoder.decoder.N.conv.conv.weight` of a network that keeps its `UNet` as `decoder`.
"""

import torch
import torch.nn.functional as F
from torch import nn

UPSAMPLING = ("bilinear", "nearest")


class UNet(nn.Module):
    """forward(five maps, fine to coarse; size of the image) → [features at scales 0, 1, 2, 3], widths[0..3] channels.

    Each level convolves, enlarges to the size of the next finer map (whatever it is: odd sides are safe), joins that
    map and convolves again. The finest level has no map to join; without `size` it is twice the finest map.
    """

    def __init__(
        self,
        encoder_channels: tuple[int, ...],
        widths: tuple[int, ...] = (16, 32, 64, 128, 256),
        upsample: str = "bilinear",
    ):
        super().__init__()
        if len(encoder_channels) != 5 or len(widths) != 5:
            raise ValueError(f"a U-Net has five levels; got encoder channels {encoder_channels} and widths {widths}")
        if upsample not in UPSAMPLING:
            raise ValueError(f"upsample is {upsample!r}; choose one of {', '.join(UPSAMPLING)}")
        self.upsample = upsample
        self.widths = tuple(widths)
        self.decoder = nn.ModuleList()
        channels = encoder_channels[4]
        for level in (4, 3, 2, 1, 0):
            skip = encoder_channels[level - 1] if level else 0
            self.decoder.append(ConvBlock(channels, widths[level]))
            self.decoder.append(ConvBlock(widths[level] + skip, widths[level]))
            channels = widths[level]

    def forward(self, maps: list[torch.Tensor], size: tuple[int, int] | None = None) -> list[torch.Tensor]:
        finest = size or tuple(2 * side for side in maps[0].shape[-2:])
        features, scales = maps[4], []
        for level in (4, 3, 2, 1, 0):
            before, after = self.decoder[2 * (4 - level)], self.decoder[2 * (4 - level) + 1]
            skip = maps[level - 1] if level else None
            features = enlarge(before(features), finest if skip is None else skip.shape[-2:], self.upsample)
            features = after(features if skip is None else torch.cat([features, skip], dim=1))
            scales.insert(0, features)
        return scales[:4]


class ConvBlock(nn.Module):
    """3×3 convolution with reflection padding, ELU."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.conv = ReflectConv(channels_in, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.elu(self.conv(features))


class ReflectConv(nn.Module):
    """3×3 convolution with reflection padding; a side of one pixel has nothing to reflect and is repeated."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mode = "reflect" if min(features.shape[-2:]) > 1 else "replicate"
        return self.conv(F.pad(features, (1, 1, 1, 1), mode=mode))


def enlarge(features: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Resize to (h, w), "bilinear" (corners not aligned) or "nearest"."""
    return F.interpolate(features, size=tuple(size), mode=mode, align_corners=False if mode == "bilinear" else None)
