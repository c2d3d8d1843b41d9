"""Replay of small worlds: every image is answered, what is wrong is named and counted, nothing half-written stays."""

import json
import os
import shutil
import signal
import subprocess
import sys
import types

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx", reason="writes the mock bundle")

from mock_bundle import write_mock_bundle
from small_recording import CAMERA, OPTICAL_FRAME, START_NS, image_at, write_small_recording

from endomust_core import replay as replay_module
from endomust_core import replay_outputs
from endomust_core.camera import Camera, save_camera
from endomust_core.decoding import cloud_from, depth_from, pose_from, rgb_from, stamp_ns
from endomust_core.recording import CAMERA_INFO_TOPIC, COMPRESSED_TOPIC, RecordingError, RecordingReader
from endomust_core.recording_writer import RecordingWriter
from endomust_core.replay import replay
from endomust_core.replay_outputs import DEPTH, DEPTH_INFO, MODEL_INFO, ODOM, POINTS
from endomust_core.settings import Settings
from endomust_core.trajectory import read_trajectory

STEP = (0.0006, 0.0002, 0.0001)
EVERYTHING = ["cloud.ply", "depth.mp4", "replay.mcap", "report.html", "summary.json", "trajectory.txt"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_mock_bundle(tmp_path_factory.mktemp("bundle") / "mock", translation=STEP)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_small_recording(tmp_path_factory.mktemp("small") / "small.mcap", frames=12)


# The pictures show noise, not what the mock network says of motion; so nothing is refined.
NETWORK_ONLY = Settings(odom_refine=False, odom_keyframe=False)


def run(source, bundle, out, **options):
    return replay(source, bundle, out, threads=1, settings=NETWORK_ONLY, **options)


def messages(path, topic):
    with RecordingReader(path) as reader:
        return [reader.deserialize(kind, cdr) for _, kind, _, cdr in reader.messages([topic])]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_raw(path, pixels_and_encodings, stamps=None, camera=CAMERA):
    """A recording of raw images, with camera_info before each."""
    with RecordingWriter(path) as writer:
        for index, (pixels, encoding) in enumerate(pixels_and_encodings):
            log = START_NS + index * 10**8
            stamp = log if stamps is None else stamps[index]
            if camera is not None:
                writer.write_camera_info(CAMERA_INFO_TOPIC, camera, stamp, OPTICAL_FRAME, log_ns=log)
            writer.write_image("/endoscope/image_raw", pixels, stamp, OPTICAL_FRAME, encoding, log_ns=log)
    return path


# ---- what comes out -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(small, bundle, tmp_path_factory):
    seen = []
    out = tmp_path_factory.mktemp("out") / "new" / "folder"
    result = run(small, bundle, out, points=True, progress=lambda done, announced: seen.append((done, announced)))
    return result, seen


def test_every_image_is_answered_in_every_form(done):
    result, seen = done
    assert result.complete and result.problems == [] and names(result.out) == EVERYTHING
    assert sorted(result.files) == EVERYTHING and seen == [(n, 12) for n in range(1, 13)]
    with RecordingReader(result.out / "replay.mcap") as recording:
        counts = {topic: recording.count(topic) for topic in recording.topics}
    assert [counts.pop(t) for t in (DEPTH, DEPTH_INFO, ODOM, "/tf", COMPRESSED_TOPIC, CAMERA_INFO_TOPIC)] == [12] * 6
    assert counts.pop(MODEL_INFO) == 1 and 5 < counts.pop(POINTS) <= 12 and counts.pop("/diagnostics") >= 1
    assert counts == {}, "and nothing else"


def test_stamps_images_and_geometry_are_those_of_the_source(done, small):
    result, _ = done
    path = result.out / "replay.mcap"
    source = messages(small, COMPRESSED_TOPIC)
    for topic in (DEPTH, ODOM, DEPTH_INFO):
        assert [stamp_ns(m) for m in messages(path, topic)] == [stamp_ns(m) for m in source]
    for before, after in zip(source, messages(path, COMPRESSED_TOPIC), strict=True):
        assert bytes(before.data) == bytes(after.data), "compressed images go through untouched"
    depth, odometry = messages(path, DEPTH)[5], messages(path, ODOM)[5]
    assert depth.header.frame_id == odometry.child_frame_id == OPTICAL_FRAME and odometry.header.frame_id == "odom"
    assert depth_from(depth).shape == (CAMERA.height, CAMERA.width)
    np.testing.assert_allclose(pose_from(odometry)[:3, 3], 5 * np.array([STEP[2], -STEP[0], -STEP[1]]), atol=1e-7)
    transform = messages(path, "/tf")[5].transforms[0]
    assert transform.child_frame_id == OPTICAL_FRAME
    assert transform.transform.translation.x == odometry.pose.pose.position.x


def test_cloud_of_one_image_is_its_depth_seen_through_its_camera(done):
    result, _ = done
    cloud = messages(result.out / "replay.mcap", POINTS)[0]
    depth = next(m for m in messages(result.out / "replay.mcap", DEPTH) if stamp_ns(m) == stamp_ns(cloud))
    points, colours = cloud_from(cloud)
    expected = CAMERA.strided(4).back_project(depth_from(depth)[::4, ::4])
    np.testing.assert_allclose(points, expected.reshape(-1, 3), atol=1e-7)
    assert colours is not None and cloud.point_step == 16


def test_trajectory_and_fused_cloud_agree_with_the_odometry(done):
    result, _ = done
    _, poses = read_trajectory(result.out / "trajectory.txt")
    expected = [pose_from(m) for m in messages(result.out / "replay.mcap", ODOM)]
    np.testing.assert_allclose(poses, expected, atol=1e-8)
    assert result.summary["odometry"]["stretches"] == [
        {"poses": 12, "length": pytest.approx(11 * np.linalg.norm(STEP), rel=1e-4)}
    ]
    assert b"format binary_little_endian" in (result.out / "cloud.ply").read_bytes()
    assert result.summary["cloud"]["points"] > 20


def test_the_video_shows_colour_beside_depth(done):
    result, _ = done
    video = cv2.VideoCapture(str(result.out / "depth.mp4"))
    frames = [frame for ok, frame in iter(video.read, (False, None)) if ok]
    assert len(frames) == 12 and frames[0].shape[1] == 2 * CAMERA.width
    left = frames[3][: CAMERA.height, : CAMERA.width, ::-1].astype(int)
    assert np.abs(left - image_at(3)).mean() < 12


def test_the_report_and_the_summary_say_what_happened(done):
    result, _ = done
    page = (result.out / "report.html").read_text()
    for title in ("Images and depth", "Fused cloud", "Trajectory", "Depth over time", "Speed", "Files", "Environment"):
        assert f"<h2>{title}</h2>" in page
    assert 'src="http' not in page and "The scale of this model is that of its training scenes" in page
    summary = json.loads((result.out / "summary.json").read_text())
    assert summary["complete"] and summary["images"]["answered"] == 12 and summary["format"] == 1
    assert summary["environment"]["command"].startswith("endomust replay ")
    assert json.loads(messages(result.out / "replay.mcap", MODEL_INFO)[0].data)["name"] == "mock"


def test_only_what_is_asked_for(small, bundle, tmp_path):
    run(small, bundle, tmp_path / "out", color=False, fused=False)
    assert names(tmp_path / "out") == ["replay.mcap", "report.html", "summary.json", "trajectory.txt"]
    with RecordingReader(tmp_path / "out" / "replay.mcap") as recording:
        assert not {COMPRESSED_TOPIC, POINTS} & recording.topics.keys()


def test_scale_multiplies_depth_and_path(small, bundle, done, tmp_path):
    result = run(small, bundle, tmp_path / "out", scale=2.0, color=False, fused=False)
    one, two = (messages(r.out / "replay.mcap", DEPTH)[0] for r in (done[0], result))
    both = np.isfinite(depth_from(two))
    np.testing.assert_allclose(depth_from(two)[both], 2 * depth_from(one)[both], rtol=1e-6)


# ---- sources --------------------------------------------------------------------------------------------------------


def test_raw_images_are_answered_and_stored_as_jpeg(bundle, tmp_path):
    source = write_raw(tmp_path / "raw.mcap", [(image_at(i), "rgb8") for i in range(3)])
    result = run(source, bundle, tmp_path / "out", fused=False)
    images = messages(result.out / "replay.mcap", COMPRESSED_TOPIC)
    assert len(images) == 3 and np.abs(rgb_from(images[1]).astype(int) - image_at(1)).mean() < 6


def test_a_folder_with_a_calibration(bundle, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in (0, 1, 2, 10):
        cv2.imwrite(str(folder / f"{index}.png"), image_at(index)[..., ::-1])
    (folder / "3.png").write_bytes(b"no image")
    save_camera(tmp_path / "camera.yaml", Camera(192, 160, 180.0, 180.0, 95.5, 79.5))  # twice the size: it is scaled
    result = run(folder, bundle, tmp_path / "out", camera=tmp_path / "camera.yaml", rate=10.0)
    assert not result.complete and result.summary["images"] == {
        "answered": 4, "unusable": 1, "with_odometry": 4, "without_depth": 0,
    }  # fmt: skip
    assert "1 image cannot be used: 3.png: it does not decode as an image" in result.problems[0]
    info = messages(result.out / "replay.mcap", CAMERA_INFO_TOPIC)
    assert len(info) == 4 and info[0].width == CAMERA.width
    stamps = [stamp_ns(m) for m in messages(result.out / "replay.mcap", DEPTH)]
    assert np.diff(stamps).tolist() == [10**8, 10**8, 2 * 10**8], "the gap of the broken image stays"


def test_a_video_without_calibration_gives_depth_only_and_says_so(bundle, tmp_path):
    video = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (96, 80))
    for index in range(5):
        video.write(image_at(index)[..., ::-1])
    video.release()
    result = run(tmp_path / "v.avi", bundle, tmp_path / "out")
    assert result.complete and names(result.out) == ["depth.mp4", "replay.mcap", "report.html", "summary.json"]
    assert "all images without camera_info: depth only" in result.notes[0]
    with RecordingReader(result.out / "replay.mcap") as recording:
        assert recording.count(DEPTH) == 5 and not {ODOM, "/tf", DEPTH_INFO} & recording.topics.keys()


def test_ros1_bags_are_read(bundle, small, tmp_path):
    rosbag1 = pytest.importorskip("rosbags.rosbag1")
    from rosbags.typesys import Stores, get_typestore

    ros1, ros2 = get_typestore(Stores.ROS1_NOETIC), get_typestore(Stores.ROS2_JAZZY)
    with rosbag1.Writer(tmp_path / "old.bag") as bag, RecordingReader(small) as reader:
        connections = {}
        for topic, kind, log_ns, cdr in reader.messages([COMPRESSED_TOPIC, CAMERA_INFO_TOPIC]):
            if topic not in connections:
                connections[topic] = bag.add_connection(topic, kind, typestore=ros1)
            bag.write(connections[topic], log_ns, ros2.cdr_to_ros1(cdr, kind))
    result = run(tmp_path / "old.bag", bundle, tmp_path / "out", fused=False)
    new = run(small, bundle, tmp_path / "new", fused=False)
    assert result.complete and result.summary["images"]["with_odometry"] == 12
    for topic in (DEPTH, ODOM, COMPRESSED_TOPIC):
        ours, theirs = (messages(r.out / "replay.mcap", topic) for r in (result, new))
        assert [bytes(getattr(m, "data", b"")) for m in ours] == [bytes(getattr(m, "data", b"")) for m in theirs]


def test_sqlite_recordings_are_read(bundle, small, tmp_path):
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    types, connections = get_typestore(Stores.ROS2_HUMBLE), {}
    with Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin.SQLITE3) as bag, RecordingReader(small) as r:
        for topic, kind, log_ns, cdr in r.messages([COMPRESSED_TOPIC, CAMERA_INFO_TOPIC]):
            if topic not in connections:
                connections[topic] = bag.add_connection(topic, kind, typestore=types)
            bag.write(connections[topic], log_ns, cdr)
    assert run(tmp_path / "bag", bundle, tmp_path / "out", fused=False).summary["images"]["with_odometry"] == 12


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_a_recording_that_was_cut_is_answered_as_far_as_it_goes(bundle, small, tmp_path):
    whole = small.read_bytes()
    (tmp_path / "cut.mcap").write_bytes(whole[: int(0.6 * len(whole))])
    result = run(tmp_path / "cut.mcap", bundle, tmp_path / "out")
    assert not result.complete and 3 <= result.summary["images"]["answered"] < 12
    assert "cut.mcap is cut short or was never finished" in result.problems[0]
    assert "Incomplete" in (result.out / "report.html").read_text() and names(result.out) == EVERYTHING


