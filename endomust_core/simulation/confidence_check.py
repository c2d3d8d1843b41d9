"""Rendered sequences + the default model → is confidence (h,w) honest, do masks hit, does the filter calm the depth.

    python -m endomust_core.simulation.confidence_check --seeds 9100 9101 --frames 100 --out runs/confidence
    python -m endomust_core.simulation.confidence_check --fit --seeds 9000 9001 --frames 200

Truth is at the grid of the depth network, images are undistorted first. `error` is |depth * s / truth - 1| with s the
median of truth / depth of the image, so that only the shape counts. Pixels in a highlight or the surround are not
scored: their confidence is 0 by definition. Instruments are scored.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from endomust_core.bundle import default_bundle, load_bundle, resize_rgb
from endomust_core.camera import Camera
from endomust_core.confidence import MOTION, SINGLE, Confidence, probability
from endomust_core.estimator import Estimator
from endomust_core.parallax import STEP
from endomust_core.temporal import TemporalFilter, common, log_depth, warp
from endomust_core.validity import Border, instrument_mask, specular_mask

DOMAINS = ("colon", "sinus", "laparo")
RIGHT = 0.1  # relative error up to which a depth counts as right
SETTLED = 20  # images until memory is filled
HIGHLIGHT = 0.2  # linear light of the sensor that a highlight adds at least
MOTIONS = ("refined", "network", "none")
STRENGTH = 0.8
EVERY = 2  # images and, along both axes, pixels of the coarse grid are scored one out of so many


@dataclass(frozen=True)
class Sequence:
    """One rendered sequence at the grid of the depth network; camera without distortion."""

    name: str
    camera: Camera
    rgb: np.ndarray  # (N,h,w,3) uint8
    truth: np.ndarray  # (N,h,w) float32 [m], NaN outside of the image
    depth: np.ndarray  # (N,h,w) float32 [m] of the network, NaN invalid
    instrument: np.ndarray  # (N,h,w) bool
    fov: np.ndarray  # (N,h,w) bool
    specular: np.ndarray  # (N,h,w) float32 linear
    true_motion: np.ndarray  # (N,4,4) T_prev_curr [m]; the first is the identity
    network_motion: np.ndarray  # (N,4,4) T_prev_curr [m] of the pose network; the first is NaN

    @property
    def scale(self) -> float:
        """Median of truth / depth over the sequence."""
        return float(np.nanmedian(self.truth[::10] / self.depth[::10]))

    def motion(self, number: int, kind: str, generator: np.random.Generator) -> np.ndarray | None:
        """T_prev_curr in the unit of depth. refined: the truth with 5 % and 0.03 degrees of noise."""
        if number == 0 or kind == "none":
            return None
        if kind == "network":
            return self.network_motion[number]
        T = self.true_motion[number].copy()
        T[:3, 3] *= (1 + 0.05 * generator.standard_normal()) / self.scale
        T[:3, :3] = T[:3, :3] @ cv2.Rodrigues(np.deg2rad(0.03) * generator.standard_normal(3))[0]
        return T


def rendered(domain: str, seed: int, frames: int, estimator: Estimator) -> Sequence:
    """Render and let the network look; about 0.5 s a frame."""
    from endomust_core.simulation import render

    images = list(render(domain, frames, seed=seed))
    keys = ("rgb", "depth", "instrument", "fov", "specular", "T_world_camera")
    arrays = {key: np.stack([getattr(image, key) for image in images]) for key in keys}
    return _sequence(f"{domain}-{seed}", images[0].camera, arrays, estimator)


def cached(path: Path, estimator: Estimator) -> Sequence:
    """The same from an .npz with the fields of simulation.Frame stacked, K, D and model."""
    with np.load(path) as file:
        keys = ("rgb", "depth", "instrument", "fov", "specular", "T_world_camera")
        arrays = {key: file[key] for key in keys}
        D = tuple(file["D"]) if str(file["model"]) != "pinhole" else ()
        height, width = arrays["rgb"].shape[1:3]
        camera = Camera.from_K(file["K"], width, height, str(file["model"]), D)
    return _sequence(path.stem, camera, arrays, estimator)


def _sequence(name: str, camera: Camera, arrays: dict, estimator: Estimator) -> Sequence:
    size = estimator.bundle.depth.size
    maps = None
    if camera.is_distorted:
        shape = (camera.width, camera.height)
        maps = cv2.initUndistortRectifyMap(camera.K, np.array(camera.D), None, camera.K, shape, cv2.CV_32FC1)

    def at_grid(plane: np.ndarray) -> np.ndarray:
        plane = plane.astype(np.float32)
        flat = plane if maps is None else cv2.remap(plane, *maps, cv2.INTER_LINEAR)
        return cv2.resize(flat, size[::-1], interpolation=cv2.INTER_AREA)

    found = {key: [] for key in ("rgb", "truth", "depth", "instrument", "fov", "specular", "network_motion")}
    estimator.reset()
    for i, rgb in enumerate(arrays["rgb"]):
        rgb = rgb if maps is None else cv2.remap(rgb, *maps, cv2.INTER_LINEAR)
        look = estimator.look(rgb)
        T, _ = estimator.motion(look)
        found["network_motion"].append(np.full((4, 4), np.nan) if T is None else T)
        found["rgb"].append(resize_rgb(rgb, size))
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = at_grid(1 / arrays["depth"][i])
            found["truth"].append(np.where(inverse > 1e-3, 1 / inverse, np.nan).astype(np.float32))
            found["depth"].append(np.where(look.disparity > 1e-6, 1 / look.disparity, np.nan).astype(np.float32))
        for key in ("instrument", "fov"):
            found[key].append(at_grid(arrays[key][i]) > 0.5)
        found["specular"].append(at_grid(arrays["specular"][i]))
    poses = arrays["T_world_camera"]
    motions = [np.eye(4), *(np.linalg.inv(a) @ b for a, b in zip(poses[:-1], poses[1:], strict=True))]
    stacked = {key: np.stack(values) for key, values in found.items()}
    return Sequence(name, camera.pinhole().resized(*size[::-1]), true_motion=np.stack(motions), **stacked)


# ---------------------------------------------------------------------------------------------- confidence


def judged(sequence: Sequence, kind: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Terms of the scored pixels, each (n,), and their errors (n,); `kind` of MOTIONS."""
    generator, confidence = np.random.default_rng(0), Confidence()
    terms, errors = [], []
    for i, rgb in enumerate(sequence.rgb):
        T = sequence.motion(i, kind, generator)
        said, found = confidence.terms(rgb, sequence.depth[i], sequence.camera, T)
        if i < SETTLED or i % EVERY or (kind != "none" and len(said) == len(SINGLE)):
            continue
        scored = found.valid & ~found.border & ~found.specular & sequence.fov[i] & np.isfinite(sequence.truth[i])
        error = relative_error(sequence.depth[i], sequence.truth[i], scored)
        scored, coarse = scored[::STEP, ::STEP], np.s_[::EVERY, ::EVERY]
        keep = scored[coarse]
        terms.append(np.stack([term[coarse][keep] for term in said.values()]))
        errors.append(error[::STEP, ::STEP][coarse][keep])
    names = SINGLE if kind == "none" else SINGLE + MOTION
    return dict(zip(names, np.concatenate(terms, axis=1), strict=True)), np.concatenate(errors)


