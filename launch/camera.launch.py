"""Starts any camera driver with the Fast DDS profile for large images, which the publishing process needs.

ros2 launch endomust_ros camera.launch.py package:=usb_cam executable:=usb_cam_node_exe namespace:=endoscope
"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from endomust_ros.launching import CAMERA_ARGUMENTS, camera_driver, exact


def start(context):
    """The driver, and a line that says which profile it got: the texts of the arguments are known only now."""
    values = {name: LaunchConfiguration(name).perform(context) for name in CAMERA_ARGUMENTS}
    driver, sentence = camera_driver(values, os.environ)
    parameters = exact(driver.pop("parameters"), lambda text: ParameterValue(text, value_type=str))
    return [LogInfo(msg=sentence), Node(**driver, parameters=parameters)]


def generate_launch_description():
    """All arguments with their defaults; `ros2 launch endomust_ros camera.launch.py --show-args` lists them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in CAMERA_ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
