"""A small depth network learns from a large one: the teacher's inverse depth of every frame is the student's target.

Frames, decoded once → the teacher's maps of the clean frames, kept as float16 → student on augmented views → scores
against truth and teacher. Every stage can be interrupted and resumed; the batch of a step depends on the seed and the
step alone.
"""

import logging
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from endomust_core.bundle import MANIFEST, load_bundle, resize_rgb
from endomust_core.learning.augment import Colour, cut, field_stop, random_view
from endomust_core.learning.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from endomust_core.learning.config import ConfigError, load_config
from endomust_core.learning.from_bundle import is_bundle, load_pose
from endomust_core.learning.losses import border_mask, masked_mean
from endomust_core.learning.networks.depth import DepthNetwork, inverse_depth, preset
from endomust_core.learning.networks.pose import PoseNetwork
from endomust_core.learning.networks.vit import PATCH
from endomust_core.learning.pretrain import Training, batch_generator, fit, start
from endomust_core.learning.run import RunError, compare, plain
from endomust_core.learning.score import RANGE, to_tensor
from endomust_core.learning.supervised import log_depth_losses
from endomust_core.learning.teaching import Frames, FrameSources, Teacher, collect, kind_of, open_teacher
from endomust_core.metrics import depth_metrics, mean_metrics, scale_ratio_std

HEADS = ((0, 1.0), (1, 0.25), (2, 0.15), (3, 0.1))  # scale of the student's output, weight
CHECKED = 48  # frames that a score during training looks at
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillationLosses:
    """Weights of the loss against the teacher's depth, and of the same against the truth."""

    shape: float = 1.0
    gradient: float = 0.5
    scale: float = 0.1  # small: the teacher's metre stays, but shape decides
    drop: float = 0.1  # share of each image's pixels, those of the largest error, that the teacher may have wrong
    truth: float = 0.0  # of the three losses against true depth, in frames that have some

    def __post_init__(self):
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop {self.drop} is a share of the pixels, 0 to less than 1")


@dataclass(frozen=True)
class DistilConfig:
    name: str = "distilled"
    description: str = ""
    seed: int = 1
    device: str = "cpu"  # cpu | cuda: where the student learns
    teacher: str = ""  # folder of a bundle or of a run, or its depth.pt
    teacher_backend: str = "cpu"  # cpu | cuda, and for a bundle tensorrt | openvino
    pose: str = ""  # bundle, run or pose.pt whose motion network goes along; default: the teacher's, else the student's
    frames: FrameSources = field(default_factory=FrameSources)
    depth: Training = field(default_factory=lambda: Training(learning_rate=5e-4, save_every=100))  # the student
    losses: DistillationLosses = field(default_factory=DistillationLosses)

    def __post_init__(self):
        size = tuple(self.depth.size)
        if len(size) != 2 or any(side < PATCH or side % PATCH for side in size):
            raise ValueError(f"depth.size {size} must be height and width in multiples of {PATCH}")
        if self.depth.steps < 1 or self.depth.batch < 1:
            raise ValueError("depth.steps and depth.batch must be at least 1")


def distil(config_path, overrides=(), out=None) -> Path:
    """Run a configuration file; returns the run's folder, which holds depth.pt, pose.pt, scores.yaml, config.yaml.

    out: that folder (default runs/<name>); a run that was interrupted goes on where it stopped. Raises ConfigError,
    DataError, CheckpointError, BundleError, RunError, each with what to do.
    """
    config = load_config(DistilConfig, config_path, overrides)
    if config.device != "cpu" and not (config.device.startswith("cuda") and torch.cuda.is_available()):
        raise ConfigError(f"device is {config.device!r}, which PyTorch does not find here; write cpu")
    teacher = open_teacher(config.teacher, config.teacher_backend)
    torch.manual_seed(config.seed)
    student = open_student(config.depth, teacher)
    folder = Path(out or Path("runs") / config.name)
    claim(folder, config, teacher)
    keep_pose(folder, config)
    train = collect("train", config.frames, teacher, folder, config.device)
    check_sense(train, student, config)
    scored_on = "validation" if config.frames.validation else "training frames"
    validation = train
    if config.frames.validation:
        validation = collect("validation", config.frames, teacher, folder, config.device)
    else:
        log.warning("frames.validation names no source: the scores are of frames that the student has learned from")
    log.info("%s teaches depth.preset=%s on %d frames", teacher.predictor.name, config.depth.preset, len(train))
    student = fit(
        student.to(config.device), partial(distillation_losses, weights=config.losses), train, config.depth,
        config.seed, folder, "depth",
        lambda network: f"{scored_on}: {in_short(score(network, validation, config.depth.size, CHECKED))}",
    ).cpu()  # fmt: skip
    save_checkpoint(folder / "depth.pt", student, {"config": plain(asdict(config.depth))})
    scores = score(student, validation, config.depth.size)
    log.info("%s: %s", scored_on, in_short(scores))
    counts = {"learned_from": len(train), "skipped": train.skipped, "scored": len(validation), "scored_on": scored_on}
    (folder / "scores.yaml").write_text(yaml.safe_dump(plain(scores | {"frames": counts}), sort_keys=False))
    return folder


