"""Sends T_odom_camera to /tf: by tf2_ros where installed, as a plain TFMessage where only tf2_msgs is, else not at all.

`Transforms` decides whether a transform may go out; `reason` says why not, and is empty when transforms go out.
"""


class Transforms:
    """`sends(child, p)` is asked for every pose, and `send` does it. A frame gets no second parent from us."""

    def __init__(self, node, parents, parameters):
        """`parents` is what is known of /tf (tf_watch.py)."""
        self._node, self._parents = node, parents
        self.reason = ""
        self._missing = ""
        self._sender = None
        if parameters.tf_publish != "off":
            self._open()
        else:
            self.reason = "tf.publish is off"

    def sends(self, child: str, p) -> bool:
        """True where a transform between frames.odom and `child` may go out now."""
        if p.tf_publish == "off":
            self.reason = "tf.publish is off"
            return False
        if self._sender is None and not self._missing:
            self._open()
        self.reason = self._missing or self._conflict(child, p)
        return not self.reason

    def send(self, transform) -> None:
        """Publish one TransformStamped."""
        self._sender.send(transform)

    def close(self) -> None:
        """Take the publisher down."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def _conflict(self, child: str, p) -> str:
        if p.tf_publish == "on":
            return ""
        ends = (p.frames_odom, child) if p.tf_invert else (child, p.frames_odom)
        return self._parents.conflict(*ends)

    def _open(self) -> None:
        for kind in (Tf2RosSender, TopicSender):
            try:
                self._sender = kind(self._node)
                return
            except ImportError:
                continue
        self._missing = "neither tf2_ros nor tf2_msgs is installed; odometry is still published as a topic"
        self.reason = self._missing
        self._node.get_logger().warning(f"TF is off: {self._missing}")


class Tf2RosSender:
    """The usual way, on every full ROS installation."""

    def __init__(self, node):
        from tf2_ros import TransformBroadcaster

        self._node = node
        self._broadcaster = TransformBroadcaster(node)
        self.send = self._broadcaster.sendTransform

    def close(self) -> None:
        publisher = getattr(self._broadcaster, "pub_tf", None)
        if publisher is not None:
            self._node.destroy_publisher(publisher)


class TopicSender:
    """The same message on the same topic, where the message package is installed without the tf2 library."""

    def __init__(self, node):
        from tf2_msgs.msg import TFMessage

        self._node, self._message = node, TFMessage
        self._publisher = node.create_publisher(TFMessage, "/tf", 100)

    def send(self, transform) -> None:
        self._publisher.publish(self._message(transforms=[transform]))

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)
