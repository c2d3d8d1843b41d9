"""A model bundle → the PyTorch networks that it was exported from, to train on from there: all of a graph or an error.

A graph's weights find their parameters by the place where they are used: a node is named after its module
(`/network/encoder/blocks.0/attn/qkv/MatMul` is `encoder.blocks.0.attn.qkv`), whatever the exporter called the weight,
and wherever it stored two equal ones once. Not in a graph: the coarse disparity heads, which start fresh; what rounding
to float16 took; of the position embedding what its resizing to the size of the export lost.
"""

import copy
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from endomust_core.backends import open_network
from endomust_core.bundle import MANIFEST, Bundle, NetworkSpec, load_bundle, resize_rgb
from endomust_core.golden import load_golden, named_outputs, pairs_of
from endomust_core.learning.checkpoint import CheckpointError, load_state
from endomust_core.learning.networks.depth import PRESETS as DEPTH_PRESETS
from endomust_core.learning.networks.depth import DepthConfig, DepthNetwork
from endomust_core.learning.networks.pose import Pose, PoseConfig, PoseNetwork
from endomust_core.learning.networks.vit import PATCH, resize_position

TOLERANCE = 1e-3  # PyTorch against the graph, relative; an honest bundle differs by some 1e-5
COARSE_HEADS = r"depth_head\.conv_depth_[234]\..*"  # of the scales that only training looks at
PARTS = {  # operator → what its stored inputs are to their module, in the order of the inputs
    "Conv": ("weight", "bias"),
    "ConvTranspose": ("weight", "bias"),
    "Gemm": ("weight", "bias"),
    "MatMul": ("weight",),
    "LayerNormalization": ("weight", "bias"),
    "Mul": ("weight",),  # of a group norm or a layer scale
    "Add": ("bias",),  # of a group norm or a linear layer
    "Concat": ("cls_token",),
}
NAMES = (  # first match wins; a name that no row matches is right as it is
    (r"encoder\.norm_\d+\.(\w+)", r"encoder.norm.\1"),  # the same norm, called once more
    (r"(.*\.ls\d)\.weight", r"\1.gamma"),
    (r"encoder\.bias", "encoder.pos_embed"),
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Graph:
    """What an ONNX file holds: nodes in order, stored tensors in float32 or int64, shapes of all values."""

    path: Path
    nodes: list
    stored: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    facts: dict[str, str]


def is_bundle(path: str | Path) -> bool:
    """True for the folder of a bundle, or its manifest.yaml."""
    path = Path(path)
    return path.name == MANIFEST or (path / MANIFEST).is_file()


def load_depth(path: str | Path) -> DepthNetwork:
    """The depth network of a bundle, on the CPU and in eval mode, compared with its graph.

    Its position embedding is a square again, so it takes images of any size. Raises BundleError for a bundle that is
    damaged, CheckpointError where the graph is of another network or says something else.
    """
    bundle = load_bundle(path)
    spec, graph = bundle.depth, read_graph(bundle.depth.path)
    if "scale and offset unknown" in graph.facts.get("output", ""):
        raise CheckpointError(
            f"{graph.path} gives relative depth; training starts from its published file instead: depth.init=FILE.pth"
        )
    weights = weights_of(graph)
    grid = patch_grid(graph)
    network = _built(DepthNetwork, DepthConfig, _depth_config, bundle, graph, weights)
    baked = weights.get("encoder.pos_embed", torch.empty(0))
    if tuple(baked.shape) != (1, 1 + math.prod(grid), network.config.dim):
        raise CheckpointError(
            f"{graph.path}: the position embedding is {tuple(baked.shape)}, of no {grid} patches; export it again"
        )
    weights["encoder.pos_embed"] = unbaked_position(baked, grid, network.config.pos_grid)
    log.info("%s", load_state(network.eval(), weights, COARSE_HEADS, (), graph.path))
    size = tuple(PATCH * side for side in grid)
    inputs = [np.repeat(image[None], spec.batch, axis=0) for image in _images(bundle, spec)]

    from endomust_core.learning.export import DepthGraph

    said = DepthGraph(copy.deepcopy(network), spec.size, size if size != spec.size else None)
    _compare(said, ("disparity",), spec, inputs)
    return network


def load_pose(path: str | Path) -> PoseNetwork:
    """The pose network of a bundle, on the CPU and in eval mode, compared with its graph; raises as `load_depth`.

    Batch norms, which a graph holds inside its convolutions, are taken out again with the statistics of a few images.
    """
    bundle = load_bundle(path)
    if bundle.pose is None:
        raise CheckpointError(f"{bundle.root} holds no pose network; leave pose.init out or give another bundle")
    graph = read_graph(bundle.pose.path)
    weights = weights_of(graph)
    network = _built(PoseNetwork, PoseConfig, _pose_config, bundle, graph, weights)
    folded = _unfold_norms(weights, network)
    log.info("%s", load_state(network.eval(), weights, None, (), graph.path))
    inputs = pairs_of(np.stack(_images(bundle, bundle.pose)))

    from endomust_core.learning.export import PoseGraph

    said = PoseGraph(network)
    if folded:
        _settle_norms(said, np.concatenate(inputs))
    _compare(said, Pose._fields, bundle.pose, inputs)
    return network


def read_graph(path: Path) -> Graph:
    """Read a bundle's graph; weights stored as float16 come as the float32 that the graph computes with."""
    try:
        import onnx
        from onnx import numpy_helper, shape_inference

        from endomust_core.learning.precision import unfolded
    except ImportError as error:
        raise CheckpointError(
            f"starting from a bundle needs the package onnx ({error}): .venv/bin/pip install -c constraints.txt "
            "'.[export]'"
        ) from error
    try:
        model = shape_inference.infer_shapes(unfolded(path))
    except Exception as error:  # protobuf and onnx raise many kinds for a damaged file
        raise CheckpointError(
            f"{path} cannot be read as a graph ({error}); export or fetch the bundle again"
        ) from error
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    shapes = {entry.name: tuple(dim.dim_value for dim in entry.type.tensor_type.shape.dim) for entry in values}
    kept = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type in kept}
    facts = {entry.key: entry.value for entry in model.metadata_props}
    return Graph(Path(path), list(model.graph.node), stored, shapes, facts)


