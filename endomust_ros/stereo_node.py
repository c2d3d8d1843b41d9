"""Two `endomust` nodes in one process, left and right of a stereo endoscope, with one set of networks between them.

stereo_node --namespace /endoscope --left-image /davinci/left/image_raw --right-image /davinci/right/image_raw
            [--ros-args --params-file FILE]

The nodes are /endoscope/left/endomust and /endoscope/right/endomust; a parameter file names them, or both as /**.
"""

import argparse
import os
import sys

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from endomust_core.shared_engines import SharedEngines
from endomust_ros.dds_profile import ProfileError
from endomust_ros.depth_node import SPIN_PERIOD, stop_on_signals
from endomust_ros.node import EndomustNode
from endomust_ros.parameters import ParameterError
from endomust_ros.stereo import StereoCheck
from endomust_ros.transport import dds_profile, fast_dds_environment

SIDES = ("left", "right")


def make_nodes(args: argparse.Namespace) -> dict[str, EndomustNode]:
    """Both nodes, with their own remappings and one opener of networks. Raises ParameterError."""
    opener = SharedEngines()
    nodes = {}
    for side in SIDES:
        remaps = [("image", getattr(args, f"{side}_image")), ("camera_info", getattr(args, f"{side}_info"))]
        words = [word for name, topic in remaps if topic for word in ("-r", f"{name}:={topic}")]
        namespace = f"{args.namespace.rstrip('/')}/{side}"
        nodes[side] = EndomustNode(opener, namespace=namespace, cli_args=["--ros-args", *words])
    return nodes


def watch(nodes: dict[str, EndomustNode]) -> StereoCheck:
    """Let the check see every answer of both nodes."""
    check = StereoCheck(nodes["left"], "endomust")
    for side, node in nodes.items():
        node.observer = lambda answer, side=side, node=node: check.see(side, answer, node.baseline)
    return check


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stereo_node", description=__doc__.splitlines()[0])
    parser.add_argument("--namespace", default="", help="of both nodes; empty is the root")
    for side in SIDES:
        parser.add_argument(f"--{side}-image", default=f"{side}/image_rect_color", help="image topic")
        parser.add_argument(f"--{side}-info", default="", help="CameraInfo topic; empty is camera_info beside it")
    return parser.parse_args(arguments)


def main(args=None) -> int:
    """Run both nodes until SIGINT or SIGTERM, or until both are finalized."""
    words = sys.argv if args is None else ["stereo_node", *args]
    given, stop = _parse(remove_ros_args(words)[1:]), stop_on_signals()
    try:
        _, transport = dds_profile(os.environ)
        os.environ.update(fast_dds_environment(os.environ))
        rclpy.init(args=words[1:], signal_handler_options=SignalHandlerOptions.NO)
        nodes = make_nodes(given)
    except (ParameterError, ProfileError, FileNotFoundError) as error:
        rclpy.logging.get_logger("stereo_node").fatal(str(error))
        rclpy.try_shutdown()
        return 1
    nodes["left"].get_logger().info(transport)
    executor, check = SingleThreadedExecutor(), watch(nodes)
    for node in nodes.values():
        executor.add_node(node)
        node.autostart()
    while not stop and not any(node.ended for node in nodes.values()) and not _over(nodes):
        executor.spin_once(timeout_sec=SPIN_PERIOD)
    for node in nodes.values():
        if node.state != "finalized":
            node.trigger_shutdown()
    check.close()
    executor.shutdown()
    for node in nodes.values():
        node.destroy_node()
    rclpy.try_shutdown()
    return int(any(node.gave_up for node in nodes.values()))


def _over(nodes: dict[str, EndomustNode]) -> bool:
    return all(node.state == "finalized" for node in nodes.values())


if __name__ == "__main__":
    sys.exit(main())
