"""Starts gscam on a GStreamer pipeline: images [rgb8] on /endoscope/image_raw, camera_info beside them.

ros2 launch endomust_ros camera_gscam.launch.py calibration:=endoscope.yaml image_size:=1280x720 pipeline:="PIPELINE"

PIPELINE ends in raw video; gscam adds the sink. A frame grabber that is a video device and sends JPEG:
    v4l2src device=/dev/video0 ! image/jpeg,width=1280,height=720 ! jpegdec ! videoconvert
The left camera of a da Vinci through a DeckLink card; with namespace:=davinci/left the images have the names that
depth.launch.py rig:=davinci looks for:
    decklinkvideosrc device-number=0 connection=sdi ! deinterlace ! videoconvert
"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from endomust_ros.launching import GSCAM_ARGUMENTS, exact, gscam_driver


def start(context):
    """The driver, and a line that says which profile it got: the texts of the arguments are known only now."""
    values = {name: LaunchConfiguration(name).perform(context) for name in GSCAM_ARGUMENTS}
    driver, sentence = gscam_driver(values, os.environ)
    parameters = exact(driver.pop("parameters"), lambda text: ParameterValue(text, value_type=str))
    return [LogInfo(msg=sentence), Node(**driver, parameters=parameters)]


def generate_launch_description():
    """All arguments with their defaults; `ros2 launch endomust_ros camera_gscam.launch.py --show-args` lists them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in GSCAM_ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
