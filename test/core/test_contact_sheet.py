"""A picture of what the node answered: made of what the recording holds, and refused in words where that is nothing."""

import cv2
import numpy as np
import pytest

from endomust_core import cli
from endomust_core.camera import Camera
from endomust_core.contact_sheet import MARGIN, WIDTH, contact_sheet
from endomust_core.recording import RecordingError
from endomust_core.recording_writer import RecordingWriter

CAMERA = Camera(80, 64, 75.0, 75.0, 39.5, 31.5)
SECOND = 10**9


def record(path, confidence=True, camera=CAMERA, rgb=True):
    depth = np.tile(np.linspace(0.03, 0.06, 80, dtype=np.float32), (64, 1))
    depth[:, :8] = np.nan
    with RecordingWriter(path) as writer:
        for number in range(4):
            stamp = (number + 1) * SECOND
            if rgb:
                picture = np.full((64, 80, 3), (200, 100, 60 * number), np.uint8)
                writer.write_image("/endomust/rgb/image_rect", picture, stamp, "camera", "rgb8")
            writer.write_image("/endomust/depth/image_rect", depth, stamp, "camera", "32FC1")
            if confidence:
                sure = np.full_like(depth, 0.5)
                writer.write_image("/endomust/depth/confidence", sure, stamp, "camera", "32FC1")
            if camera is not None:
                writer.write_camera_info("/endomust/depth/camera_info", camera, stamp, "camera")
    return path


def test_a_row_has_colour_depth_confidence_and_cloud(tmp_path):
    sheet = contact_sheet(record(tmp_path / "a.mcap"), rows=3)
    height = WIDTH * 64 // 80
    assert sheet.shape == (MARGIN + 3 * height, 4 * WIDTH, 3) and sheet.dtype == np.uint8
    row = sheet[MARGIN + height : MARGIN + 2 * height]
    assert tuple(row[height // 2, WIDTH // 2]) in {(200, 100, 60), (200, 100, 120)}, "the image itself"
    depth = row[:, WIDTH : 2 * WIDTH].astype(int)
    assert not depth[height // 2, 4].any(), "no depth is black"
    near, far = depth[height // 2, 60], depth[height // 2, -4]
    assert near[0] > near[2] and far[2] > far[0], "near is red, far is blue"
    assert row[:, 3 * WIDTH :].any(), "a cloud"


def test_what_is_not_recorded_is_left_out(tmp_path):
    sheet = contact_sheet(record(tmp_path / "a.mcap", confidence=False, camera=None))
    assert sheet.shape[1] == 3 * WIDTH
    with pytest.raises(RecordingError, match="holds no depth image beside an rgb image"):
        contact_sheet(record(tmp_path / "b.mcap", rgb=False))


def test_the_command_writes_the_picture(tmp_path, capsys):
    recording = record(tmp_path / "a.mcap")
    assert cli.main(["sheet", str(recording), "--out", str(tmp_path / "sheet.png"), "--rows", "2"]) == 0
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[1] == 4 * WIDTH
    assert cli.main(["sheet", str(recording), "--out", str(tmp_path / "nowhere" / "sheet.png")]) != 0
    assert "nowhere" in capsys.readouterr().err
