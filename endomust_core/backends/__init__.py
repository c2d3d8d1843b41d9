"""Opens a network of a bundle with the library that runs it; one heavy library per file of this folder."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from endomust_core.bundle import MANIFEST, BundleError, NetworkSpec

PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino")

logger = logging.getLogger(__name__)


class BackendError(RuntimeError):
    """The network cannot run here; the message names what is available and what to install."""


@dataclass(frozen=True)
class Tensor:
    """Type and shape of a graph's input or output; None where the graph leaves a dimension open."""

    dtype: str
    shape: tuple[int | None, ...]


class Backend(Protocol):
    """An opened network. `run` maps input names to arrays and returns every output by name, fresh arrays."""

    provider: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


def open_network(spec: NetworkSpec, providers: Sequence[str] = ("cpu",), threads: int = 0) -> Backend:
    """Open with the first of `providers` that works here; threads=0 means every core.

    The list is everything that may be tried: with one name, that provider opens or BackendError says why not. Raises
    BundleError when the graph is damaged or is not what the manifest says.
    """
    refusals = []
    for provider in _known(providers):
        try:
            backend = _open(spec, provider, threads)
        except BackendError as error:
            refusals.append(str(error))
            continue
        for refusal in refusals:
            logger.warning("%s; running on '%s'", refusal, provider)
        check_graph(spec, backend)
        return backend
    raise BackendError("; ".join(refusals))


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


def _open(spec: NetworkSpec, provider: str, threads: int) -> Backend:
    """The table of libraries; today ONNX Runtime serves every provider."""
    from endomust_core.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(spec.path, provider, threads)


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
