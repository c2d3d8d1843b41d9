"""Listens to a node under test: when each depth image, cloud and odometry came, what its diagnostics said, its memory.

Messages stay serialised (only their stamp is read), so that listening takes little of the cores that the node uses.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import String

from endomust_core.benchmarking import core_seconds, resident_mb
from endomust_core.decoding import stamp_ns_from_cdr

OUTPUTS = {
    "depth": ("depth/image_rect", Image),
    "odom": ("odom", Odometry),
    "points": ("points", PointCloud2),
    "confidence": ("depth/confidence", Image),
    "rgb": ("rgb/image_rect", Image),
    "color": ("depth/color", Image),
    "compressed_depth": ("depth/image_rect/compressedDepth", CompressedImage),
}
DEFAULT = ("depth", "odom", "points")
SAMPLE_EVERY = 1.0  # s between two looks at memory and cores


@dataclass
class Heard:
    """Everything that came, in the order in which it came."""

    arrivals: dict[str, dict[int, int]] = field(default_factory=lambda: {name: {} for name in OUTPUTS})  # stamp → ns
    diagnostics: list[tuple[int, dict[str, dict[str, str]]]] = field(
        default_factory=list
    )  # arrival [ns], task → values
    model_info: str = ""


class Monitor:
    """Context manager; subscribes under `namespace` and listens on its own thread."""

    def __init__(self, namespace: str, outputs: Sequence[str] = DEFAULT):
        self.heard = Heard()
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
        self._node = rclpy.create_node("benchmark_monitor", context=self._context, start_parameter_services=False)
        for name in outputs:
            topic, kind = OUTPUTS[name]
            self._listen(kind, f"{namespace}/endomust/{topic}", self._note(name))
        self._listen(DiagnosticArray, f"{namespace}/diagnostics", self._take_diagnostics)
        self._listen(String, f"{namespace}/endomust/model_info", self._take_info, DurabilityPolicy.TRANSIENT_LOCAL)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="benchmark-monitor", daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *unused) -> None:
        self._executor.shutdown(timeout_sec=2.0)
        self._thread.join(timeout=5.0)
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def renew(self) -> Heard:
        """Start to note anew, for a node that starts; returns the new notes."""
        self.heard = Heard()
        return self.heard

    def sees(self, topic: str) -> bool:
        """True once somebody publishes it."""
        return self._node.count_publishers(topic) > 0

    def _listen(self, kind, topic: str, take: Callable, durability=DurabilityPolicy.VOLATILE) -> None:
        reliable = ReliabilityPolicy.RELIABLE
        qos = QoSProfile(depth=10, history=HistoryPolicy.KEEP_LAST, reliability=reliable, durability=durability)
        self._node.create_subscription(kind, topic, take, qos, raw=True)

    def _note(self, name: str) -> Callable[[bytes], None]:
        def take(cdr: bytes) -> None:
            self.heard.arrivals[name].setdefault(stamp_ns_from_cdr(cdr), time.time_ns())

        return take

    def _take_diagnostics(self, cdr: bytes) -> None:
        self.heard.diagnostics.append((time.time_ns(), tasks_of(deserialize_message(cdr, DiagnosticArray))))

    def _take_info(self, cdr: bytes) -> None:
        self.heard.model_info = deserialize_message(cdr, String).data

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass


def tasks_of(message: DiagnosticArray) -> dict[str, dict[str, str]]:
    """{'input': {'received': '30', …}, 'inference': …} of the statuses `<node>: <task>`."""
    found = {}
    for status in message.status:
        task = status.name.rpartition(": ")[2]
        found[task] = {"message": status.message, **{pair.key: pair.value for pair in status.values}}
    return found


def stages_of(tasks: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Diagnostics → {'depth': {'p50': ms, …}, …} of the inference and, as `age`, of the input."""
    stages: dict[str, dict[str, float]] = {}
    for task in ("input", "inference"):
        for key, value in tasks.get(task, {}).items():
            found = re.fullmatch(r"(.+) \[(m?s)\] (p\d+|max)", key)
            if found:
                stage, unit, measure = found.groups()
                stages.setdefault(stage, {})[measure] = float(value) * (1e3 if unit == "s" else 1)
    return stages


class Sampler:
    """Context manager: a look every second at the memory of a process [MB] and at how busy all cores are [%]."""

    def __init__(self, pid: int, every: float = SAMPLE_EVERY):
        self.times: list[float] = []  # s since the start
        self.resident: list[float] = []  # MB
        self.busy: list[float] = []  # % of all cores since the look before
        self._pid, self._every, self._stop = pid, every, threading.Event()
        self._thread = threading.Thread(target=self._run, name="benchmark-sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *unused) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        start, before = time.monotonic(), core_seconds()
        while True:
            try:
                self.resident.append(resident_mb(self._pid))
            except OSError:
                return  # it has ended; who started it says so
            self.times.append(time.monotonic() - start)
            if self._stop.wait(self._every):
                return
            now = core_seconds()
            if now[1] > before[1]:
                self.busy.append(100 * (now[0] - before[0]) / (now[1] - before[1]))
            before = now
