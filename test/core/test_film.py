"""The video: every image is in it, colour left and depth right, on one scale; a video that is not whole is named."""

import cv2
import numpy as np
import pytest

from endomust_core.film import BAR, PANEL, Film, painted
from endomust_core.recording import RecordingError

RED, BLUE = (240, 30, 20), (20, 30, 240)


def picture(colour, width=96, height=80):
    return np.full((height, width, 3), colour, np.uint8)


def frames_of(path):
    video = cv2.VideoCapture(str(path))
    return [frame for ok, frame in iter(video.read, (False, None)) if ok]


@pytest.mark.parametrize("count", [1, 24, 25, 40])
def test_every_image_is_in_it(tmp_path, count):
    film = Film(tmp_path / "f.mp4", 25.0)
    for index in range(count):
        film.add(picture(RED), np.full((80, 96), 0.05, np.float32), index / 25)
    assert film.close() == tmp_path / "f.mp4" and film.images == count
    assert len(frames_of(tmp_path / "f.mp4")) == count


@pytest.mark.parametrize("mirrored", [False, True], ids=["RGB", "BGR seen from the other end"])
@pytest.mark.parametrize("size", [(96, 80), (960, 800), (1000, 700)])
def test_colour_is_left_and_near_is_red_on_the_right(tmp_path, mirrored, size):
    width, height = size
    rgb = picture(BLUE, width, height)
    rgb = np.ascontiguousarray(rgb[..., ::-1])[..., ::-1] if mirrored else rgb
    depth = np.tile(np.linspace(0.03, 0.09, width, dtype=np.float32), (height, 1))
    film = Film(tmp_path / "f.mp4", 25.0)
    film.add(rgb, depth, 0.0)
    film.close()
    (frame,) = frames_of(tmp_path / "f.mp4")
    panel = frame.shape[1] // 2
    assert panel <= PANEL and frame.shape[0] - BAR == pytest.approx(height * panel / width, abs=2)
    blue, _, red = frame[20, panel // 2].astype(int)
    assert blue > 200 and red < 60
    near, far = frame[20, panel + 10].astype(int), frame[20, -10].astype(int)
    assert near[2] > near[0] + 50 and far[0] > far[2] + 20


def test_the_scale_is_chosen_once_and_stays(tmp_path):
    film = Film(tmp_path / "f.mp4", 25.0)
    for index in range(30):
        film.add(picture(RED), np.full((80, 96), 0.05 if index < 25 else 0.2, np.float32), 0.0)
    assert film.range_m == (pytest.approx(0.04), pytest.approx(0.0625))
    film.close()


def test_unknown_depth_is_grey_and_alone_no_obstacle(tmp_path):
    depth = np.full((80, 96), np.nan, np.float32)
    assert len(np.unique(painted(depth, 0.01, 0.1))) == 1
    depth[:, 48:] = 0.05
    assert (painted(depth, 0.01, 0.1)[:, :48] == 90).all()
    film = Film(tmp_path / "f.mp4", 25.0)
    film.add(picture(RED), np.full((80, 96), np.nan, np.float32), 0.0)
    assert film.close() is not None


def test_without_images_there_is_no_file(tmp_path):
    assert Film(tmp_path / "f.mp4", 25.0).close() is None and list(tmp_path.iterdir()) == []


def test_a_video_that_lost_frames_is_named(tmp_path):
    film = Film(tmp_path / "f.mp4", 25.0)
    film.add(picture(RED), np.full((80, 96), 0.05, np.float32), 0.0)
    film._begin()
    film.images += 3
    with pytest.raises(RecordingError, match="f.mp4 holds 1 of 4 frames; is the disk full"):
        film.close()
