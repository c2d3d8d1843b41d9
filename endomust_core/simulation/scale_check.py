"""Measures the kinematic scale on rendered motion: simulated robot poses [m], three visual trajectories -> errors [%].

    python -m endomust_core.simulation.scale_check --seeds 9100 9101 --out out/scale

The robot reports the true pose in dVRK camera axes with 0.1 mm white noise, a random walk of 0.5 mm in 10 s, 0.1° of
white rotation noise, 2 % outliers of 20 mm, stamps late by 0 to 80 ms, at 100 Hz; every third run its base is moved
once by 20 mm. The visual trajectory is (a) the true one in a hidden unit with a little noise, (b) points followed from
image to image and located with the true depth in a hidden unit, (c) the same with the depth of a model bundle.
(a) needs no images, so it takes many scenes: --scenes. Three truths: `unit` is the hidden unit; `path` is the scale
that best aligns the visual trajectory with the true one over the same window (Umeyama 1991), which forgives what the
tracking itself falls short; `depth` is the median of true over predicted depth. Sigma is that of depth where the truth
is of depth, else that of the path.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from endomust_core.bundle import default_bundle, load_bundle
from endomust_core.camera import Camera
from endomust_core.estimator import Estimator
from endomust_core.metric_scale import KinematicScale, ScaleEstimate, ScaleSettings, axes_of
from endomust_core.metrics import align
from endomust_core.odometry import inverse, so3_exp
from endomust_core.simulation import renderer
from endomust_core.simulation.domains import TRAINED
from endomust_core.visual_odometry import VisualOdometry

FPS, ROBOT_RATE = 25.0, 100.0  # Hz
READ_AFTER = (2, 5, 10, 20)  # s
ASKED_EVERY = 8  # images
WHITE, WALK, WHITE_ROTATION = 1e-4, 5e-4, math.radians(0.1)  # m, m in 10 s, rad
OUTLIERS, OUTLIER_SIZE = 0.02, 0.02  # share, m
BASE_MOVES = 0.02, 0.1  # m, rad
LATEST = 0.08  # s
HEAD = (
    "",
    "truth",
    "after [s]",
    "runs",
    "silent",
    "error p50 [%]",
    "p90",
    "worst",
    "mean",
    "in 2 sigma [%]",
    "sigma [%]",
)
FORMATS = ("{}", "{}", "{}", "{}", "{}", "{:.2f}", "{:.2f}", "{:.2f}", "{:+.2f}", "{:.0f}", "{:.2f}")


@dataclass(frozen=True)
class Sequence:
    """What one rendered scene gives: N images of a pinhole camera with truth and a model's depth."""

    name: str
    pose: object  # time [s] -> (4,4) T_world_camera [m]
    camera: Camera | None = None
    grey: np.ndarray | None = None  # (N,H,W) uint8
    depth: np.ndarray | None = None  # (N,H,W) float32 [m], NaN where nothing is known
    predicted: np.ndarray | None = None  # (N,H,W) float32 [network units]
    usable: np.ndarray | None = None  # (N,H,W) bool
    motions: list | None = None  # N T_prev_curr of the pose network, the first None


@dataclass(frozen=True)
class Run:
    """One estimator over one trajectory."""

    name: str
    kind: str
    read: dict[int, ScaleEstimate]
    truth: dict[int, float]  # m per network unit
    aligned: dict[int, float]  # the scale that aligns the visual path with the true one; empty for (a)
    depth_ratio: float | None  # median true over predicted depth, for (c)
    baseline: float  # m, farthest from the start within ten seconds
    locked_after: float | None  # s
    delay_error: float | None  # s
    milliseconds: float  # median of an estimate


