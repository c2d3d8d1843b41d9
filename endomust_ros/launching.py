"""Arguments of the launch files → parameters, remappings, environment, commands; plain Python, without launch."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from endomust_ros.dds_profile import SIZE, camera_messages, image_size
from endomust_ros.transport import SWITCH, VARIABLES, dds_profile

# name → (default, what it does). An empty default leaves the matter to params_file and to the node's own defaults.
ARGUMENTS = {
    "namespace": ("", "Namespace of the node, one for each camera"),
    "image_topic": (
        "",
        "Image topic, <image_topic>/compressed is found by itself; empty takes the only camera there is",
    ),
    "camera_info_topic": ("", "CameraInfo topic; empty is camera_info beside the image"),
    "rig": ("", "dVRK rig such as davinci: images of /<rig>/left, and the arm's pose where scale_mode is kinematic"),
    "transport": ("", "auto, raw or compressed"),
    "mask_topic": ("", "Mask of what to ignore, such as instruments; 0 is ignored"),
    "params_file": ("", "Parameter file; the arguments of this launch file win over it"),
    "model": ("", "Folder of the model bundle, or endomust-small, which ships too; empty is endomust-tiny"),
    "provider": ("", "What runs the networks: cpu, cuda, tensorrt, openvino; several separated by commas"),
    "scale_mode": ("", "Where the metre comes from: none, fixed, file or kinematic"),
    "camera_pose_topic": ("", "Camera pose of the robot, for scale_mode:=kinematic"),
    "publish_tf": ("", "Send odom → camera to /tf: auto, on or off"),
    "odom_frame": ("", "Name of the odometry frame"),
    "base_frame": ("", "Frame that odom is the parent of; empty is the camera"),
    "bag": ("", "Recording to play beside the node, with the stamps of now"),
    "rate": ("1.0", "Times as fast as recorded, with bag"),
    "loop": ("false", "Start the recording again at its end, with bag"),
    "record": ("", "Record the answers of the node: a file that ends in .mcap, or a folder"),
    "rviz": ("false", "Start RViz with a view of the outputs"),
    "foxglove": ("false", "Start foxglove_bridge: true for this machine alone, or the address to listen on"),
    "use_sim_time": ("", "Take time from /clock, for recordings that bring one"),
    "autostart": ("", "Configure and activate by itself; false for a lifecycle manager"),
    "enclave": ("", "SROS2 enclave such as /endomust, see docs/security.md"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "dds_profile": ("auto", "Fast DDS profile for large images: auto, none, or a path"),
    "image_size": ("", "WIDTHxHEIGHT of the camera, for which the profile makes room; empty is 1920x1080"),
}
_DRIVER = {name: ARGUMENTS[name] for name in ("log_level", "dds_profile", "image_size")}
CAMERA_ARGUMENTS = {  # of camera.launch.py; None must be given
    "package": (None, "ROS package of the camera driver, such as usb_cam"),
    "executable": (None, "Its executable, such as usb_cam_node_exe"),
    "name": ("", "Name of the driver's node; empty is its own"),
    "namespace": ("", "Namespace of the driver's node, such as endoscope"),
    "params_file": ("", "Parameter file of the driver"),
    "remappings": ("", "Topics of the driver: image:=image_raw and more, separated by spaces"),
    "arguments": ("", "Further words for the driver's command line"),
    **_DRIVER,
}
_KNOWN_DRIVER = {  # of the two launch files that know their driver
    "namespace": ("endoscope", "Namespace of the driver's node; images go to /<namespace>/image_raw"),
    "frame": ("", "frame_id of the images; empty is that of params_file, or endoscope_optical_frame"),
    "calibration": ("", "ROS calibration file (YAML) of the camera; empty leaves it uncalibrated"),
    "params_file": ("", "Parameter file of the driver; the arguments of this launch file win over it"),
    **_DRIVER,
}
USB_ARGUMENTS = {  # of camera_usb.launch.py
    "device": ("", "Video device such as /dev/video0"),
    "frame_rate": ("", "Images per second to ask the camera for"),
    "pixel_format": ("", "What to ask the camera for: yuyv, uyvy, mjpeg2rgb, and what else usb_cam knows"),
    **_KNOWN_DRIVER,
}
GSCAM_ARGUMENTS = {  # of camera_gscam.launch.py
    "pipeline": (None, "GStreamer pipeline without its sink, from the source to raw video"),
    **_KNOWN_DRIVER,
}
FRAME = "endoscope_optical_frame"
# With a name and a namespace launch addresses parameters to this very node, and they win over a file that says /**.
USB_DRIVER = {"package": "usb_cam", "executable": "usb_cam_node_exe", "name": "usb_cam"}
GSCAM_DRIVER = {"package": "gscam", "executable": "gscam_node", "name": "gscam_publisher"}
RIG_POSE = "/ECM/measured_cp"  # the endoscope's arm of a da Vinci, in the dVRK's names
PLAYER_PATIENCE = 60.0  # s until a recording plays although the node does not listen yet: it loads its model first
# A viewer needs no more. The bridge's own default also lets every client publish, set parameters and call services.
FOXGLOVE_MAY = ["connectionGraph", "assets"]


class LaunchError(ValueError):
    """The launch file cannot go on; the message says what to change."""


# argument → parameter of the node, and how its text becomes a value
PARAMETERS = {
    "transport": ("input.transport", str),
    "model": ("model.path", str),
    "provider": ("model.providers", lambda text: [name.strip() for name in text.split(",") if name.strip()]),
    "scale_mode": ("scale.mode", str),
    "publish_tf": ("tf.publish", lambda text: auto_on_off("publish_tf", text)),
    "odom_frame": ("frames.odom", str),
    "base_frame": ("frames.base", str),
    "use_sim_time": ("use_sim_time", lambda text: truth("use_sim_time", text)),
    "autostart": ("autostart", lambda text: truth("autostart", text)),
}

# ---- depth.launch.py ----


def node_parameters(values: Mapping[str, str]) -> dict[str, object]:
    """Parameters by their ROS names, of those arguments that are not empty. Raises LaunchError."""
    return {name: convert(values[key]) for key, (name, convert) in PARAMETERS.items() if values[key]}


def parameter_files(values: Mapping[str, str]) -> list[str]:
    """The parameter file, if any. launch itself goes on without one that is missing; here that is a LaunchError."""
    if values["params_file"] and not Path(values["params_file"]).is_file():
        raise LaunchError(f"params_file:={values['params_file']} is no file; give the path of a parameter file (YAML)")
    return [values["params_file"]] if values["params_file"] else []


def image_topic(values: Mapping[str, str], in_recording: Callable[[str], str], on_graph: Callable[[], str]) -> str:
    """What is named, or the rig's, or the recording's, or the only camera of the graph; raises what the last two do."""
    if values["image_topic"]:
        return values["image_topic"]
    if values["rig"]:
        return f"/{values['rig'].strip('/')}/left/image_raw"
    return in_recording(values["bag"]) if values["bag"] else on_graph()


def remappings(values: Mapping[str, str], image: str) -> list[tuple[str, str]]:
    """The inputs that have a name of their own; the other topics follow `image` by themselves."""
    pose = values["camera_pose_topic"]
    if not pose and values["rig"] and values["scale_mode"] == "kinematic":
        pose = RIG_POSE
    topics = {"image": image, "camera_info": values["camera_info_topic"], "mask": values["mask_topic"]}
    return [(name, topic) for name, topic in {**topics, "camera_pose": pose}.items() if topic]


def environment(values: Mapping[str, str]) -> dict[str, str]:
    """What the node's process gets on top of the shell's environment; the node itself sets the profile.

    A default says nothing, so that what the shell has set stays.
    """
    given = {SWITCH: (values["dds_profile"], "auto"), SIZE: (values["image_size"], "")}
    return {variable: value for variable, (value, default) in given.items() if value != default}


def ros_arguments(values: Mapping[str, str]) -> list[str]:
    """Log level and enclave for the node's command line."""
    enclave = ["--enclave", values["enclave"]] if values["enclave"] else []
    return ["--ros-args", "--log-level", values["log_level"], *enclave]


