"""Faults around a running node, one function each: bench with a live node → Outcome with the seconds to recover [s].

Usable means: a good image is answered with depth. The seconds count from when the cause has gone. A feature that the
node does not have gives an Outcome without a verdict. As a program, this file is a camera or a listener to be killed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from lifecycle_msgs.msg import Transition
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from endomust_core.bundle import default_bundle
from endomust_core.recording import RecordingReader
from endomust_ros import fault_messages as hostile
from endomust_ros.messages import camera_info_message, rgb_to_image
from endomust_ros.process import NodeProcess

RECOVERY = 2.0  # s within which a good image must be answered once the cause has gone
NEVER = float("inf")
RATE = 25.0  # images a second of the camera process
AT_ONCE = 8  # service requests on their way; ROS keeps ten
IMAGES, INFOS = "image_raw", "camera_info"


@dataclass(frozen=True)
class Outcome:
    """`passed` is None where the node lacks what the scenario is about; `recovery_s` [s] the longest that was seen."""

    passed: bool | None
    recovery_s: float | None
    detail: str
    seconds: float = 0.0  # that the scenario took

    @staticmethod
    def of(recovery: float, detail: str, sound: bool = True) -> Outcome:
        """Passed where `sound` and usable again in time."""
        known = None if recovery == NEVER else recovery
        return Outcome(sound and recovery <= RECOVERY, known, detail if known is not None else f"never again; {detail}")


# ---- the camera -----------------------------------------------------------------------------------------------------


def camera_killed(bench) -> Outcome:
    """SIGKILL to the camera's process, a second of nothing, and a new camera."""
    with _only_the_camera(bench):
        with _camera(bench, "camera_1") as first:
            began = _first_image(bench, first)
            sound = _first_answer(bench, began) < NEVER
            os.kill(first.pid, signal.SIGKILL)
        bench.probe.spin(1.0)
        with _camera(bench, "camera_2") as second:
            began = _first_image(bench, second)
            took = _first_answer(bench, began)
    return Outcome.of(took, "from the first image of the new camera", sound)


def camera_killed_and_compressed(bench) -> Outcome:
    """SIGKILL to a camera of raw images, and a new one of JPEG; DDS believes for some 20 s that the first lives."""
    with _only_the_camera(bench):
        with _camera(bench, "camera_raw") as first:
            sound = _first_answer(bench, _first_image(bench, first)) < NEVER
            os.kill(first.pid, signal.SIGKILL)
        bench.transport = "compressed"
        took = bench.ask(bench.send_good, patience=40.0)
        bench.probe.retire("image_raw/compressed")
        bench.transport = "image"
    return Outcome.of(took, "from the first JPEG", sound)


def camera_changes(bench) -> Outcome:
    """Another QoS, encoding, size and calibration while it runs, and compressed images instead of raw ones."""
    probe, worst, slow = bench.probe, 0.0, []
    send = _sender(bench)
    small = hostile.CAMERA.resized(96, 80)
    steps: dict[str, tuple[Callable, str]] = {
        "best effort": (lambda: send(reliability=ReliabilityPolicy.BEST_EFFORT), "depth"),
        "reliable": (lambda: send(), "depth"),
        **{name: (lambda name=name: send(encoding=name), "depth") for name in ("bgr8", "mono8", "bgra8", "yuv422")},
        "96x80": (lambda: send(size=(96, 80)), "depth"),
        "calibration of 96x80": (lambda: (_calibrate(bench, small), send(size=(96, 80)))[1], "odom"),
        "160x128 again": (lambda: (_calibrate(bench, hostile.CAMERA), send())[1], "odom"),
    }
    for name, (step, output) in steps.items():
        if name in ("best effort", "reliable"):
            probe.retire(IMAGES)
        took = bench.ask(step, output)
        worst = max(worst, took)
        slow += [f"{name} {took:.1f} s"] if took > RECOVERY else []
    for transport in ("compressed", "image"):
        begin = time.monotonic()
        bench.use(transport)
        took = time.monotonic() - begin
        worst = max(worst, took)
        slow += [f"{transport} {took:.1f} s"] if took > RECOVERY else []
    detail = f"the slowest of {len(steps) + 2} changes" + (f"; too slow: {', '.join(slow)}" if slow else "")
    return Outcome.of(worst, detail)


