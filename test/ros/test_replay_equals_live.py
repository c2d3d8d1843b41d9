"""One recording through the running node and through replay: the same depth to the bit and the same odometry.

The node is fed as by a camera; where it drops images because it is busy, replay gets what it took and no more. Clouds
are made by a thread of low priority: each is the same to the bit, or the node says that it left it out.
"""

import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")
pytest.importorskip("onnx", reason="writes the mock bundle")

from harness import NodeProcess, depth_of
from mock_bundle import write_mock_bundle
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from small_recording import CAMERA, OPTICAL_FRAME, START_NS, image_at, write_small_recording

from endomust_core.bundle import default_bundle
from endomust_core.recording import (
    CAMERA_INFO,
    CAMERA_INFO_TOPIC,
    COMPRESSED_IMAGE,
    COMPRESSED_TOPIC,
    IMAGE,
    IMAGE_TOPIC,
    RecordingReader,
)
from endomust_core.recording_writer import RecordingWriter
from endomust_core.replay import replay
from endomust_core.replay_outputs import DEPTH, DEPTH_INFO, ODOM, POINTS
from endomust_core.resources import share

pytestmark = pytest.mark.ros
KINDS = {IMAGE: Image, COMPRESSED_IMAGE: CompressedImage, CAMERA_INFO: CameraInfo}
FRAMES = 8


@pytest.fixture(scope="module")
def changing(tmp_path_factory):
    """A bundle whose motion depends on the images, so that a wrong pair of images shows."""
    root = tmp_path_factory.mktemp("bundle") / "mock"
    return write_mock_bundle(
        root, translation=(0.001, 0.0, 0.002), rotation=(0.0, 0.02, 0.0), brightness_gain=(0.01, 0.05, -0.03)
    )


def write_raw(path):
    """Raw images in several encodings, one of them without a place in odometry: its stamp goes back."""
    with RecordingWriter(path) as writer:
        for index in range(FRAMES):
            stamp = START_NS + (index if index < 5 else index - 5) * 10**8
            pixels = image_at(index)
            encoding = ("rgb8", "bgr8", "mono8")[index % 3]
            pixels = {"rgb8": pixels, "bgr8": pixels[..., ::-1], "mono8": pixels[..., 1]}[encoding]
            log = START_NS + index * 10**8
            writer.write_camera_info(CAMERA_INFO_TOPIC, CAMERA, stamp, OPTICAL_FRAME, log_ns=log)
            writer.write_image(IMAGE_TOPIC, np.ascontiguousarray(pixels), stamp, OPTICAL_FRAME, encoding, log_ns=log)
    return path


def first_messages(source, path, images):
    """A recording of the first images of another."""
    with RecordingReader(source) as reader, RecordingWriter(path) as writer:
        for topic, kind, log_ns, cdr in reader.messages([COMPRESSED_TOPIC, CAMERA_INFO_TOPIC]):
            if writer.counts.get(COMPRESSED_TOPIC, 0) < images:
                writer.write_raw(topic, kind, cdr, log_ns)
    return path


def through_the_node(probe, log_folder, bundle, source, image_topic, burst=1):
    """Play a recording in bursts of so many images, each answered before the next; returns {output: messages}."""
    transport = "compressed" if image_topic == COMPRESSED_TOPIC else "raw"
    parameters = {"model.path": str(bundle), "points.stride": 4, "input.transport": transport}
    with NodeProcess(log_folder, parameters, ("-r", f"camera_info:={CAMERA_INFO_TOPIC}")):
        probe.follow("depth", "depth_info", "odom", "points", "diagnostics")
        probe.wait_for_state("active")
        for name in ("depth", "depth_info", "odom", "points"):
            probe.wait(lambda name=name: probe.node.count_publishers(topic_of(name)), f"a publisher of {name}")
            probe.got[name].clear()
        with RecordingReader(source) as reader:
            for number, info in enumerate(reader.messages([CAMERA_INFO_TOPIC])):
                if number == 0:  # the node must know the camera before the first image, as replay does
                    message = deserialize_message(info[3], CameraInfo)
                    probe.send(message, CAMERA_INFO_TOPIC)
                    know_the_camera(probe, reader, image_topic, message)
            skipped_before = skipped_clouds(probe)
            for number, (_, kind, _, cdr) in enumerate(reader.messages([image_topic]), start=1):
                before = len(probe.got["odom"])
                probe.send(deserialize_message(cdr, KINDS[kind]), image_topic)
                if number % burst == 0:
                    probe.wait(lambda before=before: len(probe.got["odom"]) > before, "the odometry of an image")
                    if burst > 1:
                        become_quiet(probe)
            become_quiet(probe)
            last = wait_for_the_last_cloud(probe, reader, image_topic)
            skipped = skipped_clouds(probe) - skipped_before
        names = ("depth", "depth_info", "odom", "points")
        return {name: [m for m in probe.got[name] if stamp(m) != last] for name in names} | {"skipped": skipped}


def wait_for_the_last_cloud(probe, reader, image_topic):
    """Send one image more, whose cloud is made after all others; returns its stamp."""
    _, kind, _, cdr = next(iter(reader.messages([image_topic])))
    message = deserialize_message(cdr, KINDS[kind])
    message.header.stamp.sec += 2000
    probe.send(message, image_topic)
    for name in ("depth", "depth_info", "odom", "points"):
        probe.wait(lambda name=name: any(stamp(m) == stamp(message) for m in probe.got[name]), f"the last {name}")
    return stamp(message)


def skipped_clouds(probe):
    """Clouds that were due and that the node has left out by now."""
    now = time.time_ns()

    def said():
        return next((array for array in probe.got["diagnostics"] if stamp(array) > now), None)

    statuses = {status.name: status.values for status in probe.wait(said, "new diagnostics").status}
    return next(int(pair.value) for pair in statuses["endomust: inference"] if pair.key == "skipped points")


