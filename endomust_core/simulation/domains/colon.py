"""Colon: a bent tube with partial haustral folds, polyps and peristalsis. Lengths mm, rates Hz, speeds mm/s."""

import math
import random

import torch

from endomust_core.simulation.domains.drawing import blend, draw_appearance, draw_barrel, draw_look, draw_waves, rgb
from endomust_core.simulation.optics import Lens, Look
from endomust_core.simulation.renderer import Scene, look_at
from endomust_core.simulation.surfaces import Tube
from endomust_core.simulation.textures import TAU, spectral_noise, vessels


def colon(seed, detail=1024):
    rng, g = random.Random(f"colon{seed}"), torch.Generator().manual_seed(seed)
    length, radius = 320.0, rng.uniform(15.0, 26.0)
    extent, shape = (length, TAU * radius), (1024, 512)
    theta = (torch.arange(shape[1]) * (TAU / shape[1]))[None]
    s = (torch.arange(shape[0]) * (length / shape[0]))[:, None]
    lobes = rng.choice((2, 3, 3))
    r = radius * (
        1 + rng.uniform(0.03, 0.10) * torch.cos(lobes * theta + 0.6 * torch.sin(TAU * s / length) + rng.uniform(0, TAU))
    )
    r = r + rng.uniform(0.008, 0.05) * radius * spectral_noise(shape, extent, (5.0, 40.0), g, 1.5)
    spacing, depth = rng.uniform(12.0, 26.0), rng.uniform(0.15, 0.45)
    z = 4.0
    while z < length - 5:  # haustral folds: partial rings
        amplitude, width = depth * radius * rng.uniform(0.5, 1.2), rng.uniform(1.8, 4.0)
        phase, tilt = rng.uniform(0, TAU), rng.gauss(0, 5)
        arc = rng.uniform(0.1, 0.5) + 0.6 * torch.sigmoid(5 * (torch.cos(theta - phase) + 0.35))
        ds = torch.remainder(s - z - tilt * torch.cos(theta - phase) + length / 2, length) - length / 2
        r = r - amplitude * arc * torch.exp(-((ds / width) ** 2))
        z += spacing * rng.uniform(0.6, 1.4)
    for _ in range(rng.randint(0, 8)):  # polyps
        at, along, size = rng.uniform(0, TAU), rng.uniform(0, length), rng.uniform(1.5, 4.5)
        across = (torch.remainder(theta - at + math.pi, TAU) - math.pi) * radius
        r = r - 1.2 * size * torch.exp(-(((across**2 + (s - along) ** 2) / size**2) ** 2))
    r = r.clamp(min=0.28 * radius)
    shape = (detail, detail // 2)
    base = rgb(rng.uniform(0.45, 0.75), rng.uniform(0.16, 0.32), rng.uniform(0.08, 0.22))
    mottle, grain = spectral_noise(shape, extent, (3.0, 30.0), g), spectral_noise(shape, extent, (0.6, 2.0), g)
    veins = vessels(shape, extent, rng.uniform(14, 30), rng.uniform(0.03, 0.08), g)
    pale = torch.sigmoid(3 * spectral_noise(shape, extent, (4.0, 16.0), g) - 2.2)
    rich = rng.choice((0.25, 1.0, 1.0))  # some mucosa is almost without texture
    albedo = base * (
        1 + rich * rgb(0.7, 1.2, 1.3) * (rng.uniform(0.04, 0.16) * mottle + rng.uniform(0.02, 0.08) * grain)
    )
    albedo = blend(albedo, rgb(0.40, 0.055, 0.035), rich * rng.uniform(0.2, 0.9) * veins)
    albedo = blend(albedo, rgb(0.70, 0.36, 0.20), rng.uniform(0.0, 0.5) * pale)
    bump = rich * (0.55 * spectral_noise(shape, extent, (1.0, 6.0), g) + 0.25 * grain + 0.25 * veins)
    gloss = torch.sigmoid(1.5 * spectral_noise(shape, extent, (3.0, 24.0), g) + 0.2)
    appearance, texel = draw_appearance(albedo, bump, gloss, extent, 0.10)
    pulse = (rng.uniform(0.0, 0.05), rng.uniform(50, 90), rng.uniform(0.1, 0.3))
    bend = (rng.uniform(4, 20), 160.0, rng.uniform(4, 14), 320.0)
    surface = Tube(r, length, radius, bend, pulse)
    start, speed, wander, gaze = rng.uniform(0, length), rng.uniform(-8, 22), 0.16 * radius, rng.uniform(0.04, 0.35)
    wave = draw_waves(rng, 5)

    def pose(t):
        z = start + speed * t
        (cx, cy), (ax, ay) = surface.centre(z), surface.centre(z + radius)
        position = torch.tensor((cx + wander * wave[0](t), cy + wander * wave[1](t), z))
        target = torch.tensor((ax + radius * gaze * wave[2](t), ay + radius * gaze * wave[3](t), z + radius))
        return look_at(position, target, 0.4 * wave[4](t))

    wide = rng.uniform(0.44, 0.68)
    lens = Lens(
        focal=wide,
        k1=draw_barrel(rng, wide),
        offset=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)),
        border=rng.choice(("octagon", "octagon", "none", "circle")),
        border_size=rng.uniform(0.95, 1.2),
    )
    look = draw_look(
        rng,
        vignette=0.6,
        lights=rng.choice((Look.lights, ((3.0, 1.5, 0.0),), ((2.5, 2.0, 0.0), (-2.5, 2.0, 0.0), (0.0, -3.0, 0.0)))),
        smoke=0.05,
    )
    return Scene("colon", surface, appearance, texel, look, lens, (), pose, 170.0, 0.35)
