"""The whole chain on one machine: recording → node in its own process → recording of its answers, report, table.

Times are monotonic seconds of this process: latency runs from just before an image is published to the moment its
depth arrives, both measured here. Exit code 0 when at least 95 % of the images were answered with depth.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node
from rclpy.serialization import deserialize_message

from endomust_core.decoding import stamp_ns_from_cdr
from endomust_core.recording import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    DEPTH_PNG_TOPIC,
    DEPTH_TOPIC,
    POSE_TOPIC,
    RecordingError,
    RecordingReader,
)
from endomust_core.report import write_page
from endomust_core.resources import bundle_path, share
from endomust_core.results import Topics, results_of
from endomust_ros.dds_profile import ProfileError
from endomust_ros.demo_report import Run, demo_page, table
from endomust_ros.player import Played, Player, PlayError, message_class
from endomust_ros.process import NodeProcess, NodeProcessError, ProcessUse
from endomust_ros.recorder import Recorder, Topic
from endomust_ros.transport import SHARED_MEMORY, fast_dds_environment

SHIPPED = ("models", "demo", "endoscope.mcap")
ENOUGH = 0.95  # share of images that must be answered
START_TIMEOUT = 60.0  # s until the node answers; a busy machine takes its time to load Python packages
READY_TIMEOUT = 120.0  # s for the node to load its model
DISCOVERY = 1.0  # s after which DDS knows who else is there
CONNECT_TIMEOUT = 15.0  # s until DDS has connected both processes
SILENT = f"the node runs but does not answer: DDS does not connect two processes here (firewall, {SHARED_MEMORY}?)"
SILENCE = 1.0  # s without an answer after the last image, until the demo believes that none will come
CLOUDS_PER_SECOND = 5.0  # a cloud is as large as a depth image; five show enough and keep the recording small

NODE = "/endomust"
DEPTH, ODOM, POINTS, MODEL_INFO = f"{NODE}/depth/image_rect", f"{NODE}/odom", f"{NODE}/points", f"{NODE}/model_info"
OUTPUTS = [
    # depth/color is not asked for: the report paints depth itself. rgb/image_rect is the input, which is recorded.
    Topic(DEPTH, "sensor_msgs/msg/Image"),
    Topic(f"{NODE}/depth/camera_info", "sensor_msgs/msg/CameraInfo"),
    Topic(ODOM, "nav_msgs/msg/Odometry"),
    Topic(POINTS, "sensor_msgs/msg/PointCloud2"),
    Topic(MODEL_INFO, "std_msgs/msg/String", depth=1, latched=True, stamped=False),
    Topic("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray"),
    Topic("/tf", "tf2_msgs/msg/TFMessage", depth=100, stamped=False),
]


class DemoError(RuntimeError):
    """The demo cannot go on; the message says what to do next."""


def main(arguments: list[str] | None = None) -> int:
    """`endomust demo`: returns the exit code; prints what it does and a table."""
    options = _parse(arguments)
    try:
        return demo(options.recording, options.out, options.bundle, options.node_argument)
    except (DemoError, NodeProcessError, PlayError, ProfileError, RecordingError, FileNotFoundError) as error:
        print(f"endomust demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("endomust demo: stopped; the node was stopped too", file=sys.stderr)
        return 130


def demo(recording: Path | None, out: Path, bundle: Path | None = None, node_arguments: list[str] | None = None) -> int:
    """Run everything and write out/recording.mcap, report.html and node.log; 0 when enough images were answered."""
    os.environ.update(fast_dds_environment(os.environ))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")  # a demo has no business on other machines
    source = recording or shipped_recording()
    out.mkdir(parents=True, exist_ok=True)
    with RecordingReader(source) as reader:
        image_topic = reader.image_topic()
        frames = reader.count(image_topic)
        _say(1, f"recording {source}: {frames} images in {reader.duration_s:.1f} s")
        run = _play_through_node(reader, image_topic, out, bundle, node_arguments or [])
    _say(5, "comparing the answers with the ground truth in the recording")
    with RecordingReader(out / "recording.mcap") as answers:
        topics = Topics(image_topic, DEPTH, ODOM, POINTS, POSE_TOPIC, (DEPTH_TOPIC, DEPTH_PNG_TOPIC))
        results = results_of(answers, topics)
    command = _command(recording, out, bundle, node_arguments or [])
    write_page(out / "report.html", demo_page(source, run, results, command))
    _say(6, f"wrote {out / 'report.html'}, {out / 'recording.mcap'} and {out / 'node.log'}")
    print()
    for name, value in table(run, results):
        print(f"  {name:<22} {value}")
    return _verdict(run)


def shipped_recording() -> Path:
    """The recording that comes with the project; DemoError says how to get by without it."""
    try:
        return share(*SHIPPED)
    except FileNotFoundError as error:
        raise DemoError(
            f"the demo's recording is missing: {error}\n"
            "A recording of your own will do, endomust import makes one of a video: endomust demo --recording FILE.mcap"
        ) from error


def _command(recording: Path | None, out: Path, bundle: Path | None, node_arguments: list[str]) -> str:
    """What to type to do this again."""
    words = ["endomust", "demo", "--out", str(out)]
    words += [] if recording is None else ["--recording", str(recording)]
    words += [] if bundle is None else ["--bundle", str(bundle)]
    return shlex.join(words + [f"--node-argument={argument}" for argument in node_arguments])


# ---- playing ----


def _play_through_node(
    reader: RecordingReader, image_topic: str, out: Path, bundle: Path | None, node_arguments: list[str]
) -> Run:
    context = rclpy.Context()
    rclpy.init(args=[], context=context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    node = rclpy.create_node("endomust_demo", context=context, start_parameter_services=False)
    arguments = _node_arguments(reader, image_topic, bundle) + node_arguments
    try:
        _refuse_company(node, image_topic)
        with NodeProcess("endomust_ros.depth_node", arguments, out / "node.log") as process:
            _say(2, f"node started as process {process.pid}, its log is {out / 'node.log'}")
            change_state = node.create_client(ChangeState, f"{NODE}/change_state")
            recorder = Recorder(node, out / "recording.mcap", _recordable())
            try:
                _become_known(node, process)
                _request(change_state, Transition.TRANSITION_CONFIGURE, process)
                _request(change_state, Transition.TRANSITION_ACTIVATE, process)
                run = _drive(node, reader, image_topic, recorder, process)
            except BaseException:
                recorder.abandon()
                raise
            recorder.close()
            code = process.stop()
            if code != 0:
                raise DemoError(f"the node ended with code {code} after SIGINT instead of 0\n{process.last_words()}")
        run.dropped = recorder.dropped
        return run
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def _drive(node: Node, reader: RecordingReader, image_topic: str, recorder: Recorder, process: NodeProcess) -> Run:
    model = _model_info(recorder, process)
    provider, depth = model.get("provider", "?"), model.get("depth_network", "?")
    _say(3, f"model {model.get('name')} {model.get('version')} is ready on {provider} (depth network {depth})")
    player = Player(node, reader)
    _wait_until_connected(node, player, [image_topic, *_camera_info(reader, image_topic)], process)
    _say(4, f"playing {reader.duration_s:.1f} s in real time and recording the answers")
    run = Run(image_topic, Played(), ProcessUse(), model=model)
    stamped = {t: reader.has_header(reader.topics[t]) for t in player.topics}

    def on_sent(topic: str, log_ns: int, cdr: bytes, at: float) -> None:
        if topic == image_topic:
            run.sent[stamp_ns_from_cdr(cdr)] = at
        if stamped[topic]:  # the answers carry the new stamps, so their inputs are recorded with them too
            recorder.put(topic, reader.topics[topic], cdr, stamp_ns_from_cdr(cdr))

    before = process.use()
    run.played = player.play(now=True, on_sent=on_sent, stop=lambda: not process.alive())
    _wait_for_the_last_answer(recorder, len(run.sent), process)
    run.use = process.use() - before
    process.check()
    run.depth_at, run.odom_at = recorder.first_arrivals(DEPTH), recorder.first_arrivals(ODOM)
    player.close()
    return run


def _node_arguments(reader: RecordingReader, image_topic: str, bundle: Path | None) -> list[str]:
    compressed = reader.topics[image_topic] == COMPRESSED_IMAGE
    values = {
        "autostart": "false",  # configured from here, so that a failure is an answer and not a silence
        "input.transport": "compressed" if compressed else "raw",
        "points.max_rate": CLOUDS_PER_SECOND,
    }
    if bundle is not None:
        values["model.path"] = str(bundle.resolve())
    remaps = [("image/compressed" if compressed else "image", image_topic)]
    remaps += [("camera_info", topic) for topic in _camera_info(reader, image_topic)]
    arguments = ["--ros-args"]
    for name, topic in remaps:
        arguments += ["--remap", f"{name}:={topic}"]
    for name, value in values.items():
        arguments += ["--param", f"{name}:={value}"]
    return arguments


def _camera_info(reader: RecordingReader, image_topic: str) -> list[str]:
    """The camera_info that shares the longest beginning with the image's name; none when nothing is calibrated."""
    topics = sorted(t for t, kind in reader.topics.items() if kind == CAMERA_INFO)
    return sorted(topics, key=lambda t: -len(os.path.commonprefix([t, image_topic])))[:1]


