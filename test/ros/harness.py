"""Runs the node in another process and talks to it over DDS: images in, messages, services and log lines out.

Nothing here sleeps: every wait spins until a condition holds, and fails with the node's log when its deadline passes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from mock_bundle import image_of_depth, tilted_plane
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header, String
from std_srvs.srv import SetBool, Trigger

from endomust_core.camera import Camera
from endomust_ros.messages import camera_info_message, rgb_to_image

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 20.0  # s; a loaded machine is slow, a broken node is silent
MOTION_TRANSLATION = (0.001, -0.0005, 0.002)  # m per image, optical axes, inside the default gates
MOTION_ROTATION = (0.0, 0.02, 0.01)  # rad
FRAME = "endoscope_optical_frame"
CAMERA = Camera(160, 128, 150.0, 155.0, 79.0, 64.5)
PLANE = tilted_plane(CAMERA.width, CAMERA.height, left=0.03, right=0.15)
PICTURE = image_of_depth(PLANE)

TOPICS = {
    "depth": ("/endomust/depth/image_rect", Image),
    "depth_info": ("/endomust/depth/camera_info", CameraInfo),
    "color": ("/endomust/depth/color", Image),
    "rgb": ("/endomust/rgb/image_rect", Image),
    "points": ("/endomust/points", PointCloud2),
    "confidence": ("/endomust/depth/confidence", Image),
    "color_compressed": ("/endomust/depth/color/compressed", CompressedImage),
    "pose": ("/endomust/pose", PoseWithCovarianceStamped),
    "path": ("/endomust/path", PathMessage),
    "odom": ("/endomust/odom", Odometry),
    "diagnostics": ("/diagnostics", DiagnosticArray),
    "model_info": ("/endomust/model_info", String),
}
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
    "shutdown from unconfigured": Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    "shutdown from inactive": Transition.TRANSITION_INACTIVE_SHUTDOWN,
    "shutdown from active": Transition.TRANSITION_ACTIVE_SHUTDOWN,
}


class NodeProcess:
    """`python -m endomust_ros.depth_node` with parameters; its log is a file."""

    def __init__(
        self, folder: Path, parameters: dict, arguments: tuple[str, ...] = (), environment: dict | None = None
    ):
        values = {"diagnostics.period": 0.1, "model.threads": 1, **parameters}
        given = [text for name, value in values.items() for text in ("-p", f"{name}:={_yaml(value)}")]
        remaps = ["-r", "image:=/endoscope/image_raw"]
        self._log_path = folder / f"node_{time.monotonic_ns()}.log"
        self._command = [sys.executable, "-m", "endomust_ros.depth_node", "--ros-args", *given, *remaps, *arguments]
        self._forgotten = 0
        self._environment = {**os.environ, "ROS_LOG_DIR": str(folder), "PYTHONPATH": str(ROOT), **(environment or {})}

    def __enter__(self):
        with open(self._log_path, "wb") as log:
            self.process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        current.append(self)
        return self

    def __exit__(self, *error):
        current.remove(self)
        self.end(signal.SIGINT)

    @property
    def log(self) -> str:
        """What the node has said, since `forget` where that was called."""
        return self._log_path.read_bytes()[self._forgotten :].decode(errors="replace")

    def forget(self) -> None:
        self._forgotten = self._log_path.stat().st_size

    def end(self, number: int) -> int:
        """Send the signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the node did not end after signal {number}:\n{self.log}") from None


current: list[NodeProcess] = []  # whose log a failed wait shows


