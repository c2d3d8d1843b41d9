"""Runs an ONNX graph with ONNX Runtime: named arrays in, named arrays out, on cpu, cuda, tensorrt or openvino."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime

from endomust_core.backends import BackendError, Tensor
from endomust_core.bundle import BundleError

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
    "openvino": "onnxruntime-openvino",
}
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}
QUIET = 3  # ONNX Runtime: errors only; what matters is raised


class OnnxRuntimeBackend:
    """One inference session; repeats give the same bits on the same machine with the same number of threads."""

    def __init__(self, path: Path, provider: str = "cpu", threads: int = 0):
        _check_available(provider)
        self.provider = provider
        self._session = _open_session(Path(path), provider, threads)
        self.inputs = {node.name: _tensor(node) for node in self._session.get_inputs()}
        self.outputs = {node.name: _tensor(node) for node in self._session.get_outputs()}

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output of the graph by name; the arrays are new on each call."""
        return dict(zip(self.outputs, self._session.run(None, inputs), strict=True))


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


def _open_session(path: Path, provider: str, threads: int) -> onnxruntime.InferenceSession:
    wanted = EXECUTION_PROVIDERS[provider]
    try:
        session = onnxruntime.InferenceSession(str(path), _options(threads), providers=[wanted])
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
