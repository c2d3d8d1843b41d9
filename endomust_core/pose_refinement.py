"""Rays (N,2) with inverse depths (N,) seen at pixels (N,2) -> camera pose (4,4) with its (6,6) covariance, robustly.

Each point X = ray / inverse depth projects to π(R ray + inverse depth · t): the depth matters only as far as the camera
has moved. Its error is marginalised: a residual e [px] has the covariance σ² I + J_ρ σ_ρ² J_ρᵀ, so that along the
epipolar line a point whose depth is doubtful weighs little, while across it, it tells the rotation. Iteratively
reweighted Gauss-Newton (weights of Tukey's biweight on the Mahalanobis distance). Nothing is drawn by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from endomust_core.camera import Camera
from endomust_core.odometry import se3, so3_exp

PIXEL_SIGMA = 0.5  # px; what the residuals of good tracks spread by, and the least that is believed
BIWEIGHT = 4.685  # standard deviations; beyond, no weight (95 % efficient under Gaussian noise; Beaton & Tukey 1974)
SETTLED = 5e-5  # rad, and share of the depth: a hundredth of a pixel
START_WIDENING = 8.0  # the first weights see noise so many times as large, so that a poor start value is forgiven
ITERATIONS = 12
LEAST_POINTS = 6


@dataclass(frozen=True)
class Points:
    """Points of a keyframe: where they were seen in it, and how far they are."""

    pixel: np.ndarray  # (N,2) float32 in the keyframe
    ray: np.ndarray  # (N,2) float64 x/z, y/z
    inverse_depth: np.ndarray  # (N,) float64 [1/unit]
    sigma: np.ndarray  # (N,) float64, relative standard deviation of the depth

    def __len__(self) -> int:
        return len(self.ray)

    def joined(self, more: Points) -> Points:
        """These, then those."""
        return Points(*(np.concatenate([getattr(self, key), getattr(more, key)]) for key in self.__dataclass_fields__))

    def taken(self, chosen: np.ndarray) -> Points:
        """Only the chosen ones, an index or a bool array."""
        return Points(*(getattr(self, key)[chosen] for key in self.__dataclass_fields__))


@dataclass(frozen=True)
class Fit:
    """The pose of a camera relative to the keyframe that its points come from."""

    T_curr_key: np.ndarray  # (4,4) [unit]
    covariance: np.ndarray  # (6,6) of a small motion (linear [unit], angular [rad]) in axes of the current camera
    inlier: np.ndarray  # (N,) bool
    spread: float  # px; robust standard deviation of the residuals


def project(T_curr_key: np.ndarray, points: Points, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N,2) in the current image, and depth (N,) [unit] there; behind the camera both mean nothing."""
    q = _scaled_points(T_curr_key, points)
    z = np.where(q[:, 2] > 1e-6, q[:, 2], 1e-6)
    return q[:, :2] / z[:, None] * (camera.fx, camera.fy) + (camera.cx, camera.cy), q[:, 2] / points.inverse_depth


def refine(T_curr_key: np.ndarray, points: Points, seen: np.ndarray, camera: Camera) -> Fit | None:
    """Start value (4,4), points, their pixels (N,2) now -> Fit; None where they do not hold the camera in place."""
    if len(points) < LEAST_POINTS:
        return None
    T, widening, unit = T_curr_key, START_WIDENING, float(np.median(points.inverse_depth))
    for _ in range(ITERATIONS):
        H, g, _ = _normal(T, points, seen, camera, PIXEL_SIGMA * widening)
        try:
            step = np.linalg.solve(H, g)
        except np.linalg.LinAlgError:
            return None
        if not np.isfinite(step).all():
            return None
        turn = so3_exp(step[3:])
        T = se3(turn @ T[:3, :3], turn @ T[:3, 3] + step[:3])
        if widening == 1 and max(np.abs(step[:3]).max() * unit, np.abs(step[3:]).max()) < SETTLED:
            break
        widening = max(widening / 2, 1.0)
    return _fit(T, points, seen, camera)


def _fit(T: np.ndarray, points: Points, seen: np.ndarray, camera: Camera) -> Fit | None:
    H, _, distance = _normal(T, points, seen, camera, PIXEL_SIGMA)
    inlier = distance < BIWEIGHT
    if np.count_nonzero(inlier) < LEAST_POINTS or not _well_posed(H):
        return None
    # The distance has two degrees of freedom: its median is 1.177 σ.
    ratio = max(float(np.median(distance[inlier])) / 1.177, 1.0)
    covariance = np.linalg.inv(H) * ratio**2
    return Fit(T, (covariance + covariance.T) / 2, inlier, ratio * PIXEL_SIGMA)


