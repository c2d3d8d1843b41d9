"""Pinhole and fisheye cameras: pixel (H,W) <-> ray <-> point [m]; resize, crop, undistort, ROS calibration files.

Units are pixels, pixel centres lie at integers (OpenCV). The camera looks along +z, x right, y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import yaml

# How many distortion coefficients each model takes (OpenCV order; ROS uses the same).
COEFFICIENTS = {"pinhole": (0,), "plumb_bob": (0, 4, 5), "rational_polynomial": (0, 8, 12, 14), "equidistant": (4,)}
# Names other drivers write into CameraInfo.distortion_model.
ALIASES = {"": "pinhole", "none": "pinhole", "fisheye": "equidistant"}
# A ray that does not come back to its own pixel within this distance [px] lies outside what the model can undo.
ROUND_TRIP_TOLERANCE = 0.1
# Rays take 8 bytes a pixel and are kept; 4096x4096 is four times the 4K of endoscopes, and larger is a damaged message.
MAX_PIXELS = 1 << 24
# What no camera has; in widths or heights, whichever is larger: the focal length, and the principal point in both.
FOCAL_RANGE = (0.05, 50.0)
CENTRE_RANGE = (-1.0, 2.0)
LARGEST_COEFFICIENT = 1e6
BLOCK = 1 << 14  # pixels undistorted at a time: OpenCV's intermediate arrays take 250 bytes a pixel
FLIPS = ("none", "h", "v", "180")
# Coefficients of x- and y-direction, which change sign in a mirror; places in D of OpenCV's pinhole models.
SIGNS = {"h": (3, 8, 9, 13), "v": (2, 10, 11, 12)}


class CameraError(ValueError):
    """The calibration cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Camera:
    """A calibrated camera; raises CameraError when the numbers cannot be those of a camera."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: str = "pinhole"
    D: tuple[float, ...] = ()

    def __post_init__(self):
        if self.width <= 0 or self.height <= 0:
            raise CameraError(f"the image size {self.width}x{self.height} is not positive; check width and height")
        if self.width * self.height > MAX_PIXELS:
            raise CameraError(
                f"the image size {self.width}x{self.height} is beyond {MAX_PIXELS >> 20} megapixels; reduce the images "
                "(binning), or correct width and height"
            )
        if not all(math.isfinite(value) for value in (self.fx, self.fy, self.cx, self.cy, *self.D)):
            raise CameraError("the calibration contains NaN or infinity; calibrate the camera again")
        if self.fx == 0:
            raise CameraError("the camera is uncalibrated (K[0] is 0); calibrate it or give a calibration file")
        if self.fx < 0 or self.fy <= 0:
            raise CameraError(f"the focal lengths fx={self.fx:g}, fy={self.fy:g} must be positive; check the matrix K")
        _check_coefficients(self.model, self.D)

    @classmethod
    def from_K(cls, K, width, height, model="pinhole", D=()) -> Camera:
        """Build from a 3x3 matrix (or 9 numbers, row by row) [pixels] and the coefficients D of `model`."""
        K = np.asarray(K, dtype=np.float64)
        if K.size != 9:
            raise CameraError(f"K must be 3x3, it has the shape {K.shape}; check the calibration")
        K = K.reshape(3, 3)
        if K[0, 0] != 0 and np.isfinite(K).all() and (K[0, 1] or K[1, 0] or (K[2] != (0, 0, 1)).any()):
            raise CameraError(f"K must be [fx 0 cx; 0 fy cy; 0 0 1], got {K.tolist()}; check the order of the numbers")
        model, D = ALIASES.get(model, model), tuple(float(d) for d in D)
        if model == "pinhole" and not any(D):  # any() is true for NaN, so a NaN is still reported
            D = ()
        fx, fy, cx, cy = (float(K[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
        return cls(int(width), int(height), fx, fy, cx, cy, model, D)

    @property
    def K(self) -> np.ndarray:
        """The (3,3) float64 matrix [pixels]."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)

    @property
    def is_distorted(self) -> bool:
        """True when rays differ from those of `pinhole()`; a fisheye bends rays even when all of D is 0."""
        return self.model == "equidistant" or any(self.D)

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the image after cv2.resize to (width, height); centres at integers, hence the halves."""
        sx, sy = width / self.width, height / self.height
        cx, cy = (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5
        return replace(self, width=int(width), height=int(height), fx=self.fx * sx, fy=self.fy * sy, cx=cx, cy=cy)

    def cropped(self, x: int, y: int, width: int, height: int) -> Camera:
        """The camera of image[y:y+height, x:x+width]."""
        x, y, width, height = int(x), int(y), int(width), int(height)  # unsigned numbers of a message would wrap
        if x < 0 or y < 0 or x + width > self.width or y + height > self.height:
            raise CameraError(f"the crop {x},{y} {width}x{height} leaves the image of {self.width}x{self.height}")
        return replace(self, width=width, height=height, cx=self.cx - x, cy=self.cy - y)

    def flipped(self, flip: str) -> Camera:
        """The camera of the mirrored image: "h" left-right, "v" upside down, "180" both, which is half a turn.

        "h" and "v" see a mirrored world: right for an image that a prism or a capture card has mirrored already.
        """
        if flip not in FLIPS:
            raise CameraError(f"flip is {flip!r}; use one of {', '.join(FLIPS)}")
        camera = self
        if flip in ("h", "180"):
            camera = replace(camera, cx=camera.width - 1 - camera.cx, D=_mirrored(camera, "h"))
        if flip in ("v", "180"):
            camera = replace(camera, cy=camera.height - 1 - camera.cy, D=_mirrored(camera, "v"))
        return camera

    def strided(self, stride: int) -> Camera:
        """The camera of image[::stride, ::stride]."""
        return replace(
            self,
            width=-(-self.width // stride),
            height=-(-self.height // stride),
            fx=self.fx / stride,
            fy=self.fy / stride,
            cx=self.cx / stride,
            cy=self.cy / stride,
        )

    def pinhole(self) -> Camera:
        """The undistorted camera with the same K."""
        return replace(self, model="pinhole", D=())

    def plausible(self) -> Camera:
        """This camera, whole and uncropped as it was calibrated; CameraError where no lens has such numbers.

        For what a driver or a user says: the crop of a data set may well have its principal point far outside.
        """
        side = max(self.width, self.height)
        lowest, highest = (bound * side for bound in FOCAL_RANGE)
        if not (lowest <= self.fx <= highest and lowest <= self.fy <= highest):
            raise CameraError(
                f"the focal lengths fx={self.fx:g}, fy={self.fy:g} px fit no lens on an image of "
                f"{self.width}x{self.height} ({lowest:g} to {highest:g} is believed); is K in pixels and for this size?"
            )
        first, last = CENTRE_RANGE
        if not (
            first * self.width <= self.cx <= last * self.width and first * self.height <= self.cy <= last * self.height
        ):
            raise CameraError(
                f"the principal point ({self.cx:g}, {self.cy:g}) is far outside the image of {self.width}x{self.height}"
                "; calibrate the camera again, or publish the calibration of this image size"
            )
        if any(abs(d) > LARGEST_COEFFICIENT for d in self.D):
            raise CameraError(f"the distortion {self.D} fits no lens; calibrate the camera again")
        return self

    def rays(self) -> np.ndarray:
        """(H,W,2) float32, x/z and y/z of every pixel, undistorted; NaN where the model has no inverse.

        Cached and read-only: equal cameras share one array.
        """
        return _rays(self)

    def back_project(self, depth: np.ndarray) -> np.ndarray:
        """(H,W) depth along z [m] -> (H,W,3) float32 points [m]; NaN where depth is not finite."""
        if depth.shape != (self.height, self.width):
            raise CameraError(
                f"depth is {_size(depth.shape)}, the camera is {self.width}x{self.height}; "
                "use camera.resized(width, height) of the depth image"
            )
        rays = self.rays()
        z = np.where(np.isfinite(depth), depth, np.nan).astype(np.float32, copy=False)
        x, y = rays[..., 0] * z, rays[..., 1] * z
        if self.is_distorted:
            np.copyto(z, np.nan, where=np.isnan(x))  # a pixel without a ray has no depth either
        return cv2.merge([x, y, z])

    def project(self, points: np.ndarray) -> np.ndarray:
        """(...,3) points in the camera frame [m] -> (...,2) float64 pixels, distorted; NaN behind the camera."""
        points = np.asarray(points, dtype=np.float64)
        flat = points.reshape(-1, 3)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            rays = flat[:, :2] / np.where(flat[:, 2:] > 0, flat[:, 2:], np.nan)
            return _pixels_of(rays, self).reshape(*points.shape[:-1], 2)


def load_camera(path: str | Path) -> Camera:
    """Read a ROS calibration file (camera_info YAML as camera_calibration writes it)."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CameraError(f"there is no calibration file {path}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CameraError(f"{path} is not YAML ({error}); write it with camera_calibration") from error
    try:
        K, D = content["camera_matrix"]["data"], content["distortion_coefficients"]["data"]
        return Camera.from_K(K, content["image_width"], content["image_height"], content["distortion_model"], D)
    except CameraError as error:
        raise CameraError(f"{path}: {error}") from error
    except KeyError as error:
        raise CameraError(f"{path}: the key {error} is missing; write it with camera_calibration") from error
    except (TypeError, ValueError) as error:
        raise CameraError(f"{path} is not a camera_info file ({error}); write it with camera_calibration") from error


