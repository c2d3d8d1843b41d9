"""Abdomen: organs, bowel loops, blood and char under a tilted laparoscope, with moving instruments. Lengths mm."""

import math
import random
from dataclasses import replace

import torch
import torch.nn.functional as F

from endomust_core.simulation.domains import drawing
from endomust_core.simulation.domains.drawing import blend, draw_appearance, draw_barrel, draw_look, draw_waves, rgb
from endomust_core.simulation.instruments import MATERIALS, Instrument
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


KINDS = ("grasper", "grasper", "scissors", "needle-holder", "clip", "tube", "hook")
GALL_BLADDERS = ((0.28, 0.33, 0.19), (0.60, 0.44, 0.24), (0.55, 0.46, 0.29), (0.36, 0.38, 0.30), (0.50, 0.36, 0.17))
FATS = ((0.66, 0.40, 0.11), (0.72, 0.50, 0.20), (0.62, 0.34, 0.10), (0.74, 0.55, 0.30))


class Vault:
    """A floor of organs under the wall of the abdomen: a Plane inside a wavy sphere; no view ends in nothing."""

    def __init__(self, floor, centre, radius):
        """centre: 3 floats, radius [mm] of the sphere; the camera must stay inside."""
        self.floor, self.centre, self.radius, self.lipschitz = floor, centre, radius, floor.lipschitz

    def to(self, device):
        self.floor.to(device)
        return self

    def _wall(self, x, y, z):
        ex, ey, ez = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        folds = 3.0 * torch.sin(0.09 * ex + 0.05 * ez) + 2.0 * torch.sin(0.13 * ey - 0.06 * ez + 1.0)
        return self.radius + folds - torch.sqrt(ex * ex + ey * ey + ez * ez)

    def clearance(self, x, y, z, t):
        return torch.minimum(self.floor.clearance(x, y, z, t), self._wall(x, y, z))

    def _on_wall(self, p, t):
        x, y, z = p.unbind(-1)
        return self._wall(x, y, z) < self.floor.clearance(x, y, z, t)

    def chart(self, p, t):
        """As the floor's; on the wall an oblique one, so that the texture does not run down in streaks."""
        u, v, along_u, along_v = self.floor.chart(p, t)
        wall = self._on_wall(p, t)
        u = torch.where(wall, u + 0.61 * p[:, 2] / self.floor.size + 0.31, u)
        v = torch.where(wall, v + 0.53 * p[:, 2] / self.floor.size + 0.57, v)
        return u, v, along_u, along_v

    def advect(self, p, t0, t1):
        return torch.where(self._on_wall(p, t0)[:, None], p, self.floor.advect(p, t0, t1))


def _abdomen(rng, g, size, shape, wide=None):
    """Organ relief (V, U) [mm towards the camera is smaller] and the softmax weights of its layers' colours."""
    special = ()
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
    if wide:
        special = _wide_layers(wide, g, size, shape, layers, colours)
    stack = torch.stack(layers)
    height = -1.6 * torch.logsumexp(-stack / 1.6, 0)
    height = F.avg_pool2d(F.pad(height[None, None], (2,) * 4, mode="circular"), 5, 1)[0, 0]
    return height, torch.softmax(-stack / 0.8, 0), colours, special


