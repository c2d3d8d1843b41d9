"""Trains a depth and a pose network on rendered scenes with their truth: the stand-in for a foundation model.

Render (once, kept) → depth network → pose network → scores on scenes never seen. Every stage can be
interrupted and resumed; the batch of a step depends on the seed and the step alone.
"""

import copy
import logging
import math
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import yaml

from endomust_core.learning.augment import Colour, cut, field_stop, random_view
from endomust_core.learning.checkpoint import load_checkpoint, save_checkpoint
from endomust_core.learning.config import ConfigError, load_config
from endomust_core.learning.from_bundle import load_depth, load_pose
from endomust_core.learning.losses import masked_mean
from endomust_core.learning.networks.depth import DepthNetwork, inverse_depth
from endomust_core.learning.networks.flow import OpticalFlow
from endomust_core.learning.networks.pose import PoseNetwork
from endomust_core.learning.run import plain
from endomust_core.learning.supervised import log_depth_losses, motion_field, motion_losses, scale_agreement
from endomust_core.metrics import depth_metrics, mean_metrics
from endomust_core.odometry import so3_log
from endomust_core.simulation.dataset import generate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scenes:
    """Which scenes to render: how many per domain, from which seed on, `pairs` of views each."""

    count: dict = field(default_factory=lambda: {"colon": 200, "sinus": 100, "laparo": 200})
    first_seed: int = 1000
    pairs: int = 5
    size: tuple[int, ...] = (192, 240)
    detail: int = 768
    wide: float = 0.0  # share of scenes with all that real footage brings: instruments, blood, smoke, compression


@dataclass(frozen=True)
class Training:
    """How one network is trained."""

    preset: str = "tiny"
    size: tuple[int, ...] = (168, 224)  # network input, height and width
    steps: int = 4000
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warm_up: int = 200
    average: float = 0.998  # decay of the running mean of the weights, which is what is kept
    smallest_crop: float = 0.6
    stretch: float = 1.5
    colour: float = 1.0
    save_every: int = 250
    bfloat16: bool = True
    steady: float = 0.0  # depth: weight of the difference in scale error between two images of a scene; 0: none
    init: str = ""  # where it starts: a bundle, a run or its .pt; with 0 steps it is taken as it is; "": random numbers


@dataclass(frozen=True)
class PretrainConfig:
    name: str = "endomust-tiny"
    description: str = ""
    seed: int = 1
    device: str = "cpu"  # cpu | cuda
    scenes: str = ""  # folder that keeps the rendered views, which runs may share; "": `scenes` in the run's folder
    train: Scenes = field(default_factory=Scenes)
    validation: Scenes = field(default_factory=lambda: Scenes({"colon": 10, "sinus": 10, "laparo": 10}, 0, 4))
    test: Scenes = field(default_factory=lambda: Scenes({"colon": 10, "sinus": 10, "laparo": 10}, 500, 4))
    depth: Training = field(default_factory=Training)
    # Optical flow as a start for `endomust train`; 0 steps: none.
    optical_flow: Training = field(
        default_factory=lambda: Training(steps=0, size=(112, 140), smallest_crop=0.7, stretch=1.2, bfloat16=False)
    )
    pose: Training = field(
        default_factory=lambda: Training(steps=2000, smallest_crop=0.85, stretch=1.15, colour=0.6, bfloat16=False)
    )


