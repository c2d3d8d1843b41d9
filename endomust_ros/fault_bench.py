"""The live node in its own process and what is said to it: messages, parameters, services; its answers are checked."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import Parameter
from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from endomust_core.decoding import stamp_ns
from endomust_ros import fault_messages as hostile
from endomust_ros.benchmark_monitor import tasks_of
from endomust_ros.fault_scenarios import NEVER, RECOVERY
from endomust_ros.process import NodeProcess

START_TIMEOUT = 120.0  # s until a node answers its first image
GIVE_UP = 20.0  # s after which a node that does not answer is started anew
REPORT_EVERY = 0.1  # s, diagnostics.period of the node under test
TOPICS = {"image": "image_raw", "compressed": "image_raw/compressed", "camera_info": "camera_info"}
OUTPUTS = {
    "depth": ("depth/image_rect", Image, hostile.depth_complaint),
    "depth_info": ("depth/camera_info", CameraInfo, hostile.info_complaint),
    "odom": ("odom", Odometry, hostile.odometry_complaint),
    "points": ("points", PointCloud2, hostile.cloud_complaint),
    "confidence": ("depth/confidence", Image, hostile.confidence_complaint),
    "pose": ("pose", PoseWithCovarianceStamped, hostile.pose_complaint),
}


class CampaignError(RuntimeError):
    """The campaign cannot go on; the message says what to do next."""


class Probe:
    """Publishes to the node, calls its services, and checks everything that it publishes. One thread: `spin` works."""

    def __init__(self, namespace: str):
        self.namespace = namespace
        self.answers: dict[str, dict[int, float]] = {name: {} for name in OUTPUTS}  # stamp [ns] → arrival [s]
        self.tasks: dict[str, dict[str, str]] = {}  # newest diagnostics
        self.reports = 0
        self.received: Counter[str] = Counter()
        self.complaints: Counter[str] = Counter()
        self.sent: set[int] = set()  # stamps [ns] that an answer may carry
        self.any_stamp = False  # while another process sends images
        self.images = 0  # sent to the two image topics
        self._newest = 0
        self._publishers: dict[str, object] = {}
        self._clients: dict[str, object] = {}
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
        self.node = rclpy.create_node("fault_probe", context=self._context, start_parameter_services=False)
        self.executor = SingleThreadedExecutor(context=self._context)
        self.executor.add_node(self.node)
        for name, (topic, kind, complaint) in OUTPUTS.items():
            self._listen(kind, f"{namespace}/endomust/{topic}", self._checked(name, complaint))
        self._listen(DiagnosticArray, f"{namespace}/diagnostics", self._diagnosed)

    def close(self) -> None:
        self.executor.shutdown(timeout_sec=2.0)
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def spin(self, seconds: float) -> None:
        self.wait(lambda: False, seconds)

    def wait(self, condition: Callable, seconds: float):
        """Listen until `condition()` is true, and return its value; the last (false) one after `seconds`."""
        end = time.monotonic() + seconds
        while not (found := condition()) and (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=min(left, 0.02))
        return found

    def header(self) -> Header:
        """Stamped now, and always later than the one before."""
        self._newest = max(time.time_ns(), self._newest + 1000)
        header = Header(frame_id=hostile.FRAME)
        header.stamp.sec, header.stamp.nanosec = divmod(self._newest, 10**9)
        return header

    def publisher(self, topic: str, kind, reliability=ReliabilityPolicy.RELIABLE, depth: int = 5):
        """The one publisher of `topic` (below the namespace where it has no slash in front)."""
        topic = topic if topic.startswith("/") else f"{self.namespace}/{topic}"
        if topic not in self._publishers:
            qos = QoSProfile(depth=depth, history=HistoryPolicy.KEEP_LAST, reliability=reliability)
            self._publishers[topic] = self.node.create_publisher(kind, topic, qos)
        return self._publishers[topic]

    def retire(self, topic: str) -> None:
        """Take the publisher of a topic away, where there is one."""
        publisher = self._publishers.pop(f"{self.namespace}/{topic}", None)
        if publisher is not None:
            self.node.destroy_publisher(publisher)

    def send(self, topic: str, kind, content, **qos) -> int:
        """Publish a message or CDR bytes; returns its stamp [ns] (of bytes: as little-endian says it)."""
        publisher = self.publisher(topic, kind, **qos)
        if isinstance(content, bytes):
            stamps = [int.from_bytes(content[4:8], order, signed=True) * 10**9 for order in ("little", "big")]
            nanos = [int.from_bytes(content[8:12], order) for order in ("little", "big")]
            stamps = [a + b for a, b in zip(stamps, nanos, strict=True)]
        else:
            stamps = [stamp_ns(content)]
        self.sent.update(stamps)
        self.images += topic in (TOPICS["image"], TOPICS["compressed"])
        publisher.publish(content)
        return stamps[0]

    def call(self, kind, name: str, request, patience: float = 5.0, meanwhile: Callable = lambda: None):
        """The response of the node's service, or None when none came; `meanwhile` is called every tenth of a second."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, f"{self.namespace}/endomust/{name}")
        client = self._clients[name]
        if not self.wait(client.service_is_ready, patience):
            return None
        future, end = client.call_async(request), time.monotonic() + patience
        while not self.wait(future.done, 0.1) and time.monotonic() < end:
            meanwhile()
        if not future.done():
            client.remove_pending_request(future)
            return None
        return future.result()

    def services(self, kind: str = "std_srvs/srv/Trigger") -> list[str]:
        """Names below ~/ of the node's services of a certain type."""
        found = self._by_node(self.node.get_service_names_and_types_by_node)
        return sorted(name.rpartition("/endomust/")[2] for name, kinds in found.items() if kind in kinds)

    def subscriptions(self) -> dict[str, str]:
        """Topic → type of everything that the node listens to."""
        found = self._by_node(self.node.get_subscriber_names_and_types_by_node)
        return {name: kinds[0] for name, kinds in found.items()}

    def _by_node(self, ask: Callable) -> dict[str, list[str]]:
        try:
            return dict(ask("endomust", self.namespace))
        except Exception:  # rclpy raises NodeNameNonExistentError, which is not in the same place in every distribution
            return {}

    def _listen(self, kind, topic: str, take: Callable) -> None:
        qos = QoSProfile(depth=50, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)
        self.node.create_subscription(kind, topic, take, qos)

    def _checked(self, name: str, complaint: Callable) -> Callable:
        def take(message) -> None:
            stamp = stamp_ns(message)
            self.received[name] += 1
            self.answers[name].setdefault(stamp, time.monotonic())
            self._complain(complaint(message))
            if stamp not in self.sent and not self.any_stamp:
                self._complain(f"{name} carries a stamp that no image had")

        return take

    def _diagnosed(self, message: DiagnosticArray) -> None:
        self.received["diagnostics"] += 1
        self.reports += 1
        self.tasks = tasks_of(message)
        self._complain(hostile.diagnostics_complaint(message))

    def _complain(self, sentence: str | None) -> None:
        if sentence:
            self.complaints[re.sub(r"\d+", "#", sentence)] += 1


