"""A finished pretraining run → a model bundle: its networks, its scores, and where they came from."""

import platform
import subprocess
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from endomust_core import __version__
from endomust_core.learning.checkpoint import CheckpointError, load_checkpoint
from endomust_core.learning.export import ExportError, export_bundle
from endomust_core.simulation import DOMAINS, render

UNSEEN_SEED = 500  # of the frames on which ONNX Runtime is compared with PyTorch; the training scenes start at 1000


def export_run(
    run: str | Path,
    out: str | Path,
    version: str = __version__,
    weight_dtype: str = "float16",
    frames_from=(),
    note: str = "",
) -> Path:
    """Export `run` (what `pretrain` left) as the bundle `out`; raises CheckpointError or ExportError in words.

    frames_from: images or videos of real endoscopy on which ONNX Runtime is compared with PyTorch; without any,
    rendered frames serve. note: a sentence for the manifest, on what the configuration does not say.
    """
    run = Path(run)
    missing = [name for name in ("config.yaml", "scores.yaml", "depth.pt", "pose.pt") if not (run / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{run} holds no {', '.join(missing)}: it is no finished run; start endomust pretrain again with "
            f"--out {run}, and it goes on where it stopped"
        )
    config = yaml.safe_load((run / "config.yaml").read_text())
    scores = yaml.safe_load((run / "scores.yaml").read_text())
    depth, _ = load_checkpoint(run / "depth.pt", "depth")
    pose, _ = load_checkpoint(run / "pose.pt", "pose")
    origin = provenance(config) | {"verified_on": [Path(path).name for path in frames_from] or "rendered frames"}
    return export_bundle(
        depth,
        pose,
        out,
        tuple(config["depth"]["size"]),
        name=config["name"],
        description=config["description"],
        version=version,
        provenance=origin | {"note": note} if note else origin,
        scores=scores,
        frames=[frame for path in frames_from for frame in read_frames(path)] or unseen_frames(),
        weight_dtype=weight_dtype,
    )


def unseen_frames(each: int = 3) -> list[np.ndarray]:
    """`each` consecutive rendered images (H,W,3) uint8 of every domain, which no network has seen."""
    size = (192, 240)
    return [f.rgb for domain in DOMAINS for f in render(domain, each, size, seed=UNSEEN_SEED, detail=512)]


def read_frames(path: str | Path, most: int = 6) -> list[np.ndarray]:
    """Up to `most` uint8 RGB frames of an image, or of a video at even spacing; ExportError when it does not decode."""
    image = cv2.imread(str(path))
    if image is not None:
        return [np.ascontiguousarray(image[..., ::-1])]
    video, frames = cv2.VideoCapture(str(path)), []
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = set(np.linspace(0, max(count - 1, 0), most).astype(int).tolist())
    for number in range(count):
        good, bgr = video.read()
        if good and number in wanted:
            frames.append(np.ascontiguousarray(bgr[..., ::-1]))
    if not frames:
        raise ExportError(f"{path} is neither an image nor a video that decodes")
    return frames


def provenance(config: dict) -> dict:
    """What made the networks: the resolved configuration, the program and its versions, the day."""
    return {
        "command": "endomust pretrain",
        "data": "scenes of the project's renderer, none recorded",
        "config": config,
        "seed": config["seed"],
        "commit": commit(),
        "program": f"endomust_ros {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": date.today().isoformat(),
    }


def commit() -> str:
    """The commit of the checkout that this file lies in, marked when it was changed; 'unknown' outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
