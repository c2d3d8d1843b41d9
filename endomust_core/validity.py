"""Image (h,w,3) uint8 → where depth means little, each (h,w) bool: highlights, dark surround, instruments; no network.

Sizes are shares of the image, tuned at the grid of the depth network (168x224); about 0.5 ms together there.
"""

from __future__ import annotations

import cv2
import numpy as np

SPOT, WHITE, CLIPPED = 35, 115, 240  # of 255, darkest channel: above the surroundings, at least, and in any case
BLACK = 24  # brightest channel of 255 below which a pixel may be surround; compressed video leaves noise up to 20
LIT_SHARE = 0.05  # of the images: a pixel that was lit less often belongs to the surround
MEMORY = 250  # images over which `Border` averages, ten seconds
BLACKOUT = 0.1  # share of lit pixels below which an image says nothing about the surround


def specular_mask(rgb: np.ndarray, border: np.ndarray | None = None) -> np.ndarray:
    """Small whitish spots brighter than what lies around them, or clipped: highlights of the lamp on wet tissue.

    rgb (h,w,3) uint8 → (h,w) bool. The darkest channel shows them best: tissue has little blue, the lamp has all three.
    A white area larger than a spot (bone, gauze, a pale organ) is no highlight unless it is clipped. `border` (h,w)
    bool, the surround where known, keeps the bright rim of a round picture from looking like one.
    """
    darkest = _extreme(rgb, cv2.min)
    around = darkest if border is None else np.where(border, np.uint8(255), darkest)
    spots = cv2.subtract(darkest, cv2.morphologyEx(around, cv2.MORPH_OPEN, _disc(_odd(0.055 * rgb.shape[0]))))
    found = ((spots > SPOT) & (darkest > WHITE)) | (darkest > CLIPPED)
    return found if border is None else found & ~border


def border_mask(rgb: np.ndarray) -> np.ndarray:
    """The black surround of a round or octagonal picture, with a margin of its soft rim; rgb (h,w,3) → (h,w) bool.

    Nothing where the picture fills the image. One image is enough where its rim is lit; see `Border` for a video.
    """
    return _surround(_extreme(rgb, cv2.max) >= BLACK)


class Border:
    """The same for a video, whose surround stays where it is: a pixel belongs to it that has hardly ever been lit."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget all images: the camera has been changed."""
        self._share: np.ndarray | None = None  # (h,w) float32: how often each pixel was lit, the last images count most
        self._images = 0
        self._mask: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray | None:
        """(h,w) bool as of the last image; None before the first."""
        return self._mask

    def update(self, rgb: np.ndarray) -> np.ndarray:
        """The next image (h,w,3) uint8 → (h,w) bool, all images considered. Another size starts again."""
        lit = _extreme(rgb, cv2.max) >= BLACK
        if self._share is not None and self._share.shape != lit.shape:
            self.reset()
        if lit.mean() < BLACKOUT:  # the lamp is off: what was known still holds
            return np.zeros_like(lit) if self._mask is None else self._mask.copy()
        if self._share is None:
            self._share = lit.astype(np.float32)
        else:
            cv2.accumulateWeighted(lit.view(np.uint8), self._share, max(1 / (self._images + 1), 1 / MEMORY))
        self._images += 1
        if self._mask is None or self._images < 25 or self._images % 10 == 0:  # it moves slowly, if at all
            self._mask = _surround(self._share > LIT_SHARE)
        return self._mask.copy()


