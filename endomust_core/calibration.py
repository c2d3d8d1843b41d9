"""Newest CameraInfo, or a calibration file → the camera [pixels] and the view of an image, or the reason why not."""

from __future__ import annotations

import math

from endomust_core.camera import Camera, CameraError
from endomust_core.decoding import camera_from_info
from endomust_core.view import View

# Why there is no camera: nothing came, what came is no calibration, or it is for another image.
WITHOUT_CAMERA = ("no_info", "uncalibrated", "size")


class Calibration:
    """`update` may be called from another thread than `camera_for`: both see one tuple that is replaced whole."""

    def __init__(self, rectified: bool = False, camera: Camera | None = None):
        """`rectified` takes P of camera_info instead of K and D; `camera` is used whatever camera_info says."""
        self.rectified = rectified  # may be set as long as no camera_info has come
        self._fixed = camera is not None
        self._key = None
        self._known: tuple[Camera | None, str] = (camera, "")
        self.baseline: float | None = None  # m to the left camera of a stereo pair, where camera_info says so
        self.changes = 0  # calibrations that took the place of another one

    def hold(self, camera: Camera) -> None:
        """Take a camera from elsewhere, and camera_info no more."""
        self._known, self._fixed = (camera, ""), True

    def update(self, message) -> None:
        """Take a CameraInfo; one that says the same as the last costs next to nothing."""
        if self._fixed:
            return
        key = _key(message)
        if key == self._key:
            return
        before = self._known[0]
        try:
            self._known = camera_from_info(message, self.rectified), ""
        except CameraError as error:
            self._known = None, str(error)
        self._key = key
        self.baseline = _baseline(message)
        self.changes += before is not None and before != self._known[0]

    def camera_for(self, width: int, height: int) -> tuple[Camera | None, str, str]:
        """(camera, "", "") or (None, reason, sentence) for an image of this size."""
        camera, problem = self._known
        if camera is not None and (camera.width, camera.height) == (width, height):
            return camera, "", ""
        if camera is not None:
            source = "the calibration file" if self._fixed else "camera_info"
            remedy = "calibrate at this size" if self._fixed else "publish the camera_info of this stream"
            sentence = f"the image is {width}x{height}, {source} is for {camera.width}x{camera.height}; {remedy}"
            return None, "size", sentence
        if problem:
            return None, "uncalibrated", problem
        return None, "no_info", "no camera_info has come yet; publish it beside the image or remap camera_info"

    def view_for(self, width: int, height: int, settings) -> tuple[View, str, str]:
        """What the pipeline sees of an image of this size, and `camera_for`'s reason and sentence.

        `settings` has the fields input_* of pipeline.Settings. Raises CameraError where the ROI leaves the image.
        """
        camera, reason, sentence = self.camera_for(width, height)
        p = settings
        view = View.of(camera, (width, height), p.input_roi, p.input_flip, p.input_undistort, p.input_antialias)
        return view, reason, sentence


def _baseline(message) -> float | None:
    """P[0,3] of a rectified stereo pair's right camera is -fx times the baseline (sensor_msgs/CameraInfo)."""
    fx, shift = float(message.p[0]), float(message.p[3])
    return abs(shift / fx) if math.isfinite(fx) and math.isfinite(shift) and fx > 0 and shift != 0 else None


def _key(message) -> tuple:
    """All of a CameraInfo that matters. Compared as bytes: NaN would differ from itself."""
    roi = message.roi
    return (
        message.width,
        message.height,
        message.distortion_model,
        bytes(memoryview(message.k)),
        bytes(memoryview(message.p)),
        bytes(memoryview(message.d)) if hasattr(message.d, "typecode") else tuple(message.d),
        message.binning_x,
        message.binning_y,
        roi.x_offset,
        roi.y_offset,
        roi.width,
        roi.height,
    )