def bag_loops(bench, loops: int = 10, images: int = 12) -> Outcome:
    """The same stamps again and again, as a bag that is played in a loop."""
    probe, worst = bench.probe, 0.0
    stamps = [probe.header().stamp.sec * 10**9 + 40_000_000 * number for number in range(images)]
    jumps = _number(probe.tasks, "stamp jumps")
    for _ in range(loops):
        for number, stamp in enumerate(stamps):
            probe.answers["depth"].clear()
            took = bench.ask(lambda stamp=stamp: _send(bench, _header(stamp)), again=1.0)
            worst = max(worst, took if number == 0 else 0.0)
    bench.settle()
    counted = _number(probe.tasks, "stamp jumps") - jumps
    return Outcome.of(worst, f"{loops} loops of {images} images, {counted} jumps counted", counted >= loops - 1)


def two_cameras(bench) -> Outcome:
    """Two publishers on one topic, one reliable and one not, whose stamps are half a second apart; then one leaves."""
    probe = bench.probe
    other = probe.node.create_publisher(Image, f"{probe.namespace}/{IMAGES}", rclpy.qos.qos_profile_sensor_data)
    answered = 0
    probe.answers["depth"].clear()
    for _ in range(40):
        header = probe.header()
        header.stamp.sec -= 1
        late = hostile.good_image(bench.rng, header)
        probe.sent.add(_nanoseconds(late))
        other.publish(late)
        bench.send_good()
        probe.spin(0.04)
    answered = len(probe.answers["depth"])
    probe.node.destroy_publisher(other)
    took = bench.good()
    return Outcome.of(took, f"{answered} of 80 images answered meanwhile", answered > 0)


def burst(bench, images: int = 500) -> Outcome:
    """All images of 20 s at once."""
    probe = bench.probe
    probe.retire(IMAGES)
    publisher = probe.publisher(IMAGES, Image, depth=images)
    probe.wait(publisher.get_subscription_count, RECOVERY)
    before = bench.settle()
    for _ in range(images):
        bench.send_good()
    took = bench.good()
    after = bench.settle()
    change = {key: after[key] - before.get(key, 0) for key in after}
    left = change["received"] - sum(n for key, n in change.items() if key != "received")
    words = f"{change['received']} of {images + 1} reached the node, {change['answered']} answered, {left} unexplained"
    return Outcome.of(took, words, left == 0)


# ---- the clock ------------------------------------------------------------------------------------------------------


def clock_jumps(bench) -> Outcome:
    """use_sim_time, and a clock that jumps an hour forward, then an hour back."""
    from rosgraph_msgs.msg import Clock

    probe = bench.probe
    now, begin = [10_000 * 10**9], time.monotonic_ns()
    publisher = probe.node.create_publisher(Clock, "/clock", 10)

    def sim() -> int:
        return now[0] + time.monotonic_ns() - begin

    def tick() -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(sim(), 10**9)
        publisher.publish(message)

    timer = probe.node.create_timer(0.02, tick)
    try:
        bench.start({"use_sim_time": True})
        took = [bench.ask(lambda: _send(bench, _header(sim())), "odom")]
        for jump in (3600, -3600):
            probe.spin(0.5)
            now[0] += jump * 10**9
            took.append(bench.ask(lambda: _send(bench, _header(sim())), "odom"))
        reports = probe.reports
        probe.spin(0.5)
        sound = probe.reports > reports
    finally:
        probe.node.destroy_timer(timer)
        probe.node.destroy_publisher(publisher)
        bench.start()
    words = f"start {took[0]:.2f} s, forward {took[1]:.2f} s, back {took[2]:.2f} s"
    return Outcome.of(max(took), words + ("" if sound else "; diagnostics stopped"), sound)


# ---- files ----------------------------------------------------------------------------------------------------------


def model_damaged(bench) -> Outcome:
    """The model's file cut, overwritten, swapped, removed: configure must refuse in words, then take the right one."""
    root, right = _own_model(bench)
    bench.start({"model.path": str(root)})
    worst, wrong, said = 0.0, [], 0
    for name, damage in _damages(right).items():
        damage(root / "depth.onnx")
        if bench.good() > RECOVERY:
            wrong.append(f"{name}: the loaded model was lost")
        bench.unconfigure()
        taken = bench.change(Transition.TRANSITION_CONFIGURE)
        state, before = bench.state(), said
        said = bench.log().count("configure failed")
        if taken or state != "unconfigured" or said == before:
            wrong.append(f"{name}: configure {'took it' if taken else f'left {state}'}, {said - before} sentences")
        (root / "depth.onnx").write_bytes(right)
        begin = time.monotonic()
        worst = max(worst, (bench.activate() and bench.good() + time.monotonic() - begin) or NEVER)
    bench.start()
    return Outcome.of(worst, "; ".join(wrong) or "4 damages refused in words; the time includes loading", not wrong)


