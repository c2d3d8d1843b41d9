"""Arguments of the launch file become what the node understands; files beside it name real topics and parameters."""

import ast
import runpy

import pytest
import yaml

from endomust_core.resources import share
from endomust_ros.launching import ARGUMENTS, PARAMETERS, environment, node_parameters, remappings
from endomust_ros.parameters import ABOUT, parameters_from

DEFAULTS = {name: default for name, (default, _) in ARGUMENTS.items()}


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
    from endomust_ros.transport import dds_profile

    assert dds_profile(environment({**DEFAULTS, "dds_profile": "none"}))[0] is None


def test_launch_file_uses_every_argument():
    """`launch` is not on PyPI, so what can be checked without it is checked by reading the file."""
    text = share("launch", "depth.launch.py").read_text()
    ast.parse(text)
    used = {*PARAMETERS, "image_topic", "camera_info_topic", "dds_profile"}  # by launching.py
    used |= {name for name in ARGUMENTS if f'values["{name}"]' in text}
    assert used == ARGUMENTS.keys()


def test_launch_description_is_made_where_launch_is_installed():
    pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS 2 installation")
    description = runpy.run_path(str(share("launch", "depth.launch.py")))["generate_launch_description"]()
    assert len(description.entities) == len(ARGUMENTS) + 1


def test_rviz_shows_topics_that_the_node_publishes():
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")
    from endomust_ros.outputs import OUTPUTS

    view = yaml.safe_load(share("config", "endomust.rviz").read_text())
    shown = {entry["Topic"]["Value"] for entry in view["Visualization Manager"]["Displays"] if "Topic" in entry}
    published = {output.topic.replace("~", "/endomust") for output in OUTPUTS.values()}
    assert shown and shown <= published
