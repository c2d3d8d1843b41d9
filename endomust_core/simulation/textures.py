"""Tileable random textures on a surface chart: spectral noise, vessels, and mip-mapped sampling.

Maps are (V, U) or (C, V, U).
"""

import math

import torch
import torch.nn.functional as F

TAU = 2 * math.pi
PAD = 2  # texels copied across each seam, so that bilinear taps never see it


def spectral_noise(shape, extent, wavelength, generator, slope=1.0):
    """Smooth periodic noise of zero mean and unit variance, (V, U) float32.

    shape: (V, U) texels; extent: (height, width) of the chart [mm]; wavelength: (shortest, longest) [mm] kept, with
    amplitude falling as frequency^-slope between them. White noise is shaped in the Fourier domain, so the map tiles.
    """
    v, u = shape
    white = torch.fft.rfft2(torch.randn(v, u, generator=generator))
    fy = torch.fft.fftfreq(v, d=extent[0] / v)[:, None]
    fx = torch.fft.rfftfreq(u, d=extent[1] / u)[None]
    f = torch.sqrt(fy * fy + fx * fx)
    shortest, longest = wavelength
    band = torch.exp(-((f * shortest) ** 2)) * (1 - torch.exp(-((f * longest) ** 2)))
    shaped = torch.fft.irfft2(white * band * f.clamp(min=1e-6) ** -slope, s=(v, u))
    return shaped / shaped.std().clamp(min=1e-9)


def warp(image, dv, du):
    """Displace a periodic (V, U) map by dv, du texels (nearest neighbour: good enough to bend vessels)."""
    v, u = image.shape
    rows = (torch.arange(v)[:, None] + dv).round().long() % v
    columns = (torch.arange(u)[None] + du).round().long() % u
    return image[rows, columns]


def vessels(shape, extent, wavelength, width, generator, octaves=3):
    """Vein-like network in [0, 1]: zero level sets of warped noise, finer per octave, gated so that branches end."""
    v, u = shape
    texel = extent[1] / u
    out = torch.zeros(shape)
    for octave in range(octaves):
        scale = wavelength / 1.8**octave
        noise = spectral_noise(shape, extent, (scale * 0.5, scale * 2), generator)
        bend = 0.25 * scale / texel
        wiggle = (scale * 0.3, scale)
        dv = bend * spectral_noise(shape, extent, wiggle, generator)
        du = bend * spectral_noise(shape, extent, wiggle, generator)
        thickness = width * (
            0.6 + 0.5 * torch.sigmoid(2 * spectral_noise(shape, extent, (scale, 4 * scale), generator))
        )
        ridge = torch.exp(-((warp(noise, dv, du) / thickness) ** 2))
        gate = torch.sigmoid(5 * (spectral_noise(shape, extent, (scale, 4 * scale), generator) - 0.2))
        out = torch.maximum(out, ridge * gate * (1.0 if octave == 0 else 0.75))
    return out


class Texture:
    """A periodic map sampled bilinearly at chart coordinates u, v in turns (1 = once round); optionally mip-mapped."""

    def __init__(self, maps, levels=1):
        """maps: (C, V, U); levels: how many times halved resolutions are kept."""
        self.channels, self.rows, self.columns = maps.shape
        self.levels = []
        level = maps[None]
        for _ in range(levels):
            self.levels.append(F.pad(level, (PAD,) * 4, mode="circular").contiguous())
            level = F.avg_pool2d(level, 2)

    def to(self, device):
        self.levels = [level.to(device) for level in self.levels]
        return self

    def sample(self, u, v, level=0):
        """u, v: (N,) turns → (C, N)."""
        padded = self.levels[level]
        rows, columns = padded.shape[2] - 2 * PAD, padded.shape[3] - 2 * PAD
        x = ((u - torch.floor(u)) * columns + (PAD - 0.5)) * (2.0 / (columns + 2 * PAD - 1)) - 1
        y = ((v - torch.floor(v)) * rows + (PAD - 0.5)) * (2.0 / (rows + 2 * PAD - 1)) - 1
        grid = torch.stack((x, y), -1).view(1, 1, -1, 2)
        return F.grid_sample(padded, grid, mode="bilinear", align_corners=True)[0, :, 0]

    def sample_mip(self, u, v, footprint):
        """Trilinear: footprint (N,) is the pixel's size in texels of level 0; blends the two nearest levels."""
        lod = torch.log2(footprint.clamp(min=1.0)).clamp(max=len(self.levels) - 1)
        out = torch.zeros(self.channels, u.shape[0], device=u.device)
        for level in range(len(self.levels)):
            weight = (1 - (lod - level).abs()).clamp(min=0)
            used = weight.nonzero(as_tuple=True)[0]
            if used.numel():
                out[:, used] += weight[used] * self.sample(u[used], v[used], level)
        return out
