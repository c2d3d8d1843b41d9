"""Robot kinematics (T_base_camera [m]) beside the visual trajectory -> metres per network unit with sigma and state.

    scale = KinematicScale(ScaleSettings())
    scale.add_pose(stamp_s, T_base_camera)            # 50 to 200 Hz, from any thread
    scale.add_motion(stamp_s, T_visual, segment)      # every image
    scale.estimate().factor                           # a few times per second

How the number is found is in `kinematic_scale`; here is what is remembered, and when the number can be relied on.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace

import numpy as np

from endomust_core.kinematic_scale import SIGMA_FLOOR, Fit, find_delay, fit_scale
from endomust_core.odometry import OPTICAL_TO_BODY
from endomust_core.pose_tracks import LONGEST_WINDOW, PoseBuffer, RobotPoses, nodes_from

# Optical axes (x right, y down, z forward) seen in the camera axes of each convention.
AXES = {
    "dvrk": np.diag([-1.0, -1.0, 1.0, 1.0]),  # x left, y up, z away from the viewer
    "optical": np.eye(4),
    "ros": OPTICAL_TO_BODY,  # x forward, y left, z up
}
MOST_IMAGES = 4096  # are remembered: over two minutes at 30 Hz
LEAST_SPAN = 1.0  # s of both trajectories before anything is said
TRACKING_BIAS = 0.05  # relative, rms over rendered scenes with true depth: simulation.scale_check, (b) against the unit
LOCK_SPAN = 3.0  # s of images before a lock
UNSURE = 1.5  # times scale_lock_sigma; a window less sure than this is no better than the lock, whatever it saw
RECENT = 3.0  # s that are looked at alone where the window is unsure: the scale may have changed within it
FADED = 0.5  # of the motion of an estimate without lock; below, it is kept rather than the window that fades away
SCALE_WANDER = 0.005  # relative, in 10 s; how far a network's own unit drifts, so that an old lock counts less
LEAST_CORRELATION = 0.8  # of displacements; below, robot and image do not show the same motion
TURNED_AXES = math.radians(30)  # further than any endoscope is mounted askew by mistake
ROTATION_RATIO = (0.75, 1.3)  # of the angles seen and reported, which need no scale
JUMP_SIGMAS, JUMP_SHARE = 4.0, 0.05  # a window that differs from the lock by both contradicts it
JUMP_SECONDS = 2.0  # of contradiction end a lock
DELAY_EVERY = 1.0  # s between two searches for the delay
DELAY_SIGMA = 0.05  # s; a delay known less well than this is not used


@dataclass(frozen=True)
class ScaleSettings:
    """What may be set; the node's parameters have fields of the same names and these defaults."""

    scale_window: float = 10.0  # s, how far back motion is compared
    scale_min_baseline: float = 0.005  # m, the least displacement that says anything
    scale_time_offset: float = 0.0  # s, added to the stamps of the robot
    scale_estimate_delay: bool = True  # find what is left of the delay, within ±0.3 s
    scale_pose_axes: str = "dvrk"  # dvrk | optical | ros
    scale_lock_sigma: float = 0.02  # relative sigma at which the factor is held

    def __post_init__(self):
        axes_of(self.scale_pose_axes)
        for name in ("scale_window", "scale_min_baseline", "scale_lock_sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive and finite")
        if self.scale_window > LONGEST_WINDOW:
            raise ValueError(f"scale_window is {self.scale_window} s; at most {LONGEST_WINDOW:g} s are remembered")
        if not abs(self.scale_time_offset) <= 10:
            raise ValueError(f"scale_time_offset is {self.scale_time_offset} s; use at most 10 s")


