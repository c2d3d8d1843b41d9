"""What the domains share: colours in linear light, appearance maps, random photometry, hand-held motion. Lengths mm.

Functions named `wide_…` draw what only scenes of variety "wide" have, from a generator of their own.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from endomust_core.simulation.instruments import MATERIALS, Instrument
from endomust_core.simulation.optics import Look, Processor
from endomust_core.simulation.textures import TAU, Texture, spectral_noise, vessels


def rgb(*colour):
    return torch.tensor(colour).view(3, 1, 1)


def blend(a, b, weight):
    return a + (b - a) * weight


def draw_appearance(albedo, bump, gloss, extent, bump_height):
    """Maps of albedo (3, V, U), bump and gloss (V, U) → one mip-mapped Texture, and its texel size [mm].

    Its channels are albedo RGB, the two slopes of the bump, gloss.
    """
    rows, columns = bump.shape
    dv, du = extent[0] / rows, extent[1] / columns
    slope_u = (torch.roll(bump, -1, 1) - torch.roll(bump, 1, 1)) * (bump_height / (2 * du))
    slope_v = (torch.roll(bump, -1, 0) - torch.roll(bump, 1, 0)) * (bump_height / (2 * dv))
    maps = torch.cat((albedo.clamp(0.02, 0.95), slope_u[None], slope_v[None], gloss[None]))
    return Texture(maps, levels=5), min(dv, du)


def draw_look(rng, **base):
    """Randomised photometry around a domain's base values."""
    base = {
        "spot": 1.5,
        "vignette": 0.5,
        "specular": 0.9,
        "gloss": 90.0,
        "exposure_target": 0.62,
        "ambient": 0.04,
        **base,
    }
    return Look(
        lights=base.get("lights", Look.lights),
        spot=base["spot"] * rng.uniform(0.5, 1.8),
        ambient=base["ambient"] * rng.uniform(0.2, 2.0),
        specular=base["specular"] * rng.uniform(0.3, 1.6),
        gloss=base["gloss"] * rng.uniform(0.5, 1.8),
        wrap=rng.uniform(0.1, 0.4),
        bump=rng.uniform(0.6, 1.4),
        vignette=base["vignette"] * rng.uniform(0.4, 1.5),
        exposure_target=base["exposure_target"] * rng.uniform(0.8, 1.3),
        exposure_quantile=base.get("exposure_quantile", 0.85) * rng.uniform(0.92, 1.08),
        exposure_lag=rng.uniform(0.3, 0.9),
        gamma=rng.uniform(1.9, 2.4),
        white_balance=(1.0, rng.uniform(0.85, 1.06), rng.uniform(0.78, 1.12)),
        psf=rng.uniform(0.4, 1.0),
        shot_noise=2.5e-4 * rng.uniform(0.4, 2.5),
        read_noise=1e-3 * rng.uniform(0.5, 3.0),
        shutter=rng.uniform(0.0, 0.5),
        smoke=rng.uniform(1.0, 6.0) if rng.random() < base.get("smoke", 0.0) else 0.0,
    )


def draw_barrel(rng, focal):
    """A random barrel distortion k1, or none, for a focal length in image widths.

    It stays invertible out to the corner of a 5:4 image.
    """
    corner2 = (0.5**2 + 0.4**2) / focal**2
    return rng.choice((0.0, -rng.uniform(0.02, 0.10) / corner2))


def draw_waves(rng, count):
    """Slow oscillations for hand-held motion: callables of time with unit amplitude and periods of 1.5 to 5 s."""
    terms = [[(rng.uniform(1.5, 5.0), rng.uniform(0, TAU), w) for w in (0.8, 0.4)] for _ in range(count)]
    return [lambda t, term=term: sum(w * math.sin(TAU * t / p + phase) for p, phase, w in term) for term in terms]


def chance(rng, probability, low, high, otherwise=0.0):
    """A number between low and high, or the other value where the dice say so."""
    value = rng.uniform(low, high)
    return value if rng.random() < probability else otherwise


def log_uniform(rng, low, high):
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def elsewhere(rng, noise):
    """The same tileable map (V, U) shifted at random: as good as a new one, for a hundredth of the time."""
    return torch.roll(noise, (rng.randrange(noise.shape[0]), rng.randrange(noise.shape[1])), (0, 1))


