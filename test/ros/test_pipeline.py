"""Order, laziness and TF of one image's way through the node, without DDS: outputs and broadcaster only take notes."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from harness import CAMERA, FRAME, MOTION_ROTATION, MOTION_TRANSLATION, PICTURE
from std_msgs.msg import Header

from endomust_core.bundle import load_bundle
from endomust_core.estimator import Estimator
from endomust_core.odometry import OPTICAL_TO_BODY, matrix_from_quaternion, se3, so3_exp
from endomust_core.pipeline import Calibration
from endomust_ros import messages
from endomust_ros.diagnostics import Statistics, Tally
from endomust_ros.inputs import Frame
from endomust_ros.parameters import parameters_from
from endomust_ros.pictures import Painter
from endomust_ros.pipeline import Pipeline

EVERYTHING = ("depth", "depth_info", "odom", "points", "rgb", "color")
MOTION = se3(so3_exp(np.array(MOTION_ROTATION)), np.array(MOTION_TRANSLATION))


class Notes:
    """Stands for outputs and broadcaster: notes what is sent, in order."""

    reason = ""

    def __init__(self, wanted=EVERYTHING):
        self.subscribed, self.sent = set(wanted), []

    def wanted(self, name):
        return name in self.subscribed

    def anyone(self):
        return bool(self.subscribed)

    def spare(self, name):
        return None

    def publish(self, name, message, keep=False):
        self.sent.append((name, message))

    def sends(self, child, p):
        return True

    def send(self, transform):
        self.sent.append(("tf", transform))

    def names(self):
        return [name for name, _ in self.sent]

    def of(self, name):
        return [message for kind, message in self.sent if kind == name]


class Bench:
    """A pipeline on the mock bundle, and a camera that films 30 images per second."""

    def __init__(self, bundle, wanted=EVERYTHING, calibrated=True, **values):
        self.notes, self.lines, self.stamp = Notes(wanted), [], 100.0
        self.tally = Tally(self.lines.append)
        calibration = Calibration(rectified=False)
        if calibrated:
            calibration.update(messages.camera_info_message(CAMERA, Header()))
        self.estimator = Estimator(load_bundle(bundle), threads=1)
        given = {name.replace("__", "."): value for name, value in values.items()}
        self.statistics = Statistics()
        self.pipeline = Pipeline(
            self.estimator,
            parameters_from({"points.max_rate": 0.0, **given}),
            calibration,
            self.notes,
            self.notes,
            self.tally,
            self.statistics,
            now=lambda: self.stamp,
            hand_over=Painter(self.notes, self.statistics).paint,  # at once and here; in the node by another thread
        )

    def show(self, step=1 / 30, frame=FRAME):
        self.stamp += step
        header = Header(frame_id=frame)
        header.stamp.sec, header.stamp.nanosec = int(self.stamp), int(self.stamp % 1 * 1e9)
        self.notes.sent.clear()
        self.pipeline.process(Frame(messages.rgb_to_image(PICTURE, header), False))
        return self.notes


def test_depth_goes_first_then_motion_then_what_is_only_looked_at(bundle):
    assert Bench(bundle).show().names() == ["depth", "depth_info", "odom", "tf", "points", "rgb", "color"]


def test_depth_goes_out_before_the_pose_network_runs(bundle, monkeypatch):
    bench = Bench(bundle, wanted=("depth", "odom"))
    bench.show()
    motion, before = bench.estimator.motion, []

    def watched(*arguments):
        before.append(bench.notes.names())
        return motion(*arguments)

    monkeypatch.setattr(bench.estimator, "motion", watched)
    bench.show()
    assert "depth" in before[0] and "odom" not in before[0]


def test_nothing_is_made_for_nobody_but_odometry_goes_on(bundle):
    bench = Bench(bundle, wanted=())
    assert [bench.show().names() for _ in range(2)] == [["tf"], ["tf"]]
    assert bench.pipeline.track.steps == 1


def test_without_odometry_and_subscribers_no_network_runs(bundle, monkeypatch):
    bench = Bench(bundle, wanted=(), odom__enable=False)
    monkeypatch.setattr(bench.estimator, "look", lambda *_: pytest.fail("the network ran for nobody"))
    assert bench.show().names() == [] and bench.tally["idle"] == 1


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_output_is_made_only_for_its_own_subscribers(bundle, name):
    assert [sent for sent in Bench(bundle, wanted=(name,)).show().names() if sent != "tf"] == [name]


def test_transform_is_the_pose_with_the_stamp_of_the_image(bundle):
    bench = Bench(bundle)
    bench.show()
    notes = bench.show()
    transform, odometry = notes.of("tf")[0], notes.of("odom")[0]
    assert (transform.header, transform.child_frame_id) == (odometry.header, FRAME)
    q, t = transform.transform.rotation, transform.transform.translation
    pose = se3(matrix_from_quaternion((q.x, q.y, q.z, q.w)), np.array([t.x, t.y, t.z]))
    assert np.allclose(pose, OPTICAL_TO_BODY @ MOTION, atol=1e-6)


def test_no_transform_while_lost_or_for_a_stamp_that_was_sent_or_without_a_frame(bundle):
    bench = Bench(bundle)
    bench.show()
    assert "tf" not in bench.show(step=0.0).names()
    assert "tf" not in bench.show(frame="").names()
    bench.pipeline.parameters = parameters_from({"odom.max_translation": 1e-4})
    notes = bench.show()
    assert "tf" not in notes.names() and "odom" in notes.names()
    bench.pipeline.parameters = parameters_from({})
    assert "tf" in bench.show().names()


def test_transforms_go_on_after_stamps_went_back(bundle):
    bench = Bench(bundle)
    for _ in range(3):
        bench.show()
    assert "tf" in bench.show(step=-50.0).names() and bench.pipeline.track.steps == 0
    assert "given up: 2 steps" in bench.lines[-1]


def test_without_calibration_there_is_depth_and_nothing_that_needs_geometry(bundle):
    assert Bench(bundle, calibrated=False).show().names() == ["depth", "rgb", "color"]


def test_ten_clouds_a_second_out_of_thirty_images(bundle):
    bench = Bench(bundle, points__max_rate=10.0)
    clouds = ["points" in bench.show().names() for _ in range(30)]
    assert clouds == [True, False, False] * 10


def test_frame_can_be_given_by_parameter(bundle):
    notes = Bench(bundle, frames__camera_optical="ecm", frames__odom="world").show()
    assert {message.header.frame_id for _, message in notes.sent} == {"ecm", "world"}


def test_an_image_that_is_too_old_is_dropped_before_any_work(bundle):
    bench = Bench(bundle, input__max_age=0.5)
    bench.pipeline._now = lambda: bench.stamp + 0.6
    assert bench.show().names() == [] and bench.tally["stale"] == 1
    bench.pipeline._now = lambda: bench.stamp + 0.4
    assert "depth" in bench.show().names()
