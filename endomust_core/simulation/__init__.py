"""Procedural endoscope: renders colour, metric depth, albedo, shading, flow, masks and poses of three domains,
reproducibly.

for frame in render("colon", frames=25, seed=3): frame.rgb, frame.depth, ...
"""

from endomust_core.simulation.domains import DOMAINS
from endomust_core.simulation.renderer import Frame, Renderer

__all__ = ["DOMAINS", "Frame", "Renderer", "render", "renderer"]


def renderer(domain, size=(256, 320), seed=0, fps=25.0, detail=1024, device="cpu"):
    """A `Renderer` for one random sequence of a domain. Raises ValueError for an unknown domain or an odd size."""
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain!r}; choose one of {', '.join(DOMAINS)}")
    return Renderer(DOMAINS[domain](seed, detail), size, seed, fps, device)


def render(domain, frames, size=(256, 320), seed=0, fps=25.0, detail=1024, device="cpu"):
    """Yield `frames` consecutive `Frame`s of one random sequence: same arguments, same bits (CPU, one thread).

    size: (height, width), multiples of 8; fps: frames per second of scene time; detail: rows of the texture maps.
    """
    drawn = renderer(domain, size, seed, fps, detail, device)
    for number in range(frames):
        yield drawn.frame(number)
