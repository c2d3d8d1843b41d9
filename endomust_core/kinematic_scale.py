"""Robot poses [m] and a visual trajectory in pieces of time -> delay [s], robust ratio of displacements, its sigma.

With p, R the position and axes of the camera, the displacement from time i to j seen in the camera, R_iᵀ (p_j - p_i),
is the same whatever the world frame is, so the two worlds need no alignment. What is left between the robot's
displacement d_r and the visual one d_v is d_r = s X d_v: the scale s, and a constant rotation X between the camera axes
that the robot reports and those of the image, found by Kabsch's method (1976). Both sides are noisy. A least squares
ratio would be biased by the noise of its regressor, so the robot's displacement is the instrument, measured twice, with
every other pose each time: s = Σ w d_odd·d_even / Σ w d_r·X d_v (instrumental variables, e.g. Fuller 1987, 1.4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from endomust_core.metrics import student_t
from endomust_core.odometry import orthonormalise
from endomust_core.pose_tracks import NODE, Nodes, RobotWindow

LAGS = (3, 6, 12, 20)  # nodes between the ends of a displacement
HUBER = 1.5  # in standard deviations
OUTLIER = 4.0
ITERATIONS, TURN_ITERATIONS = 4, 2
DELAY_REACH, DELAY_STEP = 0.32, 0.04  # s
DELAY_PRIOR = 0.1  # s; how far from 0 a delay is expected to be
AXES_PRIOR = 0.5  # rad; tells a delay of half a period of a shake from axes turned by 180 degrees
PEAK_REACH, PEAK_HEIGHT = 3, 15.0  # steps, in units of log likelihood
NEAR_AXES = 0.05  # weight of "the axes are as they were said to be" where the motion does not tell
UNDERSTATED = 1.35  # by which the variance within a window is too small, from simulation.scale_check
PRIOR_STRETCHES = 8  # how many independent stretches that prior counts for
SIGMA_FLOOR = 0.003  # relative; what no statistics within one window shows


@dataclass(frozen=True)
class Fit:
    """What one window says."""

    factor: float  # m per network unit
    sigma: float  # relative
    energy: float  # m², sum of the squared displacements: how much there is to go by, whatever the luck
    correlation: float  # of the displacements, 1 where they agree but for scale and axes
    baseline: float  # m, farthest the camera was from where the window began
    pairs: int
    outliers: int
    residual: float  # m, root mean square of what is left of a displacement
    turn: np.ndarray  # (3,3) X, image axes -> the axes the robot reports
    rotation_ratio: float | None  # visual angle / robot angle, None where nothing turned


def find_delay(robot: RobotWindow, nodes: Nodes) -> tuple[float, float] | None:
    """How late the robot's stamps are [s] and its standard deviation; None where the motion does not tell.

    Displacements and turns over 0.3 s are compared at every delay within ±DELAY_REACH; the likelihood needs no scale.
    """
    i, j = _pairs(nodes, LAGS[0])
    if len(i) < 8:
        return None
    delays = np.arange(-DELAY_REACH, DELAY_REACH + 1e-9, DELAY_STEP)
    p, R, piece = robot.means(nodes.start + delays[:, None], nodes.end + delays[:, None])
    usable = ((piece[:, i] == piece[:, j]) & (piece[:, i] >= 0)).all(axis=0)
    if usable.sum() < 8:
        return None
    i, j = i[usable], j[usable]
    shift, turn, angle = _correlations(
        _relative(R, p, i, j),
        _relative(nodes.rotation, nodes.position, i, j),
        _turns(R, i, j),
        _turns(nodes.rotation, i, j),
    )
    if max(shift.max(), turn.max()) < 0.6:
        return None
    likelihood = -1.5 * len(i) / LAGS[0] * (np.log1p(-(shift**2)) + np.log1p(-(turn**2)))
    likelihood -= 0.5 * (delays / DELAY_PRIOR) ** 2 + 0.5 * (angle / AXES_PRIOR) ** 2
    best = int(np.argmax(likelihood))
    if best in (0, len(delays) - 1):
        return None
    # Noise makes peaks too, but none from which the likelihood falls steeply to both sides.
    sides = likelihood[max(best - PEAK_REACH, 0)], likelihood[min(best + PEAK_REACH, len(delays) - 1)]
    if likelihood[best] - max(sides) < PEAK_HEIGHT:
        return None
    before, at, after = likelihood[best - 1 : best + 2]
    curvature = 2 * at - before - after
    offset = 0.5 * (after - before) / curvature if curvature > 0 else 0.0
    return float(delays[best] + offset * DELAY_STEP), DELAY_STEP / math.sqrt(max(curvature, 1e-9))


def fit_scale(robot: RobotWindow, nodes: Nodes, delay: float) -> Fit | None:
    """The robust ratio of displacements at one delay [s]; None with fewer than eight pairs of them."""
    if len(nodes.start) < 8:
        return None
    a, b = nodes.start + delay, nodes.end + delay
    p, R, piece = robot.means(a, b)
    longest = max((nodes.end[-1] - nodes.start[0]) / 4 / NODE, LAGS[0])
    groups = [_pairs(nodes, lag) for lag in LAGS if lag <= longest]
    i, j = (np.concatenate(ends) for ends in zip(*groups, strict=True))
    lag = np.repeat(np.arange(len(groups)), [len(group[0]) for group in groups])
    usable = (piece[i] == piece[j]) & (piece[i] >= 0)
    i, j, lag = i[usable], j[usable], lag[usable]
    if len(i) < 8:
        return None
    even, odd = robot.twice(a, b)
    d_even, d_odd = _relative(R, even, i, j), _relative(R, odd, i, j)
    d_v = _relative(nodes.rotation, nodes.position, i, j)
    turned = _turns(R, i, j), _turns(nodes.rotation, i, j)
    times = (nodes.middle[i] + nodes.middle[j]) / 2
    return _solve(d_even, d_odd, d_v, turned, lag, times, _baseline(p, piece, nodes.segment))


def _solve(d_even, d_odd, d_v, turned, lag, times, baseline) -> Fit | None:
    """Displacements (n,3), turns 2×(n,3), class of lag (n,), times (n,) [s] -> Fit; None where nothing moves."""
    d_r = (d_even + d_odd) / 2
    length_r, length_v = _lengths(d_r), _lengths(d_v)
    moving = length_r > 0.5 * _median(length_r)
    if not length_v[moving].any():
        return None
    factor = float(_median(length_r[moving]) / max(_median(length_v[moving]), 1e-12))
    weight = 1.0 * ((length_r < 3 * _median(length_r)) & (length_v < 3 * _median(length_v)))
    product = np.einsum("ij,ij->i", d_even, d_odd)  # the squared length, free of the robot's noise
    classes = [lag == k for k in range(lag.max() + 1)]
    for iteration in range(ITERATIONS):
        if iteration < TURN_ITERATIONS:
            turn = _turn(weight, d_r, d_v, *turned)
            seen = d_v @ turn.T
        left = _lengths(d_r - factor * seen)
        spread = np.array([_spread(left[chosen]) for chosen in classes])
        sigma = spread[lag]
        weight = np.minimum(1, HUBER * sigma / np.maximum(left, 1e-12)) * (left < OUTLIER * sigma) / sigma**2
        information = weight * np.einsum("ij,ij->i", d_r, seen)
        if not information.sum() > 0:
            return None
        factor = float(weight @ product / information.sum())
        if not factor > 0:
            return None
    good = left < OUTLIER * sigma
    score = weight * (product - factor * np.einsum("ij,ij->i", d_r, seen))
    norms = max(weight @ product, 0.0) * np.sum(weight * length_v**2)
    return Fit(
        factor=factor,
        energy=float(np.sum(length_r[good & (lag == 0)] ** 2)),
        sigma=_sigma(
            score,
            information * factor,
            times,
            LAGS[len(spread) - 1] * NODE,
            _expected(information * factor, lag, spread),
        ),
        correlation=min(float(information.sum()) / math.sqrt(max(norms, 1e-300)), 1.0),
        baseline=baseline,
        pairs=len(lag),
        outliers=int((~good).sum()),
        residual=float(np.sqrt(np.mean(left[good] ** 2))) if good.any() else 0.0,
        turn=turn,
        rotation_ratio=_rotation_ratio(weight, turn, *turned),
    )


def _expected(information: np.ndarray, lag: np.ndarray, spread: np.ndarray) -> float:
    """Relative variance that displacements (n,) of classes `lag` (n,) have if their errors, `spread` (k,) [m], are part
    white, part a random walk: spread² = white + walk · lag. Of the walk, displacements that overlap share the error."""
    lags, power = np.array(LAGS[: len(spread)]), np.bincount(lag, information, len(spread))
    walk = max(spread[-1] ** 2 - spread[0] ** 2, 0.0) / max(lags[-1] - lags[0], 1)
    white = max(spread[0] ** 2 - walk * lags[0], 0.0)
    sharing = (white + walk * lags**2) / (white + walk * lags)
    return float(1 / (3 * max((power / sharing).max(), 1e-300)))


def _sigma(score: np.ndarray, information: np.ndarray, times: np.ndarray, reach: float, expected: float) -> float:
    """Relative standard deviation from scores (n,), correlated over `reach` [s]: Newey and West's variance (1987).

    Few independent stretches make that variance itself uncertain. So it is pooled with `expected`, that of a
    model of the errors, and widened as Student's t is. Stretches are counted by their share of the information, so
    standing still adds none.
    """
    bins = np.floor((times - times.min()) / NODE).astype(int)
    scores, shares = np.bincount(bins, score), np.maximum(np.bincount(bins, information), 0)
    width = max(int(round(reach / NODE)), 1)
    correlated = np.correlate(scores, scores, "full")[len(scores) - 1 :][:width]
    kernel = 2 * (1 - np.arange(len(correlated)) / width)
    kernel[0] = 1
    variance = max(float(kernel @ correlated), 0.0) / float(information.sum()) ** 2
    stretches = np.add.reduceat(shares, np.arange(0, len(shares), width))
    number = float(stretches.sum() ** 2 / max(np.sum(stretches**2), 1e-300))
    pooled = (number * variance + PRIOR_STRETCHES * expected) / (number + PRIOR_STRETCHES)
    widening = student_t(max(int(number + PRIOR_STRETCHES) - 1, 1)) / 1.96
    return math.hypot(UNDERSTATED * math.sqrt(pooled) * widening, SIGMA_FLOOR)


def _turn(weight, d_r, d_v, turned_r, turned_v) -> np.ndarray:
    """(3,3) X that best carries image directions and turns onto the robot's; unobserved parts stay near identity."""
    moved = (d_r * weight[:, None]).T @ d_v
    rotated = (turned_r * weight[:, None]).T @ turned_v
    total = sum(M / max(np.linalg.norm(M), 1e-300) for M in (moved, rotated)) + NEAR_AXES * np.eye(3)
    return orthonormalise(total)


