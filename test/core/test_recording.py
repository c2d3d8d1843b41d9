"""Recordings: what is written comes back bit for bit, opens in other tools, and damage is reported in words."""

import sqlite3

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from small_recording import CAMERA, OPTICAL_FRAME, START_NS, depth_at, image_at, pose_at, write_small_recording

from endomust_core.camera import Camera
from endomust_core.decoding import (
    DecodingError,
    camera_from,
    cloud_from,
    depth_from,
    pose_from,
    restamped_cdr,
    rgb_from,
    stamp_ns,
    stamp_ns_from_cdr,
)
from endomust_core.recording import (
    CAMERA_INFO_TOPIC,
    COMPRESSED_TOPIC,
    DEPTH_PNG_TOPIC,
    DEPTH_UNIT_M,
    IMAGE,
    POSE_TOPIC,
    RecordingError,
    RecordingReader,
)
from endomust_core.recording_writer import RecordingWriter


@pytest.fixture
def small(tmp_path):
    return write_small_recording(tmp_path / "small.mcap", frames=6)


def read_all(path, topic):
    with RecordingReader(path) as reader:
        return [reader.deserialize(kind, cdr) for _, kind, _, cdr in reader.messages([topic])]


def test_topics_counts_and_duration(small):
    with RecordingReader(small) as reader:
        assert reader.topics[COMPRESSED_TOPIC] == "sensor_msgs/msg/CompressedImage"
        assert (reader.count(COMPRESSED_TOPIC), reader.count(DEPTH_PNG_TOPIC), reader.count("/nothing")) == (6, 2, 0)
        assert reader.start_ns == START_NS
        assert reader.duration_s == pytest.approx(5 / 15, abs=1e-6)
        assert reader.image_topic() == COMPRESSED_TOPIC


def test_messages_come_in_the_order_of_time_and_of_the_chosen_topics(small):
    with RecordingReader(small) as reader:
        rows = list(reader.messages([COMPRESSED_TOPIC, POSE_TOPIC]))
    assert {row[0] for row in rows} == {COMPRESSED_TOPIC, POSE_TOPIC}
    times = [row[2] for row in rows]
    assert times == sorted(times) and len(rows) == 12


def test_pose_camera_and_compact_depth_come_back(small):
    for index, message in enumerate(read_all(small, POSE_TOPIC)):
        np.testing.assert_allclose(pose_from(message), pose_at(index), atol=1e-12)
        assert message.header.frame_id == "world"
    assert camera_from(read_all(small, CAMERA_INFO_TOPIC)[0]) == CAMERA
    depth = depth_from(read_all(small, DEPTH_PNG_TOPIC)[1])
    np.testing.assert_allclose(depth, depth_at(5), atol=0.51 * DEPTH_UNIT_M)


def test_jpeg_comes_back_close_to_the_image(small):
    message = read_all(small, COMPRESSED_TOPIC)[2]
    assert "jpeg" in message.format and message.header.frame_id == OPTICAL_FRAME
    assert np.abs(rgb_from(message).astype(int) - image_at(2)).mean() < 5  # red and blue exchanged would give about 40


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "rgba8", "bgra8"])
def test_raw_images_of_every_encoding(tmp_path, encoding):
    rgb = image_at(0)
    to = {"rgb8": None, "bgr8": cv2.COLOR_RGB2BGR, "mono8": cv2.COLOR_RGB2GRAY, "rgba8": cv2.COLOR_RGB2RGBA}
    code = {**to, "bgra8": cv2.COLOR_RGB2BGRA}[encoding]
    pixels = rgb if code is None else cv2.cvtColor(rgb, code)
    with RecordingWriter(tmp_path / "raw.mcap") as writer:
        writer.write_image("/image", pixels, START_NS, "camera", encoding)
    wanted = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB) if encoding == "mono8" else rgb
    np.testing.assert_array_equal(rgb_from(read_all(tmp_path / "raw.mcap", "/image")[0]), wanted)


def test_float_depth_keeps_every_bit_and_its_nan(tmp_path):
    depth = depth_at(0).copy()
    depth[:3] = np.nan
    with RecordingWriter(tmp_path / "d.mcap") as writer:
        writer.write_depth("/depth", depth, START_NS, "camera")
    np.testing.assert_array_equal(depth_from(read_all(tmp_path / "d.mcap", "/depth")[0]), depth)


def test_compact_depth_says_unknown_rather_than_wrapping_around(tmp_path):
    depth = np.array([[0.05, np.nan, 0.0, -0.1, 0.6, np.inf, 0.5119]], np.float32)
    with RecordingWriter(tmp_path / "d.mcap") as writer:
        writer.write_depth("/depth", depth, START_NS, "camera", compact=True)
    back = depth_from(read_all(tmp_path / "d.mcap", "/depth")[0])
    np.testing.assert_array_equal(np.isfinite(back), [[True, False, False, False, False, False, True]])
    np.testing.assert_allclose(back[0, [0, 6]], [0.05, 0.5119], atol=DEPTH_UNIT_M)