def robot_poses(pose, seconds, rng, delay, base_moves=False):
    """(stamp, T_base_camera in dVRK axes) of `seconds` of motion, as a robot would report them; see the file's head."""
    stamps = np.arange(-0.5, seconds + 0.5, 1 / ROBOT_RATE)
    walk = np.cumsum(rng.normal(0, WALK / math.sqrt(10 * ROBOT_RATE), (len(stamps), 3)), axis=0)
    moved, at = np.eye(4), rng.uniform(0.2, 0.8) * seconds if base_moves else math.inf
    moved[:3, :3], moved[:3, 3] = so3_exp(_direction(rng) * BASE_MOVES[1]), _direction(rng) * BASE_MOVES[0]
    reported = []
    for number, stamp in enumerate(stamps):
        T = pose(stamp) @ axes_of("dvrk").T
        T[:3, 3] += walk[number] + rng.normal(0, WHITE, 3)
        T[:3, :3] = T[:3, :3] @ so3_exp(rng.normal(0, WHITE_ROTATION, 3))
        if rng.random() < OUTLIERS:
            T[:3, 3] += _direction(rng) * OUTLIER_SIZE
        reported.append((float(stamp + delay), moved @ T if stamp > at else T))
    return reported


def true_motion(pose, seconds, rng, hidden):
    """(stamp, T_visual, segment): the truth in units of `hidden` m with noise, 0.05 mm white, 0.15 mm/√s walking."""
    origin, walk, motion = inverse(pose(0.0)), np.zeros(3), []
    for stamp in np.arange(0, seconds, 1 / FPS):
        T = origin @ pose(stamp)
        walk = walk + rng.normal(0, 3e-5, 3)
        T[:3, 3] = (T[:3, 3] + walk + rng.normal(0, 5e-5, 3)) / hidden
        T[:3, :3] = T[:3, :3] @ so3_exp(rng.normal(0, 1e-3, 3))
        motion.append((float(stamp), T, 0))
    return motion


def tracked_motion(sequence, depth, motions=None):
    """(stamp, T_visual, segment) of the odometry over images and `depth` (N,H,W) [network units], as the node has it.

    `motions`: N T_prev_curr of the pose network, or None. Images where it is lost say nothing.
    """
    odometry, motion = VisualOdometry(), []
    for number, grey in enumerate(sequence.grey):
        said = None if motions is None else motions[number]
        stamp = number / FPS
        state = odometry.step(grey, depth[number], sequence.camera, said, stamp, 1.0, sequence.usable[number])
        if state.T_visual is not None and state.state != "LOST":
            motion.append((stamp, state.T_visual, state.segment))
    return motion


def scene(domain, seed):
    """The camera path of a scene, without its images."""
    drawn = renderer(domain, (64, 80), seed, FPS, 64)
    return Sequence(f"{domain}-{seed}", _pose_of(drawn))


def rendered(domain, seed, seconds, bundle):
    """Images of `seconds` of a scene, undistorted, with the depth that `bundle` says."""
    drawn, estimator = renderer(domain, (256, 320), seed, FPS), Estimator(bundle, threads=1, resolution="network")
    frames = [drawn.frame(number) for number in range(int(seconds * FPS))]
    looks = [estimator.look(frame.rgb) for frame in frames]
    motions = [estimator.motion(look)[0] for look in looks]
    disparity = [look.disparity for look in looks]
    usable = [frame.fov & ~frame.instrument for frame in frames]
    rgb, depth = [frame.rgb for frame in frames], [frame.depth for frame in frames]
    return undistorted(f"{domain}-{seed}", _pose_of(drawn), drawn.camera, rgb, depth, disparity, usable, motions)


def undistorted(name, pose, camera, rgb, depth, disparity, usable, motions):
    """Lists of rgb (H,W,3), depth (H,W) [m], disparity (h,w) and usable (H,W), of `camera` -> Sequence of a pinhole."""
    K, D, size = camera.K, np.array(camera.D or (0.0,) * 5), (camera.width, camera.height)
    x, y = cv2.initUndistortRectifyMap(K, D, None, K, size, cv2.CV_32FC1)

    def straight(image, how=cv2.INTER_NEAREST):
        return cv2.remap(image, x, y, how, borderMode=cv2.BORDER_CONSTANT)

    grey = [straight(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.INTER_LINEAR) for image in rgb]
    seen = [straight(np.uint8(mask)) > 0 for mask in usable]
    true = [straight(image) for image in depth]
    said = [straight(1 / cv2.resize(image, size), cv2.INTER_LINEAR) for image in disparity]
    known = np.stack(seen) & (np.stack(true) > 0) & (np.stack(said) > 0)
    true, said = (np.where(known, images, np.nan).astype(np.float32) for images in (true, said))
    return Sequence(name, pose, camera.pinhole(), np.stack(grey), true, said, np.stack(seen), motions)


