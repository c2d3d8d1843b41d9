"""Metres per network unit, from wherever the settings say: the bundle, a number, a file, or the robot's kinematics."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from endomust_core.metric_scale import KinematicScale, ScaleEstimate

if TYPE_CHECKING:
    from endomust_core.scale_file import SavedScale

ESTIMATE_PERIOD = 0.25  # s of image time between two looks at the robot's poses


@dataclass(frozen=True)
class ScaleState:
    """What an image is multiplied with."""

    mode: str
    factor: float  # metres per network unit
    sigma: float | None  # relative standard deviation of depth; None where nobody knows
    metric: bool  # True when metres are metres: measured, loaded, locked, or a metric bundle
    reason: str  # why it is not, or where it comes from
    path_sigma: float | None = None  # the same of the path of the camera, which the robot measures more directly


class Scale:
    """`now` is asked once for every image; robot poses come from another thread."""

    def __init__(self, settings, bundle_is_metric: bool, saved: SavedScale | None = None):
        self.settings, self.saved = settings, saved
        self._bundle_is_metric = bundle_is_metric
        self._lock = threading.Lock()
        self.kinematic = KinematicScale(settings)
        self.estimate: ScaleEstimate | None = None  # the newest of the robot's
        self.calibrated: ScaleEstimate | None = None  # what the last calibration found
        self.calibrating = False
        self._next: float | None = None  # s, when the next estimate is due

    @property
    def listens(self) -> bool:
        """True while robot poses are needed."""
        return self.calibrating or self.settings.scale_mode == "kinematic"

    def add_pose(self, stamp: float, T_base_camera: np.ndarray) -> None:
        """A camera pose [m] that the robot reports, in the axes of `scale_pose_axes`, at a time [s]."""
        with self._lock:
            self.kinematic.add_pose(stamp, T_base_camera)

    def add_motion(self, stamp: float, T_visual_camera: np.ndarray, segment: int) -> None:
        """The visual pose of an image, network units, optical axes."""
        with self._lock:
            self.kinematic.settings = self.settings
            self.kinematic.add_motion(stamp, T_visual_camera, segment)
            if self._next is None or not self._next - ESTIMATE_PERIOD <= stamp < self._next:
                self.estimate, self._next = self.kinematic.estimate(), stamp + ESTIMATE_PERIOD

    def reset(self) -> None:
        """Forget what the robot said."""
        with self._lock:
            self.kinematic.reset()
            self.estimate = self._next = None

    def now(self) -> ScaleState:
        """What the settings and the estimates say at this moment."""
        p = self.settings
        if p.scale_mode == "none":
            return ScaleState("none", 1.0, None, self._bundle_is_metric, "as the networks were trained")
        if p.scale_mode == "file":
            if self.saved is None:
                return ScaleState("file", p.scale_factor, None, False, "there is no scale file yet; see save_scale")
            return ScaleState("file", self.saved.factor, self.saved.sigma, True, f"saved {self.saved.date}")
        if p.scale_mode == "kinematic":
            return self._from_robot(p)
        measured = p.scale_factor != 1.0
        reason = "scale.factor" if measured else "scale.factor is 1, nothing was measured"
        return ScaleState("fixed", p.scale_factor, None, measured or self._bundle_is_metric, reason)

    def _from_robot(self, p) -> ScaleState:
        found = self.estimate
        if found is None or found.state != "locked":
            reason = found.reason if found is not None else "no robot poses and images yet"
            return ScaleState("kinematic", p.scale_factor, None if found is None else found.depth_sigma, False, reason)
        return ScaleState("kinematic", found.factor, found.depth_sigma, True, found.reason, found.sigma)
