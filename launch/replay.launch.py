"""Plays what `endomust replay` wrote and shows it in RViz; no model runs.

ros2 launch endomust_ros replay.launch.py recording:=out/replay.mcap rate:=0.5
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from endomust_core.resources import share
from endomust_ros.launching import truth

ARGUMENTS = {
    "recording": (None, "The replay.mcap to play"),
    "rate": ("1.0", "Times as fast as recorded"),
    "loop": ("false", "Start again at the end"),
    "rviz": ("true", "Start RViz with a view of the outputs"),
}


def start(context):
    """The player, and RViz: the texts of the arguments are known only now."""
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    loop = ["--loop"] if truth("loop", values["loop"]) else []
    command = ["ros2", "bag", "play", values["recording"], "--rate", values["rate"], "--clock", *loop]
    play = ExecuteProcess(cmd=command, output="screen")
    if not truth("rviz", values["rviz"]):
        return [play]
    view = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(share("config", "endomust.rviz"))],
        parameters=[{"use_sim_time": True}],
        output="log",
    )
    return [play, view]


def generate_launch_description():
    """All arguments with their defaults; `ros2 launch endomust_ros replay.launch.py --show-args` lists them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
