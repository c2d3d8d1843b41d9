"""Poses and covariances from one frame to another: optical axes ↔ REP-103, camera → robot's body. Metres, radians.

Covariances are 6×6 about the position of the frame they belong to, in odom axes, translations first.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from endomust_core.odometry import OPTICAL_TO_BODY, OdometryState, adjoint, hat, inverse


def pose_from_body(T_odom_camera: np.ndarray) -> np.ndarray:
    """(4,4) pose of the optical frame in REP-103 odom axes → the same in the optical axes of the start."""
    return inverse(OPTICAL_TO_BODY) @ np.asarray(T_odom_camera, dtype=np.float64)


def covariance_from_body(covariance: np.ndarray) -> np.ndarray:
    """(6,6) in REP-103 odom axes → optical axes of the start."""
    A = adjoint(inverse(OPTICAL_TO_BODY))
    return A @ covariance @ A.T


def about_base(state: OdometryState, T_camera_base: np.ndarray) -> OdometryState:
    """Odometry of the camera → odometry of a frame that is fixed to it.

    The base moves with the camera's errors, and those of the heading swing it about the camera; its twist is what the
    adjoint makes of the camera's (Murray, Li and Sastry 1994, 2.4).
    """
    T_odom_base = state.T_odom_camera @ T_camera_base
    if state.state == "LOST":
        return replace(state, T_odom_camera=T_odom_base)  # its covariance says "unknown" as it is
    arm = np.eye(6)
    arm[:3, 3:] = -hat(state.T_odom_camera[:3, :3] @ T_camera_base[:3, 3])
    carry = adjoint(inverse(T_camera_base))
    return replace(
        state,
        T_odom_camera=T_odom_base,
        pose_covariance=arm @ state.pose_covariance @ arm.T,
        twist=None if state.twist is None else carry @ state.twist,
        twist_covariance=state.twist_covariance if state.twist is None else carry @ state.twist_covariance @ carry.T,
    )
