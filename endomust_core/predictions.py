"""What a model says of an image, whoever runs it: disparity [1/m], motion T_prev_curr [m], intrinsics; and a cache.

The cache goes by content: the digest of the model, the library that ran it, and the pixels it was shown. A changed
model, another data set under the same name or a corrupted image never meets an old prediction.
"""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np

from endomust_core.bundle import Bundle, BundleError, load_bundle, resize_rgb
from endomust_core.engines import EngineOptions, open_engines
from endomust_core.odometry import se3, so3_exp

PREPROCESSING = 1  # raised when the step from an image to the input of a network changes its meaning
CACHE_LIMIT = 20_000_000_000  # bytes
log = logging.getLogger(__name__)

Motion = tuple[np.ndarray, "np.ndarray | None"]


class Predictor(Protocol):
    """A model that can be scored; every call stands alone, nothing is remembered between images."""

    name: str
    version: str
    digest: str  # sha256 of weights, sizes and preprocessing
    backend: str  # library, device and precision if not fp32, as in "onnxruntime/cpu", "openvino/openvino/bf16"
    path: str  # where it came from
    metric: bool  # whether its metre is a real one

    def disparity(self, rgb: np.ndarray) -> np.ndarray:
        """(h,w,3) uint8 RGB -> (H,W) float32 [1/m] at the size of the network."""

    def motion(self, previous_rgb: np.ndarray, rgb: np.ndarray) -> Motion | None:
        """Two images -> T_prev_curr (4,4) float64 and intrinsics (4,) fx/W fy/H cx/W cy/H or None; None: no network."""


class BundlePredictor:
    """The networks of a bundle; says to the bit what `Estimator` says. Raises BundleError, BackendError."""

    def __init__(
        self,
        bundle: Bundle | str | Path,
        providers: Sequence[str] = ("cpu",),
        threads: int = 0,
        precision: str = "auto",
    ):
        self.bundle = bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        engines = open_engines(bundle, EngineOptions(providers, precision, threads))
        self._depth, self._pose = engines.depth, engines.pose
        self.name, self.version, self.metric = bundle.name, bundle.version, bundle.metric
        self.path = str(bundle.root)
        library = "".join(self._depth.facts["library"].split()[:-1]).lower()  # without its version
        self.backend = f"{library}/{self._depth.provider}"
        if self._depth.precision != "fp32":
            self.backend += f"/{self._depth.precision}"
        self.digest = digest_of([bundle.digest], [spec.size for spec in (bundle.depth, bundle.pose) if spec])

    def disparity(self, rgb: np.ndarray) -> np.ndarray:
        """(h,w,3) uint8 RGB -> (H,W) float32 [1/m] at the size of the network."""
        spec = self.bundle.depth
        image = resize_rgb(rgb, spec.size)
        disparity = self._depth.run({spec.input_name: image[np.newaxis]})[spec.outputs["disparity"]]
        if disparity.shape != (1, *spec.size):
            raise BundleError(f"{spec.path} gave a disparity of shape {disparity.shape}; export it again")
        return disparity[0]

    def motion(self, previous_rgb: np.ndarray, rgb: np.ndarray) -> Motion | None:
        """Two images -> T_prev_curr (4,4) [m] and intrinsics (4,) or None; None without a pose network."""
        if self._pose is None:
            return None
        spec = self.bundle.pose
        pair = np.stack([resize_rgb(image, spec.size) for image in (previous_rgb, rgb)])
        found = self._pose.run({spec.input_name: pair[np.newaxis]})
        named = {ours: found[name].reshape(-1).astype(np.float64) for ours, name in spec.outputs.items()}
        return se3(so3_exp(named["rotation"]), named["translation"]), named.get("intrinsics")


def digest_of(weights: Sequence[str], sizes: Sequence[tuple[int, int]]) -> str:
    """One sha256 for the hex digests of weights, the (H,W) sizes they are run at, and our preprocessing."""
    return hashlib.sha256(repr((PREPROCESSING, list(weights), [tuple(size) for size in sizes])).encode()).hexdigest()


