"""Sends T_odom_camera to /tf: by tf2_ros where installed, as a plain TFMessage where only tf2_msgs is, else not at all.

`broadcaster(node)` returns an object with `send(TransformStamped)`, and `reason`, empty when transforms go out.
"""


def broadcaster(node, wanted: bool = True):
    """The best broadcaster this machine offers; a silent one, that says why, when TF is not wanted or not installed."""
    if not wanted:
        return SilentBroadcaster("tf.publish is false")
    for kind in (Tf2RosBroadcaster, TopicBroadcaster):
        try:
            return kind(node)
        except ImportError:
            continue
    silent = SilentBroadcaster("neither tf2_ros nor tf2_msgs is installed; odometry is still published as a topic")
    node.get_logger().warning(f"TF is off: {silent.reason}")
    return silent


class Tf2RosBroadcaster:
    """The usual way, on every full ROS installation."""

    reason = ""

    def __init__(self, node):
        from tf2_ros import TransformBroadcaster

        self._node = node
        self._broadcaster = TransformBroadcaster(node)
        self.send = self._broadcaster.sendTransform

    def close(self) -> None:
        publisher = getattr(self._broadcaster, "pub_tf", None)
        if publisher is not None:
            self._node.destroy_publisher(publisher)


class TopicBroadcaster:
    """The same message on the same topic, where the message package is installed without the tf2 library."""

    reason = ""

    def __init__(self, node):
        from tf2_msgs.msg import TFMessage

        self._node, self._message = node, TFMessage
        self._publisher = node.create_publisher(TFMessage, "/tf", 100)

    def send(self, transform) -> None:
        self._publisher.publish(self._message(transforms=[transform]))

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)


class SilentBroadcaster:
    """Takes transforms and sends none."""

    def __init__(self, reason: str):
        self.reason = reason

    def send(self, transform) -> None:
        pass

    def close(self) -> None:
        pass
