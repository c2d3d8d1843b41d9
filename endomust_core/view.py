"""What is seen of an image: raw (H,W,3) uint8 RGB → cropped, undistorted, flipped, resized; and its Camera [px].

The order is crop → undistort to a pinhole → flip → resize, and the answer comes in one step. Where rays have to be
bent, that step is one remap with fixed-point maps straight to the size that is asked for: nothing is made at full size
to be thrown away. A crop or a flip alone is a resize of a part of the image, as `resize_rgb` does it.

The pinhole keeps focal lengths and centre of K. Pixels in the middle, where an endoscope looks and networks are best,
so keep their size, and nothing is stretched to hold the rim: a wide lens loses some of it, a lens that bends the other
way leaves corners empty (`valid`). Whoever wants all of a fisheye takes the image as it is, with the distorted camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from operator import index

import cv2
import numpy as np

from endomust_core.bundle import resize_rgb
from endomust_core.camera import FLIPS, Camera, CameraError

FLIP_CODES = {"h": 1, "v": 0, "180": -1}  # of cv2.flip
REDUCTIONS = (1, 2, 4, 8)  # of a JPEG that was decoded smaller than it is, each side rounded up
LONGEST_SIDE = 32766  # px; fixed-point maps count in int16
OUTSIDE = -8.0  # px; a place left of the image, so that the remap answers with black
RADII = 2048  # steps from the axis to the outermost ray in which a lens is looked over for a fold


@dataclass(frozen=True)
class View:
    """How one camera's images are seen; made by `View.of`. Sizes are (width, height) but for those of arrays."""

    raw_camera: Camera | None  # of the whole image
    raw_size: tuple[int, int]  # of the whole image, as the camera makes it
    roi: tuple[int, int, int, int]  # x, y, width, height in the whole image
    flip: str
    undistort: bool
    antialias: bool

    @classmethod
    def of(
        cls,
        camera: Camera | None,
        size: tuple[int, int],
        roi: Sequence[int] = (),
        flip: str = "none",
        undistort: bool = False,
        antialias: bool = True,
    ) -> View:
        """The view of images of `size` (width, height) by `camera`, None without calibration; equal asks, one View.

        `roi` is (x, y, width, height), or empty for all; what lies outside is not looked at, in undistorting neither.
        `flip` is none, h, v or 180. `antialias` reduces large images by area before they are bent. Raises CameraError.
        """
        try:
            size, roi = tuple(map(index, size)), tuple(map(index, roi))
        except TypeError as error:
            raise CameraError(f"size and region of interest are whole numbers of pixels ({error})") from error
        return _view(camera, size, roi, flip, bool(undistort), bool(antialias))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the view's own grid: a pixel in its middle is as large as one of the camera."""
        return self.roi[2:]

    @cached_property
    def camera(self) -> Camera | None:
        """The camera of the view's own grid: a pinhole with `undistort`, else as distorted as it is; None without."""
        if self.raw_camera is None:
            return None
        camera = self.raw_camera.cropped(*self.roi)
        return (camera.pinhole() if self.undistort else camera).flipped(self.flip)

    @property
    def bends(self) -> bool:
        """True when rays are bent: there is a distortion, and it is to be undone."""
        return self.undistort and self.raw_camera is not None and self.raw_camera.is_distorted

    @property
    def identity(self) -> bool:
        """True when nothing is to be done but a resize."""
        return self._whole and self.flip == "none" and not self.bends

    @property
    def _whole(self) -> bool:
        return self.roi == (0, 0, *self.raw_size)

    def needed(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) that the whole image must have for `image(rgb, size)` to miss nothing; size (height, width).

        What `compressed_to_rgb` takes as `at_least`.
        """
        height, width = size
        return -(-self.raw_size[0] * width // self.size[0]), -(-self.raw_size[1] * height // self.size[1])

    def image(self, rgb: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H,W,3) uint8 RGB as the camera made it → (h,w,3) contiguous RGB at `size` (height, width) or the own.

        The image may also be one that was decoded at 1/2, 1/4 or 1/8. An identity at its own size is `rgb` itself, not
        a copy; at any other size it is what `resize_rgb` says. Raises ValueError for an image of another size.
        """
        reduction = self._reduction(rgb)
        if self.identity:
            if size is None and reduction == 1:
                return rgb
            return resize_rgb(rgb, size or self.size[::-1])
        bgr = rgb.strides[2] < 0  # seen from the other end; OpenCV would copy it whole, so the small answer is swapped
        source = rgb[..., ::-1] if bgr else rgb
        shown = self._sampled(source, size or self.size[::-1], reduction)
        return cv2.cvtColor(shown, cv2.COLOR_BGR2RGB) if bgr else shown

    def mask(self, mask: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H,W) bool or uint8 over the whole image → (h,w) of the same kind, nearest neighbour; 0 where there is none.

        A mask of another size is stretched over the image, where its proportions are those of the image.
        """
        whole = self._stretched(mask)
        x, y, width, height = self.roi
        part, size = whole[y : y + height, x : x + width], size or self.size[::-1]
        if self.bends:
            place, _ = _maps(self, tuple(size), 1, 1, nearest=True)
            shown = cv2.remap(part, place, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
        else:
            shown = cv2.resize(part, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            shown = shown if self.flip == "none" else cv2.flip(shown, FLIP_CODES[self.flip])
        return shown.view(mask.dtype)

    def valid(self, size: tuple[int, int] | None = None) -> np.ndarray | None:
        """(h,w) bool, read-only: pixels with a ray that ends in the image (in the ROI); None when all have one."""
        return _valid(self, tuple(size or self.size[::-1])) if self.bends else None

    def _reduction(self, rgb: np.ndarray) -> int:
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise ValueError(f"the image is {rgb.dtype} of shape {rgb.shape}; give (H,W,3) uint8 RGB")
        (height, width), (raw_width, raw_height) = rgb.shape[:2], self.raw_size
        for reduction in REDUCTIONS:
            if (width, height) == (-(-raw_width // reduction), -(-raw_height // reduction)):
                return reduction
        raise ValueError(f"the image is {width}x{height}, the view is of {raw_width}x{raw_height}; make another view")

    def _sampled(self, source: np.ndarray, size: tuple[int, int], reduction: int) -> np.ndarray:
        """The view of an image whose channels stand in the order of memory."""
        x, y, width, height = self.roi
        aligned = self._whole or all(side % reduction == 0 for side in self.roi)
        left, top = x // reduction, y // reduction
        part = source[top : -(-(y + height) // reduction), left : -(-(x + width) // reduction)]
        if self.bends or not aligned:
            return self._remapped(part, size, reduction)
        shown = part if part.shape[:2] == tuple(size) else resize_rgb(part, size)
        return np.ascontiguousarray(shown) if self.flip == "none" else cv2.flip(shown, FLIP_CODES[self.flip])

    def _remapped(self, part: np.ndarray, size: tuple[int, int], reduction: int) -> np.ndarray:
        factor = _area_factor(part.shape[:2], size) if self.antialias else 1
        if factor > 1:
            height, width = part.shape[0] // factor, part.shape[1] // factor
            part = cv2.resize(part[: height * factor, : width * factor], (width, height), interpolation=cv2.INTER_AREA)
        maps = _maps(self, tuple(size), reduction, factor)
        return cv2.remap(part, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)

    def _stretched(self, mask: np.ndarray) -> np.ndarray:
        """The mask as (H,W) uint8 of the whole image."""
        if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
            raise ValueError(f"the mask is {mask.dtype} of shape {mask.shape}; give (H,W) uint8 or bool")
        (height, width), (raw_width, raw_height) = mask.shape, self.raw_size
        whole = np.ascontiguousarray(mask).view(np.uint8)
        if (width, height) == self.raw_size:
            return whole
        if not min(mask.shape) or abs(width * raw_height - height * raw_width) > max(raw_width, raw_height):
            raise ValueError(
                f"the mask is {width}x{height}, the image {raw_width}x{raw_height}; send a mask of the whole image"
            )
        return cv2.resize(whole, self.raw_size, interpolation=cv2.INTER_NEAREST_EXACT)


@lru_cache(maxsize=16)
def _view(camera, size, roi, flip, undistort, antialias) -> View:
    if len(size) != 2 or min(size) <= 0:
        raise CameraError(f"the size of the image is {size}; give (width, height) in pixels")
    width, height = size
    roi = roi or (0, 0, width, height)
    if len(roi) != 4 or min(roi[:2]) < 0 or min(roi[2:]) <= 0:
        raise CameraError(f"the region of interest is {roi}; give x, y, width, height in pixels, or nothing for all")
    if roi[0] + roi[2] > width or roi[1] + roi[3] > height:
        raise CameraError(
            f"the region of interest {roi[2]}x{roi[3]} at ({roi[0]}, {roi[1]}) leaves the image of {width}x{height}; "
            "make it smaller"
        )
    if flip not in FLIPS:
        raise CameraError(f"flip is {flip!r}; use one of {', '.join(FLIPS)}")
    if camera is not None and (camera.width, camera.height) != size:
        raise CameraError(f"the image is {width}x{height}, the camera is {camera.width}x{camera.height}; resize one")
    view = View(camera, size, roi, flip, undistort, antialias)
    if view.bends and max(size) > LONGEST_SIDE:
        raise CameraError(f"an image of {width}x{height} is too long to be undistorted; reduce it before")
    return view


def _area_factor(shape: tuple[int, int], size: tuple[int, int]) -> int:
    """By how much a part is reduced before the remap, which reads 2x2 pixels and aliases beyond a factor of 2."""
    return max(1, min(shape[0] // size[0], shape[1] // size[1]))


@lru_cache(maxsize=8)
def _maps(view: View, size: tuple[int, int], reduction: int, factor: int, nearest: bool = False) -> tuple:
    """Fixed-point maps into the view's part of the image, decoded at 1/reduction and then reduced by `factor`.

    `nearest` rounds here: OpenCV 5 does not round the maps of bilinear reading when it reads the nearest pixel.
    """
    places, inside = _places(view, size)
    maps = []
    for place, first, length in zip(places, view.roi[:2], view.roi[2:], strict=True):
        start = first // reduction
        last = (-(-(first + length) // reduction) - start) // factor - 1
        place = ((place + 0.5) / reduction - start) / factor - 0.5
        with np.errstate(invalid="ignore"):
            place = np.clip(place, 0, last)  # half a pixel beyond the middle of the last is still that pixel, not black
        place[~inside] = OUTSIDE
        maps.append(place.astype(np.float32, copy=False))
    return cv2.convertMaps(*maps, cv2.CV_16SC2, nninterpolation=nearest)


@lru_cache(maxsize=8)
def _valid(view: View, size: tuple[int, int]) -> np.ndarray | None:
    inside = _places(view, size)[1]
    inside.setflags(write=False)  # the cache hands the same array to everyone
    return None if inside.all() else inside


def _places(view: View, size: tuple[int, int]) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Where in the whole image each pixel of a (height, width) grid looks: x and y (h,w) float32 [px], and whether
    that is inside the ROI."""
    x, y = _bent_places(view, size) if view.bends else _straight_places(view, size)
    left, top, width, height = view.roi
    with np.errstate(invalid="ignore"):
        inside = (x >= left - 0.5) & (x <= left + width - 0.5) & (y >= top - 0.5) & (y <= top + height - 0.5)
    return (x, y), inside


