"""Which broadcaster is taken: tf2_ros, else a plain TFMessage, else none, which is said; with stand-ins for both."""

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from endomust_ros.tf import broadcaster


class FakeNode:
    def __init__(self):
        self.created, self.destroyed = [], []

    def create_publisher(self, kind, topic, depth):
        publisher = SimpleNamespace(topic=topic, kind=kind, sent=[])
        publisher.publish = publisher.sent.append
        self.created.append(publisher)
        return publisher

    def destroy_publisher(self, publisher):
        self.destroyed.append(publisher)

    def get_logger(self):
        return logging.getLogger("tf")


@pytest.fixture
def install(monkeypatch):
    """Pretend that exactly these modules are installed."""

    def pretend(**modules):
        for name in ("tf2_ros", "tf2_msgs", "tf2_msgs.msg"):
            monkeypatch.setitem(sys.modules, name, None)  # import raises ImportError
        for name, content in modules.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name.replace("__", "."), module)

    return pretend


def message(transforms):
    return SimpleNamespace(transforms=transforms)


def test_tf2_ros_is_taken_where_it_is_installed(install):
    class Real:
        def __init__(self, node):
            self.sent, self.pub_tf = [], node.create_publisher(None, "/tf", 100)

        def sendTransform(self, transform):
            self.pub_tf.publish(transform)

    install(tf2_ros={"TransformBroadcaster": Real}, tf2_msgs={}, tf2_msgs__msg={"TFMessage": message})
    node = FakeNode()
    sender = broadcaster(node)
    sender.send("T")
    assert sender.reason == "" and node.created[0].sent == ["T"]
    sender.close()
    assert node.destroyed == node.created


def test_a_plain_message_on_tf_is_sent_where_only_the_messages_are(install):
    install(tf2_msgs={}, tf2_msgs__msg={"TFMessage": message})
    node = FakeNode()
    sender = broadcaster(node)
    sender.send("T")
    assert (sender.reason, node.created[0].topic) == ("", "/tf")
    assert node.created[0].sent == [SimpleNamespace(transforms=["T"])]
    sender.close()
    assert node.destroyed == node.created


def test_without_both_it_is_said_once_and_nothing_is_sent(install, caplog):
    install()
    node = FakeNode()
    sender = broadcaster(node)
    sender.send("T")
    sender.close()
    assert "neither tf2_ros nor tf2_msgs is installed" in sender.reason and not node.created
    assert [record.message for record in caplog.records] == [f"TF is off: {sender.reason}"]


def test_tf_that_is_not_wanted_is_not_looked_for(install, caplog):
    install(tf2_msgs={}, tf2_msgs__msg={"TFMessage": message})
    node = FakeNode()
    assert broadcaster(node, wanted=False).reason == "tf.publish is false"
    assert not node.created and not caplog.records