def instrument_mask(rgb: np.ndarray, border: np.ndarray | None = None) -> np.ndarray:
    """Grey things with straight sides that come in from the edge of the picture; rgb (h,w,3) uint8 → (h,w) bool.

    A classic detector, honest about what it is: it finds shafts and metal in front of coloured tissue. It misses tips
    that touch nothing grey, tools covered with blood or lit in the colour of tissue, and coloured shafts; it takes a
    pale fascia or gauze with a straight side that reaches the edge for a tool. A network that segments tools is better:
    give its answer as a mask instead. `border` (h,w) bool: the surround, where known.
    """
    height, width = rgb.shape[:2]
    border = border_mask(rgb) if border is None else border
    grey = _grey(rgb, ~border)
    if grey is None:
        return np.zeros((height, width), bool)
    small, large = _disc(_odd(0.018 * height)), _disc(_odd(0.035 * height))
    blobs = cv2.morphologyEx(cv2.morphologyEx(grey, cv2.MORPH_OPEN, small), cv2.MORPH_CLOSE, large)
    rim = cv2.dilate(border.view(np.uint8), _disc(5)) > 0
    rim[[0, 1, -2, -1]] = rim[:, [0, 1, -2, -1]] = True
    found = np.zeros((height, width), np.uint8)
    contours, _ = cv2.findContours(blobs, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        if cv2.contourArea(contour) > 0.007 * height * width and _is_tool(contour, rim):
            cv2.drawContours(found, [contour], -1, 1, cv2.FILLED)
    found &= ~border.view(np.uint8) & 1
    return cv2.dilate(found, _disc(3)).view(bool)


def _grey(rgb: np.ndarray, lit: np.ndarray) -> np.ndarray | None:
    """(h,w) uint8, 1 where a pixel has far less colour than the tissue around; None where tissue itself is grey."""
    brightest, darkest = _extreme(rgb, cv2.max), _extreme(rgb, cv2.min)
    saturation = cv2.divide(cv2.subtract(brightest, darkest), cv2.add(brightest, 6), scale=255)  # 6: noise in the dark
    sample = saturation[::4, ::4][lit[::4, ::4]]
    tissue = float(np.median(sample)) if sample.size else 0.0
    if tissue < 0.12 * 255:
        return None
    return ((saturation < min(0.4 * tissue, 0.18 * 255)) & lit).view(np.uint8)


def _is_tool(contour: np.ndarray, rim: np.ndarray) -> bool:
    """True for an outline (N,1,2) that meets the rim and whose other sides are mostly straight."""
    x, y = contour[:, 0, 0], contour[:, 0, 1]
    at_rim = rim[y, x]
    if at_rim.sum() < 3 or at_rim.mean() > 0.85:
        return False
    corners = cv2.approxPolyDP(contour, 2.0, True)[:, 0].astype(np.float32)
    steps = np.roll(corners, -1, axis=0) - corners
    lengths = np.hypot(*steps.T)
    middle = (corners + 0.5 * steps).round().astype(int)
    inside = ~rim[middle[:, 1].clip(0, rim.shape[0] - 1), middle[:, 0].clip(0, rim.shape[1] - 1)]
    lengths, height = lengths[inside], rim.shape[0]
    sides = sorted(cv2.minAreaRect(contour)[1])
    # A chord of a large circle passes for a straight line below a fifth; a long thin thing may have shorter ones.
    if lengths.max(initial=0) < (0.12 if sides[1] > 2.2 * sides[0] else 0.2) * height:
        return False
    return lengths[lengths > 0.09 * height].sum() > 0.4 * lengths.sum()


def _surround(lit: np.ndarray) -> np.ndarray:
    """Lit pixels (h,w) bool → what lies outside the convex outline of the largest lit part, and its rim.

    The lit window of an endoscope is convex, so a dark lumen that reaches the edge stays inside of it, and writing on
    the black surround is no part of it.
    """
    height, width = lit.shape
    opened = cv2.morphologyEx(lit.astype(np.uint8), cv2.MORPH_OPEN, _disc(3))
    contours, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return ~lit
    outline = cv2.convexHull(max(contours, key=cv2.contourArea))
    window = cv2.fillConvexPoly(np.zeros((height, width), np.uint8), outline, 1)
    outside = (window == 0).view(np.uint8)
    if outside.mean() < 0.002:  # a dark corner pixel or two
        return np.zeros((height, width), bool)
    return cv2.dilate(outside, _disc(_odd(0.025 * height))).view(bool)


def _extreme(rgb: np.ndarray, of) -> np.ndarray:
    """(h,w) uint8: the brightest (cv2.max) or darkest (cv2.min) channel."""
    red, green, blue = cv2.split(rgb)
    return of(of(red, green), blue)


def _disc(size: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def _odd(size: float) -> int:
    """The nearest odd number of pixels, three at least."""
    return max(3, 2 * int(size / 2) + 1)