def test_undecodable_images_are_counted_and_the_rest_is_answered(bundle, tmp_path):
    good, broken = image_at(0), image_at(1)
    frames = [(good, "rgb8"), (broken, "8SC9"), (good[..., ::-1], "bgr8"), (good[..., 0], "mono8"), (broken, "8SC9")]
    result = run(write_raw(tmp_path / "mixed.mcap", frames), bundle, tmp_path / "out")
    assert not result.complete and result.summary["images"]["answered"] == 3
    assert "2 images cannot be used: image 1: encoding '8SC9' is not understood" in result.problems[0]
    assert any("the encoding of the images changes: rgb8 (1), bgr8 (1), mono8 (1)" in note for note in result.notes)


def test_images_of_another_size_get_depth_and_the_video_goes_on(bundle, tmp_path):
    frames = [(image_at(i), "rgb8") for i in range(3)]
    frames[1] = (np.ascontiguousarray(image_at(1)[:64, :64]), "rgb8")
    result = run(write_raw(tmp_path / "sizes.mcap", frames), bundle, tmp_path / "out")
    assert not result.complete and result.summary["images"]["answered"] == 3
    assert "1 image without a usable calibration" in result.problems[0] and "64x64" in result.problems[0]
    video = cv2.VideoCapture(str(result.out / "depth.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_time_that_goes_back_begins_another_stretch(bundle, tmp_path):
    stamps = [START_NS + i * 10**8 for i in (0, 1, 2, 0, 1, 2, 3)]
    frames = [(image_at(i % 4), "rgb8") for i in range(7)]
    result = run(write_raw(tmp_path / "loop.mcap", frames, stamps), bundle, tmp_path / "out")
    assert result.complete and result.summary["images"]["with_odometry"] == 7
    assert {"trajectory.txt", "trajectory_2.txt", "cloud.ply", "cloud_2.ply"} <= set(names(result.out))
    assert [len(read_trajectory(result.out / name)[0]) for name in ("trajectory.txt", "trajectory_2.txt")] == [3, 4]
    assert any("stamps went back once" in note and "went back by 0.200 s" in note for note in result.notes)


def test_nan_depth_and_implausible_motion_are_said(bundle, small, tmp_path):
    wild = write_mock_bundle(tmp_path / "wild", translation=(0.5, 0.0, 0.0), disparity=(-1.0, 0.0))
    result = run(small, wild, tmp_path / "out")
    assert result.complete and result.summary["images"]["without_depth"] == 12
    assert result.summary["odometry"]["lost"] == 11 and result.summary["depth"]["median"] is None
    assert any("the motion of 11 images is not plausible" in note for note in result.notes)
    assert "NaN" not in (result.out / "summary.json").read_text()


def test_uncalibrated_recordings_give_depth_only(bundle, tmp_path):
    with RecordingWriter(tmp_path / "u.mcap") as writer:
        for index in range(2):
            stamp = START_NS + index * 10**8
            writer.write_camera_info(CAMERA_INFO_TOPIC, None, stamp, OPTICAL_FRAME, size=(96, 80))
            writer.write_image("/endoscope/image_raw", image_at(index), stamp, OPTICAL_FRAME)
    result = run(tmp_path / "u.mcap", bundle, tmp_path / "out")
    assert result.complete and "the camera is uncalibrated" in result.notes[0]
    given = run(tmp_path / "u.mcap", bundle, tmp_path / "given", camera=CAMERA)
    assert given.summary["images"]["with_odometry"] == 2 and given.complete
    info = messages(given.out / "replay.mcap", CAMERA_INFO_TOPIC)
    assert [m.k[0] for m in info] == [CAMERA.fx] * 2, "the one that holds is written, not the one that does not"


def test_several_streams_need_a_choice(bundle, tmp_path):
    with RecordingWriter(tmp_path / "two.mcap") as writer:
        for name in ("/left", "/right"):
            writer.write_image(f"{name}/image_raw", image_at(0), START_NS, OPTICAL_FRAME)
        writer.write_camera_info("/right/camera_info", CAMERA, START_NS, OPTICAL_FRAME)
        writer.write_image("/left/depth", np.ones((8, 8), np.float32), START_NS, OPTICAL_FRAME, "32FC1")
    with pytest.raises(
        RecordingError, match=r"2 image streams; choose one with --topic: /left/image_raw \(.*, 1\), /ri"
    ):
        run(tmp_path / "two.mcap", bundle, tmp_path / "out")
    with pytest.raises(RecordingError, match="no images on /up; there are images on: /left"):
        run(tmp_path / "two.mcap", bundle, tmp_path / "out", topic="/up")
    assert not (tmp_path / "out").exists()
    left = run(tmp_path / "two.mcap", bundle, tmp_path / "left", topic="/left/image_raw")
    assert left.summary["source"]["camera_info"] is None, "the other camera's calibration is not taken"
    assert run(tmp_path / "two.mcap", bundle, tmp_path / "right", topic="/right/image_raw").summary["images"] == {
        "answered": 1, "unusable": 0, "with_odometry": 1, "without_depth": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda path: None, {}, "does not exist"),
        (lambda path: path.mkdir(), {}, "holds no images"),
        (lambda path: path.write_text("text"), {}, "not a video that OpenCV can decode"),
        (lambda path: (path.mkdir(), (path / "a.mcap").touch()), {}, "no metadata.yaml.*name one: a.mcap"),
        (lambda path: (path.mkdir(), cv2.imwrite(str(path / "1.png"), image_at(0))), {}, "knows no frame rate"),
        (lambda path: (path.mkdir(), (path / "1.png").touch()), {"rate": 5.0}, "not one image can be used: 1.png"),
    ],
    ids=["missing", "empty folder", "text", "loose recordings", "no rate", "no good image"],
)
def test_what_is_no_source_is_refused_in_words(bundle, tmp_path, make, options, words):
    make(tmp_path / "source")
    with pytest.raises(RecordingError, match=words):
        run(tmp_path / "source", bundle, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists(), "nothing is left behind"


# ---- files ----------------------------------------------------------------------------------------------------------


def test_earlier_results_are_kept_unless_overwriting_is_allowed(bundle, small, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    (out / "trajectory_7.txt").write_text("old")
    with pytest.raises(RecordingError, match=r"results of another replay \(trajectory_7.txt\)"):
        run(small, bundle, out)
    run(small, bundle, out, overwrite=True)
    assert names(out) == sorted([*EVERYTHING, "mine.txt"])
    with pytest.raises(RecordingError, match="would be replaced by its own replay"):
        run(out / "replay.mcap", bundle, out, overwrite=True)


def test_a_disk_without_room_is_named_before_the_work(bundle, small, tmp_path, monkeypatch):
    monkeypatch.setattr(replay_outputs.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(RecordingError, match="12 depth images of 96x80 take 0.1 GB .* has 0.0 GB; free some space"):
        run(small, bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


FULL = """
import resource, sys
from endomust_core.recording import RecordingError
from endomust_core.replay import replay
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # the disk takes no more than this
try:
    replay(sys.argv[1], sys.argv[2], sys.argv[3], threads=1)
except RecordingError as error:
    print(error)
"""


def test_a_disk_that_fills_up_is_named_and_leaves_nothing(bundle, small, tmp_path):
    command = [sys.executable, "-c", FULL, str(small), str(bundle), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "is the disk full?" in done.stdout, done.stderr
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing(bundle, small, tmp_path, monkeypatch):
    def interrupt(done, announced):
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(small, bundle, tmp_path / "out", progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "out").exists()


def test_a_fault_in_the_writing_thread_stops_the_replay(bundle, small, tmp_path, monkeypatch):
    def fail(self, *unused):
        raise ZeroDivisionError("in the film")

    monkeypatch.setattr(replay_outputs.Film, "add", fail)
    with pytest.raises(ZeroDivisionError, match="in the film"):
        run(small, bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- rerun ----------------------------------------------------------------------------------------------------------


def test_without_rerun_the_way_to_get_it_is_named(bundle, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(RecordingError, match="pip install rerun-sdk"):
        run(small, bundle, tmp_path / "out", rerun="spawn")
    assert not (tmp_path / "out").exists()


def test_every_image_goes_to_rerun(bundle, small, tmp_path, monkeypatch):
    logged = []

    class Anything:
        RIGHT_HAND_Z_UP = "z up"

        def __init__(self, *args, **fields):
            pass

        def compress(self):
            return self

    kinds = ("ViewCoordinates", "Pinhole", "Image", "DepthImage", "Transform3D", "LineStrips3D")
    module = types.ModuleType("rerun")
    module.__dict__.update(dict.fromkeys(kinds, Anything))
    for name in ("init", "save", "set_time", "disconnect"):
        setattr(module, name, lambda *args, name=name, **fields: logged.append((name, *args)))
    module.log = lambda path, *args, **fields: logged.append(("log", path))
    monkeypatch.setitem(sys.modules, "rerun", module)
    run(small, bundle, tmp_path / "out", rerun=str(tmp_path / "x.rrd"), color=False, fused=False)
    assert logged[1] == ("save", str(tmp_path / "x.rrd")) and logged[-1] == ("disconnect",)
    for entity in ("odom/camera/image/depth", "odom/camera/image/rgb", "odom/camera", "odom/path"):
        assert logged.count(("log", entity)) == 12


# ---- memory ---------------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from endomust_core.replay import replay
replay(sys.argv[1], sys.argv[2], sys.argv[3], threads=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_length(bundle, tmp_path):
    peaks = []
    for frames in (300, 900):
        source = write_small_recording(tmp_path / f"{frames}.mcap", frames=frames, depth_every=1000)
        command = [sys.executable, "-c", PEAK, str(source), str(bundle), str(tmp_path / str(frames))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 40, f"MB at 300 and 900 images: {peaks}"


def test_the_work_is_written_down_only_when_all_of_it_is_there(bundle, small, tmp_path, monkeypatch):
    def fail(*unused):
        raise ValueError("no page")

    monkeypatch.setattr(replay_module, "replay_page", fail)
    with pytest.raises(ValueError, match="no page"):
        run(small, bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()
