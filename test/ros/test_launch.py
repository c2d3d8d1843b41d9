"""Arguments of the launch file become what the node understands; files beside it name real topics and parameters."""

import ast
import runpy
import sys
from types import SimpleNamespace

import pytest
import yaml

from endomust_core.resources import share
from endomust_ros import transport
from endomust_ros.launching import (
    ARGUMENTS,
    CAMERA_ARGUMENTS,
    PARAMETERS,
    camera_environment,
    environment,
    node_parameters,
    pairs,
    remappings,
    words,
)
from endomust_ros.parameters import ABOUT, parameters_from
from endomust_ros.transport import SWITCH, VARIABLES, dds_profile

DEFAULTS = {name: default for name, (default, _) in ARGUMENTS.items()}
CAMERA_DEFAULTS = {name: default or "" for name, (default, _) in CAMERA_ARGUMENTS.items()}


@pytest.fixture
def roomy(monkeypatch):
    monkeypatch.setattr(transport, "_free_shared_memory", lambda: 1 << 30)


def test_defaults_leave_everything_to_the_node():
    assert node_parameters(DEFAULTS) == {"use_sim_time": False, "autostart": True}
    assert remappings(DEFAULTS) == [("image", "/endoscope/image_raw")]


def test_every_argument_that_is_a_parameter_reaches_the_node():
    values = {
        **DEFAULTS,
        "transport": "compressed",
        "model": "/bundles/mine",
        "provider": "tensorrt, cuda",
        "publish_tf": "False",
        "odom_frame": "start",
        "autostart": "0",
    }
    got = node_parameters(values)
    assert got.pop("use_sim_time") is False
    assert got == {
        "input.transport": "compressed",
        "model.path": "/bundles/mine",
        "model.providers": ["tensorrt", "cuda"],
        "tf.publish": False,
        "frames.odom": "start",
        "autostart": False,
    }
    parameters_from(got)


def test_parameters_named_here_exist():
    assert {name for name, _ in PARAMETERS.values()} <= {*ABOUT, "use_sim_time"}
    assert PARAMETERS.keys() <= ARGUMENTS.keys()


def test_what_is_neither_true_nor_false_is_named():
    with pytest.raises(ValueError, match="autostart:=maybe is neither true nor false"):
        node_parameters({**DEFAULTS, "autostart": "maybe"})


def test_profile_choice_reaches_the_process_of_the_node():
    assert dds_profile(environment({**DEFAULTS, "dds_profile": "none"}))[0] is None


def test_defaults_leave_what_the_shell_has_set():
    assert environment(DEFAULTS) == {}


def test_image_size_decides_how_much_room_node_and_camera_get(roomy, tmp_path):
    values = {"image_size": "640x512", "dds_profile": "auto"}
    node, sentence = dds_profile({"HOME": str(tmp_path), **environment({**DEFAULTS, **values})})
    assert node.name == "fastdds_16mb.xml" and "640x512" in sentence
    values = {**CAMERA_DEFAULTS, "image_size": "3840x2160"}
    camera, sentence = camera_environment(values, {"HOME": str(tmp_path)})
    assert [camera[name].rpartition("/")[2] for name in VARIABLES] == ["fastdds_95mb.xml"] * 2  # 4 * 23.7 MB
    assert sentence.startswith("camera driver: ") and "3840x2160" in sentence


@pytest.mark.parametrize("env", [{SWITCH: "none"}, {VARIABLES[1]: "/own.xml"}, {"RMW_IMPLEMENTATION": "rmw_zenoh_cpp"}])
def test_a_camera_driver_keeps_what_the_user_chose(roomy, env):
    added, sentence = camera_environment(CAMERA_DEFAULTS, env)
    assert added == {} and next(iter(env.values())) in sentence


def test_remappings_and_arguments_of_a_camera_driver():
    assert pairs("") == [] and words("") == []
    assert pairs("image:=/endoscope/image_raw  info:=camera_info") == [
        ("image", "/endoscope/image_raw"),
        ("info", "camera_info"),
    ]
    assert words("--device '/dev/video 0'") == ["--device", "/dev/video 0"]
    for wrong in ("image", "image:=", ":=image_raw"):
        with pytest.raises(ValueError, match="write old:=new"):
            pairs(wrong)


def test_camera_launch_file_uses_every_argument():
    text = share("launch", "camera.launch.py").read_text()
    ast.parse(text)
    used = {name for name in CAMERA_ARGUMENTS if f'values["{name}"]' in text} | {"dds_profile", "image_size"}
    assert used == CAMERA_ARGUMENTS.keys()
    assert [name for name, (default, _) in CAMERA_ARGUMENTS.items() if default is None] == ["package", "executable"]


def test_camera_launch_file_starts_the_driver_with_the_profile(roomy, monkeypatch, tmp_path):
    """With stand-ins for the classes of `launch`: each keeps what it was given."""

    def stand_in(name):
        return type(name, (), {"__init__": lambda self, *words, **given: self.__dict__.update(given, words=words)})

    class LaunchConfiguration:
        def __init__(self, name):
            self.name = name

        def perform(self, values):
            return values[self.name]

    names = {
        "launch": ["LaunchDescription"],
        "launch.actions": ["DeclareLaunchArgument", "LogInfo", "OpaqueFunction"],
        "launch.substitutions": [],
        "launch_ros": [],
        "launch_ros.actions": ["Node"],
    }
    for module, classes in names.items():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: stand_in(name) for name in classes}))
    sys.modules["launch.substitutions"].LaunchConfiguration = LaunchConfiguration
    for name in (*VARIABLES, SWITCH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    start = runpy.run_path(str(share("launch", "camera.launch.py")))["start"]
    given = {"package": "usb_cam", "executable": "usb_cam_node_exe", "namespace": "endoscope", "arguments": "--fast"}
    said, driver = start({**CAMERA_DEFAULTS, **given, "remappings": "image:=image_raw"})
    assert (driver.package, driver.executable, driver.name) == ("usb_cam", "usb_cam_node_exe", None)
    assert (driver.namespace, driver.parameters) == ("endoscope", [])
    assert driver.remappings == [("image", "image_raw")] and driver.arguments[:2] == ["--fast", "--ros-args"]
    assert driver.additional_env.keys() == {*VARIABLES} and "shared memory" in said.msg


def test_launch_file_uses_every_argument():
    """`launch` is not on PyPI, so what can be checked without it is checked by reading the file."""
    text = share("launch", "depth.launch.py").read_text()
    ast.parse(text)
    used = {*PARAMETERS, "image_topic", "camera_info_topic", "dds_profile", "image_size"}  # by launching.py
    used |= {name for name in ARGUMENTS if f'values["{name}"]' in text}
    assert used == ARGUMENTS.keys()


def test_launch_description_is_made_where_launch_is_installed():
    pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS 2 installation")
    description = runpy.run_path(str(share("launch", "depth.launch.py")))["generate_launch_description"]()
    assert len(description.entities) == len(ARGUMENTS) + 1
    description = runpy.run_path(str(share("launch", "camera.launch.py")))["generate_launch_description"]()
    assert len(description.entities) == len(CAMERA_ARGUMENTS) + 1


def test_rviz_shows_topics_that_the_node_publishes():
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")
    from endomust_ros.outputs import OUTPUTS

    view = yaml.safe_load(share("config", "endomust.rviz").read_text())
    shown = {entry["Topic"]["Value"] for entry in view["Visualization Manager"]["Displays"] if "Topic" in entry}
    published = {output.topic.replace("~", "/endomust") for output in OUTPUTS.values()}
    assert shown and shown <= published