def _straight_places(view: View, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    axes = []
    for first, length, count, flips in zip(view.roi[:2], view.roi[2:], size[::-1], ("h", "v"), strict=True):
        place = (np.arange(count, dtype=np.float32) + 0.5) * (length / count) - 0.5
        axes.append(first + (length - 1 - place if view.flip in (flips, "180") else place))
    x, y = np.meshgrid(*axes)
    return x.astype(np.float32), y.astype(np.float32)


def _bent_places(view: View, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixel → ray → distorted pixel; in the matrix that OpenCV inverts, a flip is a negative focal length."""
    height, width = size
    camera, grid = view.raw_camera, view.camera.resized(width, height).K
    grid[0, 0] *= -1 if view.flip in ("h", "180") else 1
    grid[1, 1] *= -1 if view.flip in ("v", "180") else 1
    undo = cv2.fisheye.initUndistortRectifyMap if camera.model == "equidistant" else cv2.initUndistortRectifyMap
    x, y = undo(camera.K, np.array(camera.D), np.eye(3), grid, (width, height), cv2.CV_32FC1)
    u, v = (np.arange(width) - grid[0, 2]) / grid[0, 0], (np.arange(height) - grid[1, 2]) / grid[1, 1]
    beyond = np.hypot(u, v[:, None]) >= _fold(camera, float(np.hypot(np.abs(u).max(), np.abs(v).max())))
    x[beyond] = y[beyond] = np.nan
    return x, y


def _fold(camera: Camera, largest: float) -> float:
    """The ray [x/z] from which on the lens maps back towards the middle of the image; infinity: none up to `largest`.

    A polynomial has no such scruples: beyond the rays it was fitted to it shows the middle of the image once more.
    """
    radial = tuple(
        d for place, d in enumerate(camera.D) if camera.model == "equidistant" or place in (0, 1, 4, 5, 6, 7)
    )
    if camera.model != "equidistant":
        radial = (*radial[:2], 0.0, 0.0, *radial[2:])
    lens = replace(camera, fx=1.0, fy=1.0, cx=0.0, cy=0.0, D=radial)
    radii = np.linspace(0, largest, RADII)
    seen = lens.project(np.stack([radii, np.zeros(RADII), np.ones(RADII)], axis=-1))[:, 0]
    with np.errstate(invalid="ignore", over="ignore"):
        back = np.flatnonzero(~(np.diff(seen) > 0))
    return float(radii[back[0]]) if back.size else np.inf
