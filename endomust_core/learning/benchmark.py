"""What one mini-batch of a training configuration costs: CPU and wall time per update, peak memory, beside a peer's.

    endomust bench train config/train-paper.yaml train.batch=2 [--rounds 5] [--peer FILE.py] [--json OUT]

FILE.py defines `make_step(images)`, images {-1, 0, 1: B×3×H×W in [0,1]}, and returns a function that does one step of
another trainer on them. Steps alternate in one process, so that both feel the same machine; peak memory is that of the
process and says something only where one of them runs alone (--only ours, --only peer).
"""

import argparse
import json
import logging
import resource
import runpy
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from endomust_core.benchmarking import document, write
from endomust_core.bundle import sha256_of
from endomust_core.learning import train as train_file
from endomust_core.learning.config import load_config
from endomust_core.learning.distributed import World, chosen_device
from endomust_core.learning.run import RunFolder
from endomust_core.learning.triplets import Batch
from endomust_core.simulation import render

log = logging.getLogger(__name__)


def triplet_images(batch: int, size: tuple[int, int]) -> dict[int, torch.Tensor]:
    """Rendered frames -1, 0, 1 of `batch` places in a colon: {frame: B×3×H×W in [0, 1]}."""
    frames = [torch.from_numpy(f.rgb.copy()) for f in render("colon", 2 * batch + 1, size, seed=500, detail=256)]
    stacks = {k: torch.stack([frames[2 * b + 1 + k] for b in range(batch)]) for k in (-1, 0, 1)}
    return {k: stack.permute(0, 3, 1, 2).float() / 255 for k, stack in stacks.items()}


def our_step(config: train_file.TrainConfig, images: dict[int, torch.Tensor], folder: Path):
    """A function that does one update of the configuration on the images."""
    world = World(0, 1, chosen_device(config.train.device))
    batch, size = len(images[0]), tuple(images[0].shape[-2:])
    source = folder / "frames"
    source.mkdir()
    for k, image in enumerate(images.values()):  # the trainer wants data; the batch below is what it gets
        write_image(source / f"{k}.png", image[0])
    data = replace(config.data, train=(f"folder:{source}",), validation=(), test=(), size=size, gap=1, cache="")
    config = replace(config, data=data)
    trainer = train_file.Trainer(config, RunFolder(folder / "run", asdict(config), False, world), world)
    none = torch.zeros(batch, 1, *size, dtype=torch.bool)
    order = [images[k] for k in (0, -1, 1)]
    rows = Batch(*order, *order, none, none, none, torch.full((batch, 4), float("nan")), ["benchmark"] * batch)
    rows = rows.to(world.device, config.train.channels_last)

    def step():
        trainer.step_through(rows)
        if world.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def write_image(path: Path, image: torch.Tensor) -> None:
    """3×H×W in [0, 1] → a PNG."""
    import cv2

    cv2.imwrite(str(path), (255 * image).byte().permute(1, 2, 0).numpy()[..., ::-1])


def measure(steps: dict[str, object], rounds: int) -> dict[str, dict[str, float]]:
    """Median CPU and wall seconds per step of each, alternating, after one round to warm up."""
    taken: dict[str, list] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            step()
            if number:
                taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        log.info("round %d of %d", number, rounds)
    return {
        name: {"cpu_s": statistics.median(c for c, _ in rows), "wall_s": statistics.median(w for _, w in rows)}
        for name, rows in taken.items()
    }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    top = argparse.ArgumentParser(prog="endomust bench train", description=__doc__.splitlines()[0])
    top.add_argument("config", type=Path)
    top.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    top.add_argument("--rounds", type=int, default=5)
    top.add_argument("--peer", type=Path, metavar="FILE.py")
    top.add_argument("--only", choices=("ours", "peer"))
    top.add_argument("--json", type=Path, metavar="OUT", help="write all numbers here too")
    return top.parse_intermixed_args(arguments)


def run(options: argparse.Namespace) -> dict:
    """Measure, and log the figures."""
    config = load_config(train_file.TrainConfig, options.config, options.overrides)
    images = triplet_images(config.train.batch, tuple(config.data.size))
    with tempfile.TemporaryDirectory() as folder:
        steps = {}
        if options.peer and options.only != "ours":
            steps["peer"] = runpy.run_path(str(options.peer))["make_step"](images)
        if options.only != "peer":
            steps["ours"] = our_step(config, images, Path(folder))
        found = measure(steps, options.rounds)
    if len(found) == 2:
        found["ratio"] = {key: found["peer"][key] / found["ours"][key] for key in ("cpu_s", "wall_s")}
    found["peak_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    log.info("%s", json.dumps(found, indent=2))
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = _parse(arguments)
    found = run(options)
    if options.json:
        command = shlex.join(["endomust", "bench", "train", *(sys.argv[1:] if arguments is None else arguments)])
        write(options.json, document("train", found, command=command, hashes={"config": sha256_of(options.config)}))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(main())