def topic_of(name):
    return {"depth": DEPTH, "depth_info": DEPTH_INFO, "odom": ODOM, "points": POINTS}[name]


def know_the_camera(probe, reader, image_topic, info):
    """Show the first image, older than all others, until the node uses camera_info; then time goes back to the start.

    The stamp that goes back makes node and odometry forget it.
    """
    _, kind, _, cdr = next(iter(reader.messages([image_topic])))

    def used():
        message = deserialize_message(cdr, KINDS[kind])
        message.header.stamp.sec += 1000
        probe.send(info, CAMERA_INFO_TOPIC)
        probe.send(message, image_topic)
        probe._executor.spin_once(timeout_sec=0.2)
        return probe.got["depth_info"] and probe.got["points"]

    probe.wait(used, "the first depth/camera_info and cloud")
    become_quiet(probe)
    for name in probe.got:
        probe.got[name].clear()


def become_quiet(probe):
    """Until all answers have come."""

    def answers():
        return sum(len(messages) for name, messages in probe.got.items() if name != "diagnostics")

    count = -1
    while count != answers():
        count = answers()
        for _ in range(8):
            probe._executor.spin_once(timeout_sec=0.05)


def through_replay(bundle, source, out):
    result = replay(source, bundle, out, points=True, color=False, fused=False, threads=1)
    with RecordingReader(result.out / "replay.mcap") as reader:
        return {
            name: [reader.deserialize(kind, cdr) for _, kind, _, cdr in reader.messages([topic_of(name)])]
            for name in ("depth", "depth_info", "odom", "points")
        }


def stamp(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def assert_equal(live, offline):
    """Every field of every message, floats to the bit."""
    for name in ("depth", "odom", "depth_info"):
        assert [stamp(m) for m in live[name]] == [stamp(m) for m in offline[name]], name
    for ours, theirs in zip(live["depth"], offline["depth"], strict=True):
        assert np.array_equal(depth_of(ours).view(np.uint32), depth_of(theirs).view(np.uint32))
        assert (ours.encoding, ours.step) == (theirs.encoding, theirs.step)
        assert ours.header.frame_id == theirs.header.frame_id == OPTICAL_FRAME
    for ours, theirs in zip(live["odom"], offline["odom"], strict=True):
        assert numbers(ours) == numbers(theirs)
        assert (ours.child_frame_id, ours.header.frame_id) == (theirs.child_frame_id, theirs.header.frame_id)
    for ours, theirs in zip(live["depth_info"], offline["depth_info"], strict=True):
        assert list(ours.k) == list(theirs.k) and (ours.width, ours.height) == (theirs.width, theirs.height)
        assert list(ours.p) == list(theirs.p) and list(ours.d) == list(theirs.d)
    clouds = [(stamp(m), bytes(m.data)) for m in offline["points"]]
    came = [(stamp(m), bytes(m.data)) for m in live["points"]]
    assert came and came == [cloud for cloud in clouds if cloud in came]  # none that is other, in the same order
    assert len(came) + live["skipped"] == len(clouds)


def numbers(odometry):
    pose, twist = odometry.pose, odometry.twist
    p, q, v, w = pose.pose.position, pose.pose.orientation, twist.twist.linear, twist.twist.angular
    parts = [p.x, p.y, p.z, q.x, q.y, q.z, q.w, v.x, v.y, v.z, w.x, w.y, w.z]
    return [*parts, *map(float, pose.covariance), *map(float, twist.covariance)]


def test_compressed_images(probe, log_folder, changing, tmp_path):
    source = write_small_recording(tmp_path / "small.mcap", frames=FRAMES, depth_every=100)
    live = through_the_node(probe, log_folder, changing, source, COMPRESSED_TOPIC)
    assert len(live["depth"]) == len(live["odom"]) == FRAMES
    assert_equal(live, through_replay(changing, source, tmp_path / "out"))


def test_raw_images_of_mixed_encodings_with_time_going_back(probe, log_folder, changing, tmp_path):
    source = write_raw(tmp_path / "raw.mcap")
    live = through_the_node(probe, log_folder, changing, source, IMAGE_TOPIC)
    assert len(live["odom"]) == FRAMES
    assert_equal(live, through_replay(changing, source, tmp_path / "out"))


def test_the_default_model_on_the_demo(probe, log_folder, tmp_path):
    source = first_messages(share("models", "demo", "endoscope.mcap"), tmp_path / "demo.mcap", images=6)
    live = through_the_node(probe, log_folder, default_bundle(), source, COMPRESSED_TOPIC)
    assert len(live["odom"]) == 6
    assert_equal(live, through_replay(default_bundle(), source, tmp_path / "out"))


def test_where_the_node_drops_images_replay_of_those_it_took_agrees(probe, log_folder, tmp_path):
    whole = first_messages(share("models", "demo", "endoscope.mcap"), tmp_path / "demo.mcap", images=20)
    live = through_the_node(probe, log_folder, default_bundle(), whole, COMPRESSED_TOPIC, burst=5)
    taken = {stamp(m) for m in live["odom"]}
    assert 4 <= len(taken) < 20, "a burst of images leaves some behind"
    with RecordingReader(whole) as reader, RecordingWriter(tmp_path / "taken.mcap") as writer:
        for topic, kind, log_ns, cdr in reader.messages():
            if topic == CAMERA_INFO_TOPIC or stamp(deserialize_message(cdr, KINDS[kind])) in taken:
                writer.write_raw(topic, kind, cdr, log_ns)
    assert_equal(live, through_replay(default_bundle(), tmp_path / "taken.mcap", tmp_path / "out"))
