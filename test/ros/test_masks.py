"""Masks, path and machine facts: small parts of the node, without DDS."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

from sensor_msgs.msg import Image

from endomust_core.odometry import OdometryState, se3
from endomust_ros import machine
from endomust_ros.masks import Masks
from endomust_ros.messages import stamp_message
from endomust_ros.paths import Path

SECOND = 10**9


def mask_message(stamp, encoding="mono8", width=4, height=3):
    message = Image(encoding=encoding, width=width, height=height, step=width)
    message.header.stamp = stamp_message(stamp)
    message.data = bytes(range(12))
    return message


@pytest.fixture
def notes():
    return []


@pytest.fixture
def masks(notes):
    return Masks(lambda reason, sentence: notes.append((reason, sentence)))


def test_a_mask_serves_images_near_its_stamp(masks, notes):
    assert masks.at(SECOND, 0.2) is None and not notes
    masks.update(mask_message(SECOND))
    for stamp in (SECOND, SECOND + SECOND // 10, SECOND - SECOND // 10):
        np.testing.assert_array_equal(masks.at(stamp, 0.2), np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert masks.at(2 * SECOND, 0.2) is None
    assert notes == [("mask_old", "the mask differs by 1.00 s from the image; mask.max_age is 0.2 s")]


@pytest.mark.parametrize(
    ("message", "reason"),
    [(mask_message(SECOND, "rgb8"), "mask_encoding"), (mask_message(SECOND, width=40), "mask_decode")],
)
def test_what_is_no_mask_is_counted_and_not_used(masks, notes, message, reason):
    masks.update(message)
    assert masks.at(SECOND, 1.0) is None and masks.at(SECOND, 1.0) is None
    assert [kind for kind, _ in notes] == [reason]


def state_at(x, state="OK"):
    return OdometryState(se3(np.eye(3), np.array([x, 0.0, 0.0])), None, np.eye(6), np.eye(6), 0.0, state)


def test_a_path_keeps_two_poses_a_second_and_forgets_the_oldest():
    path = Path(length=3)
    added = [path.add(number * SECOND // 10, state_at(number)) for number in range(21)]
    assert [number for number, new in enumerate(added) if new] == [0, 5, 10, 15, 20]
    message = path.message(stamp_message(SECOND), "odom")
    assert [pose.pose.position.x for pose in message.poses] == [10.0, 15.0, 20.0]
    assert message.header.frame_id == message.poses[0].header.frame_id == "odom"
    path.clear()
    assert not path.add(0, state_at(0, "LOST")) and path.add(0, state_at(0))
    assert path.add(-5 * SECOND, state_at(0)), "a stamp that went back begins anew"


def test_memory_and_processor_are_those_of_this_process():
    facts = machine.memory()
    assert facts["resident [MB]"] == "-" or 10 < facts["resident [MB]"] < 1e5
    assert machine.processor()["cores"] >= 1


def test_on_a_system_that_says_nothing_there_are_dashes(tmp_path):
    assert set(machine.memory(tmp_path).values()) == {"-"}
    assert machine.processor(tmp_path)["hottest [C]"] == "-" and machine.jetson(tmp_path / "none") == {}


def test_a_hot_sensor_is_found(tmp_path):
    for number, text in enumerate(("41000", "nonsense", "55500")):
        (tmp_path / f"thermal_zone{number}").mkdir()
        (tmp_path / f"thermal_zone{number}" / "temp").write_text(text)
    assert machine.processor(tmp_path)["hottest [C]"] == 55.5


def test_the_gpu_is_asked_by_a_thread_of_its_own(monkeypatch):
    monkeypatch.setattr(machine, "_ask", lambda command: "H200, 1234, 41, 90.5, 12\n" if "smi" in command[0] else "")
    accelerator = machine.Accelerator(True)
    accelerator.facts()
    for _ in range(200):
        if accelerator.facts():
            break
        machine.time.sleep(0.01)
    assert accelerator.facts()["GPU"] == "H200" and accelerator.facts()["GPU temperature [C]"] == "41"
    assert machine.Accelerator(False).facts() == {}
