"""Vision transformer, DINOv2 layout: image B×3×H×W (multiples of 14) → B×C×H/14×W/14 maps of chosen blocks.

Convolutional necks may follow any block. Module names follow the published checkpoints (`blocks.3.attn.qkv.weight`,
`blocks.2.residual_.conv1.weight`), so that these load without key surgery. Three stems make a token of a 14×14 patch:
one linear layer, a few convolutions, or a convolutional pyramid whose maps the decoder sees too.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

PATCH = 14
NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention with one fused query/key/value projection. B×N×C → B×N×C."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} does not divide into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, dim))


class Mlp(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch."""

    def __init__(self, dim: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * self.gamma


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel. B×C×H×W → B×C×H×W."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        last = features.permute(0, 2, 3, 1)
        return F.layer_norm(last, self.weight.shape, self.weight, self.bias, NORM_EPS).permute(0, 3, 1, 2)


class ConvNeck(nn.Module):
    """Bottleneck of three convolutions on the patch grid, added to the tokens; starts as the identity (last norm 0)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, hidden, 1, bias=False)
        self.norm1 = ChannelNorm(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.norm2 = ChannelNorm(hidden)
        self.conv3 = nn.Conv2d(hidden, dim, 1, bias=False)
        self.norm3 = ChannelNorm(dim)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.norm3.weight)

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        inner = F.gelu(self.norm1(self.conv1(grid)))
        inner = F.gelu(self.norm2(self.conv2(inner)))
        return grid + self.norm3(self.conv3(inner))


class Block(nn.Module):
    """Pre-norm transformer block, and after it the conv neck where there is one (the class token passes it by)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, layer_scale: float, neck_dim: int | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, mlp_ratio * dim)
        self.ls2 = LayerScale(dim, layer_scale)
        self.residual_ = ConvNeck(dim, neck_dim) if neck_dim else None

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        tokens = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        if self.residual_ is None:
            return tokens
        patches = self.residual_(tokens_to_grid(tokens[:, 1:], grid))
        return torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


class PatchEmbed(nn.Module):
    """One 14×14 convolution per patch: B×3×H×W → B×C×(H/14)×(W/14). Gives no fine features and no maps."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, None, list[torch.Tensor]]:
        return self.proj(image), None, []


class ConvStem(nn.Module):
    """Two 3×3 convolutions at half resolution, then 7×7 patches of them; learns faster from scratch than `PatchEmbed`.

    Also hands out the half-resolution features, B×channels×H/2×W/2, for sharp edges in the decoder.
    """

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.proj = nn.Conv2d(channels, dim, PATCH // 2, stride=PATCH // 2)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        fine = F.relu(self.conv1(image))
        fine = F.relu(self.conv2(fine))
        return self.proj(fine), fine, []


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3×3 convolutions. B×C×H×W → B×C×H×W."""

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.conv2(F.relu(self.conv1(F.relu(features))))