def node_name(values: Mapping[str, str]) -> str:
    """Full name of the node."""
    return f"/{values['namespace'].strip('/')}/endomust".replace("//", "/")


def play_command(values: Mapping[str, str], topics: list[str]) -> list[str]:
    """What plays `bag`, whose topics are given; answers of the node that it holds stay out. Raises LaunchError."""
    if values["use_sim_time"] and truth("use_sim_time", values["use_sim_time"]):
        raise LaunchError(
            "bag:= plays with the stamps of now and without a /clock, so the node would wait for ever with "
            "use_sim_time:=true; leave use_sim_time out, or play it yourself: ros2 bag play --clock"
        )
    rate = ["--rate", f"{positive('rate', values['rate']):g}", "--wait", f"{PLAYER_PATIENCE:g}", "--now"]
    loop = ["--loop"] if truth("loop", values["loop"]) else []
    answers = {topic for topic in topics if topic.startswith(f"{node_name(values)}/")}
    answers |= {"/diagnostics", "/tf"} if answers else set()  # who recorded those recorded our /tf with them
    chosen = ["--topics", *(topic for topic in topics if topic not in answers)] if answers else []
    return [sys.executable, "-m", "endomust_ros.player", values["bag"], *rate, *loop, *chosen]


def record_command(values: Mapping[str, str]) -> list[str]:
    """What records the answers of the node."""
    return [sys.executable, "-m", "endomust_ros.record", values["record"], "--node", node_name(values)]


