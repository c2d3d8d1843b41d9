"""compressedDepth over DDS: only when it is asked for and heard, in the range of the node, with the image's header."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from harness import CAMERA, depth_of
from sensor_msgs.msg import CompressedImage

from endomust_core.compressed_depth import Quantiser, decode
from endomust_ros.messages import compressed_depth_message

pytestmark = pytest.mark.ros
TOPIC = "/endomust/depth/image_rect/compressedDepth"


@pytest.fixture
def heard(probe):
    """The messages of the topic, as long as the test lasts."""
    got = []
    subscription = probe.node.create_subscription(CompressedImage, TOPIC, got.append, 10)
    yield got
    probe.node.destroy_subscription(subscription)


@pytest.mark.parametrize("kind", ["png", "rvl"])
def test_it_holds_the_depth_image(node, probe, heard, kind):
    assert probe.set("compressed_depth.format", kind).successful
    assert probe.set("compressed_depth.enable", True).successful

    depths = {}

    def both():  # the second thread sends it, some time after depth
        depth = probe.ask()[1]
        depths[depth.header.stamp.sec, depth.header.stamp.nanosec] = depth
        known = ((depths.get((found.header.stamp.sec, found.header.stamp.nanosec)), found) for found in heard)
        return next((pair for pair in known if pair[0] and kind in pair[1].format), None)

    depth, message = probe.wait(both, "compressed depth of an image")
    assert probe.set("compressed_depth.enable", False).successful
    assert message.format == f"32FC1; compressedDepth {kind}" and message.header == depth.header
    read, true = decode(bytes(message.data), kind), depth_of(depth)
    assert read.shape == (CAMERA.height, CAMERA.width)
    assert np.array_equal(np.isnan(read), np.isnan(true))
    assert np.nanmax(np.abs(read - true) / true**2) <= 0.51 / Quantiser.of_range(0.003, 0.5).a  # half a step


def test_it_is_off_unless_it_is_asked_for(node, probe, heard):
    assert not probe.get("compressed_depth.enable").bool_value
    probe.wait(lambda: probe.node.count_publishers(TOPIC), "the topic")
    for _ in range(3):  # what the second thread still had from the test before
        probe.ask()
    heard.clear()
    for _ in range(5):
        probe.ask()
    assert not heard


def test_a_format_that_is_not_known_is_refused(node, probe):
    result = probe.set("compressed_depth.format", "jpeg")
    assert not result.successful and "png, rvl" in result.reason


def test_the_message_has_its_bytes_without_a_node():
    message = compressed_depth_message(np.full((2, 3), 0.1, np.float32), probe_header(), 0.003, 0.5, "rvl")
    assert np.allclose(decode(bytes(message.data), "rvl"), 0.1, rtol=1e-3) and message.header.frame_id == "here"


def probe_header():
    from std_msgs.msg import Header

    return Header(frame_id="here")
