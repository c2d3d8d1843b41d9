"""Measures the renderer: does its truth agree with itself, what do its images look like, how long does a frame take.

    python -m endomust_core.simulation.check --scenes 4 --frames 3

For every domain: median time of a frame; share of visible points that the flow does not explain; error of the depth
found where the flow leads; error of colour and of albedo along the true flow and without motion; luminance percentiles.
"""

import argparse
import time

import cv2
import numpy as np
import torch

from endomust_core.simulation import DOMAINS, renderer

COLUMNS = (
    ("ms/frame", "{:.0f}"),
    ("unexplained [%]", "{:.1f}"),
    ("depth p50 [mm]", "{:.4f}"),
    ("depth p95 [mm]", "{:.3f}"),
    ("colour, true flow", "{:.2f}"),
    ("colour, no motion", "{:.2f}"),
    ("albedo, true flow", "{:.4f}"),
    ("albedo, no motion", "{:.4f}"),
    ("L5", "{:.2f}"),
    ("L50", "{:.2f}"),
    ("L95", "{:.2f}"),
)


def compare(now, later):
    """What the truth of one frame says about the next → values for COLUMNS[1:]."""
    height, width = now.depth.shape
    v, u = np.mgrid[:height, :width].astype(np.float32)
    x, y = u + now.flow[..., 0].astype(np.float32), v + now.flow[..., 1].astype(np.float32)
    warp = lambda image: cv2.remap(image, x, y, cv2.INTER_LINEAR)  # noqa: E731
    inside = (
        (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2) & now.fov & (warp(later.fov.astype(np.float32)) > 0.99)
    )
    error = np.abs(warp(later.depth) - now.depth_next)
    seen = inside & (error < 0.02 * now.depth + 3e-4)
    hidden = inside & (warp(later.depth) < now.depth_next - 0.02 * now.depth - 3e-4)  # something stands in front there
    difference = lambda a, b: np.abs(a.astype(np.float32) - b).mean(-1)[seen].mean()  # noqa: E731
    luminance = (now.rgb @ np.array((0.299, 0.587, 0.114)) / 255)[now.fov]
    return (
        100 * (inside & ~seen & ~hidden).sum() / inside.sum(),
        *(1e3 * np.percentile(error[seen], (50, 95))),
        difference(warp(later.rgb), now.rgb),
        difference(later.rgb, now.rgb),
        difference(warp(later.albedo), now.albedo),
        difference(later.albedo, now.albedo),
        *np.percentile(luminance, (5, 50, 95)),
    )


def measure(domain, scenes, frames, size=(256, 320), first_seed=0):
    """Mean over scenes and frames of `compare`, after the median time of a frame [ms]; a tuple as long as COLUMNS."""
    rows, times = [], []
    for seed in range(first_seed, first_seed + scenes):
        drawn = renderer(domain, size, seed)
        before = drawn.frame(0)
        for number in range(1, frames + 1):
            start = time.perf_counter()
            frame = drawn.frame(number)
            times.append(time.perf_counter() - start)
            rows.append(compare(before, frame))
            before = frame
    return (1e3 * np.median(times), *np.mean(rows, axis=0))


def main():
    parser = argparse.ArgumentParser(description="Measure the renderer.")
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--frames", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| domain | " + " | ".join(name for name, _ in COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for domain in DOMAINS:
        values = measure(domain, options.scenes, options.frames)
        print(
            f"| {domain} | "
            + " | ".join(form.format(value) for (_, form), value in zip(COLUMNS, values, strict=True))
            + " |"
        )


if __name__ == "__main__":
    main()