def _recordable() -> list[Topic]:
    """The outputs whose message package is installed; pip wheels have no tf2_msgs."""
    found = []
    for topic in OUTPUTS:
        with contextlib.suppress(PlayError):
            message_class(topic.msgtype)
            found.append(topic)
    return found


def _become_known(node: Node, process: NodeProcess) -> None:
    """Wait until the node knows where to send its answers; before that they are lost, and the requests are not.

    DDS announces readers in the order in which they were made: once a question through this last client is answered,
    the clients made before it are known too.
    """
    client, asked = node.create_client(GetState, f"{NODE}/get_state"), []

    def answered() -> bool:
        if client.service_is_ready() and (not asked or time.monotonic() - asked[-1][0] > 1.0):
            asked.append((time.monotonic(), client.call_async(GetState.Request())))
        return any(future.done() for _, future in asked)

    _wait(answered, START_TIMEOUT, process, SILENT)


def _request(change_state, transition: int, process: NodeProcess) -> None:
    """Ask the node for a lifecycle transition; DemoError with its log when it says no or nothing."""
    name = {Transition.TRANSITION_CONFIGURE: "configure", Transition.TRANSITION_ACTIVATE: "activate"}[transition]
    future = change_state.call_async(ChangeState.Request(transition=Transition(id=transition)))
    _wait(future.done, READY_TIMEOUT, process, f"the node did not {name} within {READY_TIMEOUT:.0f} s")
    if not future.result().success:
        raise DemoError(f"the node could not {name}\n{process.last_words()}")


