"""Rigid motions and pose integration: T_prev_curr per frame -> pose, twist and their covariances. Metres, radians.

T_b_a maps points of frame a into frame b, so T_odom_new = T_odom_prev @ T_prev_curr. Rotations of 6-vectors and 6x6
covariances come after translations (x y z, rotX rotY rotZ), as in ROS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

# Optical axes (x right, y down, z forward) seen in REP-103 body axes (x forward, y left, z up).
OPTICAL_TO_BODY = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
# What consumers read as "unknown": large, finite (0 or infinity break robot_localization and RViz).
UNKNOWN_VARIANCE = 9999.0
# The start of odometry is exact by definition, yet filters refuse a covariance of 0.
START_VARIANCE = 1e-9
# A predicted rotation this far from orthonormal is no rotation.
ORTHONORMAL_TOLERANCE = 1e-3
SHORTEST_STEP = 1e-6  # s; stamps closer than this, or going back, say nothing about speed
POLICIES = ("hold", "null", "reset")  # of odom_on_lost
SMALL_ANGLE = 1e-4  # rad; below it, series: their next term is under 1e-17


def so3_exp(w: np.ndarray) -> np.ndarray:
    """(3,) axis-angle [rad] -> (3,3) rotation (Rodrigues)."""
    W, angle = hat(w), float(np.linalg.norm(w))
    if not math.isfinite(angle):
        return np.full((3, 3), np.nan)  # a network may say anything; the odometry turns this into LOST
    if angle < SMALL_ANGLE:
        a, b = 1 - angle**2 / 6, 0.5 - angle**2 / 24
    else:
        a, b = math.sin(angle) / angle, (1 - math.cos(angle)) / angle**2
    return np.eye(3) + a * W + b * (W @ W)


def so3_log(R: np.ndarray) -> np.ndarray:
    """(3,3) rotation -> (3,) axis-angle [rad], norm in [0, π]; goes through the quaternion, exact near 0 and π."""
    x, y, z, w = quaternion_from_matrix(R)
    vector = np.array([x, y, z])
    half_sine = float(np.linalg.norm(vector))
    if half_sine < SMALL_ANGLE:
        return vector * (2 / w - 2 * half_sine**2 / (3 * w**3))
    return vector * (2 * math.atan2(half_sine, w) / half_sine)


def se3(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """(3,3) rotation and (3,) translation [m] -> (4,4)."""
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, t
    return T


def se3_log(T: np.ndarray) -> np.ndarray:
    """(4,4) -> (6,) linear [m], angular [rad]: the constant velocity that makes this motion in one unit of time, in
    the axes of the moving frame."""
    w = so3_log(T[:3, :3])
    W, angle = hat(w), float(np.linalg.norm(w))
    if angle < SMALL_ANGLE:
        b = 1 / 12
    else:
        b = (1 - angle / 2 / math.tan(angle / 2)) / angle**2
    return np.concatenate([(np.eye(3) - W / 2 + b * (W @ W)) @ T[:3, 3], w])


def inverse(T: np.ndarray) -> np.ndarray:
    """T_b_a -> T_a_b."""
    R = T[:3, :3].T
    return se3(R, -R @ T[:3, 3])


def adjoint(T: np.ndarray) -> np.ndarray:
    """(4,4) T_b_a -> (6,6): carries a small motion (linear, angular) written in frame a into frame b."""
    R = T[:3, :3]
    A = np.zeros((6, 6))
    A[:3, :3] = A[3:, 3:] = R
    A[:3, 3:] = hat(T[:3, 3]) @ R
    return A


def hat(w: np.ndarray) -> np.ndarray:
    """(3,) -> (3,3) with hat(w) @ v = w × v."""
    x, y, z = w
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=np.float64)


def quaternion_from_matrix(R: np.ndarray) -> np.ndarray:
    """(3,3) rotation -> (x, y, z, w) with w >= 0.

    Four times the outer product q qᵀ is linear in R; its longest row is never near zero (Shepperd 1978).
    """
    m = np.asarray(R, dtype=np.float64)
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    outer = np.empty((4, 4))
    outer[:3, :3] = m + m.T + np.eye(3) * (1 - trace)
    outer[3, :3] = outer[:3, 3] = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    outer[3, 3] = 1 + trace
    row = outer[int(np.argmax(np.diagonal(outer)))]
    quaternion = row / np.linalg.norm(row)
    return -quaternion if quaternion[3] < 0 else quaternion


def matrix_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """(x, y, z, w), of any length but 0 -> (3,3) rotation."""
    q = np.asarray(quaternion, dtype=np.float64)
    norm = float(np.linalg.norm(q))
    if not norm > 0 or not math.isfinite(norm):
        raise ValueError(f"the quaternion {q.tolist()} is no rotation; check the message that it came from")
    x, y, z, w = q / norm
    V = hat((x, y, z))
    return np.eye(3) + 2 * w * V + 2 * (V @ V)


def orthonormalise(R: np.ndarray) -> np.ndarray:
    """(3,3) -> the nearest rotation."""
    U, _, Vt = np.linalg.svd(R)
    return U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt


@dataclass(frozen=True)
class OdometrySettings:
    """What may be set; anything with fields of these names will do."""

    odom_keyframe: bool = True  # poses against keyframes, so that rest adds no drift
    odom_refine: bool = True  # False: the network's motions only
    odom_max_translation: float = 0.02  # m from one image to the next; more counts as lost
    odom_max_rotation: float = 0.35  # rad
    odom_lost_frames: int = 5  # usable images without success until the chain is given up
    odom_on_lost: str = (
        "hold"  # hold (go on from the pose held) | null (and ask for no pose) | reset (start again there)
    )
    odom_covariance_scale: float = 1.0  # multiplies the covariances that go out


@dataclass(frozen=True)
class OdometryState:
    """Where the camera is after one frame. Every number is finite."""

    T_odom_camera: np.ndarray  # (4,4) [m]
    twist: np.ndarray | None  # (6,) linear [m/s], angular [rad/s] in the camera frame; None when unknown
    pose_covariance: np.ndarray  # (6,6) about the camera's position, odom axes
    twist_covariance: np.ndarray  # (6,6) camera axes
    stamp: float  # [s]
    state: str  # INIT (no motion yet) | OK | LOST (this frame's motion was unusable, the pose is held)
    reason: str = ""  # why LOST: dark | smoke | fast | few_points | network; OK by the network alone: few_points
    segment: int = 0  # another number whenever the chain of motions was broken
    T_prev_curr: np.ndarray | None = None  # (4,4) [network units] since the image before; None when unknown
    motion_covariance: np.ndarray | None = None  # (6,6) of T_prev_curr, axes of this camera [network units, rad]
    T_visual: np.ndarray | None = None  # (4,4) [network units] since the segment began
    source: str = "network"  # of the motion: image | network | rest (nothing moves in the image) | none
    keyframe: int = -1  # its number; -1 without one
    tracked: int = 0  # points followed from the keyframe
    inliers: int = 0  # of them, those that agree with the pose
    depth_ratio: float = 1.0  # what the network says of depth in this image, over what the keyframe's points say
    moving: bool = False  # the picture has moved since the image before
    withheld: bool = False  # lost for too long, and the settings want no pose then


class Odometry:
    """Chains relative motions into a pose; axes are the optical ones of the first camera (see `to_body`).

    max_translation [m] and max_rotation [rad] bound the motion of one frame: beyond is not an endoscope but a failure.
    sigma_translation [m] and sigma_rotation [rad] are the standard deviations of one frame's motion, each axis.
    """

    def __init__(
        self,
        max_translation: float = 0.02,
        max_rotation: float = 0.35,
        sigma_translation: float = 5e-4,
        sigma_rotation: float = 5e-3,
    ):
        self.max_translation, self.max_rotation = max_translation, max_rotation
        self.step_covariance = _diagonal(sigma_translation**2, sigma_rotation**2)
        self.reset()

    def reset(self, T_odom_camera: np.ndarray | None = None) -> None:
        """Start again at T_odom_camera (default: the origin)."""
        self._T = rigid(np.eye(4) if T_odom_camera is None else T_odom_camera)
        self._covariance = np.eye(6) * START_VARIANCE
        self._stamp: float | None = None
        self._moved = False

    def step(self, T_prev_curr: np.ndarray | None, stamp: float) -> OdometryState:
        """Take one frame's motion; None (no previous frame) leaves INIT, an unusable motion gives LOST."""
        dt = math.nan if self._stamp is None else stamp - self._stamp
        self._stamp = stamp
        if T_prev_curr is None and not self._moved:
            return self._held("INIT", self._covariance)
        if T_prev_curr is None or not self._usable(np.asarray(T_prev_curr)):
            # The camera moved by an unknown amount, at least up to the gate.
            self._covariance = self._covariance + _diagonal(self.max_translation**2, self.max_rotation**2)
            return self._held("LOST", np.eye(6) * UNKNOWN_VARIANCE)
        self._advance(np.asarray(T_prev_curr, dtype=np.float64))
        twist, twist_covariance = self._twist(T_prev_curr, dt)
        return OdometryState(self._T.copy(), twist, self._covariance.copy(), twist_covariance, stamp, "OK")

    def _usable(self, T: np.ndarray) -> bool:
        return plausible(T, self.max_translation, self.max_rotation)

    def _advance(self, T_prev_curr: np.ndarray) -> None:
        R_odom_prev = self._T[:3, :3]
        moved = R_odom_prev @ T_prev_curr[:3, 3]  # odom axes
        # A past error of the heading turns this step's translation: the adjoint of the step back, in odom axes.
        carry = adjoint(se3(np.eye(3), -moved))
        covariance = carry @ self._covariance @ carry.T + self.step_covariance  # the same in all axes: needs no turning
        self._covariance = (covariance + covariance.T) / 2
        self._T = se3(orthonormalise(R_odom_prev @ T_prev_curr[:3, :3]), self._T[:3, 3] + moved)
        self._moved = True

    def _twist(self, T_prev_curr: np.ndarray, dt: float) -> tuple[np.ndarray | None, np.ndarray]:
        if not SHORTEST_STEP <= dt < math.inf:  # also when dt is NaN
            return None, np.eye(6) * UNKNOWN_VARIANCE
        return se3_log(T_prev_curr) / dt, np.minimum(self.step_covariance / dt**2, UNKNOWN_VARIANCE)

    def _held(self, state: str, pose_covariance: np.ndarray) -> OdometryState:
        unknown = np.eye(6) * UNKNOWN_VARIANCE
        return OdometryState(self._T.copy(), None, pose_covariance.copy(), unknown, self._stamp, state)


