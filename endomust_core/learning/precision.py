"""A bundle's fp32 graphs → the same networks in fp16 or int8, what each costs in accuracy, and the golden images.

fp16: every layer but the last step to inverse depth, which needs the range of fp32; for GPUs. int8: the linear layers
of the transformer (of a convolutional network its convolutions), calibrated on images, weights per channel; for
processors with VNNI or AMX. The pose network stays fp32 in an int8 bundle: it is small, and its answers are too.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from endomust_core.backends import open_network
from endomust_core.bundle import (
    GRAPH_PRECISIONS,
    MANIFEST,
    BundleError,
    NetworkSpec,
    load_bundle,
    resize_rgb,
    write_manifest,
)
from endomust_core.golden import named_outputs, pairs_of, write_golden

HEAD = ("Sigmoid", "Softplus", "Exp")  # what turns logits into numbers with units; from the last one on fp32 stays
FEWEST_LINEAR = 8  # linear layers with constant weights that make a network a transformer
STANDARD = ("", "ai.onnx")
Reference = Callable[[NetworkSpec, np.ndarray], dict[str, np.ndarray]]
log = logging.getLogger(__name__)


def add_to_bundle(
    root: Path,
    manifest: dict,
    precisions: Sequence[str],
    frames: Sequence[np.ndarray],
    golden_frames: Sequence[np.ndarray] = (),
    reference: Reference | None = None,
    calibration: Sequence[np.ndarray] = (),
) -> dict:
    """Write the graphs of `precisions` and golden.npz into the folder `root` of a bundle → its manifest.

    frames: (h,w,3) uint8 RGB, consecutive; int8 is calibrated on every other one and on `calibration`, and all are
    scored on the rest. Calibrate on more than one kind of scene: activations beyond what was seen are cut off.
    golden_frames travel with the bundle. reference(spec, array) → {our name: array} is PyTorch; without it the fp32
    graph on ONNX Runtime. Raises BundleError for a precision that is not known.
    """
    wrong = [name for name in precisions if name not in ("fp32", *GRAPH_PRECISIONS)]
    if wrong:
        known = ", ".join(("fp32", *GRAPH_PRECISIONS))
        raise BundleError(f"there is no precision '{wrong[0]}' to export; choose from {known}")
    write_manifest(root, manifest)
    bundle = load_bundle(root)
    run = reference or _fp32_reference()
    manifest = {**manifest, "verification": dict(manifest.get("verification", {}))}
    for precision in precisions:
        if precision == "fp32":
            continue
        facts = {}
        for spec in filter(None, (bundle.depth, bundle.pose)):
            log.info("%s network in %s", spec.kind, precision)
            variant = _write_variant(spec, precision, _inputs(spec, [*frames[::2], *calibration]))
            section = dict(manifest[spec.kind].get("variants", {})) | {precision: {"file": variant.name}}
            manifest[spec.kind] = {**manifest[spec.kind], "variants": section}
            facts[spec.kind] = _cost(spec, variant, _inputs(spec, frames[1::2] if len(frames) > 3 else frames), run)
        costs = dict(manifest["verification"].get("precision", {})) | {precision: facts}
        manifest["verification"]["precision"] = costs
    if golden_frames:
        section = write_golden(root, bundle.depth, bundle.pose, golden_frames, run)
        said = "PyTorch, float32" if reference else "ONNX Runtime on the CPU, fp32"
        manifest["golden"] = section | {"reference": said}
    return manifest


def derive(
    source: str | Path, out: str | Path, precisions: Sequence[str], frames, golden_frames, calibration=()
) -> Path:
    """A bundle → a new one in the folder `out` with further precisions and golden images; its fp32 graphs stay."""
    bundle, out = load_bundle(source), Path(out)
    if out.exists() and any(out.iterdir()):
        raise BundleError(f"{out} is not empty; choose another folder for the new bundle")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as stage:
        stage = Path(stage)
        for spec in filter(None, (bundle.depth, bundle.pose)):
            for precision in ("fp32", *spec.variants):
                shutil.copy(spec.at(precision).path, stage)
        if bundle.golden is not None:
            shutil.copy(bundle.golden, stage)
        manifest = dict(bundle.manifest)
        manifest = add_to_bundle(stage, manifest, precisions, frames, golden_frames, calibration=calibration)
        write_manifest(stage, manifest)
        load_bundle(stage)
        out.mkdir(exist_ok=True)
        for path in sorted(stage.iterdir(), key=lambda path: path.name == MANIFEST):
            os.replace(path, out / path.name)
    return out


def simplify(path: Path) -> None:
    """Fold constants and drop what does nothing, in place; standard operators only, so every engine reads it.

    uint8 is cast before anything else happens to it: TensorRT takes it no further than the input.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    part = path.with_suffix(".simple.onnx")
    options.optimized_model_filepath = str(part)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(part)
    part.unlink()
    used = {node.domain for node in model.graph.node}
    if not used <= set(STANDARD):
        raise BundleError(f"simplifying {path.name} brought operators of {', '.join(used - set(STANDARD))}")
    imports = [entry for entry in model.opset_import if entry.domain in STANDARD]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    _cast_first(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _cast_first(model: onnx.ModelProto) -> None:
    """input → Transpose → Cast becomes input → Cast → Transpose."""
    (source,) = (entry.name for entry in model.graph.input)
    nodes = list(model.graph.node)
    for place, transpose in enumerate(nodes):
        if transpose.op_type != "Transpose" or transpose.input[0] != source:
            continue
        (cast,) = (node for node in nodes if transpose.output[0] in node.input)
        if cast.op_type != "Cast":
            continue
        between, end = transpose.output[0], cast.output[0]
        cast.input[0], cast.output[0] = source, between
        transpose.input[0], transpose.output[0] = between, end
        model.graph.node.remove(cast)
        model.graph.node.insert(place, cast)


def unfolded(path: Path) -> onnx.ModelProto:
    """The graph with its weights in float32: those stored as float16 behind a Cast are turned back, exactly."""
    model = onnx.load(path)
    casts = {node.input[0]: node for node in model.graph.node if node.op_type == "Cast"}
    for tensor in model.graph.initializer:
        cast = casts.get(tensor.name)
        if tensor.data_type == TensorProto.FLOAT16 and cast is not None:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, cast.output[0]))
            model.graph.node.remove(cast)
    return model


