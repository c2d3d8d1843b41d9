"""Arguments of the launch file become what the node understands; files beside it name real topics and parameters."""

import ast
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from endomust_core.resources import share
from endomust_ros import launching, transport
from endomust_ros.camera_search import EXAMPLE, PATIENCE, NoCamera, only_camera, recorded, streams
from endomust_ros.launching import (
    ARGUMENTS,
    CAMERA_ARGUMENTS,
    FRAME,
    GSCAM_ARGUMENTS,
    PARAMETERS,
    USB_ARGUMENTS,
    LaunchError,
    calibration_url,
    camera_driver,
    camera_environment,
    environment,
    exact,
    foxglove_address,
    gscam_driver,
    image_topic,
    node_parameters,
    pairs,
    play_command,
    record_command,
    remappings,
    require,
    ros_arguments,
    usb_driver,
    view_remappings,
    words,
)
from endomust_ros.transport import SWITCH, VARIABLES, dds_profile

FILES = {
    "depth.launch.py": ARGUMENTS,
    "camera.launch.py": CAMERA_ARGUMENTS,
    "camera_usb.launch.py": USB_ARGUMENTS,
    "camera_gscam.launch.py": GSCAM_ARGUMENTS,
}


def defaults(arguments=ARGUMENTS, /, **given):
    """The values of a launch file's arguments where only some are given; None, which must be given, is empty."""
    assert given.keys() <= arguments.keys()
    return {**{name: default or "" for name, (default, _) in arguments.items()}, **given}


@pytest.fixture
def roomy(monkeypatch):
    monkeypatch.setattr(transport, "_free_shared_memory", lambda: 1 << 30)


@pytest.fixture
def installed(tmp_path):
    """An environment in which three camera drivers are installed."""
    packages = tmp_path / "ros/share/ament_index/resource_index/packages"
    packages.mkdir(parents=True)
    for name in ("usb_cam", "gscam", "other_cam"):
        (packages / name).touch()
    return {
        "AMENT_PREFIX_PATH": f"/nowhere{os.pathsep}{tmp_path / 'ros'}",
        "HOME": str(tmp_path),
        "ROS_DISTRO": "jazzy",
    }


# ---- the node ----


def test_defaults_leave_everything_to_the_parameter_file_and_the_node():
    assert node_parameters(defaults()) == {}
    assert remappings(defaults(), EXAMPLE) == [("image", EXAMPLE)]
    assert ros_arguments(defaults()) == ["--ros-args", "--log-level", "info"]


def test_every_argument_that_is_a_parameter_reaches_the_node():
    given = {
        "transport": "compressed",
        "model": "/bundles/mine",
        "provider": "tensorrt, cuda",
        "scale_mode": "kinematic",
        "publish_tf": "False",
        "odom_frame": "start",
        "base_frame": "tip",
        "use_sim_time": "true",
        "autostart": "0",
    }
    assert given.keys() == PARAMETERS.keys()
    assert node_parameters(defaults(**given)) == {
        "input.transport": "compressed",
        "model.path": "/bundles/mine",
        "model.providers": ["tensorrt", "cuda"],
        "scale.mode": "kinematic",
        "tf.publish": "off",
        "frames.odom": "start",
        "frames.base": "tip",
        "use_sim_time": True,
        "autostart": False,
    }


def test_parameters_named_here_exist_and_the_node_takes_these_values():
    parameters = pytest.importorskip("endomust_ros.parameters")
    assert {name for name, _ in PARAMETERS.values()} <= {*parameters.ABOUT, "use_sim_time"}
    assert PARAMETERS.keys() <= ARGUMENTS.keys()
    values = node_parameters(defaults(publish_tf="true", base_frame="tip", scale_mode="kinematic", provider="cpu"))
    parameters.parameters_from(values)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"autostart": "maybe"}, "autostart:=maybe is neither true nor false"),
        ({"publish_tf": "sometimes"}, "publish_tf:=sometimes is not one of auto, on, off"),
    ],
)
def test_what_cannot_be_read_is_named(given, words):
    with pytest.raises(LaunchError, match=words):
        node_parameters(defaults(**given))