class PyramidStem(nn.Module):
    """Residual 3×3 convolutions at strides 2, 4 and 8; tokens are read from stride 8, the fine maps go to the decoder.

    forward(image B×3×H×W) → (B×dim×H/14×W/14, features at stride 2, [maps at strides 4 and 8]); sizes are rounded up.
    `channels` are the widths at strides 2, 4, 8, `units` the numbers of residual units at strides 4 and 8. Without
    norms, so that there is no running mean to keep, a batch of one trains, and nothing but convolutions is exported;
    instead weights start with the gain of the ReLU and every residual unit as the identity.
    """

    def __init__(self, dim: int, channels: tuple[int, int, int], units: tuple[int, int]):
        super().__init__()
        half, quarter, eighth = channels
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1)
        self.down4 = nn.Conv2d(half, quarter, 3, stride=2, padding=1)
        self.units4 = nn.Sequential(*(ResidualUnit(quarter) for _ in range(units[0])))
        self.down8 = nn.Conv2d(quarter, eighth, 3, stride=2, padding=1)
        self.units8 = nn.Sequential(*(ResidualUnit(eighth) for _ in range(units[1])))
        self.proj = nn.Conv2d(eighth, dim, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for unit in (*self.units4, *self.units8):
            nn.init.zeros_(unit.conv2.weight)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        half = F.relu(self.conv2(F.relu(self.conv1(image))))
        quarter = self.units4(self.down4(half))
        eighth = self.units8(self.down8(F.relu(quarter)))
        grid = tuple(side // PATCH for side in image.shape[-2:])
        sampled = F.interpolate(F.relu(eighth), size=grid, mode="bilinear", align_corners=False)
        return self.proj(sampled), half, [quarter, eighth]


class VisionTransformer(nn.Module):
    """Image → normalised patch tokens of the `taps` blocks, after the maps of the stem if it is a pyramid.

    forward(image B×3×H×W) → ([maps B×c×H/4×W/4 and B×c×H/8×W/8 of a pyramid,] maps B×C×H/14×W/14 in the order of
    `taps`; fine features B×c×H/2×W/2 or None). `stem_channels` 0 is the linear stem; with `pyramid_channels`, widths
    at strides 4 and 8, the stem is a pyramid.
    The position embedding is learned for a square of `pos_grid` patches and is resized bicubically to the actual grid;
    `bake_position` fixes it to one grid, for export. With `checkpointing` the inside of a block is computed again in
    the backward pass instead of kept: less memory for one more forward pass.
    """

    checkpointing = False

    def __init__(
        self,
        dim: int,
        blocks: int,
        heads: int,
        taps: tuple[int, ...],
        necks: tuple[int, ...] = (),
        neck_dim: int = 0,
        pos_grid: int = 37,
        mlp_ratio: int = 4,
        layer_scale: float = 1e-5,
        stem_channels: int = 0,
        pyramid_channels: tuple[int, int] | None = None,
        pyramid_units: tuple[int, int] = (1, 2),
    ):
        super().__init__()
        outside = [index for index in (*taps, *necks) if not 0 <= index < blocks]
        if outside:
            raise ValueError(f"taps or necks {outside} lie outside the {blocks} blocks")
        self.taps = tuple(taps)
        self.grid = (pos_grid, pos_grid)
        if pyramid_channels:
            self.patch_embed = PyramidStem(dim, (stem_channels, *pyramid_channels), pyramid_units)
        else:
            self.patch_embed = ConvStem(dim, stem_channels) if stem_channels else PatchEmbed(dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + pos_grid * pos_grid, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, layer_scale, neck_dim if index in necks else None) for index in range(blocks)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        height, width = image.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(f"image is {height}x{width}; both sides must be multiples of {PATCH}")
        patches, fine, maps = self.patch_embed(image)
        grid = (height // PATCH, width // PATCH)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(image), -1, -1), tokens], dim=1) + self.position(grid)
        tapped = {}
        for index, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, grid, use_reentrant=False)
            else:
                tokens = block(tokens, grid)
            if index in self.taps:
                tapped[index] = tokens_to_grid(self.norm(tokens)[:, 1:], grid)
        return [*maps, *(tapped[index] for index in self.taps)], fine

    def position(self, grid: tuple[int, int]) -> torch.Tensor:
        """Position embedding for a patch grid (h, w): 1×(1+h·w)×C."""
        return self.pos_embed if grid == self.grid else resize_position(self.pos_embed, self.grid, grid)

    def bake_position(self, grid: tuple[int, int]) -> None:
        """Replace the position embedding by its resized form, so that images of `grid` patches need no resizing."""
        self.pos_embed = nn.Parameter(self.position(grid).detach().clone())
        self.grid = grid


def resize_position(embedding: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Resize the patch part of a position embedding 1×(1+N)×C from the `old` to the `new` grid, bicubically.

    DINOv2 adds 0.1 to the new size before taking the scale factor, which shifts the sampling points slightly. Weights
    trained with it expect the same shift.
    """
    token, patches = embedding[:, :1], embedding[:, 1:]
    grid = tokens_to_grid(patches, old)
    scale = [(after + 0.1) / before for after, before in zip(new, old, strict=True)]
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False, recompute_scale_factor=False)
    if tuple(grid.shape[-2:]) != tuple(new):
        raise ValueError(f"position embedding came out as {tuple(grid.shape[-2:])} patches instead of {new}")
    return torch.cat([token, grid.flatten(2).transpose(1, 2)], dim=1)


def tokens_to_grid(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """B×(h·w)×C tokens → B×C×h×w map."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)