# --- teacher and student --------------------------------------------------------------------------------------------


def open_student(options: Training, teacher: Teacher) -> DepthNetwork:
    """The network that learns: what `init` names, or a fresh one, which takes the depth range of its teacher."""
    if options.init:
        if not Path(options.init).exists():
            raise ConfigError(f"depth.init {options.init} does not exist; give a bundle, a run or its depth.pt")
        return start(DepthNetwork, "depth", options)
    fresh = preset(options.preset)
    if not teacher.relative:
        fresh = replace(fresh, min_depth=teacher.range_m[0], max_depth=teacher.range_m[1])
    return DepthNetwork(fresh)


def keep_pose(folder: Path, config: DistilConfig) -> None:
    """Put the motion network into the run: it speaks of the teacher's metre, as the student's depth does."""
    if config.pose:
        network = open_pose(config.pose)
        if network is None:
            raise ConfigError(f"pose {config.pose} holds no motion network; give a bundle or run that does, or pose.pt")
    else:
        network = next(filter(None, map(open_pose_if_ours, (config.teacher, config.depth.init))), None)
    if network is not None:
        save_checkpoint(folder / "pose.pt", network)
    elif not (folder / "pose.pt").is_file():
        log.warning(
            "neither teacher nor student brings a motion network, and `endomust export` needs one: name it with pose=, "
            "or put a pose.pt into %s", folder,
        )  # fmt: skip


def open_pose(origin: str) -> PoseNetwork | None:
    """The motion network of a bundle, of a run's folder, of one of its checkpoints; None where there is none."""
    path = Path(origin)
    if is_bundle(path):
        root = path.parent if path.name == MANIFEST else path
        return load_pose(root) if load_bundle(root).pose else None
    file = path / "pose.pt" if path.is_dir() else path if path.name == "pose.pt" else path.with_name("pose.pt")
    return load_checkpoint(file, "pose")[0] if file.is_file() else None


def open_pose_if_ours(origin: str) -> PoseNetwork | None:
    """The same; None too where nothing is named, or where the graph of a bundle is none of our networks."""
    try:
        return open_pose(origin) if origin else None
    except CheckpointError as error:
        log.warning("%s: its motion network cannot go along (%s)", origin, error)
        return None


# --- the folder of the run ------------------------------------------------------------------------------------------


def claim(folder: Path, config: DistilConfig, teacher: Teacher) -> None:
    """Write distil.yaml, everything as it was used, and config.yaml, which goes into a bundle's manifest.

    A bundle travels, and names of recordings may name patients: config.yaml says of sources their kind and number.
    Raises RunError where the folder holds another run, or this one begun with other settings.
    """
    record, told = folder / "distil.yaml", folder / "config.yaml"
    full, digest = plain(asdict(config)), teacher.predictor.digest
    if told.exists() and not record.is_file():
        raise RunError(f"{folder} holds a run of another command; use another --out")
    begun = (folder / "depth.state.pt").exists() or (folder / "depth.pt").exists()
    if record.is_file() and begun:  # before the first step settings may still be mended; answers go by their teacher
        compare(yaml.safe_load(record.read_text()), full, folder)
        if yaml.safe_load(told.read_text())["teacher_digest"] != digest:
            raise RunError(f"{folder} was started with other weights in {config.teacher}; use another --out")
    folder.mkdir(parents=True, exist_ok=True)
    sources = {name: kinds(full["frames"][name]) for name in ("train", "validation")}
    travels = full | {
        "teacher": f"{teacher.predictor.name} {teacher.predictor.version}",
        "teacher_digest": digest,
        "pose": Path(config.pose).name,
        "frames": full["frames"] | sources | {"cache": ""},
        "depth": full["depth"] | {"init": Path(config.depth.init).name},
    }
    record.write_text(yaml.safe_dump(full, sort_keys=False))
    told.write_text(yaml.safe_dump(travels, sort_keys=False))