@pytest.mark.parametrize("text, value", [("auto", "auto"), ("ON", "on"), ("true", "on"), ("0", "off"), ("off", "off")])
def test_publish_tf_knows_its_old_words_too(text, value):
    assert node_parameters(defaults(publish_tf=text)) == {"tf.publish": value}


def test_texts_stay_texts_on_their_way_through_launch():
    given = ["file.yaml", {"tf.publish": "off", "rate": 1.0, "names": ["a"]}]
    assert exact(given, lambda text: ("text", text)) == [
        "file.yaml",
        {"tf.publish": ("text", "off"), "rate": 1.0, "names": ["a"]},
    ]


def test_a_parameter_file_that_is_missing_is_not_passed_over(tmp_path):
    with pytest.raises(LaunchError, match="params_file:=/nowhere/a.yaml is no file"):
        launching.parameter_files(defaults(params_file="/nowhere/a.yaml"))
    (tmp_path / "a.yaml").touch()
    assert launching.parameter_files(defaults(params_file=str(tmp_path / "a.yaml"))) == [str(tmp_path / "a.yaml")]


def test_a_rig_is_a_shortcut_for_the_names_of_the_dvrk():
    nobody = pytest.fail
    values = defaults(rig="davinci")
    assert image_topic(values, nobody, nobody) == "/davinci/left/image_raw"
    assert remappings(values, "/i") == [("image", "/i")]  # without kinematics the arm is not listened to
    assert ("camera_pose", "/ECM/measured_cp") in remappings({**values, "scale_mode": "kinematic"}, "/i")
    own = {**values, "scale_mode": "kinematic", "camera_pose_topic": "/PSM3/measured_cp", "image_topic": "/mine"}
    assert ("camera_pose", "/PSM3/measured_cp") in remappings(own, "/i")
    assert image_topic(own, nobody, nobody) == "/mine"


def test_every_input_can_be_named():
    values = defaults(camera_info_topic="/c", mask_topic="/m", camera_pose_topic="/p")
    assert remappings(values, "/i") == [("image", "/i"), ("camera_info", "/c"), ("mask", "/m"), ("camera_pose", "/p")]


def test_without_a_name_the_recording_or_the_graph_says_which_images():
    assert image_topic(defaults(bag="case.mcap"), lambda bag: f"/{bag}", pytest.fail) == "/case.mcap"
    assert image_topic(defaults(), pytest.fail, lambda: "/found") == "/found"


def test_an_enclave_reaches_the_command_line():
    assert ros_arguments(defaults(enclave="/endomust"))[-2:] == ["--enclave", "/endomust"]


def test_profile_choice_reaches_the_process_of_the_node():
    assert dds_profile(environment(defaults(dds_profile="none")))[0] is None


def test_defaults_leave_what_the_shell_has_set():
    assert environment(defaults()) == {}


# ---- which images: the ROS graph ----


class Graph:
    """Stands for a node that looks at a graph: image topic → type, names of camera_info topics, services."""

    def __init__(self, images, infos=(), services=(), silent=()):
        self.images, self.infos, self.services, self.silent = images, infos, services, silent

    def get_topic_names_and_types(self):
        infos = [(name, ["sensor_msgs/msg/CameraInfo"]) for name in self.infos]
        return [(name, [f"sensor_msgs/msg/{kind}"]) for name, kind in self.images.items()] + infos

    def get_service_names_and_types(self):
        return [(name, ["std_srvs/srv/Trigger"]) for name in self.services]

    def count_publishers(self, topic):
        return int(topic in {*self.images, *self.infos} - {*self.silent})


def at_once(seconds):
    """Time that passes without waiting."""


def test_the_only_camera_is_found_raw_or_compressed():
    assert only_camera(Graph({"/a/image_raw": "Image"}, ["/a/camera_info"]), at_once) == "/a/image_raw"
    both = {"/a/image_raw": "Image", "/a/image_raw/compressed": "CompressedImage"}
    assert only_camera(Graph(both, ["/a/camera_info"]), at_once) == "/a/image_raw"
    packed = {"/a/image_raw/compressed": "CompressedImage", "/a/image_raw/compressedDepth": "CompressedImage"}
    assert only_camera(Graph(packed, ["/a/camera_info"]), at_once) == "/a/image_raw"


