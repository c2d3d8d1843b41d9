"""A rectified stereo pair (H,W,3) uint8 and the left image's predicted depth (H,W) -> metres per network unit.

Corners of the left image are looked for in the right one: first coarsely along the rows (semi-global matching,
Hirschmüller 2008), then to a fraction of a pixel (Lucas and Kanade 1981), there and back. Each match gives a metric
depth, fx·B/d for a rectified pair; its ratio to the predicted depth is the scale. This measures the depth itself, where
`metric_scale` measures the path: each can check the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.odometry import se3

CORNERS = 800
COARSE_WIDTH = 320  # px; the rows are searched at about this width
FARTHEST_SHARE = 0.3  # of the width: largest disparity that is looked for
RETURN = 0.7  # px; a match that does not come back to its corner within this is none
ROWS = 1.5  # px; farther than the rest from its epipolar line a match is wrong
MOST_SHIFT = 3.0  # px; where all matches are farther from their lines than this, the pair is not rectified
LEAST_DISPARITY = 2.0  # px; below, depth is guesswork
LEAST_MATCHES = 40
LEAST_CELLS = 6  # of the 8x8 of an image in which there must be matches
WIDEST_SPREAD = 0.4  # of ln(ratio); more is no depth of this scene
CALIBRATION = 0.25  # px; what a rectification may be wrong by in disparity, for all alike; half of `rows` on top


@dataclass(frozen=True)
class StereoScale:
    """What one pair says; `factor` and `sigma` are None where it says nothing, and `reason` tells why."""

    factor: float | None  # m per network unit
    sigma: float | None  # relative standard deviation
    matches: int
    reason: str
    rows: float | None = (
        None  # px, median way of the matches down from their row (or epipolar line); 0 where rectified well
    )
    disparity: float | None = None  # px, median
    spread: float | None = None  # robust standard deviation of ln(metric / predicted) over matches


def baseline_from_projection(P) -> float:
    """P (3,4) or 12 numbers of the right camera_info -> baseline [m], -P[0,3] / P[0,0]. Raises ValueError."""
    P = np.asarray(P, dtype=np.float64).reshape(3, 4)
    if not P[0, 0] > 0 or not np.isfinite(P).all():
        raise ValueError(f"P[0,0] is {P[0, 0]}; calibrate the stereo camera, this is no rectified camera")
    baseline = -P[0, 3] / P[0, 0]
    if not baseline > 0:
        raise ValueError(f"P[0,3] is {P[0, 3]:g}, so there is no baseline; give camera_info of the right camera")
    return float(baseline)


def stereo_scale(
    left_rgb: np.ndarray,
    right_rgb: np.ndarray,
    left_depth: np.ndarray,
    left_camera: Camera,
    baseline_m: float,
    T_right_left: np.ndarray | None = None,
) -> StereoScale:
    """Compare left_depth (H,W) [network units, NaN invalid] with the depth of matches between the images (H,W,3).

    `left_camera` is that of both images, rectified: a pinhole of this size. `T_right_left` (4,4) [m] takes the place of
    the baseline where rows agree only nearly. Raises ValueError for inputs that do not fit together.
    """
    T = _transform(baseline_m, T_right_left)
    _check(left_rgb, right_rgb, left_depth, left_camera)
    left, right = (
        _even(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)) for image in (left_rgb, right_rgb)
    )
    corners = cv2.goodFeaturesToTrack(left, CORNERS, 0.005, max(left_camera.width / 100, 4))
    if corners is None or len(corners) < LEAST_MATCHES:
        return _none(0, "too little texture in the left image; look at tissue with vessels, in focus")
    start, found = _match(left, right, corners)
    rows = _from_epipolar(start, found, T, left_camera)
    median = float(np.median(rows)) if len(rows) else None
    metric, disparity = _depths(start, found, T, left_camera)
    if median is not None and abs(median) > MOST_SHIFT:
        return _none(0, _why(left, right), median)
    near = (np.abs(rows - (median or 0.0)) < ROWS) & (disparity > LEAST_DISPARITY) & (metric > 0)
    if near.sum() < LEAST_MATCHES:
        return _none(int(near.sum()), _why(left, right), median)
    ratio, start = _ratios(metric[near], start[near], left_depth)
    if len(ratio) < LEAST_MATCHES:
        return _none(len(ratio), "the predicted depth is invalid where there are matches; check its range", median)
    return _judge(np.log(ratio), start, left_camera, median, float(np.median(disparity[near])))


def _judge(log_ratio, pixels, camera, rows, disparity) -> StereoScale:
    """ln(metric / predicted) (n,) at pixels (n,2) -> the scale. Errors of a network go together within a region."""
    middle = float(np.median(log_ratio))
    spread = 1.4826 * float(np.median(np.abs(log_ratio - middle)))
    cells = np.floor(pixels * 8 / (camera.width, camera.height)).astype(int) @ (8, 1)
    medians = np.array([np.median(log_ratio[cells == cell]) for cell in np.unique(cells)])
    if len(medians) < LEAST_CELLS:
        return _none(len(log_ratio), "all matches lie close together; look at more of the scene", rows)
    if spread > WIDEST_SPREAD:
        text = (
            f"predicted and measured depth disagree by {100 * spread:.0f} % from place to place; is it the same image?"
        )
        return _none(len(log_ratio), text, rows)
    among = 1.4826 * float(np.median(np.abs(medians - np.median(medians))))
    sigma = math.hypot(
        1.2533 * among / math.sqrt(len(medians)), math.hypot(CALIBRATION, rows / 2) / disparity
    )  # 1.2533: of a median
    text = f"{len(log_ratio)} matches in {len(medians)} places, depth agrees to {100 * spread:.0f} %"
    return StereoScale(math.exp(middle), sigma, len(log_ratio), text, rows, disparity, spread)


def _match(left, right, corners) -> tuple[np.ndarray, np.ndarray]:
    """(H,W) grey images, corners (n,1,2) -> pixels (m,2) in the left and in the right one; m <= n."""
    guess = corners.copy()
    guess[:, 0, 0] -= _coarse_disparity(left, right, corners[:, 0])
    window = {"winSize": (15, 15), "maxLevel": 2, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    found, there, _ = cv2.calcOpticalFlowPyrLK(left, right, corners, guess, **window)
    again, back, _ = cv2.calcOpticalFlowPyrLK(right, left, found, found - (guess - corners), **window)
    good = (there & back).ravel() > 0
    good &= np.linalg.norm(again - corners, axis=-1).ravel() < RETURN
    return corners[good, 0].astype(np.float64), found[good, 0].astype(np.float64)


def _coarse_disparity(left, right, pixels) -> np.ndarray:
    """Disparity [px] at pixels (n,2), the median one where nothing was found."""
    share = min(COARSE_WIDTH / left.shape[1], 1.0)
    small = [cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA) for image in (left, right)]
    levels = max(16 * int(np.ceil(FARTHEST_SHARE * small[0].shape[1] / 16)), 16)
    matcher = cv2.StereoSGBM_create(0, levels, 5, 8 * 25, 32 * 25, disp12MaxDiff=2, uniquenessRatio=5)
    # Without a margin the left edge, as wide as the largest disparity, would have none.
    padded = [cv2.copyMakeBorder(image, 0, 0, levels, 0, cv2.BORDER_REPLICATE) for image in small]
    disparity = matcher.compute(*padded)[:, levels:].astype(np.float32) / 16
    disparity = cv2.medianBlur(disparity, 5)
    u, v = np.rint(pixels * share).astype(int).T
    at = disparity[np.clip(v, 0, disparity.shape[0] - 1), np.clip(u, 0, disparity.shape[1] - 1)]
    known = at > 0
    return np.where(known, at, np.median(at[known]) if known.any() else 0.0).astype(np.float32) / np.float32(share)


def _from_epipolar(start, found, T, camera) -> np.ndarray:
    """Distance [px], positive downwards, of found (n,2) from the right image's line for start (n,2)."""
    t = T[:3, 3] / np.linalg.norm(T[:3, 3])
    line = np.cross(t, _rays(start, camera) @ T[:3, :3].T)  # (n,3) in normalised coordinates
    x = _rays(found, camera)
    sign = np.where(line[:, 1] < 0, -1.0, 1.0)
    return sign * np.sum(line * x, axis=1) / np.maximum(np.hypot(line[:, 0] / camera.fx, line[:, 1] / camera.fy), 1e-12)