class Bench:
    """The node under test in its process, the probe, and what both do together."""

    def __init__(self, probe: Probe, folder: Path, model: Path | None, rng: np.random.Generator):
        self.probe, self.folder, self.model, self.rng = probe, folder, model, rng
        self.transport = "image"
        self.node: NodeProcess | None = None
        self.logs: list[Path] = []
        self.baseline: dict[str, object] = {}
        self.configured = 0  # times that it was configured anew, and its counts with it

    def start(self, parameters: Mapping[str, object] | None = None) -> float:
        """A new node in place of the old one; returns the seconds from its start to the first answer."""
        self.launch(parameters)
        self._meet()
        self.baseline = self.values()
        return time.monotonic() - self.node.started

    def launch(self, parameters: Mapping[str, object] | None = None) -> None:
        """A new node in place of the old one, without waiting for it."""
        self.stop()
        self.logs.append(self.folder / f"node_{len(self.logs)}.log")
        home = {name: str(self.folder / "home") for name in ("HOME", "ROS_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
        home["ROS_LOG_DIR"] = str(self.folder / "ros_log")
        self.node = NodeProcess("endomust_ros.depth_node", self._arguments(parameters or {}), self.logs[-1], home)

    def stop(self) -> None:
        if self.node is not None:
            self.node.stop()
            self.node = None

    def log(self) -> str:
        """Everything that the present node has said."""
        return self.logs[-1].read_text(encoding="utf-8", errors="replace")

    def ask(
        self, send: Callable[[], int], output: str = "depth", patience: float = GIVE_UP, again: float = 0.5
    ) -> float:
        """`send` images (it returns the stamp) until one is answered; returns how long that took [s], inf for never."""
        begin, stamps, came = time.monotonic(), [], self.probe.answers[output]
        while time.monotonic() - begin < patience and self.node.alive():
            stamps.append(send())
            if self.probe.wait(lambda: any(stamp in came for stamp in stamps), again):
                return time.monotonic() - begin
        return NEVER

    def good(self, patience: float = GIVE_UP) -> float:
        """Seconds until a good image is answered."""
        return self.ask(self.send_good, patience=patience)

    def calibrate(self, patience: float = GIVE_UP) -> float:
        """Send the calibration until odometry comes; returns how long that took [s]."""

        def send() -> int:
            self.probe.send(TOPICS["camera_info"], CameraInfo, hostile.good_info(self.probe.header()))
            return self.send_good()

        return self.ask(send, "odom", patience, again=0.25)

    def use(self, transport: str) -> None:
        """Publish raw images or compressed ones: only one of the two topics has a publisher."""
        if transport != self.transport:
            self.probe.retire(TOPICS[self.transport])
            self.transport = transport
        publisher = self.probe.publisher(TOPICS[transport], hostile.TYPES[transport])
        self.probe.wait(publisher.get_subscription_count, RECOVERY)
        if self.good() == NEVER:
            raise CampaignError(f"the node does not answer {transport} images\n{self.node.last_words()}")

    def state(self) -> str:
        """Of the lifecycle; empty where the node does not say."""
        response = self.probe.call(GetState, "get_state", GetState.Request())
        return response.current_state.label if response else ""

    def change(self, number: int) -> bool:
        """Ask for a transition."""
        request = ChangeState.Request()
        request.transition.id = number
        response = self.probe.call(ChangeState, "change_state", request, 30.0)
        done = bool(response and response.success)
        self.configured += done and number == Transition.TRANSITION_CONFIGURE
        return done

    def activate(self) -> bool:
        """Bring the node to the state active from wherever it is."""
        step = {"unconfigured": Transition.TRANSITION_CONFIGURE, "inactive": Transition.TRANSITION_ACTIVATE}
        for _ in range(4):
            state = self.state()
            if state == "active":
                return True
            if state in step:
                self.change(step[state])
        return False

    def unconfigure(self) -> bool:
        """Bring the node to the state unconfigured."""
        step = {"active": Transition.TRANSITION_DEACTIVATE, "inactive": Transition.TRANSITION_CLEANUP}
        for _ in range(4):
            state = self.state()
            if state == "unconfigured":
                return True
            if state in step:
                self.change(step[state])
        return False

    def values(self) -> dict[str, object]:
        """Parameter → value, as messages."""
        listed = self.probe.call(ListParameters, "list_parameters", ListParameters.Request())
        names = sorted(listed.result.names) if listed else []
        found = self.probe.call(GetParameters, "get_parameters", GetParameters.Request(names=names))
        return dict(zip(names, found.values, strict=True)) if found and len(found.values) == len(names) else {}

    def set(self, parameters: list[Parameter]) -> list[bool]:
        """One by one; whether each was taken."""
        response = self.probe.call(SetParameters, "set_parameters", SetParameters.Request(parameters=parameters))
        return [result.successful for result in response.results] if response else []

    def restore(self) -> None:
        """All parameters as they were at the start; static ones need a node that is not configured."""
        for attempt in range(2):
            now = self.values()
            wrong = [
                Parameter(name=name, value=value) for name, value in self.baseline.items() if now.get(name) != value
            ]
            # Twice, because a lower limit may not pass an upper one that is still to be restored.
            if not wrong or (all(self.set(wrong + wrong)[len(wrong) :]) and attempt == 0):
                return
            self.unconfigure()
        raise CampaignError(f"parameters could not be set back: {', '.join(p.name for p in wrong)}")

    def settle(self, patience: float = RECOVERY) -> dict[str, int]:
        """Counts on /diagnostics once nothing is in work: all images explained, or nothing new for `patience` [s].

        On a busy machine an image may be in work for several reports.
        """
        seen: dict[str, int] = {}
        end = time.monotonic() + patience
        self._next_report(patience)  # what is on its way may be older than the question
        while time.monotonic() < end and self._next_report(patience):
            counts = counts_of(self.probe.tasks)
            if counts != seen:
                seen, end = counts, time.monotonic() + patience
            if seen and not unexplained(seen):
                break
        return seen

    def _next_report(self, patience: float) -> bool:
        heard = self.probe.reports
        return bool(self.probe.wait(lambda: self.probe.reports > heard, patience))

    def send_good(self) -> int:
        """One good image; returns its stamp [ns]."""
        make = hostile.good_image if self.transport == "image" else hostile.good_compressed
        message = make(self.rng, self.probe.header())
        return self.probe.send(TOPICS[self.transport], type(message), message)

    def _meet(self) -> None:
        begin = time.monotonic()
        while self.good(0.6) == NEVER:
            self.node.check()
            if time.monotonic() - begin > START_TIMEOUT:
                raise CampaignError(f"the node answers nothing\n{self.node.last_words()}")
        if self.calibrate(GIVE_UP) == NEVER:
            raise CampaignError(f"the node does not take the calibration\n{self.node.last_words()}")

    def _arguments(self, parameters: Mapping[str, object]) -> list[str]:
        space = self.probe.namespace
        remaps = {
            "__ns": space,
            "image": f"{space}/image_raw",
            "/diagnostics": f"{space}/diagnostics",
            "/tf": f"{space}/tf",
        }
        values = {"diagnostics.period": REPORT_EVERY, "model.threads": 1, "points.max_rate": 0.0, "scale.window": 1.0}
        values |= parameters
        if self.model is not None:
            values.setdefault("model.path", str(self.model.resolve()))
        arguments = ["--ros-args"]
        for name, value in remaps.items():
            arguments += ["--remap", f"{name}:={value}"]
        for name, value in values.items():
            arguments += ["--param", f"{name}:={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}"]
        return arguments


def counts_of(tasks: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """received, answered, failures and every 'dropped …' of the diagnostics; {} from a node that is not active."""
    found = {}
    for task in ("input", "inference"):
        for key, value in tasks.get(task, {}).items():
            if key in ("received", "answered", "failures") or key.startswith("dropped "):
                found[key] = int(value)
    return found


def unexplained(counts: Mapping[str, int]) -> int:
    """Images that were received and of which nothing is said; below 0 where one was counted twice."""
    return counts.get("received", 0) - sum(value for key, value in counts.items() if key != "received")
