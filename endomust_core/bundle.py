"""Model bundles: a folder with manifest.yaml, depth.onnx and pose.onnx -> a checked Bundle; and the one preprocessing.

The graphs take uint8 RGB at network size, (1,H,W,3) for depth and (1,2,H,W,3) for pose; normalisation is inside them.
The manifest says what the graphs cannot: depth range [m], unit and scale, pose convention, sha256, provenance. A bundle
may also hold the same graphs in other precisions (depth.fp16.onnx), and golden.npz: a few images with the answers that
an engine must give on this machine too.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import yaml

from endomust_core.resources import share

FORMAT = 1
MANIFEST = "manifest.yaml"
DEFAULT_BUNDLE = "endomust-tiny"
POSE_CONVENTION = "T_prev_curr"
GRAPH_PRECISIONS = ("fp16", "int8")  # that need a graph of their own, beside the fp32 one
CHUNK = 1 << 20  # bytes hashed at a time: large models do not fit in memory twice


class BundleError(ValueError):
    """The bundle cannot be used; the message names the file, what is wrong and the remedy."""


@dataclass(frozen=True)
class NetworkSpec:
    """One graph as the manifest describes it; `outputs` maps our names (disparity, rotation, …) to the graph's."""

    path: Path
    sha256: str
    input_name: str
    size: tuple[int, int]  # H, W
    outputs: dict[str, str]
    variants: Mapping[str, tuple[Path, str]] = field(default_factory=dict)  # precision → file, sha256
    batch: int = 1  # images at once; 2 in a depth network for a stereo rig

    @property
    def kind(self) -> str:
        """depth or pose."""
        return "depth" if "disparity" in self.outputs else "pose"

    def at(self, precision: str) -> NetworkSpec:
        """The same network from the graph of another precision, a key of `variants`; itself for fp32."""
        if precision == "fp32":
            return self
        path, sha256 = self.variants[precision]
        return replace(self, path=path, sha256=sha256)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """uint8 RGB: one image for depth, previous and current for pose."""
        return (self.batch, *self.size, 3) if self.kind == "depth" else (1, 2, *self.size, 3)

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """float32, keyed by the graph's names."""
        shapes = {
            "disparity": (self.batch, *self.size),
            "rotation": (1, 3),
            "translation": (1, 3),
            "intrinsics": (1, 4),
        }
        return {name: shapes[ours] for ours, name in self.outputs.items()}


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files exist and carry the sha256 of the manifest."""

    root: Path
    name: str
    version: str
    depth: NetworkSpec
    pose: NetworkSpec | None
    range_m: tuple[float, float]  # nearest, farthest depth the head can say [m]
    metric: bool  # True when the depth unit is a real metre, not the metre of the training scenes
    manifest: dict
    digest: str  # one sha256 for all networks
    golden: Path | None = None  # images and the answers of the reference, see golden.py

    def precision_error(self, precision: str) -> float:
        """What this precision costs by the manifest: the larger median relative error of depth and pose; 0 unknown."""
        facts = self.manifest.get("verification", {}).get("precision", {}).get(precision, {})
        return max((float(facts[kind]["median_rel"]) for kind in ("depth", "pose") if kind in facts), default=0.0)


def load_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle folder (or its manifest.yaml); raises BundleError. The graphs are not opened here."""
    path = Path(path)
    root = path.parent if path.name == MANIFEST else path
    manifest = _read_manifest(root)
    bundle = _parse(root, manifest)
    for spec in (bundle.depth, bundle.pose):
        if spec is not None:
            for precision in ("fp32", *spec.variants):
                _check_file(spec.at(precision).path, spec.at(precision).sha256)
    if bundle.golden is not None:
        _check_file(bundle.golden, str(bundle.manifest["golden"].get("sha256", "")).lower())
    return bundle


def default_bundle() -> Path:
    """The small bundle shipped with the project."""
    return share("models", DEFAULT_BUNDLE)


