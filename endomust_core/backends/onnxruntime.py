"""Runs an ONNX graph with ONNX Runtime: named arrays in, named arrays out, on cpu, cuda, tensorrt or openvino.

On a GPU the arrays go through fixed device memory, and the whole network is replayed as one CUDA graph.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import onnxruntime

from endomust_core.backends import BackendError, Choice, Tensor, graph_of
from endomust_core.bundle import BundleError, NetworkSpec

EXECUTION_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
PACKAGES = {
    "cpu": "onnxruntime",
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu and tensorrt",
    "openvino": "openvino",
}
ORDERS = {  # provider → precisions it runs, the first that the bundle has is "auto"
    "cpu": ("fp32", "int8"),
    "cuda": ("tf32", "fp16", "fp32"),  # on an H200 in this order: 2.96, 4.34, 5.73 ms for the base preset
    "tensorrt": ("fp16", "fp32"),
    "openvino": ("fp32",),
}
PLAIN = ("tf32",)  # a way to compute the fp32 graph, products rounded to 10 bits, sums in fp32
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}
QUIET = 3  # ONNX Runtime: errors only; what matters is raised
log = logging.getLogger(__name__)


class OnnxRuntimeBackend:
    """One inference session; repeats give the same bits on the same machine with the same number of threads."""

    def __init__(self, spec: NetworkSpec, provider: str = "cpu", choice: Choice | None = None):
        choice = choice or Choice()
        _check_available(provider)
        self.provider = provider
        self.precision, graph = graph_of(spec, provider, choice.precision, ORDERS[provider], PLAIN)
        self._session, self._device = _opened(graph, provider, self.precision, choice)
        self.inputs = {node.name: _tensor(node) for node in self._session.get_inputs()}
        self.outputs = {node.name: _tensor(node) for node in self._session.get_outputs()}
        self.facts = {"library": f"ONNX Runtime {onnxruntime.__version__}"}
        if self._device is not None:
            self.facts["CUDA graph"] = self._device.graph

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output of the graph by name; the arrays are new on each call."""
        if self._device is not None:
            return self._device.run(inputs)
        return dict(zip(self.outputs, self._session.run(None, inputs), strict=True))