def relative_error(depth: np.ndarray, truth: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """(h,w) |depth * s / truth - 1|, s the median of truth / depth where scored."""
    ratio = depth / truth
    return np.abs(ratio / np.median(ratio[scored]) - 1)


def scores(value: np.ndarray, error: np.ndarray) -> tuple[float, float, float]:
    """Spearman of (1 - value) with error; AUSE, 0 as good as the error itself and 1 as bad as chance; ECE."""
    spearman = float(np.corrcoef(_ranks(-value), _ranks(error))[0, 1]) if np.ptp(value) > 0 else 0.0
    mine, best, chance = sparsified(value, error), sparsified(-error, error), error.mean()
    ause = (mine - best).mean() / (chance - best.mean()) if np.ptp(value) > 0 else 1.0
    return spearman, float(ause), calibration(value, error)


def sparsified(value: np.ndarray, error: np.ndarray, steps: int = 50) -> np.ndarray:
    """Mean error (steps,) of what is left when 0, 2, 4, … 98 % of the pixels with the least value are taken away."""
    ordered = error[np.argsort(-value, kind="stable")]
    means = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
    return means[(len(ordered) * np.arange(steps, 0, -1) / steps).astype(int) - 1]


def reliability(value: np.ndarray, error: np.ndarray, bins: int = 10) -> np.ndarray:
    """(bins,3): mean value, share of right depths, share of the pixels; NaN in an empty bin."""
    which = np.minimum((value * bins).astype(int), bins - 1)
    rows = [(value[which == i], error[which == i] < RIGHT) for i in range(bins)]
    return np.array([(v.mean(), r.mean(), v.size / value.size) if v.size else (np.nan, np.nan, 0) for v, r in rows])


def calibration(value: np.ndarray, error: np.ndarray) -> float:
    """Expected calibration error: mean distance of confidence and share of right depths, over ten bins."""
    table = reliability(value, error)
    return float(np.nansum(np.abs(table[:, 0] - table[:, 1]) * table[:, 2]))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - counts / 2)[place]


