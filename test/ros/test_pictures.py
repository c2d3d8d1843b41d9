"""What can wait is made by a second thread: it never holds up depth, belongs to one image, is left out when late."""

import threading

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from harness import CAMERA, FRAME, PICTURE, depth_of, points_of
from std_msgs.msg import Header

from endomust_core.bundle import load_bundle
from endomust_core.estimator import Estimator
from endomust_core.pipeline import Calibration
from endomust_ros import messages
from endomust_ros.diagnostics import Statistics, Tally
from endomust_ros.inputs import Frame
from endomust_ros.mailbox import Worker
from endomust_ros.parameters import parameters_from
from endomust_ros.pictures import PICTURES, Painter
from endomust_ros.pipeline import Pipeline

PATIENCE = 10.0  # s


class Notes:
    """Stands for the outputs: keeps copies of what is sent, and by which thread; lends memory as the real ones do."""

    reason = "no TF here"

    def sends(self, child, p):
        return False

    def __init__(self, wanted):
        self.subscribed, self.lock, self.kept = set(wanted), threading.Lock(), {}
        self.sent: dict[str, list] = {name: [] for name in ("depth", "depth_info", "odom", *PICTURES)}
        self.threads: dict[str, set] = {}

    def wanted(self, name):
        return name in self.subscribed

    def anyone(self):
        return bool(self.subscribed)

    def spare(self, name):
        return self.kept.get(name)

    def publish(self, name, message, keep=False):
        if keep:
            self.kept[name] = message
        data = bytes(message.data) if hasattr(message, "data") else None
        self.sent[name].append((message.header.stamp.nanosec, data))
        self.threads.setdefault(name, set()).add(threading.current_thread().name)

    def stamps(self, name):
        return [stamp for stamp, _ in self.sent[name]]


class Bench:
    """Worker and second thread as in the node, without DDS. `gate` closed holds the second thread before a picture."""

    def __init__(self, bundle, wanted, **values):
        self.notes, self.tally, self.gate = Notes(wanted), Tally(print), threading.Event()
        self.at_gate, self.errors = threading.Semaphore(0), []
        self.gate.set()
        calibration = Calibration(rectified=False)
        calibration.update(messages.camera_info_message(CAMERA, Header()))
        given = {name.replace("__", "."): value for name, value in values.items()}
        parameters = parameters_from({"points.max_rate": 0.0, "points.stride": 2, **given})
        statistics = Statistics()
        painter = Painter(self.notes, statistics)
        self.pipeline = Pipeline(
            Estimator(load_bundle(bundle), threads=1),
            parameters,
            calibration,
            self.notes,
            self.notes,
            self.tally,
            statistics,
            now=lambda: 0.0,
            hand_over=self.hand_over,
        )
        self.pictures = Worker(
            lambda picture: self.paint(painter, picture), self.errors.append, name="pictures", nice=1
        )
        self.pictures.start()

    def hand_over(self, picture):
        if self.pictures.put(picture, slot=picture.output):
            self.tally.count(f"skipped {picture.output}")

    def paint(self, painter, picture):
        self.at_gate.release()
        assert self.gate.wait(PATIENCE)
        painter.paint(picture)

    def show(self, number):
        """One image whose brightness, stamp and so whose depth are its own."""
        header = Header(frame_id=FRAME)
        header.stamp.nanosec = number * 10_000_000
        self.pipeline.process(Frame(messages.rgb_to_image(np.maximum(PICTURE, np.uint8(number)), header), False))

    def wait(self, condition):
        ticks = threading.Event()
        for _ in range(int(PATIENCE / 0.005)):
            if condition():
                return
            ticks.wait(0.005)
        raise AssertionError(
            f"waited {PATIENCE} s; sent: { {name: self.notes.stamps(name) for name in self.notes.sent} }"
        )


