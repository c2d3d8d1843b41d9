"""Image (h,w) uint8, depth (h,w) and the network's motion -> where the camera is [m, rad], and how sure that is.

Each image's pose is found against a keyframe: points are followed from the keyframe's image, their depths are the
network's at the keyframe, and the pose is what makes them agree. Standing still therefore adds nothing. The motion of
the network is where the search starts, and the answer where there is no texture. Inside, lengths are network units
("visual"); outside they are metres, network units times `scale`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from endomust_core.camera import Camera
from endomust_core.odometry import (
    POLICIES,
    SHORTEST_STEP,
    UNKNOWN_VARIANCE,
    OdometrySettings,
    OdometryState,
    carried_belief,
    inverse,
    orthonormalise,
    plausible,
    rigid,
    se3,
    se3_log,
    start_belief,
)
from endomust_core.pose_refinement import project
from endomust_core.tracker import (
    ALIKE,
    LEAST_POINTS,
    LEVELS,
    SCALE_PULL,
    Keyframe,
    Picture,
    Sighting,
    depth_ratio,
    find_again,
    follow,
    locate,
    new_keyframe,
    prepare,
)

KEPT_SHARE = 0.65  # of a keyframe's points; when fewer are seen, the next keyframe is due
FARTHEST = 20.0  # px; median way of the points since the keyframe from which on their patches look too different
DARKEST = 20  # grey value that 5 % of a usable image exceed
VEILED = 0.4  # of the keyframe's texture; less is smoke, a smear or blur, and no place for a new map
PATIENCE = 10  # times odom_lost_frames; then a map is begun on such an image too
SPARSE = 2 * LEAST_POINTS  # a keyframe with fewer points may fail for want of them: then the network is asked
STILL = 0.4  # px; median way of the points from image to image below which nothing moves
NETWORK_SIGMA = (5e-4, 5e-3)  # [m], [rad] of one image's motion by the network alone, each axis
# Chosen on 30 rendered sequences (seeds 9000 to 9009; simulation.odometry_check --fit) so that the mean NEES is 6. Most
# scenes come out more certain than they say, a few (next to no texture, tissue that moves) less.
POSE_INFLATION = 4.0  # true errors of image against keyframe over those that independent residuals would give
USUAL_FLICKER = 0.06  # standard deviation of log depth ratio up to which the constants above and below hold
MOST_DOUBT = 25.0
FLICKER_SHARE = 1 / 40  # of the newest image
SCALE_SIGMA = 0.06  # of log scale within one sequence, once the sequence's own scale is taken out


@dataclass(frozen=True)
class _Image:
    """One image and what belongs to it."""

    picture: Picture
    depth: np.ndarray
    camera: Camera
    mask: np.ndarray | None


class VisualOdometry:
    """Remembers one keyframe and one image; axes are the optical ones of the first camera (see `odometry.to_body`).

    320 columns are a good size for its images: with 224, errors over a second grew by a fifth on rendered sequences.
    `settings` is any object with the fields of OdometrySettings and may be replaced between images. Not for two threads
    at once.
    """

    def __init__(self, settings=None, pose_inflation: float = POSE_INFLATION, log_scale_sigma: float = SCALE_SIGMA):
        self.settings = OdometrySettings() if settings is None else settings
        self._inflation, self._log_scale_sigma = pose_inflation, log_scale_sigma
        self._segment, self._keyframes = -1, 0
        self.reset()

    def reset(self, T_odom_camera: np.ndarray | None = None) -> None:
        """Start again at T_odom_camera (4,4) [m], default the origin, as certain as a start is. Raises ValueError."""
        self._T = rigid(np.eye(4) if T_odom_camera is None else T_odom_camera)
        self._stamp, self._moved, self._twist_known = None, False, False
        self._lost = self._tries = 0
        self._flicker, self._flicker_mean, self._flicker_images = USUAL_FLICKER**2, 0.0, 0
        self._break_chain(start_belief(self._log_scale_sigma))

    def set_pose(self, T_odom_camera: np.ndarray, covariance: np.ndarray | None = None) -> None:
        """Be at T_odom_camera (4,4) [m] with (6,6) covariance (default: certain). Map and segment go on: only where
        they lie in odom changes. Raises ValueError."""
        belief = start_belief(self._log_scale_sigma)
        if covariance is not None:
            C = np.asarray(covariance, dtype=np.float64)
            if C.shape != (6, 6) or not np.isfinite(C).all() or np.linalg.eigvalsh((C + C.T) / 2)[0] < -1e-12:
                raise ValueError("covariance must be a finite 6x6 matrix without negative eigenvalues")
            belief[:6, :6] += (C + C.T) / 2
        self._T = rigid(T_odom_camera)
        self._axes = self._T[:3, :3] @ self._T_visual[:3, :3].T
        self._start, self._key_position = self._T[:3, 3].copy(), self._T[:3, 3].copy()
        self._belief = self._key_belief = belief

    def step(
        self,
        grey: np.ndarray,
        depth: np.ndarray,
        camera: Camera,
        T_prev_curr: np.ndarray | None,
        stamp: float,
        scale: float = 1.0,
        mask: np.ndarray | None = None,
        scale_sigma: float = 0.0,
    ) -> OdometryState:
        """One image: grey (h,w) uint8 of the pinhole `camera`, depth (h,w) [network units, NaN invalid], the network's
        motion or None, stamp [s], metres per network unit, mask (h,w) True = usable -> OdometryState.

        `scale_sigma`, the relative uncertainty of `scale`, stretches the covariance along the way since the start. The
        arrays are kept and must not change afterwards. Raises ValueError for what does not fit together.
        """
        p = self.settings
        _check(grey, depth, camera, scale, mask, p)
        self._dt = math.nan if self._stamp is None else stamp - self._stamp
        self._stamp, self._scale, self._scale_sigma = stamp, scale, scale_sigma
        motion = None if T_prev_curr is None else np.array(T_prev_curr, dtype=np.float64)
        refused = motion is not None and not self._passes(motion, 1)
        motion = None if refused else motion
        if not (p.odom_refine or p.odom_keyframe):
            return self._by_network(motion, refused)
        if self._key is not None and self._key.picture.grey.shape != grey.shape:
            self._key = None
        image = _Image(prepare(grey, mask), depth, camera, mask)
        mapped = self._key is not None and len(self._key.points) >= LEAST_POINTS
        if not p.odom_refine:
            return self._unless_at_rest(image, motion, refused)
        return self._by_image(image, motion) if mapped else self._without_map(image, motion, refused)

    def _by_image(self, image: _Image, motion: np.ndarray | None) -> OdometryState:
        """The image against the keyframe."""
        sighting, tracked = self._find(image, motion)
        sparse = len(self._key.points) < SPARSE
        if sighting is None and sparse and motion is not None and not self._lost and self._why(image) == "fast":
            return self._without_map(image, motion, False)
        if sighting is None:
            return self._lose(image, self._why(image), tracked)
        T_visual = self._key.T_visual @ inverse(sighting.T_curr_key)
        if not self._passes(inverse(self._T_visual) @ T_visual, 1 + self._lost):
            return self._lose(image, "fast", tracked)
        covariance = sighting.fit.covariance * self._inflation**2
        self._sighting, self._image = sighting, image
        return self._accept(T_visual, covariance, "image")

    def _find(self, image: _Image, motion: np.ndarray | None) -> tuple[Sighting | None, int]:
        """The image against the keyframe; where that fails, against the last image that was placed, which shows more of
        what is seen now; and without any start value."""
        if image.picture.brightness < DARKEST:
            return None, 0
        guesses = self._motions_since(motion)
        near = np.eye(4) if self._sighting is None else self._sighting.T_curr_key
        sighting, tracked = locate(self._key, image.picture, image.camera, guesses[0] @ near)
        if sighting is not None:
            return sighting, tracked
        if self._sighting is not None:
            self._renew_keyframe()
        clear = image.picture.texture >= VEILED * self._key.picture.texture
        for guess in guesses if clear else guesses[:1]:
            sighting, _ = locate(self._key, image.picture, image.camera, guess, LEVELS + 1)
            if sighting is not None:
                return sighting, tracked
        return find_again(self._key, image.picture, image.camera) if clear else None, tracked

    def _motions_since(self, motion: np.ndarray | None) -> list[np.ndarray]:
        """(4,4) guesses of T_curr_last since the last image that was placed, the best first."""
        ahead = inverse(np.linalg.matrix_power(self._velocity, 1 + self._lost))
        if self._lost:
            return [ahead, np.eye(4)]
        return [np.eye(4), ahead] if motion is None else [inverse(motion), ahead, np.eye(4)]

    def _why(self, image: _Image) -> str:
        if image.picture.brightness < DARKEST:
            return "dark"
        return "smoke" if image.picture.texture < VEILED * self._key.picture.texture else "fast"

    def _without_map(self, image: _Image, motion: np.ndarray | None, refused: bool) -> OdometryState:
        """No keyframe with points yet: the network's motion, and a first try at a keyframe."""
        if image.picture.brightness < DARKEST and (self._moved or motion is not None or refused):
            return self._unusable("dark")
        state = self._by_network(motion, refused)
        self._begin_map(image)
        return state

    def _by_network(self, motion: np.ndarray | None, refused: bool) -> OdometryState:
        """The network's motion as it is."""
        if motion is None:
            known = refused or self._moved
            return self._unusable("network" if refused else "few_points") if known else self._state("INIT", "", "none")
        translation, rotation = NETWORK_SIGMA
        covariance = np.diag([(translation / self._scale) ** 2] * 3 + [rotation**2] * 3)
        state = self._accept(self._T_visual @ motion, covariance, "network")
        self._key_belief, self._key_position = self._belief, self._T[:3, 3].copy()
        return state

    def _unless_at_rest(self, image: _Image, motion: np.ndarray | None, refused: bool) -> OdometryState:
        """The network's motions while the image moves; while it rests, none."""
        if self._key is not None and not self._lost and image.picture.brightness >= DARKEST:
            pixel = self._key.points.pixel
            found, likeness = follow(self._key.picture.even, image.picture.even, pixel, pixel)
            way = np.linalg.norm(found - pixel, axis=1)[likeness > ALIKE]
            if len(way) >= LEAST_POINTS and np.median(way) < STILL:
                return self._accept(self._T_visual, np.zeros((6, 6)), "rest")
        return self._without_map(image, motion, refused)

    def _accept(self, T_visual: np.ndarray, covariance: np.ndarray, source: str) -> OdometryState:
        """Go to T_visual (4,4), known from the keyframe to (6,6) covariance in camera axes [network units]."""
        recovered, relative = source == "image" and self._lost > 0, inverse(self._T_visual) @ T_visual
        R = self._axes @ T_visual[:3, :3]
        position = self._T[:3, 3] + self._scale * (self._axes @ (T_visual[:3, 3] - self._T_visual[:3, 3]))
        self._T, self._T_visual = (
            se3(orthonormalise(R), position),
            se3(orthonormalise(T_visual[:3, :3]), T_visual[:3, 3]),
        )
        turn = np.kron(np.diag([self._scale, 1.0]), R)  # camera axes → odom axes, network units → metres
        step = position - self._key_position
        self._belief = carried_belief(self._key_belief, step, turn @ covariance @ turn.T)
        motion_covariance = None if recovered else _floored(covariance + self._last_covariance)
        self._last_covariance, self._moved, self._lost, self._tries = covariance, True, 0, 0
        self._velocity = self._velocity if recovered else relative
        relative = None if recovered else relative
        state = self._state("OK", "few_points" if source == "network" else "", source, relative, motion_covariance)
        if source == "image" and self._keyframe_is_due():
            self._renew_keyframe()
        return state

    def _keyframe_is_due(self) -> bool:
        points, sighting = self._key.points, self._sighting
        if not self.settings.odom_keyframe or len(sighting.index) < KEPT_SHARE * len(points):
            return True
        return float(np.median(np.linalg.norm(sighting.pixel - points.pixel[sighting.index], axis=1))) > FARTHEST

    def _renew_keyframe(self) -> None:
        """The last image that was placed becomes the keyframe; what was uncertain of it stays so for good."""
        image = self._image
        self._keyframes += 1
        self._key = new_keyframe(
            self._keyframes, image.picture, image.depth, image.camera, image.mask, self._T_visual,
            (self._key, self._sighting),
        )  # fmt: skip
        self._sighting, self._last_covariance = None, np.zeros((6, 6))
        self._key_position = self._T[:3, 3].copy()
        # The error of the scale forgets itself as fast as the map is pulled to the network's scale, and new depths
        # bring as much of it as is forgotten.
        kept = 1 - SCALE_PULL
        F = np.diag([1.0] * 6 + [kept])
        self._key_belief = F @ self._belief @ F
        self._key_belief[6, 6] += self._log_scale_sigma**2 * (1 - kept**2)

    def _begin_map(self, image: _Image) -> None:
        self._keyframes += 1
        self._key = new_keyframe(self._keyframes, image.picture, image.depth, image.camera, image.mask, self._T_visual)
        self._sighting, self._image, self._last_covariance = None, image, np.zeros((6, 6))
        if len(self._key.points) >= LEAST_POINTS:  # the next image has something to be placed against
            self._lost = self._tries = 0
        self._key_belief, self._key_position = self._belief, self._T[:3, 3].copy()

    def _lose(self, image: _Image, reason: str, tracked: int) -> OdometryState:
        """The image cannot be placed: hold the pose, and after enough of them begin another map from there."""
        p = self.settings
        self._lost += 1
        clear = reason == "fast" or (reason == "smoke" and self._lost > PATIENCE * p.odom_lost_frames)
        self._tries += clear
        state = self._state("LOST", reason, "none", tracked=tracked)
        if clear and self._tries >= p.odom_lost_frames:
            self._give_up(self._lost)
            self._begin_map(image)
            if p.odom_on_lost == "reset":
                return self._state("INIT", reason, "none")
        return state

    def _unusable(self, reason: str) -> OdometryState:
        """Without a map a motion that is missing is missing for good."""
        self._lost += 1
        lost, state = self._lost, self._state("LOST", reason, "none")
        self._give_up(1, again=lost > 1)
        self._lost = lost
        return state

    def _give_up(self, images: int, again: bool = False) -> None:
        """Begin another segment at the pose held, or go on with one that has only begun; the camera has moved by up to
        the gate in each of the images."""
        p, belief = self.settings, self._belief.copy()
        unknown = [p.odom_max_translation**2] * 3 + [p.odom_max_rotation**2] * 3
        belief[:6, :6] += images * np.diag(unknown)
        if p.odom_on_lost == "reset" and self._lost >= p.odom_lost_frames:
            belief, self._moved = start_belief(self._log_scale_sigma), False
        self._segment -= again
        self._break_chain(belief)
        self._lost = self._tries = 0

    def _break_chain(self, belief: np.ndarray) -> None:
        """No map, and another segment from the pose held."""
        self._segment += 1
        self._key: Keyframe | None = None
        self._sighting: Sighting | None = None
        self._image: _Image | None = None
        self._T_visual, self._velocity, self._axes = np.eye(4), np.eye(4), self._T[:3, :3]
        self._start = self._key_position = self._T[:3, 3].copy()
        self._belief = self._key_belief = belief
        self._last_covariance = np.zeros((6, 6))

    def _passes(self, motion: np.ndarray, images: int) -> bool:
        """True where (4,4) [network units] is a motion that an endoscope may make in so many images."""
        p = self.settings
        return plausible(motion, images * p.odom_max_translation / self._scale, images * p.odom_max_rotation)

    def _state(
        self,
        state: str,
        reason: str,
        source: str,
        relative: np.ndarray | None = None,
        motion_covariance: np.ndarray | None = None,
        tracked: int = 0,
    ) -> OdometryState:
        p, unknown = self.settings, np.eye(6) * UNKNOWN_VARIANCE
        twist, twist_covariance = self._twist(relative, motion_covariance)
        seen = {"tracked": tracked}
        if source == "image":
            seen = {"tracked": self._sighting.tracked, "inliers": len(self._sighting.index)}
            seen["depth_ratio"] = self._depth_ratio()
        moving = source != "rest" and relative is not None and self._pixels_moved(relative) > STILL
        if moving and source == "image":
            self._watch_flicker(seen["depth_ratio"])
        return OdometryState(
            T_odom_camera=self._T.copy(),
            twist=twist,
            pose_covariance=unknown if state == "LOST" else self._pose_covariance(),
            twist_covariance=twist_covariance,
            stamp=self._stamp,
            state=state,
            reason=reason,
            segment=self._segment,
            T_prev_curr=relative,
            motion_covariance=motion_covariance,
            T_visual=self._T_visual.copy(),
            source=source,
            keyframe=-1 if self._key is None else self._key.number,
            moving=moving,
            withheld=state == "LOST" and p.odom_on_lost == "null" and self._lost >= p.odom_lost_frames,
            **seen,
        )

    @property
    def _doubt(self) -> float:
        """Factor on all covariances: how much more than usual the network's scale flickers from image to image."""
        return min(max(self._flicker / USUAL_FLICKER**2, 1.0), MOST_DOUBT)

    def _watch_flicker(self, ratio: float) -> None:
        """Running variance of log depth ratio about its running mean, over the images that moved."""
        value = math.log(ratio)
        share = max(FLICKER_SHARE, 1 / (1 + self._flicker_images))
        self._flicker_images += 1
        apart = value - self._flicker_mean
        self._flicker_mean += share * apart
        self._flicker += FLICKER_SHARE * (apart * apart - self._flicker)

    def _pose_covariance(self) -> np.ndarray:
        way = self._T[:3, 3] - self._start
        covariance = self._belief[:6, :6] * self._doubt
        covariance[:3, :3] += self._scale_sigma**2 * np.outer(way, way)
        return np.clip(covariance * self.settings.odom_covariance_scale, -UNKNOWN_VARIANCE, UNKNOWN_VARIANCE)

    def _twist(self, relative: np.ndarray | None, covariance: np.ndarray | None):
        """(6,) [m/s, rad/s] in camera axes and (6,6); None and unknown without a motion or a time."""
        if relative is None or not SHORTEST_STEP <= self._dt < math.inf:  # also when dt is NaN
            return None, np.eye(6) * UNKNOWN_VARIANCE
        metres = np.array([self._scale] * 3 + [1.0] * 3)
        twist = se3_log(relative) * metres / self._dt
        covariance = covariance * self._doubt * np.outer(metres, metres) / self._dt**2
        stretch = np.r_[twist[:3], np.zeros(3)]
        covariance = covariance + (self._log_scale_sigma**2 + self._scale_sigma**2) * np.outer(stretch, stretch)
        covariance = covariance * self.settings.odom_covariance_scale
        return twist, np.clip(covariance, -UNKNOWN_VARIANCE, UNKNOWN_VARIANCE)

    def _depth_ratio(self) -> float:
        image, sighting = self._image, self._sighting
        points = self._key.points.taken(sighting.index)
        _, z = project(sighting.T_curr_key, points, image.camera)
        ratio = math.exp(depth_ratio(1 / z, image.depth, sighting.pixel))
        return ratio if math.isfinite(ratio) else 1.0

    def _pixels_moved(self, relative: np.ndarray) -> float:
        """Median way [px] of the keyframe's points by this image's motion (4,4); without points, 0 or inf."""
        if self._image is None or self._key is None or not len(self._key.points):
            return math.inf if np.abs(relative - np.eye(4)).max() > 1e-6 else 0.0
        now = inverse(self._T_visual) @ self._key.T_visual
        camera, points = self._image.camera, self._key.points
        after, before = project(now, points, camera)[0], project(relative @ now, points, camera)[0]
        return float(np.median(np.linalg.norm(after - before, axis=1)))


def _floored(covariance: np.ndarray) -> np.ndarray:
    """No direction is known exactly: filters refuse a variance of 0."""
    return (covariance + covariance.T) / 2 + np.eye(6) * 1e-12


def _check(grey: np.ndarray, depth: np.ndarray, camera: Camera, scale: float, mask, settings) -> None:
    size = (camera.height, camera.width)
    if grey.dtype != np.uint8 or grey.shape != size or depth.shape != size:
        raise ValueError(
            f"grey is {grey.shape} {grey.dtype}, depth {depth.shape}, the camera {camera.width}x{camera.height}: give "
            "uint8 and one size for all three; Camera.resized fits the camera"
        )
    if mask is not None and mask.shape != size:
        raise ValueError(f"mask is {mask.shape}, the image {size}; resize it with INTER_NEAREST")
    if camera.is_distorted:
        raise ValueError("the camera is distorted; undistort image and depth first and give camera.pinhole()")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if settings.odom_on_lost not in POLICIES:
        raise ValueError(f"odom_on_lost is '{settings.odom_on_lost}'; use one of {', '.join(POLICIES)}")