@dataclass(frozen=True)
class ScaleEstimate:
    """What is known now. Every number is finite; `factor` and `sigma` are None while nothing is known."""

    state: str  # waiting | moving needed | estimating | locked
    reason: str  # in words, what to do next where there is something to do
    factor: float | None = None  # m per network unit
    sigma: float | None = None  # relative standard deviation
    baseline: float = 0.0  # m, longest displacement within the window
    pairs: int = 0
    outliers: int = 0
    residual: float = 0.0  # m, rms of what is left of the displacements
    delay: float = 0.0  # s by which the robot's stamps are late, after scale_time_offset
    delay_sigma: float | None = None  # s; None while it is not measured
    axes_angle: float = 0.0  # rad between the reported camera axes and those of the image
    age: float = 0.0  # s since the factor was last measured
    jumps: int = 0  # locks that were given up

    @property
    def depth_sigma(self) -> float | None:
        """Relative standard deviation of depth times `factor`: `sigma` is of the path alone, and odometry from images
        shows less motion than there is, by a share that differs from scene to scene."""
        return None if self.sigma is None else math.hypot(self.sigma, TRACKING_BIAS)

    @property
    def locked(self) -> bool:
        """True where the factor may be used as metric."""
        return self.state == "locked"


def axes_of(name: str) -> np.ndarray:
    """(4,4) optical axes seen in the axes `name`; ValueError names the possible ones."""
    if name not in AXES:
        raise ValueError(f"scale_pose_axes is '{name}'; use one of {', '.join(AXES)}")
    return AXES[name]


def to_optical(T: np.ndarray, axes: str) -> np.ndarray:
    """(4,4) T_base_camera with camera axes dvrk | optical | ros -> the same pose with optical axes [m]."""
    return np.asarray(T, dtype=np.float64) @ axes_of(axes)


