"""A finished run of pretraining or training → a model bundle: networks, scores, and where they came from."""

import platform
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from endomust_core import __version__
from endomust_core.learning.checkpoint import CheckpointError, load_checkpoint
from endomust_core.learning.export import ExportError, export_bundle
from endomust_core.learning.precision import derive
from endomust_core.simulation import render
from endomust_core.simulation.domains import TRAINED

UNSEEN_SEED = 500  # of the frames on which ONNX Runtime is compared with PyTorch; the training scenes start at 1000
CALIBRATION_SEEDS = (501, 502, 503, 504)


def export_run(
    run: str | Path,
    out: str | Path,
    version: str = __version__,
    weight_dtype: str = "float16",
    frames_from=(),
    note: str = "",
    precisions: Sequence[str] = ("fp32",),
    size: tuple[int, int] | None = None,
    batch: int = 1,
) -> Path:
    """Export `run` (what `pretrain` or `train` left) as the bundle `out`; raises CheckpointError or ExportError.

    frames_from: images or videos of real endoscopy on which ONNX Runtime is compared with PyTorch; without any,
    rendered frames serve. note: a sentence for the manifest, on what the configuration does not say. precisions:
    further graphs beside fp32, "fp16" and "int8". size: (H,W) of the graphs in place of the run's.
    batch: 2 for a stereo rig.
    """
    run = Path(run)
    record, table = run / "config.yaml", run / "scores.yaml"
    config = yaml.safe_load(record.read_text()) if record.is_file() else {}
    trained = "data" in config  # by `train`, whose scores are there only if it was given test data
    needed = ["config.yaml", *([] if trained else ["scores.yaml"]), "depth.pt", "pose.pt"]
    missing = [name for name in needed if not (run / name).is_file()]
    if missing:
        again = "distil again with" if "teacher" in config else "pretrain again with"
        again = "train again with --resume and" if trained else again
        raise CheckpointError(
            f"{run} holds no {', '.join(missing)}: it is no finished run; start endomust {again} "
            f"--out {run}, and it goes on where it stopped"
        )
    scores = yaml.safe_load(table.read_text()) if table.is_file() else {}
    wanted, size, encoder_size = size, tuple(config["depth"]["size"]), None
    if trained and tuple(config["data"]["size"]) != size:  # the depth network works at a size of its own, inside
        size, encoder_size = tuple(config["data"]["size"]), size
    if wanted is not None:
        size, encoder_size = wanted, None
    depth, _ = load_checkpoint(run / "depth.pt", "depth")
    pose, _ = load_checkpoint(run / "pose.pt", "pose")
    origin = provenance(config) | {"verified_on": [Path(path).name for path in frames_from] or "rendered frames"}
    return export_bundle(
        depth,
        pose,
        out,
        size,
        name=config["name"],
        description=config["description"],
        version=version,
        provenance=origin | {"note": note} if note else origin,
        scores=scores,
        frames=[frame for path in frames_from for frame in read_frames(path)] or unseen_frames(),
        weight_dtype=weight_dtype,
        precisions=precisions,
        golden_frames=unseen_frames(domains=("colon",)),
        batch=batch,
        calibration=calibration_frames(precisions),
        encoder_size=encoder_size,
        scale_source=scale_source(config),
    )


def unseen_frames(each: int = 3, domains: Sequence[str] = TRAINED, seed: int = UNSEEN_SEED) -> list[np.ndarray]:
    """`each` consecutive rendered images (H,W,3) uint8 of the domains trained on, of scenes that no network saw."""
    size = (192, 240)
    return [f.rgb for domain in domains for f in render(domain, each, size, seed=seed, detail=512)]


def calibration_frames(precisions: Sequence[str]) -> list[np.ndarray]:
    """Rendered images of every domain trained on, others than the golden ones, where int8 is among the precisions."""
    return [f for seed in CALIBRATION_SEEDS for f in unseen_frames(2, seed=seed)] if "int8" in precisions else []


def derive_bundle(source: str | Path, out: str | Path, precisions: Sequence[str], frames_from=()) -> Path:
    """A bundle → a new one with further precisions and golden images; see `precision.derive`."""
    frames = [frame for path in frames_from for frame in read_frames(path)] or unseen_frames()
    golden = unseen_frames(domains=("colon",))
    return derive(source, out, precisions, frames, golden, calibration_frames(precisions))


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
    """What made the networks: the resolved configuration, the program and its versions, the day.

    A bundle travels, and names of recordings may name patients: of a training run's sources it says kind and number.
    """
    trained = "data" in config
    if trained:
        sources = {name: anonymous(config["data"][name]) for name in ("train", "validation", "test")}
        config = config | {"data": config["data"] | sources | {"cache": ""}}
        parts = ("depth", "pose", "optical_flow", "appearance_flow", "decomposition")
        config |= {name: config[name] | {"init": Path(config[name]["init"]).name} for name in parts}
    distilled = "teacher" in config
    data = config["data"]["train"] if trained else "scenes of the project's renderer, none recorded"
    return {
        "command": "endomust train" if trained else "endomust distil" if distilled else "endomust pretrain",
        "data": config["frames"]["train"] if distilled else data,
        "config": config,
        "seed": config["seed"],
        "commit": commit(),
        "program": f"endomust_ros {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": date.today().isoformat(),
    }


def scale_source(config: dict) -> str:
    """Where the metre of a run's depth comes from, in words."""
    if "data" in config:
        return "self-supervised, up to scale"
    return f"that of its teacher, {config['teacher']}" if "teacher" in config else "rendered sequences"


def anonymous(sources) -> str:
    """['video:/a/b.mp4', 'video:/c.mp4'] → '2 video'."""
    kinds = Counter(source.split(":")[0] if ":" in source else "source" for source in sources)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"


def commit() -> str:
    """The commit of the checkout that this file lies in, marked when it was changed; 'unknown' outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