def weights_of(graph: Graph) -> dict[str, torch.Tensor]:
    """Every weight of a graph under its parameter's name; what the exporter computed (its name is a path) is left.

    Raises CheckpointError for a weight without a place, and for a place with two different weights.
    """
    weights, origin = {}, {}
    for node in graph.nodes:
        module = module_of(node.name)
        if not module or node.op_type not in PARTS:
            continue
        names = [name for name in node.input if _is_weight(graph, node, name)]
        for part, name in zip(PARTS[node.op_type], names, strict=False):  # one that is left over has no place
            place = f"{module}.{part}"
            found = next((match.expand(new) for old, new in NAMES if (match := re.fullmatch(old, place))), place)
            if origin.setdefault(found, name) != name:
                raise CheckpointError(
                    f"{graph.path} has two weights for {found} ({origin[found]}, {name}); export the bundle again"
                )
            weights[found] = torch.from_numpy(np.array(_as_parameter(node, graph.stored[name])))
    if _tokens_last(graph):
        for name in {"encoder.cls_token", "encoder.pos_embed"} & weights.keys():
            weights[name] = weights[name].transpose(1, 2)
    idle = [name for name in graph.stored if _is_stored_parameter(graph, name) and name not in set(origin.values())]
    if idle:
        raise CheckpointError(
            f"{graph.path} has {len(idle)} weights without a place ({', '.join(idle[:3])}); this is no graph that "
            "`endomust export` wrote, or one of another version: export it again"
        )
    return weights


