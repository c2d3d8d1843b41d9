"""Starts any camera driver with the Fast DDS profile for large images, which the publishing process needs.

ros2 launch endomust_ros camera.launch.py package:=usb_cam executable:=usb_cam_node_exe namespace:=endoscope
"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from endomust_ros.launching import CAMERA_ARGUMENTS, camera_environment, pairs, words


def start(context):
    """The driver, and a line that says which profile it got: the texts of the arguments are known only now."""
    values = {name: LaunchConfiguration(name).perform(context) for name in CAMERA_ARGUMENTS}
    environment, sentence = camera_environment(values, os.environ)
    driver = Node(
        package=values["package"],
        executable=values["executable"],
        name=values["name"] or None,
        namespace=values["namespace"] or None,
        parameters=[values["params_file"]] if values["params_file"] else [],
        remappings=pairs(values["remappings"]),
        additional_env=environment,
        arguments=[*words(values["arguments"]), "--ros-args", "--log-level", values["log_level"]],
        output="screen",
        emulate_tty=True,
    )
    return [LogInfo(msg=sentence), driver]


def generate_launch_description():
    """All arguments with their defaults; `ros2 launch endomust_ros camera.launch.py --show-args` lists them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in CAMERA_ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