def _rotation_ratio(weight, turn, turned_r, turned_v) -> float | None:
    """Visual turn over robot turn, along the robot's; None where the robot turned less than half a degree (rms)."""
    power = float(np.sum(weight * np.sum(turned_r**2, axis=1)))
    if power / max(weight.sum(), 1e-300) < math.radians(0.5) ** 2:
        return None
    return float(np.sum(weight * np.sum(turned_r * (turned_v @ turn.T), axis=1)) / power)


def _spread(left: np.ndarray) -> float:
    """Standard deviation of one class of residual lengths (n,) [m], from the median: a length of three axes."""
    return max(float(_median(left)) / 0.888, 1e-9) if left.size else 1.0  # 0.888: of |N(0, I/3)|


def _baseline(p: np.ndarray, piece: np.ndarray, segment: np.ndarray) -> float:
    """Farthest [m] that the camera was from where it began, within one unbroken stretch of both trajectories."""
    start = np.concatenate([[0], np.flatnonzero((np.diff(piece) != 0) | (np.diff(segment) != 0)) + 1])
    first = np.repeat(start, np.diff([*start, len(p)]))
    return float(np.linalg.norm(p - p[first], axis=1)[piece >= 0].max(initial=0))


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """(n,3) -> (n,)."""
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors))