def resized(image, shape):
    """Map (V, U) at another number of texels."""
    return F.interpolate(image[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]


def wide_look(rng, look, reach, focus, smoke=0.0):
    """Photometry of a wide scene from a plain one's. reach: how far lamps sit off the axis; focus: near, far [mm]."""
    lights = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        angle, off = rng.uniform(0, TAU), reach * math.sqrt(rng.uniform(0.05, 1))
        lights.append((off * math.cos(angle), off * math.sin(angle), -rng.uniform(0, reach)))
    warm, tint = rng.gauss(0, 0.06), rng.gauss(0, 0.02)
    usual = rng.random() < 0.75
    processor = Processor(
        focus=log_uniform(rng, *focus),
        defocus=chance(rng, 0.35, 0.3, 1.6),
        chromatic=chance(rng, 0.4, 0.2, 1.2),
        glare=chance(rng, 0.4, 0.01, 0.06),
        zoom=chance(rng, 0.3, 1.1, 1.8, 1.0),
        contrast=rng.uniform(-0.2, 0.6),
        black=rng.uniform(0.0, 0.06),
        saturation=rng.uniform(0.85, 1.35),
        sharpen=chance(rng, 0.6, 0.2, 1.3),
        sharpen_radius=rng.uniform(0.6, 2.0),
        local_contrast=chance(rng, 0.25, 0.1, 0.45),
        interlace=chance(rng, 0.08, 0.1, 0.4),
        jpeg=round(chance(rng, 0.75, 25, 95)),
    )
    return replace(
        look,
        lights=tuple(lights),
        spread=log_uniform(rng, 0.5, 6.0),
        spill=4.0,
        ambient=chance(rng, 0.8, 0.0, 0.06, 0.09),
        specular=look.specular * rng.uniform(0.25, 1.2),
        gloss=log_uniform(rng, 30, 350),
        wrap=rng.uniform(0.0, 0.45),
        bump=look.bump * rng.uniform(0.35, 1.1),
        vignette=rng.uniform(0.2, 1.5),
        exposure_target=rng.uniform(0.55, 0.80) if usual else rng.uniform(0.36, 0.88),
        exposure_quantile=rng.uniform(0.76, 0.94),
        gamma=rng.uniform(1.8, 2.6),
        white_balance=(1 + warm, 1 + tint, 1 - 1.3 * warm),
        psf=rng.uniform(0.3, 1.1),
        shot_noise=2.5e-4 * log_uniform(rng, 0.2, 3.0),
        read_noise=1e-3 * log_uniform(rng, 0.4, 3.0),
        smoke=chance(rng, smoke, 1.5, 9.0),
        plume=rng.uniform(0.0, 1.2),
        processor=processor,
    )


def wide_lens(rng, lens, borders):
    """Camera of a wide scene from a plain one's: another window, off centre, black or grey outside, with marks."""
    border = rng.choice(borders)
    low, high = {"circle": (0.88, 1.35), "octagon": (0.86, 1.15), "rounded": (0.82, 1.0), "none": (1.0, 1.0)}[border]
    level = chance(rng, 0.35, 0.01, 0.16)
    return replace(
        lens,
        border=border,
        border_size=rng.uniform(low, high),
        border_offset=(rng.gauss(0, 0.02), rng.gauss(0, 0.012)),
        border_level=tuple(level * rng.uniform(0.9, 1.1) for _ in range(3)),
        marks=rng.randrange(1, 1_000_000) if rng.random() < 0.3 else 0,
        offset=(rng.gauss(0, 0.025), rng.gauss(0, 0.02)),
        aspect=chance(rng, 0.2, 0.9, 1.1, 1.0),
    )


def wide_fine(rng, g):
    """Grain, capillaries and pores below the appearance's resolution: a small Texture and how often it repeats."""
    shape, extent = (320, 320), (1.0, 1.0)
    grain, pores = spectral_noise(shape, extent, (0.02, 0.2), g), spectral_noise(shape, extent, (0.03, 0.25), g)
    thin = vessels(shape, extent, rng.uniform(0.3, 0.7), rng.uniform(0.05, 0.09), g, 2)
    factor = rng.uniform(0.02, 0.07) * grain - rng.uniform(0.0, 0.25) * thin
    relief = pores + rng.uniform(0.0, 1.0) * grain
    slopes = torch.stack((relief - torch.roll(relief, 1, 1), relief - torch.roll(relief, 1, 0)))
    slopes = slopes * (rng.uniform(0.01, 0.09) / slopes.std())
    return Texture(torch.cat((factor[None], slopes))), rng.choice((4, 5, 6))


def wide_dress(rng, names):
    """Colours and polish of a random material, as arguments of an `Instrument`."""
    metal, shaft, bands, gloss, mirror = MATERIALS[rng.choice(names)]
    lighter = rng.uniform(0.75, 1.2)
    return {
        "metal": tuple(lighter * c for c in metal),
        "shaft": tuple(lighter * c for c in shaft),
        "bands": bands,
        "gloss": gloss * rng.uniform(0.6, 1.5),
        "mirror": mirror * rng.uniform(0.5, 1.2),
        "blood": chance(rng, 0.35, 0.05, 0.8),
    }


def wide_probe(rng, pose, kinds, names, radius, off, reach):
    """A thin instrument out of the scope's channel or beside it: it rides with the camera, whose pose(t) it gets.

    radius, off the axis, reach: (low, high) [mm]. It does not yield to tissue, which hides what lies deeper.
    """
    angle, away, depth = rng.uniform(0, TAU), rng.uniform(*off), rng.uniform(*reach)
    x, y = away * math.cos(angle), away * math.sin(angle)
    inward = rng.uniform(-0.1, 0.8)
    roll = rng.uniform(0, TAU)
    return Instrument(
        (x, y, 0.5),
        (x * inward + rng.gauss(0, 0.05) * depth, y * inward + rng.gauss(0, 0.05) * depth, depth),
        (0.04 * depth, 0.04 * depth, 0.12 * depth),
        (rng.uniform(2.2, 4.0), rng.uniform(1.8, 3.5), rng.uniform(2.5, 4.5)),
        rng.uniform(0, TAU),
        rng.uniform(*radius),
        kind=rng.choice(kinds),
        up=(math.cos(roll), math.sin(roll), 0.0),
        carrier=pose,
        framed=True,
        **wide_dress(rng, names),
    )


def wide_specks(rng, albedo, gloss, grain, mottle):
    """Residue: specks and flakes that stick to the wall, of one colour. Maps (3, V, U) and (V, U) → the same."""
    mask = 0.75 * elsewhere(rng, grain) + 0.65 * elsewhere(rng, mottle) - rng.uniform(1.7, 3.0)
    mask = torch.sigmoid(9 * mask)
    colour = rng.choice(((0.42, 0.26, 0.05), (0.20, 0.10, 0.03), (0.62, 0.55, 0.36), (0.16, 0.17, 0.05)))
    return blend(albedo, rgb(*colour), 0.85 * mask), gloss * (1 - 0.5 * mask)


def wide_bubbles(rng, albedo, bump, gloss, texel, radius, bump_height):
    """Clusters of bubbles, drawn into the maps: domes with pale rims. texel: (dv, du); radius: (low, high), all mm."""
    rows, columns = bump.shape
    for _ in range(rng.randint(1, 4)):
        at, spread = (rng.randrange(rows), rng.randrange(columns)), rng.uniform(2, 5) * radius[1]
        for _ in range(rng.randint(6, 30)):
            r = log_uniform(rng, *radius)
            v, u = at[0] + rng.gauss(0, spread) / texel[0], at[1] + rng.gauss(0, spread) / texel[1]
            high, across = math.ceil(r / texel[0]) + 1, math.ceil(r / texel[1]) + 1
            row, column = torch.arange(-high, high + 1)[:, None], torch.arange(-across, across + 1)[None]
            d = torch.sqrt((row * (texel[0] / r)) ** 2 + (column * (texel[1] / r)) ** 2)
            row, column = (row + round(v)) % rows, (column + round(u)) % columns
            inside, rim = (d < 1).float(), torch.exp(-(((d - 0.85) / 0.15) ** 2))
            bump[row, column] += inside * torch.sqrt((1 - d * d).clamp(min=0)) * (0.4 * r / bump_height)
            gloss[row, column] = torch.maximum(gloss[row, column], inside)
            albedo[:, row, column] = blend(albedo[:, row, column], rgb(0.75, 0.68, 0.55), 0.35 * rim)


def wide_palette(rng, albedo):
    """Another complexion: every channel of the albedo a little stronger or weaker, all of it lighter or darker."""
    lighter = rng.uniform(0.7, 1.2)
    return albedo * rgb(lighter, lighter * rng.uniform(0.75, 1.08), lighter * rng.uniform(0.7, 1.08))
