"""Starts usb_cam on a video device: images [rgb8 or what the camera gives] on /endoscope/image_raw, camera_info beside.

ros2 launch endomust_ros camera_usb.launch.py device:=/dev/video0 image_size:=1280x720 calibration:=endoscope.yaml
"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from endomust_ros.launching import USB_ARGUMENTS, exact, usb_driver


def start(context):
    """The driver, and a line that says which profile it got: the texts of the arguments are known only now."""
    values = {name: LaunchConfiguration(name).perform(context) for name in USB_ARGUMENTS}
    driver, sentence = usb_driver(values, os.environ)
    parameters = exact(driver.pop("parameters"), lambda text: ParameterValue(text, value_type=str))
    return [LogInfo(msg=sentence), Node(**driver, parameters=parameters)]


def generate_launch_description():
    """All arguments with their defaults; `ros2 launch endomust_ros camera_usb.launch.py --show-args` lists them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in USB_ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