def laparo(seed, detail=1024, variety="plain"):
    rng, g = random.Random(f"laparo{seed}"), torch.Generator().manual_seed(seed + 1_234_000)
    wide = random.Random(f"wide-laparo-{seed}") if variety == "wide" else None  # plain scenes never draw from it
    size, shape = 220.0, (512, 512)
    extent = (size, size)
    height, weights, colours, special = _abdomen(rng, g, size, shape, wide)
    if wide:
        height, wet = _wide_relief(wide, g, height, extent)
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
    fine = {}
    if wide:
        fat, smooth, crease = _tissue(special, weights)
        maps = albedo, bump, gloss, fat, smooth, crease, drawing.resized(wet, shape), mottle, grain
        albedo, bump, gloss = _wide_tissue(wide, g, *maps, extent)
        texture, repeats = drawing.wide_fine(wide, g)
        fine = {"fine": texture, "repeats": repeats}
    appearance, texel = draw_appearance(albedo, bump, gloss, extent, rng.uniform(0.04, 0.22))
    surface = Plane(height, size, (rng.uniform(0.0, 3.0), rng.uniform(0.2, 0.35)))

    # The camera stands off at 40-100 mm from the mid surface (z about 95), tilted 8-45 degrees, and orbits slowly.
    distance, tilt, heading = rng.uniform(40, 100), math.radians(rng.uniform(8, 45)), rng.uniform(0, TAU)
    aim = (rng.uniform(-40, 40), rng.uniform(-40, 40))
    sway, speed, wave = rng.uniform(3, 12), rng.uniform(0.4, 1.0), draw_waves(rng, 6)
    calm, level = 1.0, 95.0  # amplitude of the motion, height [mm] looked at
    if wide:
        distance, tilt = drawing.log_uniform(wide, 35, 150), math.radians(wide.uniform(0, 62))
        calm = min(1.0, distance / 70)
        level = surface.height_map.sample(*(torch.tensor([a / size + 0.5]) for a in aim)).item()

    def pose(t):
        t = t * speed
        target = torch.tensor((aim[0] + 8 * calm * wave[0](t), aim[1] + 8 * calm * wave[1](t), level))
        angle, lean = heading + 0.08 * wave[2](t), tilt + 0.05 * wave[3](t)
        away = distance + 6 * calm * wave[4](t)
        offset = (
            torch.tensor((math.sin(lean) * math.cos(angle), math.sin(lean) * math.sin(angle), -math.cos(lean))) * away
        )
        drift = torch.tensor((sway * calm * wave[5](t), sway * calm * wave[0](t + 1), 0.0))
        return look_at(target + offset + drift, target + drift, 0.15 * wave[1](t + 2))

    if wide:
        moments = [0.5 * i for i in range(43)]
        while distance < 180 and _least_clearance(surface, pose, moments) < max(7.0, 0.12 * distance):
            distance *= 1.15  # pose reads it: back off until no organ comes too near
        if wide.random() < 0.75:
            radius = max(100.0, distance + 50.0 * calm) + wide.uniform(10, 60)
            surface = Vault(surface, (*aim, level - 20.0), radius)
    tools = tuple(_instrument(rng, pose, i, surface) for i in range(rng.choice((0, 1, 2, 2))))
    focal = rng.choice((0.82, rng.uniform(0.62, 1.05)))
    lens = Lens(focal=focal, border=rng.choice(("none", "none", "circle")), border_size=rng.uniform(1.0, 1.45),
                k1=draw_barrel(rng, focal), offset=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)))  # fmt: skip
    lights = rng.choice((((4.0, 0, 0), (-4.0, 0, 0)), ((3.0, 3.0, 0.0),), ((0.0, 5.0, 0.0), (0.0, -5.0, 0.0))))
    look = draw_look(rng, lights=lights, spot=2.5,
                 specular=1.1, gloss=70.0, vignette=0.55, exposure_target=0.58, smoke=0.2)  # fmt: skip
    if not wide:
        return Scene("laparo", surface, appearance, texel, look, lens, tools, pose, 300.0, 0.7)
    lens = replace(lens, focal=wide.uniform(0.55, 1.1), k1=0.0)
    lens = replace(lens, k1=draw_barrel(wide, lens.focal))
    lens = drawing.wide_lens(wide, lens, ("none", "none", "none", "circle", "circle", "rounded", "octagon"))
    look = drawing.wide_look(wide, look, 4.5, (0.5 * distance, 1.6 * distance), 0.2)
    tools = tuple(_wide_instrument(wide, pose, surface) for _ in range(wide.choice((0, 1, 1, 2, 2, 3))))
    return Scene("laparo", surface, appearance, texel, look, lens, tools, pose, 400.0, 0.6, **fine)