class Probe:
    """The tests' side of the conversation. Everything received is kept by output name in `got`."""

    def __enter__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node(f"probe_{os.getpid()}", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self.got: dict[str, list] = {}
        self._publishers: dict[tuple, object] = {}
        self._clients: dict[str, object] = {}
        self._ticks = 1_700_000_000_000_000_000  # ns
        return self

    def __exit__(self, *error):
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    # ---- waiting ----

    def wait(self, condition: Callable, what: str, deadline: float = DEADLINE):
        """Spin until `condition()` is true and return its value."""
        end = time.monotonic() + deadline
        while not (result := condition()):
            if time.monotonic() > end:
                logs = "\n".join(process.log for process in current)
                raise AssertionError(f"waited {deadline:.0f} s for {what}; the node says:\n{logs}")
            self._executor.spin_once(timeout_sec=0.05)
        return result

    def wait_for_log(self, text: str, process: NodeProcess | None = None) -> str:
        process = process or current[-1]
        self.wait(lambda: text in process.log, f"'{text}' in the log")
        return next(line for line in process.log.splitlines() if text in line)

    # ---- topics ----

    def follow(self, *names: str) -> None:
        """Collect these outputs."""
        for name in names:
            if name not in self.got:
                topic, kind = TOPICS[name]
                durability = DurabilityPolicy.TRANSIENT_LOCAL if name == "model_info" else DurabilityPolicy.VOLATILE
                qos = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE, durability=durability)
                self.got[name] = []
                self.node.create_subscription(kind, topic, self.got[name].append, qos)

    def publisher(self, topic: str, kind, reliability=ReliabilityPolicy.RELIABLE):
        key = topic, reliability
        if key not in self._publishers:
            qos = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=reliability)
            self._publishers[key] = self.node.create_publisher(kind, topic, qos)
        return self._publishers[key]

    def retire(self, topic: str) -> None:
        """Take away the publishers of a topic."""
        for key in [key for key in self._publishers if key[0] == topic]:
            self.node.destroy_publisher(self._publishers.pop(key))

    def header(self, step: float = 0.1, frame: str = FRAME) -> Header:
        """A header whose stamp is `step` seconds after the last one."""
        self._ticks += round(step * 1e9) + 1
        header = Header(frame_id=frame)
        header.stamp.sec, header.stamp.nanosec = divmod(self._ticks, 1_000_000_000)
        return header

    def send(self, message, topic: str = "/endoscope/image_raw", reliability=ReliabilityPolicy.RELIABLE):
        """Publish once somebody listens; returns the message."""
        publisher = self.publisher(topic, type(message), reliability)
        self.wait(publisher.get_subscription_count, f"a subscriber of {topic}")
        publisher.publish(message)
        return message

    def image(self, rgb: np.ndarray = PICTURE, **header) -> Image:
        return rgb_to_image(rgb, self.header(**header))

    def answer(self, message, name: str = "depth"):
        """The output of this name that carries the stamp of `message`."""

        def found():
            return next((out for out in self.got[name] if out.header.stamp == message.header.stamp), None)

        return self.wait(found, f"the {name} of stamp {message.header.stamp}")

    def ask(self, rgb: np.ndarray = PICTURE, name: str = "depth", **header):
        """Send an image and return (what was sent, the answer)."""
        sent = self.send(self.image(rgb, **header))
        return sent, self.answer(sent, name)

    def send_info(self, camera: Camera = CAMERA, **changes) -> CameraInfo:
        message = camera_info_message(camera, self.header(step=0.0))  # or images would look as if some were lost
        for field, value in changes.items():
            setattr(message, field, value)
        return self.send(message, "/endoscope/camera_info")

    def calibrate(self) -> None:
        """Send camera_info and images until the node uses both (two topics keep no common order)."""
        self.got["depth_info"].clear()
        self.wait(lambda: self.send_info() and self.ask() and self.got["depth_info"], "the first depth/camera_info")

    def status(self, task: str) -> dict | None:
        """The newest diagnostics of a task: level, message and values."""
        for array in reversed(self.got["diagnostics"]):
            for entry in array.status:
                if entry.name == f"endomust: {task}":
                    values = {pair.key: pair.value for pair in entry.values}
                    return {"level": entry.level, "message": entry.message, **values}
        return None

    def wait_for_status(self, task: str, condition: Callable[[dict], bool], what: str) -> dict:
        """Only diagnostics that arrive from now on count."""
        self.got["diagnostics"].clear()

        def found():
            newest = self.status(task)
            return newest if newest and condition(newest) else None

        try:
            return self.wait(found, f"diagnostics of {task}: {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}\nlast: {self.status(task)}") from None

    # ---- services ----

    def start_call(self, kind, name: str, request):
        """A future, for what takes long while images go on."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        self._become_known(name)
        self.wait(self._clients[name].service_is_ready, f"the service {name}")
        return self._clients[name].call_async(request)

    def call(self, kind, name: str, request, ask_again: bool = False):
        """The response; `ask_again` repeats a harmless question that met a server which was just coming or going."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        if not ask_again:
            self._become_known(name)
        return self._ask(self._clients[name], name, request, ask_again)

    def _become_known(self, name: str) -> None:
        """Wait until the server knows where to send the answer; before that it is lost, and the request is not.

        DDS announces readers in the order in which they were made. Once a question through a later client is answered,
        the server knows the older ones too.
        """
        service = f"{name.rpartition('/')[0]}/get_state"
        client = self.node.create_client(GetState, service)
        self._ask(client, service, GetState.Request(), ask_again=True)
        self.node.destroy_client(client)

    def _ask(self, client, name: str, request, ask_again: bool):
        self.wait(client.service_is_ready, f"the service {name}")
        futures = [client.call_async(request)]
        asked = time.monotonic()

        def answered():
            nonlocal asked
            if ask_again and time.monotonic() - asked > 1.0:
                asked = time.monotonic()
                futures.append(client.call_async(request))
            return next((future for future in futures if future.done()), None)

        return self.wait(answered, f"an answer of {name}").result()

    def state(self, namespace: str = "") -> str:
        name = f"{namespace}/endomust/get_state"
        return self.call(GetState, name, GetState.Request(), ask_again=True).current_state.label

    def wait_for_state(self, label: str) -> None:
        self.wait(lambda: self.state() == label, f"the state {label}")

    def change_state(self, name: str, namespace: str = "") -> bool:
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[name]
        return self.call(ChangeState, f"{namespace}/endomust/change_state", request).success

    def reset(self):
        return self.trigger("reset_odometry")

    def trigger(self, service: str, **waiting):
        """Call a Trigger service of the node."""
        return self.call(Trigger, f"/endomust/{service}", Trigger.Request(), **waiting)

    def switch(self, service: str, on: bool):
        """Call a SetBool service of the node."""
        return self.call(SetBool, f"/endomust/{service}", SetBool.Request(data=on))

    def set(self, name: str, value):
        """Set one parameter; returns the result with `successful` and `reason`."""
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.call(SetParameters, "/endomust/set_parameters", request).results[0]

    def get(self, name: str):
        return self.call(GetParameters, "/endomust/get_parameters", GetParameters.Request(names=[name])).values[0]

    def describe(self, name: str):
        request = DescribeParameters.Request(names=[name])
        return self.call(DescribeParameters, "/endomust/describe_parameters", request).descriptors[0]


def depth_of(message: Image) -> np.ndarray:
    """(H, W) float32 [m]."""
    return np.frombuffer(message.data, np.float32).reshape(message.height, message.width)


def points_of(message: PointCloud2) -> np.ndarray:
    """(H, W, 4) float32: x, y, z [m] and the packed colour."""
    return np.frombuffer(message.data, np.float32).reshape(message.height, message.width, 4)


def compressed(data: bytes, header: Header, kind: str = "jpeg") -> CompressedImage:
    message = CompressedImage(header=header, format=kind)
    message.data = data
    return message


def _yaml(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value)
