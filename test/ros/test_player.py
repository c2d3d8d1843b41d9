"""Player and recorder over real DDS: every message arrives, bit for bit, at the recording's pace; stamps as asked."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'endomust_ros[ros]', or source a ROS 2 installation")

import rclpy
from small_recording import START_NS, write_small_recording

from endomust_core.decoding import stamp_ns_from_cdr
from endomust_core.recording import (
    CAMERA_INFO_TOPIC,
    COMPRESSED_TOPIC,
    IMAGE_TOPIC,
    RecordingError,
    RecordingReader,
)
from endomust_core.recording_writer import RecordingWriter
from endomust_ros import player as player_module
from endomust_ros.player import Player, PlayError, main, message_class
from endomust_ros.recorder import Recorder, Topic

pytestmark = pytest.mark.ros
RATE = 30.0  # Hz
KINDS = {COMPRESSED_TOPIC: "sensor_msgs/msg/CompressedImage", CAMERA_INFO_TOPIC: "sensor_msgs/msg/CameraInfo"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_small_recording(tmp_path_factory.mktemp("play") / "small.mcap", frames=24, rate=RATE)


@pytest.fixture
def nodes():
    """A node that plays and one that records, each with its own context, like two processes."""
    contexts = [rclpy.Context(), rclpy.Context()]
    made = []
    for context, name in zip(contexts, ("test_player", "test_recorder"), strict=True):
        rclpy.init(args=[], context=context)
        made.append(rclpy.create_node(name, context=context, start_parameter_services=False))
    yield made
    for node, context in zip(made, contexts, strict=True):
        node.destroy_node()
        rclpy.shutdown(context=context)


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def messages_of(path, topic):
    with RecordingReader(path) as reader:
        return [cdr for _, _, _, cdr in reader.messages([topic])]


def play_and_record(nodes, recording, out, **options):
    """Play the image and camera_info of a recording into a recorder; returns what was played and the recorder."""
    playing, recording_node = nodes
    recorder = Recorder(recording_node, out, [Topic(name, kind) for name, kind in KINDS.items()])
    with RecordingReader(recording) as reader:
        player = Player(playing, reader, list(KINDS))
        assert player.wait_for_subscribers(list(KINDS), 10.0) == []
        played = player.play(**options)
        wait_for(lambda: all(recorder.count(t) == reader.count(t) for t in KINDS))
        player.close()
    recorder.close()
    return played, recorder


def test_every_message_arrives_unchanged_at_the_recorded_pace(nodes, small, tmp_path):
    sent = []
    played, recorder = play_and_record(nodes, small, tmp_path / "out.mcap", on_sent=lambda *call: sent.append(call))
    for topic in KINDS:
        assert messages_of(tmp_path / "out.mcap", topic) == messages_of(small, topic)
    assert played.counts == dict.fromkeys(KINDS, 24) and played.acknowledged
    assert played.seconds == pytest.approx(23 / RATE, abs=0.3)
    assert 0 <= played.late_p95() < 0.1
    assert recorder.dropped == 0
    arrived = recorder.first_arrivals(COMPRESSED_TOPIC)
    sent_at = {stamp_ns_from_cdr(cdr): at for topic, _, cdr, at in sent if topic == COMPRESSED_TOPIC}
    assert arrived.keys() == sent_at.keys() and len(arrived) == 24
    assert all(0 < arrived[stamp] - sent_at[stamp] < 1.0 for stamp in arrived), "latency is measurable"


def test_now_moves_all_stamps_by_the_same_time(nodes, small, tmp_path):
    before = time.time_ns()
    play_and_record(nodes, small, tmp_path / "out.mcap", now=True, rate=2.0)
    images = [stamp_ns_from_cdr(cdr) for cdr in messages_of(tmp_path / "out.mcap", COMPRESSED_TOPIC)]
    infos = [stamp_ns_from_cdr(cdr) for cdr in messages_of(tmp_path / "out.mcap", CAMERA_INFO_TOPIC)]
    assert images == infos, "an image and its camera_info still belong together"
    assert before <= images[0] < before + 5e9
    np.testing.assert_allclose(np.diff(images), 1e9 / RATE / 2, atol=2)


def test_twice_as_fast_takes_half_the_time(nodes, small, tmp_path):
    played, _ = play_and_record(nodes, small, tmp_path / "out.mcap", rate=2.0)
    assert played.seconds == pytest.approx(23 / RATE / 2, abs=0.25)


def test_stop_ends_playing(nodes, small):
    with RecordingReader(small) as reader:
        player = Player(nodes[0], reader, [COMPRESSED_TOPIC])
        sent = []
        played = player.play(on_sent=lambda *call: sent.append(call), stop=lambda: len(sent) >= 3)
    assert played.counts[COMPRESSED_TOPIC] == 3


def test_nobody_listens(nodes, small):
    with RecordingReader(small) as reader:
        player = Player(nodes[0], reader, [COMPRESSED_TOPIC])
        started = time.monotonic()
        assert player.wait_for_subscribers([COMPRESSED_TOPIC], 0.2) == [COMPRESSED_TOPIC]
        assert time.monotonic() - started < 2.0


def test_a_topic_that_is_not_there_is_refused(nodes, small):
    with RecordingReader(small) as reader, pytest.raises(RecordingError, match="no topic /other; its topics:"):
        Player(nodes[0], reader, ["/other"])


def test_a_type_that_is_not_installed_is_named():
    with pytest.raises(PlayError, match="install the ROS package strange_msgs"):
        message_class("strange_msgs/msg/Odd")


def test_full_images_come_through_whole(nodes, tmp_path):
    """1.3 MB each: more than Fast DDS holds in shared memory without the project's profile."""
    image = np.random.default_rng(0).integers(0, 255, (512, 852, 3), dtype=np.uint8)
    with RecordingWriter(tmp_path / "raw.mcap") as writer:
        for index in range(20):
            writer.write_image(IMAGE_TOPIC, image, START_NS + index * 33_000_000, "camera")
    recorder = Recorder(nodes[1], tmp_path / "out.mcap", [Topic(IMAGE_TOPIC, "sensor_msgs/msg/Image")])
    with RecordingReader(tmp_path / "raw.mcap") as reader:
        player = Player(nodes[0], reader)
        assert player.wait_for_subscribers([IMAGE_TOPIC], 10.0) == []
        player.play()
    wait_for(lambda: recorder.count(IMAGE_TOPIC) == 20)
    recorder.close()
    assert messages_of(tmp_path / "out.mcap", IMAGE_TOPIC) == messages_of(tmp_path / "raw.mcap", IMAGE_TOPIC)