def run(kind, sequence, motion, rng, hidden=None, base_moves=False):
    """The estimator over one visual trajectory beside a simulated robot."""
    seconds, delay = motion[-1][0] + 1 / FPS, rng.uniform(0, LATEST)
    robot = robot_poses(sequence.pose, seconds, rng, delay, base_moves)
    scale, times, locked, given = KinematicScale(ScaleSettings()), [], None, 0
    read, truth, aligned = {}, {}, {}
    ends = {round(after * FPS): after for after in READ_AFTER}
    for number, (stamp, T, segment) in enumerate(motion, 1):
        while given < len(robot) and robot[given][0] <= stamp:
            scale.add_pose(*robot[given])
            given += 1
        scale.add_motion(stamp, T, segment)
        if number in ends or number % ASKED_EVERY == 0:
            start = time.thread_time()
            estimate = scale.estimate()
            times.append(time.thread_time() - start)
            locked = stamp if locked is None and estimate.locked else locked
        if number in ends:
            read[ends[number]] = estimate
            if kind != "a":
                aligned[ends[number]] = aligned_scale(motion[:number], sequence.pose)
            truth[ends[number]] = hidden or aligned[ends[number]]
    positions = np.array([sequence.pose(stamp)[:3, 3] for stamp, _, _ in motion if stamp < 10])
    return Run(
        sequence.name,
        kind,
        read,
        truth,
        aligned,
        depth_ratio(sequence) if kind == "c" else None,
        float(np.linalg.norm(positions - positions[0], axis=1).max()),
        locked,
        None if estimate.delay_sigma is None else estimate.delay - delay,
        1e3 * float(np.median(times)),
    )


def aligned_scale(motion, pose, window=10.0):
    """m per network unit that best aligns the longest unbroken stretch of the last `window` s with the true path."""
    recent = [m for m in motion if m[0] > motion[-1][0] - window]
    segments, counts = np.unique([m[2] for m in recent], return_counts=True)
    longest = [m for m in recent if m[2] == segments[np.argmax(counts)]]
    seen = np.array([T[:3, 3] for _, T, _ in longest])
    true = np.array([pose(stamp)[:3, 3] for stamp, _, _ in longest])
    return align(seen, true)[0]


def depth_ratio(sequence):
    """Median of true over predicted depth, over all images."""
    with np.errstate(invalid="ignore"):
        return float(np.nanmedian(sequence.depth[::5, ::4, ::4] / sequence.predicted[::5, ::4, ::4]))


def summary(runs):
    """One row for every kind, truth and time: errors in percent, as `HEAD` names them."""
    rows = []
    for kind, truth in (("a", "unit"), ("b", "unit"), ("b", "path"), ("c", "path"), ("c", "depth")):
        for after in READ_AFTER:
            chosen = [r for r in runs if r.kind == kind and after in r.read]
            known = [r for r in chosen if r.read[after].factor]
            if not known:
                continue
            true = [{"unit": r.truth, "path": r.aligned, "depth": {after: r.depth_ratio}}[truth][after] for r in known]
            error = np.array([100 * (r.read[after].factor / t - 1) for r, t in zip(known, true, strict=True)])
            of_depth = kind != "a" and truth != "path"
            sigma = 100 * np.array([r.read[after].depth_sigma if of_depth else r.read[after].sigma for r in known])
            size = np.abs(error)
            spread = (np.median(size), np.percentile(size, 90), size.max(), error.mean())
            honest = 100 * np.mean(size < 2 * sigma)
            silent = len(chosen) - len(known)
            rows.append((kind, truth, after, len(known), silent, *spread, honest, np.median(sigma)))
    return rows