def model_reloaded(bench) -> Outcome:
    """~/reload_model with a damaged file keeps the old model; with the right one it works again."""
    if "reload_model" not in bench.probe.services():
        return Outcome(None, None, "the node has no service ~/reload_model")
    root, right = _own_model(bench)
    bench.start({"model.path": str(root)})
    worst, wrong = 0.0, []
    for name, damage in _damages(right).items():
        damage(root / "depth.onnx")
        answer = bench.probe.call(Trigger, "reload_model", Trigger.Request(), 60.0, bench.send_good)
        if answer is None or answer.success or not answer.message:
            wrong.append(f"{name}: {'no answer' if answer is None else f'success={answer.success} {answer.message!r}'}")
        if bench.good() > RECOVERY:
            wrong.append(f"{name}: the old model was lost")
        (root / "depth.onnx").write_bytes(right)
        begin = time.monotonic()
        answer = bench.probe.call(Trigger, "reload_model", Trigger.Request(), 60.0, bench.send_good)
        if answer is None or not answer.success:
            wrong.append(f"{name}: the right file was refused: {answer and answer.message}")
        worst = max(worst, bench.good() + time.monotonic() - begin)
    bench.start()
    return Outcome.of(worst, "; ".join(wrong) or "4 damages refused in words; the time includes loading", not wrong)


def disk_full(bench) -> Outcome:
    """~/snapshot while no file may grow (RLIMIT_FSIZE of the node's process, as a disk without room)."""
    if "snapshot" not in bench.probe.services():
        return Outcome(None, None, "the node has no service ~/snapshot")

    def snapshot() -> tuple[bool, str]:
        answer = bench.probe.call(Trigger, "snapshot", Trigger.Request(), 20.0, bench.send_good)
        if answer is None:
            return False, "no answer"
        return answer.success, answer.message.replace(str(bench.folder), "…")

    bench.start()
    worked, said = snapshot()
    if not worked:
        return Outcome(False, None, f"even with room: {said}")
    hard = resource.prlimit(bench.node.pid, resource.RLIMIT_FSIZE)[1]
    room = bench.logs[-1].stat().st_size + 4096  # the log is a file too
    resource.prlimit(bench.node.pid, resource.RLIMIT_FSIZE, (room, hard))
    taken, said = snapshot()
    meanwhile = bench.good()
    resource.prlimit(bench.node.pid, resource.RLIMIT_FSIZE, (hard, hard))
    begin = time.monotonic()
    worked, again = snapshot()
    took = time.monotonic() - begin if worked else NEVER
    detail = f"said: {said}" + ("" if worked else f"; with room again: {again}")
    return Outcome.of(max(took, meanwhile), detail, not taken and said != "no answer")


def recorded_node_killed(bench) -> Outcome:
    """SIGKILL to the node while its answers are recorded, and a new node; the recording must be readable."""
    from endomust_ros.recorder import Recorder, Topic

    path = bench.folder / "killed.mcap"
    space = bench.probe.namespace
    topics = [Topic(f"{space}/endomust/depth/image_rect", "sensor_msgs/msg/Image")]
    topics.append(Topic(f"{space}/diagnostics", "diagnostic_msgs/msg/DiagnosticArray"))
    node = rclpy.create_node("fault_recorder", context=bench.probe.node.context, start_parameter_services=False)
    with _only_the_camera(bench), _camera(bench, "camera_3") as camera:
        recorder = Recorder(node, path, topics)
        sound = _first_answer(bench, _first_image(bench, camera)) < NEVER
        bench.probe.spin(0.5)
        os.kill(bench.node.pid, signal.SIGKILL)
        killed_ns = time.time_ns()
        bench.probe.spin(0.3)
        bench.probe.answers["depth"].clear()
        started, reports = time.monotonic(), bench.probe.reports
        bench.launch()
        bench.probe.wait(lambda: bench.probe.reports > reports, 60.0)
        ready = time.monotonic()
        bench.probe.wait(lambda: bench.probe.answers["depth"], 20.0)
        first = min(bench.probe.answers["depth"].values(), default=NEVER)
        bench.probe.spin(0.5)
        recorder.close()
    node.destroy_node()
    before, after = _recorded(path, topics[0].name, killed_ns)
    detail = (
        f"process start {ready - started:.1f} s (not counted); recorded {before} depth images before, {after} after"
    )
    return Outcome.of(max(0.0, first - ready), detail, sound and before > 0 and after > 0)


# ---- processes ------------------------------------------------------------------------------------------------------


