"""Depth network: RGB B×3×H×W in [0,1] → disparity in (0,1) at four scales, a ViT encoder with a DPT decoder.

Disparity sigma is an affine form of inverse depth [1/m]; `depth_from_disparity` turns it into depth [m].
Scale 0 has the size of the image, scale k is 2^k times smaller.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from endomust_core.learning.networks.normalize import NormalizeRGB
from endomust_core.learning.networks.vit import ResidualUnit, VisionTransformer

SCALES = (0, 1, 2, 3)


@dataclass(frozen=True)
class DepthConfig:
    """What a depth network is built from. Blocks count from 0; depths in metres (in `paper`, network units)."""

    dim: int = 192  # width of the tokens
    blocks: int = 6
    heads: int = 3
    features: int = 32  # width of the DPT decoder
    out_channels: tuple[int, ...] = (24, 48, 96, 96)  # widths of the decoder's four maps, fine to coarse
    taps: tuple[int, ...] = (2, 3, 4, 5)  # blocks whose tokens feed the decoder, fine to coarse; a pyramid needs two
    necks: tuple[int, ...] = (1, 3, 5)  # blocks followed by a conv neck
    neck_dim: int = 0  # 0: dim // 8
    pos_grid: int = 16  # side of the learned position embedding, in patches
    layer_scale: float = 1.0  # 1e-5 for encoders that will be loaded, 1 from scratch
    patch_stem: str = "conv"  # "conv": half-resolution stem with a skip to the output; "linear": one 14x14 convolution;
    # "pyramid": convolutions down to stride 8, whose maps at strides 4 and 8 are the two finest of the decoder
    stem_channels: int = 16  # at stride 2; those of a pyramid at strides 4 and 8 are the first two of out_channels
    pyramid_units: tuple[int, ...] = (1, 2)  # residual units of a pyramid at strides 4 and 8
    head_channels: int = 16  # width before the last convolution of a disparity head
    min_depth: float = 0.002
    max_depth: float = 0.35
    initial_disparity: float = 0.06  # what an untrained head says: 0.06 is 3 cm in the default range
    normalization: str = "imagenet"

    def __post_init__(self):
        for name in ("out_channels", "taps", "necks", "pyramid_units"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.patch_stem not in ("conv", "linear", "pyramid"):
            raise ValueError(f"patch_stem is {self.patch_stem!r}; choose conv, linear or pyramid")
        taps = 2 if self.patch_stem == "pyramid" else 4
        if len(self.out_channels) != 4 or len(self.taps) != taps:
            raise ValueError(
                f"the decoder takes four maps, {taps} of them from taps where patch_stem is {self.patch_stem}; got "
                f"taps {self.taps} and out_channels {self.out_channels}"
            )
        if len(self.pyramid_units) != 2:
            raise ValueError(f"pyramid_units {self.pyramid_units} must be two numbers, at strides 4 and 8")
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(f"depth range {self.min_depth} to {self.max_depth} m must be positive and increasing")


_PRETRAINED = dict(pos_grid=37, layer_scale=1e-5, patch_stem="linear", head_channels=32)

PRESETS = {
    "tiny": DepthConfig(),
    "small": DepthConfig(
        dim=384, blocks=12, heads=6, features=64, out_channels=(48, 96, 192, 384), taps=(8, 9, 10, 11),
        necks=(2, 5, 8, 11), **_PRETRAINED,
    ),
    "base": DepthConfig(
        dim=768, blocks=12, heads=12, features=128, out_channels=(96, 192, 384, 768), taps=(8, 9, 10, 11),
        necks=(2, 5, 8, 11), **_PRETRAINED,
    ),
}  # fmt: skip
PRESETS |= {  # convolutions down to stride 8 below the transformer: for networks that start from random numbers
    "tiny-pyramid": DepthConfig(
        blocks=5, out_channels=(32, 64, 96, 96), taps=(2, 4), necks=(0, 2, 4), patch_stem="pyramid",
        pyramid_units=(2, 4),
    ),
    "small-pyramid": DepthConfig(
        dim=256, blocks=6, heads=4, features=48, out_channels=(48, 96, 128, 192), taps=(3, 5), necks=(1, 3, 5),
        patch_stem="pyramid", pyramid_units=(2, 4),
    ),
}  # fmt: skip
PRESETS["paper"] = replace(  # EndoMUST's published weights: raw RGB, depths in network units
    PRESETS["base"], min_depth=0.1, max_depth=150.0, initial_disparity=0.5, normalization="none"
)
DA_V1_TAPS = (8, 9, 10, 11)  # Depth Anything v1 and EndoMUST feed the decoder from the last four blocks ...
DA_V2_TAPS = (2, 5, 8, 11)  # ... Depth Anything v2 from every third


class DepthNetwork(nn.Module):
    """forward(image B×3×H×W in [0,1]; H, W multiples of 14) → {scale: disparity B×1×h×w in (0,1)}.

    `scales` names the outputs wanted; heads of other scales do no work. `size` is the (h, w) of scale 0 when it is not
    the image's (the published EndoMUST weights were trained with 256×320 out of a 224×280 image).
    """

    def __init__(self, config: DepthConfig | str = "tiny"):
        super().__init__()
        self.config = config = preset(config)
        stem_channels = 0 if config.patch_stem == "linear" else config.stem_channels
        self.normalize = NormalizeRGB(config.normalization)
        self.encoder = VisionTransformer(
            config.dim,
            config.blocks,
            config.heads,
            config.taps,
            config.necks,
            config.neck_dim or config.dim // 8,
            config.pos_grid,
            layer_scale=config.layer_scale,
            stem_channels=stem_channels,
            pyramid_channels=config.out_channels[:2] if config.patch_stem == "pyramid" else None,
            pyramid_units=config.pyramid_units,
        )
        self.depth_head = DepthHead(config, stem_channels)

    def forward(
        self, image: torch.Tensor, scales: tuple[int, ...] = SCALES, size: tuple[int, int] | None = None
    ) -> dict[int, torch.Tensor]:
        maps, fine = self.encoder(self.normalize(image))
        return self.depth_head(maps, fine, scales, size or tuple(image.shape[-2:]))


class DepthHead(nn.Module):
    """DPT decoder: four maps → fused paths, fine to coarse → disparity heads.

    The maps are tokens B×C×h×w, the two finest of which are enlarged to 4h×4w and 2h×2w, or a pyramid's two and tokens.
    """

    def __init__(self, config: DepthConfig, stem_channels: int):
        super().__init__()
        pyramid = config.patch_stem == "pyramid"
        tokens = range(2 if pyramid else 0, 4)  # the maps made of tokens; those of a pyramid have their size and width
        self.projects = nn.ModuleList(
            nn.Conv2d(config.dim, channels, 1) if index in tokens else nn.Identity()
            for index, channels in enumerate(config.out_channels)
        )
        first, second, _, fourth = config.out_channels
        self.resize_layers = nn.ModuleList(
            [
                nn.Identity() if pyramid else nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.Identity() if pyramid else nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(fourth, fourth, 3, stride=2, padding=1),
            ]
        )
        self.scratch = Fusion(config.out_channels, config.features)
        for number in (1, 2, 3, 4):
            sharp = number == 1 and stem_channels
            head = SharpHead(config, stem_channels) if sharp else DisparityHead(config)
            self.add_module(f"conv_depth_{number}", head)

    def forward(
        self, maps: list[torch.Tensor], fine: torch.Tensor | None, scales: tuple[int, ...], size: tuple[int, int]
    ) -> dict[int, torch.Tensor]:
        paths = self.fuse(maps, None if fine is None else tuple(fine.shape[-2:]))
        disparity = {}
        for scale in scales:
            head = getattr(self, f"conv_depth_{scale + 1}")
            wanted = tuple(math.ceil(side / 2**scale) for side in size)
            disparity[scale] = torch.sigmoid(head(paths[scale], fine, wanted))
        return disparity

    def fuse(self, maps: list[torch.Tensor], finest: tuple[int, int] | None = None) -> list[torch.Tensor]:
        """Four maps → the four fused paths, fine to coarse; `finest` is the size of the first (8h×8w if None)."""
        sides = zip(maps, self.projects, self.resize_layers, strict=True)
        return self.scratch([resize(project(features)) for features, project, resize in sides], finest)


class Fusion(nn.Module):
    """Top-down fusion: all maps get the decoder's width; coarse paths are refined, enlarged and added to finer maps."""

    def __init__(self, in_channels: tuple[int, ...], features: int):
        super().__init__()
        for number, channels in enumerate(in_channels, start=1):
            self.add_module(f"layer{number}_rn", nn.Conv2d(channels, features, 3, padding=1, bias=False))
            self.add_module(f"refinenet{number}", FusionBlock(features, merges=number < 4))

    def forward(self, maps: list[torch.Tensor], finest: tuple[int, int] | None) -> list[torch.Tensor]:
        first, second, third, fourth = (
            getattr(self, f"layer{number}_rn")(features) for number, features in enumerate(maps, start=1)
        )
        doubled = tuple(2 * side for side in first.shape[-2:])
        path_4 = self.refinenet4(fourth, None, third.shape[-2:])
        path_3 = self.refinenet3(third, path_4, second.shape[-2:])
        path_2 = self.refinenet2(second, path_3, first.shape[-2:])
        path_1 = self.refinenet1(first, path_2, finest or doubled)
        return [path_1, path_2, path_3, path_4]


