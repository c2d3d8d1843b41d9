"""Keyframe and image (h,w) uint8 -> which of the keyframe's points are seen where [px], and the pose between them.

Points are sought where the image has corners, is neither dark nor glaring, and spread over a grid of cells. Each is
followed from the keyframe's own image (Lucas-Kanade on pyramids, Bouguet 2001), not from image to image, so that
standing still adds no error however long it lasts. Whether it is still the same point is told by the normalised
cross-correlation of its patch, because the lamps of an endoscope move with it and change all brightness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.odometry import se3
from endomust_core.pose_refinement import Fit, Points, project, refine, updated

WANTED = 180  # points of a keyframe
LEAST_POINTS = 16  # followed or agreeing with one pose; fewer say nothing
LEAST_SHARE = 0.35  # of the followed points that must agree with one pose, and of those that it puts into the image
DARK, GLARING = 12, 244  # grey values beyond which a pixel says nothing
NEAR_DARK = 9  # px; a corner so near to darkness may belong to the image's border, which moves with the camera
LEAST_EIGENVALUE = 4e-5  # of the structure tensor over 5x5, grey in 0..1; ramps of 8-bit steps stay below 2e-6
WINDOW = (15, 15)
EVEN_SIGMA = 1.0  # px; noise is smoothed before it is made louder: without, a smooth colon has nothing else to follow
EVEN_WINDOW, EVEN_FLOOR = (17, 17), 4.0  # px, grey values: contrast below is noise, and stays low
EVEN_GAIN, EVEN_MIDDLE = 40.0, 3.2  # 3.2 standard deviations to either side fill 0..255
LEVELS = 2  # of the pyramid above the image: start values may be off by some 25 px
CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.02)
PATCH = 4  # px; half the side of the patches that are compared
COARSE = 4  # px; brightness and texture are those of the image made so many times smaller
ALIKE = 0.6  # correlation of patches from which on it is the same point
EDGE = 3  # px; nearer to the border of the image, a found point is not believed
NEW_SIGMA = 0.2  # relative; of the network's depth of a point. It errs by 0.1, but neighbours err alike, so less counts
LEAST_SIGMA = 0.02  # relative; what tissue that moves leaves of a depth, however often it was seen
# Over 48 s (8 s there and back) the scale of the map wandered by 3 to 12 % without the pull, and by 1 to 4 % with it.
SCALE_PULL = 0.05  # share of the map's scale error against the network's that each keyframe takes back
FEATURES = 600  # of ORB, sought in an image to find a lost keyframe again
RANSAC_PIXELS, RANSAC_ROUNDS = 3.0, 200


@dataclass(frozen=True)
class Picture:
    """One image prepared for following."""

    grey: np.ndarray  # (h,w) uint8
    even: np.ndarray  # (h,w) uint8, the same with its contrast made equal everywhere
    brightness: float  # 95th percentile of grey, 0..255
    texture: float  # mean absolute difference to the neighbourhood, grey values


@dataclass(frozen=True)
class Keyframe:
    """An image whose points have depths. Lengths are network units."""

    number: int
    picture: Picture
    points: Points
    T_visual: np.ndarray  # (4,4) T_visual_key
    log_scale: float  # logarithm of: depth in this map over what the network says of this image
    depth: np.ndarray  # (h,w) what the network says
    mask: np.ndarray | None  # (h,w) bool, True = usable


@dataclass(frozen=True)
class Sighting:
    """An image whose pose relative to a keyframe was found."""

    fit: Fit
    index: np.ndarray  # (N,) points of the keyframe that agree with the pose
    pixel: np.ndarray  # (N,2) float32 where they are seen
    tracked: int  # points followed, whether they agree or not

    @property
    def T_curr_key(self) -> np.ndarray:
        """(4,4) [network units]."""
        return self.fit.T_curr_key


def prepare(grey: np.ndarray, mask: np.ndarray | None = None) -> Picture:
    """(h,w) uint8, and (h,w) bool with True = usable or None -> Picture."""
    height, width = grey.shape
    size = (max(width // COARSE, 1), max(height // COARSE, 1))
    coarse = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)  # the mean of many pixels holds little noise
    seen = np.ones(coarse.shape, bool)
    if mask is not None:
        seen = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    values = coarse[seen]
    brightness = float(np.percentile(values, 95)) if values.size else 0.0
    lit = cv2.erode((seen & (coarse > DARK)).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    smooth = coarse.astype(np.float32)
    fine = np.abs(smooth - cv2.blur(smooth, (5, 5)))[lit]
    return Picture(grey, evened(grey), brightness, float(fine.mean()) if fine.size else 0.0)


def evened(grey: np.ndarray) -> np.ndarray:
    """(h,w) uint8 -> the same with local mean and contrast taken out: the lamp moves with the camera, and what it makes
    of brightness drags points along; fine texture that stays on the tissue does not."""
    values = cv2.GaussianBlur(grey, (0, 0), EVEN_SIGMA).astype(np.float32)
    fine = values - cv2.blur(values, EVEN_WINDOW)
    contrast = cv2.sqrt(cv2.blur(fine * fine, EVEN_WINDOW)) + EVEN_FLOOR
    return cv2.convertScaleAbs(cv2.divide(fine, contrast) + np.float32(EVEN_MIDDLE), alpha=EVEN_GAIN)


def new_keyframe(
    number: int,
    picture: Picture,
    depth: np.ndarray,
    camera: Camera,
    mask: np.ndarray | None,
    T_visual: np.ndarray,
    old: tuple[Keyframe, Sighting] | None = None,
) -> Keyframe:
    """Image, (h,w) depth [unit] and its pose -> Keyframe. With `old`, the points that are still seen keep their depths,
    corrected by the parallax, and all new ones are brought to their scale."""
    kept, log_scale = _nothing(), 0.0
    if old is not None:
        kept = _carried(*old, camera)
        log_ratio = -depth_ratio(kept.inverse_depth, depth, kept.pixel)
        log_scale = (old[0].log_scale if math.isnan(log_ratio) else log_ratio) * (1 - SCALE_PULL)
        if not math.isnan(log_ratio):
            kept = Points(kept.pixel, kept.ray, kept.inverse_depth * math.exp(SCALE_PULL * log_ratio), kept.sigma)
    pixel = corners(picture, WANTED, mask, kept.pixel)
    new = _points_at(pixel, depth, math.exp(log_scale), camera)
    return Keyframe(number, picture, kept.joined(new), T_visual, log_scale, depth, mask)


def locate(
    keyframe: Keyframe, picture: Picture, camera: Camera, guess: np.ndarray, levels: int = LEVELS
) -> tuple[Sighting | None, int]:
    """Keyframe, image and start value (4,4) T_curr_key -> Sighting, None where the image does not hold the camera in
    place; and how many points could be followed. One more of `levels` doubles how far the start may be off."""
    sighting, tracked = _located(keyframe, keyframe.picture.even, picture.even, camera, guess, levels)
    if sighting is not None:
        return sighting, tracked
    # Shade reaches farther than texture: it leads near enough for the texture to be found.
    coarse, followed = _located(keyframe, keyframe.picture.grey, picture.grey, camera, guess, levels)
    if coarse is None:
        return None, max(tracked, followed)
    fine, more = _located(keyframe, keyframe.picture.even, picture.even, camera, coarse.T_curr_key, levels)
    return (coarse, followed) if fine is None else (fine, more)


def _located(
    keyframe: Keyframe, old: np.ndarray, new: np.ndarray, camera: Camera, guess: np.ndarray, levels: int
) -> tuple[Sighting | None, int]:
    """As `locate`, by these two images (h,w) uint8."""
    points = keyframe.points
    start, z = project(guess, points, camera)
    start = np.where(z[:, None] > 0, start, 0)
    found, likeness = follow(old, new, points.pixel, start, levels)
    index = np.flatnonzero(likeness > ALIKE)
    chosen, seen = points.taken(index), found[index]
    sighting = _sighting(refine(guess, chosen, seen, camera), keyframe, index, seen, camera)
    if sighting is None and len(index) >= LEAST_POINTS:
        T = _by_chance(chosen, seen, camera)
        if T is not None:
            sighting = _sighting(refine(T, chosen, seen, camera), keyframe, index, seen, camera)
    return sighting, len(index)


def find_again(keyframe: Keyframe, picture: Picture, camera: Camera) -> Sighting | None:
    """Like `locate` without a start value: ORB features (Rublee 2011) of both images are matched."""
    orb = cv2.ORB_create(FEATURES, fastThreshold=8)
    here, known = orb.detectAndCompute(keyframe.picture.even, 255 * _usable(keyframe.picture.grey, keyframe.mask))
    there, seen = orb.detectAndCompute(picture.even, None)
    if known is None or seen is None:
        return None
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(known, seen)
    old = np.array([here[match.queryIdx].pt for match in matches], np.float32).reshape(-1, 2)
    new = np.array([there[match.trainIdx].pt for match in matches], np.float32).reshape(-1, 2)
    points = _points_at(old, keyframe.depth, math.exp(keyframe.log_scale), camera)
    T = _by_chance(points, new[_has_depth(keyframe.depth, old)], camera)
    return None if T is None else locate(keyframe, picture, camera, T)[0]


def depth_ratio(inverse_depth: np.ndarray, depth: np.ndarray, pixel: np.ndarray) -> float:
    """Logarithm of: what the network says (h,w) at pixels (N,2), over known depths (N,); NaN where nothing is known."""
    said = sampled(depth, pixel)
    known = np.isfinite(said) & (said > 0)
    return float(np.median(np.log(said[known] * inverse_depth[known]))) if known.sum() >= LEAST_POINTS else math.nan


def corners(picture: Picture, wanted: int, mask: np.ndarray | None, taken: np.ndarray) -> np.ndarray:
    """New points (N,2) float32 [px], at most `wanted` with those `taken` (M,2), which keep their neighbourhood free."""
    height, width = picture.grey.shape
    spacing = math.sqrt(height * width / wanted)
    score = cv2.cornerMinEigenVal(picture.even, 5, 3)
    score[cv2.cornerMinEigenVal(picture.grey, 5, 3) < LEAST_EIGENVALUE] = 0
    free = _usable(picture.grey, mask)
    for x, y in taken:
        cv2.circle(free, (round(float(x)), round(float(y))), int(0.7 * spacing), 0, -1)
    score[free == 0] = 0
    v, u = np.nonzero((score > 0) & (score == cv2.dilate(score, np.ones((5, 5), np.uint8))))
    # The best of each cell, then the best of all: spread first, strength second.
    strength, cell = score[v, u], (v // spacing) * (width // spacing + 1) + u // spacing
    order = np.lexsort((u, v, -strength, cell))
    first = order[np.r_[True, np.diff(cell[order]) != 0]] if order.size else order
    first = first[np.argsort(-strength[first], kind="stable")][: max(wanted - len(taken), 0)]
    return np.stack([u[first], v[first]], axis=1).astype(np.float32)


def follow(
    old: np.ndarray, new: np.ndarray, points: np.ndarray, guess: np.ndarray, levels: int = LEVELS
) -> tuple[np.ndarray, np.ndarray]:
    """Points (N,2) of the image `old` and where they may be in `new` -> (N,2) float32 [px] and likeness (N,) -1..1."""
    if not len(points):
        return np.empty((0, 2), np.float32), np.empty(0, np.float32)
    height, width = new.shape
    start = np.clip(guess, (0, 0), (width - 1, height - 1)).astype(np.float32)
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        old, new, points, start, winSize=WINDOW, maxLevel=levels, criteria=CRITERIA,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW, minEigThreshold=1e-5,
    )  # fmt: skip
    found, likeness = found.reshape(-1, 2), np.full(len(points), -1, np.float32)
    with np.errstate(invalid="ignore"):
        inside = (found >= EDGE).all(1) & (found < (width - EDGE, height - EDGE)).all(1)
    good = (status.ravel() > 0) & inside
    if good.any():
        likeness[good] = _correlation(_patches(old, points[good]), _patches(new, found[good]))
    return found, likeness


def rays_of(pixel: np.ndarray, camera: Camera) -> np.ndarray:
    """(N,2) pixels of a pinhole camera -> (N,2) float64 x/z, y/z."""
    return (pixel.astype(np.float64) - (camera.cx, camera.cy)) / (camera.fx, camera.fy)


def sampled(image: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """(N,) values of an image (h,w) at the nearest pixels."""
    height, width = image.shape
    u, v = np.rint(pixel).astype(int).T
    return image[np.clip(v, 0, height - 1), np.clip(u, 0, width - 1)]


def _sighting(fit: Fit | None, keyframe: Keyframe, index: np.ndarray, seen: np.ndarray, camera: Camera):
    """Sighting; None where too few points agree: of those followed, or of those that the pose puts into the image. The
    latter tells a place that only looks alike from the right one, where nearly all points are found."""
    if fit is None:
        return None
    pixel, z = project(fit.T_curr_key, keyframe.points, camera)
    visible = (z > 0) & (pixel >= EDGE).all(1) & (pixel < (camera.width - EDGE, camera.height - EDGE)).all(1)
    if fit.inlier.sum() < max(LEAST_POINTS, LEAST_SHARE * len(index), LEAST_SHARE * visible.sum()):
        return None
    return Sighting(fit, index[fit.inlier], seen[fit.inlier], len(index))


def _carried(keyframe: Keyframe, sighting: Sighting, camera: Camera) -> Points:
    """The points of a keyframe that are still seen, as points of the image that sees them."""
    old = keyframe.points.taken(sighting.index)
    old = updated(sighting.T_curr_key, old, sighting.pixel, camera, sighting.fit.spread)
    _, z = project(sighting.T_curr_key, old, camera)
    sigma = np.maximum(old.sigma, LEAST_SIGMA)
    return Points(sighting.pixel, rays_of(sighting.pixel, camera), 1 / z, sigma).taken(z > 0)


def _points_at(pixel: np.ndarray, depth: np.ndarray, factor: float, camera: Camera) -> Points:
    """Points at those of the pixels (N,2) whose depth the network knows, at `factor` times that depth."""
    pixel = pixel[_has_depth(depth, pixel)]
    z = factor * sampled(depth, pixel).astype(np.float64)
    return Points(pixel, rays_of(pixel, camera), 1 / z, np.full(len(z), NEW_SIGMA))


def _has_depth(depth: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    z = sampled(depth, pixel)
    return np.isfinite(z) & (z > 0)


def _nothing() -> Points:
    return Points(np.empty((0, 2), np.float32), np.empty((0, 2)), np.empty(0), np.empty(0))


def _by_chance(points: Points, seen: np.ndarray, camera: Camera) -> np.ndarray | None:
    """T_curr_key (4,4) that most points agree with, by RANSAC; OpenCV seeds a generator of its own for each call."""
    if len(points) < LEAST_POINTS:
        return None
    where = np.column_stack([points.ray, np.ones(len(points))]) / points.inverse_depth[:, None]
    unit = float(np.median(where[:, 2]))  # the solver has thresholds of its own that expect numbers near 1
    found, turn, shift, inlier = cv2.solvePnPRansac(
        where / unit, seen.astype(np.float64), camera.K, None, iterationsCount=RANSAC_ROUNDS,
        reprojectionError=RANSAC_PIXELS, confidence=0.999, flags=cv2.SOLVEPNP_EPNP,
    )  # fmt: skip
    if not found or inlier is None or len(inlier) < LEAST_POINTS:
        return None
    T = se3(cv2.Rodrigues(turn)[0], shift.ravel() * unit)
    return T if np.isfinite(T).all() else None


def _usable(grey: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """(h,w) uint8, 1 where points may be sought."""
    bright = (grey > DARK).astype(np.uint8)
    if mask is not None:
        bright &= mask.astype(np.uint8)
    # A thin dark vein may stay, a dark border may not: small dark spots are closed first.
    bright = cv2.morphologyEx(bright, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    usable = cv2.erode(bright, np.ones((2 * NEAR_DARK + 1,) * 2, np.uint8))
    usable[cv2.dilate((grey > GLARING).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0] = 0
    if mask is not None:
        usable &= mask.astype(np.uint8)
    margin = EDGE + PATCH
    usable[:margin], usable[-margin:], usable[:, :margin], usable[:, -margin:] = 0, 0, 0, 0
    return usable


def _patches(grey: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, side²) float32 grey values about each point, their mean taken out."""
    shift = np.arange(-PATCH, PATCH + 1, dtype=np.float32)
    dy, dx = (a.ravel() for a in np.meshgrid(shift, shift, indexing="ij"))
    x, y = points[:, :1] + dx, points[:, 1:] + dy
    values = cv2.remap(grey, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    return values - values.mean(1, keepdims=True)


def _correlation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * q).sum(1) / np.sqrt((p * p).sum(1) * (q * q).sum(1) + 1.0)