def ends_with_the_recording(values: Mapping[str, str]) -> bool:
    """True where nobody looks on: the launch file ends when the recording has been played."""
    watched = truth("rviz", values["rviz"]) or foxglove_address(values["foxglove"])
    return bool(values["bag"]) and not truth("loop", values["loop"]) and not watched


def view_remappings(values: Mapping[str, str], topics: list[str]) -> list[tuple[str, str]]:
    """RViz shows the topics of the default namespace; in another one they are remapped."""
    old, new = "/endomust/", f"{node_name(values)}/"
    return [(topic, new + topic.removeprefix(old)) for topic in topics if old != new and topic.startswith(old)]


def foxglove_address(text: str) -> str:
    """true → this machine alone; an address stays; false → empty."""
    if text.lower() in ("true", "1", "false", "0"):
        return "127.0.0.1" if truth("foxglove", text) else ""
    return text


# ---- the camera launch files ----


def camera_environment(values: Mapping[str, str], env: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """What a camera driver's process gets on top of `env`, and a sentence about it for the log.

    A driver knows nothing of our variables, so the profile itself is set here. Raises as dds_profile does.
    """
    profile, sentence = dds_profile({**env, **environment(values)}, camera_messages)
    return ({} if profile is None else dict.fromkeys(VARIABLES, str(profile))), f"camera driver: {sentence}"


def camera_driver(values: Mapping[str, str], env: Mapping[str, str]) -> tuple[dict[str, object], str]:
    """Any driver: what launch_ros's Node takes, and a sentence for the log. Raises LaunchError, and as dds_profile."""
    require(values["package"], env)
    added, sentence = camera_environment(values, env)
    node = {
        "package": values["package"],
        "executable": values["executable"],
        "name": values.get("name") or None,
        "namespace": values["namespace"] or None,
        "parameters": parameter_files(values),
        "remappings": pairs(values.get("remappings", "")),
        "additional_env": added,
        "arguments": [*words(values.get("arguments", "")), "--ros-args", "--log-level", values["log_level"]],
        "output": "screen",
        "emulate_tty": True,
    }
    return node, sentence


def usb_driver(values: Mapping[str, str], env: Mapping[str, str]) -> tuple[dict[str, object], str]:
    """usb_cam, as camera_driver."""
    width, height = image_size(values["image_size"]) if values["image_size"] else (None, None)
    rate = positive("frame_rate", values["frame_rate"]) if values["frame_rate"] else None
    given = {"video_device": values["device"], "image_width": width, "image_height": height, "framerate": rate}
    given["pixel_format"] = values["pixel_format"]
    return _known_driver({**USB_DRIVER, **values}, env, {}, given)


def gscam_driver(values: Mapping[str, str], env: Mapping[str, str]) -> tuple[dict[str, object], str]:
    """gscam, as camera_driver. Its images are not held back to their play time, because a camera is live."""
    names = ("image_raw", "image_raw/compressed", "camera_info")
    topics = " ".join(f"camera/{name}:={name}" for name in names)
    return _known_driver(
        {**GSCAM_DRIVER, "remappings": topics, **values},
        env,
        {"sync_sink": False},
        {"gscam_config": values["pipeline"]},
    )


def _known_driver(values, env, defaults: dict, given: dict) -> tuple[dict[str, object], str]:
    """What was given wins over the parameter file, which stands in the place of our defaults."""
    node, sentence = camera_driver(values, env)
    given = {**given, "frame_id": values["frame"], "camera_info_url": calibration_url(values["calibration"])}
    given = {name: value for name, value in given.items() if value not in ("", None)}
    before = node["parameters"] or [{**defaults, "frame_id": FRAME}]
    node["parameters"] = [*before, given] if given else before
    return node, sentence


def calibration_url(path: str) -> str:
    """Path → the file:// URL that camera drivers ask for; empty stays empty. Raises LaunchError."""
    if not path:
        return ""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise LaunchError(f"calibration:={path} is no file; give the YAML file that camera_calibration wrote")
    return f"file://{file}"


# ---- small things ----


def exact(parameters: list, as_text: Callable[[str], object]) -> list:
    """Parameter files and dicts, in which texts stay texts; launch_ros would read off as false and 1 as a number.

    `as_text` makes launch_ros's ParameterValue of a text.
    """
    return [
        {name: as_text(value) if isinstance(value, str) else value for name, value in part.items()}
        if isinstance(part, dict)
        else part
        for part in parameters
    ]


def require(package: str, env: Mapping[str, str] = os.environ) -> None:
    """Raises LaunchError, which says what to install, where a ROS package is missing."""
    prefixes = [Path(part) for part in env.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if part]
    if not any((prefix / "share/ament_index/resource_index/packages" / package).is_file() for prefix in prefixes):
        name = f"ros-{env.get('ROS_DISTRO') or '$ROS_DISTRO'}-{package.replace('_', '-')}"
        raise LaunchError(
            f"the ROS package {package} is not installed: sudo apt install {name}; or source the workspace that has it"
        )


def pairs(text: str) -> list[tuple[str, str]]:
    """'image:=/endoscope/image_raw info:=camera_info' → pairs of names. Raises LaunchError."""
    found = [word.partition(":=") for word in text.split()]
    for old, sign, new in found:
        if not (old and sign and new):
            raise LaunchError(f"remappings holds '{old}{sign}{new}'; write old:=new, separated by spaces")
    return [(old, new) for old, _, new in found]


def words(text: str) -> list[str]:
    """The words of a command line; quotes keep a word together."""
    return shlex.split(text)


def truth(name: str, text: str) -> bool:
    """true or false in any case; everything else is a mistake that is named."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise LaunchError(f"{name}:={text} is neither true nor false")
    return words[text.lower()]


def auto_on_off(name: str, text: str) -> str:
    """auto, on or off; true and false are on and off."""
    words = {"auto": "auto", "on": "on", "off": "off", "true": "on", "1": "on", "false": "off", "0": "off"}
    if text.lower() not in words:
        raise LaunchError(f"{name}:={text} is not one of auto, on, off")
    return words[text.lower()]


def positive(name: str, text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise LaunchError(f"{name}:={text} is not a positive number")
    return value
