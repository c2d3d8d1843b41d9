"""Gives the ROS tests their own DDS domain on this machine only, a mock bundle, and one running node per module."""

import importlib.util
import os
import random

import pytest

DOMAIN = str(random.SystemRandom().randrange(1, 100))  # above 101 the ports meet those that Linux hands out

if importlib.util.find_spec("rclpy") is not None:
    from endomust_ros.transport import fast_dds_environment

    os.environ["ROS_DOMAIN_ID"] = DOMAIN
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"  # Iron and later
    if os.environ.get("ROS_DISTRO") == "humble":
        os.environ["ROS_LOCALHOST_ONLY"] = "1"
    os.environ.update(fast_dds_environment(os.environ))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A mock bundle: disparity is the red channel, every motion is MOTION of harness.py."""
    from harness import MOTION_ROTATION, MOTION_TRANSLATION
    from mock_bundle import write_mock_bundle

    root = tmp_path_factory.mktemp("bundle") / "mock"
    return write_mock_bundle(root, translation=MOTION_TRANSLATION, rotation=MOTION_ROTATION)


@pytest.fixture(scope="session")
def log_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def probe():
    """A ROS node of the tests: publishes images, collects answers, calls services."""
    from harness import Probe

    with Probe() as probe:
        yield probe


@pytest.fixture(scope="module")
def node(bundle, log_folder, probe):
    """The node in its own process, active, with the camera known."""
    from harness import NodeProcess

    with NodeProcess(log_folder, {"model.path": str(bundle), "points.max_rate": 0.0, "points.stride": 1}) as process:
        probe.follow("depth", "depth_info", "odom", "points", "diagnostics")
        probe.wait_for_state("active")
        probe.calibrate()
        yield process
