"""Video or folder → recording: frame for frame, at the right rate, or an error in words and no file."""

import cv2
import numpy as np
import pytest
from small_recording import CAMERA, image_at

from endomust_core.camera import Camera
from endomust_core.decoding import camera_from, rgb_from, stamp_ns
from endomust_core.importing import import_frames, stderr_progress
from endomust_core.recording import CAMERA_INFO_TOPIC, COMPRESSED_TOPIC, IMAGE_TOPIC, RecordingError, RecordingReader


@pytest.fixture
def folder(tmp_path):
    """Twelve images, so that frame10 must not come before frame2."""
    images = tmp_path / "images"
    images.mkdir()
    for index in range(12):
        cv2.imwrite(str(images / f"frame{index}.png"), cv2.cvtColor(image_at(index), cv2.COLOR_RGB2BGR))
    (images / "notes.txt").write_text("not an image")
    return images


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (CAMERA.width, CAMERA.height))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    for index in range(10):
        writer.write(cv2.cvtColor(image_at(index), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def messages(path, topic):
    with RecordingReader(path) as reader:
        return [reader.deserialize(kind, cdr) for _, kind, _, cdr in reader.messages([topic])]


def test_a_folder_becomes_a_recording_in_natural_order(folder, tmp_path):
    out = tmp_path / "out.mcap"
    assert import_frames(folder, out, CAMERA, rate=25, encoding="raw") == 12
    images = messages(out, IMAGE_TOPIC)
    for index, message in enumerate(images):
        np.testing.assert_array_equal(rgb_from(message), image_at(index))
    steps = np.diff([stamp_ns(m) for m in images])
    assert set(steps) == {40_000_000} and stamp_ns(images[0]) > 0
    infos = messages(out, CAMERA_INFO_TOPIC)
    assert [stamp_ns(m) for m in infos] == [stamp_ns(m) for m in images]
    assert camera_from(infos[0]) == CAMERA and infos[0].header.frame_id == images[0].header.frame_id


def test_a_video_keeps_its_own_rate_and_its_pictures(video, tmp_path):
    out = tmp_path / "out.mcap"
    seen = []
    assert import_frames(video, out, progress=lambda done, announced: seen.append((done, announced))) == 10
    images = messages(out, COMPRESSED_TOPIC)
    assert [stamp_ns(m) for m in images] == [10**9 + 50_000_000 * i for i in range(10)]
    assert np.abs(rgb_from(images[9]).astype(int) - image_at(9)).mean() < 8
    assert seen[-1] == (10, 10)


def test_stamps_do_not_drift_at_odd_rates(folder, tmp_path):
    import_frames(folder, tmp_path / "o.mcap", rate=30000 / 1001)
    last = messages(tmp_path / "o.mcap", COMPRESSED_TOPIC)[-1]
    assert stamp_ns(last) == 10**9 + round(11 * 1001 / 30000 * 1e9)


def test_without_a_camera_it_says_uncalibrated(folder, tmp_path, caplog):
    import_frames(folder, tmp_path / "o.mcap", rate=25)
    info = messages(tmp_path / "o.mcap", CAMERA_INFO_TOPIC)[0]
    assert not info.k.any() and (info.width, info.height) == (96, 80)
    assert "uncalibrated" in caplog.text


def test_a_camera_of_the_same_shape_is_scaled(folder, tmp_path, caplog):
    import_frames(folder, tmp_path / "o.mcap", CAMERA.resized(192, 160), rate=25)
    got = camera_from(messages(tmp_path / "o.mcap", CAMERA_INFO_TOPIC)[0])
    np.testing.assert_allclose(got.K, CAMERA.K, atol=1e-9)
    assert "192x160 is scaled to frames of 96x80" in caplog.text


def test_own_topics(folder, tmp_path):
    import_frames(folder, tmp_path / "o.mcap", rate=5, topic="/left/image_raw")
    with RecordingReader(tmp_path / "o.mcap") as reader:
        assert set(reader.topics) == {"/left/image_raw/compressed", "/left/camera_info"}
        assert reader.image_topic() == "/left/image_raw/compressed"


def refuses(words, tmp_path, *arguments, **options):
    before = set(tmp_path.iterdir())
    with pytest.raises(RecordingError, match=words):
        import_frames(*arguments, **options)
    assert set(tmp_path.iterdir()) == before, "a failed import leaves no file"


def test_refusals_in_words_without_a_file(folder, video, tmp_path):
    out = tmp_path / "out.mcap"
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    refuses("does not exist", tmp_path, tmp_path / "nowhere.mp4", out)
    refuses("holds no images", tmp_path, tmp_path / "empty", out, rate=25)
    refuses("not a video that OpenCV can decode", tmp_path, tmp_path / "noise.mp4", out)
    refuses("give one, for example --rate 25", tmp_path, folder, out)
    refuses("0 Hz is no camera's", tmp_path, folder, out, rate=0)
    refuses("choose jpeg or raw", tmp_path, folder, out, rate=25, encoding="h264")
    refuses("another shape", tmp_path, folder, out, Camera(96, 60, 90, 90, 47.5, 29.5), rate=25)
    refuses("ends in .mcap", tmp_path, video, tmp_path / "out.bag")


def test_a_folder_of_mixed_sizes_names_the_odd_one(folder, tmp_path):
    cv2.imwrite(str(folder / "frame7.png"), np.zeros((40, 50, 3), np.uint8))
    refuses(r"frame7.png is 50x40, the frames before it are 96x80", tmp_path, folder, tmp_path / "o.mcap", rate=25)


def test_an_image_that_does_not_decode_is_named(folder, tmp_path):
    (folder / "frame3.png").write_bytes(b"torn")
    refuses(r"frame3.png does not decode", tmp_path, folder, tmp_path / "o.mcap", rate=25)


def test_a_video_without_frames(tmp_path, video):
    content = video.read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: content.index(b"movi") + 4])
    refuses("no frame of it decodes|not a video", tmp_path, tmp_path / "cut.avi", tmp_path / "o.mcap")


def test_a_shortened_video_is_imported_and_told(tmp_path, video, caplog):
    content = video.read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    count = import_frames(tmp_path / "cut.avi", tmp_path / "o.mcap")
    assert 0 < count < 10
    assert len(messages(tmp_path / "o.mcap", COMPRESSED_TOPIC)) == count


def test_an_existing_recording_is_not_overwritten_by_accident(folder, tmp_path):
    out = tmp_path / "out.mcap"
    out.write_bytes(b"precious")
    refuses("exists already", tmp_path, folder, out, rate=25)
    assert out.read_bytes() == b"precious"
    assert import_frames(folder, out, rate=25, overwrite=True) == 12


def test_progress_tells_the_time_to_go(capsys):
    report = stderr_progress(every_s=0.0)
    for done in range(1, 4):
        report(done, 3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("1/3 frames") and "s to go" in lines[0]
    assert lines[-1] == "3/3 frames"