def all_runs(scenes, seeds, seconds, bundle, sequences=None):
    """Every run: (a) over `scenes` paths a domain, (b) and (c) over the rendered `seeds` (or `sequences`)."""
    runs = []
    for domain in TRAINED:
        for seed in range(scenes):
            path, rng = scene(domain, seed), np.random.default_rng(seed)
            hidden = math.exp(rng.normal(0, 0.5))
            motion = true_motion(path.pose, max(READ_AFTER), rng, hidden)
            runs.append(run("a", path, motion, rng, hidden, seed % 3 == 0))
    chosen = sequences or (rendered(domain, seed, seconds, bundle) for domain in TRAINED for seed in seeds)
    for number, sequence in enumerate(chosen):
        rng = np.random.default_rng(number)
        hidden = math.exp(rng.normal(0, 0.5))
        moves = number % 3 == 0
        runs.append(run("b", sequence, tracked_motion(sequence, sequence.depth / hidden), rng, hidden, moves))
        motion = tracked_motion(sequence, sequence.predicted, sequence.motions)
        runs.append(run("c", sequence, motion, rng, None, moves))
    return runs


def table(runs):
    """The summary as Markdown, then locks, delay and time of every kind, then (b) and (c) scene by scene."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    lines += [f"| {' | '.join(f.format(v) for f, v in zip(FORMATS, row, strict=True))} |" for row in summary(runs)]
    lines += ["", *(_line(kind, [r for r in runs if r.kind == kind]) for kind in sorted({r.kind for r in runs}))]
    for r in (r for r in runs if r.kind != "a"):
        last = max(r.read)
        said = r.read[last].factor or math.nan
        other = f"unit {r.truth[last]:.3f}" if r.kind == "b" else f"depth {r.depth_ratio:.3f}"
        lines.append(f"- ({r.kind}) {r.name}: kinematic {said:.3f}, path {r.aligned[last]:.3f}, {other}")
    return "\n".join(lines)


def _line(kind, runs):
    locked = [r.locked_after for r in runs if r.locked_after is not None]
    late = [1e3 * abs(r.delay_error) for r in runs if r.delay_error is not None]
    ways = [1e3 * r.baseline for r in runs]
    error = f"{np.median(late or [math.nan]):.1f} ms, worst {max(late, default=math.nan):.1f} ms"
    return (
        f"- ({kind}) {len(locked)} of {len(runs)} locked, after {np.median(locked or [math.nan]):.1f} s (median); "
        f"delay found in {len(late)}, error median {error}; an estimate takes "
        f"{np.median([r.milliseconds for r in runs]):.1f} ms of CPU; the camera goes {np.median(ways):.0f} mm from its "
        f"start, {min(ways):.1f} mm in the least case"
    )


def _pose_of(drawn):
    def pose(stamp):
        T = drawn.scene.pose(float(stamp)).double().numpy().copy()
        T[:3, 3] *= 1e-3
        return T

    return pose


def _direction(rng):
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def main():
    parser = argparse.ArgumentParser(description="Measure the kinematic scale on rendered motion.")
    parser.add_argument("--scenes", type=int, default=20, help="camera paths of every domain for (a)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[9100, 9101], help="rendered scenes for (b) and (c)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of every rendered scene")
    parser.add_argument("--bundle", default=None, help="model bundle for (c); default: the one shipped")
    parser.add_argument("--out", type=Path, default=None, help="folder for scale.md and scale.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    bundle = load_bundle(options.bundle or default_bundle())
    runs = all_runs(options.scenes, options.seeds, options.seconds, bundle)
    text = table(runs)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scale.md").write_text(text + "\n", encoding="utf-8")
        (options.out / "scale.json").write_text(json.dumps(summary(runs), default=float), encoding="utf-8")


if __name__ == "__main__":
    main()
