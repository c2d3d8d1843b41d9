"""Pose network: previous and current RGB, B×3×H×W in [0,1] → rotation [rad] B×3, translation [m] B×3, intrinsics B×4.

The pose is T_prev_curr: it maps points of the current camera into the previous camera. Rotation is an axis times an
angle. Intrinsics are fx/W, fy/H, cx/W, cy/H.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from endomust_core.learning.networks.normalize import NormalizeRGB
from endomust_core.learning.networks.resnet import CHANNELS, ResNet18


@dataclass(frozen=True)
class PoseConfig:
    """What a pose network is built from.

    The gains scale raw outputs to radians and metres, so that the last layer works with numbers around one. They set
    how fast the pose learns: too large a gain makes self-supervised training diverge.
    """

    encoder: str = "correlation"  # correlation | compact | resnet18 (the paper's)
    rotation_gain: float = 0.01
    translation_gain: float = 0.001
    radius: int = 3  # correlation window, ± positions at strides 4 and 8
    normalization: str = "imagenet"


PRESETS = {
    "tiny": PoseConfig(),
    "compact": PoseConfig(encoder="compact"),
    "paper": PoseConfig(encoder="resnet18", rotation_gain=0.001, translation_gain=0.001, normalization="none"),
}


class Pose(NamedTuple):
    """T_prev_curr as rotation B×3 [rad, axis times angle] and translation B×3 [m]; intrinsics B×4, normalised."""

    rotation: torch.Tensor
    translation: torch.Tensor
    intrinsics: torch.Tensor


class PoseNetwork(nn.Module):
    """forward(previous, current; B×3×H×W in [0,1]) → Pose."""

    def __init__(self, config: PoseConfig | str = "tiny"):
        super().__init__()
        self.config = config = preset(config)
        self.normalize = NormalizeRGB(config.normalization)
        self.encoder = ENCODERS[config.encoder](config)
        self.decoder = DECODERS[config.encoder](self.encoder.channels)
        self.intrinsics_head = IntrinsicsHead(self.decoder.feature_channels)

    def forward(self, previous: torch.Tensor, current: torch.Tensor) -> Pose:
        features = self.encoder(self.normalize(previous), self.normalize(current))
        raw, feature = self.decoder(features)
        rotation = self.config.rotation_gain * raw[:, :3]
        translation = self.config.translation_gain * raw[:, 3:6]
        return Pose(rotation, translation, self.intrinsics_head(feature))


class ResNetPairEncoder(nn.Module):
    """The paper's: ResNet-18 on both images, previous first. → B×512×H/32×W/32."""

    channels = CHANNELS[-1]

    def __init__(self, config: PoseConfig):
        super().__init__()
        self.encoder = ResNet18(images=2)

    def forward(self, previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        return self.encoder(torch.cat([previous, current], dim=1))[-1]


class CompactEncoder(nn.Module):
    """Seven convolutions on both images and their difference. → B×128×H/32×W/32."""

    channels = 128

    def __init__(self, config: PoseConfig):
        super().__init__()
        rows = [(9, 16, 7, 2), (16, 32, 5, 2), (32, 64, 3, 2), (64, 96, 3, 2), (96, 128, 3, 2), (128, 128, 3, 1)]
        self.layers = nn.Sequential(*(conv_unit(*row) for row in rows), conv_unit(128, self.channels, 3, 1))

    def forward(self, previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([previous, current, current - previous], dim=1))


class CorrelationEncoder(nn.Module):
    """Where did every small neighbourhood go? → B×128×H/16×W/16.

    Both frames pass the same shallow convolutions. The match of each position with its neighbours in the other frame is
    measured at stride 4 (fine, for motion below a pixel) and at stride 8 (wide); the rest of the network reads motion
    off these match maps.
    """

    channels = 128

    def __init__(self, config: PoseConfig):
        super().__init__()
        self.radius = config.radius
        window = (2 * config.radius + 1) ** 2
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
        )
        self.deeper = nn.Sequential(nn.ReLU(), nn.Conv2d(24, 32, 3, stride=2, padding=1))
        self.fine = conv_unit(window + 24, 48, 3, 2)
        self.wide = conv_unit(window + 32 + 48 + 2, 96, 3, 2)
        self.mix = nn.Sequential(conv_unit(96, 96, 3, 1), conv_unit(96, self.channels, 3, 1))

    def forward(self, previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        pair_4 = self.stem(torch.cat([previous, current], dim=0))
        pair_8 = self.deeper(pair_4)
        match_4, current_4 = self.match(pair_4)
        match_8, current_8 = self.match(pair_8)
        fine = self.fine(torch.cat([match_4, current_4], dim=1))
        place = position_maps(fine).expand(len(current), -1, -1, -1)
        return self.mix(self.wide(torch.cat([match_8, current_8, fine, place], dim=1)))

    def match(self, pair: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        previous, current = whiten(pair).chunk(2, dim=0)
        return correlate(current, previous, self.radius), current


class ConvPoseDecoder(nn.Module):
    """The paper's: four convolutions and a mean. B×C×h×w → two poses B×12 (the first is used), mean features B×256."""

    feature_channels = 256

    def __init__(self, channels: int):
        super().__init__()
        width = self.feature_channels
        self.net = nn.ModuleList(
            [
                nn.Conv2d(channels, width, 1),
                nn.Conv2d(width, width, 3, padding=1),
                nn.Conv2d(width, width, 3, padding=1),
                nn.Conv2d(width, 12, 1),
            ]
        )

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        squeeze, first, second, last = self.net
        feature = second(F.relu(first(F.relu(squeeze(features)))))
        return last(F.relu(feature)).mean(dim=(2, 3)), feature.mean(dim=(2, 3))


class MomentPoseDecoder(nn.Module):
    """Feature maps B×C×h×w → their means weighted by 1, x, y, x², xy, y² → pose B×6, feature B×128.

    A small rigid motion moves pixels by a polynomial of second order in x and y (over depth), so these moments are what
    a least-squares estimate of the motion is made of; a plain mean would throw the places away.
    """

    feature_channels = 128

    def __init__(self, channels: int):
        super().__init__()
        self.hidden = nn.Linear(6 * channels, self.feature_channels)
        self.pose = nn.Linear(self.feature_channels, 6)
        nn.init.normal_(self.pose.weight, std=0.1)
        nn.init.zeros_(self.pose.bias)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = position_maps(features).unbind(1)
        basis = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=-1).flatten(1, 2)  # 1×hw×6
        moments = features.flatten(2) @ basis / basis.shape[1]
        feature = F.leaky_relu(self.hidden(moments.flatten(1)), 0.1)  # plain ReLU died when motion averages out
        return self.pose(feature), feature


class IntrinsicsHead(nn.Module):
    """Pooled features B×C → fx/W, fy/H, cx/W, cy/H; focal lengths above half the image, the centre about its middle."""

    def __init__(self, channels: int):
        super().__init__()
        self.focal_length_conv = nn.Conv2d(channels, 2, 1, bias=False)
        self.offsets_conv = nn.Conv2d(channels, 2, 1, bias=False)
        nn.init.normal_(self.focal_length_conv.weight, std=0.01)
        nn.init.normal_(self.offsets_conv.weight, std=0.01)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        pooled = feature[:, :, None, None]
        focal = F.softplus(self.focal_length_conv(pooled)) + 0.5
        centre = self.offsets_conv(pooled) + 0.5
        return torch.cat([focal, centre], dim=1).flatten(1)


ENCODERS = {"correlation": CorrelationEncoder, "compact": CompactEncoder, "resnet18": ResNetPairEncoder}
DECODERS = {"correlation": MomentPoseDecoder, "compact": MomentPoseDecoder, "resnet18": ConvPoseDecoder}


def preset(config: PoseConfig | str) -> PoseConfig:
    """A preset by name, or the config itself."""
    if isinstance(config, PoseConfig):
        if config.encoder not in ENCODERS:
            raise ValueError(f"no pose encoder {config.encoder!r}; choose one of {', '.join(ENCODERS)}")
        return config
    if config not in PRESETS:
        raise ValueError(f"no pose preset {config!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[config]


def conv_unit(channels_in: int, channels: int, kernel: int, stride: int) -> nn.Sequential:
    """Convolution, group norm (works with batches of one), ReLU."""
    conv = nn.Conv2d(channels_in, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(8, channels), nn.ReLU())


def whiten(features: torch.Tensor) -> torch.Tensor:
    """Each channel to mean 0 and variance 1 over the image, then each position to unit mean square. B×C×H×W.

    Without the first step what all positions share drowns what tells them apart, every neighbour matches, and no motion
    is learned.
    """
    features = F.instance_norm(features)
    return features * torch.rsqrt(features.square().mean(dim=1, keepdim=True) + 1e-3)


def correlate(current: torch.Tensor, previous: torch.Tensor, radius: int) -> torch.Tensor:
    """Match of every position of `current` with the (2r+1)² neighbours in `previous`. Two B×C×H×W → B×(2r+1)²×H×W.

    Channel (dy + r)(2r + 1) + dx + r holds the product with `previous` at (y + dy, x + dx), summed over channels and
    divided by √C, so that unrelated whitened positions give variance 1; zero outside the image. One matrix product per
    row and dy gives the products of all pairs of columns. The wanted band of its diagonal becomes a rectangle when rows
    of length L are read with length L + 1; this is far fewer operations than one per neighbour.
    """
    batch, channels, height, width = current.shape
    side, padded = 2 * radius + 1, width + 2 * radius
    previous = F.pad(previous, (radius, radius, radius, radius))
    rows = torch.stack([previous[:, :, dy : dy + height] for dy in range(side)], dim=1)  # B×side×C×H×(W+2r)
    left = current.permute(0, 2, 3, 1).unsqueeze(1) / channels**0.5  # B×1×H×W×C
    pairs = left @ rows.permute(0, 1, 3, 2, 4)  # B×side×H×W×(W+2r)
    skewed = F.pad(pairs.flatten(3), (0, width)).view(batch, side, height, width, padded + 1)
    return skewed[..., :side].permute(0, 1, 4, 2, 3).reshape(batch, side * side, height, width)


def position_maps(features: torch.Tensor) -> torch.Tensor:
    """x and y of every position, from -1 to 1: 1×2×H×W."""
    height, width = (int(side) for side in features.shape[-2:])
    y = 2.0 * torch.arange(height, dtype=features.dtype, device=features.device) / (height - 1) - 1.0
    x = 2.0 * torch.arange(width, dtype=features.dtype, device=features.device) / (width - 1) - 1.0
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])[None]
