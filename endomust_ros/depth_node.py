"""The process of the node `endomust`: environment for DDS, signals, the loop, and words for what fails at the start.

depth_node --ros-args -r image:=/endoscope/image_raw --params-file endomust.yaml
"""

import os
import signal
import sys

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.signals import SignalHandlerOptions

from endomust_ros.dds_profile import ProfileError
from endomust_ros.node import EndomustNode
from endomust_ros.parameters import ParameterError
from endomust_ros.transport import dds_profile, fast_dds_environment

SPIN_PERIOD = 0.25  # s until a signal is noticed while nothing happens
RCLError = rclpy_implementation.RCLError
WITHOUT_SECURITY = (
    "this ROS is built without DDS Security, as the wheels from PyPI are; install ROS from packages, or unset "
    "ROS_SECURITY_ENABLE"
)


def main(args=None) -> int:
    """Run the node until SIGINT, SIGTERM or its shutdown transition; 0 after an orderly end, 1 after a fatal error."""
    stop = stop_on_signals()
    try:
        _, transport = dds_profile(os.environ)
        os.environ.update(fast_dds_environment(os.environ))
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = EndomustNode()
    except (ParameterError, ProfileError, FileNotFoundError) as error:
        rclpy.logging.get_logger("endomust").fatal(str(error))
        rclpy.try_shutdown()
        return 1
    except RCLError as error:
        if "security libraries" not in str(error):
            raise
        rclpy.logging.get_logger("endomust").fatal(WITHOUT_SECURITY)
        rclpy.try_shutdown()
        return 1
    node.get_logger().info(transport)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    node.autostart()
    while not stop and not node.ended and node.state != "finalized":
        executor.spin_once(timeout_sec=SPIN_PERIOD)
    if node.state != "finalized":
        node.trigger_shutdown()
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return 1 if node.gave_up else 0


def stop_on_signals() -> list[int]:
    """A list that stays empty until SIGINT or SIGTERM comes; the second one ends the process at once."""
    received: list[int] = []

    def remember(number, frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, remember)
    return received


if __name__ == "__main__":
    sys.exit(main())
