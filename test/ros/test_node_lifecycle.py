"""Every lifecycle transition over the services; images before camera_info; bundles that are broken and mended."""

import shutil
import signal

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from harness import CAMERA, PLANE, NodeProcess, depth_of
from mock_bundle import depth_graph, disparity_step, write_mock_bundle

from endomust_core.bundle import MANIFEST, write_manifest

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def process(log_folder, probe):
    """A node that waits for a lifecycle manager; shared, because a process takes longer to start than most tests."""
    with NodeProcess(log_folder, {"autostart": False}) as process:
        probe.follow("depth", "depth_info", "odom", "points", "diagnostics")
        probe.wait_for_state("unconfigured")
        yield process


@pytest.fixture
def managed(tmp_path, process, probe):
    """That node, unconfigured, with a bundle of its own that a test may break."""
    process.bundle = write_mock_bundle(tmp_path / "mock")
    process.forget()
    assert probe.set("model.path", str(process.bundle)).successful
    yield process
    for way_back in ("deactivate", "cleanup"):
        probe.change_state(way_back)  # refused where it does not apply
    probe.retire("/endoscope/image_raw")
    assert probe.state() == "unconfigured"


@pytest.fixture
def mortal(tmp_path, log_folder, probe):
    """A node that a test may end."""
    bundle = write_mock_bundle(tmp_path / "mock")
    arguments = ("-r", "__ns:=/mortal")
    with NodeProcess(log_folder, {"autostart": False, "model.path": str(bundle)}, arguments) as process:
        yield process


def test_all_transitions_and_images_only_while_active(managed, probe):
    assert probe.change_state("configure") and probe.state() == "inactive"
    assert probe.node.count_publishers("/endomust/depth/image_rect") == 1
    assert not probe.node.count_subscribers("/endoscope/image_raw")
    for _ in range(2):  # a second round finds nothing left over from the first
        assert probe.change_state("activate") and probe.state() == "active"
        probe.ask()
        assert probe.change_state("deactivate") and probe.state() == "inactive"
        probe.wait(lambda: not probe.node.count_subscribers("/endoscope/image_raw"), "the subscription to go")
        assert probe.change_state("cleanup") and probe.state() == "unconfigured"
        probe.wait(lambda: not probe.node.count_publishers("/endomust/depth/image_rect"), "the publishers to go")
        assert probe.change_state("configure")


def test_a_transition_that_the_state_does_not_have_is_refused_and_survived(managed, probe):
    assert not probe.change_state("activate")
    assert "transition 3 is not possible while the node is unconfigured" in probe.wait_for_log("is not possible")
    assert probe.change_state("configure") and not probe.change_state("configure") and probe.state() == "inactive"


@pytest.mark.parametrize(
    "path", [[], ["configure"], ["configure", "activate"]], ids=["unconfigured", "inactive", "active"]
)
def test_shutdown_from_every_state_ends_the_process_in_order(mortal, probe, path):
    for name in path:
        assert probe.change_state(name, "/mortal")
    assert probe.change_state(f"shutdown from {probe.state('/mortal')}", "/mortal")
    assert mortal.process.wait(10) == 0 and "Traceback" not in mortal.log


def test_images_before_camera_info_give_depth_and_no_geometry(managed, probe):
    assert probe.change_state("configure") and probe.change_state("activate")
    sent, depth = probe.ask()
    assert np.abs(1 / depth_of(depth) - 1 / PLANE)[:, 4:-4].max() < disparity_step()
    probe.wait_for_log("no camera_info has come yet")
    status = probe.wait_for_status("input", lambda status: status["camera"] == "no_info", "no_info")
    assert int(status["without camera: no_info"]) > 0
    probe.calibrate()
    assert all(out.header.stamp != sent.header.stamp for name in ("points", "odom") for out in probe.got[name])


def _truncate(bundle):
    graph = bundle / "depth.onnx"
    graph.write_bytes(graph.read_bytes()[:-50])


