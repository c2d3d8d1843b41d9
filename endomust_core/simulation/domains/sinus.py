"""Sinus: a narrow tube with septum spur and hanging turbinates, seen by a thin scope. Lengths mm."""

import math
import random
from dataclasses import replace

import torch

from endomust_core.simulation.domains import drawing
from endomust_core.simulation.domains.drawing import blend, draw_appearance, draw_barrel, draw_look, draw_waves, rgb
from endomust_core.simulation.optics import Lens, Look
from endomust_core.simulation.renderer import Scene, look_at
from endomust_core.simulation.surfaces import Tube, Turbinate
from endomust_core.simulation.textures import TAU, spectral_noise, vessels


def sinus(seed, detail=1024, variety="plain"):
    rng, g = random.Random(f"sinus{seed}"), torch.Generator().manual_seed(seed + 77_000)
    wide = random.Random(f"wide-sinus-{seed}") if variety == "wide" else None  # plain scenes never draw from it
    length, radius = 128.0, rng.uniform(9.0, 14.0)
    if wide:
        radius = wide.uniform(8.0, 15.0)
    extent, shape = (length, TAU * radius), (1024, 512)
    theta = (torch.arange(shape[1]) * (TAU / shape[1]))[None]
    s = (torch.arange(shape[0]) * (length / shape[0]))[:, None]
    r = radius * (
        1
        + rng.uniform(0.1, 0.25) * torch.cos(2 * (theta - math.pi / 2))
        + 0.05 * torch.sin(3 * theta + TAU * s / length)
    )
    r = r + 0.04 * radius * spectral_noise(shape, extent, (3.0, 25.0), g, 1.5)
    spur = torch.exp(-(torch.cos(theta) - 0.95).clamp(max=0).abs() * 9) * torch.sigmoid(
        6 * torch.sin(2 * TAU * s / length + rng.uniform(0, TAU))
    )
    r = (r - rng.uniform(0.5, 2.5) * spur).clamp(min=0.4 * radius)
    side = rng.choice((1, -1))
    k = radius / 12.0
    turbinates = [
        Turbinate(
            side * k * rng.uniform(0.5, 2.5),
            -k * rng.uniform(5.0, 7.0),
            rng.uniform(13, 22),
            105.0,
            k * rng.uniform(4.0, 5.4),
            rng.uniform(1.1, 1.5),
            0.1,
        ),
        Turbinate(
            side * k * rng.uniform(8.0, 9.8),
            k * rng.uniform(4.0, 6.5),
            rng.uniform(11, 24),
            112.0,
            k * rng.uniform(4.2, 5.6),
            rng.uniform(0.9, 1.1),
            0.4,
        ),
        Turbinate(
            -side * k * rng.uniform(9.0, 10.8),
            k * rng.uniform(-1.0, 4.0),
            rng.uniform(24, 46),
            112.0,
            k * rng.uniform(3.8, 5.2),
            rng.uniform(1.0, 1.3),
            0.7,
        ),
    ][: rng.choice((2, 3, 3))]
    if wide:
        r = (r + wide.uniform(0.0, 0.06) * spectral_noise(shape, extent, (1.2, 8.0), g, 1.5)).clamp(min=0.38 * radius)
    shape = (detail, detail // 2)
    mottle, grain = spectral_noise(shape, extent, (1.5, 14.0), g), spectral_noise(shape, extent, (0.3, 1.0), g)
    veins = vessels(shape, extent, rng.uniform(6, 12), rng.uniform(0.04, 0.09), g)
    facing = (
        (0.5 + 0.5 * torch.cos(torch.linspace(0, TAU, shape[1] + 1)[:-1] - (0 if side < 0 else math.pi))) ** 2
    ).expand(shape)
    red, pink = (
        rgb(rng.uniform(0.45, 0.65), rng.uniform(0.08, 0.2), rng.uniform(0.05, 0.14)),
        rgb(rng.uniform(0.55, 0.75), rng.uniform(0.26, 0.4), rng.uniform(0.2, 0.32)),
    )
    albedo = blend(red, pink, facing) * (1 + rng.uniform(0.05, 0.15) * mottle + rng.uniform(0.02, 0.07) * grain)
    albedo = blend(albedo, rgb(0.40, 0.04, 0.04), rng.uniform(0.3, 0.85) * veins)
    bump = 0.5 * spectral_noise(shape, extent, (0.6, 3.0), g) + 0.25 * veins
    gloss = torch.sigmoid(1.8 * spectral_noise(shape, extent, (2.0, 12.0), g) + 0.3)
    fine = {}
    if wide:
        albedo, bump, gloss = _wide_mucosa(wide, g, albedo, bump, gloss, mottle, grain, extent)
        texture, repeats = drawing.wide_fine(wide, g)
        fine = {"fine": texture, "repeats": repeats}
    appearance, texel = draw_appearance(albedo, bump, gloss, extent, 0.045)
    surface = Tube(r, length, radius, turbinates=tuple(turbinates), lipschitz=0.55)
    wander, gaze, advance, wave = (
        rng.uniform(0.8, 2.2),
        rng.uniform(0.08, 0.3),
        rng.uniform(2.0, 5.0),
        draw_waves(rng, 6),
    )

    if wide:
        wander, gaze, advance = min(1.0, k) * wander, wide.uniform(0.08, 0.45), advance * wide.uniform(0.6, 1.0)

    def pose(t):
        z = advance * wave[5](t)  # in and out, never into a turbinate
        position = torch.tensor((wander * wave[0](t), wander * wave[1](t), z))
        target = torch.tensor((22 * gaze * wave[2](t), 22 * gaze * wave[3](t), z + 22.0))
        return look_at(position, target, 0.25 * wave[4](t))

    focal = rng.uniform(0.52, 0.75)
    lens = Lens(
        focal=focal,
        k1=draw_barrel(rng, focal),
        border=rng.choice(("circle", "circle", "none")),
        border_size=rng.uniform(0.9, 1.25),
    )
    lights = rng.choice((((0.0, 1.6, 0.0), (0.6, -1.2, 0.0)), ((1.2, 1.2, 0.0),), Look.lights))
    look = draw_look(rng, lights=lights, spot=2.0, vignette=0.7,
                 gloss=160.0, specular=1.6, exposure_target=0.66, exposure_quantile=0.9)  # fmt: skip
    if not wide:
        return Scene("sinus", surface, appearance, texel, look, lens, (), pose, 90.0, 0.25)
    lens = replace(lens, focal=wide.uniform(0.48, 0.85), k1=0.0)
    lens = replace(lens, k1=draw_barrel(wide, lens.focal))
    lens = drawing.wide_lens(wide, lens, ("circle", "circle", "circle", "rounded", "none", "octagon"))
    look = drawing.wide_look(wide, look, 2.0, (5.0, 35.0))
    tools = ()
    if wide.random() < 0.3:
        kinds, names = ("shaver", "tube", "forceps"), ("steel", "steel", "steel", "black", "gold", "grey")
        tools = (drawing.wide_probe(wide, pose, kinds, names, (0.8, 1.9), (3.6, 5.0), (8.0, 24.0)),)
    return Scene("sinus", surface, appearance, texel, look, lens, tools, pose, 110.0, 0.25, **fine)


def _wide_mucosa(rng, g, albedo, bump, gloss, mottle, grain, extent):
    """Maps of the appearance with another palette, strands of mucus, pus or blood, crusts and bubbles."""
    albedo = drawing.wide_palette(rng, albedo)
    if rng.random() < 0.5:  # strands run along the tube: noise that is stretched along z
        noise = spectral_noise(bump.shape, (extent[0] * 0.2, extent[1]), (2.0, 12.0), g)
        strand = torch.exp(-((noise / rng.uniform(0.08, 0.3)) ** 2))
        strand = strand * torch.sigmoid(5 * (drawing.elsewhere(rng, mottle) - rng.uniform(0.0, 1.0)))
        colour = rng.choice(((0.66, 0.60, 0.30), (0.60, 0.50, 0.42), (0.55, 0.52, 0.22), (0.70, 0.66, 0.60)))
        albedo = blend(albedo, rgb(*colour), rng.uniform(0.4, 0.9) * strand)
        bump, gloss = bump * (1 - 0.7 * strand) + 2.5 * strand, torch.maximum(gloss, strand)
    if rng.random() < 0.45:  # blood: thin smears to dark pools
        pool = torch.sigmoid(rng.uniform(2.5, 8) * (drawing.elsewhere(rng, mottle) - rng.uniform(0.6, 1.8)))
        albedo = blend(albedo, rgb(rng.uniform(0.14, 0.34), 0.014, 0.012), rng.uniform(0.5, 0.95) * pool)
        bump, gloss = bump * (1 - 0.8 * pool), torch.maximum(gloss, pool)
    if rng.random() < 0.35:
        albedo, gloss = drawing.wide_specks(rng, albedo, gloss, grain, mottle)
    if rng.random() < 0.2:
        texel = (extent[0] / bump.shape[0], extent[1] / bump.shape[1])
        drawing.wide_bubbles(rng, albedo, bump, gloss, texel, (0.3, 1.2), 0.045)
    return albedo, bump, gloss
