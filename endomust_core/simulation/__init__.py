"""Procedural endoscope: renders colour, metric depth, albedo, shading, flow, masks and poses of four domains,
reproducibly.

for frame in render("colon", frames=25, seed=3): frame.rgb, frame.depth, ...
"""

from endomust_core.simulation.domains import DOMAINS
from endomust_core.simulation.renderer import Frame, Renderer

VARIETIES = ("plain", "wide")  # wide: more kinds of instruments, tissue, light, cameras and processors

__all__ = ["DOMAINS", "VARIETIES", "Frame", "Renderer", "render", "renderer"]


def renderer(domain, size=(256, 320), seed=0, fps=25.0, detail=1024, device="cpu", variety="plain"):
    """A `Renderer` for one random sequence of a domain; variety: one of VARIETIES.

    Raises ValueError for an unknown domain or variety, or an odd size.
    """
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain!r}; choose one of {', '.join(DOMAINS)}")
    if variety not in VARIETIES:
        raise ValueError(f"unknown variety {variety!r}; choose one of {', '.join(VARIETIES)}")
    return Renderer(DOMAINS[domain](seed, detail, variety=variety), size, seed, fps, device)


def render(domain, frames, size=(256, 320), seed=0, fps=25.0, detail=1024, device="cpu", variety="plain"):
    """Yield `frames` consecutive `Frame`s of one random sequence: same arguments, same bits (CPU, one thread).

    size: (height, width), multiples of 8; fps: frames per second of scene time; detail: rows of the texture maps.
    variety: "plain", or "wide" for scenes that differ more from one another.
    """
    drawn = renderer(domain, size, seed, fps, detail, device, variety)
    for number in range(frames):
        yield drawn.frame(number)