def start_belief(scale_sigma: float = 0.0) -> np.ndarray:
    """(7,7) covariance of position [m], rotation [rad] (both odom axes) and log scale, at the start of odometry."""
    return np.diag([START_VARIANCE] * 6 + [scale_sigma**2])


def carried_belief(belief: np.ndarray, moved: np.ndarray, added: np.ndarray) -> np.ndarray:
    """(7,7) belief, the displacement (3,) [m] that follows and the (6,6) covariance of that step, both in odom axes ->
    (7,7). A past error of the heading turns the step, an error of the scale stretches it.

    The error of the scale is a state of its own because it lasts: it makes position errors grow with distance, not with
    the root of it as independent errors do.
    """
    F = np.eye(7)
    F[:3, 3:6], F[:3, 6] = -hat(moved), moved
    belief = F @ belief @ F.T
    belief[:6, :6] += added
    return (belief + belief.T) / 2


def to_body(state: OdometryState) -> OdometryState:
    """Odometry in optical axes -> the same with REP-103 odom axes (x forward, y left, z up at the start).

    The child frame stays the optical frame, so twist and its covariance do not change.
    """
    A = adjoint(OPTICAL_TO_BODY)
    return replace(
        state,
        T_odom_camera=OPTICAL_TO_BODY @ state.T_odom_camera,
        pose_covariance=A @ state.pose_covariance @ A.T,
    )