def resize_rgb(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h,w,3) uint8 RGB -> a new contiguous (H,W,3) at network size. The whole preprocessing; training uses it too."""
    height, width = size
    shrinks = height <= rgb.shape[0] and width <= rgb.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    if rgb.strides[2] < 0:  # a BGR image seen as RGB: OpenCV would copy it whole, so swap the small result instead
        small = cv2.resize(rgb[..., ::-1], (width, height), interpolation=interpolation)
        return np.ascontiguousarray(small[..., ::-1])
    return cv2.resize(rgb, (width, height), interpolation=interpolation)


def write_manifest(root: str | Path, manifest: dict) -> Path:
    """Fill in the sha256 of the files the manifest names, check it, write <root>/manifest.yaml atomically."""
    root = Path(root)
    filled = dict(manifest)
    for network in ("depth", "pose"):
        if filled.get(network) is not None:
            filled[network] = _sealed(root, filled[network])
            variants = filled[network].get("variants", {})
            if variants:
                sealed = {precision: _sealed(root, section) for precision, section in variants.items()}
                filled[network] = {**filled[network], "variants": sealed}
    if filled.get("golden") is not None:
        filled["golden"] = _sealed(root, filled["golden"])
    _parse(root, filled)
    target = root / MANIFEST
    temporary = target.with_suffix(".yaml.tmp")
    temporary.write_text(yaml.safe_dump(filled, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(temporary, target)
    return target


def _sealed(root: Path, section: Mapping) -> dict:
    """The section with the sha256 of the file it names."""
    path = _file_in(root, _get(section, "file", str, root / MANIFEST), root / MANIFEST)
    _check_exists(path)
    return {**section, "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_manifest(root: Path) -> dict:
    path = root / MANIFEST
    if not os.path.isdir(root):  # os.path asks without complaint about what can be no path
        what = "is a file" if os.path.exists(root) else "does not exist"
        raise BundleError(f"the bundle {root} {what}; give the folder that holds {MANIFEST}, or fetch the bundle")
    if not path.is_file():
        raise BundleError(f"{root} holds no {MANIFEST}, so it is no bundle; give another folder or export it again")
    try:
        manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not YAML ({error}); mend it or export the bundle again") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{path} holds no keys; mend it or export the bundle again")
    return manifest


def _parse(root: Path, manifest: dict) -> Bundle:
    """Manifest -> Bundle; looks at the text only, not at the graphs."""
    path = root / MANIFEST
    version = _get(manifest, "format", object, path)
    if version != FORMAT:
        raise BundleError(
            f"{path} has format {version!r}, this release reads format {FORMAT}; "
            "update endomust_ros or export the bundle with this release"
        )
    depth = _network(root, manifest, "depth", {"disparity": _get(manifest, "depth.output.name", str, path)})
    pose = _pose_network(root, manifest) if manifest.get("pose") is not None else None
    unit = _get(manifest, "scale.unit", str, path)
    if unit != "metre":
        raise BundleError(f"{path}: scale.unit is '{unit}', only 'metre' is known; export the bundle in metres")
    digest = hashlib.sha256("\n".join(spec.sha256 for spec in (depth, pose) if spec).encode())
    return Bundle(
        root=root,
        name=_get(manifest, "name", str, path),
        version=str(_get(manifest, "version", (str, int, float), path)),
        depth=depth,
        pose=pose,
        range_m=_depth_range(manifest, path),
        metric=_get(manifest, "scale.metric", bool, path),
        manifest=manifest,
        digest=digest.hexdigest(),
        golden=_golden(root, manifest),
    )


def _golden(root: Path, manifest: dict) -> Path | None:
    if manifest.get("golden") is None:
        return None
    return _file_in(root, _get(manifest, "golden.file", str, root / MANIFEST), root / MANIFEST)


def _pose_network(root: Path, manifest: dict) -> NetworkSpec:
    path = root / MANIFEST
    convention = _get(manifest, "pose.convention", str, path)
    if convention != POSE_CONVENTION:
        raise BundleError(
            f"{path}: pose.convention is '{convention}', only '{POSE_CONVENTION}' (current camera into previous) "
            "is known; export the pose network again"
        )
    required = {ours: _get(manifest, f"pose.output.{ours}", str, path) for ours in ("rotation", "translation")}
    optional = {"intrinsics"} & set(manifest["pose"]["output"])
    return _network(
        root, manifest, "pose", required | {ours: _get(manifest, f"pose.output.{ours}", str, path) for ours in optional}
    )


def _network(root: Path, manifest: dict, section: str, outputs: dict[str, str]) -> NetworkSpec:
    path = root / MANIFEST
    size = _get(manifest, f"{section}.input.size", list, path)
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise BundleError(f"{path}: {section}.input.size is {size}, it must be [height, width] in pixels; mend it")
    return NetworkSpec(
        path=_file_in(root, _get(manifest, f"{section}.file", str, path), path),
        sha256=_get(manifest, f"{section}.sha256", str, path).lower(),
        input_name=_get(manifest, f"{section}.input.name", str, path),
        size=(size[0], size[1]),
        outputs=outputs,
        variants=_variants(root, manifest, section),
        batch=_batch(manifest, section, path),
    )


def _batch(manifest: dict, section: str, path: Path) -> int:
    batch = manifest[section]["input"].get("batch", 1)
    if type(batch) is not int or not 1 <= batch <= (2 if section == "depth" else 1):
        raise BundleError(f"{path}: {section}.input.batch is {batch!r}; a depth network takes 1 or 2, pose 1; mend it")
    return batch


def _variants(root: Path, manifest: dict, section: str) -> dict[str, tuple[Path, str]]:
    path, found = root / MANIFEST, {}
    for precision in manifest[section].get("variants") or {}:
        if precision not in GRAPH_PRECISIONS:
            known = ", ".join(GRAPH_PRECISIONS)
            raise BundleError(f"{path}: {section}.variants names '{precision}', known are {known}; export it again")
        entry = f"{section}.variants.{precision}"
        file = _file_in(root, _get(manifest, f"{entry}.file", str, path), path)
        found[precision] = file, str(_get(manifest, entry, dict, path).get("sha256", "")).lower()
    return found


def _depth_range(manifest: dict, path: Path) -> tuple[float, float]:
    values = _get(manifest, "depth.range_m", list, path)
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in values)
    if len(values) != 2 or not numbers or not 0 < values[0] < values[1]:
        raise BundleError(f"{path}: depth.range_m is {values}, it must be [nearest, farthest] in metres; mend it")
    return float(values[0]), float(values[1])


def _file_in(root: Path, name: str, manifest: Path) -> Path:
    """A manifest comes from outside: it may name files beside itself and nothing else (the check is on the name, so
    that a workspace built with symlinks still works)."""
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise BundleError(f"{manifest} names the file '{name}' outside its own folder; put it beside {MANIFEST}")
    return root / name


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing, {MANIFEST} names it; re-export or fetch the bundle again")


def _check_file(path: Path, sha256: str) -> None:
    _check_exists(path)
    found = sha256_of(path)
    if found != sha256:
        raise BundleError(
            f"{path} sha256 differs: {MANIFEST} says {sha256[:12]}…, the file has {found[:12]}…; "
            "it is damaged or from another export: re-export or fetch it again"
        )


def _get(manifest: Mapping, dotted: str, kind: type | tuple[type, ...], path: Path):
    """The value at "a.b.c"; BundleError names the key when it is missing or of another kind."""
    value = manifest
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise BundleError(f"{path}: the key '{dotted}' is missing; add it or export the bundle again")
        value = value[key]
    if not isinstance(value, kind):
        raise BundleError(f"{path}: '{dotted}' is {value!r}, which is of the wrong kind; mend it or export again")
    return value