class KinematicScale:
    """Remembers a window of robot poses and visual poses, the delay between them, and the factor it has locked.

    Every method may be called from any thread; `settings` may be replaced whole by another one with the same fields.
    """

    def __init__(self, settings=None):
        """`settings`: a ScaleSettings, or anything with its fields."""
        self.settings = settings or ScaleSettings()
        self._lock = threading.Lock()
        self._robot, self._images = RobotPoses(), PoseBuffer(MOST_IMAGES)
        self.reset()

    def reset(self) -> None:
        """Forget everything, also the lock; what was counted as jumps too."""
        with self._lock:
            self._robot.clear()
            self._images.clear()
            self._delay, self._delay_sigma, self._delay_searched = 0.0, None, -math.inf
            self._held: ScaleEstimate | None = None  # the best that was measured, with age 0
            self._held_at = self._contradicted_since = None
            self._held_energy = 0.0
            self._begun = -math.inf  # images before this show another scale
            self._jumps = 0

    def add_pose(self, stamp: float, T_base_camera: np.ndarray) -> None:
        """Take what the robot reports: (4,4) [m], camera axes as `scale_pose_axes` says. Nonsense is only counted."""
        T = np.asarray(T_base_camera, dtype=np.float64)
        if T.shape == (4, 4):
            T = to_optical(T, self.settings.scale_pose_axes)
        with self._lock:
            self._robot.append(stamp + self.settings.scale_time_offset, T)

    def add_motion(self, stamp: float, T_visual_camera: np.ndarray, segment: int = 0) -> None:
        """Take where the images say the camera is: (4,4) optical axes [network units], chained within `segment`."""
        T = np.asarray(T_visual_camera, dtype=np.float64)
        if T.shape != (4, 4) or not np.isfinite(T).all() or not math.isfinite(stamp):
            return
        with self._lock:
            last = self._images.newest
            if last is not None and stamp < last - 1:
                self._images.clear()  # another recording
                self._begun = -math.inf
                self._held_at = None if self._held_at is None else min(self._held_at, stamp)
            elif last is not None and stamp <= last:
                return
            self._images.append(stamp, T, segment)

    @property
    def refused(self) -> dict[str, int]:
        """How many robot poses were not used, by reason."""
        with self._lock:
            return dict(self._robot.refused)

    def estimate(self) -> ScaleEstimate:
        """What the last `scale_window` seconds say, beside what was locked before. About two milliseconds."""
        with self._lock:
            fit = self._fit()
            estimate = fit if isinstance(fit, ScaleEstimate) else self._judge(fit)
            return replace(estimate, delay=self._delay, delay_sigma=self._delay_sigma, jumps=self._jumps)

    def _fit(self) -> Fit | ScaleEstimate:
        p = self.settings
        if not len(self._images):
            return self._still("waiting", "no visual motion has come yet; odometry must run")
        if self._robot.newest is None:
            return self._still("waiting", "no robot pose has come yet; check the topic of the camera pose")
        now = self._images.newest
        if abs(self._robot.newest - now) > max(p.scale_window / 2, 1.0):
            return self._still(
                "waiting",
                f"robot stamps are {self._robot.newest - now:+.1f} s from those of the images; check use_sim_time, "
                "the clocks of both computers and scale.time_offset",
            )
        images = self._images.rows(self._images.since(max(now - p.scale_window, self._begun)))
        robot = self._robot.window(now - p.scale_window - 0.5)
        if robot is None or now - max(images[0, 0], robot.stamps[0]) < LEAST_SPAN or len(images) < 8:
            return self._still("waiting", f"less than {LEAST_SPAN:g} s of robot poses and images so far")
        nodes = nodes_from(images[:, 0], images[:, 1], images[:, 2:])
        self._search_delay(robot, nodes, now)
        fit = fit_scale(robot, nodes, self._delay)
        if fit is not None and self._held is not None and self._held.locked and fit.sigma > UNSURE * p.scale_lock_sigma:
            recent = fit_scale(robot, nodes.since(now - RECENT), self._delay)
            fit = recent if recent is not None and recent.sigma < fit.sigma else fit
        if fit is None:
            return self._still("moving needed", "nothing moved; move the endoscope a few centimetres")
        return fit

    def _search_delay(self, robot, nodes, now: float) -> None:
        if not self.settings.scale_estimate_delay:
            self._delay, self._delay_sigma = 0.0, None
        elif now - self._delay_searched >= DELAY_EVERY or now < self._delay_searched:
            self._delay_searched = now
            found = find_delay(robot, nodes)
            if found and found[1] < min(DELAY_SIGMA, 2 * (self._delay_sigma or math.inf)):
                self._delay, self._delay_sigma = found

    def _judge(self, fit: Fit) -> ScaleEstimate:
        """One window's fit against the settings and what is held -> what to tell."""
        p, now = self.settings, self._images.newest
        fresh = ScaleEstimate(
            state="estimating",
            reason="",
            factor=fit.factor,
            sigma=fit.sigma,
            baseline=fit.baseline,
            pairs=fit.pairs,
            outliers=fit.outliers,
            residual=fit.residual,
            axes_angle=_angle(fit.turn),
        )
        if fit.baseline < p.scale_min_baseline:
            reason = (
                f"moved {fit.baseline * 1e3:.1f} mm, {p.scale_min_baseline * 1e3:.1f} mm are needed; move the endoscope"
            )
            return self._still("moving needed", reason, fresh)
        doubt, warning = self._doubt(fit), self._warning(fit)
        if doubt:
            return self._still("estimating", doubt, fresh)
        if self._contradicts(fresh, now):
            return self._jump(fresh, now)
        self._hold(fresh, fit.energy, now)
        said = f"{100 * self._held.sigma:.1f} % sigma from {fit.baseline * 1e3:.0f} mm of motion{warning}"
        if not self._held.locked:
            said = f"{said}; {100 * p.scale_lock_sigma:.1f} % are needed, keep moving"
        return replace(self._held, reason=said, age=now - self._held_at)

    def _hold(self, fresh: ScaleEstimate, energy: float, now: float) -> None:
        """Take the window's factor where it has more motion than the one before, or fuse it where it shares no data.

        To prefer the smaller sigma would be to prefer luck: windows that happen to fit well are not more right.
        """
        p, held = self.settings, self._held
        if held is not None and held.locked and now - self._held_at > p.scale_window:
            fused, sigma = _fuse(held, fresh, SCALE_WANDER * math.sqrt((now - self._held_at) / 10))
            self._held, self._held_at = replace(fresh, factor=fused, sigma=sigma, state="locked"), now
            self._held_energy += energy
        elif held is None or energy > self._held_energy * (1.0 if held.locked else FADED):
            was_locked = held is not None and held.locked
            locks = fresh.sigma <= p.scale_lock_sigma * (UNSURE if was_locked else 1)
            locks &= now - float(self._images.rows()[0, 0]) >= LOCK_SPAN
            if was_locked and not locks:
                return
            self._held, self._held_at = replace(fresh, state="locked" if locks else "estimating"), now
            self._held_energy = energy

    def _still(self, state: str, reason: str, fresh: ScaleEstimate | None = None) -> ScaleEstimate:
        """No usable window: what is held goes on being held, with its age."""
        if self._held is None:
            nothing = fresh or ScaleEstimate(state, reason)
            return replace(nothing, state=state, reason=reason, factor=None, sigma=None)
        age = self._images.newest - self._held_at if len(self._images) else 0.0
        state = "locked" if self._held.locked else state
        said = f"from {age:.0f} s ago; now: {reason}"
        seen = fresh or self._held
        return replace(
            seen, state=state, reason=said, factor=self._held.factor, sigma=self._held.sigma, age=max(age, 0.0)
        )

    def _contradicts(self, fresh: ScaleEstimate, now: float) -> bool:
        if self._held is None or not self._held.locked:
            self._contradicted_since = None
            return False
        change = abs(math.log(fresh.factor / self._held.factor))
        contradicts = change > JUMP_SIGMAS * math.hypot(fresh.sigma, self._held.sigma) and change > JUMP_SHARE
        if not contradicts:
            self._contradicted_since = None
        elif self._contradicted_since is None or now < self._contradicted_since:
            self._contradicted_since = now
        return contradicts

    def _jump(self, fresh: ScaleEstimate, now: float) -> ScaleEstimate:
        """A window that denies the lock: say so, and after JUMP_SECONDS of it let the lock go."""
        said = f"scale jump: {fresh.factor:.4g} m per unit now, {self._held.factor:.4g} were locked"
        if now - self._contradicted_since < JUMP_SECONDS:
            return replace(self._held, reason=f"{said}; watching", age=now - self._held_at)
        self._jumps += 1
        self._begun = self._contradicted_since - 1
        self._held, self._held_at, self._held_energy, self._contradicted_since = fresh, now, 0.0, None
        return replace(fresh, reason=f"{said}; estimating anew")

    def _doubt(self, fit: Fit) -> str:
        """Why this window must not be believed, or nothing."""
        if fit.correlation < LEAST_CORRELATION:
            return (
                f"robot and images do not show the same motion (correlation {fit.correlation:.2f}); check that the "
                "pose is that of this camera in a fixed base, scale.time_offset, and that the image is not mirrored"
            )
        if fit.rotation_ratio is not None and not ROTATION_RATIO[0] < fit.rotation_ratio < ROTATION_RATIO[1]:
            return (
                f"the images turn {fit.rotation_ratio:.2f} times as far as the robot says; check the focal length in "
                "camera_info and the topic of the camera pose"
            )
        return ""

    def _warning(self, fit: Fit) -> str:
        """What is wrong with the axes without harm to the factor, or nothing."""
        angle = _angle(fit.turn)
        if angle < TURNED_AXES:
            return ""
        current = axes_of(self.settings.scale_pose_axes)[:3, :3]
        angles = {name: _angle(A[:3, :3].T @ current @ fit.turn) for name, A in AXES.items()}
        best = min(angles, key=angles.get)
        advice = f"'{best}' would fit" if angles[best] < TURNED_AXES else "none of the known conventions fits"
        return f"; the reported camera axes are turned by {math.degrees(angle):.0f}° (scale.pose_axes: {advice})"


def _fuse(held: ScaleEstimate, fresh: ScaleEstimate, wander: float) -> tuple[float, float]:
    """(factor, sigma) of two windows that share no data, weighted by variance; `wander` [relative] ages the first."""
    old, new = held.sigma**2 + wander**2, fresh.sigma**2
    share = old / (old + new)
    factor = held.factor * (fresh.factor / held.factor) ** share
    return factor, max(math.sqrt(old * new / (old + new)), SIGMA_FLOOR)


def _angle(R: np.ndarray) -> float:
    """Angle [rad] of a (3,3) rotation."""
    return math.acos(min(max((float(np.trace(R)) - 1) / 2, -1.0), 1.0))