def test_images_without_calibration_beside_them_do_not_count():
    graph = Graph({"/a/image_raw": "Image", "/overlay/image": "Image"}, ["/a/camera_info"])
    assert only_camera(graph, at_once) == "/a/image_raw"


def test_answers_of_our_own_node_are_no_camera():
    images = {"/a/image_raw": "Image", "/left/endomust/depth/image_rect": "Image"}
    infos = ["/a/camera_info", "/left/endomust/depth/camera_info"]
    graph = Graph(images, infos, services=["/left/endomust/reset_odometry"])
    assert streams(graph) == {"/a/image_raw": True}
    graph.services = []  # then it is a stranger's camera
    assert len(streams(graph)) == 2


def test_several_cameras_are_listed():
    graph = Graph({"/a/image_raw": "Image", "/b/image_raw": "Image"}, ["/a/camera_info", "/b/camera_info"])
    with pytest.raises(NoCamera, match="several cameras: /a/image_raw, /b/image_raw; say which one: image_topic:=/a"):
        only_camera(graph, at_once)


def test_a_camera_without_calibration_is_offered_and_not_taken():
    with pytest.raises(NoCamera, match="without a camera_info beside them: /a/image_raw; .* image_topic:=/a/image_raw"):
        only_camera(Graph({"/a/image_raw": "Image"}), at_once)


def test_nobody_publishes_and_the_sentence_says_how_to_go_on():
    waited = []
    with pytest.raises(NoCamera, match=f"start the camera driver first, .*image_topic:={EXAMPLE}"):
        only_camera(Graph({"/a/image_raw": "Image"}, silent=["/a/image_raw"]), waited.append)
    assert sum(waited) == pytest.approx(PATIENCE)


def test_a_second_camera_that_shows_up_late_is_not_overlooked():
    """Fast DDS announces itself every 3 s; the first announcement of a camera may get lost."""
    graph, waited = Graph({"/a/image_raw": "Image"}, ["/a/camera_info"]), []

    def wait(seconds):
        waited.append(seconds)
        if sum(waited) > 3.0:
            graph.images["/b/image_raw"] = "Image"
            graph.infos = ["/a/camera_info", "/b/camera_info"]

    with pytest.raises(NoCamera, match="several"):
        only_camera(graph, wait)


# ---- recordings ----


def test_the_recording_says_which_images_it_holds():
    image, topics = recorded(str(share("models", "demo", "endoscope.mcap")))
    assert image == EXAMPLE and "/endoscope/camera_info" in topics


def test_a_recording_plays_at_its_rate_and_with_the_stamps_of_now():
    command = play_command(defaults(bag="case.mcap", rate="0.5", loop="true"), ["/a"])
    assert command[:4] == [sys.executable, "-m", "endomust_ros.player", "case.mcap"]
    assert command[command.index("--rate") + 1] == "0.5" and {"--loop", "--now"} <= {*command}
    assert "--topics" not in command
    pytest.importorskip("rclpy")
    from endomust_ros.player import _parse

    assert _parse(command[3:]).rate == 0.5


def test_answers_that_a_recording_holds_are_not_played_into_our_own():
    topics = ["/endoscope/image_raw", "/endomust/odom", "/endomust2/odom", "/diagnostics", "/tf", "/tf_static"]
    command = play_command(defaults(bag="case.mcap"), topics)
    assert command[command.index("--topics") + 1 :] == ["/endoscope/image_raw", "/endomust2/odom", "/tf_static"]
    elsewhere = play_command(defaults(bag="case.mcap", namespace="left"), topics)
    assert "--topics" not in elsewhere  # there they are not ours


