"""Light and camera of the simulated endoscope: what leaves the lamp, what the sensor makes of it.

Images are (C, H, W), linear light.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Look:
    """Photometry of one sequence; `domains` draws it. Lengths in mm, times in frames of auto-exposure lag."""

    lights: tuple = ((2.5, 0.5, 0.0), (-2.5, 0.5, 0.0))  # positions in the camera frame
    spot: float = 1.5  # emission falls as cos^spot off the axis
    ambient: float = 0.06  # share of light that bounced once
    specular: float = 0.9
    gloss: float = 90.0  # Blinn-Phong exponent
    wrap: float = 0.25  # light that creeps round the terminator (subsurface)
    bump: float = 1.0
    vignette: float = 0.5
    exposure_target: float = 0.62  # display value the bright quantile is driven to
    exposure_quantile: float = 0.85
    exposure_lag: float = 0.6  # 0 follows at once
    gamma: float = 2.2
    white_balance: tuple = (1.0, 0.97, 0.95)
    psf: float = 0.6  # Gaussian blur [pixels at 320 columns]
    shot_noise: float = 2.5e-4
    read_noise: float = 1.0e-3
    shutter: float = 0.3  # fraction of the frame interval that smears motion
    smoke: float = 0.0  # extinction [1/m] of an additive veil


@dataclass(frozen=True)
class Lens:
    """Camera of one sequence, relative to its image size so that any resolution may be asked for."""

    focal: float = 0.6  # fx / width
    aspect: float = 1.0  # fy / fx
    offset: tuple = (0.0, 0.0)  # principal point off centre / width
    k1: float = 0.0
    k2: float = 0.0
    border: str = "none"  # none | circle | octagon
    border_size: float = 0.98


def distort(lens, x, y):
    """Normalised ideal → distorted image coordinates (Brown, radial)."""
    r2 = x * x + y * y
    s = 1 + lens.k1 * r2 + lens.k2 * r2 * r2
    return x * s, y * s


def undistort(lens, xd, yd, iterations=12):
    """Inverse of `distort` by fixed point."""
    x, y = xd, yd
    for _ in range(iterations):
        r2 = x * x + y * y
        s = 1 + lens.k1 * r2 + lens.k2 * r2 * r2
        x, y = xd / s, yd / s
    return x, y


def field_of_view(lens, height, width):
    """The lit window of the endoscope, (H, W) in [0, 1] with a soft edge."""
    v, u = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    a, b = (u + 0.5 - width / 2).abs(), (v + 0.5 - height / 2).abs()
    soft = 0.25 * min(height, width)
    if lens.border == "circle":
        return torch.sigmoid((1 - torch.sqrt(a * a + b * b) / (min(height, width) / 2 * lens.border_size)) * soft)
    if lens.border == "octagon":
        return torch.sigmoid((1.64 * lens.border_size - a / (width / 2) - b / (height / 2)) * soft)
    return torch.ones(height, width)


def illuminate(look, points, normals, shiny_normals, view, gloss, rotation, origin, occluded):
    """Diffuse and specular irradiance (N,) at surface points from the lamps beside the lens.

    Each lamp obeys the inverse-square law with a cos^spot beam;
    occluded(lamp position) → (N,) bool says who stands in shadow.
    """
    diffuse = torch.zeros(points.shape[0], device=points.device)
    specular = torch.zeros_like(diffuse)
    for lamp in look.lights:
        position = origin + rotation @ torch.tensor(lamp, device=points.device)
        to_lamp = position - points
        d2 = (to_lamp * to_lamp).sum(-1).clamp(min=1.0)
        to_lamp = to_lamp / torch.sqrt(d2)[:, None]
        beam = (-(to_lamp @ rotation[:, 2])).clamp(min=0) ** look.spot / d2
        beam = torch.where(occluded(position), 0.08 * beam, beam)
        cosine = (normals * to_lamp).sum(-1)
        diffuse += beam * ((cosine + look.wrap) / (1 + look.wrap)).clamp(min=0)
        half = F.normalize(to_lamp + view, dim=-1)
        specular += beam * (shiny_normals * half).sum(-1).clamp(min=0) ** look.gloss * ((look.gloss + 8) / 25.0)
    count = len(look.lights)
    return diffuse / count, specular / count * gloss


def bounce(radiance, strength):
    """One bounce of light in screen space: a wide blur of what the tissue sends back; reddens folds.

    (3, H, W) → (3, H, W).
    """
    height, width = radiance.shape[1:]
    cell = max(4, width // 20)
    small = F.avg_pool2d(radiance[None], cell, ceil_mode=True, count_include_pad=False)
    small = F.avg_pool2d(F.pad(small, (2, 2, 2, 2), mode="replicate"), 5, 1)
    return 4 * strength * F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)[0]


def exposure(look, linear, fov, previous):
    """Auto-exposure gain: drives a bright quantile of the luminance to the target, with lag."""
    weights = torch.tensor((0.299, 0.587, 0.114), device=linear.device).view(3, 1, 1)
    luminance = (linear * weights).sum(0)[fov > 0.5]
    bright = torch.quantile(luminance[:: max(1, luminance.numel() // 8000)], look.exposure_quantile).clamp(min=1e-9)
    wanted = look.exposure_target**2.2 / bright
    return wanted if previous is None else previous**look.exposure_lag * wanted ** (1 - look.exposure_lag)


def _blur(image, sigma):
    if sigma <= 0.05:
        return image
    reach = max(2, math.ceil(2.5 * sigma))
    taps = torch.arange(-reach, reach + 1, device=image.device).float()
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    image = F.conv2d(F.pad(image[None], (reach, reach, 0, 0), mode="replicate"), kernel, groups=3)
    return F.conv2d(F.pad(image, (0, 0, reach, reach), mode="replicate"), kernel.transpose(2, 3), groups=3)[0]


def _smear(image, flow, shutter, taps=2):
    """Motion blur: average along the flow (H, W, 2) [pixels] while the shutter is open."""
    height, width = flow.shape[:2]
    v, u = torch.meshgrid(
        torch.arange(height, device=image.device).float(),
        torch.arange(width, device=image.device).float(),
        indexing="ij",
    )
    total = image.clone()
    for k in range(1, taps + 1):
        x = (u + flow[..., 0] * shutter * k / taps) * (2 / (width - 1)) - 1
        y = (v + flow[..., 1] * shutter * k / taps) * (2 / (height - 1)) - 1
        total += F.grid_sample(image[None], torch.stack((x, y), -1)[None], align_corners=True, padding_mode="border")[0]
    return total / (taps + 1)


def develop(look, linear, flow, fov, generator):
    """Sensor: motion blur, point spread, shot and read noise, highlight knee, gamma, field stop.

    (3, H, W) → uint8 (H, W, 3).
    """
    if flow is not None and look.shutter > 0.02:
        linear = _smear(linear, flow, look.shutter)
    linear = _blur(linear, look.psf * linear.shape[2] / 320)
    noise = torch.randn(linear.shape, generator=generator, device=linear.device)
    linear = linear + noise * torch.sqrt((look.shot_noise * linear).clamp(min=0) + look.read_noise**2)
    x = linear.clamp(min=0)
    x = torch.where(x < 0.8, x, 0.8 + 0.2 * (1 - torch.exp(-(x - 0.8) / 0.2)))
    display = x.clamp(0, 1) ** (1 / look.gamma) * fov
    return (display.permute(1, 2, 0) * 255 + 0.5).to(torch.uint8)