def _remove(bundle):
    shutil.rmtree(bundle)


def _remove_manifest(bundle):
    (bundle / MANIFEST).unlink()


def _wrong_sha(bundle):
    text = (bundle / MANIFEST).read_text().splitlines()
    (bundle / MANIFEST).write_text("\n".join("  sha256: 00ff" if "sha256" in line else line for line in text))


def _other_graph(bundle):
    """The file is whole and its hash is right, but it is a graph of another size than the manifest says."""
    import onnx
    import yaml

    onnx.save(depth_graph((24, 32), 5.0, 45.0), bundle / "depth.onnx")
    write_manifest(bundle, yaml.safe_load((bundle / MANIFEST).read_text()))


BROKEN = {
    "missing": (_remove, "does not exist"),
    "no manifest": (_remove_manifest, f"holds no {MANIFEST}"),
    "truncated": (_truncate, "sha256 differs"),
    "wrong sha256": (_wrong_sha, "sha256 differs"),
    "graph disagrees": (_other_graph, "24x32, the manifest says 48x64"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_configure_fails_on_a_broken_bundle_and_works_after_mending(managed, probe, kind):
    damage, sentence = BROKEN[kind]
    damage(managed.bundle)
    assert not probe.change_state("configure") and probe.state() == "unconfigured"
    line = probe.wait_for_log("configure failed")
    assert sentence in line and str(managed.bundle) in line or "depth.onnx" in line
    write_mock_bundle(managed.bundle)
    assert probe.change_state("configure") and probe.change_state("activate")
    probe.ask()


def test_a_provider_that_is_absent_is_refused_in_words_and_nothing_else_runs(managed, probe):
    assert probe.set("model.providers", ["cuda"]).successful
    assert not probe.change_state("configure")
    assert "pip install onnxruntime-gpu" in probe.wait_for_log("configure failed")
    assert probe.set("model.providers", ["cpu"]).successful
    assert probe.change_state("configure")


def test_an_unforeseen_error_in_configure_ends_in_unconfigured_and_can_be_repeated(managed, probe):
    (managed.bundle / MANIFEST).unlink()
    (managed.bundle / MANIFEST).mkdir()  # nobody foresaw a folder of that name
    assert not probe.change_state("configure")
    assert probe.state() == "unconfigured"
    (managed.bundle / MANIFEST).rmdir()
    write_mock_bundle(managed.bundle)
    assert probe.change_state("configure") and probe.change_state("activate")
    probe.ask()


def test_autostart_survives_a_missing_bundle(tmp_path, log_folder, probe):
    parameters = {"model.path": str(tmp_path / "nothing")}
    with NodeProcess(log_folder, parameters, ("-r", "__ns:=/alone")):
        probe.wait_for_log("configure failed")
        assert probe.state("/alone") == "unconfigured"
        write_mock_bundle(tmp_path / "nothing")
        assert probe.change_state("configure", "/alone")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_node_in_order(mortal, probe, number):
    assert probe.change_state("configure", "/mortal") and probe.change_state("activate", "/mortal")
    assert mortal.end(number) == 0
    assert "Traceback" not in mortal.log


def test_transitions_while_images_stream_lose_nothing_and_never_hang(managed, probe):
    assert probe.change_state("configure") and probe.change_state("activate")
    publisher = probe.publisher("/endoscope/image_raw", type(probe.image()))
    timer = probe.node.create_timer(0.005, lambda: publisher.publish(probe.image()))
    for _ in range(5):
        assert probe.change_state("deactivate") and probe.change_state("activate")
    assert probe.change_state("deactivate") and probe.change_state("cleanup")
    probe.node.destroy_timer(timer)
    assert probe.change_state("configure") and probe.change_state("activate")
    sent, depth = probe.ask()
    assert depth.width == CAMERA.width and "Traceback" not in managed.log
