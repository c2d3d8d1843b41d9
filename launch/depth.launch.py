"""Starts the node `endomust` on one endoscope's images, and what is asked for beside it: player, recorder, viewers.

ros2 launch endomust_ros depth.launch.py rviz:=true                         # the only camera that is running
ros2 launch endomust_ros depth.launch.py rig:=davinci scale_mode:=kinematic
ros2 launch endomust_ros depth.launch.py bag:=case.mcap rate:=0.5 rviz:=true
"""

import yaml
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, LogInfo, OpaqueFunction, Shutdown, TimerAction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from endomust_core.resources import share
from endomust_ros import launching
from endomust_ros.camera_search import find_camera, recorded
from endomust_ros.launching import ARGUMENTS, FOXGLOVE_MAY, require, truth

LAST_ANSWERS = 2.0  # s from the end of a recording until everything is stopped


def start(context):
    """The node and its company: the texts of the arguments are known only now."""
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    image = launching.image_topic(values, lambda bag: recorded(bag)[0], find_camera)
    actions = [LogInfo(msg=f"images come from {image}"), depth_node(values, image)]
    if values["record"]:
        actions.append(ExecuteProcess(name="recorder", cmd=launching.record_command(values), output="screen"))
    if values["bag"]:
        actions.append(player(values))
    if truth("rviz", values["rviz"]):
        actions.append(rviz(values))
    if launching.foxglove_address(values["foxglove"]):
        actions.append(foxglove(values))
    return actions


def text(value):
    """A parameter that is a text whatever it looks like."""
    return ParameterValue(value, value_type=str)


def depth_node(values, image):
    """The node itself."""
    given = launching.node_parameters(values)
    parameters = [*launching.parameter_files(values), *([given] if given else [])]
    return Node(
        package="endomust_ros",
        executable="depth_node",
        name="endomust",
        namespace=values["namespace"],
        parameters=launching.exact(parameters, text),
        remappings=launching.remappings(values, image),
        additional_env=launching.environment(values),
        arguments=launching.ros_arguments(values),
        output="screen",
        emulate_tty=True,
    )


def player(values):
    """Plays the recording; where nobody looks on, its end is the end of everything."""
    end = TimerAction(period=LAST_ANSWERS, actions=[Shutdown(reason="the recording has been played")])
    command = launching.play_command(values, recorded(values["bag"])[1])
    on_exit = [end] if launching.ends_with_the_recording(values) else []
    return ExecuteProcess(name="player", cmd=command, output="screen", on_exit=on_exit)


def rviz(values):
    """The view of config/endomust.rviz, in the namespace and the frame of the node."""
    require("rviz2")
    file = share("config", "endomust.rviz")
    displays = yaml.safe_load(file.read_text(encoding="utf-8"))["Visualization Manager"]["Displays"]
    topics = [display["Topic"]["Value"] for display in displays if "Topic" in display]
    frame = ["-f", values["odom_frame"]] if values["odom_frame"] else []
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=values["namespace"],
        arguments=["-d", str(file), *frame],
        remappings=launching.view_remappings(values, topics),
        parameters=[{"use_sim_time": truth("use_sim_time", values["use_sim_time"] or "false")}],
        output="log",
    )


def foxglove(values):
    """The bridge for Foxglove; config/endomust_foxglove.json is a layout for it."""
    require("foxglove_bridge")
    address = launching.foxglove_address(values["foxglove"])
    return Node(
        package="foxglove_bridge",
        executable="foxglove_bridge",
        parameters=launching.exact([{"address": address, "capabilities": FOXGLOVE_MAY}], text),
        output="log",
    )


def generate_launch_description():
    """All arguments with their defaults; `ros2 launch endomust_ros depth.launch.py --show-args` lists them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