def save_camera(path: str | Path, camera: Camera, name: str = "endoscope") -> None:
    """Write a ROS calibration file that `load_camera` and camera_info_manager read."""
    K = camera.K
    model, D = ("plumb_bob", (0.0,) * 5) if camera.model == "pinhole" else (camera.model, camera.D)
    content = {
        "image_width": camera.width,
        "image_height": camera.height,
        "camera_name": name,
        "camera_matrix": _matrix(K),
        "distortion_model": model,
        "distortion_coefficients": _matrix(np.array([D])),
        "rectification_matrix": _matrix(np.eye(3)),
        "projection_matrix": _matrix(np.hstack([K, np.zeros((3, 1))])),
    }
    Path(path).write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None), encoding="utf-8")


def _check_coefficients(model: str, D: tuple[float, ...]) -> None:
    if model not in COEFFICIENTS:
        raise CameraError(f"the distortion model '{model}' is unknown; use one of {', '.join(COEFFICIENTS)}")
    if len(D) not in COEFFICIENTS[model]:
        wanted = " or ".join(str(count) for count in COEFFICIENTS[model])
        raise CameraError(f"{model} takes {wanted} distortion coefficients, got {len(D)}; check D and distortion_model")


@lru_cache(maxsize=4)
def _rays(camera: Camera) -> np.ndarray:
    count = camera.width * camera.height
    rays = np.empty((count, 2), dtype=np.float32)
    for start in range(0, count, BLOCK):
        v, u = np.divmod(np.arange(start, min(start + BLOCK, count)), camera.width)
        rays[start : start + BLOCK] = _undistorted(np.stack([u, v], axis=-1).astype(np.float64), camera)
    rays = rays.reshape(camera.height, camera.width, 2)
    rays.setflags(write=False)  # the cache hands the same array to everyone
    return rays


