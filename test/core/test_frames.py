"""Poses, twists and covariances carried between frames, against samples of the motions that they describe."""

import numpy as np
import pytest

from endomust_core.frames import about_base, covariance_from_body, pose_from_body
from endomust_core.odometry import OdometryState, inverse, se3, so3_exp, so3_log, to_body

T_CAMERA_BASE = se3(so3_exp([0.1, -0.4, 0.7]), np.array([0.02, -0.05, 0.3]))


def state_at(T, twist=None, covariance=None, state="OK"):
    covariance = np.diag([1e-6, 2e-6, 3e-6, 1e-4, 2e-4, 3e-4]) if covariance is None else covariance
    return OdometryState(T, twist, covariance, covariance, 1.0, state)


def test_to_body_and_back_is_nothing():
    T = se3(so3_exp([0.3, 0.2, -0.5]), np.array([0.1, 0.2, 0.3]))
    there = to_body(state_at(T))
    np.testing.assert_allclose(pose_from_body(there.T_odom_camera), T, atol=1e-12)
    np.testing.assert_allclose(covariance_from_body(there.pose_covariance), state_at(T).pose_covariance, atol=1e-15)


def test_the_base_stands_where_the_camera_carries_it():
    T = se3(so3_exp([0.3, 0.2, -0.5]), np.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(about_base(state_at(T), T_CAMERA_BASE).T_odom_camera, T @ T_CAMERA_BASE)


def test_the_twist_of_the_base_is_that_of_the_same_body():
    twist = np.array([0.02, -0.01, 0.05, 0.3, -0.2, 0.1])
    dt = 1e-6
    step = se3(so3_exp(twist[3:] * dt), twist[:3] * dt)
    base_step = inverse(T_CAMERA_BASE) @ step @ T_CAMERA_BASE
    measured = np.concatenate([base_step[:3, 3], so3_log(base_step[:3, :3])]) / dt
    np.testing.assert_allclose(about_base(state_at(np.eye(4), twist), T_CAMERA_BASE).twist, measured, atol=1e-5)


def test_the_covariance_of_the_base_is_that_of_samples():
    rng, T = np.random.default_rng(1), se3(so3_exp([0.3, 0.2, -0.5]), np.array([0.1, 0.2, 0.3]))
    covariance = np.diag([1e-6, 2e-6, 3e-6, 1e-4, 2e-4, 3e-4])
    errors = rng.multivariate_normal(np.zeros(6), covariance, 20000)
    base = T @ T_CAMERA_BASE
    found = []
    for error in errors:  # translation of the camera, then a turn about it, in odom axes
        moved = se3(so3_exp(error[3:]) @ T[:3, :3], T[:3, 3] + error[:3]) @ T_CAMERA_BASE
        found.append([*(moved[:3, 3] - base[:3, 3]), *so3_log(moved[:3, :3] @ base[:3, :3].T)])
    said = about_base(state_at(T, covariance=covariance), T_CAMERA_BASE).pose_covariance
    scale = np.sqrt(np.outer(np.diag(said), np.diag(said)))
    np.testing.assert_allclose(np.cov(np.array(found).T) / scale, said / scale, atol=0.05)


def test_what_is_lost_stays_unknown():
    lost = about_base(state_at(np.eye(4), covariance=np.eye(6) * 9999.0, state="LOST"), T_CAMERA_BASE)
    np.testing.assert_array_equal(lost.pose_covariance, np.eye(6) * 9999.0)
    assert lost.twist is None and lost.T_odom_camera == pytest.approx(T_CAMERA_BASE)
