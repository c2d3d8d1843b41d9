"""Backends: the provider asked for opens or says why not; arrays come back by name; a GPU library that is broken is
not covered up."""

import logging

import numpy as np
import onnxruntime
import pytest
from mock_bundle import write_mock_bundle

from endomust_core.backends import BackendError, open_network
from endomust_core.backends import onnxruntime as ort_backend
from endomust_core.bundle import load_bundle

ABSENT = [name for name in ("cuda", "tensorrt", "openvino") if name not in ort_backend.available_providers()]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = write_mock_bundle(tmp_path_factory.mktemp("bundle") / "mock", size=(6, 8), rotation=(0.1, 0.2, 0.3))
    return load_bundle(root)


def test_runs_the_graph_and_names_its_outputs(bundle):
    depth = open_network(bundle.depth)
    image = np.zeros((1, 6, 8, 3), np.uint8)
    image[0, 2, 3] = (255, 7, 7)
    disparity = depth.run({"image": image})["disparity"]
    assert disparity.shape == (1, 6, 8) and disparity.dtype == np.float32
    assert disparity[0, 2, 3] == pytest.approx(50) and disparity[0, 0, 0] == pytest.approx(5)
    pose = open_network(bundle.pose).run({"images": np.zeros((1, 2, 6, 8, 3), np.uint8)})
    np.testing.assert_allclose(pose["rotation"], [[0.1, 0.2, 0.3]], rtol=1e-6)
    assert set(pose) == {"rotation", "translation", "intrinsics"}


def test_each_run_gives_new_arrays(bundle):
    depth = open_network(bundle.depth)
    first = depth.run({"image": np.zeros((1, 6, 8, 3), np.uint8)})["disparity"]
    kept = first.copy()
    depth.run({"image": np.full((1, 6, 8, 3), 255, np.uint8)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.skipif(not ABSENT, reason="this ONNX Runtime has every provider")
def test_an_absent_provider_is_refused_with_what_there_is_and_what_to_install(bundle):
    words = f"'{ABSENT[0]}' is not in this ONNX Runtime .it has .*cpu.*pip install {ort_backend.PACKAGES[ABSENT[0]]}"
    with pytest.raises(BackendError, match=words):
        open_network(bundle.depth, [ABSENT[0]])


@pytest.mark.skipif(not ABSENT, reason="this ONNX Runtime has every provider")
def test_a_list_is_tried_in_order_and_says_what_it_skipped(bundle, caplog):
    with caplog.at_level(logging.WARNING):
        assert open_network(bundle.depth, [ABSENT[0], "cpu"]).provider == "cpu"
    assert f"'{ABSENT[0]}' is not in this" in caplog.text and "running on 'cpu'" in caplog.text
    caplog.clear()
    assert open_network(bundle.depth, ["cpu", ABSENT[0]]).provider == "cpu"
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("providers", "words"),
    [
        (["cdua"], "'cdua' is unknown; did you mean 'cuda'"),
        (["xyz"], "'xyz' is unknown; choose from cpu"),
        ("cpu", "must be a list"),
        ([], "must be a list"),
    ],
)
def test_unknown_providers_are_refused_in_words(bundle, providers, words):
    with pytest.raises(BackendError, match=words):
        open_network(bundle.depth, providers)


def test_a_provider_that_onnxruntime_silently_replaces_is_refused(bundle, monkeypatch):
    """ONNX Runtime lists CUDA when it was built with it and runs on the CPU when the driver is missing."""
    real = onnxruntime.InferenceSession

    def session_without_cuda(path, options, providers):
        assert providers[0][0] == "CUDAExecutionProvider"
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session_without_cuda)
    with pytest.raises(BackendError, match="'cuda' did not start, ONNX Runtime fell back to CPUExecutionProvider"):
        open_network(bundle.depth, ["cuda"])


def test_a_provider_that_fails_to_open_is_not_blamed_on_the_bundle(bundle, monkeypatch):
    def failing_session(*_, **__):
        raise RuntimeError("no driver\nand more")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", failing_session)
    with pytest.raises(BackendError, match=r"does not open with the provider 'cuda' \(no driver\)"):
        open_network(bundle.depth, ["cuda"])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_is_what_was_asked_and_idle_threads_sleep(bundle, threads):
    options = ort_backend._options(threads)
    assert options.intra_op_num_threads == threads
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert ort_backend._options(0).intra_op_num_threads >= 1
