"""Draws random scenes of three domains from a seed: colon (tube with folds), sinus (narrow scope, turbinates), laparo
(abdomen, instruments).

Albedos are linear light. Lengths mm, rates Hz, speeds mm/s. The same seed always gives the same scene.
"""

import math
import random

import torch
import torch.nn.functional as F

from endomust_core.simulation.instruments import Instrument
from endomust_core.simulation.optics import Lens, Look
from endomust_core.simulation.renderer import Scene, look_at
from endomust_core.simulation.surfaces import Plane, Tube, Turbinate
from endomust_core.simulation.textures import TAU, Texture, spectral_noise, vessels


def _rgb(*colour):
    return torch.tensor(colour).view(3, 1, 1)


def _blend(a, b, weight):
    return a + (b - a) * weight


def _appearance(albedo, bump, gloss, extent, bump_height):
    """Albedo (3, V, U), bump and gloss (V, U) → mip-mapped map of albedo, bump slopes, gloss;
    and its texel size [mm].
    """
    rows, columns = bump.shape
    dv, du = extent[0] / rows, extent[1] / columns
    slope_u = (torch.roll(bump, -1, 1) - torch.roll(bump, 1, 1)) * (bump_height / (2 * du))
    slope_v = (torch.roll(bump, -1, 0) - torch.roll(bump, 1, 0)) * (bump_height / (2 * dv))
    maps = torch.cat((albedo.clamp(0.02, 0.95), slope_u[None], slope_v[None], gloss[None]))
    return Texture(maps, levels=5), min(dv, du)


def _look(rng, **base):
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


def _barrel(rng, focal):
    """A random barrel distortion k1 that stays invertible out to the corner of a 5:4 image of that focal length /
    width.
    """
    corner2 = (0.5**2 + 0.4**2) / focal**2
    return rng.choice((0.0, -rng.uniform(0.02, 0.10) / corner2))


def _waves(rng, count):
    """Slow oscillations for hand-held motion: callables of time with unit amplitude and periods of 1.5 to 5 s."""
    terms = [[(rng.uniform(1.5, 5.0), rng.uniform(0, TAU), w) for w in (0.8, 0.4)] for _ in range(count)]
    return [lambda t, term=term: sum(w * math.sin(TAU * t / p + phase) for p, phase, w in term) for term in terms]


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
    base = _rgb(rng.uniform(0.45, 0.75), rng.uniform(0.16, 0.32), rng.uniform(0.08, 0.22))
    mottle, grain = spectral_noise(shape, extent, (3.0, 30.0), g), spectral_noise(shape, extent, (0.6, 2.0), g)
    veins = vessels(shape, extent, rng.uniform(14, 30), rng.uniform(0.03, 0.08), g)
    pale = torch.sigmoid(3 * spectral_noise(shape, extent, (4.0, 16.0), g) - 2.2)
    rich = rng.choice((0.25, 1.0, 1.0))  # some mucosa is almost without texture
    albedo = base * (
        1 + rich * _rgb(0.7, 1.2, 1.3) * (rng.uniform(0.04, 0.16) * mottle + rng.uniform(0.02, 0.08) * grain)
    )
    albedo = _blend(albedo, _rgb(0.40, 0.055, 0.035), rich * rng.uniform(0.2, 0.9) * veins)
    albedo = _blend(albedo, _rgb(0.70, 0.36, 0.20), rng.uniform(0.0, 0.5) * pale)
    bump = rich * (0.55 * spectral_noise(shape, extent, (1.0, 6.0), g) + 0.25 * grain + 0.25 * veins)
    gloss = torch.sigmoid(1.5 * spectral_noise(shape, extent, (3.0, 24.0), g) + 0.2)
    appearance, texel = _appearance(albedo, bump, gloss, extent, 0.10)
    pulse = (rng.uniform(0.0, 0.05), rng.uniform(50, 90), rng.uniform(0.1, 0.3))
    bend = (rng.uniform(4, 20), 160.0, rng.uniform(4, 14), 320.0)
    surface = Tube(r, length, radius, bend, pulse)
    start, speed, wander, gaze = rng.uniform(0, length), rng.uniform(-8, 22), 0.16 * radius, rng.uniform(0.04, 0.35)
    wave = _waves(rng, 5)

    def pose(t):
        z = start + speed * t
        (cx, cy), (ax, ay) = surface.centre(z), surface.centre(z + radius)
        position = torch.tensor((cx + wander * wave[0](t), cy + wander * wave[1](t), z))
        target = torch.tensor((ax + radius * gaze * wave[2](t), ay + radius * gaze * wave[3](t), z + radius))
        return look_at(position, target, 0.4 * wave[4](t))

    wide = rng.uniform(0.44, 0.68)
    lens = Lens(
        focal=wide,
        k1=_barrel(rng, wide),
        offset=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)),
        border=rng.choice(("octagon", "octagon", "none", "circle")),
        border_size=rng.uniform(0.95, 1.2),
    )
    look = _look(
        rng,
        vignette=0.6,
        lights=rng.choice((Look.lights, ((3.0, 1.5, 0.0),), ((2.5, 2.0, 0.0), (-2.5, 2.0, 0.0), (0.0, -3.0, 0.0)))),
        smoke=0.05,
    )
    return Scene("colon", surface, appearance, texel, look, lens, (), pose, 170.0, 0.35)


