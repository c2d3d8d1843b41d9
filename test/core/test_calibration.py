"""Which camera an image has: from camera_info, from a file, changed at run time; and what is seen of the image then."""

from types import SimpleNamespace

import numpy as np
import pytest

from endomust_core.calibration import Calibration
from endomust_core.camera import Camera, CameraError
from endomust_core.settings import Settings

CAMERA = Camera(160, 128, 150.0, 155.0, 79.0, 64.5)
BARREL = Camera(160, 128, 150.0, 155.0, 79.0, 64.5, "plumb_bob", (-0.2, 0.03, 0.0, 0.0, 0.0))


def info(camera=CAMERA, shift=0.0, **changes):
    """Anything with the fields of sensor_msgs/CameraInfo."""
    P = np.hstack([camera.K, [[shift], [0.0], [0.0]]])
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    fields = {"width": camera.width, "height": camera.height, "distortion_model": "plumb_bob", "roi": roi}
    fields |= {"d": np.array(camera.D or [0.0] * 5), "k": camera.K.ravel(), "p": P.ravel()}
    return SimpleNamespace(**{**fields, "binning_x": 0, "binning_y": 0, **changes})


def test_the_newest_camera_info_counts_and_changes_are_counted():
    calibration = Calibration()
    assert calibration.camera_for(160, 128)[1] == "no_info"
    calibration.update(info())
    calibration.update(info())
    assert calibration.camera_for(160, 128) == (CAMERA, "", "") and calibration.changes == 0
    other = Camera(160, 128, 140.0, 140.0, 80.0, 64.0)
    calibration.update(info(other))
    assert calibration.camera_for(160, 128)[0] == other and calibration.changes == 1
    calibration.update(info(k=np.zeros(9)))
    assert calibration.camera_for(160, 128)[1] == "uncalibrated" and calibration.changes == 2


def test_a_calibration_file_is_not_overruled():
    calibration = Calibration(camera=CAMERA)
    calibration.update(info(Camera(160, 128, 99.0, 99.0, 80.0, 64.0)))
    assert calibration.camera_for(160, 128)[0] == CAMERA
    _, reason, sentence = calibration.camera_for(320, 256)
    assert reason == "size" and "the calibration file is for 160x128; calibrate at this size" in sentence


def test_the_baseline_of_a_stereo_pair_comes_with_the_right_camera():
    calibration = Calibration(rectified=True)
    calibration.update(info(shift=-150.0 * 0.0052))
    assert calibration.baseline == pytest.approx(0.0052)
    calibration.update(info())
    assert calibration.baseline is None
    calibration.update(info(p=np.full(12, np.nan)))
    assert calibration.baseline is None


def test_the_view_is_undistorted_cut_and_flipped_as_the_settings_say():
    calibration = Calibration()
    calibration.update(info(BARREL))
    view, reason, _ = calibration.view_for(160, 128, Settings())
    assert not reason and view.bends and view.camera == BARREL.pinhole()
    raw, _, _ = calibration.view_for(160, 128, Settings(input_undistort=False))
    assert raw.identity and raw.camera == BARREL
    part, _, _ = calibration.view_for(160, 128, Settings(input_roi=(10, 20, 100, 80), input_flip="180"))
    assert part.size == (100, 80) and part.camera.cx == pytest.approx(99 - (79.0 - 10))
    with pytest.raises(CameraError):
        calibration.view_for(160, 128, Settings(input_roi=(100, 20, 100, 80)))


def test_without_a_camera_there_is_still_a_view():
    view, reason, _ = Calibration().view_for(160, 128, Settings(input_roi=(0, 0, 80, 64)))
    assert reason == "no_info" and view.camera is None and view.size == (80, 64)
