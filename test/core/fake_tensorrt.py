"""Stand-ins for the modules tensorrt and cuda.bindings.runtime: same names and rules, arithmetic by a function.

Device addresses are host addresses, so that a copy that is forgotten shows in the answer. `strict` checks what the real
library would refuse: addresses not set, a stream that is not synchronised before the answer is read, a plan of another
version.
"""

import ctypes
import types

import numpy as np


class World:
    """What both modules share, and what a test may look at or change."""

    def __init__(self, answer, inputs, outputs, version="10.14.1"):
        self.answer = answer  # {input: array} → {output: array}
        self.inputs, self.outputs = inputs, outputs  # name → (shape, numpy dtype)
        self.version = version
        self.calls: list[str] = []
        self.graphs = True  # False: capturing fails
        self.parses = True
        self.builds = True
        self.flags: list[str] = []
        self.precision_flags: set[str] = {"TF32"}
        self.timing_cache_in = None
        self.memory: dict[int, object] = {}
        self.pending: list = []  # work on the stream that has not been waited for
        self.capturing = None


def modules(world: World):
    """(tensorrt, cuda.bindings.runtime)."""
    return _tensorrt(world), _runtime(world)


def _runtime(world):
    ok = 0
    kinds = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    modes = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def allocate(size):
        block = (ctypes.c_byte * size)()
        address = ctypes.addressof(block)
        world.memory[address] = block
        return ok, address

    def free(address):
        assert world.memory.pop(int(address), None) is not None, "freed twice"
        return (ok,)

    def put(work):
        (world.pending if world.capturing is None else world.capturing).append(work)

    def copy(target, source, size, kind, stream):
        put(lambda: ctypes.memmove(int(target), int(source), size))
        return (ok,)

    def synchronise(stream):
        assert world.capturing is None, "a stream cannot be waited for while it is captured"
        work, world.pending = world.pending, []
        for step in work:
            step()
        return (ok,)

    def begin(stream, mode):
        world.capturing = []
        return (ok,)

    def end(stream):
        graph, world.capturing = world.capturing, None
        return (ok, graph) if world.graphs else (900, None)

    def launch(graph, stream):
        world.calls.append("graph")
        world.pending.extend(graph)
        return (ok,)

    module = types.ModuleType("cuda.bindings.runtime")
    for function in (allocate, free, copy, synchronise, begin, end, launch):
        function.__name__ = {"allocate": "cudaMalloc"}.get(function.__name__, function.__name__)
    module.cudaSetDevice = lambda device: (ok,) if device == 0 else (101,)
    module.cudaSetDevice.__name__ = "cudaSetDevice"
    module.cudaGetDeviceProperties = lambda device: (ok, types.SimpleNamespace(name=b"Fake GPU\0\0"))
    module.cudaDriverGetVersion = lambda: (ok, 13000)
    module.cudaGetErrorString = lambda status: (ok, {101: b"invalid device ordinal"}.get(int(status), b"not permitted"))
    module.cudaMalloc = module.cudaMallocHost = allocate
    module.cudaFree = module.cudaFreeHost = free
    module.cudaMemcpyAsync, module.cudaMemcpyKind = copy, kinds
    module.cudaStreamCreate = lambda: (ok, 7)
    module.cudaStreamSynchronize, module.cudaStreamBeginCapture, module.cudaStreamEndCapture = synchronise, begin, end
    module.cudaStreamCaptureMode = modes
    module.cudaGraphInstantiate = lambda graph, flags: (ok, graph)
    module.cudaGraphLaunch = launch
    world.put = put
    return module


def _tensorrt(world):
    trt = types.ModuleType("tensorrt")
    trt.__version__ = world.version
    types_of = {np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FLOAT"}
    trt.nptype = lambda dtype: {name: kind for kind, name in types_of.items()}[dtype]
    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    trt.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
    trt.BuilderFlag = types.SimpleNamespace(TF32="TF32")
    trt.TensorIOMode = types.SimpleNamespace(INPUT="in", OUTPUT="out")

    class ILogger:
        ERROR, WARNING = 1, 2

        def __init__(self):
            self.ready = True

    class IProgressMonitor:
        def __init__(self):
            self.ready = True

    class Builder:
        def __init__(self, logger):
            assert logger.ready, "the logger's own constructor must run"
            self.logger = logger

        def create_network(self, flags):
            world.flags.append(flags)
            return types.SimpleNamespace()

        def create_builder_config(self):
            return Config()

        def build_serialized_network(self, network, config):
            world.calls.append("build")
            monitor = config.progress_monitor
            assert monitor.ready and config.pools == {"workspace": 2 << 30}
            monitor.phase_start("Tactic selection", None, 20)
            assert all(monitor.step_complete("Tactic selection", step) for step in range(20))
            monitor.phase_finish("Tactic selection")
            if not world.builds:
                self.logger.log(1, "no implementation for node /blocks.0/attn\nsecond line")
                return None
            world.precision_flags = config.flags
            return memoryview(f"plan {world.version}".encode())

    class Config:
        def __init__(self):
            self.flags, self.pools, self.progress_monitor = {"TF32"}, {}, None

        def set_memory_pool_limit(self, pool, size):
            self.pools[pool] = size

        def clear_flag(self, flag):
            self.flags.discard(flag)

        def create_timing_cache(self, content):
            world.timing_cache_in = content
            return content

        def set_timing_cache(self, cache, ignore_mismatch):
            assert ignore_mismatch is False

        def get_timing_cache(self):
            return types.SimpleNamespace(serialize=lambda: memoryview(b"tuned"))

    class OnnxParser:
        num_errors = 1

        def __init__(self, network, logger):
            pass

        def parse_from_file(self, path):
            return world.parses

        def get_error(self, index):
            return types.SimpleNamespace(desc=lambda: "unsupported operator")

    class Context:
        def __init__(self):
            self.addresses = {}

        def set_tensor_address(self, name, address):
            self.addresses[name] = address

        def execute_async_v3(self, stream):
            assert self.addresses.keys() == world.inputs.keys() | world.outputs.keys(), "addresses not set"

            def work():
                given = {name: self._at(name, world.inputs) for name in world.inputs}
                for name, values in world.answer(given).items():
                    self._at(name, world.outputs)[...] = values

            world.calls.append("enqueue")
            world.put(work)
            return True

        def _at(self, name, table):
            shape, dtype = table[name]
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            return np.frombuffer((ctypes.c_byte * size).from_address(self.addresses[name]), dtype).reshape(shape)

    class Engine:
        names = [*world.inputs, *world.outputs]
        num_io_tensors = len(names)

        def get_tensor_name(self, index):
            return self.names[index]

        def _of(self, name):
            return (world.inputs | world.outputs)[name]

        def get_tensor_shape(self, name):
            return self._of(name)[0]

        def get_tensor_dtype(self, name):
            return types_of[np.dtype(self._of(name)[1])]

        def get_tensor_mode(self, name):
            return "in" if name in world.inputs else "out"

        def create_execution_context(self):
            return Context()

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            if plan != f"plan {world.version}".encode():
                self.logger.log(1, "serialization version mismatch")
                return None
            return Engine()

    trt.ILogger, trt.IProgressMonitor, trt.Builder, trt.OnnxParser = ILogger, IProgressMonitor, Builder, OnnxParser
    trt.Runtime = Runtime
    return trt
