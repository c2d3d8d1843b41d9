"""Stomach: a wide cavity with rugae, angulus, pylorus and contraction waves, wet areolar mucosa. Lengths mm."""

import math
import random

import torch
import torch.nn.functional as F

from endomust_core.simulation.domains.drawing import blend, draw_barrel, draw_look, draw_waves, rgb
from endomust_core.simulation.optics import Lens, Look
from endomust_core.simulation.renderer import Scene, look_at
from endomust_core.simulation.surfaces import Cavity, globe, over_the_poles
from endomust_core.simulation.textures import TAU, Texture

SWING = 1.2  # most that one of `draw_waves` says


class SolidNoise:
    """A periodic cube of unit noise which the wall cuts: unlike a noise on the chart it knows neither seam nor pole."""

    SIZE, SHORTEST = 96, 6.0  # voxels, voxels

    def __init__(self, generator, narrow):
        """narrow: of one wavelength, else equally strong in every octave of the four that the cube holds."""
        n = self.SIZE
        fz, fy = torch.fft.fftfreq(n)[:, None, None], torch.fft.fftfreq(n)[:, None]
        f = torch.sqrt(fz * fz + fy * fy + torch.fft.rfftfreq(n) ** 2)
        if narrow:
            band = torch.exp(-(((f * self.SHORTEST - 1) / 0.25) ** 2))
        else:
            band = torch.exp(-((f * self.SHORTEST / 1.5) ** 4)) * f.clamp(min=0.5 / n) ** -1.5
            band[0, 0, 0] = 0
        cube = torch.fft.irfftn(torch.fft.rfftn(torch.randn(n, n, n, generator=generator)) * band, s=(n, n, n))
        self.cube = F.pad((cube / cube.std())[None, None], (0, 1, 0, 1, 0, 1), mode="circular")
        self.generator = generator

    def __call__(self, points, wavelength):
        """Noise (V, U) at points (3, V, U) [mm], its shortest wavelength in mm, turned and shifted anew every time."""
        turn = torch.linalg.qr(torch.randn(3, 3, generator=self.generator))[0]
        shift = torch.rand(3, 1, 1, generator=self.generator)
        place = torch.einsum("ij,jvu->ivu", turn, points) * (self.SHORTEST / (self.SIZE * wavelength)) + shift
        grid = (place - torch.floor(place)) * 2 - 1
        return F.grid_sample(self.cube, grid.permute(1, 2, 0)[None, None], align_corners=True)[0, 0, 0]


def plane_waves(points, wavelength, generator, stretch=1.0, count=40):
    """Smooth noise (V, U) of unit variance and about one wavelength [mm] at points (3, V, U), drawn out along z."""
    direction = F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    k = direction * (0.75 + 0.5 * torch.rand(count, 1, generator=generator)) * (TAU / wavelength)
    k = k / torch.tensor((1.0, 1.0, stretch))
    phase = TAU * torch.rand(count, generator=generator)
    total = torch.zeros(points.shape[1:])
    for (kx, ky, kz), start in zip(k.tolist(), phase.tolist(), strict=True):
        total += torch.cos(kx * points[0] + ky * points[1] + kz * points[2] + start)
    return total * math.sqrt(2 / count)


def _towards(rng, axis, spread):
    """A random unit vector (3, 1, 1) near the axis."""
    return F.normalize(torch.tensor([a + spread * rng.uniform(-1, 1) for a in axis]).view(3, 1, 1), dim=0)


def _angle(directions, axis):
    """Angle [rad] of unit vectors (3, V, U) from an axis; exact near zero, where the arc cosine is not."""
    return 2 * torch.asin(((directions - axis).norm(dim=0) / 2).clamp(max=1))


