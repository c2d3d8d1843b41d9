"""What the domains share: colours in linear light, appearance maps, random photometry, hand-held motion. Lengths mm."""

import math

import torch

from endomust_core.simulation.optics import Look
from endomust_core.simulation.textures import TAU, Texture


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