def test_without_a_camera_camera_info_says_uncalibrated(tmp_path):
    with RecordingWriter(tmp_path / "u.mcap") as writer:
        writer.write_camera_info("/camera_info", None, START_NS, "camera", size=(64, 48))
    message = read_all(tmp_path / "u.mcap", "/camera_info")[0]
    assert (message.width, message.height) == (64, 48) and not message.k.any()
    assert camera_from(message) is None


@pytest.mark.parametrize(
    "camera",
    [
        Camera(64, 48, 50, 51, 31, 23, "plumb_bob", (-0.3, 0.1, 0.001, 0.002, 0.0)),
        Camera(64, 48, 50, 51, 31, 23, "equidistant", (0.0, 0.0, 0.0, 0.0)),
        Camera(64, 48, 50, 51, 31, 23, "rational_polynomial", tuple(0.01 * i for i in range(8))),
    ],
)
def test_distorted_cameras_come_back(tmp_path, camera):
    with RecordingWriter(tmp_path / "c.mcap") as writer:
        writer.write_camera_info("/camera_info", camera, START_NS, "camera")
    assert camera_from(read_all(tmp_path / "c.mcap", "/camera_info")[0]) == camera


def test_a_cloud_comes_back_without_its_invalid_points():
    types = get_typestore(Stores.ROS2_JAZZY).types
    rows = np.zeros(3, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4")])
    rows["x"], rows["y"], rows["z"] = [0.1, np.nan, 0.3], [1, 2, 3], [4, 5, 6]
    rows["rgb"] = [0x010203, 0, 0xFF8040]
    fields = [
        types["sensor_msgs/msg/PointField"](name=name, offset=4 * i, datatype=7, count=1)
        for i, name in enumerate(("x", "y", "z", "rgb"))
    ]
    cloud = types["sensor_msgs/msg/PointCloud2"](
        header=None,
        height=1,
        width=3,
        fields=fields,
        is_bigendian=False,
        point_step=16,
        row_step=48,
        data=rows.view(np.uint8),
        is_dense=False,
    )
    points, colours = cloud_from(cloud)
    np.testing.assert_allclose(points, [[0.1, 1, 4], [0.3, 3, 6]], rtol=1e-6)
    np.testing.assert_array_equal(colours, [[1, 2, 3], [255, 128, 64]])


def test_stamps_can_be_read_and_changed_without_decoding(small):
    with RecordingReader(small) as reader:
        _, kind, log_ns, cdr = next(reader.messages([COMPRESSED_TOPIC]))
        assert cdr[:4] == b"\x00\x01\x00\x00", "CDR, little endian"
        assert stamp_ns_from_cdr(cdr) == log_ns == START_NS
        changed = reader.deserialize(kind, restamped_cdr(cdr, 5_000_000_123))
        before = reader.deserialize(kind, cdr)
        assert stamp_ns(changed) == 5_000_000_123
        np.testing.assert_array_equal(changed.data, before.data)
        assert reader.has_header(kind)
    with pytest.raises(DecodingError, match="no serialised message"):
        stamp_ns_from_cdr(b"\x00\x01")


def test_raw_messages_pass_through_unchanged(small, tmp_path):
    with RecordingReader(small) as reader, RecordingWriter(tmp_path / "copy.mcap", compress=True) as writer:
        before = list(reader.messages())
        for topic, kind, log_ns, cdr in before:
            writer.write_raw(topic, kind, cdr, log_ns)
    with RecordingReader(tmp_path / "copy.mcap") as reader:
        assert list(reader.messages()) == before


def test_other_tools_open_the_single_file(small):
    with Reader(small) as reader:
        assert reader.message_count == 20
        assert all(c.msgdef.data for c in reader.connections), "definitions are inside the file"


def test_the_mcap_library_agrees(small):
    mcap = pytest.importorskip("mcap.reader")
    with small.open("rb") as file:
        reader = mcap.make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        assert reader.get_header().profile == "ros2"
        assert summary.statistics.message_count == 20 and len(summary.chunk_indexes) >= 1
        assert {c.topic: c.message_encoding for c in summary.channels.values()}[COMPRESSED_TOPIC] == "cdr"
        assert all(s.encoding == "ros2msg" for s in summary.schemas.values())
        assert sum(1 for _ in reader.iter_messages(topics=[POSE_TOPIC])) == 6


@pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_rosbag2_folders_of_other_tools_open(tmp_path, storage):
    types = get_typestore(Stores.ROS2_HUMBLE)
    message = types.types["std_msgs/msg/String"](data="hello")
    with Writer(tmp_path / "bag", version=8, storage_plugin=storage) as bag:
        connection = bag.add_connection("/talk", "std_msgs/msg/String", typestore=types)
        bag.write(connection, 1, types.serialize_cdr(message, "std_msgs/msg/String"))
    with RecordingReader(tmp_path / "bag") as reader:
        ((topic, kind, stamp, cdr),) = reader.messages()
        assert (topic, stamp, reader.deserialize(kind, cdr).data) == ("/talk", 1, "hello")
        assert not reader.has_header(kind)
        with pytest.raises(RecordingError, match=r"no camera images; its topics: /talk \(std_msgs/msg/String, 1\)"):
            reader.image_topic()


def test_a_failed_recording_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), RecordingWriter(tmp_path / "a.mcap") as writer:
        writer.write_pose("/pose", np.eye(4), START_NS)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_recording_keeps_the_former_one(small):
    before = small.read_bytes()
    with pytest.raises(RecordingError, match="nothing was recorded"), RecordingWriter(small):
        pass
    assert small.read_bytes() == before and list(small.parent.iterdir()) == [small]


