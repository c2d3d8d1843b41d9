"""Measures odometry on rendered sequences with truth: drift, covariance, being lost, recovery. mm, degrees, seconds.

    python -m endomust_core.simulation.odometry_check --seeds 9100 9101 --frames 200 --out DIR
    python -m endomust_core.simulation.odometry_check --fit        # constants of the covariance, seeds 9000 to 9009

Three ways: `network` chains the pose network's motions, `keyframes` is the default of the node, `refined` finds each
image against the image before. The camera is the true one, images are undistorted first, the mask is the round view;
instruments are not masked. What the columns mean:

- ATE: root mean square distance of positions after Sim(3) alignment; `start` after alignment of the first pose and one
  scale (least squares). RPE: of the motion over one image and over 1 s, at the scale of the Sim(3) alignment.
- rest: one image shown for 10 s with new sensor noise (2 grey values); distance from the start at the end.
- NEES: eᵀC⁻¹e of position and rotation in odom axes, with the first pose aligned and one scale for the sequence fitted
  by least squares, that C is given too. 6 on average if C is right; `in 95 %` is the share of images within the
  2.5 and 97.5 % quantiles of χ² with 6 degrees of freedom. What C holds of the scale is thus its wander alone.
- lost: true for images that were made black, or veiled so that 3 % of the contrast is left (8 images each), and for the
  first image after a jump of 1.3 times the gates of the settings, or to a view that shares less than 20 % with the one
  before. The images from there to the first OK one are neither true nor false. Everything else must not be LOST.
- recovery: images from the first good one to the first OK one; error of the pose there against the last one before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from endomust_core.bundle import default_bundle, load_bundle
from endomust_core.camera import Camera
from endomust_core.charts import Series, line_chart
from endomust_core.estimator import Estimator, to_depth
from endomust_core.metrics import align
from endomust_core.odometry import START_VARIANCE, UNKNOWN_VARIANCE, OdometrySettings, inverse, plausible, so3_log
from endomust_core.report import page, section, write_page
from endomust_core.simulation import DOMAINS, renderer
from endomust_core.simulation.domains import TRAINED
from endomust_core.visual_odometry import VisualOdometry

WAYS = {
    "network": OdometrySettings(odom_refine=False, odom_keyframe=False),
    "keyframes": OdometrySettings(),
    "refined": OdometrySettings(odom_keyframe=False),
}
CHI2_6 = (1.237, 14.449)  # 2.5 and 97.5 % quantiles of χ² with 6 degrees of freedom
SIZE = (256, 320)  # rendered, and what odometry works on
REST_SECONDS, REST_NOISE = 10.0, 2.0
FAULT, VEIL_LEFT = 8, 0.03
BEYOND, LEAST_SHARED = 1.3, 0.2  # a jump is so many times the gates, or to a view that shares so little
LEAST_FRAMES = 60
FIT_SEEDS, TEST_SEEDS = tuple(range(9000, 9010)), (9100, 9101)


@dataclass(frozen=True)
class Sequence:
    """Images with truth and what the networks said of them; the sizes of the images are the camera's."""

    name: str
    camera: Camera  # as rendered, with its distortion
    rgb: np.ndarray  # (N,H,W,3) uint8
    depth: np.ndarray  # (N,H,W) true [m]
    T_world_camera: np.ndarray  # (N,4,4) true [m]
    fov: np.ndarray  # (H,W) bool, the round view
    stamp: np.ndarray  # (N,) [s]
    disparity: np.ndarray  # (N,h,w) [1/unit]
    T_prev_curr: np.ndarray  # (N,4,4) of the pose network, NaN where it said nothing


def observed(name, camera, rgb, depth, T_world_camera, fov, stamp, estimator: Estimator) -> Sequence:
    """Run the networks over the images, in their order."""
    estimator.reset()
    disparity, motions = [], []
    for image in rgb:
        look = estimator.look(image)
        motion, _ = estimator.motion(look)
        disparity.append(look.disparity)
        motions.append(np.full((4, 4), np.nan) if motion is None else motion)
    return Sequence(name, camera, rgb, depth, T_world_camera, fov, stamp, np.array(disparity), np.array(motions))


