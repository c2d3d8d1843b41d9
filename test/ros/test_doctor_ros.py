"""The ROS half of the doctor: environments that are made up, then publishers with known faults that it must see."""

import os
import threading
import time

import pytest

from endomust_core.checks import FAIL, OK, WARN, examine
from endomust_core.checks.software import Imported
from endomust_ros import doctor
from endomust_ros.dds_profile import profile_xml

SIZE = (1024, 1280)
FINE = {module: Imported() for module in doctor.MESSAGES}


def says(finding, level, *words):
    """The level and every word, in the sentence or the remedy; what is wrong always comes with a remedy."""
    assert finding.level == level, finding
    assert finding.level == OK or finding.remedy, finding
    for word in words:
        assert word in f"{finding.sentence} | {finding.remedy}", finding


# ---- the environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rclpy", "installed", "level", "words"),
    [
        ("", [], OK, ("import",)),
        ("ModuleNotFoundError: No module named 'rclpy'", ["jazzy"], FAIL, ("not sourced", "/opt/ros/jazzy/setup.bash")),
        ("ModuleNotFoundError: No module named 'rclpy'", [], WARN, ("not installed", "[ros]", "--no-ros")),
        ("ended the process (SIGSEGV)", ["jazzy"], FAIL, ("SIGSEGV", "same ROS distribution")),
    ],
)
def test_client(rclpy, installed, level, words):
    says(doctor.client({**FINE, "rclpy": Imported(error=rclpy)}, {}, installed), level, *words)


def test_middleware(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "librmw_fastrtps_cpp.so").touch()
    says(doctor.middleware({"AMENT_PREFIX_PATH": str(tmp_path)}), OK, "rmw_fastrtps_cpp")
    cyclone = {"AMENT_PREFIX_PATH": str(tmp_path), "RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}
    says(doctor.middleware(cyclone), FAIL, "not installed", "apt install ros-$ROS_DISTRO-rmw-cyclonedds-cpp")
    says(doctor.middleware({}), FAIL, "AMENT_PREFIX_PATH is empty", "source")


@pytest.mark.parametrize(
    ("env", "level", "words"),
    [
        ({}, OK, ("domain 0", "every machine")),
        ({"ROS_DOMAIN_ID": "42", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}, OK, ("domain 42", "this machine only")),
        ({"ROS_LOCALHOST_ONLY": "1"}, OK, ("this machine only",)),
        ({"ROS_DOMAIN_ID": "150"}, WARN, ("150", "up to 101")),
        ({"ROS_DOMAIN_ID": "300"}, FAIL, ("'300'",)),
        ({"ROS_DOMAIN_ID": "robot"}, FAIL, ("'robot'",)),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}, FAIL, ("discovery is off",)),
    ],
)
def test_domain(env, level, words):
    says(doctor.domain(env), level, *words)


@pytest.mark.parametrize(
    ("total", "free", "level", "words"),
    [
        (8 << 30, 8 << 30, OK, ("1280x1024",)),
        (64 << 20, 64 << 20, OK, ("1280x1024",)),  # what Docker gives by itself
        (32 << 20, 32 << 20, FAIL, ("raw images get lost", "--ipc=host")),
        (8 << 30, 10 << 20, FAIL, ("fastdds shm clean",)),
        (None, None, FAIL, ("there is no /dev/shm",)),
    ],
)
def test_shared_memory(total, free, level, words):
    says(doctor.shared_memory(total, free, SIZE), level, *words)