def rigid(T_odom_camera: np.ndarray) -> np.ndarray:
    """(4,4) -> the nearest rigid motion, float64. Raises ValueError."""
    T = np.asarray(T_odom_camera, dtype=np.float64)
    if T.shape != (4, 4) or not np.isfinite(T).all():
        raise ValueError(f"T_odom_camera must be a finite 4x4 matrix, got {T.tolist()}")
    return se3(orthonormalise(T[:3, :3]), T[:3, 3])


def plausible(T_prev_curr: np.ndarray, max_translation: float, max_rotation: float) -> bool:
    """True where (4,4) T_prev_curr is a finite rigid motion within the bounds [m, rad]. Raises ValueError."""
    T = np.asarray(T_prev_curr)
    if T.shape != (4, 4):
        raise ValueError(f"T_prev_curr must be 4x4, it has the shape {T.shape}")
    if not np.isfinite(T).all():
        return False
    R = T[:3, :3]
    if np.abs(R @ R.T - np.eye(3)).max() > ORTHONORMAL_TOLERANCE or np.linalg.det(R) < 0:
        return False
    return bool(np.linalg.norm(T[:3, 3]) <= max_translation and np.linalg.norm(so3_log(R)) <= max_rotation)


def _diagonal(translation: float, rotation: float) -> np.ndarray:
    """(6,6) from the variance of each translation axis [m²] and each rotation axis [rad²]."""
    return np.diag([translation] * 3 + [rotation] * 3).astype(np.float64)
