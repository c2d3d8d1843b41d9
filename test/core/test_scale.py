"""Where metres come from, by mode, and when they are metric."""

from datetime import datetime, timezone

import numpy as np
import pytest

from endomust_core.odometry import se3
from endomust_core.scale import Scale
from endomust_core.scale_file import SavedScale
from endomust_core.settings import Settings

SAVED = SavedScale(2.5, 0.01, "d" * 64, datetime.now(timezone.utc).isoformat(), "kinematic", {})


@pytest.mark.parametrize(
    ("settings", "bundle_is_metric", "saved", "factor", "metric"),
    [
        (Settings(scale_mode="none", scale_factor=3.0), True, None, 1.0, True),
        (Settings(scale_mode="none"), False, None, 1.0, False),
        (Settings(scale_factor=3.0), False, None, 3.0, True),
        (Settings(), False, None, 1.0, False),
        (Settings(), True, None, 1.0, True),
        (Settings(scale_mode="file"), False, SAVED, 2.5, True),
        (Settings(scale_mode="file", scale_factor=3.0), False, None, 3.0, False),
        (Settings(scale_mode="kinematic", scale_factor=3.0), True, SAVED, 3.0, False),
    ],
)
def test_factor_and_whether_it_is_metric(settings, bundle_is_metric, saved, factor, metric):
    scale = Scale(settings, bundle_is_metric, saved)
    state = scale.now()
    assert (state.mode, state.factor, state.metric) == (settings.scale_mode, factor, metric) and state.reason
    assert scale.listens == (settings.scale_mode == "kinematic")


def drive(scale, seconds, hidden=1.7):
    """A camera on a wavy way: what the robot reports [m], and what is seen in units of `hidden` m."""
    for number in range(round(seconds * 100)):
        t = number / 100
        place = 0.02 * np.array([np.sin(1.3 * t), np.cos(0.9 * t), np.sin(0.7 * t + 1)])
        T = se3(np.eye(3), place)
        scale.add_pose(t, T)
        if number % 4 == 0:
            scale.add_motion(t, se3(np.eye(3), place / hidden), 0)


def test_the_robots_motion_locks_the_scale_and_a_reset_forgets_it():
    scale = Scale(Settings(scale_mode="kinematic", scale_pose_axes="optical"), False)
    drive(scale, 8.0)
    state = scale.now()
    assert state.metric and state.factor == pytest.approx(1.7, rel=0.01) and 0 < state.path_sigma < 0.02
    scale.reset()
    assert not scale.now().metric and scale.now().factor == 1.0


def test_a_calibration_listens_in_every_mode():
    scale = Scale(Settings(), False)
    assert not scale.listens
    scale.calibrating = True
    assert scale.listens