class TimedPredictor:
    """A predictor that remembers how long its networks took [s], but for the first call of each, which warms up."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.seconds = {"depth": array("d"), "motion": array("d")}
        self._warm: set[str] = set()

    def __getattr__(self, name: str):
        return getattr(self.predictor, name)

    def disparity(self, rgb: np.ndarray) -> np.ndarray:
        return self._timed("depth", self.predictor.disparity, rgb)

    def motion(self, previous_rgb: np.ndarray, rgb: np.ndarray) -> Motion | None:
        return self._timed("motion", self.predictor.motion, previous_rgb, rgb)

    def _timed(self, what: str, call: Callable, *images: np.ndarray):
        start = perf_counter()
        found = call(*images)
        if what in self._warm and found is not None:
            self.seconds[what].append(perf_counter() - start)
        self._warm.add(what)
        return found


class CachedPredictor:
    """A predictor whose answers are kept in a folder, one file each, written whole or not at all.

    Beyond `limit` bytes nothing more is stored, which is said once. A file that does not read is predicted again.
    """

    def __init__(self, predictor: Predictor, folder: str | Path, limit: int = CACHE_LIMIT):
        self.predictor, self.limit = predictor, limit
        self.folder = Path(folder)
        self.place = self.folder / f"{predictor.digest[:32]}-{predictor.backend.replace('/', '_')}"
        self.hits = self.misses = 0
        self._known: deque[tuple[np.ndarray, str]] = deque(maxlen=2)
        self._bytes: int | None = None  # in the folder; counted before the first file is stored

    def __getattr__(self, name: str):
        return getattr(self.predictor, name)

    def disparity(self, rgb: np.ndarray) -> np.ndarray:
        return self._kept(f"depth-{self._key(rgb)}", lambda: self.predictor.disparity(rgb))

    def motion(self, previous_rgb: np.ndarray, rgb: np.ndarray) -> Motion | None:
        name = f"motion-{self._key(previous_rgb)}-{self._key(rgb)}"
        kept = self._kept(name, lambda: _packed(self.predictor.motion(previous_rgb, rgb)))
        return _unpacked(kept)

    def _kept(self, name: str, predict: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        path = self.place / name.split("-")[-1][:2] / f"{name}.npy"
        try:
            found = np.load(path, allow_pickle=False)
            self.hits += 1
            return found
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError) as error:
            log.warning("%s does not read (%s) and is predicted again", path, error)
        self.misses += 1
        found = predict()
        if found is not None:
            self._store(path, found)
        return found

    def _store(self, path: Path, values: np.ndarray) -> None:
        if self._bytes is None:
            self._bytes = sum(file.stat().st_size for file in self.folder.rglob("*.npy"))
            self._warn_if_full()
        if self._bytes >= self.limit:
            return
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.save(file, values, allow_pickle=False)
            os.replace(part, path)
        except OSError as error:
            log.warning("%s cannot be written (%s): no more predictions are stored", path, error.strerror)
            self._bytes = self.limit
            return
        finally:
            if part.exists():
                part.unlink()
        self._bytes += values.nbytes + 128
        self._warn_if_full()

    def _warn_if_full(self) -> None:
        if self._bytes >= self.limit:
            log.warning(
                "the predictions in %s take %.1f GB, the limit: no more are stored; remove the folders of old models",
                self.folder, self._bytes / 1e9,
            )  # fmt: skip

    def _key(self, rgb: np.ndarray) -> str:
        """Digest of the pixels; of the last two images it is remembered, as a frame is asked for up to three times."""
        for image, key in self._known:
            if image is rgb:
                return key
        key = hashlib.blake2b(repr(rgb.shape).encode(), digest_size=16)
        key.update(np.ascontiguousarray(rgb).data)
        self._known.append((rgb, key.hexdigest()))
        return key.hexdigest()


def _packed(motion: Motion | None) -> np.ndarray | None:
    if motion is None:
        return None
    T, intrinsics = motion
    return np.concatenate([np.asarray(T, np.float64).ravel(), () if intrinsics is None else intrinsics])


def _unpacked(values: np.ndarray | None) -> Motion | None:
    if values is None:
        return None
    return values[:16].reshape(4, 4), values[16:] if len(values) > 16 else None