def _median(values: np.ndarray) -> float:
    """Upper median of (n,); np.median takes three times as long for so few values."""
    return float(np.partition(values, len(values) // 2)[len(values) // 2])


def _pairs(nodes: Nodes, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n,), (n,) of pieces `lag` apart in one segment, without a gap between them."""
    i = np.arange(len(nodes.start) - lag) if len(nodes.start) > lag else np.empty(0, int)
    j = i + lag
    near = nodes.middle[j] - nodes.middle[i] < 1.5 * lag * NODE
    same = (nodes.segment[i] == nodes.segment[j]) & near
    return i[same], j[same]


def _relative(R: np.ndarray, p: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(...,n,3): p_j - p_i in the axes at i."""
    step = p[..., j, :] - p[..., i, :]
    return (step[..., None, :] @ R[..., i, :, :])[..., 0, :]


def _turns(R: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(...,n,3): axis times sine of the angle of R_iᵀ R_j."""
    S = np.swapaxes(R[..., i, :, :], -1, -2) @ R[..., j, :, :]
    return np.stack([S[..., 2, 1] - S[..., 1, 2], S[..., 0, 2] - S[..., 2, 0], S[..., 1, 0] - S[..., 0, 1]], -1) / 2


def _correlations(moved_r, moved_v, turned_r, turned_v) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Robot (k,n,3), visual (n,3), displacements and turns -> (k,) correlations of both and an angle [rad].

    They are those, 0 .. 0.9999, at the rotation between robot and image that fits both best; the angle is its own.
    """
    products, norms = [], []
    for robot, visual in ((moved_r, moved_v), (turned_r, turned_v)):
        robot, visual = _clipped(robot), _clipped(visual)
        products.append(np.swapaxes(robot, -1, -2) @ visual)
        norms.append(np.sqrt(np.sum(robot**2, axis=(-1, -2)) * np.sum(visual**2)) + 1e-300)
    together = sum(M / norm[:, None, None] for M, norm in zip(products, norms, strict=True))
    U, _, Vt = np.linalg.svd(together + NEAR_AXES * np.eye(3))
    U[..., 2] *= (np.linalg.det(U) * np.linalg.det(Vt))[:, None]
    X = U @ Vt
    shift, turn = (np.clip(np.sum(X * M, axis=(-1, -2)) / n, 0, 0.9999) for M, n in zip(products, norms, strict=True))
    return shift, turn, np.arccos(np.clip((np.trace(X, axis1=-2, axis2=-1) - 1) / 2, -1, 1))


def _clipped(vectors: np.ndarray) -> np.ndarray:
    """(...,n,3) with no vector longer than three times the median, so that none rules."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    most = 3 * np.median(length, axis=-2, keepdims=True)
    return vectors * np.minimum(1, most / np.maximum(length, 1e-300))
