"""A small report of one evaluation with its rows and frames, as `evaluate` makes them: for tests of pages."""

import json
from dataclasses import dataclass

import numpy as np

SEQUENCES = {"colon": 12, "sinus": 9, "stomach": 10}
NAMES = ("abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "a2", "a3", "ratio", "coverage")


@dataclass(frozen=True)
class Frame:
    """Like endomust_core.evaluate.Shown."""

    caption: str
    kind: str
    rgb: np.ndarray
    depth: np.ndarray
    truth: np.ndarray
    abs_rel: float


def frames():
    truth = np.linspace(0.02, 0.09, 24 * 32, dtype=np.float32).reshape(24, 32)
    truth[:4] = np.nan
    rgb = np.full((24, 32, 3), (180, 90, 70), np.uint8)
    shapes = {"worst": 1.4, "best": 1.02, "median": 0.8}
    return [Frame(f"colon/{kind}", kind, rgb, truth * f, truth, abs(f - 1)) for kind, f in shapes.items()]


def rows(shift=0.0, predictor="model", level=0.05, seed=0):
    """{sequence/number: row}; `level` is the mean AbsRel, the images' own difficulty is the same for every shift."""
    random = np.random.default_rng(seed)
    found = []
    for group, count in SEQUENCES.items():
        for index in range(count):
            score = level + 0.01 * random.random() + shift
            row = {"name": f"{group}/{index:06d}", "group": group, "index": index, "predictor": predictor}
            values = (score, score**2 / 100, score / 10, 1.3 * score, 1 - score, 1.0, 1.0, 0.9 + random.random(), 1.0)
            found.append(row | dict(zip(NAMES, values, strict=True)))
    return found


def summary(of):
    groups = {}
    for row in of:
        groups.setdefault(row["group"], []).append(row)
    return {group: _mean(some) for group, some in groups.items()} | {"all": _mean(of)}


def _mean(of):
    means = {key: float(np.mean([row[key] for row in of])) for key in NAMES}
    interval = [means["abs_rel"] * 0.95, means["abs_rel"] * 1.05]
    return means | {"scale_std": 0.12, "images": len(of), "ci95": {"abs_rel": interval}}


def report(name="endomust-tiny", shift=0.0):
    baselines = {"constant": 0.3, "centre is far": 0.25, "inverse-square brightness": 0.2}
    line = np.cumsum(np.full((30, 3), 1e-3), axis=0)
    degraded = {str(s): {"abs_rel": 0.05 + 0.01 * s, "a1": 0.97 - 0.02 * s, "scale_std": None} for s in range(1, 6)}
    motion = {"ate_5frame": 9e-5, "ate_5frame_std": 3e-5, "ate_5frame_rms": 2e-4, "rpe_rotation": 0.01, "frames": 30,
              "ate_full": 1e-3, "length": 0.05}  # fmt: skip
    return {
        "format": 1,
        "model": {"name": name, "version": "1.0", "digest": name * 3, "backend": "onnxruntime/cpu", "path": "m"},
        "data": {
            "name": "rendered",
            "path": "/data",
            "split": "test",
            "groups": SEQUENCES,
            "images": sum(SEQUENCES.values()),
            "protocol": {"min_depth": 1e-3, "max_depth": 0.15, "scaling": "median", "crop": None, "note": "exact"},
        },
        "tasks": ["depth", "pose", "intrinsics"],
        "scaling": "median",
        "corruption": None,
        "command": "endomust evaluate models/a --data rendered:/data",
        "date": "2025-01-02T03:04:05+00:00",
        "environment": {"python": "3.11", "packages": {"numpy": "2.0"}},
        "depth": {"model": summary(rows(shift)), **{b: summary(rows(0.0, b, v)) for b, v in baselines.items()}},
        "temporal": {"colon": {"depth_change": 0.03, "aligned_change": 0.02}},
        "motion": {"colon": motion},
        "intrinsics": {
            "colon": {"predicted": [0.8, 1.0, 0.5, 0.5], "true": [0.82, 1.02, 0.5, 0.5],
                      "relative_error": [0.024, 0.02, 0.0, 0.0]},
        },
        "latency": {"depth": {"p50": 0.012, "p95": 0.015, "max": 0.1}, "motion": None},
        "curves": {
            "distance": {"edges": [0.0, 0.05, 0.1, 0.15], "abs_rel": [0.04, 0.06, None], "pixels": [900, 100, 0]},
            "brightness": {"edges": [0, 128, 255], "abs_rel": [0.07, 0.04], "pixels": [400, 600]},
        },
        "trajectories": {"colon": {"truth": line.tolist(), "estimate": (1.1 * line).tolist()}},
        "degradation": {"clean": {"abs_rel": 0.05, "a1": 0.97, "scale_std": 0.1}, "smoke": degraded},
        "notes": [],
        "problems": [],
        "complete": True,
    }  # fmt: skip


def write(folder, name="endomust-tiny", shift=0.0, change=None, keep=lambda row: True):
    """A folder as `evaluate` leaves it; `change` may alter the report, `keep` chooses rows."""
    folder.mkdir(parents=True, exist_ok=True)
    content = report(name, shift)
    if change:
        change(content)
    (folder / "report.json").write_text(json.dumps(content, allow_nan=False))
    every = rows(shift) + rows(0.0, "constant", 0.3)
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in every if keep(row)))
    return folder
