"""Poses of the odometry → nav_msgs/Path: two a second, the newest thousand or two; what RViz draws as a line."""

from collections import deque

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path as PathMessage
from std_msgs.msg import Header

from endomust_ros.messages import pose_of, stamp_message

PERIOD_NS = 500_000_000
LENGTH = 1200  # ten minutes


class Path:
    """`add` for every pose; `message` is what goes out. Belongs to the worker thread, but for `clear`."""

    def __init__(self, length: int = LENGTH):
        self._poses: deque = deque(maxlen=length)
        self._last: int | None = None

    def add(self, stamp_ns: int, state) -> bool:
        """True, and the pose is kept, twice a second of image time. A lost pose is none."""
        due = self._last is None or not 0 <= stamp_ns - self._last < PERIOD_NS
        if not due or state.state == "LOST":
            return False
        self._last = stamp_ns
        self._poses.append((stamp_ns, state.T_odom_camera))  # a message of the same takes ten times the memory
        return True

    def clear(self) -> None:
        """Begin a new line."""
        self._poses.clear()
        self._last = None

    def message(self, stamp, frame: str) -> PathMessage:
        """All poses kept, in the odometry frame."""
        path = PathMessage(header=Header(stamp=stamp, frame_id=frame))
        path.poses = [
            PoseStamped(header=Header(stamp=stamp_message(stamp_ns), frame_id=frame), pose=pose_of(T))
            for stamp_ns, T in list(self._poses)
        ]
        return path
