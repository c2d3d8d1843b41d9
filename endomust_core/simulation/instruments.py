"""Laparoscopic instruments: shaft, wrist and two jaws as moving capsules, met by rays in closed form. Units: mm, s."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from endomust_core.simulation.textures import TAU


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


@dataclass(frozen=True)
class Capsule:
    """A segment a → b [mm] with a radius; `part` 0 is the shaft."""

    a: torch.Tensor
    b: torch.Tensor
    radius: float
    part: int
    tool: Instrument


def capsules(tool, t):
    """The instrument at time t [s] as four capsules: shaft, wrist, two jaws that open and close."""
    swing = [
        a * math.sin(TAU * t / p + tool.phase + i)
        for i, (a, p) in enumerate(zip(tool.amplitude, tool.period, strict=True))
    ]
    base = torch.tensor(tool.base)
    tip = torch.tensor(tool.tip) + torch.tensor(swing)
    axis = F.normalize(tip - base, dim=0)
    side = F.normalize(torch.linalg.cross(axis, torch.tensor((0.0, 0.0, 1.0))), dim=0)
    wrist = tip - 13 * axis
    opening = 0.28 + 0.22 * math.sin(TAU * t / 1.6 + tool.phase)
    jaw = [10 * (axis * math.cos(opening) + sign * side * math.sin(opening)) for sign in (1, -1)]
    return [
        Capsule(base, wrist, tool.radius, 0, tool),
        Capsule(wrist, tip - axis, tool.radius * 0.62, 1, tool),
        Capsule(tip - axis, tip + jaw[0], tool.radius * 0.31, 2, tool),
        Capsule(tip - axis, tip + jaw[1], tool.radius * 0.31, 3, tool),
    ]


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
        colour = colour * (1 - 0.75 * band[:, None])
    return normal, colour


def carry(p, now, later):
    """Points p (N, 3) on capsule `now`, moved rigidly with it to `later`."""
    fraction = axis_fraction(p, now)[:, None]
    return p - (now.a + fraction * (now.b - now.a)) + later.a + fraction * (later.b - later.a)
