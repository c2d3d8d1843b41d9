"""Every kind of training data opens; a bad frame is named and stops or leaves a gap; the cache is reused rightly."""

import errno
import json
import logging
import os
import shutil

import cv2
import numpy as np
import pytest
import yaml
from small_recording import CAMERA, START_NS, pose_at, write_small_recording

from endomust_core.camera import Camera, save_camera
from endomust_core.data import DataError
from endomust_core.data import cache as cache_file
from endomust_core.data.cache import cache, choose_gaps, load_cached
from endomust_core.data.sequences import Frame, open_sequences, straightened
from endomust_core.odometry import quaternion_from_matrix
from endomust_core.recording import COMPRESSED_TOPIC, DEPTH_UNIT_M, POSE_TOPIC
from endomust_core.recording_writer import RecordingWriter

HEIGHT, WIDTH = 48, 64


def picture(number, size=(HEIGHT, WIDTH)):
    """A textured (H,W,3) uint8 RGB frame whose mean red tells its number."""
    rgb = np.random.default_rng(7).integers(100, 156, (*size, 3), dtype=np.uint8)
    rgb[..., 0] = 6 * number + 3
    return rgb


def write_image(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rgb[..., ::-1])
    return path


def write_folder(path, count=5, suffix="png", first=0):
    for number in range(first, first + count):
        write_image(path / f"frame_{number}.{suffix}", picture(number))
    return path


def write_video(path, count=12):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (WIDTH, HEIGHT))
    for number in range(count):
        writer.write(picture(number)[..., ::-1])
    writer.release()
    return path


def write_rendered(path, count=4):
    for name in ("rgb", "depth", "truth"):
        (path / name).mkdir(parents=True)
    lines = []
    for number in range(count):
        write_image(path / f"rgb/{number:06d}.png", picture(number))
        units = np.full((HEIGHT, WIDTH), 1000 * (number + 1), np.uint16)
        units[0] = 0
        cv2.imwrite(str(path / f"depth/{number:06d}.png"), units)
        instrument = np.zeros((HEIGHT, WIDTH), bool)
        instrument[10:20, 5:9] = number % 2 == 1
        np.savez_compressed(path / f"truth/{number:06d}.npz", instrument=instrument, albedo=np.zeros((2, 2)))
        T = pose_at(number)
        lines.append(" ".join(f"{v:.12g}" for v in (number / 25, *T[:3, 3], *quaternion_from_matrix(T[:3, :3]))))
    (path / "poses.txt").write_text("# stamp x y z qx qy qz qw\n" + "\n".join(lines) + "\n")
    save_camera(path / "camera.yaml", CAMERA.resized(WIDTH, HEIGHT))
    meta = {"domain": "colon", "frames": count, "depth_unit_m": DEPTH_UNIT_M}
    (path / "meta.yaml").write_text(yaml.safe_dump(meta))
    return path


def write_simcol3d(path, numbers=(0, 1, 2)):
    for number in numbers:
        write_image(path / f"FrameBuffer_{number:04d}.png", picture(number))
        cv2.imwrite(str(path / f"Depth_{number:04d}.png"), np.full((HEIGHT, WIDTH), 128 * 256, np.uint16))
    return path


def only(spec, **options):
    (sequence,) = open_sequences(str(spec), **options)
    return sequence


def reds(frames):
    """The numbers that `picture` has hidden in the frames."""
    return [int(frame.rgb[..., 0].mean() / 6) for frame in frames]


# --- what opens


@pytest.mark.parametrize("spec", ["{}/a.avi", "video:{}/a.avi", "video:{}", "{}"])
def test_a_video_or_a_folder_of_videos(tmp_path, spec):
    write_video(tmp_path / "a.avi")
    sequence = only(spec.format(tmp_path))
    frames = list(sequence)
    assert (sequence.name, sequence.announced, sequence.skipped) == ("a", 12, 0)
    assert [frame.index for frame in frames] == list(range(12)) and reds(frames) == list(range(12))
    assert frames[0].depth is None and sequence.intrinsics is None
    assert reds(sequence) == list(range(12))  # a second pass reads anew