@pytest.mark.parametrize(
    "given, words",
    [
        ({"rate": "0"}, "rate:=0 is not a positive number"),
        ({"rate": "inf"}, "rate:=inf"),
        ({"loop": "twice"}, "loop:=twice"),
        ({"use_sim_time": "true"}, "leave use_sim_time out"),
    ],
)
def test_a_recording_that_cannot_be_played_like_this_is_refused(given, words):
    with pytest.raises(LaunchError, match=words):
        play_command(defaults(bag="case.mcap", **given), [])


@pytest.mark.parametrize("given, ends", [({}, True), ({"loop": "true"}, False), ({"rviz": "true"}, False)])
def test_the_end_of_the_recording_is_the_end_where_nobody_looks_on(given, ends):
    assert launching.ends_with_the_recording(defaults(bag="case.mcap", **given)) is ends
    assert not launching.ends_with_the_recording(defaults(foxglove="0.0.0.0"))


def test_the_answers_of_this_very_node_are_recorded():
    command = record_command(defaults(record="out", namespace="/left/"))
    assert command[1:] == ["-m", "endomust_ros.record", "out", "--node", "/left/endomust"]
    pytest.importorskip("rclpy")
    from endomust_ros.record import file_for, topics_of

    names = {topic.name for topic in topics_of("/left/endomust")}
    assert {"/left/endomust/depth/image_rect", "/left/endomust/odom", "/left/endomust/model_info"} <= names
    assert "/diagnostics" in names and "/left/endomust/points" not in names
    assert file_for("a/b.mcap") == Path("a/b.mcap")
    assert file_for("a", now=(2026, 3, 1, 9, 5, 7, 0, 60, 0)) == Path("a/answers-20260301-090507.mcap")


def test_the_recorder_writes_what_the_node_says_until_it_is_stopped(tmp_path):
    rclpy = pytest.importorskip("rclpy")
    from nav_msgs.msg import Odometry
    from rclpy.duration import Duration

    from endomust_core.recording import RecordingReader

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("says_odometry", context=context)
    publisher = node.create_publisher(Odometry, "/left/endomust/odom", 10)
    command = record_command(defaults(record=str(tmp_path / "new" / "a.mcap"), namespace="left"))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 20
            while not publisher.get_subscription_count() and time.monotonic() < deadline:
                time.sleep(0.05)
            publisher.publish(Odometry(child_frame_id="tip"))
            assert publisher.wait_for_all_acked(Duration(seconds=5))
        finally:
            process.send_signal(signal.SIGINT)
            log = process.communicate(timeout=20)[1]
            node.destroy_node()
            rclpy.shutdown(context=context)
    assert process.returncode == 0, log
    with RecordingReader(tmp_path / "new" / "a.mcap") as recording:
        assert recording.count("/left/endomust/odom") == 1


# ---- viewers ----


def test_views_follow_the_node_into_its_namespace():
    topics = ["/endomust/points", "/tf"]
    assert view_remappings(defaults(), topics) == []
    assert view_remappings(defaults(namespace="left"), topics) == [("/endomust/points", "/left/endomust/points")]


@pytest.mark.parametrize("text, address", [("true", "127.0.0.1"), ("False", ""), ("10.0.0.7", "10.0.0.7")])
def test_foxglove_listens_on_this_machine_unless_told_otherwise(text, address):
    assert foxglove_address(text) == address
    assert not {"clientPublish", "parameters", "services"} & {*launching.FOXGLOVE_MAY}


# ---- the camera drivers ----


def test_image_size_decides_how_much_room_node_and_camera_get(roomy, tmp_path):
    node, sentence = dds_profile({"HOME": str(tmp_path), **environment(defaults(image_size="640x512"))})
    assert node.name == "fastdds_16mb.xml" and "640x512" in sentence
    values = defaults(CAMERA_ARGUMENTS, image_size="3840x2160")
    camera, sentence = camera_environment(values, {"HOME": str(tmp_path)})
    assert [camera[name].rpartition("/")[2] for name in VARIABLES] == ["fastdds_95mb.xml"] * 2  # 4 * 23.7 MB
    assert sentence.startswith("camera driver: ") and "3840x2160" in sentence