def _wide_layers(rng, g, size, shape, layers, colours):
    """Add fat in lobes, a gall bladder and a fold of peritoneum to the layers (V, U) and their colours.

    Returns which layers are fat, which are smooth, and the creases of the fat (V, U) in [0, 1].
    """
    extent = (size, size)
    ground = spectral_noise(shape, extent, (25.0, 110.0), g, 1.6)
    lobes = spectral_noise(shape, extent, (rng.uniform(3.0, 6.0), rng.uniform(16.0, 30.0)), g, 1.1).abs()
    lobes = lobes.clamp(max=1.8) ** 0.6
    fat, smooth = [], []
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        patch = drawing.elsewhere(rng, ground) - rng.uniform(-0.3, 1.0)
        rise = rng.uniform(4, 26) * torch.tanh(patch.clamp(min=0)) + rng.uniform(1.2, 4.0) * lobes
        fat.append(len(layers))
        layers.append(132 - rng.uniform(20, 27) * (5 * patch).clamp(0, 1) - rise * (patch > 0))
        colours.append(tuple(c * rng.uniform(0.85, 1.15) for c in rng.choice(FATS)))
    x = (((torch.arange(shape[1]) + 0.5) / shape[1] - 0.5) * size)[None]
    y = (((torch.arange(shape[0]) + 0.5) / shape[0] - 0.5) * size)[:, None]
    per = lambda d: torch.remainder(d + size / 2, size) - size / 2  # noqa: E731
    if rng.random() < 0.55:  # liver: a wide smooth dome with a blunt edge
        dx, dy, r = per(x - rng.uniform(-0.5, 0.5) * size), per(y - rng.uniform(-0.5, 0.5) * size), rng.uniform(50, 95)
        q = (dx * dx + dy * dy * rng.uniform(0.6, 1.7)) / r**2 + 0.10 * drawing.elsewhere(rng, ground)
        dome = 112 - rng.uniform(14, 40) * torch.sqrt((1 - q).clamp(min=0) + 1e-6) ** 0.7
        smooth.append(len(layers))
        layers.append(torch.where(q < 1, dome, torch.full_like(dome, 132.0)))
        darker = rng.uniform(0.6, 1.4)
        colours.append((0.21 * darker, rng.uniform(0.025, 0.06) * darker, rng.uniform(0.02, 0.045) * darker))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        dx, dy = per(x - rng.uniform(-0.35, 0.35) * size), per(y - rng.uniform(-0.35, 0.35) * size)
        r, aspect, turn = rng.uniform(22, 52), rng.uniform(0.28, 0.5), rng.uniform(0, TAU)
        a = (dx * math.cos(turn) + dy * math.sin(turn)) / r
        b = (-dx * math.sin(turn) + dy * math.cos(turn)) / (r * aspect * (1 - 0.35 * a).clamp(min=0.3))
        q = a * a + b * b
        dome = 112 - rng.uniform(14, 34) * torch.sqrt((1 - q).clamp(min=0) + 1e-6) ** 0.8
        smooth.append(len(layers))
        layers.append(torch.where(q < 1, dome, torch.full_like(dome, 132.0)))
        colours.append(tuple(c * rng.uniform(0.8, 1.2) for c in rng.choice(GALL_BLADDERS)))
    if rng.random() < 0.6:  # a band or fold: a ridge along a zero line of the ground, stretched one way
        sheet = drawing.elsewhere(rng, ground)
        ridge = torch.exp(-((sheet / rng.uniform(0.08, 0.22)) ** 2)) * torch.sigmoid(4 * drawing.elsewhere(rng, ground))
        layers.append(132 - 19 * (5 * ridge).clamp(max=1) - rng.uniform(8, 24) * ridge)
        pale = rng.uniform(0.7, 1.1)
        colours.append((0.62 * pale, 0.38 * pale, 0.32 * pale))
    return fat, smooth, (1 - lobes / 0.6).clamp(min=0)


def _wide_relief(rng, g, height, extent):
    """Another range of heights, a cavity that falls away, fine relief, a pool; and where it is wet, in [0, 1]."""
    height = 108 + (height - 108) * rng.uniform(0.6, 1.35)
    if rng.random() < 0.6:
        slope = spectral_noise(height.shape, extent, (70.0, 220.0), g, 1.6)
        height = height + rng.uniform(10, 60) * torch.sigmoid(3 * (slope - rng.uniform(0.0, 0.9)))
    relief = spectral_noise(height.shape, extent, (1.6, 9.0), g, 1.2)
    height = height + rng.uniform(0.05, 0.3) * relief
    wet = torch.zeros_like(height)
    if rng.random() < 0.4:  # blood or water stands in what is lowest: larger z is farther down
        level = torch.quantile(height[::4, ::4].reshape(-1), rng.uniform(0.62, 0.95)).item()
        wet = torch.sigmoid(3 * (height - level))
        height = height.clamp(max=level)
    return height, wet


def _tissue(special, weights):
    """Where fat and where smooth organs lie, and the creases of the fat: maps (V, U) in [0, 1] as large as weights."""
    fat, smooth, crease = special
    nothing = torch.zeros_like(weights[0])
    return (
        weights[fat].sum(0) if fat else nothing,
        weights[smooth].sum(0) if smooth else nothing,
        drawing.resized(crease, nothing.shape),
    )


