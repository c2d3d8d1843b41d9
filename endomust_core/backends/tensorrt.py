"""Runs a graph as a native TensorRT engine (versions 10 and 11): pinned host memory, one stream, one CUDA graph.

Networks are strongly typed: the graph's own types decide, so fp16 needs the bundle's fp16 graph. Written against the
documented interface and checked with a stand-in for the library; not yet run on hardware.
"""

from __future__ import annotations

import ctypes
import logging

import numpy as np
import tensorrt as trt

try:
    from cuda.bindings import runtime as cuda
except ImportError:  # cuda-python before 12.6
    from cuda import cudart as cuda

from endomust_core.backends import BackendError, Choice, Tensor, graph_of, identity
from endomust_core.bundle import NetworkSpec
from endomust_core.engine_cache import key

ORDER = ("fp16", "tf32", "fp32", "int8")
PLAIN = ("tf32",)
WORKSPACE = 2 << 30  # bytes that a layer may use while it is tuned
log = logging.getLogger(__name__)


class TensorRtBackend:
    """One engine with one execution context; not for two threads at once."""

    def __init__(self, spec: NetworkSpec, provider: str, choice: Choice):
        self.provider = provider
        self.precision, graph = graph_of(spec, provider, choice.precision, ORDER, PLAIN)
        _call(cuda.cudaSetDevice, choice.device)
        device = _call(cuda.cudaGetDeviceProperties, choice.device).name.split(b"\0")[0].decode()
        logger = _Logger()
        runtime = trt.Runtime(logger)
        timing = f"timing-{trt.__version__}-{device.replace(' ', '_')}.cache"
        depends_on = identity(
            spec,
            graph,
            self.precision,
            provider,
            choice,
            version=trt.__version__,
            device=device,
            driver=_call(cuda.cudaDriverGetVersion),
        )
        engine, state = choice.cache.open(
            depends_on,
            build=lambda: _built(graph, self.precision, logger, choice.cache, timing),
            load=lambda plan: _loaded(runtime, logger, plan),
            rebuild=choice.rebuild,
        )
        self._kept = runtime, engine  # a context is only good while these live
        self._context = engine.create_execution_context()
        self._stream = _call(cuda.cudaStreamCreate)
        self.inputs, self.outputs, self._buffers = {}, {}, {}
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            tensor = Tensor(dtype.name, tuple(engine.get_tensor_shape(name)))
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = tensor
            self._buffers[name] = _Buffer(tensor.shape, dtype)
            self._context.set_tensor_address(name, self._buffers[name].device)
        self._graph, said = self._captured()
        self.facts = {"engine": state, "engine key": key(depends_on)[:20], "library": f"TensorRT {trt.__version__}"}
        self.facts |= {"device": device, "CUDA graph": said}

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output of the graph by name; the arrays are new on each call."""
        for name, array in inputs.items():
            self._buffers[name].host[...] = array
        if self._graph is None:
            self._enqueue()
        else:
            _call(cuda.cudaGraphLaunch, self._graph, self._stream)
        _call(cuda.cudaStreamSynchronize, self._stream)
        return {name: self._buffers[name].host.copy() for name in self.outputs}

    def _enqueue(self) -> None:
        """Copies in, inference, copies out, all on the stream."""
        kind = cuda.cudaMemcpyKind
        for name in self.inputs:
            b = self._buffers[name]
            to = kind.cudaMemcpyHostToDevice
            _call(cuda.cudaMemcpyAsync, b.device, b.host.ctypes.data, b.host.nbytes, to, self._stream)
        if not self._context.execute_async_v3(int(self._stream)):
            raise BackendError("TensorRT did not take the inference; its log says why")
        for name in self.outputs:
            b = self._buffers[name]
            to = kind.cudaMemcpyDeviceToHost
            _call(cuda.cudaMemcpyAsync, b.host.ctypes.data, b.device, b.host.nbytes, to, self._stream)

    def _captured(self) -> tuple[object, str]:
        """The whole of `_enqueue` as one CUDA graph, or None and why not. Once without, as TensorRT asks for."""
        self._enqueue()
        _call(cuda.cudaStreamSynchronize, self._stream)
        try:
            _call(
                cuda.cudaStreamBeginCapture, self._stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            )
            self._enqueue()
            graph = _call(cuda.cudaStreamEndCapture, self._stream)
            return _call(cuda.cudaGraphInstantiate, graph, 0), "on"
        except BackendError as error:
            log.info("runs without a CUDA graph: %s", error)
            cuda.cudaStreamEndCapture(self._stream)  # leaves the capture, whatever it says
            return None, f"off: {error}"


class _Buffer:
    """Pinned host memory as an array, and device memory of the same size."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
        size = int(np.prod(shape)) * dtype.itemsize
        self.device = int(_call(cuda.cudaMalloc, size))
        address = int(_call(cuda.cudaMallocHost, size))
        self.host = np.frombuffer((ctypes.c_byte * size).from_address(address), dtype).reshape(shape)

    def __del__(self):
        if hasattr(self, "host"):
            cuda.cudaFreeHost(self.host.ctypes.data)
            cuda.cudaFree(self.device)


class _Logger(trt.ILogger):
    """TensorRT's log in ours; the last error is kept, because failures are announced there alone."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.error = "no reason given"

    def log(self, severity, message):
        if severity <= trt.ILogger.ERROR:
            self.error = message.strip().splitlines()[0]
            log.warning("TensorRT: %s", message)
        elif severity == trt.ILogger.WARNING:
            log.debug("TensorRT: %s", message)


class _Progress(trt.IProgressMonitor):
    """Says how far the build is, phase by phase, at most in tenths."""

    def __init__(self):
        trt.IProgressMonitor.__init__(self)
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name, parent_phase, num_steps):
        self._steps[phase_name] = num_steps
        if parent_phase is None:
            log.info("building the engine: %s", phase_name)

    def step_complete(self, phase_name, step):
        steps = self._steps.get(phase_name, 0)
        if steps >= 10 and step and step % (steps // 10) == 0:
            log.info("building the engine: %s %d %%", phase_name, 100 * step // steps)
        return True

    def phase_finish(self, phase_name):
        self._steps.pop(phase_name, None)


def _built(graph: NetworkSpec, precision: str, logger: _Logger, cache, timing: str) -> bytes:
    log.info("building the %s engine with TensorRT %s; this can take minutes, once", graph.kind, trt.__version__)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph.path)):
        causes = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise BackendError(f"TensorRT {trt.__version__} does not read {graph.path.name} ({causes}); use provider cuda")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    config.progress_monitor = _Progress()
    tuned = config.create_timing_cache(cache.read(timing))
    config.set_timing_cache(tuned, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"TensorRT cannot build {graph.path.name} ({logger.error}); use the provider cuda")
    cache.write(timing, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _loaded(runtime, logger: _Logger, plan: bytes):
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"TensorRT refuses the engine ({logger.error})")
    return engine


def _call(function, *arguments):
    """Call the CUDA runtime; BackendError in words where it fails, else what it returns beside the status."""
    status, *found = function(*arguments)
    if int(status) != 0:
        reason = cuda.cudaGetErrorString(status)[1]
        said = reason.decode() if isinstance(reason, bytes) else reason
        raise BackendError(f"{function.__name__} failed ({said}); check nvidia-smi and the driver's version")
    return found[0] if found else None