class Views:
    """All views of a set of scene files in memory.

    Even rows are the earlier view of a pair, the next row the later one.
    """

    def __init__(self, files):
        names = [path.name.split("-")[0] + " wide" * path.parent.name.endswith("-wide") for path in files]
        with np.load(files[0]) as scene:
            per_scene, height, width, _ = scene["rgb"].shape
        count = per_scene * len(files)
        self.domain = [name for name in names for _ in range(per_scene)]
        self.scene = torch.arange(len(files)).repeat_interleave(per_scene)
        self.rgb = torch.empty((count, height, width, 3), dtype=torch.uint8)  # filled in place: gigabytes, once
        self.depth = torch.empty((count, height, width), dtype=torch.float16)
        self.fov = torch.empty((len(files), height, width), dtype=torch.bool)
        self.pose = torch.empty((count, 4, 4), dtype=torch.float64)
        self.intrinsics = torch.empty((count, 4))
        for i, file in enumerate(files):
            rows = slice(i * per_scene, (i + 1) * per_scene)
            with np.load(file) as scene:
                self.fov[i] = torch.from_numpy(scene["fov"])
                self.rgb[rows], self.depth[rows] = torch.from_numpy(scene["rgb"]), torch.from_numpy(scene["depth"])
                self.pose[rows] = torch.from_numpy(scene["T_world_camera"])
                self.intrinsics[rows] = torch.from_numpy(scene["intrinsics"])

    def to(self, device):
        """Images and their truth on a device; the poses stay on the CPU, where motions are computed."""
        for name in ("rgb", "depth", "fov", "intrinsics"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def __len__(self):
        return len(self.rgb)

    def images(self, rows):
        """rows (B,) → B×3×H×W in [0, 1]."""
        return self.rgb[rows].permute(0, 3, 1, 2).float() / 255

    def depths(self, rows):
        """rows (B,) → B×1×H×W [m]."""
        return self.depth[rows][:, None].float()

    def fields_of_view(self, rows):
        """rows (B,) → B×1×H×W, 1 inside and 0 outside."""
        return self.fov[self.scene[rows]][:, None].float()


def batch_generator(seed, step):
    """The random numbers of one batch: they depend on the seed and the step alone, so a stopped run goes on exactly."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def depth_losses(network, views, options, seed, step):
    """Losses {name: (B,)} of one step's batch; scale 0 counts full, the coarser heads less.

    With `steady` the second half of the batch shows what the first half does, the same image or the other one of its
    pair, cut alike and in other colours, and both must have the same error of scale.
    """
    g = batch_generator(seed, step)
    if options.steady:
        first = torch.randint(len(views), (options.batch // 2,), generator=g)
        other = first ^ (torch.rand(options.batch // 2, generator=g) < 0.7).long()
        rows, view = torch.cat([first, other]), random_view(len(first), options.smallest_crop, options.stretch, g)
        view = view.repeated(2)
    else:
        rows = torch.randint(len(views), (options.batch,), generator=g)
        view = random_view(options.batch, options.smallest_crop, options.stretch, g)
    device = views.rgb.device
    view, size = view.to(device), tuple(options.size)
    images, truth = views.images(rows), views.depths(rows)
    fov = cut(views.fields_of_view(rows), view, size, "nearest") > 0.5
    lit = field_stop(fov, g)
    images = Colour(options.batch, options.colour, g, device)(cut(images, view, size)) * torch.where(
        fov & ~lit, 0.0, 1.0
    )
    truth = cut(truth, view, size, "nearest")
    config = network.config
    mask = lit & (truth > config.min_depth) & (truth < config.max_depth)
    with torch.autocast(device.type, torch.bfloat16, enabled=options.bfloat16):
        disparity = network(images)
    losses = {}
    for scale, weight in ((0, 1.0), (1, 0.25), (2, 0.15), (3, 0.1)):
        stride = 2**scale
        log_depth = -torch.log(inverse_depth(disparity[scale].float(), config.min_depth, config.max_depth))
        at = (slice(None), slice(None), slice(stride // 2, None, stride), slice(stride // 2, None, stride))
        target, valid = (truth, mask) if scale == 0 else (truth[at], mask[at])
        height, width = target.shape[-2:]
        for name, value in log_depth_losses(log_depth[..., :height, :width], target, valid).items():
            importance = {"shape": 1.0, "scale": 0.1, "gradient": 0.5}[name]
            losses[f"{name}/{scale}"] = weight * importance * value
        if options.steady and scale == 0:
            losses["steady"] = options.steady * scale_agreement(log_depth[..., :height, :width], target, valid)
    return losses


def pose_losses(network, views, options, seed, step):
    """Losses {name: (B,)}: pairs in either order of time, cropped and flipped with their intrinsics and motion."""
    g = batch_generator(seed, step)
    first = 2 * torch.randint(len(views) // 2, (options.batch,), generator=g)
    swap = (torch.rand(options.batch, generator=g) < 0.5).long()
    previous, current = first + swap, first + 1 - swap
    still = torch.rand(options.batch, generator=g) < 0.04  # a camera at rest must read as rest
    previous = torch.where(still, current, previous)
    device = views.rgb.device
    view = random_view(options.batch, options.smallest_crop, options.stretch, g).to(device)
    size = tuple(options.size)
    colour, flicker = Colour(options.batch, options.colour, g, device), Colour(options.batch, 0.15, g, device)
    before, now = (colour(cut(views.images(rows), view, size)) for rows in (previous, current))
    transform = view.mirror((torch.linalg.inv(views.pose[previous]) @ views.pose[current]).to(device))
    rotation = np.stack([so3_log(matrix) for matrix in transform[:, :3, :3].cpu().numpy()])
    rotation = torch.from_numpy(rotation).float().to(device)
    coarse = (12, 16)
    depth = cut(views.depths(current), view, coarse, "nearest")
    mask = (cut(views.fields_of_view(current), view, coarse, "nearest") > 0.5) & (depth > 1e-3)
    intrinsics = view.intrinsics(views.intrinsics[current])
    with torch.autocast(device.type, torch.bfloat16, enabled=options.bfloat16):
        pose = network(flicker(before), now)
    losses = motion_losses(pose, rotation, transform[:, :3, 3].float(), intrinsics, depth, mask)
    return {
        name: {"field": 0.2, "rotation": 0.5, "translation": 0.5, "intrinsics": 2.0}[name] * value
        for name, value in losses.items()
    }


def flow_batch(views, options, seed, step):
    """Source, target (B×3×H×W), their rigid flow B×2×H×W [px] from true depth and motion, and where it is known."""
    g = batch_generator(seed, step)
    first = 2 * torch.randint(len(views) // 2, (options.batch,), generator=g)
    swap = (torch.rand(options.batch, generator=g) < 0.5).long()
    source, target = first + swap, first + 1 - swap
    device = views.rgb.device
    view = random_view(options.batch, options.smallest_crop, options.stretch, g).to(device)
    size = tuple(options.size)
    colour, flicker = (
        Colour(options.batch, options.colour, g, device),
        Colour(options.batch, 0.25 * options.colour, g, device),
    )
    before, now = (colour(cut(views.images(rows), view, size)) for rows in (source, target))
    transform = view.mirror((torch.linalg.inv(views.pose[source]) @ views.pose[target]).to(device)).float()
    depth = cut(views.depths(target), view, size, "nearest")
    mask = (cut(views.fields_of_view(target), view, size, "nearest") > 0.5) & (depth > 1e-3)
    intrinsics = view.intrinsics(views.intrinsics[target])
    field = motion_field(depth, intrinsics, transform[:, :3, :3], transform[:, :3, 3])
    return flicker(before), now, field * torch.tensor((size[1], size[0]), device=device).view(1, 2, 1, 1), mask


def flow_losses(network, views, options, seed, step):
    """Losses {name: (B,)} of the optical flow against the rigid motion field of true depth and motion, in pixels.

    Instruments and breathing tissue move on their own and are wrong in it; the loss saturates for them.
    """
    source, target, truth, mask = flow_batch(views, options, seed, step)
    with torch.autocast(source.device.type, torch.bfloat16, enabled=options.bfloat16):
        flow = network(source, target)
    losses = {}
    for scale, weight in ((0, 1.0), (1, 0.5), (2, 0.25), (3, 0.125)):
        whole = torch.nn.functional.interpolate(
            flow[scale].float(), size=truth.shape[-2:], mode="bilinear", align_corners=False
        )
        error = (whole - truth).norm(dim=1, keepdim=True)
        losses[f"flow/{scale}"] = weight * masked_mean(8 * torch.nn.functional.softsign(error / 8), mask)
    return losses


def fit(network, losses_of, views, options, seed, folder, kind, check):
    """The training loop: AdamW, warm-up and cosine, running mean of the weights. Returns the mean network.

    Resumes from `folder`.
    """
    mean = copy.deepcopy(network).requires_grad_(False)
    decay = [p for p in network.parameters() if p.dim() > 1]
    rest = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), fused=True)
    device = next(network.parameters()).device
    state_file, start = folder / f"{kind}.state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        mean.load_state_dict(state["mean"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        log.info("%s: resuming at step %d", kind, start)
    begin, recent = time.monotonic(), {}
    for step in range(start, options.steps):
        progress = (step - options.warm_up) / max(1, options.steps - options.warm_up)
        rate = step / options.warm_up if step < options.warm_up else 0.5 * (1 + math.cos(math.pi * progress)) + 0.002
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * rate
        losses = losses_of(network, views, options, seed, step)
        terms = torch.stack([value.mean() for value in losses.values()])
        now = terms.detach().tolist()  # the one place where a GPU is waited for
        if not all(map(math.isfinite, now)):
            raise FloatingPointError(
                f"{kind}: the loss is not finite at step {step}; lower learning_rate and resume from {state_file}"
            )
        optimizer.zero_grad(set_to_none=True)
        terms.sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        keep = min(options.average, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(mean.parameters()), list(network.parameters()), 1 - keep)
        for name, value in zip(losses, now, strict=True):
            recent[name] = 0.98 * recent.get(name, value) + 0.02 * value
        if (step + 1) % 50 == 0:
            pace = (time.monotonic() - begin) / (step + 1 - start)
            means = "  ".join(
                f"{name} {value:.4f}" for name, value in recent.items() if name.endswith("/0") or "/" not in name
            )
            left = pace * (options.steps - step - 1) / 60
            log.info("%s step %d/%d  %s  %.2f s a step, %d min left", kind, step + 1, options.steps, means, pace, left)
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            state = {
                "network": network.state_dict(),
                "mean": mean.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, state_file.with_suffix(".part"))
            os.replace(state_file.with_suffix(".part"), state_file)
            log.info("%s step %d  %s", kind, step + 1, check(mean))
    return mean


@torch.no_grad()
def score_depth(network, views, size):
    """Per-domain and overall depth metrics of the network on `views`, median-scaled, at the resolution of the truth."""
    network.eval()
    rows, config = {}, network.config
    for chosen in torch.arange(len(views)).split(8):
        images = torch.nn.functional.interpolate(views.images(chosen), size=tuple(size), mode="area")
        inverse = inverse_depth(network(images, scales=(0,))[0], config.min_depth, config.max_depth)
        truth = torch.where(views.fields_of_view(chosen) > 0.5, views.depths(chosen), 0.0)
        whole = torch.nn.functional.interpolate(inverse, truth.shape[-2:], mode="bilinear", align_corners=False)
        for i, true, found in zip(
            chosen.tolist(), truth[:, 0].cpu().numpy(), 1 / whole[:, 0].cpu().numpy(), strict=True
        ):
            metrics = depth_metrics(found, true, min_depth=1e-3, max_depth=0.3)
            rows.setdefault(views.domain[i], []).append(metrics)
    table = {domain: mean_metrics(found) for domain, found in rows.items()}
    table["all"] = mean_metrics([metrics for found in rows.values() for metrics in found])
    return table


@torch.no_grad()
def score_pose(network, views, size):
    """Median errors over pairs, and what assuming rest would score.

    Rotation [rad], translation relative to its length, focal length relative.
    """
    network.eval()
    rotation, translation, resting, focal = [], [], [], []
    for i in range(0, len(views), 2):
        before, now = (
            torch.nn.functional.interpolate(views.images([row]), size=tuple(size), mode="area") for row in (i, i + 1)
        )
        pose = network(before, now)
        truth = torch.linalg.inv(views.pose[i]) @ views.pose[i + 1]
        true_rotation, t = so3_log(truth[:3, :3].numpy()), truth[:3, 3].numpy()
        rotation.append(np.linalg.norm(pose.rotation[0].cpu().numpy() - true_rotation))
        resting.append(np.linalg.norm(true_rotation))
        translation.append(np.linalg.norm(pose.translation[0].cpu().numpy() - t) / max(np.linalg.norm(t), 2e-4))
        focal.append(abs(pose.intrinsics[0, 0].item() / views.intrinsics[i, 0].item() - 1))
    return {
        "rotation_error": float(np.median(rotation)),
        "rotation_at_rest": float(np.median(resting)),
        "translation_error": float(np.median(translation)),
        "focal_error": float(np.median(focal)),
    }


@torch.no_grad()
def score_flow(network, views, config):
    """Mean end-point error of the flow on validation pairs [px], and what no motion would score."""
    network.eval()
    options, found, still = config.optical_flow, [], []
    plain = replace(options, batch=8, smallest_crop=1.0, stretch=1.0, colour=0.0, bfloat16=False)
    for step in range(4):
        found.append(flow_losses(network, views, plain, 0, step)["flow/0"].mean())
        still.append(flow_losses(_no_motion, views, plain, 0, step)["flow/0"].mean())
    return {"saturating_error_px": float(torch.stack(found).mean()), "at_rest_px": float(torch.stack(still).mean())}


def _no_motion(source, target):
    """The flow of a camera at rest, at four scales."""
    return {scale: torch.zeros_like(target[:, :2]) for scale in range(4)}


def pretrain(config_path, overrides=(), out=None, workers=None, only=""):
    """Run the whole recipe of a configuration file; returns the run's folder.

    It holds depth.pt, pose.pt, scores.yaml and the resolved config.yaml; export is a step of its own.
    out: that folder (default runs/<name>); a run that was interrupted goes on where it stopped.
    only: "depth", "pose" or "optical_flow": train that network alone and stop, so that several processes can share a
    run; a last call without it scores what they made. "scenes": render and stop.
    """
    config = load_config(PretrainConfig, config_path, overrides)
    if only not in ("", "scenes", *NETWORKS):
        raise ConfigError(f"there is no {only!r} to make alone; choose one of scenes, {', '.join(NETWORKS)}")
    if config.depth.steady and config.depth.batch % 2:
        raise ConfigError(f"depth.steady compares the halves of a batch; make depth.batch {config.depth.batch} even")
    folder = Path(out or Path("runs") / config.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(asdict(config)), sort_keys=False))
    sets = {}
    for name in ("train", "validation", "test"):
        scenes = getattr(config, name)
        if name == "test" and only in NETWORKS:
            continue  # scored by the call without `only`
        log.info("scenes for %s: %s", name, scenes.count)
        files = scene_files(scenes, Path(config.scenes or folder / "scenes") / name, workers)
        if only != "scenes":
            sets[name] = Views(files).to(config.device)
    if only == "scenes":
        return folder
    checks = {
        "depth": lambda network: f"AbsRel on validation: {_short(score_depth(network, sets['validation'], size))}",
        "pose": lambda network: f"validation: {score_pose(network, sets['validation'], size)}",
        "optical_flow": lambda network: f"validation: {score_flow(network, sets['validation'], config)}",
    }
    trained = {}
    for number, (name, (kind, losses)) in enumerate(NETWORKS.items()):
        options = getattr(config, name)
        if only not in ("", name) or not (options.steps or options.init):
            continue
        size = options.size
        torch.manual_seed(config.seed)
        network = start(kind, name, options).to(config.device)
        torch.backends.cudnn.allow_tf32 = options.bfloat16  # 10 bits of mantissa in convolutions, else all 23
        seed = config.seed + number
        trained[name] = fit(network, losses, sets["train"], options, seed, folder, name, checks[name]).cpu()
        save_checkpoint(folder / f"{name}.pt", trained[name], {"config": plain(asdict(options))})
    if only:
        return folder
    scores, test = {}, sets["test"].to("cpu")
    if "depth" in trained:
        scores["depth"] = score_depth(trained["depth"], test, config.depth.size)
        log.info("test: AbsRel %s", _short(scores["depth"]))
    if "pose" in trained:
        scores["pose"] = score_pose(trained["pose"], test, config.pose.size)
        log.info("test: %s", scores["pose"])
    (folder / "scores.yaml").write_text(yaml.safe_dump(scores, sort_keys=False))
    return folder


NETWORKS = {  # in the order in which they train; their place is added to the seed
    "depth": (DepthNetwork, depth_losses),
    "pose": (PoseNetwork, pose_losses),
    "optical_flow": (OpticalFlow, flow_losses),
}


def scene_files(scenes, folder, workers=None):
    """Files of the rendered views: plain scenes in `folder`, wide ones beside it; rendered where they are missing."""
    wide = {domain: round(scenes.wide * count) for domain, count in scenes.count.items()}
    plain = {domain: count - wide[domain] for domain, count in scenes.count.items()}
    files = []
    if any(plain.values()):
        seed = scenes.first_seed
        files += generate(folder, plain, seed, scenes.pairs, scenes.size, scenes.detail, workers)
    if any(wide.values()):
        seed, beside = scenes.first_seed + 100_000, folder.with_name(f"{folder.name}-wide")
        files += generate(beside, wide, seed, scenes.pairs, scenes.size, scenes.detail, workers, variety="wide")
    return files


def start(kind, name, options):
    """The network to train: fresh, or what `init` names (a bundle, a run's folder, or its .pt)."""
    if not options.init:
        return kind(options.preset)
    path = Path(options.init)
    if (path / "manifest.yaml").is_file() and name in ("depth", "pose"):
        return (load_depth if name == "depth" else load_pose)(path)
    return load_checkpoint(path / f"{name}.pt" if path.is_dir() else path, name)[0]


def _short(table):
    return "  ".join(f"{domain} {row['abs_rel']:.4f}" for domain, row in table.items())
