"""Reliable and best-effort publishers, raw and compressed images, late publishers: the node connects to all."""

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from harness import CAMERA, PICTURE, PLANE, NodeProcess, compressed, depth_of
from mock_bundle import disparity_step
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

pytestmark = pytest.mark.ros
TOPICS = {"raw": "/endoscope/image_raw", "compressed": "/endoscope/image_raw/compressed"}
RELIABILITY = {"reliable": ReliabilityPolicy.RELIABLE, "best_effort": ReliabilityPolicy.BEST_EFFORT}
PNG = cv2.imencode(".png", PICTURE[..., ::-1])[1].tobytes()


@pytest.fixture(autouse=True)
def clean(probe):
    yield
    for topic in TOPICS.values():
        probe.retire(topic)


@pytest.mark.parametrize("reliability", RELIABILITY)
@pytest.mark.parametrize("kind", TOPICS)
def test_every_kind_of_publisher_is_heard(node, probe, kind, reliability):
    """The publisher comes after the node, and each time another one: the node must follow."""
    topic, policy = TOPICS[kind], RELIABILITY[reliability]

    def send():
        header = probe.header()
        message = probe.image() if kind == "raw" else compressed(PNG, header, "png")
        return probe.send(message, topic, policy)

    sent = []
    probe.wait(lambda: sent.append(send()) or _answered(probe, sent), f"an answer to {reliability} {kind}")
    status = probe.wait_for_status("input", lambda status: status["reliability used"] == reliability, "the QoS in use")
    assert (status["transport"], status["topic"], status["reliability offered"]) == (kind, topic, reliability)
    depth = depth_of(probe.answer(_answered(probe, sent)))
    assert np.abs(1 / depth - 1 / PLANE)[:, 4:-4].max() < disparity_step()


def _answered(probe, sent):
    stamps = [out.header.stamp for out in probe.got["depth"]]
    return next((message for message in sent if message.header.stamp in stamps), None)


def test_raw_is_taken_where_both_are_published(node, probe):
    probe.publisher(TOPICS["compressed"], type(compressed(PNG, probe.header())))
    probe.publisher(TOPICS["raw"], Image)
    probe.wait(lambda: probe.ask() and probe.status("input")["transport"] == "raw", "the raw topic in use")


def test_one_answer_for_each_of_many_reliable_images(node, probe):
    probe.ask()
    probe.got["depth"].clear()
    sent = [probe.ask()[0] for _ in range(50)]
    assert [out.header.stamp for out in probe.got["depth"]] == [message.header.stamp for message in sent]


def test_fixed_transport_and_qos_and_remapped_camera_info(bundle, log_folder, node, probe):
    """A second node, in a namespace, told what to use: private topics follow its name, and so do the frames."""
    parameters = {
        "model.path": str(bundle),
        "input.transport": "compressed",
        "input.qos": "sensor_data",
        "depth.resolution": "network",
        "frames.odom": "start",
        "frames.camera_optical": "ecm_camera",
    }
    arguments = ("-r", "__ns:=/left", "-r", "camera_info:=/other/info")
    got: dict[str, list] = {"depth": [], "info": []}
    depth = probe.node.create_subscription(Image, "/left/endomust/depth/image_rect", got["depth"].append, 10)
    info = probe.node.create_subscription(CameraInfo, "/left/endomust/depth/camera_info", got["info"].append, 10)
    with NodeProcess(log_folder, parameters, arguments) as second:
        line = probe.wait_for_log("listening to", second)
        assert "/endoscope/image_raw" in line and "/other/info" in line

        def send():
            from endomust_ros.messages import camera_info_message

            probe.send(camera_info_message(CAMERA, probe.header()), "/other/info")
            probe.send(compressed(PNG, probe.header(), "png"), TOPICS["compressed"])
            return got["info"] and got["depth"]

        probe.wait(send, "depth of the second node")

        def best_effort():
            used = probe.node.get_subscriptions_info_by_topic(TOPICS["compressed"])
            left = [entry.qos_profile.reliability for entry in used if entry.node_namespace == "/left"]
            return left == [ReliabilityPolicy.BEST_EFFORT]

        probe.wait(best_effort, "a best-effort subscription in the namespace /left")
        message, camera = got["depth"][-1], got["info"][-1]
        assert (message.width, message.height, message.header.frame_id) == (64, 48, "ecm_camera")
        resized = CAMERA.resized(64, 48)
        assert np.allclose(camera.k.reshape(3, 3), resized.K) and (camera.width, camera.height) == (64, 48)
    probe.node.destroy_subscription(depth)
    probe.node.destroy_subscription(info)