def module_of(node: str) -> str:
    """Name of a node → of its module: `/network/encoder/mix/mix.1/mix.1.0/Conv` → `encoder.mix.1.0`; "" outside."""
    root, *scopes = node.removesuffix("/MatMulAddFusion").strip("/").split("/")[:-1] or [""]
    parts = []
    for scope in scopes if root == "network" else ():
        if parts and scope.startswith(f"{parts[-1]}."):  # a child in a sequence carries the sequence's name
            parts.pop()
        parts.append(scope)
    return ".".join(parts)


def patch_grid(graph: Graph) -> tuple[int, int]:
    """Rows and columns of patches that the transformer of a graph works on."""
    for node in graph.nodes:
        if module_of(node.name) == "encoder.patch_embed.proj" and len(graph.shapes.get(node.output[0], ())) == 4:
            return graph.shapes[node.output[0]][-2:]
    raise CheckpointError(f"{graph.path} is no vision transformer; training starts from one: choose another bundle")


def unbaked_position(baked: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """Position embedding of one grid, 1×(1+h·w)×C → a square one, 1×(1+side²)×C, that resizing turns into it.

    Resizing is linear, P → R_h P R_wᵀ, and forgets where it shrinks. Of all squares that give the baked embedding this
    is the one nearest to its enlargement; where resizing enlarged there is only one, the original.
    """
    square = (side, side)
    if grid == square:
        return baked
    wanted = baked.double()
    found = resize_position(wanted, grid, square)
    rest = (wanted - resize_position(found, square, grid))[0, 1:].unflatten(0, grid)
    rows, columns = (torch.linalg.pinv(_resizing(side, after)) for after in grid)
    found[0, 1:] += torch.einsum("ih,hwc,jw->ijc", rows, rest, columns).flatten(0, 1)
    return found.float()


def _resizing(before: int, after: int) -> torch.Tensor:
    """The matrix, after×before, by which `resize_position` resizes one side."""
    basis = torch.eye(before, dtype=torch.float64)
    tokens = torch.cat([torch.zeros_like(basis[:1]), basis])[None]  # the class token passes by
    return resize_position(tokens, (before, 1), (after, 1))[0, 1:]


# --- the weights of a graph -----------------------------------------------------------------------------------------


def _is_weight(graph: Graph, node, name: str) -> bool:
    value = graph.stored.get(name)
    if value is None or value.dtype != np.float32:
        return False
    if node.op_type == "Concat":  # the class token, which the exporter has expanded to the batch
        return value.ndim == 3 and name == node.input[0]
    return not _is_computed(name) and (value.ndim > 0 or node.op_type not in ("Mul", "Add"))


def _tokens_last(graph: Graph) -> bool:
    """Whether the simplifier turned tokens B×N×C into B×C×N where the class token is joined to them."""
    joins = (node for node in graph.nodes if node.op_type == "Concat" and module_of(node.name) == "encoder")
    joins = (node for node in joins if _is_weight(graph, node, node.input[0]))
    return any(attribute.name == "axis" and attribute.i in (2, -1) for node in joins for attribute in node.attribute)


def _is_stored_parameter(graph: Graph, name: str) -> bool:
    """Numbers alone are shared between all places that need them, so they tell nothing."""
    value = graph.stored[name]
    return value.dtype == np.float32 and value.size > 1 and not _is_computed(name)


def _is_computed(name: str) -> bool:
    return name.startswith("/")


def _as_parameter(node, value: np.ndarray) -> np.ndarray:
    """A stored tensor in the layout of its parameter."""
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    if value.ndim == 2 and node.op_type in ("Gemm", "MatMul") and not turned:
        return value.T
    if node.op_type in ("Mul", "Add") and value.ndim == 3 and value.shape[1:] == (1, 1):
        return value.reshape(-1)
    return value[:1] if node.op_type == "Concat" else value


# --- the config of a network ----------------------------------------------------------------------------------------


def _built(kind, config, infer, bundle: Bundle, graph: Graph, weights: dict) -> nn.Module:
    """The network by the manifest's `networks`; by what the graph shows where the bundle is older than that."""
    networks = bundle.manifest.get("networks") or {}
    name = "depth" if kind is DepthNetwork else "pose"
    try:
        written = networks.get(name)
        return kind(infer(bundle, graph, weights) if written is None else config(**written))
    except KeyError as error:
        raise CheckpointError(
            f"{graph.path} has no {error.args[0]}: it is no {kind.__name__} of this project; choose another bundle"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{bundle.root / MANIFEST} or {graph.path.name} describes another {name} network ({error}); export the "
            "bundle again with this version"
        ) from error


def _depth_config(bundle: Bundle, graph: Graph, weights: dict) -> DepthConfig:
    fine = "encoder.patch_embed.conv1.weight" in weights
    base = DEPTH_PRESETS.get(_preset(bundle, "depth"), DEPTH_PRESETS["tiny" if fine else "base"])
    blocks = _numbers(r"encoder\.blocks\.(\d+)\.norm1\.weight", weights)
    necks = _numbers(r"encoder\.blocks\.(\d+)\.residual_\.conv1\.weight", weights)
    neck_dim = len(weights[f"encoder.blocks.{necks[0]}.residual_.conv1.weight"]) if necks else 0
    head = "depth_head.conv_depth_1." + ("refine.weight" if fine else "head.2.weight")
    nearest, farthest = bundle.range_m
    dim = weights["encoder.cls_token"].shape[-1]
    return replace(
        base,
        dim=dim,
        blocks=len(blocks),
        heads=_heads(graph, dim),
        features=len(weights["depth_head.scratch.layer1_rn.weight"]),
        out_channels=tuple(len(weights[f"depth_head.projects.{i}.weight"]) for i in range(4)),
        taps=_taps(graph),
        necks=tuple(necks),
        neck_dim=0 if neck_dim == dim // 8 else neck_dim,
        pos_grid=max(base.pos_grid, *patch_grid(graph)),
        patch_stem="conv" if fine else "linear",
        stem_channels=len(weights["encoder.patch_embed.conv1.weight"]) if fine else base.stem_channels,
        head_channels=len(weights[head]),
        min_depth=nearest,
        max_depth=farthest,
        normalization=_normalization(graph),
    )


def _pose_config(bundle: Bundle, graph: Graph, weights: dict) -> PoseConfig:
    gains = {name: _gain(graph, bundle.pose.outputs[name]) for name in ("rotation", "translation")}
    config = PoseConfig(
        rotation_gain=gains["rotation"],
        translation_gain=gains["translation"],
        normalization=_normalization(graph),
    )
    if "encoder.encoder.conv1.weight" in weights:
        return replace(config, encoder="resnet18")
    if "encoder.layers.0.0.weight" in weights:
        return replace(config, encoder="compact")
    window = weights["encoder.fine.0.weight"].shape[1] - len(weights["encoder.stem.4.weight"])
    return replace(config, encoder="correlation", radius=math.isqrt(window) // 2)


def _preset(bundle: Bundle, name: str) -> str:
    """The preset that the run's configuration names, "" where the manifest has none."""
    section = bundle.manifest.get("provenance")
    for key in ("config", name, "preset"):
        section = section.get(key) if isinstance(section, Mapping) else None
    return section if isinstance(section, str) else ""


def _numbers(pattern: str, names) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(pattern, name)))