@pytest.mark.parametrize("env", [{SWITCH: "none"}, {VARIABLES[1]: "/own.xml"}, {"RMW_IMPLEMENTATION": "rmw_zenoh_cpp"}])
def test_a_camera_driver_keeps_what_the_user_chose(roomy, env):
    added, sentence = camera_environment(defaults(CAMERA_ARGUMENTS), env)
    assert added == {} and next(iter(env.values())) in sentence


def test_remappings_and_arguments_of_a_camera_driver():
    assert pairs("") == [] and words("") == []
    assert pairs("image:=/endoscope/image_raw  info:=camera_info") == [
        ("image", "/endoscope/image_raw"),
        ("info", "camera_info"),
    ]
    assert words("--device '/dev/video 0'") == ["--device", "/dev/video 0"]
    for wrong in ("image", "image:=", ":=image_raw"):
        with pytest.raises(LaunchError, match="write old:=new"):
            pairs(wrong)


def test_a_driver_that_is_not_installed_is_named_with_what_to_install(installed):
    require("usb_cam", installed)
    with pytest.raises(LaunchError, match="sudo apt install ros-jazzy-spinnaker-camera-driver"):
        require("spinnaker_camera_driver", installed)
    with pytest.raises(LaunchError, match=r"apt install ros-\$ROS_DISTRO-gscam"):
        gscam_driver(defaults(GSCAM_ARGUMENTS, pipeline="videotestsrc"), {})


def test_any_driver_gets_what_it_was_given(roomy, installed, tmp_path):
    (tmp_path / "own.yaml").touch()
    given = {"package": "other_cam", "executable": "node", "params_file": str(tmp_path / "own.yaml")}
    more = {"namespace": "endoscope", "arguments": "--fast", "remappings": "image:=image_raw"}
    node, sentence = camera_driver(defaults(CAMERA_ARGUMENTS, **given, **more), installed)
    assert (node["package"], node["executable"], node["name"]) == ("other_cam", "node", None)
    assert node["namespace"] == "endoscope" and node["parameters"] == [given["params_file"]]
    assert node["remappings"] == [("image", "image_raw")] and node["arguments"][:2] == ["--fast", "--ros-args"]
    assert node["additional_env"].keys() == {*VARIABLES} and "shared memory" in sentence


def test_usb_cam_is_asked_for_the_size_that_the_profile_has_room_for(roomy, installed, tmp_path):
    (tmp_path / "cal.yaml").touch()
    given = {
        "device": "/dev/video2",
        "image_size": "1280x720",
        "frame_rate": "25",
        "calibration": f"{tmp_path}/cal.yaml",
    }
    node, sentence = usb_driver(defaults(USB_ARGUMENTS, **given), installed)
    assert (node["package"], node["executable"], node["namespace"]) == ("usb_cam", "usb_cam_node_exe", "endoscope")
    assert node["parameters"] == [
        {"frame_id": FRAME},
        {
            "video_device": "/dev/video2",
            "image_width": 1280,
            "image_height": 720,
            "framerate": 25.0,
            "camera_info_url": f"file://{tmp_path}/cal.yaml",
        },
    ]
    assert "1280x720" in sentence


def test_a_drivers_own_parameter_file_stands_before_our_defaults(roomy, installed, tmp_path):
    (tmp_path / "own.yaml").touch()
    values = defaults(USB_ARGUMENTS, params_file=str(tmp_path / "own.yaml"))
    assert usb_driver(values, installed)[0]["parameters"] == [str(tmp_path / "own.yaml")]
    values["frame"] = "tip"
    assert usb_driver(values, installed)[0]["parameters"] == [str(tmp_path / "own.yaml"), {"frame_id": "tip"}]


def test_gscam_gets_its_pipeline_and_our_topic_names(roomy, installed):
    node, _ = gscam_driver(
        defaults(GSCAM_ARGUMENTS, pipeline="v4l2src ! videoconvert", namespace="davinci/left"), installed
    )
    assert node["parameters"] == [
        {"sync_sink": False, "frame_id": FRAME},
        {"gscam_config": "v4l2src ! videoconvert"},
    ]
    assert ("camera/image_raw", "image_raw") in node["remappings"] and node["namespace"] == "davinci/left"
    assert ("camera/image_raw/compressed", "image_raw/compressed") in node["remappings"]
    assert ("camera/camera_info", "camera_info") in node["remappings"]