def node_stopped(bench, seconds: float = 3.0) -> Outcome:
    """SIGSTOP for 3 s while images come, then SIGCONT."""
    os.kill(bench.node.pid, signal.SIGSTOP)
    try:
        for _ in range(int(RATE * seconds)):
            bench.send_good()
            bench.probe.spin(1 / RATE)
    finally:
        os.kill(bench.node.pid, signal.SIGCONT)
    return Outcome.of(bench.good(), f"stopped for {seconds:g} s")


def listener_dies(bench) -> Outcome:
    """A slow listener of depth and cloud, killed while messages are on their way to it."""
    arguments = ["listener", "--namespace", bench.probe.namespace]
    worst = 0.0
    with NodeProcess("endomust_ros.fault_scenarios", arguments, bench.folder / "listener.log") as listener:
        log = bench.folder / "listener.log"
        heard = bench.probe.wait(
            lambda: (bench.send_good(), bench.probe.spin(0.05), "heard" in log.read_text())[2], 20.0
        )
        for _ in range(5):
            bench.good()
        os.kill(listener.pid, signal.SIGKILL)
        for _ in range(25):
            worst = max(worst, bench.good())
            bench.probe.spin(1 / RATE)
    return Outcome.of(worst, "the slowest of 25 answers after it", bool(heard))


def parameter_storm(bench, calls: int = 300) -> Outcome:
    """Hundreds of settings as fast as they are answered, eight on their way at once, while images come."""
    probe, rng = bench.probe, bench.rng
    client = probe.node.create_client(SetParameters, f"{probe.namespace}/endomust/set_parameters")
    probe.wait(client.service_is_ready, 5.0)
    futures, begin = [], time.monotonic()
    for number in range(calls):
        setting = [
            Parameter("depth.max_range", value=float(rng.uniform(0.1, 1.0))),
            Parameter("points.stride", value=int(rng.integers(1, 9))),
            Parameter("scale.factor", value=float(rng.uniform(0.5, 2.0))),
            Parameter("odom.enable", value=bool(rng.integers(2))),
        ][number % 4]
        futures.append(client.call_async(SetParameters.Request(parameters=[setting.to_parameter_msg()])))
        if number % 10 == 0:
            bench.send_good()
        probe.wait(lambda: sum(not future.done() for future in futures[-100:]) < AT_ONCE, 5.0)
    probe.wait(lambda: all(future.done() for future in futures), 10.0)
    seconds, answered = time.monotonic() - begin, sum(future.done() for future in futures)
    taken = sum(future.done() and future.result().results[0].successful for future in futures)
    probe.node.destroy_client(client)
    bench.restore()
    took = max(bench.good(), bench.calibrate())
    words = f"{answered} of {calls} settings answered in {seconds:.1f} s, {taken} taken"
    return Outcome.of(took, words, taken == calls)


SCENARIOS: dict[str, Callable] = {
    "camera changes": camera_changes,  # before any camera is killed, as DDS believes for 20 s that a dead one lives
    "bag loops": bag_loops,
    "two cameras": two_cameras,
    "burst": burst,
    "clock jumps": clock_jumps,
    "model damaged": model_damaged,
    "model reloaded": model_reloaded,
    "disk full": disk_full,
    "node killed": recorded_node_killed,
    "node stopped": node_stopped,
    "listener dies": listener_dies,
    "parameter storm": parameter_storm,
    "camera killed": camera_killed,
    "camera killed, then JPEG": camera_killed_and_compressed,
}


# ---- pieces ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _only_the_camera(bench) -> Iterator[None]:
    """The probe publishes no image, and takes every stamp: those of another process are not known to it."""
    bench.probe.retire(IMAGES)
    bench.probe.any_stamp = True
    try:
        yield
    finally:
        bench.probe.spin(0.2)
        bench.probe.any_stamp = False
        bench.use("image")


def _camera(bench, name: str) -> NodeProcess:
    arguments = ["camera", "--namespace", bench.probe.namespace]
    return NodeProcess("endomust_ros.fault_scenarios", arguments, bench.folder / f"{name}.log")


def _first_image(bench, camera: NodeProcess) -> float:
    """When the camera sent its first image [s, monotonic]."""
    said = bench.probe.wait(lambda: re.search(r"first ([\d.]+)", camera.last_words()), 30.0)
    camera.check()
    bench.probe.answers["depth"].clear()
    return float(said[1])


def _first_answer(bench, since: float) -> float:
    """Seconds from `since` to the first depth image that comes from now on."""
    found = bench.probe.wait(lambda: list(bench.probe.answers["depth"].values()), 20.0)
    return min(found) - since if found else NEVER