def updated(T_curr_key: np.ndarray, points: Points, seen: np.ndarray, camera: Camera, spread: float) -> Points:
    """The points with depths corrected by where they are `seen` (N,2) from T_curr_key: one Kalman update each."""
    M, J_depth = _linear(T_curr_key, points, seen, camera)
    e = M[:, :, 6]
    gain = 1 / (spread**2 + (J_depth**2).sum(1))
    relative = np.clip(gain * (J_depth * e).sum(1) * points.sigma, -0.5, 0.5)
    sigma = points.sigma * np.sqrt(np.maximum(1 - gain * (J_depth**2).sum(1), 1e-4))
    return Points(points.pixel, points.ray, points.inverse_depth * np.exp(relative), sigma)


def _scaled_points(T: np.ndarray, points: Points) -> np.ndarray:
    """(N,3) points in the current camera times their inverse depth in the keyframe."""
    R, t = T[:3, :3], T[:3, 3]
    return points.ray @ R[:, :2].T + R[:, 2] + points.inverse_depth[:, None] * t


def _linear(T, points: Points, seen: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """(N,2,7): how a pixel moves with the points in camera axes (6), then seen - projected [px]; and (N,2): how by
    one standard deviation of inverse depth."""
    q, t = _scaled_points(T, points), T[:3, 3]
    z = np.maximum(q[:, 2], 1e-6)
    x, y = q[:, 0] / z, q[:, 1] / z
    rho = points.inverse_depth / z  # inverse depth in the current camera
    fx, fy = camera.fx, camera.fy
    M = np.zeros((len(x), 2, 7))
    M[:, 0, 0], M[:, 0, 2] = fx * rho, -fx * x * rho
    M[:, 0, 3], M[:, 0, 4], M[:, 0, 5] = -fx * x * y, fx * (1 + x * x), -fx * y
    M[:, 1, 1], M[:, 1, 2] = fy * rho, -fy * y * rho
    M[:, 1, 3], M[:, 1, 4], M[:, 1, 5] = -fy * (1 + y * y), fy * x * y, fy * x
    M[:, 0, 6], M[:, 1, 6] = seen[:, 0] - (fx * x + camera.cx), seen[:, 1] - (fy * y + camera.cy)
    M[q[:, 2] <= 1e-6, :, 6] = 1e3  # behind the camera: far from wherever it was seen
    along = rho * points.sigma
    J_depth = np.empty((len(x), 2))
    J_depth[:, 0], J_depth[:, 1] = along * fx * (t[0] - x * t[2]), along * fy * (t[1] - y * t[2])
    return M, J_depth


def _normal(T, points: Points, seen: np.ndarray, camera: Camera, sigma: float) -> tuple[np.ndarray, ...]:
    """Weighted normal equations H (6,6), g (6,), and the Mahalanobis distance (N,) of each residual.

    The rows are whitened by W^½ = (I - β d dᵀ) / σ with β = (1 - σ/√(σ² + |d|²)) / |d|², whose square is the inverse of
    σ² I + d dᵀ.
    """
    M, d = _linear(T, points, seen, camera)
    square = d[:, 0] ** 2 + d[:, 1] ** 2
    beta = (1 - sigma / np.sqrt(sigma**2 + square)) / np.maximum(square, 1e-12)
    along = d[:, :1] * M[:, 0] + d[:, 1:] * M[:, 1]
    M -= (beta[:, None] * d)[:, :, None] * along[:, None]
    M /= sigma
    distance = np.hypot(M[:, 0, 6], M[:, 1, 6])
    root = np.maximum(1 - (distance / BIWEIGHT) ** 2, 0)  # of Tukey's weight
    A = (M * root[:, None, None]).reshape(-1, 7)
    N = A.T @ A
    return N[:6, :6], N[:6, 6], distance


def _well_posed(H: np.ndarray) -> bool:
    """False where some motion leaves all pixels in place; the diagonal is made 1 first, so units do not matter."""
    d = np.sqrt(np.maximum(np.diagonal(H), 1e-300))
    values = np.linalg.eigvalsh(H / np.outer(d, d))
    return bool(np.isfinite(values).all() and values[0] > 1e-7)