def _heads(graph: Graph, dim: int) -> int:
    """Heads of the attention: queries, keys and values are reshaped to batch × tokens × 3 × heads × width."""
    reshapes = (node for node in graph.nodes if node.op_type == "Reshape")
    shapes = (graph.stored[node.input[1]].tolist() for node in reshapes if node.input[1] in graph.stored)
    found = {s[3] for s in shapes if len(s) == 5 and s[2] == 3 and s[3] * s[4] == dim}
    if len(found) != 1:
        raise KeyError("attention with heads")
    return found.pop()


def _taps(graph: Graph) -> tuple[int, ...]:
    """Blocks whose tokens are normalised for the decoder."""
    made_by = {output: node for node in graph.nodes for output in node.output}
    blocks = []
    for node in graph.nodes:
        if node.op_type == "LayerNormalization" and re.fullmatch(r"encoder\.norm(_\d+)?", module_of(node.name)):
            source = made_by[node.input[0]]
            while source.op_type == "Transpose":
                source = made_by[source.input[0]]
            blocks.append(module_of(source.name))
    return tuple(_numbers(r"encoder\.blocks\.(\d+)", blocks))


def _normalization(graph: Graph) -> str:
    return "imagenet" if any(module_of(node.name).startswith("normalize") for node in graph.nodes) else "none"


