"""Light, camera and video processor of the simulated endoscope: what leaves the lamp, what becomes of it in the image.

Images are (C, H, W), linear light until `develop` turns them into display values.
"""

import math
import random
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Processor:
    """What cheap lenses and the camera's electronics add; applied to colour only. Lengths in pixels at 320 columns."""

    focus: float = 0.0  # [mm] distance that is sharp; 0: everything is
    defocus: float = 0.0  # blur of what is twice as far or half as near
    chromatic: float = 0.0  # red goes outwards, blue inwards, so much at the edge
    glare: float = 0.0  # share of the light that spreads over the whole image
    zoom: float = 1.0  # the sensor's columns are so many times fewer than the image's
    contrast: float = 0.0  # strength of an S-shaped tone curve
    black: float = 0.0  # display value that is cut to black
    saturation: float = 1.0
    sharpen: float = 0.0  # edge enhancement with its halos
    sharpen_radius: float = 1.0
    local_contrast: float = 0.0
    interlace: float = 0.0  # part of the motion to the next frame by which every other row lags
    jpeg: int = 0  # quality of the compression, colour at half resolution; 0: none


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
    plume: float = 0.0  # how unevenly the smoke stands over the image
    spread: float = 0.0  # if positive, emission falls as exp(-spread (1 - cos)) instead of cos^spot
    spill: float = math.inf  # what is so many times brighter than the mean sends no more back than that
    processor: Processor | None = None


@dataclass(frozen=True)
class Lens:
    """Camera of one sequence, relative to its image size so that any resolution may be asked for."""

    focal: float = 0.6  # fx / width
    aspect: float = 1.0  # fy / fx
    offset: tuple = (0.0, 0.0)  # principal point off centre / width
    k1: float = 0.0
    k2: float = 0.0
    border: str = "none"  # none | circle | octagon | rounded
    border_size: float = 0.98
    border_offset: tuple = (0.0, 0.0)  # of the lit window / width
    border_level: tuple = (0.0, 0.0, 0.0)  # display colour outside
    marks: int = 0  # seed of text and marks in the border; 0: none


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
    a, b = (u + 0.5 - width / 2), (v + 0.5 - height / 2)
    a, b = (a - lens.border_offset[0] * width).abs(), (b - lens.border_offset[1] * width).abs()
    soft = 0.25 * min(height, width)
    if lens.border == "circle":
        return torch.sigmoid((1 - torch.sqrt(a * a + b * b) / (min(height, width) / 2 * lens.border_size)) * soft)
    if lens.border == "octagon":
        return torch.sigmoid((1.64 * lens.border_size - a / (width / 2) - b / (height / 2)) * soft)
    if lens.border == "rounded":
        corner = 0.12 * width
        x, y = a - 0.5 * lens.border_size * width + corner, b - 0.5 * lens.border_size * height + corner
        outside = torch.sqrt(x.clamp(min=0) ** 2 + y.clamp(min=0) ** 2) + torch.maximum(x, y).clamp(max=0) - corner
        return torch.sigmoid(-2 * outside)
    return torch.ones(height, width)


