"""Opens a network of a bundle with the library that runs it; one heavy library per file of this folder."""

from __future__ import annotations

import difflib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from endomust_core.bundle import MANIFEST, BundleError, NetworkSpec
from endomust_core.engine_cache import EngineCache

PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino")
PRECISIONS = ("auto", "fp32", "tf32", "fp16", "bf16", "int8")

logger = logging.getLogger(__name__)


class BackendError(RuntimeError):
    """The network cannot run here; the message names what is available and what to install."""


@dataclass(frozen=True)
class Tensor:
    """Type and shape of a graph's input or output; None where the graph leaves a dimension open."""

    dtype: str
    shape: tuple[int | None, ...]


class Backend(Protocol):
    """An opened network. `run` maps input names to arrays and returns every output by name, fresh arrays.

    `facts` are words about how it runs, for diagnostics: engine cached or built, CUDA graph on or off and why.
    """

    provider: str
    precision: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    facts: dict[str, str]

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Choice:
    """How to run the networks, the same for both.

    precision "auto" is what a provider does fastest as measured: tf32 on CUDA, fp16 in TensorRT where the bundle has
    that graph, bf16 in OpenVINO where the processor has it, else fp32.
    """

    precision: str = "auto"
    threads: int = 0  # of the CPU; 0 is every core
    device: int = 0  # number of the GPU
    cache: EngineCache = field(default_factory=EngineCache)
    rebuild: bool = False  # build engines even where the cache has them
    bundle: str = ""  # name, for the engine's file and for the log


def open_network(spec: NetworkSpec, providers: Sequence[str] = ("cpu",), threads: int = 0) -> Backend:
    """Open with the first of `providers` that works here; threads=0 means every core.

    The list is everything that may be tried: with one name, that provider opens or BackendError says why not. Raises
    BundleError when the graph is damaged or is not what the manifest says.
    """
    return first_that_works(providers, lambda provider: open_with(spec, provider, Choice(threads=threads)))


def first_that_works(providers: Sequence[str], attempt: Callable):
    """`attempt(provider)` of the first that raises no BackendError; what was skipped is logged as a warning."""
    refusals = []
    for provider in _known(providers):
        try:
            found = attempt(provider)
        except BackendError as error:
            refusals.append(str(error))
            continue
        for refusal in refusals:
            logger.warning("%s; running on '%s'", refusal, provider)
        return found
    raise BackendError("; ".join(refusals))


def open_with(spec: NetworkSpec, provider: str, choice: Choice) -> Backend:
    """Open with this provider or raise BackendError; the graph is compared with the manifest."""
    if choice.precision not in PRECISIONS:
        raise BackendError(f"the precision '{choice.precision}' is unknown; choose from {', '.join(PRECISIONS)}")
    backend = _library(provider)(spec, provider, choice)
    check_graph(spec, backend)
    return backend


def graph_of(
    spec: NetworkSpec, provider: str, wanted: str, order: Sequence[str], plain: Sequence[str] = ()
) -> tuple[str, NetworkSpec]:
    """The precision that a provider will run, and the graph for it. BackendError in words where it cannot be had.

    order: what the provider can do; "auto" takes the first that is there. plain: ways to compute the fp32 graph, which
    need none of their own.
    """
    there = [name for name in order if name == "fp32" or name in plain or name in spec.variants]
    if wanted != "auto" and wanted not in order:
        raise BackendError(f"the provider '{provider}' does not run {wanted} here; it runs {', '.join(order)}")
    if wanted != "auto" and wanted not in there:
        raise BackendError(
            f"the bundle has no {wanted} graph of its {spec.kind} network; make one with "
            f"endomust export {spec.path.parent} --precision {wanted} --out {spec.path.parent}-{wanted}"
        )
    precision = there[0] if wanted == "auto" else wanted
    return precision, spec if precision in plain else spec.at(precision)


def identity(
    spec: NetworkSpec, graph: NetworkSpec, precision: str, provider: str, choice: Choice, **machine: object
) -> dict[str, object]:
    """What an engine depends on, for the cache; `machine` is what the library adds: version, device, driver, …"""
    return {
        "bundle": choice.bundle,
        "network": spec.kind,
        "graph": graph.sha256,
        "precision": precision,
        "shapes": list(spec.input_shape),
        "provider": provider,
        **machine,
    }


def check_graph(spec: NetworkSpec, backend: Backend) -> None:
    """Raise BundleError where names, types or shapes of the graph differ from the manifest."""
    remedy = f"re-export or fix {spec.path.parent / MANIFEST}"
    if set(backend.inputs) != {spec.input_name}:
        names = _listed(backend.inputs)
        raise BundleError(f"{spec.path.name} takes {names}, the manifest says '{spec.input_name}'; {remedy}")
    wrong = _difference(backend.inputs[spec.input_name], Tensor("uint8", spec.input_shape))
    if wrong:
        raise BundleError(f"{spec.path.name} expects {wrong}; {remedy}")
    for name, shape in spec.output_shapes.items():
        if name not in backend.outputs:
            names = _listed(backend.outputs)
            raise BundleError(f"{spec.path.name} gives {names}, the manifest says '{name}'; {remedy}")
        wrong = _difference(backend.outputs[name], Tensor("float32", shape))
        if wrong:
            raise BundleError(f"{spec.path.name} gives '{name}' as {wrong}; {remedy}")


def _difference(found: Tensor, wanted: Tensor) -> str:
    """Words like "224x280, the manifest says 168x224", or "" when they agree; an open dimension fits every size."""
    if found.dtype != wanted.dtype:
        return f"{found.dtype}, a bundle needs {wanted.dtype}"
    same_rank = len(found.shape) == len(wanted.shape)
    if same_rank and all(side in (None, want) for side, want in zip(found.shape, wanted.shape, strict=True)):
        return ""
    image = slice(-3, -1)  # H, W of an NHWC input: when only they differ, say only them
    if same_rank and wanted.dtype == "uint8" and found.shape[:-3] + found.shape[-1:] == wanted.shape[:-3] + (3,):
        return f"{_sides(found.shape[image])}, the manifest says {_sides(wanted.shape[image])}"
    return f"{_sides(found.shape)}, the manifest says {_sides(wanted.shape)}"


def _library(provider: str) -> Callable[[NetworkSpec, str, Choice], Backend]:
    """Which file serves a provider: the native library where it is installed, else ONNX Runtime."""
    if provider == "openvino" and installed("openvino"):
        from endomust_core.backends.openvino import OpenVinoBackend

        return OpenVinoBackend
    if provider == "tensorrt" and installed("tensorrt"):
        from endomust_core.backends.tensorrt import TensorRtBackend

        return TensorRtBackend
    from endomust_core.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend


def installed(module: str) -> bool:
    """True where the module could be imported; it is not."""
    return importlib.util.find_spec(module) is not None


def _known(providers: Sequence[str]) -> list[str]:
    if isinstance(providers, str) or not providers:
        raise BackendError(f"providers must be a list of names, got {providers!r}; choose from {', '.join(PROVIDERS)}")
    for provider in providers:
        if provider not in PROVIDERS:
            near = difflib.get_close_matches(provider, PROVIDERS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(PROVIDERS)}"
            raise BackendError(f"the provider '{provider}' is unknown; {hint}")
    return list(providers)


def _sides(shape: Sequence[int | None]) -> str:
    return "x".join("?" if side is None else str(side) for side in shape)


def _listed(names) -> str:
    return ", ".join(f"'{name}'" for name in names)
