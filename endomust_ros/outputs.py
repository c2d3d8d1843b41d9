"""Publishers of the node: turns depth (H, W) [m], colour and poses into messages that somebody has subscribed to."""

from typing import NamedTuple

from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry, Path
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2


class Output(NamedTuple):
    topic: str
    message_type: type
    depth: int


OUTPUTS = {
    "depth": Output("~/depth/image_rect", Image, 1),
    "compressed_depth": Output("~/depth/image_rect/compressedDepth", CompressedImage, 1),
    "depth_info": Output("~/depth/camera_info", CameraInfo, 1),
    "confidence": Output("~/depth/confidence", Image, 1),
    "color": Output("~/depth/color", Image, 1),
    "color_compressed": Output("~/depth/color/compressed", CompressedImage, 1),
    "rgb": Output("~/rgb/image_rect", Image, 1),
    "points": Output("~/points", PointCloud2, 1),
    "odom": Output("~/odom", Odometry, 10),
    "pose": Output("~/pose", PoseWithCovarianceStamped, 10),
    "path": Output("~/path", Path, 1),
}


class Outputs:
    """One lifecycle publisher for each output. Large messages are kept and filled again."""

    def __init__(self, node):
        self._node = node
        self._publishers = {name: self._create(output) for name, output in OUTPUTS.items()}
        self._spare: dict[str, object] = {}

    def wanted(self, name: str) -> bool:
        """True while somebody subscribes; otherwise the work for it is not done."""
        return self._publishers[name].get_subscription_count() > 0

    def anyone(self) -> bool:
        return any(map(self.wanted, self._publishers))

    def spare(self, name: str):
        """The last message of this output, for its memory; None before the first."""
        return self._spare.get(name)

    def publish(self, name: str, message, keep: bool = False) -> None:
        """Send; `keep` remembers the message so that the next one can use its memory."""
        if keep:
            self._spare[name] = message
        self._publishers[name].publish(message)

    def close(self) -> None:
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers, self._spare = {}, {}

    def _create(self, output: Output):
        # Reliable, because RViz and most tools ask for it; a best-effort subscriber connects too.
        qos = QoSProfile(depth=output.depth, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)
        overrides = QoSOverridingOptions.with_default_policies()
        return self._node.create_lifecycle_publisher(
            output.message_type, output.topic, qos, qos_overriding_options=overrides
        )