def kinds(sources) -> str:
    """['video:/a/b.mp4', 'video:/c.mp4'] → '2 video'."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(map(kind_of, sources)).items()) or "none"


def check_sense(frames: Frames, student: DepthNetwork, config: DistilConfig) -> None:
    """ConfigError where the frames and the networks cannot teach what is asked."""
    if config.losses.truth > 0 and not frames.with_truth:
        raise ConfigError("losses.truth asks for true depth, and no training frame has any; write losses.truth=0")
    if frames.relative and not config.losses.truth > 0:
        raise ConfigError(
            f"{config.teacher} knows shape only, neither scale nor offset of depth; add frames with true depth, such "
            "as rendered ones, and losses.truth=1, or adapt it first with `endomust train`"
        )
    if frames.relative:
        return
    near, far = student.config.min_depth, student.config.max_depth
    some = np.linspace(0, len(frames) - 1, min(32, len(frames))).astype(int)
    depth = 1 / np.concatenate([frames.frame(row)[1].ravel() for row in some]).astype(np.float32).clip(1e-6)
    if np.mean((depth > near) & (depth < far)) < 0.5:
        raise ConfigError(
            f"the teacher's depths, {np.median(depth):.3g} in the middle, lie outside of {near:g} to {far:g}, which "
            f"is all that {config.depth.init} can say: their units differ. Leave depth.init out: a fresh student takes "
            "the units of its teacher"
        )


# --- losses ---------------------------------------------------------------------------------------------------------


def distillation_losses(network, frames, options, seed, step, weights) -> dict[str, torch.Tensor]:
    """Losses {name: (B,)} of one step's batch against teacher and, where weights.truth is not 0, truth.

    The student sees the frame cropped, flipped, with other colours, noise and a border; the teacher saw it clean.
    """
    g = batch_generator(seed, step)
    rows = torch.randint(len(frames), (options.batch,), generator=g)
    images, teacher, truth = frames.at(rows)
    device, size = images.device, tuple(options.size)
    view = random_view(options.batch, options.smallest_crop, options.stretch, g).to(device)
    fov = cut(border_mask(images).float(), view, size, "nearest") > 0.5
    lit = field_stop(fov, g)
    colour = Colour(options.batch, options.colour, g, device)
    seen = colour(cut(images, view, size)) * torch.where(fov & ~lit, 0.0, 1.0)
    teacher, truth = cut(teacher, view, size), cut(truth, view, size, "nearest")
    near, far = network.config.min_depth, network.config.max_depth
    with torch.autocast(device.type, torch.bfloat16, enabled=options.bfloat16):
        disparity = network(seen)
    inverse = {scale: inverse_depth(disparity[scale].float(), near, far) for scale, _ in HEADS}
    trusted = lit if frames.relative else lit & (teacher > 1 / far) & (teacher < 1 / near)
    trusted = without_worst(inverse[0].detach(), teacher, trusted, weights.drop, frames.relative)
    known = lit & (truth > near) & (truth < far)
    losses = {}
    for scale, importance in HEADS:
        at = (..., *(2 * [slice(2**scale // 2, None, 2**scale)]))
        target, mask, true, true_mask = (x[at] for x in (teacher, trusted, truth, known))
        said = inverse[scale][..., : target.shape[-2], : target.shape[-1]]
        for name, value in losses_against(said, target, mask, frames.relative).items():
            losses[f"{name}/{scale}"] = importance * getattr(weights, name) * value
        if weights.truth:
            for name, value in losses_against(said, 1 / true.clamp(min=1e-4), true_mask).items():
                losses[f"truth-{name}/{scale}"] = importance * weights.truth * getattr(weights, name) * value
    return losses


def losses_against(said, target, mask, relative=False) -> dict[str, torch.Tensor]:
    """{shape, scale, gradient}, (B,) each, of inverse depths B×1×h×w against a target: of log depth, or, where it
    is relative, {shape, gradient} of what is left when scale and offset are taken out of both.
    """
    said, target = comparable(said, target, mask, relative)
    losses = log_depth_losses(said, target.exp(), mask)  # it takes the logarithm of its second argument
    return {name: value for name, value in losses.items() if not (relative and name == "scale")}


def without_worst(said, target, mask, share, relative=False) -> torch.Tensor:
    """The mask B×1×H×W without the `share` of each image's pixels in which two inverse depths differ most.

    Differences count from their median, so that a common factor is none. What a teacher has wrong, a student that has
    learned from all the rest contradicts (trimmed loss, Ranftl et al. 2020).
    """
    if not share:
        return mask
    said, target = comparable(said, target, mask, relative)
    error = torch.where(mask, said - target, float("nan")).flatten(1)
    distance = (error - error.nanmedian(1, keepdim=True).values).abs()
    limit = torch.nanquantile(distance, 1 - share, dim=1, keepdim=True)
    return (distance <= limit).view_as(mask)  # False where NaN: outside of the mask


def comparable(said, target, mask, relative):
    """Two inverse depths as what is compared: log depths, or both without scale and offset over the mask."""
    if relative:
        return standardised(said, mask), standardised(target, mask)
    return -torch.log(said.clamp(min=1e-6)), -torch.log(target.clamp(min=1e-6))


def standardised(values, mask):
    """Values less their median over the mask, over their mean distance from it; B×1×h×w."""
    inside = torch.where(mask, values, float("nan")).flatten(1)
    centred = values - torch.nan_to_num(inside.nanmedian(1).values)[:, None, None, None]
    spread = masked_mean(centred.abs(), mask).clamp(min=1e-6)
    return (centred / spread[:, None, None, None]).clamp(-9, 9)


# --- scores ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def score(network: DepthNetwork, frames: Frames, size, most: int = 0) -> dict[str, dict]:
    """Tables {group: metrics}, `all` last: `depth`, student against truth; `teacher`, teacher against truth;
    `agreement`, student against teacher. Each image is median-scaled; of a relative teacher, `shape` is the loss.

    most: look at so many frames, evenly spread; 0: at all of them.
    """
    network.eval()
    near, far = network.config.min_depth, network.config.max_depth
    count = min(most, len(frames)) if most else len(frames)
    tables = {"depth": {}, "teacher": {}, "agreement": {}}
    for row in np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int)):
        rgb, inverse, truth = frames.frame(row)
        group, truth = frames.groups[frames.rows[row][0]], truth.astype(np.float32)
        image = to_tensor(resize_rgb(rgb, tuple(size)), frames.device)
        student = inverse_depth(network(image, scales=(0,))[0].float(), near, far).cpu()
        teacher = torch.from_numpy(inverse.astype(np.float32))[None, None]
        found = {}
        if np.any((truth > RANGE[0]) & (truth < RANGE[1])):
            found["depth"] = depth_metrics(depth_at(student, truth.shape), truth, *RANGE)
            if not frames.relative:
                found["teacher"] = depth_metrics(depth_at(teacher, truth.shape), truth, *RANGE)
        lit = F.interpolate(border_mask(to_tensor(rgb, "cpu")).float(), size=inverse.shape, mode="nearest") > 0.5
        if frames.relative:
            resized = F.interpolate(student, size=inverse.shape, mode="bilinear", align_corners=False)
            found["agreement"] = {"shape": losses_against(resized, teacher, lit, True)["shape"].item()}
        else:
            said = np.where(lit[0, 0], depth_at(teacher, inverse.shape), 0.0)
            if np.any((said > near) & (said < far)):
                found["agreement"] = depth_metrics(depth_at(student, inverse.shape), said, near, far)
        for name, row_of_scores in found.items():
            tables[name].setdefault(group, []).append(row_of_scores)
    return {name: with_mean(table) for name, table in tables.items() if table}


def depth_at(inverse: torch.Tensor, size) -> np.ndarray:
    """Inverse depth 1×1×h×w [1/m] → depth (H,W) [m] at another size."""
    resized = F.interpolate(inverse, size=tuple(size), mode="bilinear", align_corners=False)
    return 1 / resized[0, 0].clamp(min=1e-6).numpy()


def with_mean(table: dict[str, list[dict]]) -> dict[str, dict]:
    """Rows per image → their means per group and over `all`, with the spread of the scale from image to image."""
    every = [row for rows in table.values() for row in rows]
    return {group: averaged(rows) for group, rows in sorted(table.items())} | {"all": averaged(every)}


def averaged(rows: list[dict]) -> dict[str, float]:
    spread = {"scale_std": scale_ratio_std([row["ratio"] for row in rows])} if "ratio" in rows[0] else {}
    return mean_metrics(rows) | spread | {"images": len(rows)}


def in_short(scores: dict[str, dict]) -> str:
    """One line of the scores."""
    names = {"depth": "student to truth", "teacher": "teacher to truth", "agreement": "student to teacher"}
    said = []
    for name, table in scores.items():
        key = "abs_rel" if "abs_rel" in table["all"] else "shape"
        said.append(f"{names[name]} {key} {table['all'][key]:.4f}")
    return ", ".join(said)