class FusionBlock(nn.Module):
    """Refine a map, add the coarser path to it, refine again, enlarge to `size`.

    The 1×1 convolution stands before the enlargement: bilinear weights sum to one, so the order changes nothing but the
    cost. The coarsest block has nothing to merge and therefore no first unit.
    """

    def __init__(self, features: int, merges: bool):
        super().__init__()
        self.resConfUnit1 = ResidualUnit(features) if merges else None
        self.resConfUnit2 = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, features: torch.Tensor, coarser: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        if coarser is not None:
            features = self.resConfUnit1(features) + coarser
        return resize(self.out_conv(self.resConfUnit2(features)), size)


class DisparityHead(nn.Module):
    """One fused path B×F×h×w → logits B×1×size: convolution, enlargement, two more convolutions."""

    def __init__(self, config: DepthConfig):
        super().__init__()
        half = config.features // 2
        layers = {  # keys are the places in the published sequence; 1 and 3 hold no parameters
            "0": nn.Conv2d(config.features, half, 3, padding=1),
            "2": nn.Conv2d(half, config.head_channels, 3, padding=1),
            "4": nn.Conv2d(config.head_channels, 1, 1),
        }
        self.head = nn.ModuleDict(layers)
        start_at(self.head["4"], config.initial_disparity)

    def forward(self, path: torch.Tensor, fine: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        enlarged = resize(self.head["0"](path), size)
        return self.head["4"](F.relu(self.head["2"](enlarged)))


class SharpHead(nn.Module):
    """Finest path and the stem's features, both at half resolution, → logits B×1×size by four sub-pixels per position.

    Convolutions run at half resolution, where they are cheap; edges come from the stem, which has seen every pixel.
    """

    def __init__(self, config: DepthConfig, stem_channels: int):
        super().__init__()
        self.merge = nn.Conv2d(config.features + stem_channels, config.features, 3, padding=1)
        self.refine = nn.Conv2d(config.features, config.head_channels, 3, padding=1)
        self.subpixels = nn.Conv2d(config.head_channels, 4, 1)
        with torch.no_grad():  # four equal sub-pixels to start with: no checkerboard
            self.subpixels.weight.copy_(self.subpixels.weight[:1].expand_as(self.subpixels.weight).clone())
        start_at(self.subpixels, config.initial_disparity)

    def forward(self, path: torch.Tensor, fine: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        merged = F.relu(self.merge(torch.cat([path, fine], dim=1)))
        logits = F.pixel_shuffle(self.subpixels(F.relu(self.refine(merged))), 2)
        return logits if tuple(logits.shape[-2:]) == size else resize(logits, size)


def preset(config: DepthConfig | str) -> DepthConfig:
    """A preset by name, or the config itself."""
    if isinstance(config, DepthConfig):
        return config
    if config not in PRESETS:
        raise ValueError(f"no depth preset {config!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[config]


def resize(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear with corners aligned, as the published DPT weights expect."""
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=True)


def start_at(conv: nn.Conv2d, disparity: float) -> None:
    """Set the bias so that zero features give this disparity after the sigmoid."""
    nn.init.constant_(conv.bias, math.log(disparity / (1.0 - disparity)))


def inverse_depth(disparity: torch.Tensor, min_depth: float, max_depth: float) -> torch.Tensor:
    """Disparity in (0,1) → inverse depth [1/m]: 0 is `max_depth`, 1 is `min_depth`."""
    return 1.0 / max_depth + (1.0 / min_depth - 1.0 / max_depth) * disparity


def depth_from_disparity(disparity: torch.Tensor, min_depth: float, max_depth: float) -> torch.Tensor:
    """Disparity in (0,1) → depth [m] between `min_depth` and `max_depth`."""
    return 1.0 / inverse_depth(disparity, min_depth, max_depth)


def disparity_from_depth(depth: torch.Tensor, min_depth: float, max_depth: float) -> torch.Tensor:
    """Depth [m] → disparity in (0,1); the inverse of `depth_from_disparity`."""
    return (1.0 / depth - 1.0 / max_depth) / (1.0 / min_depth - 1.0 / max_depth)
