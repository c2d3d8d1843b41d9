"""OpenVINO: the same answers as ONNX Runtime, engines found again, bf16 only where the processor has it."""

import logging
import subprocess
import sys

import numpy as np
import pytest
from mock_bundle import write_mock_bundle

pytest.importorskip("openvino", reason="needs openvino: pip install 'endomust_ros[openvino]'")

from endomust_core import backends  # noqa: E402
from endomust_core.backends import BackendError, Choice, open_network, open_with  # noqa: E402
from endomust_core.backends import openvino as backend_file  # noqa: E402
from endomust_core.bundle import BundleError, default_bundle, load_bundle  # noqa: E402
from endomust_core.engine_cache import EngineCache  # noqa: E402
from endomust_core.engines import EngineOptions, open_engines  # noqa: E402


@pytest.fixture
def choice(tmp_path):
    return Choice("fp32", threads=1, cache=EngineCache(tmp_path / "engines"), bundle="mock")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundle") / "mock"
    return load_bundle(write_mock_bundle(root, size=(6, 8), rotation=(0.1, 0.2, 0.3), brightness_gain=(0.1, 0, 0)))


def test_it_says_what_onnx_runtime_says(bundle, choice):
    random = np.random.default_rng(0)
    for spec in (bundle.depth, bundle.pose):
        array = random.integers(0, 256, spec.input_shape, np.uint8)
        ours, theirs = open_with(spec, "openvino", choice), open_network(spec)
        found, wanted = ours.run({spec.input_name: array}), theirs.run({spec.input_name: array})
        assert ours.inputs == theirs.inputs and found.keys() == wanted.keys()
        for name in wanted:
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6)


def test_each_run_gives_new_arrays(bundle, choice):
    depth = open_with(bundle.depth, "openvino", choice)
    first = depth.run({"image": np.zeros((1, 6, 8, 3), np.uint8)})["disparity"]
    kept = first.copy()
    depth.run({"image": np.full((1, 6, 8, 3), 255, np.uint8)})
    np.testing.assert_array_equal(first, kept)


def test_the_engine_is_built_once_and_found_again(bundle, choice):
    assert open_with(bundle.depth, "openvino", choice).facts["engine"] == "built"
    again = open_with(bundle.depth, "openvino", choice)
    assert again.facts["engine"] == "cached"
    np.testing.assert_allclose(again.run({"image": np.zeros((1, 6, 8, 3), np.uint8)})["disparity"], 5.0, rtol=1e-6)


def test_a_truncated_engine_is_built_again(bundle, choice, caplog):
    open_with(bundle.depth, "openvino", choice)
    (engine,) = choice.cache.folder.glob("*.engine")
    engine.write_bytes(engine.read_bytes()[:-100])
    assert open_with(bundle.depth, "openvino", choice).facts["engine"] == "built"
    assert "cut short" in caplog.text


def test_an_engine_of_another_processor_is_built_again_and_the_log_says_so(bundle, choice, caplog, monkeypatch):
    open_with(bundle.depth, "openvino", choice)
    real = backend_file._core()

    class Elsewhere:
        def __getattr__(self, name):
            return getattr(real, name)

        def get_property(self, device, name):
            return "Another Processor" if name == "FULL_DEVICE_NAME" else real.get_property(device, name)

    monkeypatch.setattr(backend_file, "_core", Elsewhere)
    with caplog.at_level(logging.INFO):
        assert open_with(bundle.depth, "openvino", choice).facts["engine"] == "built"
    assert "→ Another Processor" in caplog.text


def test_a_graph_that_is_none_is_named(tmp_path, bundle, choice):
    broken = tmp_path / "depth.onnx"
    broken.write_bytes(b"no graph")
    spec = backends.NetworkSpec(broken, "00", "image", (6, 8), {"disparity": "disparity"})
    with pytest.raises(BundleError, match="depth.onnx does not open"):
        open_with(spec, "openvino", choice)


def test_bf16_is_auto_only_where_the_processor_has_it(bundle, choice, monkeypatch):
    automatic = Choice("auto", threads=1, cache=choice.cache)
    monkeypatch.setattr(backend_file, "_has_bf16", lambda core: False)
    assert open_with(bundle.depth, "openvino", automatic).precision == "fp32"
    with pytest.raises(BackendError, match="'openvino' does not run bf16 here; it runs fp32, int8"):
        open_with(bundle.depth, "openvino", Choice("bf16", cache=choice.cache))
    monkeypatch.setattr(backend_file, "_has_bf16", lambda core: True)
    assert open_with(bundle.depth, "openvino", automatic).precision == "bf16"


def test_the_default_bundle_passes_its_self_test(tmp_path):
    engines = open_engines(load_bundle(default_bundle()), EngineOptions(("openvino",), cache_dir=tmp_path))
    assert engines.self_test.passed and engines.provider == "openvino"


SIGNAL_STACK = """
import ctypes, sys
from endomust_core.bundle import load_bundle
from endomust_core.engines import EngineOptions, open_engines

class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

engines = open_engines(load_bundle(sys.argv[1]), EngineOptions(("openvino",), cache_dir=sys.argv[2], self_test="off"))
del engines
stack = Stack()
ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in open("/proc/self/maps")]
print(not stack.address or any(low <= stack.address < high for low, high in ranges))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_signals_have_a_stack_that_exists_after_the_engines_are_closed(bundle, tmp_path):
    """Ctrl-C crashed the process after `cleanup`: the stack that OpenVINO had set for signals was gone."""
    command = [sys.executable, "-c", SIGNAL_STACK, str(bundle.root), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stdout + done.stderr[-2000:]
