"""Training data from the renderer: pairs of views of many random scenes, one .npz per scene, made in parallel and
resumable.

Each file holds rgb (2P, H, W, 3) uint8, depth (2P, H, W) float16 [m], fov (H, W) bool, T_world_camera (2P, 4, 4)
float64 [m] and intrinsics (4,) fx/W, fy/H, cx/W, cy/H; rows 2k and 2k+1 are the earlier and the later view of pair k.
"""

import json
import logging
import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import torch

from endomust_core.simulation import renderer

log = logging.getLogger(__name__)


def render_pairs(domain, seed, pairs, size, detail, variety="plain"):
    """Views of one scene at `pairs` random times, each with a second view 1/40 to 1/8 s later → dict of arrays (module
    docstring).
    """
    rng = random.Random(f"pairs-{domain}-{seed}")
    drawn = renderer(domain, size, seed, detail=detail, variety=variety)
    views = []
    for _ in range(pairs):
        t, gap = rng.uniform(0, 20), rng.uniform(1 / 40, 1 / 8)
        drawn.gain = None  # the views are far apart: exposure starts afresh
        views += [drawn.at(t, t + gap), drawn.at(t + gap, t + 2 * gap)]
    camera = drawn.camera
    height, width = size
    intrinsics = (camera.fx / width, camera.fy / height, (camera.cx + 0.5) / width, (camera.cy + 0.5) / height)
    return {
        "rgb": np.stack([view.rgb for view in views]),
        "depth": np.stack([view.depth for view in views]).astype(np.float16),
        "fov": views[0].fov,
        "T_world_camera": np.stack([view.T_world_camera for view in views]),
        "intrinsics": np.array(intrinsics, np.float32),
    }


def _make(job):
    path, *scene = job
    torch.set_num_threads(1)  # one process per core is faster than threads inside the renderer
    part = path.with_suffix(f".{os.getpid()}.part")
    with open(part, "wb") as out:
        np.savez(out, **render_pairs(*scene))
    os.replace(part, path)
    return path


def generate(folder, scenes, first_seed, pairs, size, detail=768, workers=None, variety="plain"):
    """Render `scenes` (domain → how many) into folder, skipping what is there; returns the sorted list of files.

    Logs progress with ETA. Raises ValueError where the folder was made with other pairs, size, detail or variety.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    request = {"pairs": pairs, "size": list(size), "detail": detail}
    if variety != "plain":  # folders from before there were varieties stay valid
        request["variety"] = variety
    _check_request(folder / "request.json", request)
    jobs = [
        (folder / f"{domain}-{first_seed + i}.npz", domain, first_seed + i, pairs, tuple(size), detail, variety)
        for domain, count in scenes.items()
        for i in range(count)
    ]
    todo = [job for job in jobs if not job[0].exists()]
    random.Random(0).shuffle(todo)  # so that an interrupted run has seen every domain
    if not todo:
        return sorted(job[0] for job in jobs)
    begin = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count()) as pool:
        for done, _ in enumerate(pool.imap_unordered(_make, todo), 1):
            if done % 20 == 0 or done == len(todo):
                left = (time.monotonic() - begin) / done * (len(todo) - done)
                log.info("rendered %d of %d scenes, %d s left", done, len(todo), left)
    return sorted(job[0] for job in jobs)


def _check_request(record, request):
    """Scenes are told apart by domain and seed alone, so one folder holds views of one kind."""
    if not record.exists():
        part = record.with_suffix(f".{os.getpid()}.part")  # whole or not at all: several runs may share a folder
        part.write_text(json.dumps(request))
        os.replace(part, record)
    elif (found := json.loads(record.read_text())) != request:
        raise ValueError(
            f"{record.parent} holds views made with {found}, not {request}; remove it or choose another folder"
        )
