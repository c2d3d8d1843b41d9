"""Arguments of depth.launch.py and camera.launch.py → parameters, remappings, environment; plain Python, no launch."""

import shlex
from collections.abc import Mapping

from endomust_ros.dds_profile import SIZE, camera_messages
from endomust_ros.transport import SWITCH, VARIABLES, dds_profile

# name → (default, what it does). An empty default leaves the matter to params_file and to the node's own defaults.
ARGUMENTS = {
    "namespace": ("", "Namespace of the node, one for each camera"),
    "image_topic": ("/endoscope/image_raw", "Image topic; <image_topic>/compressed is found by itself"),
    "camera_info_topic": ("", "CameraInfo topic; empty is camera_info beside the image"),
    "transport": ("", "auto, raw or compressed"),
    "params_file": ("", "Parameter file; the arguments of this launch file win over it"),
    "model": ("", "Folder of the model bundle; empty is the one that ships"),
    "provider": ("", "What runs the networks: cpu, cuda, tensorrt, openvino; several separated by commas"),
    "publish_tf": ("", "Send odom → camera to /tf"),
    "odom_frame": ("", "Name of the odometry frame"),
    "rviz": ("false", "Start RViz with a view of the outputs"),
    "use_sim_time": ("false", "Take time from /clock, for recordings"),
    "autostart": ("true", "Configure and activate by itself; false for a lifecycle manager"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "dds_profile": ("auto", "Fast DDS profile for large images: auto, none, or a path"),
    "image_size": ("", "WIDTHxHEIGHT of the camera, for which the profile makes room; empty is 1920x1080"),
}
CAMERA_ARGUMENTS = {  # of camera.launch.py; None must be given
    "package": (None, "ROS package of the camera driver, such as usb_cam"),
    "executable": (None, "Its executable, such as usb_cam_node_exe"),
    "name": ("", "Name of the driver's node; empty is its own"),
    "namespace": ("", "Namespace of the driver's node, such as endoscope"),
    "params_file": ("", "Parameter file of the driver"),
    "remappings": ("", "Topics of the driver: image:=image_raw and more, separated by spaces"),
    "arguments": ("", "Further words for the driver's command line"),
    "log_level": ARGUMENTS["log_level"],
    "dds_profile": ARGUMENTS["dds_profile"],
    "image_size": ARGUMENTS["image_size"],
}
# argument → parameter of the node, and how its text becomes a value
PARAMETERS = {
    "transport": ("input.transport", str),
    "model": ("model.path", str),
    "provider": ("model.providers", lambda text: [name.strip() for name in text.split(",") if name.strip()]),
    "publish_tf": ("tf.publish", lambda text: truth("publish_tf", text)),
    "odom_frame": ("frames.odom", str),
    "use_sim_time": ("use_sim_time", lambda text: truth("use_sim_time", text)),
    "autostart": ("autostart", lambda text: truth("autostart", text)),
}


def node_parameters(values: Mapping[str, str]) -> dict[str, object]:
    """Parameters by their ROS names, of those arguments that are not empty. Raises ValueError in words."""
    return {name: convert(values[key]) for key, (name, convert) in PARAMETERS.items() if values[key]}


def remappings(values: Mapping[str, str]) -> list[tuple[str, str]]:
    """The other topics follow `image` by themselves."""
    pairs = [("image", values["image_topic"]), ("camera_info", values["camera_info_topic"])]
    return [(name, topic) for name, topic in pairs if topic]


def environment(values: Mapping[str, str]) -> dict[str, str]:
    """What the node's process gets on top of the shell's environment; the node itself sets the profile.

    A default says nothing, so that what the shell has set stays.
    """
    given = {SWITCH: (values["dds_profile"], "auto"), SIZE: (values["image_size"], "")}
    return {variable: value for variable, (value, default) in given.items() if value != default}


def camera_environment(values: Mapping[str, str], env: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """What a camera driver's process gets on top of `env`, and a sentence about it for the log.

    A driver knows nothing of our variables, so the profile itself is set here. Raises as dds_profile does.
    """
    profile, sentence = dds_profile({**env, **environment(values)}, camera_messages)
    return ({} if profile is None else dict.fromkeys(VARIABLES, str(profile))), f"camera driver: {sentence}"


def pairs(text: str) -> list[tuple[str, str]]:
    """'image:=/endoscope/image_raw info:=camera_info' → pairs of names. Raises ValueError in words."""
    found = [word.partition(":=") for word in text.split()]
    for old, sign, new in found:
        if not (old and sign and new):
            raise ValueError(f"remappings holds '{old}{sign}{new}'; write old:=new, separated by spaces")
    return [(old, new) for old, _, new in found]


def words(text: str) -> list[str]:
    """The words of a command line; quotes keep a word together."""
    return shlex.split(text)


def truth(name: str, text: str) -> bool:
    """true or false in any case; everything else is a mistake that is named."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise ValueError(f"{name}:={text} is neither true nor false")
    return words[text.lower()]