def _write_variant(spec: NetworkSpec, precision: str, calibration: list[np.ndarray]) -> Path:
    """The graph in another precision, beside the fp32 one; the fp32 one itself where the network stays as it is."""
    target = spec.path.with_name(f"{spec.path.stem}.{precision}.onnx")
    if precision == "fp16":
        model = unfolded(spec.path)
        keep = _after_head(model)
        halved = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=keep))
        halved.topological_sort()  # the casts were put at the end
        onnx.save(halved.model, target)
        onnx.checker.check_model(str(target))
        return target
    if spec.kind == "pose":
        return spec.path
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "fp32.onnx"
        onnx.save(unfolded(spec.path), plain)
        simplify(plain)
        logging.disable(logging.WARNING)  # it advises to simplify, which was done, and names every bias
        weights = {tensor.name for tensor in onnx.load(plain).graph.initializer}
        linear = [n for n in onnx.load(plain).graph.node if n.op_type in ("Gemm", "MatMul") and n.input[1] in weights]
        quantize_static(
            str(plain),
            str(target),
            _Calibration(spec.input_name, calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Gemm", "MatMul"] if len(linear) >= FEWEST_LINEAR else ["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"MatMulConstBOnly": True},
        )
        logging.disable(logging.NOTSET)
    return target


def _after_head(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes from the last HEAD operator on; every node gets a name."""
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    places = [number for number, node in enumerate(model.graph.node) if node.op_type in HEAD]
    if not places:
        return []
    reached, names = set(), []
    for node in list(model.graph.node)[places[-1] :]:
        if node.op_type in HEAD or reached & set(node.input):
            reached |= set(node.output)
            names.append(node.name)
    return names


def _cost(spec: NetworkSpec, variant: Path, inputs: list[np.ndarray], run: Reference) -> dict[str, object]:
    """Relative errors of the variant on ONNX Runtime's CPU provider against the reference, over all inputs."""
    from endomust_core.bundle import sha256_of

    other = NetworkSpec(variant, sha256_of(variant), spec.input_name, spec.size, spec.outputs, batch=spec.batch)
    backend = open_network(other)
    errors = []
    for array in inputs:
        wanted, found = run(spec, array), named_outputs(other, backend.run({spec.input_name: array}))
        for name in spec.outputs:
            scale = np.abs(wanted[name]) if name == "disparity" else np.linalg.norm(wanted[name])
            errors.append((np.abs(found[name] - wanted[name]) / np.maximum(scale, 1e-9)).ravel())
    pooled = np.concatenate(errors)
    if not np.isfinite(pooled).all():
        raise BundleError(f"{variant.name} gives values that are not finite; this network does not bear the precision")
    return {
        "median_rel": float(f"{np.median(pooled):.3g}"),
        "p99_rel": float(f"{np.percentile(pooled, 99):.3g}"),
        "max_rel": float(f"{pooled.max():.3g}"),
        "inputs": len(inputs),
        "bytes": variant.stat().st_size,
    }


def _inputs(spec: NetworkSpec, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    images = [resize_rgb(frame, spec.size) for frame in frames]
    if spec.kind == "pose":
        return pairs_of(np.stack(images))
    return [np.stack([image] * spec.batch) for image in images]


def _fp32_reference() -> Reference:
    opened: dict[str, object] = {}

    def run(spec: NetworkSpec, array: np.ndarray) -> dict[str, np.ndarray]:
        if spec.kind not in opened:
            opened[spec.kind] = open_network(spec)
        return named_outputs(spec, opened[spec.kind].run({spec.input_name: array}))

    return run


class _Calibration(CalibrationDataReader):
    def __init__(self, name: str, inputs: list[np.ndarray]):
        self._feeds = iter([{name: array} for array in inputs])

    def get_next(self):
        return next(self._feeds, None)