def test_a_calibration_file_must_be_there(tmp_path):
    assert calibration_url("") == ""
    with pytest.raises(LaunchError, match="calibration:=/nowhere.yaml is no file"):
        calibration_url("/nowhere.yaml")


# ---- the launch files, with stand-ins for `launch`, which is not on PyPI ----


@pytest.fixture
def stand_ins(roomy, installed, monkeypatch):
    """Stand-ins for the classes of `launch`: each keeps what it was given."""

    def stand_in(name):
        return type(name, (), {"__init__": lambda self, *words, **given: self.__dict__.update(given, words=words)})

    class LaunchConfiguration:
        def __init__(self, name):
            self.name = name

        def perform(self, values):
            return values[self.name]

    actions = ["DeclareLaunchArgument", "ExecuteProcess", "LogInfo", "OpaqueFunction", "Shutdown", "TimerAction"]
    names = {
        "launch": ["LaunchDescription"],
        "launch.actions": actions,
        "launch.substitutions": [],
        "launch_ros": [],
        "launch_ros.actions": ["Node"],
        "launch_ros.parameter_descriptions": [],
    }
    for module, classes in names.items():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: stand_in(name) for name in classes}))
    sys.modules["launch.substitutions"].LaunchConfiguration = LaunchConfiguration
    sys.modules["launch_ros.parameter_descriptions"].ParameterValue = lambda value, value_type: value_type(value)
    for name in (*VARIABLES, SWITCH):
        monkeypatch.delenv(name, raising=False)
    for name, value in installed.items():
        monkeypatch.setenv(name, value)
    for name in ("rviz2", "foxglove_bridge"):
        Path(installed["HOME"], "ros/share/ament_index/resource_index/packages", name).touch()


def started(file, **given):
    """The actions of a launch file."""
    module = runpy.run_path(str(share("launch", file)))
    assert len(module["generate_launch_description"]().words[0]) == len(FILES[file]) + 1
    return module["start"](defaults(FILES[file], **given))


def test_the_camera_launch_files_start_their_driver_with_the_profile(stand_ins):
    for file, package, given in (
        ("camera.launch.py", "other_cam", {"package": "other_cam", "executable": "node"}),
        ("camera_usb.launch.py", "usb_cam", {"device": "/dev/video0"}),
        ("camera_gscam.launch.py", "gscam", {"pipeline": "videotestsrc"}),
    ):
        said, driver = started(file, **given)
        assert driver.package == package and driver.additional_env.keys() == {*VARIABLES}
        assert "shared memory" in said.msg


def test_the_launch_file_starts_the_node_alone_unless_asked_for_more(stand_ins):
    said, node = started("depth.launch.py", image_topic="/a/image_raw")
    assert "/a/image_raw" in said.msg and (node.package, node.name) == ("endomust_ros", "endomust")
    assert node.parameters == [] and node.remappings == [("image", "/a/image_raw")]


def test_the_launch_file_starts_player_recorder_and_viewers_beside_the_node(stand_ins):
    bag = str(share("models", "demo", "endoscope.mcap"))
    _, node, recorder, player, rviz, bridge = started(
        "depth.launch.py", bag=bag, record="out", rviz="true", foxglove="true", namespace="left", odom_frame="start"
    )
    assert node.remappings == [("image", EXAMPLE)] and node.parameters == [{"frames.odom": "start"}]
    assert "endomust_ros.record" in recorder.cmd and "/left/endomust" in recorder.cmd
    assert "endomust_ros.player" in player.cmd and player.on_exit == []
    assert ("/endomust/points", "/left/endomust/points") in rviz.remappings and rviz.arguments[-2:] == ["-f", "start"]
    assert bridge.parameters == [{"address": "127.0.0.1", "capabilities": launching.FOXGLOVE_MAY}]


