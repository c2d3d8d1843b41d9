"""Image (h,w,3) uint8 -> depth [m], camera motion T_prev_curr [m, rad] and intrinsics; remembers one frame.

Exactly repeatable: the same images in the same order give the same bits, whatever came before a reset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import cv2
import numpy as np

from endomust_core.bundle import Bundle, BundleError, resize_rgb
from endomust_core.engines import EngineOptions, Engines, open_engines
from endomust_core.odometry import se3, so3_exp

if TYPE_CHECKING:
    from endomust_core.view import View


@dataclass(frozen=True)
class Estimate:
    """What one image says. The arrays are new for every image; keep or change them freely."""

    depth: np.ndarray  # (H,W) float32 [m] along the optical axis; NaN where invalid
    T_prev_curr: np.ndarray | None  # (4,4) float64 [m]; None on the first frame after reset, or without a pose network
    intrinsics: np.ndarray | None  # (4,) float64 predicted fx/W, fy/H, cx/W, cy/H
    timing: dict[str, float]  # seconds: preprocess, depth, pose, postprocess


@dataclass(frozen=True)
class Look:
    """What the depth network says of one image; see `Estimator.look`."""

    disparity: np.ndarray  # (H,W) float32 [1/m] at network size
    image: np.ndarray  # (H,W,3) uint8 RGB at network size
    pose_image: np.ndarray | None  # (H,W,3) uint8 at the size of the pose network; None without one
    timing: dict[str, float]  # seconds: preprocess, depth


class Estimator:
    """Runs the networks of a bundle; not for use from two threads at once, except that one may `look` ahead.

    resolution of the depth image: "input", "network", or (width, height). min_depth and max_depth [m] may be changed
    between images. Raises BundleError or BackendError where the bundle or the provider cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        providers: Sequence[str] = ("cpu",),
        threads: int = 0,
        resolution: str | tuple[int, int] = "input",
        min_depth: float = 0.0,
        max_depth: float = math.inf,
        options: EngineOptions | None = None,
        engines: Engines | None = None,
    ):
        """`options` says more of how the networks run than `providers` and `threads`, and takes their place.

        `engines` that run already (of the same bundle) take the place of both: two cameras can share one set.
        """
        if bundle.depth.batch != 1:
            raise BundleError(
                f"{bundle.root} takes {bundle.depth.batch} images at once, for a stereo rig; one camera needs a bundle "
                "that was exported without --batch"
            )
        self.bundle = bundle
        self.resolution = _checked_resolution(resolution)
        self.min_depth, self.max_depth = min_depth, max_depth
        self.engines = engines or open_engines(bundle, options or EngineOptions(providers, threads=threads))
        self._depth, self._pose = self.engines.depth, self.engines.pose
        self._pair = np.zeros(bundle.pose.input_shape, dtype=np.uint8) if bundle.pose else None  # previous, current
        self._has_previous = False

    @property
    def provider(self) -> str:
        """The provider that runs the depth network: one of those asked for."""
        return self.engines.provider

    def look(self, rgb: np.ndarray, view: View | None = None) -> Look:
        """(h,w,3) uint8 RGB -> what does not depend on the image before. Raises ValueError.

        `view` is what the networks see of the image (crop, undistortion, flip); None is all of it as it is.
        Remembers nothing: one thread may look at the next image while another is in `depth`, `motion` or `remember`.
        """
        _check_image(rgb)
        times = [perf_counter()]
        resize = resize_rgb if view is None else lambda image, size: view.image(image, size)
        image = resize(rgb, self.bundle.depth.size)
        pose_image = self._pose_image(rgb, image, resize)
        times.append(perf_counter())
        disparity = self._disparity(image)
        times.append(perf_counter())
        return Look(disparity, image, pose_image, _durations(("preprocess", "depth"), times))

    def depth(
        self, look: Look, size: tuple[int, int], scale: float = 1.0, factor: np.ndarray | None = None
    ) -> np.ndarray:
        """What `look` said of an image of `size` (width, height) -> depth (H,W) float32 [m]. Raises ValueError.

        `factor` (network size) corrects the depth pixel by pixel.
        """
        _check_scale(scale)
        width, height = self._output_size(size)
        disparity = look.disparity if factor is None else look.disparity / factor
        return to_depth(disparity, width, height, scale, self.min_depth, self.max_depth)

    def motion(self, look: Look, scale: float = 1.0) -> tuple[np.ndarray | None, np.ndarray | None]:
        """T_prev_curr (4,4) [m] and intrinsics (4,); None without an image before, or without a pose network.

        This image becomes the one before.
        """
        _check_scale(scale)
        return self._motion(look.pose_image, scale)

    def remember(self, look: Look) -> None:
        """This image becomes the one before, and nobody asks how the camera has moved."""
        if self._pose is not None:
            self._pair[0, 0] = look.pose_image
            self._has_previous = True

    def estimate(self, rgb: np.ndarray, scale: float = 1.0) -> Estimate:
        """(h,w,3) uint8 RGB of any size -> Estimate; `scale` multiplies depth and translation. Raises ValueError."""
        look = self.look(rgb)
        times = [perf_counter()]
        T_prev_curr, intrinsics = self.motion(look, scale)
        times.append(perf_counter())
        depth = self.depth(look, (rgb.shape[1], rgb.shape[0]), scale)
        times.append(perf_counter())
        timing = look.timing | _durations(("pose", "postprocess"), times)
        return Estimate(depth, T_prev_curr, intrinsics, timing)

    def reset(self) -> None:
        """Forget the previous frame: the next image has no motion."""
        self._has_previous = False

    def warm_up(self, runs: int = 3) -> None:
        """Run both networks on black images, so that the first real one is as fast as the rest; remembers nothing."""
        for _ in range(runs):
            self._disparity(np.zeros(self.bundle.depth.input_shape[1:], dtype=np.uint8))
            if self._pose is not None:
                self._run_pose(np.zeros(self.bundle.pose.input_shape, dtype=np.uint8))

    def _pose_image(self, rgb: np.ndarray, depth_image: np.ndarray, resize: Callable) -> np.ndarray | None:
        """The image at the pose network's size; most bundles use one size, then one resize serves both."""
        if self._pose is None:
            return None
        same = self.bundle.pose.size == self.bundle.depth.size
        return depth_image if same else resize(rgb, self.bundle.pose.size)

    def _disparity(self, image: np.ndarray) -> np.ndarray:
        """(H,W,3) uint8 -> (H,W) float32 [1/m] at network size."""
        spec = self.bundle.depth
        disparity = self._depth.run({spec.input_name: image[np.newaxis]})[spec.outputs["disparity"]]
        if disparity.shape != (1, *spec.size):
            raise BundleError(f"{spec.path} gave a disparity of shape {disparity.shape}; export it again")
        return disparity[0]

    def _motion(self, image: np.ndarray | None, scale: float) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Pose network on (previous, current) -> T_prev_curr and intrinsics; the current image becomes the previous."""
        if self._pose is None:
            return None, None
        self._pair[0, 1] = image
        motion = self._run_pose(self._pair) if self._has_previous else (None, None, None)
        self._pair[0, 0] = image
        self._has_previous = True
        rotation, translation, intrinsics = motion
        if rotation is None:
            return None, None
        return se3(so3_exp(rotation), translation * scale), intrinsics

    def _run_pose(self, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """(1,2,H,W,3) uint8 -> axis-angle (3,) [rad], translation (3,) [m], intrinsics (4,) or None; float64."""
        spec = self.bundle.pose
        found = self._pose.run({spec.input_name: pair})
        named = {ours: found[name].reshape(-1).astype(np.float64) for ours, name in spec.outputs.items()}
        return named["rotation"], named["translation"], named.get("intrinsics")

    def _output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width, height of the depth image of an image of this width and height."""
        if self.resolution == "input":
            return size
        if self.resolution == "network":
            return self.bundle.depth.size[1], self.bundle.depth.size[0]
        return self.resolution


