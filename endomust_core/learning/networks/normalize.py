"""Colour normalisation in front of a network: RGB in [0,1], B×3×H×W → the range the encoder was trained on."""

import torch
from torch import nn

STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class NormalizeRGB(nn.Module):
    """Subtract a mean and divide by a deviation per channel; `none` passes the image through untouched.

    The choice belongs to the weights (converted EndoMUST weights expect raw [0,1], ImageNet encoders do not), so it is
    part of the network's config and never guessed. The statistics are no part of the state dict.
    """

    def __init__(self, kind: str):
        super().__init__()
        if kind not in STATISTICS:
            raise ValueError(f"normalization is {kind!r}; choose one of {', '.join(STATISTICS)}")
        self.kind = kind
        mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in STATISTICS[kind])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if self.kind == "none" else (image - self.mean) / self.std
