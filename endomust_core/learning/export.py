"""Trained networks → a model bundle: depth.onnx and pose.onnx of fixed shapes, compared with PyTorch, and a manifest.

The graphs take uint8 RGB, NHWC, at network size, and hold everything else: scaling, normalisation, the position
embedding resized to the size, and for depth the step from disparity to inverse depth [1/m]. They are simplified: folded
constants, standard operators. Nothing is written to the bundle before it is verified.
"""

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from endomust_core.learning.networks.depth import DepthNetwork, inverse_depth, resize
from endomust_core.learning.networks.pose import Pose, PoseNetwork
from endomust_core.learning.networks.relative_depth import RelativeDepth
from endomust_core.learning.networks.unet_depth import UNetDepth
from endomust_core.learning.networks.vit import PATCH
from endomust_core.learning.precision import add_to_bundle, simplify

OPSET = 17  # LayerNormalization as one node; in every ONNX Runtime since 1.13 and TensorRT since 8.6
TOLERANCE = 1e-4  # ONNX Runtime against PyTorch, relative
SMALL = 1024  # bytes; smaller tensors (norms, biases) stay float32
STRIDE = 32  # of the coarsest map of the convolutional networks
VERSION = "0.1.0"

log = logging.getLogger(__name__)


class ExportError(RuntimeError):
    """The networks cannot become a bundle, or the exported graphs do not say what PyTorch says."""


