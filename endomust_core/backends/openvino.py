"""Runs a graph with Intel's OpenVINO on the processor: named arrays in, named arrays out; compiled once, then cached.

Where the processor multiplies bfloat16 itself (AMX, AVX512-BF16) "auto" computes in bf16, two to five times as fast as
fp32 and 0.2 % off in depth; elsewhere it computes in fp32.
"""

from __future__ import annotations

import functools
import io
import os

import numpy as np
import openvino
import openvino.properties as properties
import openvino.properties.hint as hint

from endomust_core.backends import BackendError, Choice, Tensor, graph_of, identity
from endomust_core.bundle import BundleError, NetworkSpec
from endomust_core.engine_cache import key

DEVICE = "CPU"
DTYPES = {"u8": "uint8", "f32": "float32", "f16": "float16"}
HINTS = {"bf16": "bf16", "fp32": "f32", "int8": "f32"}  # of an int8 graph, the layers that stayed in floating point


class OpenVinoBackend:
    """One compiled model with one request; not for two threads at once."""

    def __init__(self, spec: NetworkSpec, provider: str, choice: Choice):
        self.provider = provider
        core = _core()
        order = ("bf16", "fp32", "int8") if _has_bf16(core) else ("fp32", "int8")
        self.precision, graph = graph_of(spec, provider, choice.precision, order, plain=("bf16",))
        settings = {
            hint.inference_precision: HINTS[self.precision],
            hint.performance_mode: hint.PerformanceMode.LATENCY,
            properties.inference_num_threads: choice.threads or len(os.sched_getaffinity(0)),
            hint.enable_cpu_pinning: False,  # two nodes pinned to the same cores would wait for each other
        }
        depends_on = identity(
            spec,
            graph,
            self.precision,
            provider,
            choice,
            version=openvino.__version__,
            device=core.get_property(DEVICE, "FULL_DEVICE_NAME"),
            abilities=sorted(core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")),
            threads=settings[properties.inference_num_threads],
        )
        compiled, state = choice.cache.open(
            depends_on,
            build=lambda: _built(core, graph, settings),
            load=lambda engine: core.import_model(io.BytesIO(engine), DEVICE, settings),
            rebuild=choice.rebuild,
        )
        version = openvino.__version__.partition("-")[0]
        self.facts = {"engine": state, "engine key": key(depends_on)[:20], "library": f"OpenVINO {version}"}
        self.inputs = {port.get_any_name(): _tensor(port) for port in compiled.inputs}
        self.outputs = {port.get_any_name(): _tensor(port) for port in compiled.outputs}
        self._request = compiled.create_infer_request()

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output of the graph by name; the arrays are new on each call."""
        self._request.infer(inputs, share_inputs=True)
        return {name: self._request.get_tensor(name).data.copy() for name in self.outputs}


def _built(core: openvino.Core, graph: NetworkSpec, settings: dict) -> bytes:
    try:
        model = core.read_model(str(graph.path))
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[-1]
        raise BundleError(f"{graph.path} does not open ({cause}); re-export or fetch it again") from error
    try:
        return core.compile_model(model, DEVICE, settings).export_model().getvalue()
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[-1]
        raise BackendError(f"OpenVINO does not compile {graph.path.name} ({cause}); use the provider cpu") from error


@functools.cache
def _core() -> openvino.Core:
    """One for the process, never given back.

    Its plugin sets the stack that signal handlers run on (sigaltstack), frees that memory with the last Core and leaves
    it set (2026.4): the next SIGINT would crash the process.
    """
    return openvino.Core()


def _has_bf16(core: openvino.Core) -> bool:
    return "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


def _tensor(port) -> Tensor:
    kind = port.get_element_type().get_type_name()
    shape = tuple(side.get_length() if side.is_static else None for side in port.get_partial_shape())
    return Tensor(DTYPES.get(kind, kind), shape)
