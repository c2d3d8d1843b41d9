"""Tissue walls as height textures over a chart: one bilinear look-up gives the signed clearance, whatever the detail.
Units: mm, s.

`clearance(x, y, z, t)` is positive in free space, zero on the wall, negative inside tissue; it is not a distance,
but its slope is bounded, so a ray may safely advance by `lipschitz * clearance`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from endomust_core.simulation.textures import TAU, Texture


@dataclass(frozen=True)
class Turbinate:
    """A wobbly capsule hanging in the nasal cavity, along z from z0 to z1 [mm]; squash flattens it sideways."""

    x: float
    y: float
    z0: float
    z1: float
    radius: float
    squash: float
    shade: float  # where on the chart its colour is taken [turns]


class Tube:
    """Colon- or sinus-like tube: |p_xy - c(z)| = r(theta, z) * pulse(z, t); periodic in z with `length`."""

    def __init__(
        self, radius_map, length, radius, bend=(0.0, 1.0, 0.0, 1.0), pulse=(0.0, 1.0, 0.0), turbinates=(), lipschitz=0.6
    ):
        """radius_map (V, U) [mm] over (z, theta).

        bend: amplitude and period of x, then of y [mm]; pulse: amplitude (share of r), wavelength [mm], rate [Hz].
        """
        self.radius_map = Texture(radius_map[None])
        self.length, self.radius, self.bend, self.pulse = length, radius, bend, pulse
        self.turbinates, self.lipschitz, self.blend = turbinates, lipschitz, 1.5
        self.texel = (length / radius_map.shape[0], TAU * radius / radius_map.shape[1])

    def to(self, device):
        self.radius_map.to(device)
        return self

    def centre(self, z):
        """Centre line at z (tensor or float): x, y [mm]."""
        ax, px, ay, py = self.bend
        sin = torch.sin if torch.is_tensor(z) else math.sin
        return ax * sin(z * (TAU / px)), ay * sin(z * (TAU / py) + 1.0)

    def swelling(self, z, t):
        """Peristalsis: factor on the radius."""
        amplitude, wavelength, rate = self.pulse
        return 1 + amplitude * torch.sin(z * (TAU / wavelength) - TAU * rate * t) if amplitude else 1.0

    def _capsule(self, item, x, y, z):
        along = z.clamp(item.z0, item.z1)
        ex = (x - item.x - 0.035 * (along - item.z0)) * item.squash
        ey = (y - item.y + 0.02 * (along - item.z0)) / item.squash
        ez = z - along
        distance = torch.sqrt(ex * ex + ey * ey + ez * ez + 1e-9)
        return (distance - item.radius * (1 + 0.004 * (along - item.z0))) * 0.9, ex, ey, ez

    def clearance(self, x, y, z, t):
        cx, cy = self.centre(z)
        ex, ey = x - cx, y - cy
        r = self.radius_map.sample(torch.atan2(ey, ex) / TAU, z / self.length)[0] * self.swelling(z, t)
        out = r - torch.sqrt(ex * ex + ey * ey)
        for item in self.turbinates:
            d = self._capsule(item, x, y, z)[0]
            h = (0.5 + 0.5 * (d - out) / self.blend).clamp(0, 1)  # polynomial smooth minimum
            out = torch.lerp(d, out, h) - self.blend * h * (1 - h)
        return out

    def chart(self, p, t):
        """p (N, 3) on the wall → u, v [turns] and the two chart directions (N, 3) that bumps follow."""
        x, y, z = p.unbind(-1)
        cx, cy = self.centre(z)
        ex, ey = x - cx, y - cy
        rho = torch.sqrt(ex * ex + ey * ey + 1e-9)
        u, v = torch.atan2(ey, ex) / TAU, z / self.length
        zero = torch.zeros_like(x)
        along_u = torch.stack((-ey / rho, ex / rho, zero), -1)
        along_v = torch.stack((zero, zero, torch.ones_like(x)), -1)
        if self.turbinates:
            wall = self.radius_map.sample(u, v)[0] * self.swelling(z, t) - rho
            for item in self.turbinates:
                d, bx, by, bz = self._capsule(item, x, y, z)
                inside = d < wall
                wall = torch.minimum(wall, d)
                # An oblique plane chart: unlike an angle it has no pole at the tip, where the camera looks.
                u = torch.where(inside, item.shade + (by + 0.35 * bx) / (TAU * self.radius), u)
                v = torch.where(inside, (z + 0.8 * bx + 9 * item.y) / self.length, v)
                round_ = F.normalize(torch.stack((-by, bx, zero), -1), dim=-1)
                along_u = torch.where(inside[:, None], round_, along_u)
        return u, v, along_u, along_v

    def advect(self, p, t0, t1):
        """Where the tissue point p (N, 3) at time t0 is at t1: the wall swells about the centre line."""
        if not self.pulse[0]:
            return p
        z = p[:, 2]
        cx, cy = self.centre(z)
        factor = self.swelling(z, t1) / self.swelling(z, t0)
        return torch.stack((cx + (p[:, 0] - cx) * factor, cy + (p[:, 1] - cy) * factor, z), -1)


class Plane:
    """Abdominal scene: p_z = height(x, y) + breathing(x, y, t), seen from below (smaller z); periodic in x and y."""

    def __init__(self, height_map, size, breathing=(0.0, 0.25), lipschitz=0.55):
        """height_map (V, U) [mm] over (y, x); size: edge of the period [mm]; breathing: amplitude [mm], Hz."""
        self.height_map = Texture(height_map[None])
        self.size, self.breathing, self.lipschitz = size, breathing, lipschitz
        self.texel = (size / height_map.shape[0], size / height_map.shape[1])

    def to(self, device):
        self.height_map.to(device)
        return self

    def _breath(self, x, y, t):
        amplitude, rate = self.breathing
        if not amplitude:
            return 0.0
        swell = torch.exp(((x - 10) ** 2 + (y + 5) ** 2) * (-1 / (2 * 45.0**2)))
        return amplitude * math.sin(TAU * rate * t) * swell

    def clearance(self, x, y, z, t):
        height = self.height_map.sample(x / self.size + 0.5, y / self.size + 0.5)[0]
        return height + self._breath(x, y, t) - z

    def chart(self, p, t):
        x, y = p[:, 0], p[:, 1]
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        along_u, along_v = torch.stack((one, zero, zero), -1), torch.stack((zero, one, zero), -1)
        return x / self.size + 0.5, y / self.size + 0.5, along_u, along_v

    def advect(self, p, t0, t1):
        if not self.breathing[0]:
            return p
        lift = self._breath(p[:, 0], p[:, 1], t1) - self._breath(p[:, 0], p[:, 1], t0)
        return torch.stack((p[:, 0], p[:, 1], p[:, 2] + lift), -1)


class Cavity:
    """Stomach-like cavity, star-shaped about the origin: |p| = r(direction) * swelling(direction, t).

    Its chart is the globe with poles at +y and -y, u about y from +z, v from pole to pole in half a turn. The maps go
    on over the poles, and so have no seam.
    """

    def __init__(self, radius_map, pulse=(0.0, 1.0, 0.0), breath=(0.0, 0.0), reach=10.0):
        """radius_map (V, U) [mm] at the directions of `globe`; reach [mm]: larger clearances are cut to it.

        pulse: amplitude (share of r), waves along z, rate [Hz], strongest at +z; breath: amplitude (share), rate [Hz].
        """
        rows, columns = radius_map.shape
        whole = over_the_poles(radius_map)
        self.radius_map, self.pulse, self.breath, self.reach = Texture(whole[None]), pulse, breath, reach
        self.radius = float(radius_map.mean())
        self.texel = (math.pi * self.radius / rows, TAU * self.radius / columns)
        # Steepness of the wall against the sphere through it, of which the safe step follows.
        v = (torch.arange(rows) + 0.5) * (math.pi / rows)
        slope_v = (whole.roll(-1, 0) - whole.roll(1, 0))[:rows] / (2 * math.pi / rows)
        slope_u = (whole.roll(-1, 1) - whole.roll(1, 1))[:rows] / (2 * TAU / columns * torch.sin(v)[:, None])
        steepness = torch.quantile(torch.hypot(slope_u, slope_v) / radius_map, 0.999) + TAU * pulse[1] * pulse[0]
        self.lipschitz = float(0.9 / torch.sqrt(1 + steepness**2))

    def to(self, device):
        self.radius_map.to(device)
        return self

    def swelling(self, axial, t):
        """Contraction waves and breathing: factor on the radius where the direction's z is `axial`."""
        amplitude, waves, rate = self.pulse
        strength = amplitude * (0.5 + 0.5 * axial) ** 2
        wave = torch.sin(axial * (TAU * waves) - TAU * rate * t)
        return 1 + strength * wave + self.breath[0] * math.sin(TAU * self.breath[1] * t)

    def _turns(self, x, y, z):
        return torch.atan2(x, z) / TAU, torch.atan2(torch.sqrt(x * x + z * z), y) / TAU

    def clearance(self, x, y, z, t):
        rho = torch.sqrt(x * x + y * y + z * z + 1e-9)
        r = self.radius_map.sample(*self._turns(x, y, z))[0] * self.swelling(z / rho, t)
        # Near the origin a small step changes the direction, and with it r, a lot: far from the wall r says little.
        return (r - rho).clamp(max=self.reach)

    def chart(self, p, t):
        """p (N, 3) on the wall → u, v [turns] and the two chart directions (N, 3), those of growing u and v."""
        u, v = self._turns(*p.unbind(-1))
        sin_u, cos_u, sin_v, cos_v = torch.sin(TAU * u), torch.cos(TAU * u), torch.sin(TAU * v), torch.cos(TAU * v)
        along_u = torch.stack((cos_u, torch.zeros_like(u), -sin_u), -1)
        along_v = torch.stack((cos_v * sin_u, -sin_v, cos_v * cos_u), -1)
        return u, v, along_u, along_v

    def advect(self, p, t0, t1):
        """Where the tissue point p (N, 3) at time t0 is at t1: the wall swells about the origin."""
        axial = p[:, 2] / p.norm(dim=-1).clamp(min=1e-6)
        return p * (self.swelling(axial, t1) / self.swelling(axial, t0))[:, None]