def sinus(seed, detail=1024):
    rng, g = random.Random(f"sinus{seed}"), torch.Generator().manual_seed(seed + 77_000)
    length, radius = 128.0, rng.uniform(9.0, 14.0)
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
    shape = (detail, detail // 2)
    mottle, grain = spectral_noise(shape, extent, (1.5, 14.0), g), spectral_noise(shape, extent, (0.3, 1.0), g)
    veins = vessels(shape, extent, rng.uniform(6, 12), rng.uniform(0.04, 0.09), g)
    facing = (
        (0.5 + 0.5 * torch.cos(torch.linspace(0, TAU, shape[1] + 1)[:-1] - (0 if side < 0 else math.pi))) ** 2
    ).expand(shape)
    red, pink = (
        _rgb(rng.uniform(0.45, 0.65), rng.uniform(0.08, 0.2), rng.uniform(0.05, 0.14)),
        _rgb(rng.uniform(0.55, 0.75), rng.uniform(0.26, 0.4), rng.uniform(0.2, 0.32)),
    )
    albedo = _blend(red, pink, facing) * (1 + rng.uniform(0.05, 0.15) * mottle + rng.uniform(0.02, 0.07) * grain)
    albedo = _blend(albedo, _rgb(0.40, 0.04, 0.04), rng.uniform(0.3, 0.85) * veins)
    bump = 0.5 * spectral_noise(shape, extent, (0.6, 3.0), g) + 0.25 * veins
    gloss = torch.sigmoid(1.8 * spectral_noise(shape, extent, (2.0, 12.0), g) + 0.3)
    appearance, texel = _appearance(albedo, bump, gloss, extent, 0.045)
    surface = Tube(r, length, radius, turbinates=tuple(turbinates), lipschitz=0.55)
    wander, gaze, advance, wave = rng.uniform(0.8, 2.2), rng.uniform(0.08, 0.3), rng.uniform(2.0, 5.0), _waves(rng, 6)

    def pose(t):
        z = advance * wave[5](t)  # in and out, never into a turbinate
        position = torch.tensor((wander * wave[0](t), wander * wave[1](t), z))
        target = torch.tensor((22 * gaze * wave[2](t), 22 * gaze * wave[3](t), z + 22.0))
        return look_at(position, target, 0.25 * wave[4](t))

    focal = rng.uniform(0.52, 0.75)
    lens = Lens(
        focal=focal,
        k1=_barrel(rng, focal),
        border=rng.choice(("circle", "circle", "none")),
        border_size=rng.uniform(0.9, 1.25),
    )
    lights = rng.choice((((0.0, 1.6, 0.0), (0.6, -1.2, 0.0)), ((1.2, 1.2, 0.0),), Look.lights))
    look = _look(rng, lights=lights, spot=2.0, vignette=0.7,
                 gloss=160.0, specular=1.6, exposure_target=0.66, exposure_quantile=0.9)  # fmt: skip
    return Scene("sinus", surface, appearance, texel, look, lens, (), pose, 90.0, 0.25)


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
    albedo = _blend(albedo, _rgb(0.26, 0.02, 0.03), rng.uniform(0.4, 0.9) * veins * bright)
    blood = torch.sigmoid(6 * (spectral_noise(shape, extent, (8.0, 60.0), g, 1.5) - rng.uniform(0.9, 2.5)))
    albedo = _blend(albedo, _rgb(0.24, 0.012, 0.012), 0.7 * blood)
    char = torch.sigmoid(8 * (spectral_noise(shape, extent, (3.0, 20.0), g) - rng.uniform(1.8, 3.5)))
    albedo = _blend(albedo, _rgb(0.05, 0.03, 0.02), 0.6 * char)
    bump = 0.6 * spectral_noise(shape, extent, (1.5, 8.0), g) + 0.4 * grain + 0.3 * veins
    gloss = torch.sigmoid(2.0 * spectral_noise(shape, extent, (3.0, 30.0), g) + 0.1)
    appearance, texel = _appearance(albedo, bump, gloss, extent, rng.uniform(0.04, 0.22))
    surface = Plane(height, size, (rng.uniform(0.0, 3.0), rng.uniform(0.2, 0.35)))

    # The camera stands off at 35-95 mm from the mid surface (z about 95), tilted 10-45 degrees, and orbits slowly.
    distance, tilt, heading = rng.uniform(40, 100), math.radians(rng.uniform(8, 45)), rng.uniform(0, TAU)
    aim = (rng.uniform(-40, 40), rng.uniform(-40, 40))
    sway, speed, wave = rng.uniform(3, 12), rng.uniform(0.4, 1.0), _waves(rng, 6)

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
                k1=_barrel(rng, focal), offset=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)))  # fmt: skip
    lights = rng.choice((((4.0, 0, 0), (-4.0, 0, 0)), ((3.0, 3.0, 0.0),), ((0.0, 5.0, 0.0), (0.0, -5.0, 0.0))))
    look = _look(rng, lights=lights, spot=2.5,
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


DOMAINS = {"colon": colon, "sinus": sinus, "laparo": laparo}
