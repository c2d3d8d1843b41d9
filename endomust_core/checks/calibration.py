"""Is this calibration one of a camera: K, D, model, size and frame from a YAML file or camera_info → finding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from endomust_core.checks import FAIL, OK, WARN, Finding, together

SQUARE = 1.25  # a larger fx/fy or fy/fx is a half-height video field or a mistake
FIELD_OF_VIEW = (20.0, 175.0)  # degrees across, what endoscopes have
CALIBRATE = "calibrate the camera with camera_calibration, at the size it publishes"


class Numbers(NamedTuple):
    """A calibration as written, before anybody checked it; sizes and K in pixels."""

    width: int
    height: int
    K: Sequence[float]
    D: Sequence[float]
    model: str
    frame_id: str | None = None  # None: the source has none


def from_yaml(path: str | Path) -> Numbers:
    """A ROS calibration file; raises KeyError, TypeError or ValueError where it is none."""
    import yaml

    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    K, D = content["camera_matrix"]["data"], content["distortion_coefficients"]["data"]
    return Numbers(int(content["image_width"]), int(content["image_height"]), K, D, content["distortion_model"])


def file_calibration(path: str | Path, image_size: tuple[int, int] | None) -> Finding:
    """The file of --camera; `image_size` is (H, W)."""
    try:
        numbers = from_yaml(path)
    except OSError as error:
        return Finding(FAIL, f"{path}: {error.strerror}", "check the path")
    except (KeyError, TypeError, ValueError) as error:
        return Finding(FAIL, f"{path} is no ROS calibration file ({error})", "write it with camera_calibration")
    return calibration(numbers, image_size)


def calibration(found: Numbers, image_size: tuple[int, int] | None = None) -> Finding:
    """Everything that is odd about it; `image_size` (H, W) is that of the images it is for."""
    complaints = [*_frame(found.frame_id), *_size(found, image_size)]
    if len(found.K) == 9 and found.K[0] == 0:
        complaints.append(Finding(FAIL, "K[0] is 0, so the camera is uncalibrated: no cloud, no odometry", CALIBRATE))
    else:
        complaints += _usable(found) or _plausible(found)
    fx = found.K[0] if len(found.K) == 9 else math.nan
    return together(complaints, f"{found.width}x{found.height}, fx {fx:.5g}, {found.model or 'no distortion model'}")


def _usable(found: Numbers) -> list[Finding]:
    """What the node itself would refuse."""
    from endomust_core.camera import Camera, CameraError

    try:
        Camera.from_K(found.K, found.width, found.height, found.model, found.D)
    except CameraError as error:
        return [Finding(FAIL, str(error), CALIBRATE)]
    return []


def _plausible(found: Numbers) -> list[Finding]:
    fx, fy, cx, cy = (float(found.K[index]) for index in (0, 4, 2, 5))
    odd = []
    if not (0 <= cx < found.width and 0 <= cy < found.height):
        said = f"the principal point ({cx:.0f}, {cy:.0f}) lies outside the image of {found.width}x{found.height}"
        odd.append(Finding(WARN, said, "was the image cropped or resized after the calibration? " + CALIBRATE))
    if not 1 / SQUARE < fx / fy < SQUARE:
        said = f"fx/fy is {fx / fy:.2f}, pixels are seldom that oblong"
        odd.append(Finding(WARN, said, "interlaced video has half its height: scale fy and cy, or deinterlace"))
    view = math.degrees(2 * math.atan(found.width / 2 / fx))
    if found.model not in ("equidistant", "fisheye") and not FIELD_OF_VIEW[0] < view < FIELD_OF_VIEW[1]:
        said = f"the field of view would be {view:.0f} degrees"
        odd.append(Finding(WARN, said, "is K in pixels of this image size? " + CALIBRATE))
    return odd


def _size(found: Numbers, image_size: tuple[int, int] | None) -> list[Finding]:
    if image_size is None or (found.height, found.width) == tuple(image_size):
        return []
    said = f"it is for {found.width}x{found.height}, the images are {image_size[1]}x{image_size[0]}"
    return [Finding(FAIL, said, "publish the calibration of the size that the camera sends: no cloud, no odometry")]


def _frame(frame_id: str | None) -> list[Finding]:
    if frame_id == "":
        remedy = "set the driver's frame_id, or frames.camera_optical of the node"
        return [Finding(WARN, "the frame_id is empty, so TF cannot place the camera", remedy)]
    if frame_id and frame_id.startswith("/"):
        remedy = f"set the driver's frame_id to '{frame_id.lstrip('/')}'; the node removes the slash in its outputs"
        return [Finding(WARN, f"the frame_id '{frame_id}' starts with a slash, which tf2 rejects", remedy)]
    return []


def nothing_to_check() -> Finding:
    """Neither a file nor a camera."""
    return Finding(OK, "none given (--camera YAML checks one)")