def test_images_come_in_natural_order_and_red_stays_red(tmp_path):
    sequence = only(write_folder(tmp_path / "images", 11))
    frames = list(sequence)
    assert reds(frames) == list(range(11)) and sequence.announced == 11
    assert np.array_equal(frames[3].rgb, picture(3))


def test_a_folder_of_folders_is_many_sequences(tmp_path):
    for name in ("b", "a"):
        write_folder(tmp_path / "set" / name, 3)
    assert [s.name for s in open_sequences(f"folder:{tmp_path / 'set'}")] == ["a", "b"]
    assert [s.name for s in open_sequences(str(tmp_path / "set"))] == ["a", "b"]


def test_a_calibration_beside_the_images_is_read(tmp_path):
    save_camera(write_folder(tmp_path / "images") / "camera.yaml", CAMERA)
    assert only(tmp_path / "images").intrinsics == pytest.approx((90 / 96, 90 / 80, 48 / 96, 40 / 80))


def test_a_recording_gives_images_and_intrinsics(tmp_path):
    path = write_small_recording(tmp_path / "run.mcap", frames=6)
    for spec in (path, f"recording:{path}", f"recording:{path}#{COMPRESSED_TOPIC}", f"recording:{tmp_path}"):
        sequence = only(spec)
        frames = list(sequence)
        assert [frame.index for frame in frames] == list(range(6)) and frames[0].rgb.shape == (80, 96, 3)
        assert sequence.intrinsics == pytest.approx((90 / 96, 90 / 80, 48 / 96, 40 / 80))
    with pytest.raises(DataError, match=r"no images on /nowhere; its topics: .*compressed"):
        open_sequences(f"recording:{path}#/nowhere")
    with pytest.raises(DataError, match="no images on"):
        open_sequences(f"recording:{path}#{POSE_TOPIC}")


def test_frames_that_a_recorder_dropped_leave_a_gap(tmp_path):
    with RecordingWriter(tmp_path / "run.mcap") as writer:
        for index in (0, 1, 2, 3, 7, 8):
            jpeg = cv2.imencode(".jpg", picture(index))[1].tobytes()
            jitter = 9_000_000 * (index % 2)  # a quarter of a period
            writer.write_compressed(COMPRESSED_TOPIC, jpeg, START_NS + index * 40_000_000 + jitter, "camera")
    assert [frame.index for frame in only(tmp_path / "run.mcap")] == [0, 1, 2, 3, 7, 8]


def test_a_rendered_sequence_carries_its_truth(tmp_path):
    write_rendered(tmp_path / "set/one")
    write_rendered(tmp_path / "set/two", 2)
    assert [s.name for s in open_sequences(f"rendered:{tmp_path / 'set'}")] == ["one", "two"]
    sequence = open_sequences(str(tmp_path / "set"))[0]
    frames = list(sequence)
    assert frames[2].depth[5, 5] == pytest.approx(3000 * DEPTH_UNIT_M) and np.isnan(frames[2].depth[0]).all()
    assert not frames[2].instrument.any() and frames[3].instrument.sum() == 40
    assert frames[3].T_world_camera == pytest.approx(pose_at(3), abs=1e-9)
    assert sequence.intrinsics == pytest.approx((90 / 96, 90 / 80, 0.5, 0.5)) and sequence.has_truth


def test_simcol3d_is_read_folder_by_folder(tmp_path):
    write_simcol3d(tmp_path / "S1")
    write_simcol3d(tmp_path / "S2", (4, 5))
    for spec in (f"simcol3d:{tmp_path}", str(tmp_path)):
        first, second = open_sequences(spec)
        assert (first.name, second.name, second.announced) == ("S1", "S2", 2)
        assert next(iter(first)).depth[3, 3] == pytest.approx(0.20 * 128 / 255)


