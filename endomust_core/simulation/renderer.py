"""Renders one endoscopic sequence: trace the wall, meet the instruments, shade, expose.
Scene in mm, results in metres and pixels.

Rays have z = 1 in the camera frame, so the ray parameter *is* the depth along the optical axis.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from endomust_core.camera import Camera
from endomust_core.simulation import instruments, optics
from endomust_core.simulation.surfaces import march, normals

MM = 1e-3


@dataclass(frozen=True)
class Scene:
    """Everything one sequence needs; `domains` draws it from a seed.

    `appearance` maps are albedo RGB, two bump slopes, gloss.
    """

    domain: str
    surface: object
    appearance: object
    texel: float  # [mm] of the finest appearance map
    look: optics.Look
    lens: optics.Lens
    tools: tuple
    pose: object  # time [s] → (4, 4) float32 camera-to-world [mm]
    far: float  # farthest depth traced [mm]
    normal_step: float  # [mm]
    fine: object = None  # Texture of an albedo factor and two slopes, `repeats` times along and across the appearance
    repeats: int = 1


@dataclass(frozen=True)
class Frame:
    """One rendered image with its truth. Arrays are numpy; H x W is the image size.

    rgb (H, W, 3) uint8; depth (H, W) float32 [m] along the optical axis; albedo, shading (H, W, 3) and specular (H, W)
    float32 linear: the sensor receives white balance * (albedo * shading + specular), behind smoke if there is any;
    normal (H, W, 3) in the camera frame; flow (H, W, 2) [pixels] to the next frame and depth_next (H, W) [m], the
    depth which that point has there; instrument, fov (H, W) bool; T_world_camera (4, 4) [m]; stamp [s].
    """

    rgb: np.ndarray
    depth: np.ndarray
    albedo: np.ndarray
    shading: np.ndarray
    specular: np.ndarray
    normal: np.ndarray
    flow: np.ndarray
    depth_next: np.ndarray
    instrument: np.ndarray
    fov: np.ndarray
    T_world_camera: np.ndarray
    stamp: float
    camera: Camera


class Renderer:
    """Draws a scene frame by frame; remembers only the exposure and the noise generator."""

    def __init__(self, scene, size, seed, fps=25.0, device="cpu"):
        """size: (height, width), both multiples of 8."""
        height, width = size
        if height % 8 or width % 8 or min(size) < 64:
            raise ValueError(f"render size {height}x{width}: height and width must be multiples of 8 and at least 64")
        self.scene, self.size, self.fps, self.device = scene, (height, width), fps, device
        scene.surface.to(device)
        scene.appearance.to(device)
        lens = scene.lens
        self.camera = Camera(
            width, height, lens.focal * width, lens.focal * lens.aspect * width,
            (0.5 + lens.offset[0]) * width - 0.5, 0.5 * height + lens.offset[1] * width - 0.5,
            *(("plumb_bob", (lens.k1, lens.k2, 0.0, 0.0, 0.0)) if lens.k1 or lens.k2 else ("pinhole", ())),
        )  # fmt: skip
        v, u = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
        self.pixels = torch.stack((u, v), -1).to(device)
        x, y = optics.undistort(lens, (u - self.camera.cx) / self.camera.fx, (v - self.camera.cy) / self.camera.fy)
        self.rays = torch.stack((x, y, torch.ones_like(x)), -1).to(device)  # (H, W, 3)
        self.fov = optics.field_of_view(lens, height, width).to(device)
        self.outside = optics.surround(lens, self.fov) if scene.look.processor else None
        self.vignette = ((1 + x * x + y * y) ** (-2 * scene.look.vignette)).to(device)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.gain = None
        if scene.fine:
            scene.fine.to(device)
            self.fine_texel = scene.texel * scene.appearance.columns / (scene.repeats * scene.fine.columns)

    def _project(self, p_camera):
        x, y = optics.distort(self.scene.lens, p_camera[:, 0] / p_camera[:, 2], p_camera[:, 1] / p_camera[:, 2])
        return torch.stack((self.camera.fx * x + self.camera.cx, self.camera.fy * y + self.camera.cy), -1)

    def _trace(self, origin, rotation, t):
        """Depth [mm] of the wall, (H, W): coarse to fine, each level starting just before the nearest coarse
        neighbour.
        """
        height, width = self.size
        world = self.rays @ rotation.T
        depth = None
        for stride, steps, tolerance, shrink, back in (
            (8, 72, 0.15, 0, 0),
            (4, 40, 0.10, 0.90, 0.3),
            (2, 28, 0.06, 0.95, 0.1),
            (1, 40, 0.03, 0.99, 0.05),
        ):
            offset = stride // 2 if stride > 1 else 0
            grid = world[offset::stride, offset::stride]
            shape = grid.shape[:2]
            if depth is None:
                start = torch.full((shape[0] * shape[1],), 0.5, device=self.device)
            else:
                nearest = -F.max_pool2d(-depth[None, None], 3, 1, 1)
                start = (F.interpolate(nearest, size=shape, mode="nearest").view(-1) * shrink - back).clamp(min=0.3)
            directions = grid.reshape(-1, 3).T.contiguous()
            hit = march(self.scene.surface, origin.tolist(), directions, start, t, steps, tolerance, self.scene.far)
            depth = hit.view(shape)
        return depth, world.reshape(-1, 3)

    def _meet_tools(self, origin, directions, depth, t):
        """Depth (N,) with instruments in front, and the index (N,) of the capsule seen there (0 = tissue)."""
        parts = [capsule for tool in self.scene.tools for capsule in instruments.capsules(tool, t)]
        index = torch.zeros_like(depth, dtype=torch.long)
        for i, capsule in enumerate(parts):
            rays = None
            if capsule.frame is not None:
                rays = instruments.candidates(origin, directions.view(*self.size, 3), capsule, 1 / self.camera.fx)
            if rays is not None:
                hit = instruments.hit_capsule(origin, directions[rays], capsule)
                nearer = hit < depth[rays]
                depth[rays[nearer]], index[rays[nearer]] = hit[nearer], i + 1
                continue
            hit = instruments.hit_capsule(origin, directions, capsule)
            nearer = hit < depth
            depth = torch.where(nearer, hit, depth)
            index[nearer] = i + 1
        return depth, index, parts

    def frame(self, number):
        """Render frame `number` (call in order: exposure and noise go on from frame to frame) → Frame."""
        return self.at(number / self.fps, (number + 1) / self.fps)

    @torch.no_grad()
    def at(self, t, t_next):
        """Render the view at time t [s]; flow leads to the view at t_next."""
        scene, look, (height, width) = self.scene, self.scene.look, self.size
        pose = scene.pose(t).to(self.device)
        rotation, origin = pose[:3, :3], pose[:3, 3]
        depth, directions = self._trace(origin, rotation, t)
        depth, part, parts = self._meet_tools(origin, directions, depth.reshape(-1), t)
        points = origin + directions * depth[:, None]
        view = -F.normalize(directions, dim=-1)

        # --- material
        geometric = normals(scene.surface, points, t, scene.normal_step)
        u, v, along_u, along_v = scene.surface.chart(points, t)
        slant = (geometric * view).sum(-1).clamp(0.12, 1)
        footprint = depth / self.camera.fx / torch.sqrt(slant)
        maps = scene.appearance.sample_mip(u, v, footprint / scene.texel)
        albedo, gloss = maps[:3].T.contiguous(), maps[5] ** 2 * look.specular * 0.55
        if scene.fine:
            fine = scene.fine.sample(u * scene.repeats, v * scene.repeats) * (self.fine_texel / footprint).clamp(max=1)
            albedo = (albedo * (1 + fine[:1].T)).clamp(0.015, 0.95)
            maps[3:5] += fine[1:]
        tilt = maps[3, :, None] * along_u + maps[4, :, None] * along_v
        matte, shiny = (
            F.normalize(geometric + look.bump * tilt, dim=-1),
            F.normalize(geometric + 1.3 * look.bump * tilt, dim=-1),
        )
        for i, capsule in enumerate(parts):
            on = (part == i + 1).nonzero(as_tuple=True)[0]
            if on.numel():
                normal, colour = instruments.paint(points[on], capsule)
                albedo[on], geometric[on], matte[on], shiny[on] = colour, normal, normal, normal
                gloss[on] = capsule.tool.gloss
        matte, shiny, geometric = (_face(n, view) for n in (matte, shiny, geometric))

        # --- light
        diffuse, specular = optics.illuminate(
            look, points, matte, shiny, view, gloss, rotation, origin, self._shadow(points, part, parts)
        )
        image = lambda a: a.T.reshape(-1, height, width) if a.dim() == 2 else a.view(1, height, width)  # noqa: E731
        albedo, diffuse, specular = image(albedo), image(diffuse), image(specular)
        sent = albedo * diffuse
        if math.isfinite(look.spill):
            sent = torch.minimum(sent, look.spill * sent.mean())
        shading = diffuse + optics.bounce(sent, look.ambient)
        shading = self._polish(shading, sent, geometric @ rotation, part, parts)
        balance = torch.tensor(look.white_balance, device=self.device).view(3, 1, 1)
        linear = (albedo * shading + specular) * balance * self.vignette
        if look.smoke:
            thick = depth.view(1, height, width)
            if look.plume:
                thick = thick * optics.plume(look, height, width, t, self.device)
            veil = 1 - torch.exp(-look.smoke * MM * thick)
            linear = linear * (1 - veil) + veil * linear.mean() * 1.5
        self.gain = optics.exposure(look, linear, self.fov, self.gain)
        flow, depth_next = self._flow(points, part, parts, t, t_next)
        rgb = optics.develop(
            look, linear * self.gain, flow, self.fov, self.generator, depth.view(height, width), self.outside
        )

        hwc = lambda a: a.permute(1, 2, 0).cpu().numpy()  # noqa: E731
        seen = self.gain * self.vignette
        T = pose.double().cpu().numpy()
        T[:3, 3] *= MM
        return Frame(
            rgb=rgb.cpu().numpy(), depth=(depth.view(height, width) * MM).cpu().numpy(), albedo=hwc(albedo),
            shading=hwc(shading * seen), specular=(specular[0] * seen).cpu().numpy(),
            normal=(geometric @ rotation).view(height, width, 3).cpu().numpy(), flow=flow.cpu().numpy(),
            depth_next=(depth_next * MM).cpu().numpy(), instrument=(part > 0).view(height, width).cpu().numpy(),
            fov=(self.fov > 0.5).cpu().numpy(), T_world_camera=T, stamp=t, camera=self.camera,
        )  # fmt: skip

    def _polish(self, shading, sent, normals, part, parts):
        """Polished instruments show less of their own colour and more of what lies around; (3, H, W) → same.

        It goes into the shading, so that albedo * shading still is what the surface sends.
        """
        for i, capsule in enumerate(parts):
            mirror = capsule.tool.mirror
            on = (part == i + 1).nonzero(as_tuple=True)[0] if mirror else part[:0]
            if on.numel():
                flat = shading.view(3, -1)
                flat[:, on] = (1 - 0.6 * mirror) * flat[:, on] + 1.6 * mirror * optics.mirrored(sent, on, normals[on]).T
        return shading

    def _shadow(self, points, part, parts):
        """Who stands in the shadow of an instrument's shaft or wrist, as a function of the lamp's position."""

        def occluded(lamp):
            coarse = any(capsule.frame is not None for capsule in parts)  # a quarter of the points, and softer edges
            at = points.view(*self.size, 3)[1::2, 1::2].reshape(-1, 3) if coarse else points
            dark = torch.zeros(at.shape[0], dtype=torch.bool, device=self.device)
            for capsule in parts:
                if capsule.part < 2:
                    hit = instruments.hit_capsule(at, lamp - at, capsule)
                    dark |= hit < 1
            if coarse:
                half = dark.view(1, 1, self.size[0] // 2, self.size[1] // 2).float()
                half = F.avg_pool2d(half, 3, 1, 1)  # the lamp has some width
                soft = F.interpolate(half, size=self.size, mode="bilinear", align_corners=False)
                return soft.view(-1) * (part == 0)
            return dark & (part == 0)

        return occluded

    def _flow(self, points, part, parts, t, t_next):
        """Where every visible point goes in the next image: flow (H, W, 2) [pixels] and its depth there (H, W) [mm]."""
        moved = self.scene.surface.advect(points, t, t_next)
        if parts:
            later = [capsule for tool in self.scene.tools for capsule in instruments.capsules(tool, t_next)]
            moved = moved.clone()
            for i, (a, b) in enumerate(zip(parts, later, strict=True)):
                on = (part == i + 1).nonzero(as_tuple=True)[0]
                if on.numel():
                    moved[on] = instruments.carry(points[on], a, b)
        pose = self.scene.pose(t_next).to(self.device)
        in_next = (moved - pose[:3, 3]) @ pose[:3, :3]
        height, width = self.size
        return self._project(in_next).view(height, width, 2) - self.pixels, in_next[:, 2].view(height, width)


def _face(normal, view):
    """Turn normals that look away from the viewer (grazing silhouettes) just towards it, else they render as black
    rims.
    """
    short = (0.06 - (normal * view).sum(-1, keepdim=True)).clamp(min=0)
    return F.normalize(normal + short * view, dim=-1)


def look_at(position, target, roll=0.0):
    """Camera-to-world (4, 4): optical axis z from position to target, y down, rolled about z [rad]."""
    forward = F.normalize(target - position, dim=0)
    down = torch.tensor((math.sin(roll), math.cos(roll), 0.0))
    right = F.normalize(torch.linalg.cross(down, forward), dim=0)
    pose = torch.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, torch.linalg.cross(forward, right), forward, position
    return pose