def to_depth(
    disparity: np.ndarray,
    width: int,
    height: int,
    scale: float = 1.0,
    min_depth: float = 0.0,
    max_depth: float = math.inf,
) -> np.ndarray:
    """(H,W) disparity [1/m] -> (height,width) float32 depth [m], NaN where invalid or outside [min_depth, max_depth].

    Resized bilinearly as disparity, then inverted: a plane stays a plane, as inverse depth is linear in the image. What
    is not positive and finite becomes NaN before the resize, so that no depth is made up between it and its neighbours.
    """
    with np.errstate(invalid="ignore"):
        valid = (disparity > 0) & (disparity < np.inf)
    disparity = np.where(valid, disparity, np.float32(np.nan))
    if disparity.shape != (height, width):
        disparity = cv2.resize(disparity, (width, height), interpolation=cv2.INTER_LINEAR)
    depth = np.divide(np.float32(scale), disparity, out=disparity)
    with np.errstate(invalid="ignore"):
        if min_depth > 0:
            np.copyto(depth, np.nan, where=depth < min_depth)
        if max_depth < math.inf:
            np.copyto(depth, np.nan, where=depth > max_depth)
    return depth


def _durations(stages: Sequence[str], times: Sequence[float]) -> dict[str, float]:
    """Seconds of each stage, from the moments around them."""
    return {stage: end - start for stage, start, end in zip(stages, times[:-1], times[1:], strict=True)}


def _checked_resolution(resolution: str | tuple[int, int]) -> str | tuple[int, int]:
    if isinstance(resolution, str):
        if resolution in ("input", "network"):
            return resolution
    elif len(resolution) == 2 and all(int(side) == side and side > 0 for side in resolution):
        return int(resolution[0]), int(resolution[1])
    raise ValueError(f"resolution is {resolution!r}; use 'input', 'network' or (width, height)")


def _check_image(rgb: np.ndarray) -> None:
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8:
        found = rgb.dtype if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise ValueError(f"the image must be a numpy array of uint8, got {found}; convert it to 8-bit RGB first")
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"the image must have the shape (height, width, 3), got {rgb.shape}; convert it to RGB first")
    if rgb.size == 0:
        raise ValueError(f"the image is empty, its shape is {rgb.shape}; check the camera driver")


def _check_scale(scale: float) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale}")