def test_profile(tmp_path):
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    says(doctor.profile(home, SIZE, arriving=False), OK, "for the node", "camera.launch.py")
    says(doctor.profile(home, SIZE, arriving=True), OK, "images arrive")
    says(doctor.profile({**home, "ENDOMUST_DDS_PROFILE": "none"}, SIZE, False), WARN, "524 kB", "3.93 MB")
    says(doctor.profile({**home, "RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, SIZE, False), OK, "not needed")
    says(doctor.profile({**home, "FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"}, SIZE, False), OK, "LARGE_DATA")
    small = tmp_path / "small.xml"
    small.write_text(profile_xml(8 << 20))
    says(doctor.profile({**home, doctor.VARIABLES[0]: str(small)}, SIZE, False), WARN, "tight", "ENDOMUST_IMAGE_SIZE")
    small.write_text("<dds><profiles>")
    broken = examine("profile", doctor.profile, {**home, doctor.VARIABLES[0]: str(small)}, SIZE, False)
    says(broken, FAIL, "ParseError")


@pytest.mark.parametrize(
    ("read", "local", "level", "words"),
    [
        ("212992", False, WARN, ("213 kB", "another machine", "sysctl", "rmem_max=8388608")),
        ("212992", True, OK, ("within one machine",)),
        ("8388608", False, OK, ()),
        (None, False, OK, ("cannot be read",)),
    ],
)
def test_socket_buffers(read, local, level, words):
    says(doctor.sockets(read, read, 3 * SIZE[0] * SIZE[1], local), level, *words)


def test_transforms():
    says(doctor.transforms(True, True), OK)
    says(doctor.transforms(False, False), WARN, "TF is off", "apt install")


def test_an_environment_that_the_node_would_refuse_is_a_row(monkeypatch):
    monkeypatch.setenv("ENDOMUST_IMAGE_SIZE", "large")
    for name in doctor.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    rows, size = doctor.examine_ros(0.1)
    assert size == doctor.IMAGE_SIZE
    says(rows[0], FAIL, "large")


# ---- a camera that is wrong in known ways ---------------------------------------------------------------------------


class Camera(threading.Thread):
    """Publishes images and camera_info at 25 Hz until it is left."""

    def __init__(self, frame="camera", K=500.0, reliable=True, info=True, width=640, late=0.0, stamped=True):
        super().__init__(daemon=True)
        self.frame, self.K, self.reliable, self.info = frame, K, reliable, info
        self.width, self.late, self.stamped = width, late, stamped
        self.done = threading.Event()

    def __enter__(self):
        import rclpy

        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("wrong_camera", context=self.context)
        self.start()
        return self

    def __exit__(self, *error):
        import rclpy

        self.done.set()
        self.join(10)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def run(self):
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CameraInfo, Image

        policy = ReliabilityPolicy.RELIABLE if self.reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=1, reliability=policy)
        images = self.node.create_publisher(Image, "/rig/left/image_raw", qos)
        infos = self.node.create_publisher(CameraInfo, "/rig/left/camera_info", qos)
        image = Image(height=480, width=self.width, encoding="mono8", step=self.width)
        image.data = bytes(480 * self.width)
        info = CameraInfo(height=480, width=640, distortion_model="plumb_bob", d=[0.0] * 5)
        info.k = [self.K, 0.0, 319.5, 0.0, self.K, 239.5, 0.0, 0.0, 1.0]
        now = time.time()
        while not self.done.wait(max(0.0, now + 0.04 - time.time())):
            now += 0.04  # to the clock, so that a busy machine makes images late and not fewer
            if self.stamped:
                stamp = now - self.late
                image.header.stamp.sec, image.header.stamp.nanosec = int(stamp), int(stamp % 1 * 1e9)
            image.header.frame_id = info.header.frame_id = self.frame
            info.header.stamp = image.header.stamp
            images.publish(image)
            if self.info:
                infos.publish(info)


def rows_for(**faults):
    """What the doctor says about that camera, by name."""
    pytest.importorskip("rclpy")
    with Camera(**faults):
        rows, size = doctor.examine_ros(2.0, topic="/rig/left/image_raw")
    return {row.name: row for row in rows}, size


def test_a_camera_without_fault():
    rows, size = rows_for()
    assert size == (480, 640)
    says(rows["images"], OK, "/rig/left/image_raw: 640x480 mono8", "Hz", "reliable", "ms")
    says(rows["camera_info"], OK, "640x480, fx 500")
    says(rows["node"], OK, "not running")
    assert float(rows["images"].sentence.split(",")[1].split()[0]) == pytest.approx(25, rel=0.4)


def test_a_leading_slash_best_effort_and_no_calibration():
    rows, _ = rows_for(frame="/rig/left_frame", reliable=False, K=0.0, width=1280)
    says(rows["images"], WARN, "1280x480", "best_effort", "offer reliable")
    says(rows["camera_info"], FAIL, "K[0] is 0", "starts with a slash", "for 640x480")


def test_old_stamps_and_no_camera_info():
    rows, _ = rows_for(late=7200.0, info=False)
    says(rows["images"], WARN, "2 hours old", "--now")
    says(rows["camera_info"], WARN, "/rig/left/camera_info is published and silent", "depth only")


def test_no_stamps():
    rows, _ = rows_for(stamped=False)
    says(rows["images"], FAIL, "does not stamp")


def test_nobody_publishes():
    pytest.importorskip("rclpy")
    rows, size = doctor.examine_ros(0.5, topic="/nobody/image_raw")
    says({row.name: row for row in rows}["images"], WARN, "nobody publishes", "camera driver")
    assert size == doctor.IMAGE_SIZE


def test_the_running_node_is_found_with_its_state_and_its_complaints(node, probe):
    from endomust_ros.live_look import look

    seen = look(3.0)
    assert seen.nodes == {"/endomust": "active"}
    assert not [topic for topic in seen.topics if topic.name.startswith("/endomust/")]
    says(doctor.node_state(seen), WARN if seen.complaints else OK, "/endomust is active")


def test_the_environment_is_left_as_the_node_would_have_it():
    pytest.importorskip("rclpy")
    doctor.examine_ros(0.1)
    assert os.environ["RMW_IMPLEMENTATION"]
