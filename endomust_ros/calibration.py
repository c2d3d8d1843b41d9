"""Newest CameraInfo → Camera [pixels] for an image of a certain size, or the reason why there is none."""

from endomust_core.camera import Camera, CameraError
from endomust_ros.messages import camera_from_info


class Calibration:
    """`update` is called by the subscription, `camera_for` by the worker; both see one tuple that is replaced whole."""

    def __init__(self, rectified: bool):
        self._rectified = rectified
        self._key = None
        self._known: tuple[Camera | None, str] = (None, "")

    def update(self, message) -> None:
        """Take a CameraInfo; one that says the same as the last costs next to nothing."""
        key = _key(message)
        if key == self._key:
            return
        try:
            self._known = camera_from_info(message, self._rectified), ""
        except CameraError as error:
            self._known = None, str(error)
        self._key = key

    def camera_for(self, width: int, height: int) -> tuple[Camera | None, str, str]:
        """(camera, "", "") or (None, reason, sentence) for an image of this size."""
        camera, problem = self._known
        if camera is not None and (camera.width, camera.height) == (width, height):
            return camera, "", ""
        if camera is not None:
            return (
                None,
                "size",
                (
                    f"the image is {width}x{height}, camera_info is for {camera.width}x{camera.height}; "
                    "publish the camera_info of this stream"
                ),
            )
        if problem:
            return None, "uncalibrated", problem
        return None, "no_info", "no camera_info has come yet; publish it beside the image or remap camera_info"


def _key(message) -> tuple:
    roi = message.roi
    return (
        message.width,
        message.height,
        message.distortion_model,
        bytes(memoryview(message.k)),
        bytes(memoryview(message.p)),
        tuple(message.d),
        message.binning_x,
        message.binning_y,
        roi.x_offset,
        roi.y_offset,
        roi.width,
        roi.height,
    )
