"""Records the answers of one node to an MCAP file until SIGINT or SIGTERM: python -m endomust_ros.record OUT.mcap."""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

import rclpy

from endomust_core.recording import RecordingError
from endomust_ros.dds_profile import ProfileError
from endomust_ros.outputs import OUTPUTS
from endomust_ros.player import PlayError, message_class
from endomust_ros.recorder import Recorder, Topic
from endomust_ros.transport import fast_dds_environment

# Pictures and clouds can be made again from depth and colour; asking for them would cost the node time.
LEFT_OUT = ("color", "color_compressed", "compressed_depth", "rgb", "points", "path")


def topics_of(node: str, rgb: bool = False) -> list[Topic]:
    """What is recorded of the node with this full name, `rgb` with its images; types not installed here stay out."""
    answers = [
        Topic(output.topic.replace("~", node, 1), _type_name(output.message_type), depth=max(10, output.depth))
        for name, output in OUTPUTS.items()
        if name not in LEFT_OUT or (rgb and name == "rgb")
    ]
    others = [
        Topic(f"{node}/model_info", "std_msgs/msg/String", depth=1, latched=True, stamped=False),
        Topic("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray"),
        Topic("/tf", "tf2_msgs/msg/TFMessage", depth=100, stamped=False),
    ]
    return [topic for topic in [*answers, *others] if _installed(topic.msgtype)]


def file_for(out: str, now: time.struct_time | None = None) -> Path:
    """A name that ends in .mcap stays; a folder gets a file named after the time."""
    path = Path(out).expanduser()
    if path.suffix == ".mcap":
        return path
    return path / time.strftime("answers-%Y%m%d-%H%M%S.mcap", now or time.localtime())


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 with a recording, 2 without; what happened is in the log."""
    options = _parse(arguments)
    log = rclpy.logging.get_logger("endomust_record")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        path = _record(file_for(options.out), topics_of(options.node, options.rgb), stop, log)
    except (RecordingError, PlayError, ProfileError, OSError) as error:
        log.error(f"nothing is recorded: {error}")
        return 2
    log.info(f"recorded {path}")
    return 0


def _record(path: Path, topics: list[Topic], stop: threading.Event, log) -> Path:
    os.environ.update(fast_dds_environment(os.environ))
    path.parent.mkdir(parents=True, exist_ok=True)
    context = rclpy.Context()
    rclpy.init(args=[], context=context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node("endomust_record", context=context, start_parameter_services=False)
        recorder = Recorder(node, path, topics)
        log.info(f"recording {topics[0].name} and {len(topics) - 1} other topics to {path}")
        stop.wait()
        try:
            return recorder.close()
        finally:
            if recorder.dropped:
                log.warning(f"the disk was too slow for {recorder.dropped} messages, which are not in the recording")
            node.destroy_node()
    finally:
        rclpy.shutdown(context=context)


def _type_name(message_type: type) -> str:
    return f"{message_type.__module__.partition('.')[0]}/msg/{message_type.__name__}"


def _installed(msgtype: str) -> bool:
    try:
        return message_class(msgtype) is not None
    except PlayError:
        return False


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Record the answers of one node until Ctrl-C.")
    parser.add_argument("out", help="a file that ends in .mcap, or a folder")
    parser.add_argument("--node", default="/endomust", help="full name of the node (default /endomust)")
    parser.add_argument("--rgb", action="store_true", help="record the images too, at the size of the depth")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