def _own_model(bench) -> tuple[Path, bytes]:
    """A copy of the bundle that may be damaged, and the right bytes of its depth network."""
    root = bench.folder / "model"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(bench.model or default_bundle(), root)
    return root, (root / "depth.onnx").read_bytes()


def _damages(right: bytes) -> dict[str, Callable[[Path], object]]:
    return {
        "cut short": lambda file: file.write_bytes(right[: len(right) // 2]),
        "overwritten": lambda file: file.write_bytes(np.random.default_rng(0).bytes(len(right))),
        "swapped": lambda file: shutil.copy(file.with_name("pose.onnx"), file),
        "removed": lambda file: file.unlink(),
    }


def _recorded(path: Path, topic: str, moment_ns: int) -> tuple[int, int]:
    """Messages of a topic in a recording, before and after a moment."""
    with RecordingReader(path) as reader:
        times = [stamp for _, _, stamp, _ in reader.messages([topic])]
    return sum(at < moment_ns for at in times), sum(at >= moment_ns for at in times)


def _sender(bench) -> Callable[..., int]:
    """A function that sends one good image of a certain size, encoding and reliability; returns its stamp [ns]."""
    import cv2

    def send(encoding: str = "rgb8", size: tuple[int, int] | None = None, **qos) -> int:
        rgb = hostile.picture(bench.rng)
        rgb = rgb if size is None else cv2.resize(rgb, size)
        return _send(bench, bench.probe.header(), _encoded(rgb, encoding), encoding, **qos)

    return send


def _encoded(rgb: np.ndarray, encoding: str) -> np.ndarray:
    gray = rgb[..., :1]
    made = {
        "rgb8": rgb,
        "bgr8": rgb[..., ::-1],
        "mono8": gray,
        "bgra8": np.concatenate([rgb[..., ::-1], gray], axis=-1),
        "yuv422": np.concatenate([np.full_like(gray, 128), gray], axis=-1),
    }
    return np.ascontiguousarray(made[encoding])


def _send(bench, header: Header, pixels: np.ndarray | None = None, encoding: str = "rgb8", **qos) -> int:
    message = rgb_to_image(hostile.picture(bench.rng), header)
    if pixels is not None:
        message.height, message.width = pixels.shape[:2]
        message.encoding, message.step = encoding, pixels.shape[1] * pixels.shape[2]
        message.data = pixels.tobytes()
    return bench.probe.send(IMAGES, Image, message, **qos)


def _calibrate(bench, camera) -> None:
    bench.probe.send(INFOS, CameraInfo, camera_info_message(camera, bench.probe.header()))
    bench.probe.spin(0.02)


def _header(stamp_ns: int) -> Header:
    header = Header(frame_id=hostile.FRAME)
    header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return header


def _nanoseconds(message) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def _number(tasks: dict, key: str) -> int:
    return int(tasks.get("input", {}).get(key, 0))


# ---- the processes that are killed ----------------------------------------------------------------------------------


def main(args: list[str] | None = None) -> int:
    """`camera` publishes good images until it is stopped; `listener` takes half a second for each answer."""
    parser = argparse.ArgumentParser(prog="python -m endomust_ros.fault_scenarios", description=__doc__.split("\n")[0])
    parser.add_argument("role", choices=("camera", "listener"))
    parser.add_argument("--namespace", required=True)
    options = parser.parse_args(args)
    rclpy.init(args=[])
    node = rclpy.create_node(f"fault_{options.role}", namespace=options.namespace, start_parameter_services=False)
    with contextlib.suppress(KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        {"camera": _run_camera, "listener": _run_listener}[options.role](node)
    return 0


def _run_camera(node) -> None:
    rng = np.random.default_rng(0)
    images, infos = node.create_publisher(Image, IMAGES, 5), node.create_publisher(CameraInfo, INFOS, 5)
    said = False
    while rclpy.ok():
        header = _header(time.time_ns())
        infos.publish(hostile.good_info(header))
        images.publish(hostile.good_image(rng, header))
        if not said:
            sys.stdout.write(f"first {time.monotonic()}\n")
            sys.stdout.flush()
            said = True
        time.sleep(1 / RATE)


def _run_listener(node) -> None:
    def take(message) -> None:
        sys.stdout.write("heard\n")
        sys.stdout.flush()
        time.sleep(0.5)

    for topic, kind in (("depth/image_rect", Image), ("points", PointCloud2)):
        node.create_subscription(kind, f"endomust/{topic}", take, 10)
    rclpy.spin(node)


if __name__ == "__main__":
    sys.exit(main())
