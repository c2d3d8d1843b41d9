"""Depth Anything as published: RGB B×3×H×W in [0,1] → relative inverse depth B×1×H×W ≥ 0, scale and offset unknown.

Its head has the layers of our finest disparity head and ends in a ReLU instead of a sigmoid with a depth range, so the
same names serve.
"""

import torch
import torch.nn.functional as F

from endomust_core.learning.networks.depth import DepthConfig, DepthNetwork


class RelativeDepth(DepthNetwork):
    """forward(image; H, W multiples of 14) → {0: relative inverse depth B×1×H×W}; 0 is as far as it can say.

    The depth range of the config is nominal. Raises ValueError for a conv stem, which no published network has.
    """

    def __init__(self, config: DepthConfig):
        if config.patch_stem != "linear":
            raise ValueError(f"patch_stem is {config.patch_stem!r}; Depth Anything has the linear one")
        super().__init__(config)
        for number in (2, 3, 4):
            delattr(self.depth_head, f"conv_depth_{number}")

    def forward(
        self, image: torch.Tensor, scales: tuple[int, ...] = (0,), size: tuple[int, int] | None = None
    ) -> dict[int, torch.Tensor]:
        if tuple(scales) != (0,):
            raise ValueError(f"scales {scales} asked for; Depth Anything has scale 0 only")
        maps, _ = self.encoder(self.normalize(image))
        finest = self.depth_head.fuse(maps)[0]
        return {0: F.relu(self.depth_head.conv_depth_1(finest, None, size or tuple(image.shape[-2:])))}