# --- what does not open


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vidoe:{}", "did you mean video:"),
        ("kitti:{}", "(?s)unknown kind 'kitti'.*recording:/path"),
        ("video:", "say where it lies"),
        ("{}/nothing", "does not exist"),
        ("folder:{}/nothing", "does not exist"),
        ("{}", "(?s)holds no frames; expected.*rendered:/path"),
        ("folder:{}", "holds nothing that opens as folder"),
        ("video:{}", "holds nothing that opens as video"),
        ("recording:{}", "holds nothing that opens as recording"),
        ("rendered:{}", "meta.yaml"),
        ("simcol3d:{}", "FrameBuffer_0000.png"),
    ],
)
def test_a_wrong_path_or_prefix_shows_the_layout(tmp_path, spec, words):
    with pytest.raises(DataError, match=words):
        open_sequences(spec.format(tmp_path))


def test_a_folder_of_images_and_videos_needs_a_prefix(tmp_path):
    write_folder(tmp_path)
    write_video(tmp_path / "a.avi")
    with pytest.raises(DataError, match=r"several kinds \(folder, video\)"):
        open_sequences(str(tmp_path))
    assert only(f"video:{tmp_path}").announced == 12 and only(f"folder:{tmp_path}").announced == 5


def test_a_video_that_does_not_open_stops_or_is_left_out(tmp_path, caplog):
    write_video(tmp_path / "good.avi")
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match="bad.mp4 is not a video"):
        open_sequences(f"video:{tmp_path}")
    assert only(f"video:{tmp_path}", on_error="skip").name == "good"
    assert "bad.mp4" in caplog.text
    with pytest.raises(DataError, match="stop or skip"):
        open_sequences(f"video:{tmp_path}", on_error="ignore")


def test_a_ros1_bag_says_how_to_convert_it(tmp_path):
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(DataError, match="rosbags-convert"):
        open_sequences(str(tmp_path / "old.bag"))


def test_a_broken_meta_yaml_is_named(tmp_path):
    write_rendered(tmp_path / "one")
    (tmp_path / "one/meta.yaml").write_text("domain: colon\n")
    with pytest.raises(DataError, match="one is no sequence of `endomust render`.*depth_unit_m"):
        open_sequences(f"rendered:{tmp_path}")


# --- bad frames: named, and stop or gap


