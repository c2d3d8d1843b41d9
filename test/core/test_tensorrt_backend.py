"""TensorRT's file with a stand-in for the library: order of calls, buffers, CUDA graph, cache, refusals in words."""

import importlib
import logging
import sys

import numpy as np
import pytest
from fake_tensorrt import World, modules
from mock_bundle import write_mock_bundle

from endomust_core import backends
from endomust_core.backends import BackendError, Choice, open_network, open_with
from endomust_core.bundle import load_bundle
from endomust_core.engine_cache import EngineCache
from endomust_core.engines import EngineOptions, open_engines

SIZE = (6, 8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundle") / "mock"
    return load_bundle(write_mock_bundle(root, size=SIZE, pose=False, golden=True))


@pytest.fixture
def world(bundle, monkeypatch):
    """The library, answering as ONNX Runtime does."""
    real = open_network(bundle.depth, threads=1)
    world = World(real.run, {"image": ((1, *SIZE, 3), np.uint8)}, {"disparity": ((1, *SIZE), np.float32)})
    install(monkeypatch, world)
    return world


def install(monkeypatch, world):
    import types

    trt, runtime = modules(world)
    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime = runtime
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    monkeypatch.delitem(sys.modules, "endomust_core.backends.tensorrt", raising=False)
    monkeypatch.setattr(backends, "installed", lambda name: name == "tensorrt")
    importlib.import_module("endomust_core.backends.tensorrt")


@pytest.fixture
def choice(tmp_path):
    return Choice(cache=EngineCache(tmp_path / "engines"), bundle="mock")


def image(red):
    array = np.zeros((1, *SIZE, 3), np.uint8)
    array[..., 0] = red
    return {"image": array}


def test_the_answer_comes_back_through_pinned_and_device_memory(bundle, world, choice):
    backend = open_with(bundle.depth, "tensorrt", choice)
    assert backend.precision == "tf32" and backend.facts["CUDA graph"] == "on" and backend.facts["device"] == "Fake GPU"
    world.calls.clear()
    first, second = backend.run(image(255))["disparity"], backend.run(image(0))["disparity"]
    np.testing.assert_allclose(first, 50.0, rtol=1e-6)
    np.testing.assert_allclose(second, 5.0, rtol=1e-6)
    assert world.calls == ["graph", "graph"]  # nothing is enqueued once more: the graph holds copies and inference


def test_without_a_cuda_graph_it_runs_and_says_why(bundle, world, choice):
    world.graphs = False
    backend = open_with(bundle.depth, "tensorrt", choice)
    assert backend.facts["CUDA graph"].startswith("off: ")
    np.testing.assert_allclose(backend.run(image(255))["disparity"], 50.0, rtol=1e-6)


def test_it_is_built_once_with_progress_and_the_timing_cache_is_kept(bundle, world, choice, caplog):
    with caplog.at_level(logging.INFO):
        assert open_with(bundle.depth, "tensorrt", choice).facts["engine"] == "built"
    assert "this can take minutes, once" in caplog.text and "Tactic selection 50 %" in caplog.text
    assert world.flags == [2] and world.timing_cache_in == b""
    assert open_with(bundle.depth, "tensorrt", choice).facts["engine"] == "cached"
    assert world.calls.count("build") == 1
    open_with(bundle.depth, "tensorrt", Choice(cache=choice.cache, bundle="mock", rebuild=True))
    assert world.timing_cache_in == b"tuned" and world.calls.count("build") == 2


@pytest.mark.parametrize(("precision", "flags"), [("fp32", set()), ("tf32", {"TF32"})])
def test_tf32_is_off_where_fp32_was_asked_for(bundle, world, choice, precision, flags):
    open_with(bundle.depth, "tensorrt", Choice(precision, cache=choice.cache))
    assert world.precision_flags == flags


def test_an_engine_of_another_version_is_built_anew(bundle, world, choice, monkeypatch, caplog):
    open_with(bundle.depth, "tensorrt", choice)
    newer = World(world.answer, world.inputs, world.outputs, version="11.4.0")
    install(monkeypatch, newer)
    with caplog.at_level(logging.INFO):
        assert open_with(bundle.depth, "tensorrt", choice).facts["library"] == "TensorRT 11.4.0"
    assert "version 10.14.1 → 11.4.0" in caplog.text and newer.calls.count("build") == 1


def test_what_it_cannot_do_is_said(bundle, world, choice):
    world.builds = False
    with pytest.raises(BackendError, match="cannot build depth.onnx .no implementation for node /blocks.0/attn.; use"):
        open_with(bundle.depth, "tensorrt", choice)
    world.parses = False
    with pytest.raises(BackendError, match="TensorRT 10.14.1 does not read depth.onnx .unsupported operator."):
        open_with(bundle.depth, "tensorrt", choice)
    with pytest.raises(BackendError, match="cudaSetDevice failed .invalid device ordinal.; check nvidia-smi"):
        open_with(bundle.depth, "tensorrt", Choice(device=3, cache=choice.cache))
    assert not list(choice.cache.folder.glob("*.engine"))


def test_an_engine_that_answers_wrongly_is_refused_by_the_golden_images(bundle, world, tmp_path):
    right = world.answer
    world.answer = lambda given: {name: 1.3 * values for name, values in right(given).items()}
    with pytest.raises(BackendError, match="on 'tensorrt' .tf32. differs from the reference by 30.00% in depth"):
        open_engines(bundle, EngineOptions(("tensorrt",), cache_dir=tmp_path))


def test_memory_is_given_back(bundle, world, choice):
    backend = open_with(bundle.depth, "tensorrt", choice)
    assert len(world.memory) == 4
    del backend
    assert not world.memory