def globe(rows, columns):
    """Unit vectors (3, rows, columns) of the texels of a `Cavity`'s maps: v from +y to -y, u about y from +z."""
    v = ((torch.arange(rows) + 0.5) * (math.pi / rows))[:, None]
    u = ((torch.arange(columns) + 0.5) * (TAU / columns))[None]
    return torch.stack((torch.sin(v) * torch.sin(u), torch.cos(v).expand(rows, columns), torch.sin(v) * torch.cos(u)))


def over_the_poles(maps):
    """Maps (..., V, U) from pole to pole → (..., 2V, U), which go on over the pole on the far side, and so tile."""
    return torch.cat((maps, maps.flip(-2).roll(maps.shape[-1] // 2, -1)), -2)


def normals(surface, p, t, step):
    """Unit normals (N, 3) at p, into free space: the gradient of the clearance by four taps on a tetrahedron of edge ~
    step [mm].
    """
    x, y, z = p.unbind(-1)
    total = torch.zeros_like(p)
    for sx, sy, sz in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        f = surface.clearance(x + sx * step, y + sy * step, z + sz * step, t)
        total += f[:, None] * torch.tensor((sx, sy, sz), dtype=p.dtype, device=p.device)
    return F.normalize(total, dim=-1)


def march(surface, origin, directions, start, t, steps, tolerance, far, newton_cap=1.2):
    """Advance rays to the wall. origin: 3 floats; directions: (3, N), z component along the optical axis not needed;
    start (N,) ray parameter → (N,) ray parameter of the first hit (secant-refined), at most `far`.

    Each step is the larger of the safe one (clearance x lipschitz) and a Newton step from the last two samples,
    capped so that thin folds are not jumped over; rays that have arrived leave the working set.
    """
    ox, oy, oz = origin
    dx, dy, dz = directions
    safe = surface.lipschitz / torch.sqrt(dx * dx + dy * dy + dz * dz)
    result, live = start.clone(), None
    now, before = start.clone(), start.clone()
    f_before = torch.full_like(now, 1e3)
    for i in range(steps):
        f = surface.clearance(ox + dx * now, oy + dy * now, oz + dz * now, t)
        moving = (f > tolerance) & (now < far)
        if i == steps - 1:
            moving = torch.zeros_like(moving)
        keep = moving.nonzero(as_tuple=True)[0]
        if keep.numel() < 0.85 * now.numel():  # retire the arrived rays, compact the rest
            drop = f_before - f
            hit = torch.where(
                (drop > 1e-4) & (f_before < 50), before + (now - before) * (f_before / drop).clamp(0, 1.6), now
            )
            if live is None:
                result = hit.clone()
            else:
                result[live] = hit
            if keep.numel() == 0:
                break
            live = keep if live is None else live[keep]
            dx, dy, dz, safe, now, before, f, f_before = (a[keep] for a in (dx, dy, dz, safe, now, before, f, f_before))
            moving = None
        step = f * safe
        if i:
            fall = f_before - f
            newton = (f * (now - before) / fall.clamp(min=1e-6) * 0.97).clamp(max=newton_cap)
            step = torch.maximum(step, torch.where(fall > 1e-6, newton, step))
        step = step + 0.01
        if moving is not None:  # the few arrived rays that have not been retired yet stand still
            step = step * moving
            before, f_before = torch.where(moving, now, before), torch.where(moving, f, f_before)
        else:
            before, f_before = now, f
        now = now + step
    return result.clamp(max=far)