@pytest.fixture
def bench(bundle):
    made = []

    def make(*wanted, **values):
        made.append(Bench(bundle, wanted, **values))
        return made[-1]

    yield make
    for one in made:
        one.gate.set()
        one.pictures.stop()
        assert not one.errors


def test_depth_and_odometry_go_on_while_a_picture_takes_its_time(bench):
    b = bench("depth", "odom", "points", "rgb", "color")
    b.gate.clear()
    for number in range(6):
        b.show(number)
    assert len(b.notes.sent["depth"]) == len(b.notes.sent["odom"]) == 6
    assert not any(b.notes.sent[name] for name in PICTURES)


def test_of_those_that_wait_only_the_newest_is_made_and_the_others_are_counted(bench):
    b = bench("depth", "points", "color")
    b.gate.clear()
    b.show(0)
    assert b.at_gate.acquire(timeout=PATIENCE)  # the first cloud is in work
    for number in range(1, 6):
        b.show(number)
    b.gate.set()
    b.wait(lambda: b.notes.stamps("points")[-1:] == b.notes.stamps("color")[-1:] == [50_000_000])
    assert b.notes.stamps("points") == [0, 50_000_000] and b.notes.stamps("color") == [50_000_000]
    assert (b.tally["skipped points"], b.tally["skipped color"], b.tally["skipped rgb"]) == (4, 5, 0)


def test_a_cloud_that_is_due_is_not_pushed_out_by_images_without_one(bench):
    b = bench("depth", "points", "color", points__max_rate=20.0)  # every fifth of these images
    b.gate.clear()
    b.show(0)
    assert b.at_gate.acquire(timeout=PATIENCE)
    for number in range(1, 9):
        b.show(number)
    b.gate.set()
    b.wait(lambda: b.notes.stamps("color")[-1:] == [80_000_000])
    b.wait(lambda: b.notes.stamps("points") == [0, 50_000_000])
    assert b.tally["skipped points"] == 0


def test_every_picture_belongs_to_its_own_depth_though_memory_is_used_again(bench):
    b = bench("depth", "points", "rgb")
    for number in range(20):
        b.show(number)
    b.wait(lambda: b.notes.stamps("points")[-1:] == b.notes.stamps("rgb")[-1:] == [190_000_000])
    depths = dict(b.notes.sent["depth"])
    for stamp, data in b.notes.sent["points"]:
        z = np.frombuffer(data, np.float32).reshape(CAMERA.height // 2, CAMERA.width // 2, 4)[..., 2]
        depth = np.frombuffer(depths[stamp], np.float32).reshape(CAMERA.height, CAMERA.width)
        assert np.array_equal(z, depth[::2, ::2])
    for stamp, data in b.notes.sent["rgb"]:
        assert data == np.maximum(PICTURE, np.uint8(stamp // 10_000_000)).tobytes()


def test_each_output_is_published_by_one_thread(bench):
    b = bench("depth", "depth_info", "odom", "points", "rgb", "color")
    for number in range(5):
        b.show(number)
    b.wait(lambda: all(b.notes.sent[name] for name in ("points", "rgb", "color")))
    mine = threading.current_thread().name
    assert all(b.notes.threads[name] == {mine} for name in ("depth", "depth_info", "odom"))
    assert all(b.notes.threads[name] == {"pictures"} for name in ("points", "rgb", "color"))


@pytest.mark.ros
def test_the_running_node_says_what_it_left_out_and_stops_in_the_middle_of_pictures(node, probe):
    probe.follow("color", "rgb")
    for _ in range(20):
        probe.ask(step=0.02)
    status = probe.wait_for_status("inference", lambda s: "points [ms] p99" in s, "times of the second thread")
    assert int(status["skipped points"]) >= 0 and float(status["arrival [ms] max"]) != 0
    sent, depth = probe.ask()
    assert np.array_equal(points_of(probe.answer(sent, "points"))[..., 2], depth_of(depth))
    assert probe.change_state("deactivate") and probe.change_state("activate")
    probe.calibrate()