class DeviceMemory:
    """Inputs and outputs of a session at fixed places of the GPU's memory, as a CUDA graph needs them."""

    def __init__(self, session: onnxruntime.InferenceSession, spec: NetworkSpec, device: int, graph: str):
        self.graph = graph  # "on", or why not
        self._session = session
        self._binding = session.io_binding()
        blank = np.zeros(spec.input_shape, np.uint8)
        self._input = onnxruntime.OrtValue.ortvalue_from_numpy(blank, "cuda", device)
        self._binding.bind_ortvalue_input(spec.input_name, self._input)
        self._outputs = {}
        for name, shape in spec.output_shapes.items():
            blank = np.zeros(shape, np.float32)
            self._outputs[name] = onnxruntime.OrtValue.ortvalue_from_numpy(blank, "cuda", device)
            self._binding.bind_ortvalue_output(name, self._outputs[name])

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copy in, run, copy out."""
        (array,) = inputs.values()
        self._input.update_inplace(np.ascontiguousarray(array))
        self._session.run_with_iobinding(self._binding)
        return {name: value.numpy() for name, value in self._outputs.items()}


def available_providers() -> list[str]:
    """Our names of what this installation of ONNX Runtime brings."""
    present = onnxruntime.get_available_providers()
    return [name for name, execution_provider in EXECUTION_PROVIDERS.items() if execution_provider in present]


def _check_available(provider: str) -> None:
    available = available_providers()
    if provider not in available:
        raise BackendError(
            f"the provider '{provider}' is not in this ONNX Runtime (it has {', '.join(available)}); "
            f"pip install {PACKAGES[provider]}, or ask for another provider"
        )


def _opened(
    graph: NetworkSpec, provider: str, precision: str, choice: Choice
) -> tuple[onnxruntime.InferenceSession, DeviceMemory | None]:
    """The session and, on a GPU, its device memory."""
    if provider not in ("cuda", "tensorrt"):
        return _session(graph.path, provider, choice, {}), None
    _load_cuda_libraries()
    settings = _gpu_settings(graph, provider, precision, choice)
    flag = "enable_cuda_graph" if provider == "cuda" else "trt_cuda_graph_enable"
    try:
        session = _session(graph.path, provider, choice, settings | {flag: "1"})
        memory = DeviceMemory(session, graph, choice.device, "on")
        memory.run({graph.input_name: np.zeros(graph.input_shape, np.uint8)})  # the first run captures
        return session, memory
    except (BackendError, RuntimeError) as error:
        if isinstance(error, BackendError) and "did not start" in str(error):
            raise
        cause = str(error).strip().splitlines()[0]
        log.info("%s runs without a CUDA graph: %s", graph.path.name, cause)
    session = _session(graph.path, provider, choice, settings)
    return session, DeviceMemory(session, graph, choice.device, f"off: {cause}")


def _gpu_settings(graph: NetworkSpec, provider: str, precision: str, choice: Choice) -> dict[str, str]:
    if provider == "cuda":
        tf32 = "1" if precision == "tf32" else "0"
        return {"device_id": str(choice.device), "use_tf32": tf32, "cudnn_conv_algo_search": "EXHAUSTIVE"}
    # The execution provider keys its files by graph and GPU itself; ours adds what it leaves out, see engine_cache.
    folder = choice.cache.folder / f"onnxruntime-{onnxruntime.__version__}-{graph.sha256[:16]}"
    return {
        "device_id": str(choice.device),
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(choice.cache.folder),
    }


def _load_cuda_libraries() -> None:
    """Find CUDA and cuDNN in pip's nvidia packages too; where the system has them this changes nothing."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        try:
            preload()
        except Exception as error:  # it only helps; what is really missing shows when the session opens
            log.debug("onnxruntime.preload_dlls: %s", error)


def _session(path: Path, provider: str, choice: Choice, settings: dict) -> onnxruntime.InferenceSession:
    wanted = EXECUTION_PROVIDERS[provider]
    onnxruntime.set_default_logger_severity(QUIET)
    # TensorRT leaves single nodes to CUDA; the CPU is in no list, so that nothing falls back to it unseen.
    providers = [(wanted, settings) if settings else wanted]
    if provider == "tensorrt":
        providers.append((EXECUTION_PROVIDERS["cuda"], {"device_id": str(choice.device)}))
    try:
        session = onnxruntime.InferenceSession(str(path), _options(choice.threads), providers=providers)
    except Exception as error:  # ONNX Runtime has a class of its own for every cause, all directly below Exception
        cause = str(error).strip().splitlines()[0]
        if provider == "cpu":
            raise BundleError(f"{path} does not open ({cause}); re-export or fetch it again") from error
        raise BackendError(f"{path.name} does not open with the provider '{provider}' ({cause})") from error
    # A library missing on the machine (CUDA, cuDNN) makes ONNX Runtime fall back to the CPU with a mere log line.
    if session.get_providers()[0] != wanted:
        raise BackendError(
            f"the provider '{provider}' did not start, ONNX Runtime fell back to {session.get_providers()[0]}; "
            f"check the driver and the libraries that {PACKAGES[provider]} needs, or ask for another provider"
        )
    return session


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # A number, not 0: then ONNX Runtime pins no thread to a core, which containers with few cores refuse.
    options.intra_op_num_threads = threads if threads > 0 else len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    # Idle threads sleep: the node shares its cores with the rest of the robot.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.use_deterministic_compute = True
    options.log_severity_level = QUIET
    return options


def _tensor(node) -> Tensor:
    shape = tuple(side if isinstance(side, int) else None for side in node.shape)
    return Tensor(DTYPES.get(node.type, node.type), shape)