def cut(path):
    """Leave the first 60 % of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])


def flip_bit(path):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


BAD_FRAMES = {
    "cut PNG": ("png", cut, "frame_2.png: this PNG is cut short"),
    "PNG with a wrong bit": ("png", flip_bit, "frame_2.png: this PNG has damaged data"),
    "cut JPEG": ("jpg", cut, "frame_2.jpg: this JPEG is cut short"),
    "empty file": ("png", lambda path: path.write_bytes(b""), "frame_2.png: this does not decode as an image"),
    "text": (
        "jpg",
        lambda path: path.write_text("<html>not found</html>"),
        "frame_2.jpg: this does not decode as an image",
    ),
    "another size": ("png", lambda path: write_image(path, picture(2, (40, 64))), "frame_2.png is 64x40, .* 64x48"),
    "no file": ("png", lambda path: path.unlink(), "a frame between frame_1.png and frame_3.png is missing"),
    "link to nowhere": (
        "png",
        lambda path: (path.unlink(), path.symlink_to("away.png")),
        "frame_2.png is missing",
    ),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_a_bad_image_is_named_and_leaves_a_gap(tmp_path, caplog, case):
    suffix, spoil, words = BAD_FRAMES[case]
    spoil(write_folder(tmp_path / "images", 5, suffix) / f"frame_2.{suffix}")
    with pytest.raises(DataError, match=f"{words}; mend it, or go on without it: on_error: skip"):
        list(only(tmp_path / "images"))
    sequence = only(tmp_path / "images", on_error="skip")
    assert [frame.index for frame in sequence] == [0, 1, 3, 4] and sequence.skipped == 1
    assert "frame_2" in caplog.text or "frame_1" in caplog.text
    assert "1 frames are missing or unusable" in caplog.text


def test_names_without_numbers_and_every_tenth_frame_miss_nothing(tmp_path):
    for name in ("left", "right", "up"):
        write_image(tmp_path / "named" / f"{name}.png", picture(1))
    for number in (100, 110, 120, 140):
        write_image(tmp_path / "tenth" / f"{number}.png", picture(1))
    assert [frame.index for frame in only(tmp_path / "named")] == [0, 1, 2]
    assert [frame.index for frame in only(tmp_path / "tenth", on_error="skip")] == [0, 1, 2, 4]


def test_a_video_that_is_cut_short_is_noticed(tmp_path, caplog):
    path = write_video(tmp_path / "a.avi", 40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="a.avi: the last .* of 40 frames are missing"):
        list(only(path))
    sequence = only(path, on_error="skip")
    assert len(list(sequence)) + sequence.skipped == 40 and sequence.skipped > 10


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("rgb/000002.png", "rgb/000002.png is missing"),
        ("depth/000002.png", "depth/000002.png is missing"),
        ("truth/000002.npz", "truth/000002.npz is missing"),
        ("rgb/000003.png", "rgb/000003.png is missing"),  # the last one, which only meta.yaml knows of
    ],
)
def test_a_missing_file_of_a_rendered_sequence_is_named(tmp_path, file, words):
    (write_rendered(tmp_path / "one") / file).unlink()
    with pytest.raises(DataError, match=words):
        list(only(f"rendered:{tmp_path}"))
    lost = int(file[-5])
    kept = [frame.index for frame in only(f"rendered:{tmp_path}", on_error="skip")]
    assert kept == [index for index in range(4) if index != lost]


def test_damaged_truth_is_named(tmp_path):
    one = write_rendered(tmp_path / "one")
    cut(one / "truth/000001.npz")
    cv2.imwrite(str(one / "depth/000002.png"), np.full((10, 12), 9, np.uint16))
    cv2.imwrite(str(one / "depth/000003.png"), np.full((HEIGHT, WIDTH), 9, np.uint8))
    sequence = only(f"rendered:{tmp_path}", on_error="skip")
    assert [frame.index for frame in sequence] == [0] and sequence.skipped == 3
    (one / "poses.txt").write_text("0 0 0 0 0 0 0 1\n")
    with pytest.raises(DataError, match="1 poses, the sequence 4 frames"):
        open_sequences(f"rendered:{tmp_path}")


def test_a_missing_depth_of_simcol3d_is_named(tmp_path):
    (write_simcol3d(tmp_path / "S1") / "Depth_0001.png").unlink()
    with pytest.raises(DataError, match="Depth_0001.png is missing"):
        list(only(f"simcol3d:{tmp_path}"))
    assert [frame.index for frame in only(f"simcol3d:{tmp_path}", on_error="skip")] == [0, 2]


def test_a_bad_image_in_a_recording_is_named(tmp_path):
    with RecordingWriter(tmp_path / "run.mcap") as writer:
        for index in range(4):
            jpeg = cv2.imencode(".jpg", picture(index))[1].tobytes()
            writer.write_compressed(
                COMPRESSED_TOPIC, jpeg[:300] if index == 2 else jpeg, START_NS + index * 40_000_000, "camera"
            )
    with pytest.raises(DataError, match="image 2 of the recording: this JPEG is cut short"):
        list(only(tmp_path / "run.mcap"))
    assert [frame.index for frame in only(tmp_path / "run.mcap", on_error="skip")] == [0, 1, 3]


# --- the cache


def test_the_cache_holds_what_was_read(tmp_path):
    write_rendered(tmp_path / "one")
    (cached,) = cache(open_sequences(f"rendered:{tmp_path}"), tmp_path / "cache", (24, 32))
    assert cached.rgb.shape == (4, 24, 32, 3) and cached.rgb.dtype == np.uint8
    assert np.array_equal(cached.rgb[2], cv2.resize(picture(2), (32, 24), interpolation=cv2.INTER_AREA))
    assert cached.depth.dtype == np.float16 and np.isfinite(cached.depth[0, 1:]).all()
    assert cached.depth[3, 20, 20] == pytest.approx(4000 * DEPTH_UNIT_M, rel=1e-3)
    assert cached.instrument[1].sum() == 5 * 3 and not cached.instrument[0].any()  # columns 5..8 touch 2..4
    assert cached.T_world_camera[2] == pytest.approx(pose_at(2), abs=1e-9)
    assert cached.intrinsics == pytest.approx((90 / 96, 90 / 80, 0.5, 0.5))
    assert list(cached.index) == [0, 1, 2, 3] and cached.skipped == 0 and len(cached) == 4
    assert isinstance(cached.rgb, np.memmap)
    again = load_cached(cached.folder)
    assert np.array_equal(again.depth, cached.depth, equal_nan=True) and again.name == "one"


def test_depth_is_taken_at_the_middle_of_the_new_pixel(tmp_path):
    one = write_rendered(tmp_path / "one", 1)
    units = np.tile(np.arange(1, WIDTH + 1, dtype=np.uint16) * 100, (HEIGHT, 1))
    cv2.imwrite(str(one / "depth/000000.png"), units)
    (cached,) = cache(open_sequences(f"rendered:{tmp_path}"), tmp_path / "cache", (16, WIDTH // 3))
    columns = np.asarray(cached.depth[0, 5], np.float64) / DEPTH_UNIT_M / 100 - 1  # the column each value comes from
    middles = (np.arange(WIDTH // 3) + 0.5) * WIDTH / (WIDTH // 3) - 0.5
    assert np.abs(columns - middles).max() < 0.55


def test_a_cache_is_reused_until_its_files_or_the_size_change(tmp_path):
    write_folder(tmp_path / "images")
    made = []

    def run(size=(24, 32), **options):
        made.clear()
        spec = open_sequences(str(tmp_path / "images"))
        return cache(spec, tmp_path / "cache", size, progress=lambda done, total: made.append((done, total)), **options)

    run()
    assert made == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    run()
    assert made == []
    run((12, 16))
    assert len(made) == 5
    os.utime(tmp_path / "images/frame_3.png", ns=(1, 1))
    run()
    assert len(made) == 5
    write_image(tmp_path / "images/frame_5.png", picture(5))
    assert len(run()[0]) == 6 and len(made) == 6
    save_camera(tmp_path / "images/camera.yaml", CAMERA)
    (cached,) = run()
    assert len(made) == 6 and cached.intrinsics is not None
    (cached.folder / "meta.json").write_text("{")
    run()
    assert len(made) == 6
    assert len(list((tmp_path / "cache").iterdir())) == 3  # one folder per size, and the lock


def test_a_cache_with_gaps_serves_skip_but_not_stop(tmp_path, caplog):
    cut(write_folder(tmp_path / "images") / "frame_2.png")
    spec = open_sequences(str(tmp_path / "images"), on_error="skip")
    (cached,) = cache(spec, tmp_path / "cache", (24, 32))
    assert cached.skipped == 1 and list(cached.index) == [0, 1, 3, 4]
    caplog.clear()
    cache(spec, tmp_path / "cache", (24, 32))
    assert "1 frames" in caplog.text  # said again, though nothing was read
    with pytest.raises(DataError, match="frame_2.png"):
        cache(spec, tmp_path / "cache", (24, 32), on_error="stop")


def test_what_stops_leaves_no_half_cache(tmp_path):
    cut(write_folder(tmp_path / "images") / "frame_4.png")
    with pytest.raises(DataError):
        cache(open_sequences(str(tmp_path / "images")), tmp_path / "cache", (24, 32))
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_the_rest_of_a_killed_run_is_replaced(tmp_path):
    write_folder(tmp_path / "images")
    spec = open_sequences(str(tmp_path / "images"))
    (cached,) = cache(spec, tmp_path / "cache", (24, 32))
    part = cached.folder.with_name(cached.folder.name + ".part")
    cached.folder.rename(part)
    (part / "rgb.npy").write_bytes(b"half")
    (cached,) = cache(spec, tmp_path / "cache", (24, 32))
    assert len(cached.rgb) == 5 and not part.exists()


def test_a_sequence_without_a_usable_frame_stops_or_is_left_out(tmp_path, caplog):
    write_folder(tmp_path / "set/good")
    write_image(tmp_path / "set/bad/0.png", picture(0)).write_bytes(b"")
    spec = open_sequences(str(tmp_path / "set"), on_error="skip")
    assert [cached.name for cached in cache(spec, tmp_path / "cache", (24, 32))] == ["good"]
    assert "bad holds no frame that can be used" in caplog.text
    shutil.rmtree(tmp_path / "set/good")
    with pytest.raises(DataError, match="none of 1 sequences"):
        cache(open_sequences(str(tmp_path / "set"), on_error="skip"), tmp_path / "cache", (24, 32))


def test_a_disk_without_room_says_how_much_is_needed_before_it_starts(tmp_path, monkeypatch):
    write_folder(tmp_path / "images")
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 1000 * 2000 * 3 - 1)
    monkeypatch.setattr(cache_file.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"too full: decoding takes about 0.03 GB, 0.03 GB are free"):
        cache(open_sequences(str(tmp_path / "images")), tmp_path / "cache", (1000, 2000))
    assert len(cache(open_sequences(str(tmp_path / "images")), tmp_path / "cache", (24, 32))) == 1


def test_a_disk_that_fills_up_on_the_way_says_so(tmp_path, monkeypatch):
    write_folder(tmp_path / "images")

    def full(self, row):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_file._Rows, "append", full)
    with pytest.raises(DataError, match=r"too full: decoding takes about .* make room, choose another cache folder"):
        cache(open_sequences(str(tmp_path / "images")), tmp_path / "cache", (24, 32))
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_folder_that_cannot_be_made_is_an_error_in_words(tmp_path):
    write_folder(tmp_path / "images")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another folder"):
        cache(open_sequences(str(tmp_path / "images")), tmp_path / "file", (24, 32))
    with pytest.raises(DataError, match="is no cache"):
        load_cached(tmp_path)


def test_the_growing_file_is_one_that_numpy_reads(tmp_path):
    for dtype in (np.uint8, np.float16, bool):
        rows = cache_file._Rows(tmp_path / "x.npy")
        data = np.random.default_rng(0).integers(0, 2, (7, 3, 5)).astype(dtype)
        for row in data:
            rows.append(row)
        rows.close()
        assert np.array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), data)


# --- the adaptive gap


def write_shifted(path, steps, width=160, height=120):
    """Frames of one texture, moved by `steps` px from each to the next; the dark half stands still."""
    texture = np.random.default_rng(1).integers(40, 230, (height, width + 400, 3), dtype=np.uint8)
    texture = cv2.GaussianBlur(texture, (0, 0), 3)
    texture = cv2.normalize(texture, None, 40, 230, cv2.NORM_MINMAX)
    path.mkdir(parents=True)
    for number, at in enumerate(np.cumsum([0, *steps])):
        shift = np.float32([[1, 0, -at], [0, 1, 0]])
        rgb = cv2.warpAffine(texture, shift, (width, height), flags=cv2.INTER_LINEAR)
        rgb[:, :90] = 0
        cv2.imwrite(str(path / f"{number:03d}.png"), rgb)
    return path


def gaps_of(tmp_path, steps, size=(120, 160), **options):
    path = write_shifted(tmp_path / "shifted", steps)
    (cached,) = cache(open_sequences(str(path), on_error="skip"), tmp_path / "cache", size)
    return cached, choose_gaps(cached, **options)


def test_the_gap_is_the_smallest_with_enough_motion(tmp_path):
    cached, gaps = gaps_of(tmp_path, [0.75] * 12, least_px=2.0)
    assert list(gaps) == [0] * 3 + [3] * 7 + [0] * 3  # 2 x 0.75 is too little, 3 x 0.75 enough; the ends reach no 3
    assert list(choose_gaps(cached, least_px=1.0)) == [0] * 2 + [2] * 9 + [0] * 2
    assert list(choose_gaps(cached, least_px=0.5)) == [0] + [1] * 11 + [0]
    assert not choose_gaps(cached, least_px=2.0, max_gap=2).any()


def test_motion_is_counted_in_pixels_of_the_network(tmp_path):
    _, gaps = gaps_of(tmp_path, [1.5] * 8, size=(60, 80), least_px=2.0)  # 0.75 px of the small images
    assert list(gaps) == [0] * 3 + [3] * 3 + [0] * 3


def test_what_stands_still_is_left_out_and_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    _, gaps = gaps_of(tmp_path, [3] * 4 + [0] * 10, max_gap=2)
    assert list(gaps[:6]) == [0, 1, 1, 1, 0, 0] and not gaps[6:].any()
    assert "move less than 2 px" in caplog.text


def test_no_gap_reaches_over_a_missing_frame(tmp_path):
    path = write_shifted(tmp_path / "shifted", [3] * 8)
    (path / "004.png").unlink()
    (cached,) = cache(open_sequences(str(path), on_error="skip"), tmp_path / "cache", (120, 160))
    assert list(cached.index) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert list(choose_gaps(cached)) == [0, 1, 1, 0, 0, 1, 1, 0]


def test_gaps_are_kept_beside_the_cache(tmp_path):
    cached, gaps = gaps_of(tmp_path, [3] * 4)
    (kept,) = cached.folder.glob("gaps_*.npy")
    np.save(kept, gaps + 5)
    assert list(choose_gaps(cached)) == list(gaps + 5)
    assert list(choose_gaps(cached, least_px=1.0)) == list(gaps)  # other limits, other file
    with pytest.raises(DataError, match="least <= most"):
        choose_gaps(cached, least_px=3, most_px=2)


def test_meta_says_where_a_cache_comes_from(tmp_path):
    write_folder(tmp_path / "images")
    (cached,) = cache(open_sequences(str(tmp_path / "images")), tmp_path / "cache", (24, 32))
    meta = json.loads((cached.folder / "meta.json").read_text())
    assert meta["source"] == str(tmp_path / "images") and meta["size"] == [24, 32] and meta["frames"] == 5


def test_a_bent_lens_is_straightened_and_depth_goes_with_it(tmp_path):
    """A tilted plane seen through a barrel lens: straight lines are straight again, depth is the pinhole's."""
    lens = Camera(80, 64, 60.0, 60.0, 39.5, 31.5, "plumb_bob", (-0.3, 0.05, 0.0, 0.0, 0.0))
    rays = lens.rays()
    plane = (0.05 / (1 + 0.3 * rays[..., 0])).astype(np.float32)  # z where z + 0.3 x = 0.05
    stripes = (255 * (np.sin(40 * rays[..., 0]) > 0)).astype(np.uint8)  # vertical in the world
    frame = straightened(Frame(0, np.dstack([stripes] * 3), plane, stripes > 0), lens)
    straight = lens.pinhole().rays()[..., 0]
    truth = 0.05 / (1 + 0.3 * straight)
    known = np.isfinite(frame.depth)
    assert known.mean() > 0.9
    assert np.abs(frame.depth[known] / truth[known] - 1).max() < 0.01
    clear = known & (np.abs(np.sin(40 * straight)) > 0.7)
    assert (frame.instrument == (np.sin(40 * straight) > 0))[clear].mean() > 0.99
    bent = np.abs(plane[known] / truth[known] - 1)
    assert bent.max() > 0.02  # without it the depth would have been off


def test_a_sequence_with_a_bent_lens_comes_out_straight(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((64, 80, 3), 200, np.uint8))
    lens = Camera(80, 64, 60.0, 60.0, 39.5, 31.5, "plumb_bob", (0.4, 0.0, 0.0, 0.0, 0.0))
    save_camera(folder / "camera.yaml", lens)
    sequence = open_sequences(f"folder:{folder}")[0]
    assert sequence.intrinsics == pytest.approx((0.75, 0.9375, 0.5, 0.5))
    rgb = next(iter(sequence)).rgb
    assert rgb[32, 40].min() == 200 and rgb[0, 0].max() == 0  # the corners of a pincushion lens saw less
