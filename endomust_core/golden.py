"""Golden self-test: a few images with the reference's answers travel in the bundle; an engine must give the same here.

An engine can be wrong and silent: TensorRT 10.3 gives wrong depth for vision transformers on Jetson Orin. So every
engine is compared before the first image of the camera, with the numbers in words when it is refused.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from endomust_core.backends import Backend, BackendError
from endomust_core.bundle import Bundle, BundleError, NetworkSpec, resize_rgb

FILE = "golden.npz"
FRAMES = 3
MODES = ("off", "warn", "require")
LATENCY_RUNS = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelfTest:
    """How an engine agrees with the reference. Errors are relative: 0.01 is one per cent."""

    depth_error: float  # median over pixels of |a - b| / b of inverse depth, the worst image
    motion_error: float | None  # worst output: median length of the difference / largest length in the reference
    tolerance: float
    depth_ms: float  # median time of one inference
    motion_ms: float | None

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.depth_error <= self.tolerance and (self.motion_error or 0.0) <= self.tolerance

    def __str__(self) -> str:
        motion = "" if self.motion_error is None else f", motion by {self.motion_error:.2%}"
        return f"differs from the reference by {self.depth_error:.2%} in depth{motion} (allowed {self.tolerance:.2%})"


def self_test(bundle: Bundle, depth: Backend, pose: Backend | None, tolerance: float) -> SelfTest | None:
    """Compare opened networks with golden.npz; None where the bundle has none. BundleError when it is damaged."""
    golden = load_golden(bundle)
    if golden is None:
        return None
    answers, depth_ms = _answers(depth, bundle.depth, list(golden["depth_images"][:, None]))
    wanted = golden["disparity"]
    pairs = [(both, b) for a, b in zip(answers, wanted, strict=True) for both in a["disparity"]]
    depth_error = max(_median_relative(found, b) for found, b in pairs)
    if pose is None:
        return SelfTest(depth_error, None, tolerance, depth_ms, None)
    answers, motion_ms = _answers(pose, bundle.pose, pairs_of(golden["pose_images"]))
    errors = [_vector_error([a[name][0] for a in answers], golden[name]) for name in bundle.pose.outputs]
    return SelfTest(depth_error, max(errors), tolerance, depth_ms, motion_ms)


def checked(bundle: Bundle, depth: Backend, pose: Backend | None, mode: str, tolerance: float) -> SelfTest | None:
    """`self_test` as `mode` asks: BackendError with the numbers where `require` is not met, a warning for `warn`."""
    if mode not in MODES:
        raise BackendError(f"the self-test is '{mode}'; choose one of {', '.join(MODES)}")
    if mode == "off":
        return None
    allowed = tolerance + bundle.precision_error(depth.precision)
    found = self_test(bundle, depth, pose, allowed)
    if found is None:
        log.warning(
            "%s carries no %s, so its engines cannot be tested on this machine; export the bundle again",
            bundle.name, FILE,
        )  # fmt: skip
        return None
    if not found.passed:
        sentence = (
            f"the engine of {bundle.name} on '{depth.provider}' ({depth.precision}) {found}; "
            "its depth would be wrong. Build it again (endomust engine --rebuild), ask for model.precision fp32 or "
            "another provider; TensorRT before 10.14 is known for this with vision transformers on Orin"
        )
        if mode == "require":
            raise BackendError(sentence)
        log.warning("%s", sentence)
    return found


def load_golden(bundle: Bundle) -> Mapping[str, np.ndarray] | None:
    """Arrays of golden.npz: depth_images (N,H,W,3), disparity (N,H,W), pose_images (N,h,w,3), rotation (N-1,3), …"""
    if bundle.golden is None:
        return None
    try:
        with np.load(bundle.golden, allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
        expected = {"depth_images", "disparity"}
        if bundle.pose is not None:
            expected |= {"pose_images", *bundle.pose.outputs}
        missing = expected - golden.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        found = golden["depth_images"].shape[1:]
        if found != (*bundle.depth.size, 3):
            raise ValueError(f"its images are {found}, the network takes {bundle.depth.size}")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{bundle.golden} does not serve ({error}); export the bundle again") from error
    return golden


def write_golden(
    root: Path, depth: NetworkSpec, pose: NetworkSpec | None, frames: Sequence[np.ndarray], run
) -> dict[str, object]:
    """Write golden.npz into the folder `root` and return the manifest's section.

    frames: consecutive (h,w,3) uint8 RGB; they travel with the bundle, so rendered ones. run(spec, array) → {our name:
    array}, the reference.
    """
    frames = list(frames[:FRAMES])
    if len(frames) < 2:
        raise BundleError("the golden self-test needs at least two consecutive images")
    images = np.stack([resize_rgb(frame, depth.size) for frame in frames])
    arrays = {
        "depth_images": images,
        "disparity": np.stack([run(depth, np.stack([image] * depth.batch))["disparity"][0] for image in images]),
    }
    if pose is not None:
        arrays["pose_images"] = np.stack([resize_rgb(frame, pose.size) for frame in frames])
        answers = [run(pose, pair) for pair in pairs_of(arrays["pose_images"])]
        arrays |= {name: np.concatenate([answer[name] for answer in answers]) for name in pose.outputs}
    part = root / f".{FILE}.{os.getpid()}.unfinished.npz"
    np.savez_compressed(part, **arrays)
    os.replace(part, root / FILE)
    return {"file": FILE, "frames": len(frames)}


def pairs_of(images: np.ndarray) -> list[np.ndarray]:
    """(N,H,W,3) → N-1 arrays (1,2,H,W,3): previous and current."""
    return [np.stack([previous, current])[None] for previous, current in zip(images[:-1], images[1:], strict=True)]


def named_outputs(spec: NetworkSpec, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A graph's outputs under our names."""
    return {ours: found[theirs] for ours, theirs in spec.outputs.items()}


def _answers(backend: Backend, spec: NetworkSpec, inputs: list[np.ndarray]) -> tuple[list[dict], float]:
    """The answer to each input, and the median time of an inference [ms] once each was seen."""
    inputs = [np.repeat(array, spec.batch, axis=0) for array in inputs]
    answers = [named_outputs(spec, backend.run({spec.input_name: array})) for array in inputs]
    times = []
    for _ in range(LATENCY_RUNS):
        start = perf_counter()
        backend.run({spec.input_name: inputs[0]})
        times.append(perf_counter() - start)
    return answers, 1e3 * float(np.median(times))


def _median_relative(found: np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.median(np.abs(found - wanted) / np.maximum(np.abs(wanted), 1e-9)))


def _vector_error(found: Sequence[np.ndarray], wanted: np.ndarray) -> float:
    """(n,) arrays against (N,n): median length of the difference, relative to the largest length of the reference."""
    differences = [float(np.linalg.norm(f - w)) for f, w in zip(found, wanted, strict=True)]
    if not np.isfinite(differences).all():
        return float("inf")
    return float(np.median(differences) / max(np.linalg.norm(wanted, axis=1).max(), 1e-6))