def test_the_launch_file_ends_with_a_recording_that_nobody_watches(stand_ins):
    *_, player = started("depth.launch.py", bag=str(share("models", "demo", "endoscope.mcap")))
    (timer,) = player.on_exit
    assert "has been played" in timer.actions[0].reason


@pytest.mark.parametrize("file, arguments", FILES.items())
def test_launch_files_use_every_argument(file, arguments):
    """An argument that nobody reads would be a promise that is not kept."""
    source = share("launch", file).read_text() + Path(launching.__file__).read_text()
    ast.parse(share("launch", file).read_text())
    used = {name for name in arguments if re.search(rf"""values(\[|\.get\()["']{name}["']""", source)}
    assert arguments.keys() <= used | PARAMETERS.keys()


@pytest.mark.parametrize("file, arguments", FILES.items())
def test_launch_description_is_made_where_launch_is_installed(file, arguments):
    pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS 2 installation")
    description = runpy.run_path(str(share("launch", file)))["generate_launch_description"]()
    assert len(description.entities) == len(arguments) + 1


def test_what_must_be_given_has_no_default():
    needed = {
        file: [n for n, (default, _) in arguments.items() if default is None] for file, arguments in FILES.items()
    }
    assert needed["camera.launch.py"] == ["package", "executable"] and needed["camera_gscam.launch.py"] == ["pipeline"]
    assert needed["depth.launch.py"] == needed["camera_usb.launch.py"] == []


# ---- views ----


def published():
    """Topics that the node publishes in the default namespace."""
    pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")
    from endomust_ros.outputs import OUTPUTS

    return {output.topic.replace("~", "/endomust") for output in OUTPUTS.values()} | {"/tf", "/diagnostics"}


SHOWN = {  # what a user expects to see in either viewer
    f"/endomust/{name}" for name in ("depth/color", "depth/confidence", "rgb/image_rect", "points", "odom", "path")
}


def test_rviz_shows_topics_that_the_node_publishes():
    view = yaml.safe_load(share("config", "endomust.rviz").read_text())
    displays = view["Visualization Manager"]["Displays"]
    shown = {entry["Topic"]["Value"] for entry in displays if "Topic" in entry}
    assert shown == SHOWN | {"/endomust/depth/image_rect"}
    assert "rviz_default_plugins/TF" in {entry["Class"] for entry in displays}
    assert shown <= published()


def panels():
    return json.loads(share("config", "endomust_foxglove.json").read_text())["configById"]


def leaves(layout):
    """Names of the panels that a Foxglove layout places."""
    return [layout] if isinstance(layout, str) else leaves(layout["first"]) + leaves(layout["second"])


def test_foxglove_shows_topics_that_the_node_publishes():
    shown = {"/tf"} if any(name.startswith("3D!") for name in panels()) else set()
    for name, panel in panels().items():
        shown |= set(panel.get("topics", {})) | {panel[key] for key in ("topicToRender",) if key in panel}
        shown |= {path["value"].partition(".")[0] for path in panel.get("paths", [])}
        shown |= {panel["imageMode"]["imageTopic"]} if name.startswith("Image!") else set()
    assert SHOWN | {"/diagnostics", "/tf", "/endomust/depth/image_rect"} == shown
    assert shown <= published()


def test_foxglove_places_every_panel_once():
    layout = json.loads(share("config", "endomust_foxglove.json").read_text())["layout"]
    assert sorted(leaves(layout)) == sorted(panels())


def test_foxglove_plots_values_that_diagnostics_have():
    source = "".join(file.read_text() for file in Path(launching.__file__).parent.glob("*.py"))
    plotted = [path["value"] for name, panel in panels().items() if name.startswith("Plot!") for path in panel["paths"]]
    keys = [re.search(r'name=="endomust: (\w+)"\}.*key=="([^"]+)"', path).groups() for path in plotted]
    assert {task for task, _ in keys} >= {"input", "depth"}
    for task, key in keys:
        base = re.sub(r" (p50|p95|p99|max)$", "", key)
        assert f'"{task}"' in source and (f'"{key}"' in source or f'"{base}"' in source), key