def rendered(domain: str, seed: int, frames: int, estimator: Estimator) -> Sequence:
    """A sequence of the procedural endoscope with what the bundle says of it."""
    drawn = renderer(domain, SIZE, seed)
    shown = [drawn.frame(number) for number in range(frames)]
    stack = lambda key: np.stack([getattr(frame, key) for frame in shown])  # noqa: E731
    fov = stack("fov").all(0)
    return observed(
        f"{domain}-{seed}", drawn.camera, stack("rgb"), stack("depth"), stack("T_world_camera"), fov,
        np.array([frame.stamp for frame in shown]), estimator,
    )  # fmt: skip


class Views:
    """Undistorted grey images (h,w) uint8, depth [unit] and mask of a sequence, for odometry."""

    def __init__(self, sequence: Sequence):
        self.sequence, full = sequence, sequence.camera
        self.camera = full.pinhole()
        self._maps = None
        if full.is_distorted:
            D, size = np.array(full.D), (full.width, full.height)
            self._maps = cv2.initUndistortRectifyMap(full.K, D, None, full.K, size, cv2.CV_32FC1)
        self.mask = self._straight(sequence.fov.astype(np.uint8), cv2.INTER_NEAREST) > 0

    def grey(self, number: int) -> np.ndarray:
        """(h,w) uint8."""
        return cv2.cvtColor(self._straight(self.sequence.rgb[number], cv2.INTER_LINEAR), cv2.COLOR_RGB2GRAY)

    def depth(self, number: int) -> np.ndarray:
        """(h,w) float32 as the network says [unit]."""
        disparity = cv2.resize(self.sequence.disparity[number], (self.camera.width, self.camera.height))
        return to_depth(self._straight(disparity, cv2.INTER_LINEAR), self.camera.width, self.camera.height)

    def _straight(self, image: np.ndarray, how: int) -> np.ndarray:
        return image if self._maps is None else cv2.remap(image, *self._maps, how)


def track(sequence: Sequence, settings=None, views: Views | None = None, **options) -> tuple[list, np.ndarray]:
    """Odometry over a sequence -> states, and what each step cost (N,) [ms of processor time]."""
    odometry, views = VisualOdometry(settings, **options), views or Views(sequence)
    states, cost = [], []
    for number, motion in enumerate(sequence.T_prev_curr):
        grey, depth = views.grey(number), views.depth(number)
        said = motion if np.isfinite(motion).all() else None
        start = time.thread_time()
        states.append(odometry.step(grey, depth, views.camera, said, sequence.stamp[number], mask=views.mask))
        cost.append(1e3 * (time.thread_time() - start))
    return states, np.array(cost)


def poses(states: list) -> np.ndarray:
    """(N,4,4) T_odom_camera."""
    return np.array([state.T_odom_camera for state in states])


def in_start(T_world_camera: np.ndarray) -> np.ndarray:
    """(N,4,4) poses seen from the first one."""
    return inverse(T_world_camera[0]) @ T_world_camera


