"""Arguments of stereo.launch.py → the command line of stereo_node; plain Python, without launch."""

from collections.abc import Mapping

from endomust_ros import launching
from endomust_ros.launching import ARGUMENTS, LaunchError

# name → (default, what it does), as in launching.py
STEREO_ARGUMENTS = {
    "namespace": ("endoscope", "Of both nodes, which are <namespace>/left/endomust and <namespace>/right/endomust"),
    "rig": ("", "dVRK rig such as davinci: the rectified images of /<rig>/left and /<rig>/right"),
    "left_image_topic": ("", "Rectified images of the left camera; empty is that of the rig"),
    "right_image_topic": ("", "Rectified images of the right camera; empty is that of the rig"),
    "left_camera_info_topic": ("", "CameraInfo of the left camera; empty is camera_info beside its images"),
    "right_camera_info_topic": ("", "CameraInfo of the right camera, whose P says the baseline"),
    **{
        name: ARGUMENTS[name]
        for name in (
            "transport",
            "params_file",
            "model",
            "provider",
            "scale_mode",
            "publish_tf",
            "use_sim_time",
            "autostart",
            "enclave",
            "log_level",
            "dds_profile",
            "image_size",
        )
    },
}
RECTIFIED = "image_rect_color"  # what stereo_image_proc and the dVRK's own launch files publish


def stereo_words(values: Mapping[str, str]) -> list[str]:
    """Words for stereo_node before --ros-args. Raises LaunchError."""
    words = ["--namespace", f"/{values['namespace'].strip('/')}" if values["namespace"].strip("/") else ""]
    for side in ("left", "right"):
        words += [f"--{side}-image", _image(values, side)]
        info = values[f"{side}_camera_info_topic"]
        words += [f"--{side}-info", info] if info else []
    return words


def stereo_node(values: Mapping[str, str]) -> dict[str, object]:
    """What launch_ros's Node takes. No name and no namespace: those would be both nodes'. Raises LaunchError."""
    chosen = {name: "" for name in launching.PARAMETERS} | dict(values)
    given = launching.node_parameters(chosen)
    return {
        "package": "endomust_ros",
        "executable": "stereo_node",
        "parameters": [*launching.parameter_files(values), *([given] if given else [])],
        "additional_env": launching.environment(values),
        "arguments": [*stereo_words(values), *launching.ros_arguments(values)],
        "output": "screen",
        "emulate_tty": True,
    }


def _image(values: Mapping[str, str], side: str) -> str:
    topic = values[f"{side}_image_topic"]
    if topic or not values["rig"]:
        if not topic:
            raise LaunchError(f"{side}_image_topic is empty; give it, or rig:=<name> for /<name>/{side}/{RECTIFIED}")
        return topic
    return f"/{values['rig'].strip('/')}/{side}/{RECTIFIED}"