def _depths(start, found, T, camera) -> tuple[np.ndarray, np.ndarray]:
    """Depth (n,) [m] in the left image by least squares along its ray, and disparity (n,) [px] against infinity."""
    far = _rays(start, camera) @ T[:3, :3].T
    x = _rays(found, camera)
    a = x[:, :2] * far[:, 2:] - far[:, :2]
    b = T[:2, 3] - x[:, :2] * T[2, 3]
    focal = (camera.fx, camera.fy)
    power = np.maximum(np.sum(a**2, axis=1), 1e-18)
    return np.sum(a * b, axis=1) / power, np.linalg.norm(a / far[:, 2:] * focal, axis=1)


def _ratios(metric, pixels, depth) -> tuple[np.ndarray, np.ndarray]:
    """metric (n,) [m] over the predicted depth (H,W) at pixels (n,2), where there is one; and those pixels."""
    u, v = np.rint(pixels).astype(int).T
    predicted = depth[v, u].astype(np.float64)
    known = np.isfinite(predicted) & (predicted > 0)
    return metric[known] / predicted[known], pixels[known]


def _why(left, right) -> str:
    """Why a pair has hardly any matches along its rows: descriptors (ORB) are looked for anywhere."""
    orb = cv2.ORB_create(1000)
    (points_l, said_l), (points_r, said_r) = (orb.detectAndCompute(image, None) for image in (left, right))
    pairs = []
    if said_l is not None and said_r is not None and len(said_r) > 1:
        candidates = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(said_l, said_r, k=2)
        pairs = [c[0] for c in candidates if len(c) == 2 and c[0].distance < 0.75 * c[1].distance]
    if len(pairs) < LEAST_MATCHES // 2:
        return "too few matches: the images show different scenes, are out of focus, or far from each other in time"
    moved = np.array([np.subtract(points_l[p.queryIdx].pt, points_r[p.trainIdx].pt) for p in pairs])
    across, down = np.median(moved, axis=0)
    if np.median(np.abs(moved[:, 1])) > MOST_SHIFT:
        return f"rows differ by {abs(down):.0f} px: the pair is not rectified; rectify it or calibrate it again"
    if across < 0:
        return "disparities are negative: left and right are swapped"
    return "too few matches along the rows; look at tissue with texture, in focus and at rest"