def _gain(graph: Graph, output: str) -> float:
    """What an output is multiplied with at last."""
    (node,) = (node for node in graph.nodes if output in node.output)
    factors = [graph.stored[name] for name in node.input if name in graph.stored]
    if node.op_type != "Mul" or not factors or factors[0].size != 1:
        return 1.0
    return float(f"{factors[0].item():.7g}")  # 0.01 was stored as 0.0099999998


# --- batch norms ----------------------------------------------------------------------------------------------------


def _unfold_norms(weights: dict, network: nn.Module) -> bool:
    """Where a convolution got its batch norm's bias, give the norm that bias and let it do nothing else; in place."""
    own, norms = network.state_dict(), dict(network.named_modules())
    folded = [name for name in weights if name.endswith(".bias") and name not in own]
    for name in folded:
        norm = re.sub(r"conv(\d)\.bias$", r"bn\1", name.replace("downsample.0.bias", "downsample.1"))
        if not isinstance(norms.get(norm), nn.BatchNorm2d):
            continue  # load_state says what is unexpected
        bias = weights.pop(name)
        weights |= {f"{norm}.weight": torch.ones_like(bias), f"{norm}.bias": bias}
        weights |= {
            f"{norm}.running_mean": torch.zeros_like(bias),
            f"{norm}.running_var": torch.full_like(bias, 1.0 - norms[norm].eps),
        }
    return bool(folded)


def _settle_norms(said: nn.Module, array: np.ndarray) -> None:
    """Give every batch norm the statistics of these images, and weights that leave its output as it was.

    Otherwise training, which normalises with the statistics of its batch, would start from another network.
    """

    def settle(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), unbiased=False)
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        norm.bias += gain * (mean - norm.running_mean)
        norm.weight.copy_(gain * torch.sqrt(variance + norm.eps))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    norms = [module for module in said.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    with torch.no_grad():
        said(torch.from_numpy(array))
    for hook in hooks:
        hook.remove()


# --- PyTorch against the graph --------------------------------------------------------------------------------------


def _images(bundle: Bundle, spec: NetworkSpec) -> list[np.ndarray]:
    """Consecutive uint8 RGB images at network size: the bundle's golden ones, or else a blurred pattern that moves."""
    golden = load_golden(bundle)
    if golden is not None:
        return list(golden[f"{spec.kind}_images"])
    pattern = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = resize_rgb(pattern, spec.size)
    return [image, np.roll(image, 2, axis=1)]


def _compare(said: nn.Module, names: tuple[str, ...], spec: NetworkSpec, inputs: list[np.ndarray]) -> None:
    """Run the graph and PyTorch on the same images; CheckpointError with the number where they disagree."""
    from endomust_core.learning.export import largest_difference

    backend = open_network(spec, threads=1)
    wanted = [named_outputs(spec, backend.run({spec.input_name: array})) for array in inputs]
    with torch.inference_mode():
        outputs = [said.eval()(torch.from_numpy(array)) for array in inputs]
    outputs = [answer if isinstance(answer, tuple) else (answer,) for answer in outputs]
    found = [{name: v.numpy() for name, v in zip(names, answer, strict=True)} for answer in outputs]
    error = largest_difference(found, wanted)
    if not error <= TOLERANCE:  # written so that NaN fails
        raise CheckpointError(
            f"{spec.path} gives other answers than PyTorch with its weights: {error:.1e} (relative, limit "
            f"{TOLERANCE:.0e}). The graph was changed after the export or is of another version; export it again"
        )
    log.info("%s: PyTorch with these weights differs from the graph by %.1e", spec.path, error)