def test_a_recorder_that_heard_nothing_leaves_no_file(nodes, tmp_path):
    recorder = Recorder(nodes[1], tmp_path / "out.mcap", [Topic("/silent", "std_msgs/msg/String", stamped=False)])
    with pytest.raises(RecordingError, match="nothing was recorded"):
        recorder.close()
    assert list(tmp_path.iterdir()) == []


def test_the_command_plays_and_tells(small, capsys):
    assert main([str(small), "--wait", "0", "--rate", "4", "--topics", COMPRESSED_TOPIC]) == 0
    out = capsys.readouterr().out
    assert f"{COMPRESSED_TOPIC} (sensor_msgs/msg/CompressedImage, 24)" in out
    assert "sent 24 messages in 0.2 s" in out and "ms late" in out


def test_the_command_says_when_nobody_listens(small, capsys):
    assert main([str(small), "--wait", "0.1", "--rate", "20", "--topics", COMPRESSED_TOPIC]) == 0
    assert f"nobody subscribed to {COMPRESSED_TOPIC} within 0.1 s; playing anyway" in capsys.readouterr().err


def test_the_command_refuses_in_words(tmp_path, small, capsys):
    assert main([str(tmp_path / "none.mcap")]) == 2
    assert "none.mcap does not exist" in capsys.readouterr().err
    assert main([str(small), "--topics", "/other"]) == 2
    assert "no topic /other" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(small), "--rate", "0"])


def test_a_loop_plays_again_until_ctrl_c(small, monkeypatch, capsys):
    """The second round is cut short as Ctrl-C would."""
    rounds = []
    play = player_module.Player.play

    def counted(self, *arguments):
        if len(rounds) == 2:
            raise KeyboardInterrupt
        rounds.append(threading.current_thread())
        return play(self, *arguments)

    monkeypatch.setattr(player_module.Player, "play", counted)
    assert main([str(small), "--loop", "--wait", "0", "--rate", "20", "--topics", COMPRESSED_TOPIC]) == 130
    assert len(rounds) == 2 and capsys.readouterr().out.count("sent 24 messages") == 2
