"""Inputs without a running node: which subscriptions come and go, and what that means for the count of lost images."""

from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from rclpy.qos import ReliabilityPolicy

from endomust_ros.inputs import Inputs
from endomust_ros.messages import Image

pytestmark = pytest.mark.ros
PERIOD = 33_000_000  # ns


class Node:
    """Stands in for the node: publishers are a table, subscriptions a list."""

    def __init__(self):
        self.offers = {}  # topic → reliability
        self.subscriptions = {}

    def resolve_topic_name(self, name, only_expand=False):
        return f"/{name}"

    def count_publishers(self, topic):
        return int(topic in self.offers)

    def get_publishers_info_by_topic(self, topic):
        found = [self.offers[topic]] if topic in self.offers else []
        return [SimpleNamespace(qos_profile=SimpleNamespace(reliability=reliability)) for reliability in found]

    def create_subscription(self, message_type, topic, callback, qos, event_callbacks):
        self.subscriptions[topic] = callback
        return topic

    def destroy_subscription(self, topic):
        del self.subscriptions[topic]


@pytest.fixture
def world():
    node = Node()
    inputs = Inputs(node, "auto", "auto", lambda frame: None, lambda message: None)
    return node, inputs


def film(node, topic, numbers):
    for number in numbers:
        message = Image()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(number * PERIOD, 10**9)
        node.subscriptions[topic](message)


def test_letting_the_other_kind_go_forgets_no_gap(world):
    node, inputs = world
    node.offers["/image"] = ReliabilityPolicy.RELIABLE
    assert set(node.subscriptions) == {"/image", "/image/compressed", "/camera_info"}
    film(node, "/image", range(30))
    inputs.look()
    assert set(node.subscriptions) == {"/image", "/camera_info"}
    film(node, "/image", range(35, 60))
    assert inputs.gaps.loss().missing == 5


def test_what_was_sent_while_the_subscription_was_made_anew_is_not_missed(world):
    node, inputs = world
    node.offers["/image"] = ReliabilityPolicy.RELIABLE
    inputs.look()
    film(node, "/image", range(30))
    node.offers["/image"] = ReliabilityPolicy.BEST_EFFORT
    inputs.look()
    film(node, "/image", range(35, 60))
    assert inputs.gaps.loss().missing == 0


def test_nor_is_what_was_sent_before_the_other_kind_was_taken(world):
    node, inputs = world
    node.offers["/image"] = ReliabilityPolicy.RELIABLE
    inputs.look()
    film(node, "/image", range(30))
    node.offers = {"/image/compressed": ReliabilityPolicy.RELIABLE}
    inputs.look()
    film(node, "/image/compressed", range(35, 60))
    assert inputs.choice == "compressed" and inputs.gaps.loss().missing == 0