def test_writer_refuses_in_words(tmp_path, small):
    with pytest.raises(RecordingError, match="ends in .mcap"):
        RecordingWriter(tmp_path / "a.bag")
    with pytest.raises(RecordingError, match="exists already"):
        RecordingWriter(small, overwrite=False)
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        writer.write_pose("/pose", np.eye(4), START_NS)
        with pytest.raises(RecordingError, match="/pose carries geometry_msgs"):
            writer.write_raw("/pose", IMAGE, b"", START_NS)
        with pytest.raises(RecordingError, match="strange_msgs/msg/Odd is not known"):
            writer.write_raw("/odd", "strange_msgs/msg/Odd", b"", START_NS)


def test_reader_refuses_in_words(tmp_path, small):
    cases = {
        "missing.mcap": (None, "does not exist"),
        "movie.mp4": (b"film", "endomust import"),
        "old.bag": (b"#ROSBAG V2.0\n", "cannot be opened as a ROS 1 bag"),
        "wrong.mcap": (b"\x00" * 100, "is not an MCAP file"),
        "empty.mcap": (b"", "is not an MCAP file"),
        "cut.mcap": (small.read_bytes()[:-500], "cut short or was never finished"),
        "start.mcap": (small.read_bytes()[:60], "cut short or was never finished"),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(RecordingError, match=words):
            RecordingReader(tmp_path / name)
    with pytest.raises(RecordingError, match="without metadata.yaml"):
        RecordingReader(tmp_path)
    with RecordingReader(small) as reader, pytest.raises(RecordingError, match="no topic /other; its topics: .*pose"):
        list(reader.messages(["/other"]))


def test_a_broken_database_is_reported(tmp_path):
    types = get_typestore(Stores.ROS2_HUMBLE)
    with Writer(tmp_path / "bag", version=8) as bag:
        connection = bag.add_connection("/talk", "std_msgs/msg/String", typestore=types)
        message = types.types["std_msgs/msg/String"](data="hello")
        bag.write(connection, 1, types.serialize_cdr(message, "std_msgs/msg/String"))
    (database,) = (tmp_path / "bag").glob("*.db3")
    database.write_bytes(b"not a database")
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(database).execute("select * from topics")
    with pytest.raises(RecordingError, match="cannot be opened as a rosbag2 recording"):
        RecordingReader(tmp_path / "bag")


def test_a_damaged_chunk_is_reported(small):
    content = bytearray(small.read_bytes())
    middle = content.index(b"rgb8; jpeg")  # inside the first chunk: break the length of the record that follows
    content[middle - 40 : middle + 40] = b"\xff" * 80
    small.write_bytes(content)
    with RecordingReader(small) as reader, pytest.raises(RecordingError, match="is damaged|cannot be read"):
        for _, kind, _, cdr in reader.messages():
            reader.deserialize(kind, cdr)


def test_decoding_refuses_in_words(small, tmp_path):
    (pose,) = read_all(small, POSE_TOPIC)[:1]
    image = read_all(small, COMPRESSED_TOPIC)[0]
    with pytest.raises(DecodingError, match="names no metres_per_unit"):
        depth_from(image)
    image.data = image.data[:0]
    with pytest.raises(DecodingError, match="compressed image has no data"):
        rgb_from(image)
    with RecordingWriter(tmp_path / "i.mcap") as writer:
        writer.write_image("/i", depth_at(0), START_NS, "camera", "32FC1")
    (raw,) = read_all(tmp_path / "i.mcap", "/i")
    with pytest.raises(DecodingError, match="'32FC1' is not understood"):
        rgb_from(raw)
    raw.data = raw.data[:-1]
    with pytest.raises(DecodingError, match="does not match its"):
        depth_from(raw)
    assert pose.header.frame_id == "world"


def test_a_latched_topic_says_so_to_players(tmp_path):
    with RecordingWriter(tmp_path / "l.mcap") as writer:
        writer.write_string("/info", "model", START_NS, latched=True)
        writer.write_string("/talk", "hello", START_NS)
    with Reader(tmp_path / "l.mcap") as reader:
        offered = {c.topic: [qos.durability.name for qos in c.ext.offered_qos_profiles] for c in reader.connections}
    assert offered == {"/info": ["TRANSIENT_LOCAL"], "/talk": []}
