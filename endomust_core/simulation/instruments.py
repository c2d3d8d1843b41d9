"""Instruments: shafts, wrists and tips as moving capsules, met by rays in closed form. Units: mm, s."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from endomust_core.simulation.textures import TAU

# What is at the end of the shaft: length of the wrist and of the jaws [mm], middle and swing of their opening [rad],
# radii of wrist and jaws as shares of the shaft's.
ENDS = {
    "grasper": (13.0, 10.0, 0.28, 0.22, 0.62, 0.31),
    "scissors": (9.0, 15.0, 0.30, 0.26, 0.45, 0.20),
    "needle-holder": (7.0, 9.0, 0.12, 0.10, 0.80, 0.42),
    "clip": (16.0, 6.0, 0.55, 0.05, 0.70, 0.22),
    "forceps": (2.0, 2.6, 0.45, 0.40, 0.95, 0.50),
    "snare": (1.0, 8.0, 0.40, 0.12, 0.60, 0.22),
}
SINGLE = ("tube", "hook", "shaver")  # ends without jaws

# Colour of the tip and of the shaft (linear light), darkness of the rings on the shaft, strength of highlights, share
# of the surroundings that the surface mirrors.
MATERIALS = {
    "steel": ((0.40, 0.41, 0.43), (0.34, 0.35, 0.37), 0.0, 1.6, 0.75),
    "banded": ((0.46, 0.47, 0.49), (0.30, 0.31, 0.33), 0.75, 1.0, 0.35),
    "black": ((0.48, 0.49, 0.51), (0.022, 0.022, 0.025), 0.0, 0.45, 0.06),
    "grey": ((0.40, 0.41, 0.43), (0.12, 0.12, 0.13), 0.3, 0.6, 0.15),
    "ceramic": ((0.66, 0.65, 0.60), (0.72, 0.70, 0.65), 0.0, 0.7, 0.05),
    "gold": ((0.66, 0.45, 0.16), (0.30, 0.30, 0.32), 0.0, 1.4, 0.55),
    "blue": ((0.50, 0.51, 0.53), (0.04, 0.11, 0.34), 0.0, 0.6, 0.08),
    "green": ((0.50, 0.51, 0.53), (0.06, 0.20, 0.11), 0.0, 0.6, 0.08),
}


@dataclass(frozen=True)
class Instrument:
    """Pivots at the trocar `base` and swings its tip about `tip` with amplitudes [mm] and periods [s] per axis."""

    base: tuple[float, float, float]
    tip: tuple[float, float, float]
    amplitude: tuple[float, float, float]
    period: tuple[float, float, float]
    phase: float
    radius: float = 4.0
    metal: tuple[float, float, float] = (0.46, 0.47, 0.49)
    shaft: tuple[float, float, float] = (0.30, 0.31, 0.33)
    kind: str = "grasper"  # one of ENDS or SINGLE
    bands: float = 0.75  # how dark the rings on the shaft are
    gloss: float = 0.9
    mirror: float = 0.0  # share of the surroundings that it reflects
    blood: float = 0.0  # share of the outer end that is smeared
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)  # the jaws open across this and the shaft
    carrier: object = None  # time [s] → (4, 4) pose that base and tip are given in; None: the world
    framed: bool = False  # points keep their place round the axis when it turns, and rays are culled


@dataclass(frozen=True)
class Capsule:
    """A segment a → b [mm] with a radius; `part` 0 is the shaft; frame (3, 3) turns with a framed instrument."""

    a: torch.Tensor
    b: torch.Tensor
    radius: float
    part: int
    tool: Instrument
    frame: torch.Tensor | None = None


def capsules(tool, t):
    """The instrument at time t [s] as capsules: shaft, wrist, two jaws that open and close, or what it has of them."""
    swing = [
        a * math.sin(TAU * t / p + tool.phase + i)
        for i, (a, p) in enumerate(zip(tool.amplitude, tool.period, strict=True))
    ]
    base = torch.tensor(tool.base)
    tip = torch.tensor(tool.tip) + torch.tensor(swing)
    axis = F.normalize(tip - base, dim=0)
    side = F.normalize(torch.linalg.cross(axis, torch.tensor(tool.up)), dim=0)
    if tool.kind in SINGLE:
        parts = _single(tool, base, tip, axis, side)
    else:
        wrist_length, jaw_length, middle, sweep, wrist_radius, jaw_radius = ENDS[tool.kind]
        wrist = tip - wrist_length * axis
        opening = middle + sweep * math.sin(TAU * t / 1.6 + tool.phase)
        jaw = [jaw_length * (axis * math.cos(opening) + sign * side * math.sin(opening)) for sign in (1, -1)]
        hinge = tip - min(1.0, 0.5 * wrist_length) * axis
        parts = [
            Capsule(base, wrist, tool.radius, 0, tool),
            Capsule(wrist, hinge, tool.radius * wrist_radius, 1, tool),
            Capsule(hinge, tip + jaw[0], tool.radius * jaw_radius, 2, tool),
            Capsule(hinge, tip + jaw[1], tool.radius * jaw_radius, 3, tool),
        ]
    return _place(tool, parts, torch.linalg.cross(axis, side), t) if tool.framed else parts


def _single(tool, base, tip, axis, side):
    """Ends without jaws: an open tube, a hook that burns, a shaver with a narrower head."""
    r = tool.radius
    if tool.kind == "tube":
        return [Capsule(base, tip, r, 0, tool)]
    if tool.kind == "hook":
        neck = tip - 14 * axis
        return [
            Capsule(base, neck, r, 0, tool),
            Capsule(neck, tip, 0.22 * r, 1, tool),
            Capsule(tip, tip + 1.4 * r * side + 0.3 * r * axis, 0.2 * r, 2, tool),
        ]
    return [Capsule(base, tip, r, 0, tool), Capsule(tip - axis, tip + 1.4 * r * axis, 0.8 * r, 1, tool)]


def _place(tool, parts, normal, t):
    """Parts in world coordinates, each with axes that turn with it; they all lie in the plane across `normal` (3,)."""
    pose = torch.eye(4) if tool.carrier is None else tool.carrier(t)
    rotation, origin = pose[:3, :3], pose[:3, 3]
    placed = []
    for part in parts:
        axis = F.normalize(part.b - part.a, dim=0)
        frame = rotation @ torch.stack((axis, torch.linalg.cross(normal, axis), normal), 1)
        a, b = rotation @ part.a + origin, rotation @ part.b + origin
        placed.append(replace(part, a=a, b=b, frame=frame))
    return placed


def candidates(origin, grid, capsule, pixel):
    """Indices of the rays (H, W, 3), flattened, that may meet a capsule; None: all of them. pixel: 1 / focal length.

    Every fourth ray is tried against a capsule so much thicker that it covers the rays between.
    """
    axis = capsule.b - capsule.a
    along = (((origin - capsule.a) @ axis) / (axis @ axis)).clamp(0, 1)
    nearest = (origin - capsule.a - along * axis).norm()
    reach = max((end - origin).norm().item() for end in (capsule.a, capsule.b))
    thick = 1.05 * capsule.radius + 5.0 * pixel * reach
    if nearest < 1.05 * thick:
        return None
    coarse = grid[2::4, 2::4]
    met = hit_capsule(origin, coarse.reshape(-1, 3), replace(capsule, radius=float(thick)))
    mask = torch.isfinite(met).view(coarse.shape[:2])
    return mask.repeat_interleave(4, 0).repeat_interleave(4, 1).view(-1).nonzero(as_tuple=True)[0]


def hit_capsule(origin, directions, capsule):
    """First hit of rays with a capsule.
    Origin (3,) or (N, 3), directions (N, 3) → ray parameter (N,), inf where missed.

    Quadratic of the infinite cylinder, then of the two end spheres.
    """
    axis = capsule.b - capsule.a
    to = origin - capsule.a
    axis2 = axis @ axis
    d_axis, o_axis = directions @ axis, to @ axis
    d_o, d2 = (directions * to).sum(-1), (directions * directions).sum(-1)
    o2 = (to * to).sum(-1)
    a = axis2 * d2 - d_axis * d_axis
    b = axis2 * d_o - o_axis * d_axis
    c = axis2 * o2 - o_axis * o_axis - capsule.radius**2 * axis2
    disc = b * b - a * c
    t = (-b - torch.sqrt(disc.clamp(min=0))) / a.clamp(min=1e-9)
    along = o_axis + t * d_axis
    best = torch.where((disc > 0) & (along > 0) & (along < axis2) & (t > 0), t, torch.inf)
    for end in (capsule.a, capsule.b):
        oc = origin - end
        b = (directions * oc).sum(-1)
        disc = b * b - d2 * ((oc * oc).sum(-1) - capsule.radius**2)
        t = (-b - torch.sqrt(disc.clamp(min=0))) / d2
        best = torch.where((disc > 0) & (t > 0) & (t < best), t, best)
    return best


def axis_fraction(p, capsule):
    """Where along the capsule's axis the points p (N, 3) lie, 0 at a, 1 at b."""
    axis = capsule.b - capsule.a
    return (((p - capsule.a) @ axis) / (axis @ axis)).clamp(0, 1)


