"""Which sender is taken: tf2_ros, else a plain TFMessage, else none, which is said; and when a transform may go out."""

import logging
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from geometry_msgs.msg import TransformStamped

from endomust_core.odometry import matrix_from_quaternion, se3, so3_exp
from endomust_ros import messages
from endomust_ros.parameters import parameters_from
from endomust_ros.tf import Transforms
from endomust_ros.tf_watch import AGAIN, EVERY, FIRST, Parents, TfWatch

ON, AUTO = parameters_from({"tf.publish": "on"}), parameters_from({})


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

    def create_subscription(self, kind, topic, callback, qos):
        self.created.append(SimpleNamespace(topic=topic, kind=kind, callback=callback, qos=qos))
        return self.created[-1]

    def destroy_subscription(self, subscription):
        self.destroyed.append(subscription)

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


def transform(parent, child, translation=(0.0, 0.0, 0.0), rotation=(0.0, 0.0, 0.0)):
    T = se3(so3_exp(np.array(rotation)), np.array(translation))
    return messages.transform_message(T, TransformStamped().header.stamp, parent, child)


def matrix(sent):
    q, t = sent.transform.rotation, sent.transform.translation
    return se3(matrix_from_quaternion((q.x, q.y, q.z, q.w)), np.array([t.x, t.y, t.z]))


def test_tf2_ros_is_taken_where_it_is_installed(install):
    class Real:
        def __init__(self, node):
            self.sent, self.pub_tf = [], node.create_publisher(None, "/tf", 100)

        def sendTransform(self, transform):
            self.pub_tf.publish(transform)

    install(tf2_ros={"TransformBroadcaster": Real}, tf2_msgs={}, tf2_msgs__msg={"TFMessage": message})
    node = FakeNode()
    sender = Transforms(node, Parents(), ON)
    sender.send("T")
    assert sender.sends("camera", ON) and sender.reason == "" and node.created[0].sent == ["T"]
    sender.close()
    assert node.destroyed == node.created


def test_a_plain_message_on_tf_is_sent_where_only_the_messages_are(install):
    install(tf2_msgs={}, tf2_msgs__msg={"TFMessage": message})
    node = FakeNode()
    sender = Transforms(node, Parents(), AUTO)
    sender.send("T")
    assert (sender.reason, node.created[0].topic) == ("", "/tf")
    assert node.created[0].sent == [SimpleNamespace(transforms=["T"])]
    sender.close()
    assert node.destroyed == node.created


def test_without_both_it_is_said_once_and_nothing_is_sent(install, caplog):
    install()
    node = FakeNode()
    sender = Transforms(node, Parents(), AUTO)
    assert not sender.sends("camera", AUTO) and not sender.sends("camera", ON)
    sender.close()
    assert "neither tf2_ros nor tf2_msgs is installed" in sender.reason and not node.created
    assert [record.message for record in caplog.records] == [f"TF is off: {sender.reason}"]


def test_tf_that_is_not_wanted_is_not_looked_for_and_can_be_switched_on_later(install, caplog):
    install(tf2_msgs={}, tf2_msgs__msg={"TFMessage": message})
    node, off = FakeNode(), parameters_from({"tf.publish": "off"})
    sender = Transforms(node, Parents(), off)
    assert not sender.sends("camera", off) and sender.reason == "tf.publish is off"
    assert not node.created and not caplog.records
    assert sender.sends("camera", ON) and sender.reason == ""


def test_a_camera_with_a_parent_gets_no_second_one_unless_it_is_asked_for(install):
    install(tf2_msgs={}, tf2_msgs__msg={"TFMessage": message})
    parents = Parents()
    sender = Transforms(FakeNode(), parents, AUTO)
    assert sender.sends("camera", AUTO)
    parents.see(message([transform("/ecm_tip", "camera")]), ours="odom")
    assert not sender.sends("camera", AUTO)
    assert "camera already has the parent ecm_tip" in sender.reason and "tf.invert" in sender.reason
    assert sender.sends("camera", ON)
    assert sender.sends("camera", parameters_from({"tf.invert": True})), "the camera becomes the parent: no conflict"
    parents.see(message([transform("map", "odom")]))
    assert not sender.sends("camera", parameters_from({"tf.invert": True})), "now odom has another parent"


def test_our_own_transform_is_no_conflict():
    parents = Parents()
    parents.see(message([transform("odom", "camera")]), ours="odom")
    assert parents.conflict("camera", "odom") == ""
    parents.see(message([transform("odom", "camera")]), ours="world")
    assert parents.conflict("camera", "odom") == ""


def test_fixed_transforms_lead_from_one_frame_to_another_and_nothing_else_does():
    parents = Parents()
    up = transform("base", "tip", (0, 0, 0.1), (0, 0, 0.5))
    out = transform("tip", "camera", (0.01, 0, 0), (0.2, 0, 0))
    side = transform("base", "led", (0, 0.02, 0))
    parents.see(message([up, out, side]), static=True)
    wanted = np.linalg.inv(matrix(up) @ matrix(out)) @ matrix(side)
    np.testing.assert_allclose(parents.between("camera", "led"), wanted, atol=1e-12)
    np.testing.assert_allclose(parents.between("camera", "camera"), np.eye(4))
    assert parents.between("camera", "elsewhere") is None
    parents.see(message([transform("elsewhere", "base")]))
    assert parents.between("camera", "elsewhere") is None, "a transform that moves is not fixed"


def test_a_loop_of_fixed_transforms_and_a_broken_one_end_nothing():
    parents, broken = Parents(), transform("b", "c")
    broken.transform.rotation.w = 0.0
    parents.see(message([transform("a", "b"), transform("b", "a"), broken]), static=True)
    assert parents.between("a", "b") is not None and parents.between("a", "c") is None


def test_tf_is_heard_at_the_start_and_now_and_then_and_static_ones_always(install):
    install(tf2_msgs={}, tf2_msgs__msg={"TFMessage": message})
    node, now = FakeNode(), [100.0]
    watch = TfWatch(node, "odom", clock=lambda: now[0])

    def heard():
        watch.look()
        return [s.topic for s in node.created if s not in node.destroyed]

    assert heard() == ["/tf_static", "/tf"]
    now[0] += FIRST + 0.1
    assert heard() == ["/tf_static"]
    now[0] = 100.0 + EVERY + AGAIN / 2
    assert heard() == ["/tf_static", "/tf"]
    now[0] += AGAIN
    assert heard() == ["/tf_static"]
    node.created[0].callback(message([transform("tip", "camera")]))
    assert watch.parents.conflict("camera", "odom") and watch.parents.between("tip", "camera") is not None
    watch.close()
    assert not [s for s in node.created if s not in node.destroyed]


def test_without_the_message_package_nothing_is_heard(install):
    install()
    node = FakeNode()
    watch = TfWatch(node, "odom")
    watch.look()
    watch.close()
    assert not node.created