def start_scale(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Metres per unit that bring positions (both from their start) nearest to each other, by least squares."""
    p, g = in_start(estimate)[:, :3, 3], in_start(truth)[:, :3, 3]
    power = float((p * p).sum())
    return float((p * g).sum()) / power if power > 0 else 1.0


def drift(estimate: np.ndarray, truth: np.ndarray, second: int = 25) -> dict[str, float]:
    """Poses (N,4,4) and true ones -> ATE and RPE [mm, deg], and the scale of the alignment."""
    p, g = estimate[:, :3, 3], truth[:, :3, 3]
    scale, R, t = align(p, g)
    started = start_scale(estimate, truth) * in_start(estimate)[:, :3, 3] - in_start(truth)[:, :3, 3]
    row = {"scale": scale, "ate_mm": _rms(scale * p @ R.T + t - g), "ate_start_mm": _rms(started)}
    for name, gap in (("image", 1), ("second", second)):
        said, true = (inverse_all(T[:-gap]) @ T[gap:] for T in (estimate, truth))
        turn = [np.linalg.norm(so3_log(a[:3, :3].T @ b[:3, :3])) for a, b in zip(said, true, strict=True)]
        row[f"rpe_{name}_mm"] = _rms(scale * said[:, :3, 3] - true[:, :3, 3])
        row[f"rpe_{name}_deg"] = float(np.degrees(np.sqrt(np.mean(np.square(turn)))))
    return row


def inverse_all(T: np.ndarray) -> np.ndarray:
    """(N,4,4) -> (N,4,4)."""
    return np.array([inverse(one) for one in T])


def _rms(errors: np.ndarray) -> float:
    """(N,3) [m] -> root mean square length [mm]."""
    return 1e3 * float(np.sqrt((errors**2).sum(-1).mean()))


def _inside(errors: np.ndarray) -> float:
    """Share of (N,) normalised squared errors within the 95 % interval."""
    return float(((errors > CHI2_6[0]) & (errors < CHI2_6[1])).mean()) if len(errors) else float("nan")


def nees(estimate: np.ndarray, covariance: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N,4,4) poses, their (N,6,6), true poses -> (N-1,) normalised squared errors (module docstring), images with an
    unknown covariance left out."""
    scale, estimate, true = start_scale(estimate, truth), in_start(estimate), in_start(truth)
    metres = np.array([scale] * 3 + [1.0] * 3)
    turn = [so3_log(a[:3, :3] @ b[:3, :3].T) for a, b in zip(estimate, true, strict=True)]
    errors = np.hstack([scale * estimate[:, :3, 3] - true[:, :3, 3], turn])
    known = covariance[:, 0, 0] < UNKNOWN_VARIANCE
    known[0] = False
    e, C = errors[known], covariance[known] * np.outer(metres, metres)
    return np.einsum("ni,ni->n", e, np.linalg.solve(C, e[:, :, None])[:, :, 0])


def covariances(states: list) -> np.ndarray:
    """(N,6,6) of the poses."""
    return np.array([state.pose_covariance for state in states])


def at_rest(sequence: Sequence, estimator: Estimator, number: int = 20, seconds: float = REST_SECONDS) -> Sequence:
    """One image of a sequence shown for some seconds, each time with other noise."""
    count, random = int(25 * seconds) + 1, np.random.default_rng(number)
    still = sequence.rgb[number].astype(np.float32)
    rgb = [(still + random.normal(0, REST_NOISE, still.shape)).clip(0, 255).astype(np.uint8) for _ in range(count)]
    return observed(
        sequence.name, sequence.camera, np.array(rgb), sequence.depth[[number] * count],
        sequence.T_world_camera[[number] * count], sequence.fov, np.arange(count) / 25, estimator,
    )  # fmt: skip


def shared_view(sequence: Sequence, a: int, b: int) -> float:
    """Share of the tissue seen in image a that lies in the field of view of image b; nothing hides anything."""
    camera = sequence.camera.pinhole()
    points = camera.back_project(sequence.depth[a])[4::8, 4::8][sequence.fov[4::8, 4::8]]
    T = inverse(sequence.T_world_camera[b]) @ sequence.T_world_camera[a]
    pixel = np.rint(camera.project(points @ T[:3, :3].T + T[:3, 3]))
    with np.errstate(invalid="ignore"):
        inside = (pixel >= 0).all(1) & (pixel < (camera.width, camera.height)).all(1)
    u, v = pixel[inside].astype(int).T
    return float(sequence.fov[v, u].sum() / len(points))


@dataclass(frozen=True)
class Faulty:
    """A sequence with faults: which images come when, and which of them cannot be placed."""

    sequence: Sequence
    order: np.ndarray  # (N,) the true image behind each one
    lost: np.ndarray  # (N,) bool, truly lost
    faults: tuple[tuple[str, int, int], ...]  # name, first image, first good image after it


def with_faults(sequence: Sequence, estimator: Estimator) -> Faulty:
    """A blackout, a veil of smoke and a jump, a second or more apart; without a jump where no view is far enough."""
    count = len(sequence.rgb)
    dark, veil, jump = (int(share * count) for share in (0.2, 0.45, 0.7))
    target = _far_view(sequence, jump - 1)
    order = np.arange(count)
    faults = [("blackout", dark, dark + FAULT), ("veil", veil, veil + FAULT)]
    lost = np.zeros(count, bool)
    lost[dark : dark + FAULT] = lost[veil : veil + FAULT] = True
    if target is not None:
        order = np.concatenate([order[:jump], _onwards(target, count)])[:count]
        faults.append(("jump", jump, jump))
        lost[jump] = True
    random, rgb = np.random.default_rng(count), sequence.rgb[order]
    black = lambda image: np.zeros_like(image, np.float32)  # noqa: E731
    grey = lambda image: VEIL_LEFT * image + (1 - VEIL_LEFT) * 0.8 * np.percentile(image, 95)  # noqa: E731
    for (_, first, after), made in zip(faults[:2], (black, grey), strict=True):
        for number in range(first, after):
            image = made(rgb[number].astype(np.float32))
            rgb[number] = (image + random.normal(0, REST_NOISE, image.shape)).clip(0, 255) * sequence.fov[..., None]
    seen = observed(
        sequence.name, sequence.camera, rgb, sequence.depth[order], sequence.T_world_camera[order], sequence.fov,
        sequence.stamp, estimator,
    )  # fmt: skip
    return Faulty(seen, order, lost, tuple(faults))


def _far_view(sequence: Sequence, number: int) -> int | None:
    """The nearest image that the camera cannot have reached in one step, or that shows too little of the same."""
    p, T = WAYS["keyframes"], sequence.T_world_camera
    others = sorted(range(len(T)), key=lambda other: abs(other - number))
    for other in others:
        motion = inverse(T[number]) @ T[other]
        if not plausible(motion, BEYOND * p.odom_max_translation, BEYOND * p.odom_max_rotation):
            return other
        if shared_view(sequence, number, other) < LEAST_SHARED:
            return other
    return None


def _onwards(first: int, count: int) -> np.ndarray:
    """Image numbers from `first` forwards, and back again from the end, for ever."""
    there_and_back = np.concatenate([np.arange(count), np.arange(count - 2, 0, -1)])
    return np.tile(there_and_back, 3)[first:]


def lost_scores(faulty: Faulty, states: list) -> dict:
    """Counts of LOST images, and how each fault ended."""
    said = np.array([state.state == "LOST" for state in states])
    judged, endings, truth = np.ones(len(said), bool), [], faulty.sequence.T_world_camera
    estimate = poses(states)
    scale = start_scale(estimate[: faulty.faults[0][1]], truth[: faulty.faults[0][1]])
    for name, first, after in faulty.faults:
        ok = [i for i in range(after, len(states)) if states[i].state == "OK"]
        back = ok[0] if ok else len(states)
        judged[after:back] &= faulty.lost[after:back]
        ending = {"fault": name, "images": back - after if ok else None, "reason": states[first].reason}
        ending["same_segment"] = bool(ok) and states[back].segment == states[first - 1].segment
        if ending["same_segment"]:
            a, b = (inverse(T[first - 1]) @ T[back] for T in (estimate, truth))
            ending["error_mm"] = 1e3 * float(np.linalg.norm(scale * a[:3, 3] - b[:3, 3]))
            ending["error_deg"] = float(np.degrees(np.linalg.norm(so3_log(a[:3, :3].T @ b[:3, :3]))))
        endings.append(ending)
    return {
        "true": int((said & faulty.lost).sum()),
        "false": int((said & ~faulty.lost & judged).sum()),
        "missed": int((~said & faulty.lost).sum()),
        "endings": endings,
    }


def measured(sequence: Sequence, estimator: Estimator) -> dict:
    """Everything of one sequence."""
    truth, views = sequence.T_world_camera, Views(sequence)
    row = {"name": sequence.name, "ways": {}, "positions": {"truth": in_start(truth)[:, :3, 3]}}
    still = at_rest(sequence, estimator)
    still_views = Views(still)
    for way, settings in WAYS.items():
        states, cost = track(sequence, settings, views)
        numbers = drift(poses(states), truth) | {"ms": float(np.median(cost)), "ms_p95": float(np.percentile(cost, 95))}
        end = poses(track(still, settings, still_views)[0])[-1]
        numbers["rest_mm"] = 1e3 * float(np.linalg.norm(end[:3, 3]))
        numbers["rest_deg"] = float(np.degrees(np.linalg.norm(so3_log(end[:3, :3]))))
        errors = nees(poses(states), covariances(states), truth)
        numbers["nees"], numbers["nees_inside"] = float(errors.mean()), _inside(errors)
        if way == "keyframes":
            row["nees"] = errors.tolist()
        numbers["lost"] = sum(state.state == "LOST" for state in states)
        row["ways"][way] = numbers
        row["positions"][way] = start_scale(poses(states), truth) * poses(states)[:, :3, 3]
    faulty = with_faults(sequence, estimator)
    row["lost"] = lost_scores(faulty, track(faulty.sequence, WAYS["keyframes"])[0])
    return row


def fitted(sequences: Iterable[Sequence]) -> dict[str, float]:
    """Constants of the covariance for which the NEES of `keyframes`, averaged over the sequences, is 6 (to 10 %), as
    for χ² with 6 degrees of freedom; among those, the ones that most images lie within the 95 % interval for.

    A covariance is A inflation² + B sigma² + that of a start, exactly: two runs give A and B.
    """
    start = np.eye(6) * START_VARIANCE
    parts = []
    for sequence in sequences:
        views = Views(sequence)
        A, B = (track(sequence, None, views, pose_inflation=i, log_scale_sigma=s)[0] for i, s in ((1, 0), (0, 1)))
        parts.append((poses(A), covariances(A) - start, covariances(B) - start, sequence.T_world_camera))
    tried = []
    for inflation in np.arange(1.0, 8.01, 0.25):
        for sigma in np.arange(0.0, 0.201, 0.01):
            each = [nees(T, A * inflation**2 + B * sigma**2 + start, truth) for T, A, B, truth in parts]
            errors = np.concatenate(each)
            mean = float(np.mean([errors.mean() for errors in each]))
            tried.append({"pose_inflation": float(inflation), "log_scale_sigma": round(float(sigma), 3),
                          "mean": mean, "inside": _inside(errors)})  # fmt: skip
    near = [row for row in tried if abs(np.log(row["mean"] / 6)) < 0.1]
    return max(near or tried, key=lambda row: row["inside"] if near else -abs(np.log(row["mean"] / 6)))


def table(rows: list[dict]) -> str:
    """Markdown: medians over the sequences of each domain, and over all."""
    columns = (("ATE", "ate_mm", ".2f"), ("ATE start", "ate_start_mm", ".2f"), ("scale", "scale", ".2f"),
               ("RPE image [mm]", "rpe_image_mm", ".3f"), ("[deg]", "rpe_image_deg", ".3f"),
               ("RPE 1 s [mm]", "rpe_second_mm", ".2f"), ("[deg]", "rpe_second_deg", ".2f"),
               ("rest 10 s [mm]", "rest_mm", ".3f"), ("[deg]", "rest_deg", ".3f"), ("NEES", "nees", ".1f"),
               ("in 95 %", "nees_inside", ".2f"), ("LOST", "lost", ".0f"), ("ms", "ms", ".1f"))  # fmt: skip
    lines = ["| domain | way | " + " | ".join(name for name, _, _ in columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for domain in [*DOMAINS, "all"]:
        chosen = [row for row in rows if domain in ("all", row["name"].split("-")[0])]
        for way in WAYS if chosen else ():
            median = [np.median([row["ways"][way][key] for row in chosen]) for _, key, _ in columns]
            cells = " | ".join(format(v, form) for v, (_, _, form) in zip(median, columns, strict=True))
            lines.append(f"| {domain} | {way} | {cells} |")
    return "\n".join(lines)


def lost_table(rows: list[dict]) -> str:
    """Markdown: detection over all sequences, then recovery by fault."""
    true, false, missed = (sum(row["lost"][key] for row in rows) for key in ("true", "false", "missed"))
    precision, recall = true / max(true + false, 1), true / max(true + missed, 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    lines = [f"LOST: precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f} ({true} true, {false} false, {missed} "
             "missed)", "", "| fault | faults | found again | images until OK | error [mm] | error [deg] |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    endings = [ending for row in rows for ending in row["lost"]["endings"]]
    for name in ("blackout", "veil", "jump"):
        same = [ending for ending in endings if ending["fault"] == name]
        again = [ending for ending in same if ending["same_segment"]]
        middle = lambda key, of: f"{np.median([e[key] for e in of]):.2f}" if of else "-"  # noqa: E731
        ended = [ending for ending in same if ending["images"] is not None]
        lines.append(f"| {name} | {len(same)} | {len(again)} | {middle('images', ended)} | {middle('error_mm', again)} "
                     f"| {middle('error_deg', again)} |")  # fmt: skip
    return "\n".join(lines)


def nees_line(rows: list[dict]) -> str:
    """The test of Bar-Shalom (2001, 5.4.2): at each image the mean NEES of all sequences against its 95 % interval."""
    count = min(len(row["nees"]) for row in rows)
    means, k = np.mean([row["nees"][:count] for row in rows], axis=0), 6 * len(rows)
    # Quantiles of χ² with k degrees of freedom by Wilson and Hilferty (1931).
    low, high = (k * (1 - 2 / (9 * k) + sign * 1.96 * np.sqrt(2 / (9 * k))) ** 3 / len(rows) for sign in (-1, 1))
    inside = ((means > low) & (means < high)).mean()
    return (
        f"NEES of keyframes, mean of {len(rows)} sequences at each image: {means.mean():.2f} on average, {inside:.0%} "
        f"of the images within {low:.2f} to {high:.2f}, {(means <= low).mean():.0%} below"
    )


def write(rows: list[dict], out: Path) -> None:
    """odometry.json and odometry.html, a chart of the position error per sequence."""
    out.mkdir(parents=True, exist_ok=True)
    plain = [{key: value for key, value in row.items() if key != "positions"} for row in rows]
    (out / "odometry.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    charts = []
    for row in rows:
        truth, styles = row["positions"]["truth"], ("third", "first", "second")
        error = {way: 1e3 * np.linalg.norm(row["positions"][way] - truth, axis=1) for way in WAYS}
        at = np.arange(len(truth)) / 25
        lines = [Series(at, error[way], way, style) for way, style in zip(WAYS, styles, strict=True)]
        charts.append(section(row["name"], line_chart(lines, "time [s]", "position error [mm]")))
    note = "start aligned, one scale each; " + ", ".join(WAYS)
    write_page(out / "odometry.html", page("Odometry on rendered sequences", note, charts))


def check(sequences: Iterable[Sequence], estimator: Estimator, out: Path | None) -> str:
    """Measure the sequences -> two tables in Markdown; with `out`, files too."""
    rows = [measured(sequence, estimator) for sequence in sequences]
    if out:
        write(rows, out)
    return "\n\n".join((table(rows), nees_line(rows), lost_table(rows)))


def main():
    parser = argparse.ArgumentParser(description="Measure odometry on rendered sequences.")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 9100 9101, with --fit 9000 to 9009")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--domains", nargs="+", default=list(TRAINED), choices=list(DOMAINS))
    parser.add_argument("--bundle", type=Path, default=None, help="folder of a bundle; default: the one shipped")
    parser.add_argument("--out", type=Path, default=None, help="folder for odometry.json and odometry.html")
    parser.add_argument("--fit", action="store_true", help="find the constants of the covariance instead")
    options = parser.parse_args()
    if options.frames < LEAST_FRAMES:
        parser.error(f"--frames {options.frames}: the faults and the second between poses need {LEAST_FRAMES}")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    estimator = Estimator(load_bundle(options.bundle or default_bundle()), threads=1, resolution="network")
    seeds = options.seeds or (FIT_SEEDS if options.fit else TEST_SEEDS)
    made = (rendered(domain, seed, options.frames, estimator) for domain in options.domains for seed in seeds)
    print(json.dumps(fitted(made)) if options.fit else check(made, estimator, options.out))


if __name__ == "__main__":
    main()
