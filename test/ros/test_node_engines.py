"""Engines in the running node: built in configure, found again, refused by the golden images, said in diagnostics."""

import importlib.util

import onnx
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

import yaml
from harness import NodeProcess
from mock_bundle import depth_graph, write_mock_bundle

from endomust_core.bundle import MANIFEST, write_manifest

pytestmark = pytest.mark.ros
SIZE = (48, 64)


@pytest.fixture
def process(tmp_path, log_folder, probe):
    """A node that waits, with a bundle that carries golden images and a cache of its own."""
    bundle = write_mock_bundle(tmp_path / "mock", size=SIZE, golden=True)
    cache = tmp_path / "engines"
    parameters = {"autostart": False, "model.path": str(bundle), "model.engine_cache_dir": str(cache)}
    with NodeProcess(log_folder, parameters) as process:
        process.bundle, process.cache = bundle, cache
        probe.follow("diagnostics")
        probe.wait_for_state("unconfigured")
        yield process


def spoil(bundle, by):
    """Another depth graph with a manifest that agrees: the golden images alone know better."""
    onnx.save(depth_graph(SIZE, 5 * by, 45 * by), bundle / "depth.onnx")
    write_manifest(bundle, yaml.safe_load((bundle / MANIFEST).read_text()))


def test_an_engine_that_answers_wrongly_is_refused_with_the_numbers_and_mended(process, probe):
    spoil(process.bundle, 1.2)
    assert not probe.change_state("configure")
    line = probe.wait_for_log("configure failed")
    assert "differs from the reference by 20.00% in depth" in line and "allowed 2.00%" in line
    assert probe.set("model.self_test", "warn").successful
    assert probe.change_state("configure")
    assert "its depth would be wrong" in process.log
    assert probe.change_state("cleanup")
    spoil(process.bundle, 1.0)
    assert probe.set("model.self_test", "require").successful
    assert probe.change_state("configure") and probe.change_state("activate")
    status = probe.wait_for_status("inference", lambda s: "self-test" in s, "the self-test")
    assert status["self-test"].startswith("differs from the reference by 0.00%") and status["precision"] == "fp32"


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_an_engine_is_built_in_configure_and_found_again(process, probe):
    assert probe.set("model.providers", ["openvino"]).successful
    assert probe.change_state("configure")
    probe.wait_for_log("the depth engine of mock for openvino")
    assert len(list(process.cache.glob("*.engine"))) == 2
    assert probe.change_state("cleanup")
    process.forget()
    assert probe.change_state("configure") and probe.change_state("activate")
    assert "is built" not in process.log
    status = probe.wait_for_status("inference", lambda s: "engine" in s, "the engine")
    assert status["engine"] == "cached" and status["provider"] == "openvino"


def test_a_precision_the_bundle_does_not_have_is_refused_with_the_command_that_makes_it(process, probe):
    assert probe.set("model.precision", "int8").successful
    assert not probe.change_state("configure")
    assert "endomust export" in probe.wait_for_log("configure failed")
    assert not probe.set("model.precision", "fp7").successful