def _wall(rng, g, shape):
    """Radius (V, U) [mm]: antrum and pylorus towards +z, fundus towards -z, the greater curvature to one side."""
    d = globe(*shape)
    x, y, z = d
    semi = torch.tensor((rng.uniform(24, 36), rng.uniform(24, 38), rng.uniform(44, 60))).view(3, 1, 1)
    r = 1 / (d / semi).norm(dim=0)
    pylorus, fundus = _towards(rng, (0.0, 0.0, 1.0), 0.3), _towards(rng, (0.0, 0.0, -1.0), 0.5)
    from_pylorus = _angle(d, pylorus)
    r = r * (1 + rng.uniform(0.10, 0.35) * torch.exp(-((from_pylorus / 0.55) ** 2)))
    r = r * (1 + rng.uniform(0.05, 0.25) * torch.exp(-((_angle(d, fundus) / 0.6) ** 2)))
    r = r * (1 + rng.uniform(0.03, 0.06) * plane_waves(d * 40, 70.0, g))
    points = r * d

    # Rugae run along the body and meet where the noise is stronger than the regular wave; antrum and dome are smooth.
    heading = rng.uniform(0, TAU)
    greater = (x * math.cos(heading) + y * math.sin(heading)) / torch.sqrt(x * x + y * y).clamp(min=0.05)
    winding = rng.uniform(0.6, 1.4) * plane_waves(points, rng.uniform(35, 60), g, 1.5)
    n = torch.sin(rng.randint(5, 8) * torch.atan2(y, x) + winding)
    n = n + rng.uniform(0.3, 0.8) * plane_waves(points, rng.uniform(14, 22), g, 3.0)
    line = torch.exp(-((n / rng.uniform(0.45, 0.7)) ** 2))
    fold = line if rng.random() < 0.5 else 1 - line  # thin folds, or thick ones parted by clefts
    body = torch.exp(-(((z + 0.05) / 0.72) ** 4)) * (1 - z * z) / (1.15 - z * z)
    body = body * (0.25 + 0.75 * torch.sigmoid(3 * greater + 1))
    r = r - rng.uniform(1.8, 6.5) * body * fold * (1 + 0.25 * plane_waves(points, 30.0, g))

    angulus = torch.exp(-(((z - rng.uniform(0.25, 0.5)) / 0.16) ** 2)) * torch.sigmoid(-6 * (greater + 0.2))
    r = r - rng.uniform(4, 13) * angulus
    r = r + rng.uniform(7, 12) * torch.exp(-((from_pylorus / rng.uniform(0.08, 0.11)) ** 2))
    r = r - rng.uniform(1.0, 2.5) * torch.exp(-(((from_pylorus - 0.24) / 0.08) ** 2))
    r = r + rng.uniform(0.08, 0.25) * plane_waves(points, 7.0, g)
    for _ in range(rng.randint(0, 3)):  # polyps
        at, size = _towards(rng, (0.0, 0.0, 0.0), 1.0), rng.uniform(1.5, 4.0)
        r = r - 1.2 * size * torch.exp(-((_angle(d, at) * r / size) ** 4))
    return r.clamp(min=16.0)


def _mucosa(rng, g, surface, shape):
    """Appearance of the wall, a Texture of albedo RGB, two bump slopes and gloss; its texel [mm]."""
    rows, columns = shape
    d = globe(rows, columns)
    u = ((torch.arange(columns) + 0.5) / columns).expand(shape)
    v = ((torch.arange(rows) + 0.5) / (2 * rows))[:, None].expand(shape)
    r = surface.radius_map.sample(u.reshape(-1), v.reshape(-1)).view(shape)
    points = r * d
    broad, narrow = SolidNoise(g, narrow=False), SolidNoise(g, narrow=True)
    antral = torch.sigmoid(8 * (d[2] - 0.45))

    area = rng.uniform(2.2, 4.0)  # areae gastricae: a mosaic of small bumps, parted by grooves
    mosaic = torch.maximum(*(torch.exp(-((narrow(points, k * area) / 0.25) ** 2)) for k in (1.0, 1.3)))
    mottle, grain = broad(points, 4.0), broad(points, 0.9)
    veins, width = torch.zeros(shape), rng.uniform(0.05, 0.10)
    for wavelength, strength in ((11.0, 1.0), (6.0, 0.75), (3.5, 0.6)):
        line = torch.exp(-((broad(points, wavelength) / width) ** 2))
        veins = torch.maximum(veins, strength * line * torch.sigmoid(5 * (broad(points, wavelength) - 0.1)))
    veins = veins * (1 - 0.7 * antral)
    red = torch.sigmoid(3 * broad(points, 6.0) - rng.uniform(1.5, 4.0))
    mucus = torch.sigmoid(8 * (broad(points, 4.0) - rng.uniform(1.4, 3.0)))
    bubbles = mucus * torch.sigmoid(12 * (narrow(points, 1.8) - 1.4))

    rich = rng.choice((0.4, 1.0, 1.0))
    red_light, green_share = rng.uniform(0.55, 0.78), rng.uniform(0.34, 0.47)
    salmon = red_light * rgb(1.0, green_share, green_share * rng.uniform(0.66, 0.9))
    lively = rng.uniform(0.04, 0.12) * mottle + rng.uniform(0.02, 0.07) * grain - rng.uniform(0.05, 0.2) * mosaic
    albedo = salmon * (1 + rich * rgb(0.6, 1.1, 1.2) * lively)
    albedo = blend(albedo, rgb(0.72, 0.40, 0.28), rng.uniform(0.0, 0.4) * antral)
    albedo = blend(albedo, rgb(0.62, 0.09, 0.07), rng.uniform(0.1, 0.5) * red)
    albedo = blend(albedo, rgb(0.42, 0.07, 0.06), rich * rng.uniform(0.15, 0.7) * veins)
    albedo = blend(albedo, rgb(0.72, 0.52, 0.26), rng.uniform(0.1, 0.5) * mucus)
    albedo = blend(albedo, rgb(0.86, 0.80, 0.70), 0.7 * bubbles)
    pits = 0.4 * mosaic + 0.5 * broad(points, 1.2) - 0.6 * bubbles
    pits = rng.uniform(0.06, 0.16) * pits * (1 - 0.5 * mucus)  # depth [mm] below the wall
    gloss = torch.maximum(torch.sigmoid(1.6 * broad(points, 3.0) + 0.1), mucus)

    both, colatitude = over_the_poles(pits), (torch.arange(rows) + 0.5) * (math.pi / rows)
    across = r * torch.sin(colatitude).clamp(min=0.03)[:, None] * (TAU / columns)
    slope_u = (both.roll(-1, 1) - both.roll(1, 1))[:rows] / (2 * across)
    slope_v = (both.roll(-1, 0) - both.roll(1, 0))[:rows] / (2 * r * (math.pi / rows))
    maps = torch.cat((albedo.clamp(0.02, 0.95), slope_u[None], slope_v[None], gloss[None]))
    return Texture(over_the_poles(maps), levels=5), math.pi * surface.radius / rows