def _even(grey) -> np.ndarray:
    """(H,W) uint8 with its contrast evened: the two eyes of an endoscope are never equally bright."""
    return cv2.createCLAHE(2.0, (8, 8)).apply(grey)


def _rays(pixels, camera) -> np.ndarray:
    """(n,2) -> (n,3) with z = 1."""
    xy = (pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy)
    return np.column_stack([xy, np.ones(len(xy))])


def _none(matches: int, reason: str, rows: float | None = None) -> StereoScale:
    return StereoScale(None, None, matches, reason, rows)


def _transform(baseline_m: float, T_right_left) -> np.ndarray:
    if T_right_left is None:
        if not 0 < baseline_m < math.inf:
            raise ValueError(f"baseline_m is {baseline_m}; take -P[0,3]/P[0,0] of the right camera_info")
        return se3(np.eye(3), np.array([-float(baseline_m), 0.0, 0.0]))
    T = np.asarray(T_right_left, dtype=np.float64)
    if T.shape != (4, 4) or not np.isfinite(T).all() or not T[:3, 3].any():
        raise ValueError("T_right_left must be a finite 4x4 matrix with a translation [m]")
    if np.trace(T[:3, :3]) < 1 + 2 * math.cos(math.radians(5)):
        raise ValueError("T_right_left turns by more than 5 degrees; rectify the images first")
    return T


def _check(left, right, depth, camera) -> None:
    size = (camera.height, camera.width)
    for name, image in (("left_rgb", left), ("right_rgb", right)):
        if image.shape != (*size, 3) or image.dtype != np.uint8:
            raise ValueError(f"{name} is {image.shape} {image.dtype}, the camera says uint8 {(*size, 3)}")
    if depth.shape != size:
        raise ValueError(f"left_depth is {depth.shape}, the camera is {size}; resize it as disparity to that size")
    if camera.is_distorted:
        raise ValueError("left_camera is distorted; rectify both images and give the camera of P")