def _wide_tissue(rng, g, albedo, bump, gloss, fat, smooth, crease, wet, mottle, grain, extent):
    """Maps of the appearance with another palette, creased fat, smooth organs, fibres, films of blood, burns, pools."""
    albedo = drawing.wide_palette(rng, albedo)
    albedo = blend(albedo, rgb(0.34, 0.10, 0.04), rng.uniform(0.3, 0.8) * crease * fat)
    albedo = blend(albedo, albedo.mean((1, 2), keepdim=True), 0.25 * smooth)
    bump, gloss = bump * (1 - 0.75 * smooth), torch.maximum(gloss, 0.95 * smooth)
    if rng.random() < 0.6:  # fibres of connective tissue
        fibre = spectral_noise(bump.shape, (extent[0] * rng.uniform(0.12, 0.3), extent[1]), (1.2, 9.0), g)
        where = torch.sigmoid(3 * (drawing.elsewhere(rng, mottle) - rng.uniform(-0.5, 0.8)))
        albedo = albedo * (1 + rng.uniform(0.05, 0.2) * fibre * where)
        bump = bump + rng.uniform(0.2, 0.8) * fibre * where
    if rng.random() < 0.5:  # a film of blood that has been wiped about
        film = 0.8 * drawing.elsewhere(rng, mottle) + 0.5 * drawing.elsewhere(rng, grain)
        film = torch.sigmoid(rng.uniform(2, 6) * (film - rng.uniform(0.3, 1.6)))
        albedo = blend(albedo, rgb(rng.uniform(0.2, 0.38), 0.018, 0.014), rng.uniform(0.3, 0.8) * film)
    if rng.random() < 0.4:  # burns: black in the middle, whitish round it
        heat = drawing.elsewhere(rng, mottle) + 0.3 * drawing.elsewhere(rng, grain) - rng.uniform(1.7, 3.0)
        albedo = blend(albedo, rgb(0.66, 0.52, 0.38), 0.7 * torch.sigmoid(7 * (heat + 0.35)))
        albedo = blend(albedo, rgb(0.035, 0.022, 0.016), 0.9 * torch.sigmoid(8 * heat))
        gloss = gloss * (1 - 0.8 * torch.sigmoid(6 * heat))
    pool = rng.choice(((0.10, 0.008, 0.006), (0.17, 0.012, 0.010), (0.24, 0.02, 0.015), (0.30, 0.14, 0.07)))
    albedo = blend(albedo, rgb(*pool), rng.uniform(0.7, 0.97) * wet)
    return albedo, bump * (1 - 0.93 * wet), torch.maximum(gloss, wet)


def _least_clearance(surface, pose, moments):
    """Smallest height [mm] of the camera above what lies under and before it at those times."""
    poses = torch.stack([pose(t) for t in moments])
    places = torch.cat([poses[:, :3, 3] + d * poses[:, :3, 2] for d in (0.0, 6.0)])
    x, y, z = places.unbind(-1)
    return surface.clearance(x, y, z, 0.0).min().item()


def _wide_instrument(rng, pose, surface):
    """An instrument of any kind from any side: one that works near the tissue, or one that stands close to the lens.

    Where there is little room, and close to the lens, it rides with the camera, so that the two never meet.
    """
    start = pose(0.0)
    clear, angle = _clear_depth(surface, start), rng.uniform(0, TAU)
    near = rng.random() < 0.2
    depth = max(min(16.0, 0.8 * clear), (rng.uniform(0.3, 0.5) if near else rng.uniform(0.6, 0.95)) * clear)
    inward = rng.uniform(-0.15, 0.35) if near else rng.uniform(-0.25, 0.3)
    reach = torch.tensor((inward * math.cos(angle), inward * math.sin(angle), 1.0)) * depth
    turn, far = angle + rng.gauss(0, 0.3), rng.uniform(70, 110)
    entry = torch.tensor((far * math.cos(turn), far * math.sin(turn), rng.uniform(-0.1, 0.5) * depth))
    rides = near or clear < 50
    if rides:  # nearer the lens the shaft comes in from further in front, or it would hide everything
        entry[2] = rng.uniform(0.5, 0.9) * depth
    else:
        reach, entry = (start[:3, :3] @ p + start[:3, 3] for p in (reach, entry))
    small = min(1.0, depth / 60)
    return Instrument(
        tuple(entry.tolist()),
        tuple(reach.tolist()),
        tuple(small * rng.uniform(2, 8) for _ in range(3)),
        (rng.uniform(2.2, 4.0), rng.uniform(1.8, 3.5), rng.uniform(2.5, 4.5)),
        rng.uniform(0, TAU),
        min(drawing.log_uniform(rng, 1.5, 5.0), max(1.2, (0.16 if near else 0.09) * depth)),
        kind=rng.choice(KINDS),
        up=tuple(F.normalize(torch.tensor([rng.gauss(0, 1) for _ in range(3)]), dim=0).tolist()),
        carrier=pose if rides else None,
        framed=True,
        **drawing.wide_dress(rng, (*MATERIALS, "steel", "steel", "black", "black", "grey")),
    )


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