def fitted(terms: np.ndarray, right: np.ndarray, weight: np.ndarray, ridge: float = 3e-3) -> np.ndarray:
    """Logistic regression (1 + n,) of right (m,) on terms (m,n), no term may raise the value; intercept first."""
    deviation = terms.std(axis=0) + 1e-9
    A = np.column_stack([np.ones(len(terms)), terms / deviation])
    weight = weight / weight.sum()
    penalty = ridge * np.eye(A.shape[1])
    penalty[0, 0] = 0
    used, w = np.ones(A.shape[1], bool), np.zeros(A.shape[1])
    while True:
        for _ in range(20):
            p = 1 / (1 + np.exp(-A @ w))
            gradient = A.T @ (weight * (p - right)) + penalty @ w
            curvature = (A * (weight * p * (1 - p))[:, None]).T @ A + penalty
            w[used] -= np.linalg.solve(curvature[np.ix_(used, used)], gradient[used])
        wrong = used & (w > 0)
        wrong[0] = False
        if not wrong.any():
            return w / np.concatenate([[1], deviation])
        worst = int(np.argmax(np.where(wrong, w, -np.inf)))
        used[worst], w[worst] = False, 0.0


def fit(sequences: list[Sequence]) -> None:
    """Print the constants of confidence.py; every sequence counts the same, refined motion twice the network's."""
    for name, kinds in (("ALONE", ("none",)), ("TOGETHER", ("refined", "refined", "network"))):
        X, right, weight = [], [], []
        for sequence in sequences:
            for kind in kinds:
                terms, error = judged(sequence, kind)
                X.append(np.column_stack(list(terms.values())))
                right.append(error < RIGHT)
                weight.append(np.full(len(error), 1 / len(error)))
        w = fitted(np.concatenate(X), np.concatenate(right), np.concatenate(weight))
        print(f"{name} = ({', '.join(f'{value:.3g}' for value in w)})")


# ---------------------------------------------------------------------------------------------- masks, filter


def mask_scores(sequence: Sequence) -> dict[str, float]:
    """Sums of pixels, from which IoU, precision and recall of a domain follow."""
    border, kernel = Border(), np.ones((3, 3), np.uint8)
    sums = dict.fromkeys(("border both", "border any", "tool both", "tool any", "tool wrong", "pixels"), 0.0)
    sums |= dict.fromkeys(("spots", "spots hit", "highlights", "highlights found"), 0.0)
    for i in range(0, len(sequence.rgb), EVERY):
        outside, tool = border.update(sequence.rgb[i]), sequence.instrument[i]
        true_outside, said = ~sequence.fov[i], instrument_mask(sequence.rgb[i], outside)
        sums["border both"] += (outside & true_outside).sum()
        sums["border any"] += (outside | true_outside).sum()
        sums["tool both"] += (said & tool).sum()
        sums["tool any"] += (said | tool).sum()
        sums["tool wrong"] += (said & ~tool).sum()
        sums["pixels"] += tool.size
        tissue = ~outside & ~tool
        spots = specular_mask(sequence.rgb[i], outside) & tissue
        highlights = (sequence.specular[i] > HIGHLIGHT) & tissue
        sums["spots"] += spots.sum()
        sums["spots hit"] += (spots & (cv2.dilate(highlights.view(np.uint8), kernel) > 0)).sum()
        sums["highlights"] += highlights.sum()
        sums["highlights found"] += (highlights & (cv2.dilate(spots.view(np.uint8), kernel) > 0)).sum()
    return sums


def flicker(sequence: Sequence, strength: float, kind: str = "refined") -> dict[str, float]:
    """How calm the filtered depth is, and whether it got worse; strength 0 is the network alone."""
    generator, smooth = np.random.default_rng(0), TemporalFilter()
    scales, temporal, absrel, before = [], [], [], None
    for i, depth in enumerate(sequence.depth):
        T = sequence.motion(i, kind, generator)
        depth = depth * smooth.apply(depth, sequence.camera, T, strength)
        scored = sequence.fov[i] & np.isfinite(sequence.truth[i]) & np.isfinite(depth)
        if before is not None and i >= SETTLED:
            T = sequence.true_motion[i].copy()
            T[:3, 3] /= sequence.scale
            moved = warp(depth, sequence.camera, T)
            residual = np.log(np.where(moved.depth > 0, moved.depth, np.nan)) - moved.sample(before)
            scales.append(common(residual, scored))
            temporal.append(np.nanmean(np.abs(residual)[scored & ~sequence.instrument[i]]))
            absrel.append(relative_error(depth, sequence.truth[i], scored)[scored].mean())
        before = log_depth(depth)
    return {
        "scale ratio std [%]": 100 * float(np.std(scales)),
        "temporal error [%]": 100 * float(np.mean(temporal)),
        "AbsRel [%]": 100 * float(np.mean(absrel)),
    }


