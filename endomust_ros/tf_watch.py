"""What others say on /tf and /tf_static: who the parent of a frame is, and fixed transforms between frames.

Listening to /tf costs a Python node processor time with every message, so it is done for a few seconds at the start and
for one second twice a minute; /tf_static is silent and is heard all the time.
"""

import threading
import time
from collections.abc import Callable

import numpy as np
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from endomust_core.odometry import inverse, matrix_from_quaternion, se3

FIRST, AGAIN, EVERY = 3.0, 1.0, 30.0  # s of listening at the start, and later, and between
DEPTH = 100  # messages of /tf that may wait
LONGEST_CHAIN = 100  # frames; a longer one is a loop


class Parents:
    """Who is whose parent, from TFMessages. Safe from every thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._parents: dict[str, str] = {}
        self._static: dict[str, tuple[str, np.ndarray]] = {}  # child → parent, T_parent_child

    def see(self, message, static: bool = False, ours: str = "") -> None:
        """Take a TFMessage. What names `ours` as parent is our own transform, or would not harm it."""
        for transform in message.transforms:
            parent, child = transform.header.frame_id.lstrip("/"), transform.child_frame_id.lstrip("/")
            with self._lock:
                if parent != ours:
                    self._parents[child] = parent
                if static and (T := _matrix(transform.transform)) is not None:
                    self._static[child] = parent, T

    def conflict(self, child: str, parent: str) -> str:
        """Why `parent` → `child` must not be sent: a frame has one parent. Empty where nothing speaks against it."""
        with self._lock:
            known = self._parents.get(child)
        if known is None or known == parent:
            return ""
        return f"{child} already has the parent {known}; set tf.invert, frames.base, or tf.publish off"

    def between(self, frame: str, other: str) -> np.ndarray | None:
        """(4,4) T_frame_other [m] by fixed transforms alone; None where there is no chain of them."""
        with self._lock:
            static = dict(self._static)
        one, two = _up(static, frame), _up(static, other)
        common = next((name for name in one if name in two), None)
        return None if common is None else inverse(one[common]) @ two[common]


class TfWatch:
    """Feeds a `Parents` from the two topics; `look` is called a few times a second. Nothing without tf2_msgs."""

    def __init__(self, node, ours: str, clock: Callable[[], float] = time.monotonic):
        self.parents = Parents()
        self._node, self._ours, self._clock = node, ours, clock
        self._started = clock()
        self._dynamic = self._fixed = None
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError:
            self._type = None
            return
        self._type = TFMessage
        latched = DurabilityPolicy.TRANSIENT_LOCAL
        self._fixed = self._subscribe("/tf_static", True, durability=latched)
        self.look()

    def look(self) -> None:
        """Listen to /tf when it is time, and stop when it is not."""
        if self._type is None:
            return
        since = self._clock() - self._started
        due = since < FIRST or since % EVERY < AGAIN
        if due and self._dynamic is None:
            self._dynamic = self._subscribe("/tf", False)
        elif not due and self._dynamic is not None:
            self._node.destroy_subscription(self._dynamic)
            self._dynamic = None

    def close(self) -> None:
        """Listen no more."""
        for subscription in (self._dynamic, self._fixed):
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        self._dynamic = self._fixed = None

    def _subscribe(self, topic: str, static: bool, durability=DurabilityPolicy.VOLATILE):
        qos = QoSProfile(
            depth=DEPTH,
            history=HistoryPolicy.KEEP_LAST,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=durability,
        )
        take = lambda message: self.parents.see(message, static, self._ours)  # noqa: E731
        return self._node.create_subscription(self._type, topic, take, qos)


def _matrix(transform) -> np.ndarray | None:
    """Transform → (4,4); None where it is none."""
    q, t = transform.rotation, transform.translation
    place = np.array([t.x, t.y, t.z])
    try:
        return se3(matrix_from_quaternion((q.x, q.y, q.z, q.w)), place) if np.isfinite(place).all() else None
    except ValueError:
        return None


def _up(static: dict, frame: str) -> dict[str, np.ndarray]:
    """Every ancestor of a frame, and itself → (4,4) T_ancestor_frame, the nearest first."""
    T, found = np.eye(4), {frame: np.eye(4)}
    while frame in static and len(found) < LONGEST_CHAIN:
        frame, T_parent_child = static[frame]
        if frame in found:
            break
        T = T_parent_child @ T
        found[frame] = T
    return found
