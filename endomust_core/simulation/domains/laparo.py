"""Abdomen: organs, bowel loops, blood and char under a tilted laparoscope, with moving instruments. Lengths mm."""

import math
import random

import torch
import torch.nn.functional as F

from endomust_core.simulation.domains.drawing import blend, draw_appearance, draw_barrel, draw_look, draw_waves, rgb
from endomust_core.simulation.instruments import Instrument
from endomust_core.simulation.optics import Lens
from endomust_core.simulation.renderer import Scene, look_at
from endomust_core.simulation.surfaces import Plane
from endomust_core.simulation.textures import TAU, spectral_noise, vessels

ORGANS = (
    (0.21, 0.035, 0.028),
    (0.66, 0.38, 0.10),
    (0.52, 0.14, 0.12),
    (0.62, 0.33, 0.15),
    (0.34, 0.075, 0.06),
    (0.60, 0.42, 0.34),
)


def _abdomen(rng, g, size, shape):
    """Organ relief (V, U) [mm towards the camera is smaller] and the softmax weights of its layers' colours."""
    per = lambda d: torch.remainder(d + size / 2, size) - size / 2  # noqa: E731
    extent = (size, size)
    x = (((torch.arange(shape[1]) + 0.5) / shape[1] - 0.5) * size)[None]
    y = (((torch.arange(shape[0]) + 0.5) / shape[0] - 0.5) * size)[:, None]
    layers = [108 + rng.uniform(2, 8) * spectral_noise(shape, extent, (12.0, 90.0), g, 1.8)]
    colours = [(rng.uniform(0.45, 0.65), rng.uniform(0.18, 0.3), rng.uniform(0.14, 0.26))]
    if rng.random() < 0.5:  # bowel: rounded loops along a warped wave, tileable because the wave numbers are whole
        kx, ky = rng.choice(((3, 1), (2, 3), (4, 2), (1, 4), (3, 3)))
        phase = TAU * (kx * x + ky * y) / size + rng.uniform(0.8, 2.0) * spectral_noise(
            shape, extent, (40.0, 150.0), g, 1.8
        )
        loops = torch.cos(phase / 2).abs().clamp(min=1e-3) ** 0.6
        layers.append(116 - rng.uniform(14, 26) * loops + 0.4 * spectral_noise(shape, extent, (3.0, 12.0), g))
        colours.append((rng.uniform(0.55, 0.7), rng.uniform(0.28, 0.4), rng.uniform(0.2, 0.32)))
    for _ in range(rng.randint(4, 10)):
        cx, cy = rng.uniform(-0.5, 0.5) * size, rng.uniform(-0.5, 0.5) * size
        r, aspect, turn = rng.uniform(16, 46), rng.uniform(0.35, 1.6), rng.uniform(0, TAU)
        dx, dy = per(x - cx), per(y - cy)
        wobble = 1 + 0.12 * spectral_noise(shape, extent, (20.0, 80.0), g, 1.5)
        a = (dx * math.cos(turn) + dy * math.sin(turn)) / (r * wobble)
        b = (-dx * math.sin(turn) + dy * math.cos(turn)) / (r * aspect * wobble)
        q = a * a + b * b
        dome = 112 - rng.uniform(16, 48) * torch.sqrt((1 - q).clamp(min=0) + 1e-6) ** 0.8
        rough = rng.choice((0.3, 0.5, 1.4))
        layers.append(
            torch.where(q < 1, dome, torch.full_like(dome, 132.0))
            + rough * spectral_noise(shape, extent, (3.0, 16.0), g)
        )
        colour = ORGANS[rng.randrange(len(ORGANS))]
        colours.append(tuple(c * rng.uniform(0.8, 1.25) for c in colour))
    stack = torch.stack(layers)
    height = -1.6 * torch.logsumexp(-stack / 1.6, 0)
    height = F.avg_pool2d(F.pad(height[None, None], (2,) * 4, mode="circular"), 5, 1)[0, 0]
    return height, torch.softmax(-stack / 0.8, 0), colours


