"""Starts both cameras of a stereo endoscope in one process: two nodes, one set of networks, and a check of the scale.

ros2 launch endomust_ros stereo.launch.py rig:=davinci
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from endomust_ros.launching import exact
from endomust_ros.stereo_launching import STEREO_ARGUMENTS, stereo_node


def start(context):
    """The process: the texts of the arguments are known only now."""
    values = {name: LaunchConfiguration(name).perform(context) for name in STEREO_ARGUMENTS}
    node = stereo_node(values)
    parameters = exact(node.pop("parameters"), lambda text: ParameterValue(text, value_type=str))
    return [Node(**node, parameters=parameters)]


def generate_launch_description():
    """All arguments with their defaults; `ros2 launch endomust_ros stereo.launch.py --show-args` lists them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in STEREO_ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