def _free_box(rng, surface):
    """Half edges [mm] of a box about the origin in which the camera may go, well off the wall."""
    box = torch.tensor((14.0, 14.0, 34.0)) * torch.tensor([rng.uniform(0.5, 1.0) for _ in range(3)])
    cell = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 9)] * 3, indexing="ij")).reshape(3, -1)
    while surface.clearance(*(box[:, None] * cell), 0.0).min() < 0.9 * surface.reach:
        box = 0.93 * box
    return box.tolist()


def stomach(seed, detail=1024, variety="plain"):
    """A domain for tests alone: no training sees it, so it knows one `variety` and its scenes stay what they are."""
    rng, g = random.Random(f"stomach{seed}"), torch.Generator().manual_seed(seed + 5_550_000)
    r = _wall(rng, g, (256, 512))
    pulse = (rng.choice((0.0, rng.uniform(0.01, 0.07))), rng.uniform(0.8, 1.4), rng.uniform(0.05, 0.12))
    surface = Cavity(r, pulse, (rng.uniform(0.0, 0.02), rng.uniform(0.2, 0.35)))
    appearance, texel = _mucosa(rng, g, surface, (detail // 2, detail))

    # The camera wanders in a box, looks about and turns: towards the antrum in most scenes, back at the dome in some.
    box, wave = _free_box(rng, surface), draw_waves(rng, 6)
    yaw, pitch, roll = rng.choice((0.0, 0.0, math.pi)) + rng.gauss(0, 0.6), rng.uniform(-0.3, 0.3), rng.gauss(0, 0.5)
    speed, turn, gaze = rng.uniform(0.2, 0.5), rng.uniform(-0.2, 0.2), rng.uniform(0.1, 0.4)

    def pose(t):
        slow = speed * t
        position = torch.tensor([edge / SWING * wave[i](slow) for i, edge in enumerate(box)])
        side, up = yaw + turn * t + gaze * wave[3](slow), pitch + 0.5 * gaze * wave[4](slow)
        ahead = torch.tensor((math.sin(side) * math.cos(up), math.sin(up), math.cos(side) * math.cos(up)))
        view, angle = look_at(position, position + ahead), roll + 0.3 * wave[5](slow)
        c, s = math.cos(angle), math.sin(angle)
        view[:3, :3] = view[:3, :3] @ torch.tensor(((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0)))
        return view

    focal = rng.uniform(0.42, 0.6)
    lens = Lens(
        focal=focal,
        k1=draw_barrel(rng, focal),
        offset=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)),
        border=rng.choice(("octagon", "octagon", "none")),
        border_size=rng.uniform(0.95, 1.2),
    )
    look = draw_look(
        rng,
        vignette=0.4,
        specular=1.0,
        gloss=150.0,
        spot=0.8,
        lights=rng.choice((Look.lights, ((3.0, 1.5, 0.0), (-3.0, -1.0, 0.0)), ((2.5, 2.0, 0.0), (-2.5, 2.0, 0.0)))),
    )
    return Scene("stomach", surface, appearance, texel, look, lens, (), pose, 200.0, 0.6)
