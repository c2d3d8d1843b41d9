"""Colon: a bent tube with partial haustral folds, polyps and peristalsis. Lengths mm, rates Hz, speeds mm/s."""

import math
import random
from dataclasses import replace

import torch

from endomust_core.simulation.domains import drawing
from endomust_core.simulation.domains.drawing import blend, draw_appearance, draw_barrel, draw_look, draw_waves, rgb
from endomust_core.simulation.optics import Lens, Look
from endomust_core.simulation.renderer import Scene, look_at
from endomust_core.simulation.surfaces import Tube
from endomust_core.simulation.textures import TAU, spectral_noise, vessels

# What pools: bowel preparation, stool water, mucus, blood.
FLUIDS = ((0.42, 0.30, 0.06), (0.35, 0.22, 0.08), (0.55, 0.40, 0.28), (0.30, 0.03, 0.02), (0.30, 0.26, 0.06))


def colon(seed, detail=1024, variety="plain"):
    rng, g = random.Random(f"colon{seed}"), torch.Generator().manual_seed(seed)
    wide = random.Random(f"wide-colon-{seed}") if variety == "wide" else None  # plain scenes never draw from it
    length, radius = 320.0, rng.uniform(15.0, 26.0)
    if wide:
        radius = drawing.log_uniform(wide, 11.0, 32.0)
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
    if wide:
        r, wet = _wide_wall(wide, g, r.clamp(min=0.28 * radius), radius, theta, s, extent)
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
    fine = {}
    if wide:
        wet = drawing.resized(wet, shape)
        albedo, bump, gloss = _wide_mucosa(wide, albedo, bump, gloss, wet, mottle, grain, extent)
        texture, repeats = drawing.wide_fine(wide, g)
        fine = {"fine": texture, "repeats": repeats}
    appearance, texel = draw_appearance(albedo, bump, gloss, extent, 0.10)
    pulse = (rng.uniform(0.0, 0.05), rng.uniform(50, 90), rng.uniform(0.1, 0.3))
    bend = (rng.uniform(4, 20), 160.0, rng.uniform(4, 14), 320.0)
    if wide:
        bend = (wide.uniform(0, 24), 160.0, wide.uniform(0, 16), 320.0)
    surface = Tube(r, length, radius, bend, pulse)
    start, speed, wander, gaze = rng.uniform(0, length), rng.uniform(-8, 22), 0.16 * radius, rng.uniform(0.04, 0.35)
    wave = draw_waves(rng, 5)
    if wide:
        wander, gaze = 0.12 * radius, wide.uniform(0.04, 0.75)

    def pose(t):
        z = start + speed * t
        (cx, cy), (ax, ay) = surface.centre(z), surface.centre(z + radius)
        position = torch.tensor((cx + wander * wave[0](t), cy + wander * wave[1](t), z))
        target = torch.tensor((ax + radius * gaze * wave[2](t), ay + radius * gaze * wave[3](t), z + radius))
        return look_at(position, target, 0.4 * wave[4](t))

    focal = rng.uniform(0.44, 0.68)
    lens = Lens(
        focal=focal,
        k1=draw_barrel(rng, focal),
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
    if not wide:
        return Scene("colon", surface, appearance, texel, look, lens, (), pose, 170.0, 0.35)
    lens = replace(lens, focal=wide.uniform(0.38, 0.70), k1=0.0)
    lens = replace(lens, k1=1.2 * draw_barrel(wide, lens.focal))
    lens = drawing.wide_lens(wide, lens, ("octagon", "octagon", "rounded", "circle", "none"))
    look = drawing.wide_look(wide, look, 4.0, (8.0, 60.0), 0.03)
    tools = ()
    if wide.random() < 0.3:
        kinds = ("forceps", "snare", "tube")
        names = ("steel", "steel", "blue", "green", "ceramic", "black", "gold")
        tools = (drawing.wide_probe(wide, pose, kinds, names, (0.9, 1.5), (3.4, 5.5), (7.0, 30.0)),)
    return Scene("colon", surface, appearance, texel, look, lens, tools, pose, 260.0, 0.35, **fine)


def _wide_wall(rng, g, r, radius, theta, s, extent):
    """Radius map (V, U) with finer relief, diverticula and pools; and where it is wet, (V, U) in [0, 1]."""
    length = extent[0]
    r = r + rng.uniform(0.0, 0.09) * spectral_noise(r.shape, extent, (1.8, 12.0), g, 1.5)
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        at, along, size = rng.uniform(0, TAU), rng.uniform(0, length), rng.uniform(1.8, 3.5)
        across = (torch.remainder(theta - at + math.pi, TAU) - math.pi) * radius
        r = r + 2.5 * size * torch.exp(-(((across**2 + (s - along) ** 2) / size**2) ** 2))
    wet = torch.zeros_like(r)
    if rng.random() < 0.5:  # what has run together: a flat surface across the tube, on one side of it
        side, level = rng.uniform(0, TAU), rng.uniform(0.60, 0.80) * radius
        here = torch.sin(rng.choice((1, 2, 3)) * TAU * s / length + rng.uniform(0, TAU))
        level = level + 0.5 * radius * torch.sigmoid(-9 * (here + rng.uniform(-0.3, 0.6)))
        flat = level / torch.cos(theta - side).clamp(min=0.05)
        wet = torch.sigmoid(4 * (r - flat))
        r = torch.minimum(r, flat)
    return r, wet


def _wide_mucosa(rng, albedo, bump, gloss, wet, mottle, grain, extent):
    """Maps of the appearance with another palette, pools, residue and bubbles, in place of those they are made from."""
    albedo = drawing.wide_palette(rng, albedo)
    if rng.random() < 0.35:  # patches of inflamed, redder mucosa
        red = torch.sigmoid(3 * (drawing.elsewhere(rng, mottle) - rng.uniform(0.0, 1.2)))
        albedo = blend(albedo, rgb(0.45, 0.07, 0.05), rng.uniform(0.2, 0.7) * red)
    if rng.random() < 0.5:
        albedo, gloss = drawing.wide_specks(rng, albedo, gloss, grain, mottle)
    fluid = rng.choice(FLUIDS)
    albedo = blend(albedo, rgb(*fluid), rng.uniform(0.3, 0.9) * wet)
    bump, gloss = bump * (1 - 0.92 * wet), torch.maximum(gloss * rng.uniform(0.7, 1.2), wet)
    if rng.random() < 0.3:
        texel = (extent[0] / bump.shape[0], extent[1] / bump.shape[1])
        drawing.wide_bubbles(rng, albedo, bump, gloss, texel, (0.6, 2.2), 0.10)
    return albedo, bump, gloss
