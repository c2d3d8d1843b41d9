"""Arguments of depth.launch.py → parameters, remappings and environment of the node; plain Python, no launch needed."""

from collections.abc import Mapping

from endomust_ros.transport import SWITCH

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
    """What the node's process gets on top of the shell's environment; the node itself sets the profile."""
    return {SWITCH: values["dds_profile"]}


def truth(name: str, text: str) -> bool:
    """true or false in any case; everything else is a mistake that is named."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise ValueError(f"{name}:={text} is neither true nor false")
    return words[text.lower()]