def _wait(condition: Callable[[], bool], seconds: float, process: NodeProcess, otherwise: str) -> None:
    """Until the condition holds; DemoError with the sentence and the node's log when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        process.check()
        if time.monotonic() > deadline:
            raise DemoError(f"{otherwise}\n{process.last_words()}")
        time.sleep(0.02)


def _model_info(recorder: Recorder, process: NodeProcess) -> dict:
    missing = f"{MODEL_INFO} did not come within {CONNECT_TIMEOUT:.0f} s although the node is configured"
    _wait(lambda: MODEL_INFO in recorder.latest, CONNECT_TIMEOUT, process, missing)
    return json.loads(deserialize_message(recorder.latest[MODEL_INFO], message_class("std_msgs/msg/String")).data)


def _refuse_company(node: Node, image_topic: str) -> None:
    """A running system must neither receive the demo's images nor be configured by it."""
    time.sleep(DISCOVERY)
    names = [name for name in node.get_fully_qualified_node_names() if name == NODE]
    strangers = names or [f"/{p.node_name}" for p in node.get_publishers_info_by_topic(image_topic)]
    if strangers:
        does = "is running" if names else f"publishes {image_topic}"
        raise DemoError(
            f"{strangers[0]} {does} already; stop it, or give the demo its own domain: ROS_DOMAIN_ID=42 endomust demo"
        )


def _wait_until_connected(node: Node, player: Player, inputs: list[str], process: NodeProcess) -> None:
    missing = player.wait_for_subscribers(inputs, CONNECT_TIMEOUT)
    process.check()
    if missing:
        raise DemoError(
            f"DDS did not connect: the node does not listen to {', '.join(missing)} after {CONNECT_TIMEOUT:.0f} s\n"
            f"{process.last_words()}"
        )
    unseen = f"DDS did not connect: {DEPTH} is not announced within {CONNECT_TIMEOUT:.0f} s"
    _wait(lambda: node.count_publishers(DEPTH) > 0, CONNECT_TIMEOUT, process, unseen)
    time.sleep(0.5)  # the other direction of the match, which only the node can see


def _wait_for_the_last_answer(recorder: Recorder, wanted: int, process: NodeProcess) -> None:
    count, since = recorder.count(DEPTH), time.monotonic()
    while count < wanted and time.monotonic() < since + SILENCE and process.alive():
        time.sleep(0.05)
        if (now := recorder.count(DEPTH)) > count:
            count, since = now, time.monotonic()


def _verdict(run: Run) -> int:
    answered = run.share(run.depth_at)
    if answered >= ENOUGH:
        return 0
    print(
        f"endomust demo: only {answered:.1%} of the images were answered with depth, {ENOUGH:.0%} are expected; "
        "close other programs, or play slower: this machine may be too slow for the model",
        file=sys.stderr,
    )
    return 1


def _say(step: int, words: str) -> None:
    print(f"{step}/6 {words}", flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="endomust demo", description="Play a recording through the node and report.")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for results (default out/demo)")
    parser.add_argument("--recording", type=Path, help="a recording of your own (default: the one that ships)")
    parser.add_argument("--bundle", type=bundle_path, help="model bundle (default: endomust-tiny)")
    parser.add_argument(
        "--node-argument", action="append", metavar="ARG", help="pass to the node, for example --node-argument=-p"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