def paint(p, capsule):
    """Normals (N, 3) and albedo (N, 3) of points on a capsule: black bands on the shaft, bare metal beyond."""
    fraction = axis_fraction(p, capsule)
    normal = F.normalize(p - capsule.a - fraction[:, None] * (capsule.b - capsule.a), dim=-1)
    colour = torch.tensor(capsule.tool.metal if capsule.part else capsule.tool.shaft, device=p.device).expand(
        p.shape[0], 3
    )
    if capsule.part == 0:
        from_wrist = (1 - fraction) * (capsule.b - capsule.a).norm()
        band = ((from_wrist % 26.0) < 7.0).float()
        colour = colour * (1 - capsule.tool.bands * band[:, None])
    if capsule.frame is not None:
        colour = _wear(p, capsule, colour)
    return normal, colour


def _wear(p, capsule, colour):
    """Brush marks round a framed capsule, and blood that thins out from its outer end; both turn with it."""
    local = (p - capsule.b) @ capsule.frame
    angle, along = torch.atan2(local[:, 2], local[:, 1]), -local[:, 0]
    phase = capsule.tool.phase + capsule.part
    colour = colour * (1 + 0.07 * torch.sin(19 * angle + phase) * torch.sin(5 * angle + 0.7 * along))[:, None]
    if capsule.tool.blood:
        patch = torch.sin(angle + 0.31 * along + phase) + torch.sin(2 * angle - 0.17 * along + 2 * phase)
        near_end = torch.exp(along.clamp(min=0) / (-60 * capsule.tool.blood))
        smear = torch.sigmoid(3 * (patch - 2.0 + 2.0 * near_end))
        colour = torch.lerp(colour, torch.tensor((0.20, 0.018, 0.014), device=p.device), 0.8 * smear[:, None])
    return colour


def carry(p, now, later):
    """Points p (N, 3) on capsule `now`, moved rigidly with it to `later`."""
    if now.frame is not None:
        return (p - now.b) @ now.frame @ later.frame.T + later.b
    fraction = axis_fraction(p, now)[:, None]
    return p - (now.a + fraction * (now.b - now.a)) + later.a + fraction * (later.b - later.a)