def surround(lens, fov):
    """What is displayed outside the lit window (H, W): its colour, and a few lines of text and marks, (3, H, W)."""
    height, width = fov.shape
    image = np.empty((height, width, 3), np.uint8)
    image[:] = [round(255 * level) for level in lens.border_level]
    if lens.marks:
        rng = random.Random(lens.marks)
        colour = rng.choice(((200, 200, 200), (180, 180, 60), (80, 180, 100), (120, 120, 120)))
        size, left = rng.uniform(0.0008, 0.0014) * width, round(rng.choice((0.01, 0.72)) * width)
        for line in range(rng.randint(2, 6)):
            text = "".join(rng.choice("0123456789:/. ABDEHLNRT") for _ in range(rng.randint(3, 9)))
            row = round((0.05 + 0.055 * line) * height) if rng.random() < 0.8 else round(0.95 * height)
            cv2.putText(image, text, (left, row), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
        if rng.random() < 0.5:  # the notch that shows which way is up
            x = round(rng.uniform(0.45, 0.55) * width)
            cv2.circle(image, (x, round(0.02 * height)), max(1, round(0.012 * width)), colour, -1)
    marked = torch.from_numpy(image).permute(2, 0, 1).to(fov.device) / 255
    plain = torch.tensor(lens.border_level, device=fov.device).view(3, 1, 1)
    return torch.where(fov < 0.02, marked, plain)


def illuminate(look, points, normals, shiny_normals, view, gloss, rotation, origin, occluded):
    """Diffuse and specular irradiance (N,) at surface points from the lamps beside the lens.

    Each lamp obeys the inverse-square law with a cos^spot or an exponential beam;
    occluded(lamp position) → (N,) bool, or share of it, says who stands in shadow.
    """
    diffuse = torch.zeros(points.shape[0], device=points.device)
    specular = torch.zeros_like(diffuse)
    for lamp in look.lights:
        position = origin + rotation @ torch.tensor(lamp, device=points.device)
        to_lamp = position - points
        d2 = (to_lamp * to_lamp).sum(-1).clamp(min=1.0)
        to_lamp = to_lamp / torch.sqrt(d2)[:, None]
        cosine = -(to_lamp @ rotation[:, 2])
        if look.spread:
            # A lamp's window is no point: within a few of its widths the light hardly grows any more.
            beam = torch.exp(look.spread * (cosine - 1)) / (d2 + 16.0)
        else:
            beam = cosine.clamp(min=0) ** look.spot / d2
        shadow = occluded(position)
        beam = torch.where(shadow, 0.08 * beam, beam) if shadow.dtype == torch.bool else beam * (1 - 0.92 * shadow)
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


def mirrored(radiance, pixels, normals):
    """What a polished surface shows of the scene, (N, 3): light of the image, found where its normal points.

    radiance (3, H, W); pixels (N,) indices of its pixels; normals (N, 3) in the camera frame. Polished surfaces that
    face the lens mirror the dark room behind it, and those that turn away what lies around them.
    """
    height, width = radiance.shape[1:]
    small = F.avg_pool2d(radiance[None], 8, ceil_mode=True, count_include_pad=False)
    small = F.avg_pool2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = (pixels % width) * (2 / width) - 1 + 1.1 * normals[:, 0]
    y = (pixels // width) * (2 / height) - 1 + 1.1 * normals[:, 1]
    seen = F.grid_sample(small, torch.stack((x, y), -1)[None, None], align_corners=False, padding_mode="border")
    return seen[0, :, 0].T * (1 - 0.85 * normals[:, 2:].clamp(max=0) ** 4)


def plume(look, height, width, t, device):
    """How thick the smoke stands in each direction, (1, H, W) with mean about 1; it drifts with time t [s]."""
    y, x = torch.meshgrid(
        torch.linspace(0, 1, height, device=device), torch.linspace(0, 1, width, device=device), indexing="ij"
    )
    drift = 0.35 * t
    billow = torch.sin(5 * x + 2 * torch.sin(3 * y + drift) + drift) + torch.sin(6 * y - 3 * x - 1.3 * drift)
    return torch.exp(0.6 * look.plume * billow - 0.25 * look.plume**2)[None]


def _resample(image, x, y):
    """Sample (C, H, W) at pixels x, y, each (H, W)."""
    height, width = image.shape[1:]
    grid = torch.stack((x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1), -1)[None]
    return F.grid_sample(image[None], grid, align_corners=True, padding_mode="border")[0]


def _pixels(height, width, device):
    return torch.meshgrid(
        torch.arange(height, device=device).float(), torch.arange(width, device=device).float(), indexing="ij"
    )


def _coarse(image, cell):
    """A cheap wide blur: averages of cells, interpolated."""
    small = F.avg_pool2d(image[None], cell, ceil_mode=True, count_include_pad=False)
    return F.interpolate(small, size=image.shape[1:], mode="bilinear", align_corners=False)[0]


def collect(processor, linear, flow, depth):
    """Faults of lens and sensor in linear light: defocus, colour fringes, glare, interlaced rows. (3, H, W) → same.

    depth (H, W) [mm]; flow (H, W, 2) [pixels] or None.
    """
    height, width = linear.shape[1:]
    v, u = _pixels(height, width, linear.device)
    if processor.defocus:
        off = (torch.log2(depth / processor.focus).abs()).clamp(max=1.5)[None]
        linear = torch.lerp(linear, _blur(linear, 1.5 * processor.defocus * width / 320), (off / 1.5) ** 2)
    if processor.chromatic:
        stretch = processor.chromatic * 2 / 320
        x, y = u - (width - 1) / 2, v - (height - 1) / 2
        red = _resample(linear[:1], u - stretch * x, v - stretch * y)
        blue = _resample(linear[2:], u + stretch * x, v + stretch * y)
        linear = torch.cat((red, linear[1:2], blue))
    if processor.glare:
        linear = linear * (1 - processor.glare) + processor.glare * _coarse(linear.clamp(max=3.0), max(8, width // 4))
    if processor.interlace and flow is not None:
        odd = (v % 2) * processor.interlace
        linear = _resample(linear, u + flow[..., 0] * odd, v + flow[..., 1] * odd)
    return linear


def enhance(processor, display):
    """The video processor: tone curve, colour, local contrast, edge enhancement. Display values (3, H, W) → same."""
    width = display.shape[2]
    if processor.zoom > 1:
        size = [round(n / processor.zoom) for n in display.shape[1:]]
        small = F.interpolate(display[None], size=size, mode="area")
        display = F.interpolate(small, size=display.shape[1:], mode="bilinear", align_corners=False)[0]
    if processor.local_contrast:
        display = display + processor.local_contrast * (display - _coarse(display, max(8, width // 12)))
    if processor.sharpen:
        display = display + processor.sharpen * (display - _blur(display, processor.sharpen_radius * width / 320))
    display = (display - processor.black) / (1 - processor.black)
    if processor.saturation != 1:
        grey = (display * torch.tensor((0.299, 0.587, 0.114), device=display.device).view(3, 1, 1)).sum(0)
        display = grey + processor.saturation * (display - grey)
    display = display.clamp(0, 1)
    return display + processor.contrast * display * (1 - display) * (2 * display - 1)


def compress(image, quality):
    """uint8 (H, W, 3) as it comes back from a JPEG of that quality, colour at half resolution."""
    _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]


def develop(look, linear, flow, fov, generator, depth=None, outside=None):
    """Sensor: motion blur, point spread, shot and read noise, highlight knee, gamma, field stop.

    (3, H, W) → uint8 (H, W, 3). A look with a processor also needs depth (H, W) [mm] and what is displayed outside
    the field of view (3, H, W).
    """
    if look.processor:
        linear = collect(look.processor, linear, flow, depth)
    if flow is not None and look.shutter > 0.02:
        linear = _smear(linear, flow, look.shutter)
    linear = _blur(linear, look.psf * linear.shape[2] / 320)
    noise = torch.randn(linear.shape, generator=generator, device=linear.device)
    linear = linear + noise * torch.sqrt((look.shot_noise * linear).clamp(min=0) + look.read_noise**2)
    x = linear.clamp(min=0)
    x = torch.where(x < 0.8, x, 0.8 + 0.2 * (1 - torch.exp(-(x - 0.8) / 0.2)))
    display = x.clamp(0, 1) ** (1 / look.gamma)
    if look.processor:
        display = enhance(look.processor, display)
    display = display * fov
    if outside is not None:
        display = display + outside * (1 - fov)
    image = (display.permute(1, 2, 0) * 255 + 0.5).to(torch.uint8)
    if look.processor and look.processor.jpeg:
        image = torch.from_numpy(compress(image.cpu().numpy(), look.processor.jpeg).copy()).to(image.device)
    return image