def laparo(seed, detail=1024):
    rng, g = random.Random(f"laparo{seed}"), torch.Generator().manual_seed(seed + 1_234_000)
    size, shape = 220.0, (512, 512)
    extent = (size, size)
    height, weights, colours = _abdomen(rng, g, size, shape)
    shape = (detail, detail)
    weights = F.interpolate(weights[None], size=shape, mode="bilinear", align_corners=False)[0]
    albedo = torch.einsum("lvu,lc->cvu", weights, torch.tensor(colours))
    mottle, grain = spectral_noise(shape, extent, (2.0, 24.0), g), spectral_noise(shape, extent, (0.6, 2.0), g)
    veins = vessels(shape, extent, rng.uniform(18, 40), rng.uniform(0.04, 0.09), g, 4)
    bright = 0.35 + 0.65 * torch.sigmoid(12 * (albedo.mean(0) - 0.22))
    albedo = albedo * (1 + rng.uniform(0.06, 0.16) * mottle + rng.uniform(0.04, 0.12) * grain)
    albedo = blend(albedo, rgb(0.26, 0.02, 0.03), rng.uniform(0.4, 0.9) * veins * bright)
    blood = torch.sigmoid(6 * (spectral_noise(shape, extent, (8.0, 60.0), g, 1.5) - rng.uniform(0.9, 2.5)))
    albedo = blend(albedo, rgb(0.24, 0.012, 0.012), 0.7 * blood)
    char = torch.sigmoid(8 * (spectral_noise(shape, extent, (3.0, 20.0), g) - rng.uniform(1.8, 3.5)))
    albedo = blend(albedo, rgb(0.05, 0.03, 0.02), 0.6 * char)
    bump = 0.6 * spectral_noise(shape, extent, (1.5, 8.0), g) + 0.4 * grain + 0.3 * veins
    gloss = torch.sigmoid(2.0 * spectral_noise(shape, extent, (3.0, 30.0), g) + 0.1)
    appearance, texel = draw_appearance(albedo, bump, gloss, extent, rng.uniform(0.04, 0.22))
    surface = Plane(height, size, (rng.uniform(0.0, 3.0), rng.uniform(0.2, 0.35)))

    # The camera stands off at 40-100 mm from the mid surface (z about 95), tilted 8-45 degrees, and orbits slowly.
    distance, tilt, heading = rng.uniform(40, 100), math.radians(rng.uniform(8, 45)), rng.uniform(0, TAU)
    aim = (rng.uniform(-40, 40), rng.uniform(-40, 40))
    sway, speed, wave = rng.uniform(3, 12), rng.uniform(0.4, 1.0), draw_waves(rng, 6)

    def pose(t):
        t = t * speed
        target = torch.tensor((aim[0] + 8 * wave[0](t), aim[1] + 8 * wave[1](t), 95.0))
        angle, lean = heading + 0.08 * wave[2](t), tilt + 0.05 * wave[3](t)
        away = distance + 6 * wave[4](t)
        offset = (
            torch.tensor((math.sin(lean) * math.cos(angle), math.sin(lean) * math.sin(angle), -math.cos(lean))) * away
        )
        drift = torch.tensor((sway * wave[5](t), sway * wave[0](t + 1), 0.0))
        return look_at(target + offset + drift, target + drift, 0.15 * wave[1](t + 2))

    tools = tuple(_instrument(rng, pose, i, surface) for i in range(rng.choice((0, 1, 2, 2))))
    focal = rng.choice((0.82, rng.uniform(0.62, 1.05)))
    lens = Lens(focal=focal, border=rng.choice(("none", "none", "circle")), border_size=rng.uniform(1.0, 1.45),
                k1=draw_barrel(rng, focal), offset=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)))  # fmt: skip
    lights = rng.choice((((4.0, 0, 0), (-4.0, 0, 0)), ((3.0, 3.0, 0.0),), ((0.0, 5.0, 0.0), (0.0, -5.0, 0.0))))
    look = draw_look(rng, lights=lights, spot=2.5,
                 specular=1.1, gloss=70.0, vignette=0.55, exposure_target=0.58, smoke=0.2)  # fmt: skip
    return Scene("laparo", surface, appearance, texel, look, lens, tools, pose, 300.0, 0.7)


def _instrument(rng, pose, number, surface):
    """An instrument that enters from the side of the first view and works near its middle, in front of the tissue."""
    start = pose(0.0)
    side = 1 if number % 2 else -1
    reach = torch.tensor(
        (side * rng.uniform(2, 16), rng.uniform(-10, 12), rng.uniform(0.5, 0.8) * _clear_depth(surface, start))
    )
    entry = torch.tensor((side * rng.uniform(70, 110), rng.uniform(30, 80), rng.uniform(-5, 25)))
    world = lambda p: tuple((start[:3, :3] @ p + start[:3, 3]).tolist())  # noqa: E731
    amplitude = (rng.uniform(3, 9), rng.uniform(3, 8), rng.uniform(2, 5))
    period = (rng.uniform(2.2, 4.0), rng.uniform(1.8, 3.5), rng.uniform(2.5, 4.5))
    return Instrument(world(entry), world(reach), amplitude, period, 1.3 * number, rng.uniform(2.5, 4.2))


def _clear_depth(surface, pose):
    """Free distance [mm] along the optical axis at the first view."""
    for depth in range(10, 200, 2):
        p = pose[:3, 2] * depth + pose[:3, 3]
        if surface.clearance(p[0:1], p[1:2], p[2:3], 0.0) < 0:
            return float(depth)
    return 200.0