# ---------------------------------------------------------------------------------------------- tables


def report(sequences: list[Sequence], out: Path | None) -> None:
    """Print all tables; draw the curves and one example sheet per domain into `out`."""
    curves = {}
    print("| domain | motion | judged by | Spearman | AUSE | ECE | right |\n|---|---|---|---|---|---|---|")
    for domain in DOMAINS:
        members = [s for s in sequences if s.name.startswith(domain)]
        for kind in MOTIONS if members else ():
            pairs = [judged(sequence, kind) for sequence in members]
            for label, rows in _judges(pairs, kind).items():
                values = np.mean([scores(value, error) for value, error in rows], axis=0)
                right = np.mean([(error < RIGHT).mean() for _, error in rows])
                print(f"| {domain} | {kind} | {label} | " + " | ".join(f"{v:.2f}" for v in (*values, right)) + " |")
                if kind == "refined":
                    curves[domain, label] = rows
    print("\n| domain | instrument IoU | wrongly masked [%] | highlight precision | recall | border IoU |")
    print("|---|---|---|---|---|---|")
    for domain in DOMAINS:
        found = [mask_scores(s) for s in sequences if s.name.startswith(domain)]
        if found:
            print(f"| {domain} | " + " | ".join(_mask_row({k: sum(f[k] for f in found) for k in found[0]})) + " |")
    print("\n| domain | motion | strength | scale ratio std [%] | temporal error [%] | AbsRel [%] |")
    print("|---|---|---|---|---|---|")
    for domain in DOMAINS:
        members = [s for s in sequences if s.name.startswith(domain)]
        for kind, strength in (("refined", 0.0), ("refined", STRENGTH), ("refined", 0.95), ("network", STRENGTH)):
            rows = [tuple(flicker(s, strength, kind).values()) for s in members]
            if rows:
                print(
                    f"| {domain} | {kind} | {strength} | "
                    + " | ".join(f"{v:.2f}" for v in np.mean(rows, axis=0))
                    + " |"
                )
    if out is not None:
        from endomust_core.simulation import confidence_pictures

        confidence_pictures.draw(sequences, curves, out)


def _judges(pairs, kind: str) -> dict[str, list]:
    """Who judges → (value, error) of every sequence. The one-term judges are fitted to what they are scored on."""
    judges = {"confidence": [(probability(terms), error) for terms, error in pairs]}
    if kind == "none":
        return judges
    judges["constant"] = [(np.full(len(error), (error < RIGHT).mean()), error) for _, error in pairs]
    for label, term in (("geometric alone", "residual"), ("photometric alone", "photometric")):
        judges[label] = []
        for terms, error in pairs:
            w = fitted(terms[term][:, None], error < RIGHT, np.ones(len(error)), 0.0)
            # Where the fit finds nothing, the order still says something: a slope too small to matter otherwise.
            judges[label].append((1 / (1 + np.exp(-w[0] - min(w[1], -1e-6) * terms[term])), error))
    return judges


def _mask_row(s: dict[str, float]) -> tuple[str, ...]:
    share = lambda a, b: f"{s[a] / s[b]:.2f}" if s[b] else "-"  # noqa: E731
    tool = share("tool both", "tool any") if s["tool any"] > s["tool wrong"] else "-"
    highlights = share("spots hit", "spots"), share("highlights found", "highlights")
    border = share("border both", "border any") if s["border any"] > 0.005 * s["pixels"] else "-"
    return tool, f"{100 * s['tool wrong'] / s['pixels']:.2f}", *highlights, border


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Measure confidence, masks and the temporal filter on rendered scenes."
    )
    parser.add_argument(
        "--fit", action="store_true", help="print the weights of confidence.py, fitted to the sequences"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[9100, 9101])
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--bundle", type=Path, help="model bundle; the default one without")
    parser.add_argument("--out", type=Path, help="folder for the pictures")
    parser.add_argument("--cache", type=Path, help="folder with <domain>-<seed>.npz rendered before")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    bundle = load_bundle(options.bundle or default_bundle())
    estimator = Estimator(bundle, threads=1, resolution="network")
    sequences = []
    for domain in options.domains:
        for seed in options.seeds:
            path = options.cache and options.cache / f"{domain}-{seed}.npz"
            source = cached(path, estimator) if path else rendered(domain, seed, options.frames, estimator)
            sequences.append(source)
    if options.fit:
        fit(sequences)
    else:
        report(sequences, options.out)


if __name__ == "__main__":
    main()
