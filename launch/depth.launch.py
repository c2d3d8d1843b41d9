"""Starts the node `endomust` on one endoscope image topic, and RViz where asked for.

ros2 launch endomust_ros depth.launch.py image_topic:=/endoscope/image_raw rviz:=true
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from endomust_core.resources import share
from endomust_ros.launching import ARGUMENTS, environment, node_parameters, remappings, truth


def start(context):
    """The node, and RViz: the texts of the arguments are known only now."""
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    files = [values["params_file"]] if values["params_file"] else []
    depth = Node(
        package="endomust_ros",
        executable="depth_node",
        name="endomust",
        namespace=values["namespace"],
        parameters=[*files, node_parameters(values)],
        remappings=remappings(values),
        additional_env=environment(values),
        arguments=["--ros-args", "--log-level", values["log_level"]],
        output="screen",
        emulate_tty=True,
    )
    if not truth("rviz", values["rviz"]):
        return [depth]
    view = Node(
        package="rviz2",
        executable="rviz2",
        namespace=values["namespace"],
        arguments=["-d", str(share("config", "endomust.rviz"))],
        parameters=[{"use_sim_time": truth("use_sim_time", values["use_sim_time"])}],
        output="log",
    )
    return [depth, view]


def generate_launch_description():
    """All arguments with their defaults; `ros2 launch endomust_ros depth.launch.py --show-args` lists them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