def _mirrored(camera: Camera, flip: str) -> tuple[float, ...]:
    """D in a mirror: what bends along the mirrored axis changes its sign, what depends on the radius stays."""
    if camera.model == "equidistant":
        return camera.D
    return tuple(-d if place in SIGNS[flip] else d for place, d in enumerate(camera.D))


def _undistorted(pixels: np.ndarray, camera: Camera) -> np.ndarray:
    """(N,2) pixels -> (N,2) x/z, y/z; NaN where the ray does not lead back to its pixel."""
    if not camera.is_distorted:
        return (pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy)
    rays = _inverse_distortion(pixels, camera)
    with np.errstate(invalid="ignore", over="ignore"):
        missed = ~(np.abs(_pixels_of(rays, camera) - pixels).max(axis=1) < ROUND_TRIP_TOLERANCE)
    rays[missed] = np.nan
    return rays


def _inverse_distortion(pixels: np.ndarray, camera: Camera) -> np.ndarray:
    """(N,2) pixels -> (N,2) x/z, y/z as OpenCV iterates them, good or not."""
    source, K, D = pixels.reshape(-1, 1, 2), camera.K, np.array(camera.D)
    if camera.model == "equidistant":
        return cv2.fisheye.undistortPoints(source, K, D).reshape(-1, 2)
    # Five iterations, the default, leave 0.2 px of error in the corners of a wide endoscope.
    criteria = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 40, 1e-4)
    if hasattr(cv2, "undistortPointsIter"):  # OpenCV 4 takes criteria under another name than OpenCV 5
        return cv2.undistortPointsIter(source, K, D, None, None, criteria).reshape(-1, 2)
    return cv2.undistortPoints(source, K, D, criteria=criteria).reshape(-1, 2)


def _pixels_of(rays: np.ndarray, camera: Camera) -> np.ndarray:
    """(N,2) x/z, y/z -> (N,2) distorted pixels."""
    if not camera.is_distorted:
        return rays * (camera.fx, camera.fy) + (camera.cx, camera.cy)
    if not len(rays):
        return np.empty((0, 2))
    points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1).reshape(-1, 1, 3)
    project = cv2.fisheye.projectPoints if camera.model == "equidistant" else cv2.projectPoints
    pixels, _ = project(points, np.zeros(3), np.zeros(3), camera.K, np.array(camera.D))
    return pixels.reshape(-1, 2)


def _matrix(values: np.ndarray) -> dict:
    return {"rows": values.shape[0], "cols": values.shape[1], "data": [float(value) for value in values.ravel()]}


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}" if len(shape) == 2 else f"an array of shape {shape}"
