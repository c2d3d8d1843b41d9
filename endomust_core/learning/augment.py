"""Augmentation of image batches on the fly: one crop, flip and colour per sample.

Images B×3×H×W in [0,1], depth B×1×H×W [m].
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class View:
    """What was cut out of every image of a batch: half sizes and centre (B,) in units of the half image, and the flips
    (±1).
    """

    half_x: torch.Tensor
    half_y: torch.Tensor
    centre_x: torch.Tensor
    centre_y: torch.Tensor
    flip_x: torch.Tensor
    flip_y: torch.Tensor

    def grid(self, size):
        """Sampling positions B×h×w×2 for `grid_sample(align_corners=False)`."""
        height, width = size
        device = self.half_x.device
        y = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
        x = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
        gx = self.centre_x[:, None] + self.half_x[:, None] * self.flip_x[:, None] * x
        gy = self.centre_y[:, None] + self.half_y[:, None] * self.flip_y[:, None] * y
        batch = gx.shape[0]
        return torch.stack((gx[:, None].expand(batch, height, width), gy[:, :, None].expand(batch, height, width)), -1)

    def to(self, device):
        """The same view with its numbers on a device."""
        return View(*(getattr(self, field.name).to(device) for field in fields(self)))

    def repeated(self, times):
        """The same cuts so many times, one after the other: (B,) → (times B,)."""
        return View(*(getattr(self, field.name).repeat(times) for field in fields(self)))

    def intrinsics(self, k):
        """fx/W, fy/H, cx/W, cy/H (B, 4) of the original → of the cut, before any flip's effect on motion (see
        `mirror`).
        """
        cx = (2 * k[:, 2] - 1 - self.centre_x) / self.half_x * self.flip_x
        cy = (2 * k[:, 3] - 1 - self.centre_y) / self.half_y * self.flip_y
        return torch.stack((k[:, 0] / self.half_x, k[:, 1] / self.half_y, (cx + 1) / 2, (cy + 1) / 2), -1)

    def mirror(self, transforms):
        """The motion (B, 4, 4) as the flipped cameras see it: conjugation with diag(±1, ±1, 1)."""
        signs = torch.stack(
            (self.flip_x, self.flip_y, torch.ones_like(self.flip_x), torch.ones_like(self.flip_x)), -1
        ).to(transforms)
        return transforms * signs[:, :, None] * signs[:, None, :]


def random_view(batch, smallest, stretch, generator):
    """Random crops of `smallest`..1 of the image, their aspect stretched by up to `stretch`, flipped either way."""
    u = lambda low, high: low + (high - low) * torch.rand(batch, generator=generator)  # noqa: E731
    size = u(smallest, 1.0)
    ratio = torch.exp(u(-math.log(stretch), math.log(stretch)) / 2)
    half_x, half_y = (size * ratio).clamp(max=1.0), (size / ratio).clamp(max=1.0)
    sign = lambda: torch.where(u(0, 1) < 0.5, -1.0, 1.0)  # noqa: E731
    return View(half_x, half_y, (1 - half_x) * u(-1, 1), (1 - half_y) * u(-1, 1), sign(), sign())


def cut(images, view, size, mode="bilinear"):
    """Resample B×C×H×W to B×C×size; outside is the border's value."""
    return F.grid_sample(
        images, view.grid(size).to(images.dtype), mode=mode, padding_mode="border", align_corners=False
    )


class Colour:
    """A random photometric change per sample, the same for every image of that sample.

    Gain, gamma, colour mixing, noise and blur. Every number is drawn on the CPU, so that they are the same on every
    device; the noise itself is drawn where the images are.
    """

    def __init__(self, batch, strength, generator, device="cpu"):
        def u(low, high, *shape):
            return (low + (high - low) * torch.rand(batch, *shape, generator=generator)).to(device)

        self.generator, self.strength = generator, strength
        if torch.device(device).type != "cpu":
            seed = int(torch.randint(2**31, (), generator=generator))
            self.generator = torch.Generator(device).manual_seed(seed)
        self.gain = torch.exp(strength * u(-0.45, 0.40, 1, 1, 1))
        self.balance = torch.exp(strength * u(-0.25, 0.25, 3, 1, 1))
        self.gamma = torch.exp(strength * u(-0.25, 0.25, 1, 1, 1))
        grey = (u(0, 1, 1, 1) < 0.15 * strength).float() * u(0.5, 1, 1, 1)
        saturation = torch.exp(strength * u(-0.5, 0.4, 1, 1)) * (1 - grey)
        mean = torch.tensor((0.35, 0.45, 0.20), device=device).expand(3, 3)
        self.mix = torch.eye(3, device=device) * saturation + mean * (1 - saturation)
        self.noise = u(0, 0.02 * strength, 1, 1, 1) * (u(0, 1, 1, 1, 1) < 0.5)
        self.soft = u(0, 1, 1, 1, 1) < 0.25 * strength
        self.lift = strength * u(-0.02, 0.04, 1, 1, 1)

    def __call__(self, images):
        x = torch.einsum("bij,bjhw->bihw", self.mix, images) * self.gain * self.balance
        x = x.clamp(1e-4, 1) ** self.gamma + self.lift
        blurred = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        x = torch.where(self.soft, blurred, x)
        return (x + self.noise * torch.randn(x.shape, generator=self.generator, device=x.device)).clamp(0, 1)


def field_stop(fov, generator, share=0.25):
    """Add a round black border of random size and place to a share of the samples.

    Fov B×1×H×W bool → the same, smaller.
    """
    batch, _, height, width = fov.shape

    def u(low, high):
        return (low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator)).to(fov.device)

    y = torch.linspace(-1, 1, height, device=fov.device).view(1, 1, -1, 1) - u(-0.15, 0.15)
    x = (torch.linspace(-1, 1, width, device=fov.device).view(1, 1, 1, -1) - u(-0.15, 0.15)) * u(0.9, 1.4)
    inside = x * x + y * y < u(0.85, 1.25) ** 2
    return fov & (inside | (u(0, 1) > share))