class DepthGraph(nn.Module):
    """uint8 RGB 1×H×W×3 → inverse depth 1×H×W [1/m]; of a RelativeDepth network up to scale and offset.

    encoder_size: what the network resizes the image to first; its answer has the size of the image all the same. A
    network in half precision gives float32 all the same: the step to inverse depth needs its range.
    """

    def __init__(
        self,
        network: DepthNetwork | UNetDepth,
        size: tuple[int, int],
        encoder_size: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.network, self.size, self.encoder_size = network, tuple(size), encoder_size
        if isinstance(network, DepthNetwork):
            height, width = encoder_size or size
            network.encoder.bake_position((height // PATCH, width // PATCH))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        dtype = next(self.network.parameters()).dtype
        rgb = image.to(dtype).permute(0, 3, 1, 2) / 255.0  # the cast first: TensorRT takes uint8 no further
        if self.encoder_size:
            rgb = resize(rgb, self.encoder_size)
        disparity = self.network(rgb, scales=(0,), size=self.size)[0][:, 0].float()
        if isinstance(self.network, RelativeDepth):
            return disparity
        config = self.network.config
        return inverse_depth(disparity, config.min_depth, config.max_depth)


class PoseGraph(nn.Module):
    """uint8 RGB 1×2×H×W×3, previous and current → rotation 1×3 [rad], translation 1×3 [m], intrinsics 1×4 if any."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pair = images.float().permute(0, 1, 4, 2, 3) / 255.0
        return tuple(value for value in self.network(pair[:, 0], pair[:, 1]) if value is not None)


def export_bundle(
    depth_network: DepthNetwork | UNetDepth,
    pose_network: nn.Module | None,
    out_dir: str | Path,
    size: tuple[int, int],
    name: str,
    provenance: dict,
    scores: dict,
    frames: list[np.ndarray],
    weight_dtype: str = "float16",
    description: str = "",
    version: str = VERSION,
    licence: str = "Apache-2.0",
    scale_source: str = "rendered sequences",
    metric: bool = False,
    encoder_size: tuple[int, int] | None = None,
    precisions: Sequence[str] = ("fp32",),
    golden_frames: Sequence[np.ndarray] = (),
    batch: int = 1,
    calibration: Sequence[np.ndarray] = (),
) -> Path:
    """Write and verify a bundle; returns its folder.

    pose_network: previous, current → Pose, its intrinsics None if it says none. size: (H, W) the graphs take, multiples
    of 14 (of 32 for a UNetDepth). encoder_size: (H, W), multiples of 14, that the depth graph resizes the image to (in
    the published EndoMUST 256×320 to 224×280). frames: at least two consecutive uint8 RGB images, used to compare ONNX
    Runtime with PyTorch. weight_dtype "float16" halves the files: large tensors are stored rounded and cast back to
    float32 when the graph is loaded, so arithmetic stays float32; what the rounding changes is written into the
    manifest. precisions: further graphs, "fp16", "int8", each with what it costs against PyTorch on `frames`.
    golden_frames: consecutive images that travel with the bundle for the self-test on the machine that runs it, so no
    patient's. calibration: further images that int8 is calibrated on. batch: 2 for a depth graph that takes both images
    of a stereo rig at once. Raises ExportError, BundleError.
    """
    _check_request(depth_network, size, encoder_size, frames, weight_dtype)
    out_dir = Path(out_dir)
    frames = [_at_size(frame, size) for frame in frames]
    manifest = {
        "format": 1,
        "name": name,
        "version": version,
        "description": description,
        "licence": licence,
        "depth": _depth_section(depth_network, size),
        "scale": {"unit": "metre", "source": scale_source, "metric": metric},
        "provenance": provenance,
        "verification": {"frames": len(frames), "weights": weight_dtype, "tolerance": TOLERANCE},
        "scores": scores,
    }
    if pose_network is not None:
        manifest["pose"] = _pose_section(pose_network, size)
    manifest["networks"] = _configs(depth=depth_network, pose=pose_network)
    if batch != 1:
        manifest["depth"]["input"]["batch"] = batch
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}-") as stage:
        stage = Path(stage)
        facts = {"endomust_bundle": name, "endomust_version": version}
        graph = partial(DepthGraph, size=size, encoder_size=encoder_size)
        report, exact = {}, {}
        report["depth"], exact["depth"] = _export_depth(
            depth_network, graph, stage, frames, weight_dtype, facts, manifest
        )
        if pose_network is not None:
            report["pose"], exact["pose"] = _export_pose(pose_network, stage, frames, weight_dtype, facts, manifest)
        manifest["verification"] |= report

        def pytorch(spec, array):
            return _run_torch(exact[spec.kind], array, spec.outputs)

        manifest = add_to_bundle(stage, manifest, precisions, frames, golden_frames, pytorch, calibration)
        _publish(stage, out_dir, manifest)
    log.info("bundle %s: %s", out_dir, report)
    return out_dir


def _export_depth(network, graph, stage, frames, weight_dtype, facts, manifest) -> tuple[dict, nn.Module]:
    inputs = [np.stack([frame] * manifest["depth"]["input"].get("batch", 1)) for frame in frames]
    nearest, farthest = manifest["depth"]["range_m"]
    relative = isinstance(network, RelativeDepth)
    meaning = "inverse depth, scale and offset unknown" if relative else "inverse depth [1/m]"
    facts = facts | {"output": meaning, "range_m": f"{nearest} {farthest}"}
    exact, rounded = _both(graph, network, weight_dtype)
    section, pixelwise = manifest["depth"], not relative
    return _export_graph(exact, rounded, stage, section, inputs, weight_dtype, facts, pixelwise), exact


def _export_pose(network, stage, frames, weight_dtype, facts, manifest) -> tuple[dict, nn.Module]:
    inputs = [np.stack(pair)[None] for pair in zip(frames[:-1], frames[1:], strict=True)]
    facts = facts | {"convention": "T_prev_curr", "output": "rotation [rad], translation [m], fx/W fy/H cx/W cy/H"}
    exact, rounded = _both(PoseGraph, network, weight_dtype)
    return _export_graph(exact, rounded, stage, manifest["pose"], inputs, weight_dtype, facts), exact


def _both(graph, network, weight_dtype) -> tuple[nn.Module, nn.Module]:
    """The graph with exact weights and with those that the file will hold; one and the same where these are equal."""
    exact = graph(_deployable(network, "float32"))
    return exact, exact if weight_dtype == "float32" else graph(_deployable(network, weight_dtype))


def _export_graph(exact, rounded, stage, section, inputs, weight_dtype, facts, pixelwise=True) -> dict:
    """Write one graph into `stage` and compare it with PyTorch on `inputs`; returns what goes into the manifest."""
    path = stage / section["file"]
    names = _output_names(section)
    trace(rounded, inputs[0], path, section["input"]["name"], list(names.values()))
    simplify(path)
    compress_weights(path, weight_dtype, facts)
    reference = [_run_torch(rounded, array, names) for array in inputs]
    answers = _run_bundle_graph(path, section, inputs)
    unrounded = reference if exact is rounded else [_run_torch(exact, array, names) for array in inputs]
    error = largest_difference(answers, reference, pixelwise)
    if not error <= TOLERANCE:  # written so that NaN fails
        raise ExportError(
            f"{section['file']}: ONNX Runtime differs from PyTorch by {error:.1e} (relative, limit "
            f"{TOLERANCE:.0e}); nothing was written. Check the weights for NaN, and the torch and onnxruntime versions"
        )
    return {
        "onnx_vs_pytorch_max_rel": float(f"{error:.2e}"),
        "weight_rounding_max_rel": float(f"{largest_difference(reference, unrounded, pixelwise):.2e}"),
        "weight_rounding_mean_rel": float(f"{mean_difference(reference, unrounded, pixelwise):.2e}"),
        "parameters": sum(parameter.numel() for parameter in exact.parameters()),
        "bytes": path.stat().st_size,
    }


def trace(module: nn.Module, example: np.ndarray, path: Path, input_name: str, output_names: list[str]) -> None:
    """Export one module with fixed shapes to one ONNX file."""
    with warnings.catch_warnings():
        # Shapes are fixed on purpose, and the tracing exporter needs no further package; both draw a warning.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.onnx")
        torch.onnx.export(
            module.eval(),
            (torch.from_numpy(example),),
            str(path),
            opset_version=OPSET,
            input_names=[input_name],
            output_names=output_names,
            dynamo=False,
        )


def compress_weights(path: Path, weight_dtype: str, facts: dict[str, str]) -> None:
    """Store large float32 tensors as float16, cast back in the graph, where that is exact; add `facts` as metadata.

    The weights were rounded before tracing, so nothing that came from them is lost here. Constants that the exporter
    computed (and that do not survive the round trip) stay float32.
    """
    model = onnx.load(path)
    if weight_dtype == "float16":
        casts = []
        for tensor in model.graph.initializer:
            cast = _halve(tensor)
            if cast is not None:
                casts.append(cast)
        nodes = casts + list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _halve(tensor) -> "onnx.NodeProto | None":
    """Turn an initialiser into float16 in place → the node that casts it back, or None where it stays as it is."""
    if tensor.data_type != TensorProto.FLOAT:
        return None
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        halved = values.astype(np.float16)
    if values.nbytes <= SMALL or not np.array_equal(halved.astype(np.float32), values):
        return None
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(halved, f"{name}.float16"))
    return helper.make_node("Cast", [f"{name}.float16"], [name], name=f"{name}.cast", to=TensorProto.FLOAT)


def round_weights(network: nn.Module, weight_dtype: str) -> nn.Module:
    """Round every large parameter to what the file will hold, in place."""
    if weight_dtype == "float16":
        for name, parameter in network.named_parameters():
            if parameter.numel() * 4 > SMALL:
                halved = parameter.detach().half().float()
                if not torch.isfinite(halved).all():
                    raise ExportError(f"{name} has values beyond float16; export with weight_dtype float32")
                parameter.data.copy_(halved)
    return network


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold batch norms into the convolutions they follow, in place; the exporter would do it after the rounding."""
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in zip(children[:-1], children[1:], strict=True):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return network


def largest_difference(answers: list[dict], references: list[dict], pixelwise: bool = True) -> float:
    """Largest difference of any output on any frame, relative to the output's largest value on that frame's reference.

    For inverse depth, which is positive everywhere, relative to the pixel's own value; not so where it is relative
    (pixelwise=False), may be zero, and only means something beside the other pixels.
    """
    return max(difference.max() for difference in _differences(answers, references, pixelwise)).item()


def mean_difference(answers: list[dict], references: list[dict], pixelwise: bool = True) -> float:
    """As `largest_difference`, averaged over values, frames and outputs."""
    return float(np.mean([difference.mean() for difference in _differences(answers, references, pixelwise)]))


def _differences(answers, references, pixelwise):
    for answer, reference in zip(answers, references, strict=True):
        for name in reference:
            yield _relative(answer[name], reference[name], pixelwise)


def _relative(answer: np.ndarray, reference: np.ndarray, pixelwise: bool) -> np.ndarray:
    if answer.shape != reference.shape:
        raise ExportError(f"the graph gives {answer.shape} where PyTorch gives {reference.shape}")
    own = np.abs(reference.astype(np.float64))
    scale = own if reference.ndim == 3 and pixelwise else own.max()
    return np.abs(answer.astype(np.float64) - reference) / np.maximum(scale, 1e-12)


def _run_torch(graph: nn.Module, array: np.ndarray, names: dict[str, str]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        outputs = graph.eval()(torch.from_numpy(array))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}


def _run_bundle_graph(path: Path, section: dict, inputs: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Run the file through the backend that deployment uses, which also compares it with its manifest section."""
    from endomust_core.backends import open_network
    from endomust_core.bundle import NetworkSpec, sha256_of

    name, size, outputs = section["input"]["name"], tuple(section["input"]["size"]), _output_names(section)
    batch = section["input"].get("batch", 1)
    backend = open_network(NetworkSpec(path, sha256_of(path), name, size, outputs, batch=batch), threads=1)
    return [
        {ours: answer[theirs] for ours, theirs in outputs.items()}
        for answer in (backend.run({name: array}) for array in inputs)
    ]


def _output_names(section: dict) -> dict[str, str]:
    """Our names of a graph's outputs → its own."""
    output = section["output"]
    return {"disparity": output["name"]} if "name" in output else output


def _deployable(network: nn.Module, weight_dtype: str) -> nn.Module:
    """A copy on the CPU in eval mode, batch norms folded, weights rounded as they will be stored."""
    return round_weights(fold_batch_norm(copy.deepcopy(network).cpu().float().eval()), weight_dtype)


def _depth_section(network: DepthNetwork | UNetDepth, size: tuple[int, int]) -> dict:
    return {
        "file": "depth.onnx",
        "input": {"name": "image", "size": list(size)},
        "output": {"name": "disparity"},
        "range_m": [network.config.min_depth, network.config.max_depth],
    }


def _configs(**networks: nn.Module | None) -> dict:
    """What from_bundle.py builds the networks from again; none for those that nothing trains."""
    trained = (DepthNetwork, PoseNetwork)
    return {name: asdict(network.config) for name, network in networks.items() if type(network) in trained}


def _pose_section(network: nn.Module, size: tuple[int, int]) -> dict:
    names = Pose._fields if isinstance(network, PoseNetwork) else ("rotation", "translation")
    return {
        "file": "pose.onnx",
        "input": {"name": "images", "size": list(size)},
        "output": {name: name for name in names},
        "convention": "T_prev_curr",
    }


def _publish(stage: Path, out_dir: Path, manifest: dict) -> None:
    """Move the verified files into the bundle, the manifest last."""
    from endomust_core.bundle import GRAPH_PRECISIONS, load_bundle, write_manifest

    write_manifest(stage, manifest)
    load_bundle(stage)
    out_dir.mkdir(exist_ok=True)
    for old in ("pose.onnx", *(f"{kind}.{name}.onnx" for kind in ("depth", "pose") for name in GRAPH_PRECISIONS)):
        if not (stage / old).exists():
            (out_dir / old).unlink(missing_ok=True)
    for path in sorted(stage.iterdir(), key=lambda path: path.suffix == ".yaml"):
        os.replace(path, out_dir / path.name)


def _check_request(network, size, encoder_size, frames: list[np.ndarray], weight_dtype: str) -> None:
    if weight_dtype not in ("float16", "float32"):
        raise ExportError(f"weight_dtype is {weight_dtype!r}; choose float16 or float32")
    step, tested = (PATCH, encoder_size or size) if isinstance(network, DepthNetwork) else (STRIDE, size)
    if len(size) != 2 or min(size) <= 0 or len(tested) != 2 or any(side <= 0 or side % step for side in tested):
        raise ExportError(f"size {tuple(tested)} must be (height, width), both multiples of {step}")
    if len(frames) < 2:
        raise ExportError("verification needs at least two consecutive frames; pass some of the validation set")
    for frame in frames:
        if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
            raise ExportError("every verification frame must be a uint8 RGB array (h, w, 3)")


def _at_size(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from endomust_core.bundle import resize_rgb

    return np.ascontiguousarray(frame if frame.shape[:2] == tuple(size) else resize_rgb(frame, size))
