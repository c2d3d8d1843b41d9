"""What happens to each image, with ROS or without: rgb → depth [m], camera, odometry, and which outputs are due.

`estimate`, `move` and, where confidence is wanted, `judge` for every image, in their order: depth can go out before the
pose network runs. The node publishes what comes out, replay writes it down; nothing here knows for which of the two.

One thread may `look` at and `estimate` the next image while another is in `move` or `judge` of this one, but not where
`motion_comes_first`, and not for an image whose stamp goes back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter

import cv2
import numpy as np

from endomust_core.calibration import Calibration as Calibration  # an alias of the same name: part of this module too
from endomust_core.camera import Camera
from endomust_core.confidence import Confidence, Judgement
from endomust_core.estimator import Estimator, Look, to_depth
from endomust_core.frames import covariance_from_body, pose_from_body
from endomust_core.odometry import OdometryState, to_body
from endomust_core.scale import Scale, ScaleState
from endomust_core.settings import Settings as Settings
from endomust_core.temporal import ScaleJumps, TemporalFilter
from endomust_core.validity import Border, instrument_mask, specular_mask
from endomust_core.view import View
from endomust_core.visual_odometry import VisualOdometry

CLOUD_TOLERANCE = 1e-3  # s; camera stamps jitter, and 10 Hz out of 30 Hz should stay 10 Hz
ODOMETRY_WIDTH = 320  # px; points are placed better than at the size of the networks, and it still takes 5 ms
COARSE = 8  # every 8th pixel is looked at for the statistics of depth


@dataclass
class Track:
    """What has happened to the odometry since it last started."""

    state: str = "INIT"
    reason: str = ""  # why it is lost
    steps: int = 0
    lost: int = 0
    resets: int = 0
    segment: int = 0  # grows whenever the chain of motions is broken
    keyframe: int = 0
    inliers: int = 0  # tracked points that agree with the motion
    path: float = 0.0  # m
    sigma: float = 0.0  # m, standard deviation of the position
    step_sigma: float = 0.0  # m, of one step
    transforms: int = 0


@dataclass(frozen=True)
class Seen:
    """One image as the networks see it; see `Pipeline.look`."""

    rgb: np.ndarray  # (h,w,3) uint8 as it came
    view: View
    look: Look
    calibration: str  # "calibrated", or the reason why not: no_info | uncalibrated | size
    sentence: str  # that reason in words


@dataclass
class Answer:
    """What is known of one image; `move` and `judge` fill in the rest."""

    stamp_ns: int
    frame_id: str
    seen: Seen
    timing: dict[str, float]  # seconds: preprocess, depth, postprocess; `move` adds pose, `judge` confidence
    scale: ScaleState
    mask: np.ndarray | None  # (h,w) bool at network size, True where instruments are
    depth: np.ndarray = field(default=None)  # (H,W) float32 [m], NaN where invalid; its reader's own
    camera: Camera | None = None  # of the depth grid; None without a usable calibration
    motion: OdometryState | None = None  # in optical axes
    state: OdometryState | None = None  # the same in REP-103 axes, where odometry is on
    judgement: Judgement | None = None
    previous_ns: int | None = None  # stamp of the image before
    border: np.ndarray | None = None  # (h,w) bool at network size, True on the black surround; None: not known yet
    withheld: bool = False  # True where metres are asked for and not known yet: nothing metric may go out
    moved: bool = False

    @property
    def calibration(self) -> str:
        """`calibrated`, or the reason why not."""
        return self.seen.calibration

    @property
    def look(self) -> Look:
        """What the depth network said."""
        return self.seen.look

    @cached_property
    def network_depth(self) -> np.ndarray:
        """(h,w) float32 at network size, network units, NaN where invalid."""
        disparity = self.seen.look.disparity
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where((disparity > 0) & (disparity < np.inf), 1 / disparity, np.nan).astype(np.float32)

    @cached_property
    def picture(self) -> np.ndarray:
        """(H,W,3) uint8 RGB on the grid of the depth image."""
        return self.seen.view.image(self.seen.rgb, self.depth.shape)

    @cached_property
    def confidence(self) -> np.ndarray:
        """(H,W) float32 0..1 on the grid of the depth image, 0 where depth is invalid. Needs `judge` before."""
        height, width = self.depth.shape
        value = cv2.resize(self.judgement.value, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.where(np.isfinite(self.depth), np.clip(value, 0, 1), np.float32(0))


class Pipeline:
    """Remembers the last stamp and the odometry; `reset_odometry` and `set_pose` may be called from another thread.

    `note(reason, sentence)` gets everything that is worth counting and saying: jump, same_stamp, slash, no_frame, lost,
    scale_jump, and the reasons why there is no camera.
    """

    def __init__(
        self,
        estimator: Estimator,
        settings,
        calibration: Calibration,
        note: Callable[[str, str], None],
        scale: Scale | None = None,
    ):
        """`settings` is anything with the fields of Settings; it is replaced whole when one changes."""
        self.settings = settings
        self.track = Track()
        self.estimator = estimator
        self.scale = scale or Scale(settings, estimator.bundle.metric)
        self.scale_jumps, self.last_scale_jump = ScaleJumps(), None
        self._depth_ratio: tuple[int, float] | None = None  # keyframe, and how the last image's depth compares with it
        self.ended = False  # True when stamps went back and the settings say that this is the end
        self._calibration, self._note = calibration, note
        self._odometry = VisualOdometry(settings)
        self._odometry_lock = threading.Lock()
        self._confidence, self._filter, self._border = Confidence(), TemporalFilter(), Border()
        self._last_stamp = self._last_cloud = self._last_transform = self._last_judged = None  # ns
        self._network_grid = estimator.bundle.depth.size  # height, width

    @property
    def has_motion(self) -> bool:
        """True when the bundle can say how the camera moved."""
        return self.estimator.bundle.pose is not None

    def look(self, rgb: np.ndarray, size: tuple[int, int] | None = None) -> Seen:
        """(h,w,3) uint8 RGB → what the networks see and say of it. Raises CameraError where input_roi leaves the image.

        `size` (width, height) is that of the camera's image where a smaller one was decoded. One thread may look at the
        next image while another works on this one.
        """
        height, width = rgb.shape[:2]
        view, reason, sentence = self._calibration.view_for(*(size or (width, height)), self.settings)
        return Seen(rgb, view, self.estimator.look(rgb, view), reason or "calibrated", sentence)

    def estimate(
        self,
        rgb: np.ndarray,
        stamp_ns: int,
        frame_id: str,
        seen: Seen | None = None,
        mask: np.ndarray | None = None,
    ) -> Answer:
        """(H,W,3) uint8 RGB with its stamp and frame → depth and camera. A stamp that went back starts all anew.

        `seen` is what `look(rgb)` gave, where another thread called it ahead. `mask` (H,W) uint8 is 0 where the image
        shows what does not belong to the scene, such as instruments.
        """
        p = self.settings
        previous_ns = self._watch_stamp(stamp_ns)
        frame_id = self._usable_frame(frame_id, p.frames_camera_optical)
        seen = seen or self.look(rgb)
        if seen.sentence:
            self._note(seen.calibration, f"depth is published, cloud and odometry are not: {seen.sentence}")
        self.scale.settings = p
        scale, start = self.scale.now(), perf_counter()
        withheld = p.scale_require_metric and not scale.metric
        timing = seen.look.timing | {"postprocess": 0.0, "pose": 0.0}
        masked = self._masked(seen, mask)
        border = self._border.mask  # as of the image before, until this one's is known
        answer = Answer(stamp_ns, frame_id, seen, timing, scale, masked, previous_ns=previous_ns, withheld=withheld)
        answer.border = border
        factor = self._steadied(answer) if self.motion_comes_first else None
        self.estimator.min_depth, self.estimator.max_depth = p.depth_min_range, p.depth_max_range
        answer.depth = self.estimator.depth(seen.look, seen.view.size, scale.factor, factor)
        answer.camera = _camera_of(seen.view.camera, answer.depth)
        self._invalidate(answer)
        timing["postprocess"] = perf_counter() - start - timing["pose"]
        return answer

    def move(self, answer: Answer) -> OdometryState | None:
        """Where the camera is now, in REP-103 axes; None without calibration or pose network, or when switched off."""
        p = self.settings
        if answer.moved:
            return answer.state
        answer.moved = True
        wanted = p.odom_enable or self.scale.listens or self.motion_comes_first
        if answer.seen.view.camera is None or not self.has_motion or not wanted:
            self.estimator.remember(answer.look)
            return None
        start = perf_counter()
        T_prev_curr, _ = self.estimator.motion(answer.look)
        answer.motion = self._step(answer, T_prev_curr)
        answer.timing["pose"] = perf_counter() - start
        if p.odom_enable:
            answer.state = to_body(answer.motion)
        return answer.state

    def judge(self, answer: Answer) -> Judgement:
        """How far the depth of an image can be trusted; `move` comes before."""
        if answer.judgement is None:
            start = perf_counter()
            before, self._last_judged = self._last_judged, answer.stamp_ns
            known = answer.motion is not None and before is not None and before == answer.previous_ns
            T_prev_curr = answer.motion.T_prev_curr if known else None
            answer.judgement = self._confidence.judge(
                answer.look.image, answer.network_depth, self._small_camera(answer), T_prev_curr, answer.mask
            )
            answer.timing["confidence"] = perf_counter() - start
        return answer.judgement

    def transform_is_due(self, answer: Answer, state: OdometryState) -> bool:
        """True, once, where odom → camera may be sent: not lost, a frame to name, and newer than the last."""
        newer = self._last_transform is None or answer.stamp_ns > self._last_transform
        if state.state == "LOST" or not newer or not answer.frame_id:
            return False
        self._last_transform = answer.stamp_ns
        self.track.transforms += 1
        return True

    def cloud_is_due(self, answer: Answer) -> bool:
        """True, once, where a cloud may be made and `points_max_rate` asks for the next one."""
        if answer.camera is None:
            return False
        rate, stamp, last = self.settings.points_max_rate, seconds(answer.stamp_ns), self._last_cloud
        due = rate == 0 or last is None or stamp - last >= 1 / rate - CLOUD_TOLERANCE
        if due:
            self._last_cloud = stamp
        return due

    def reset_odometry(self, cause: str) -> str:
        """Start again at the origin; returns what was given up, in numbers."""
        with self._odometry_lock:
            old = self.track
            self._odometry.reset()
            self.track = Track(resets=old.resets + 1, transforms=old.transforms, segment=old.segment)
        return (
            f"odometry starts again at the origin ({cause}); given up: {old.steps} steps, path {old.path:.4f} m, "
            f"{old.lost} lost frames; this is reset number {self.track.resets}"
        )

    def set_pose(self, T_odom_camera: np.ndarray, covariance: np.ndarray | None = None) -> str:
        """The camera is here, in REP-103 axes [m]: go on from there; returns a sentence. Raises ValueError."""
        with self._odometry_lock:
            known = None if covariance is None else covariance_from_body(covariance)
            self._odometry.set_pose(pose_from_body(T_odom_camera), known)
            self.track.resets += 1
        x, y, z = T_odom_camera[:3, 3]
        return f"odometry goes on from ({x:.4f}, {y:.4f}, {z:.4f}) m; this is reset number {self.track.resets}"

    def reset(self, cause: str) -> str:
        """Forget all images; returns what was given up, in numbers."""
        self.estimator.reset()
        for part in (self._confidence, self._filter, self._border, self.scale_jumps, self.scale):
            part.reset()
        self._last_stamp = self._last_cloud = self._last_transform = self._last_judged = None
        return self.reset_odometry(cause)

    @property
    def motion_comes_first(self) -> bool:
        """True where depth depends on how the camera moved."""
        return self.settings.depth_temporal_filter > 0 or self.settings.depth_confidence_threshold > 0

    def _watch_stamp(self, stamp_ns: int) -> int | None:
        """The stamp before. One that goes back means another recording, or the same one again."""
        last, self._last_stamp = self._last_stamp, stamp_ns
        if last is None or stamp_ns > last:
            return last
        if stamp_ns == last:
            self._note("same_stamp", "two images carry one stamp, so there is no speed; let the driver set stamps")
            return last
        gone, what = f"stamps went back by {(last - stamp_ns) * 1e-9:.3f} s", self.settings.time_on_jump
        if what == "ignore":
            self._note("jump", f"{gone}, which time.on_jump tells to ignore")
            return last
        self.ended = what == "shutdown"
        self._note("jump", self.reset(gone))
        self._last_stamp = stamp_ns
        return None

    def _usable_frame(self, frame_id: str, given: str) -> str:
        """The frame of the outputs: without the leading slash that tf2 refuses."""
        frame_id = given or frame_id
        if frame_id.startswith("/"):
            self._note("slash", f"frame_id '{frame_id}' starts with a slash; '{frame_id.lstrip('/')}' is used")
        elif not frame_id:
            self._note("no_frame", "the images carry no frame_id; set frames.camera_optical to get TF and RViz")
        return frame_id.lstrip("/")

    def _masked(self, seen: Seen, mask: np.ndarray | None) -> np.ndarray | None:
        """(h,w) bool at network size, True where something is that does not belong to the scene; None: nowhere."""
        try:
            masked = None if mask is None else seen.view.mask(mask, self._network_grid) == 0
        except ValueError as error:
            self._note("mask_size", str(error))
            masked = None
        if self.settings.mask_detect:
            found = instrument_mask(seen.look.image)
            masked = found if masked is None else masked | found
        return masked

    def _steadied(self, answer: Answer) -> np.ndarray | None:
        """(h,w) factor on the depth from the images before; None where nothing is filtered."""
        self.move(answer)
        judgement, strength = self.judge(answer), self.settings.depth_temporal_filter
        if strength <= 0:
            self._filter.reset()
            return None
        T_prev_curr = None if answer.motion is None else answer.motion.T_prev_curr
        camera = self._small_camera(answer)
        return self._filter.apply(answer.network_depth, camera, T_prev_curr, strength, judgement.value)

    def _invalidate(self, answer: Answer) -> None:
        """NaN where the settings, the lens, or the view say that there is no depth."""
        p, depth, look = self.settings, answer.depth, answer.look
        answer.border = self._border.update(look.image)
        bad = answer.border if p.depth_mask_border else None
        if p.depth_mask_specular:
            bad = _either(bad, specular_mask(look.image))
        if p.depth_confidence_threshold > 0:
            bad = _either(bad, answer.judgement.value < p.depth_confidence_threshold)
        _erase(depth, bad)
        seen = answer.seen.view.valid(depth.shape)
        if seen is not None:
            np.copyto(depth, np.nan, where=~seen)

    def _small_camera(self, answer: Answer) -> Camera | None:
        """The camera of the network's grid, None without calibration.

        A lens that `input_undistort` leaves as it is counts as a pinhole, here and in `_odometry_view`: motion and
        confidence are then as wrong as its distortion is large.
        """
        camera, (height, width) = answer.seen.view.camera, self._network_grid
        return None if camera is None else camera.pinhole().resized(width, height)

    def _step(self, answer: Answer, T_prev_curr: np.ndarray | None) -> OdometryState:
        p, stamp = self.settings, seconds(answer.stamp_ns)
        grey, depth, camera, usable = self._odometry_view(answer)
        with self._odometry_lock:
            self._odometry.settings = p
            state = self._odometry.step(
                grey,
                depth,
                camera,
                T_prev_curr,
                stamp,
                answer.scale.factor,
                usable,
                answer.scale.path_sigma or 0.0,
            )
            self._follow(state, answer.scale.factor)
        self._watch_depth(state)
        if state.state == "LOST":
            self._note("lost", f"lost ({state.reason}): the pose is held for this image")
        if state.T_visual is not None and state.state != "LOST":  # a pose that is held says nothing
            self.scale.add_motion(stamp, state.T_visual, state.segment)
        return state

    def _odometry_view(self, answer: Answer) -> tuple[np.ndarray, np.ndarray, Camera, np.ndarray | None]:
        """Grey image (h,w), depth (h,w) [network units], their camera, and (h,w) bool, True where tissue is seen."""
        seen = answer.seen
        width = min(seen.view.size[0], ODOMETRY_WIDTH)
        height = max(round(width * seen.view.size[1] / seen.view.size[0]), 1)
        grey = cv2.cvtColor(seen.view.image(seen.rgb, (height, width)), cv2.COLOR_RGB2GRAY)
        depth = to_depth(seen.look.disparity, width, height)
        usable = seen.view.valid((height, width))
        ignored = self._ignored(answer)
        if ignored is not None:
            tissue = cv2.resize((~ignored).view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
            usable = tissue if usable is None else usable & tissue
        return grey, depth, seen.view.camera.pinhole().resized(width, height), usable

    def _ignored(self, answer: Answer) -> np.ndarray | None:
        """(h,w) bool at network size, True where points would not belong to the tissue."""
        border = answer.border
        if border is None or not border.any():
            return answer.mask
        return border if answer.mask is None else border | answer.mask

    def _watch_depth(self, state: OdometryState) -> None:
        """A network's scale may leap from one image to the next; both are compared with the same keyframe."""
        before, self._depth_ratio = self._depth_ratio, (state.keyframe, state.depth_ratio)
        if state.source != "image" or before is None or before[0] != state.keyframe:
            return
        ratio = state.depth_ratio / before[1]
        if self.scale_jumps.add(ratio):
            self.last_scale_jump = ratio
            self._note("scale_jump", f"the scale of depth jumped by {100 * (ratio - 1):+.0f} % between two images")

    def _follow(self, state: OdometryState, scale: float) -> None:
        """Numbers for diagnostics."""
        track = self.track
        track.state, track.segment = state.state, state.segment
        track.reason = state.reason if state.state == "LOST" else ""
        track.keyframe, track.inliers = state.keyframe, state.inliers
        track.sigma = float(np.sqrt(np.trace(state.pose_covariance[:3, :3])))
        if state.state == "LOST":
            track.lost += 1
        elif state.state == "OK" and state.T_prev_curr is not None:
            track.steps += 1
            track.path += scale * float(np.linalg.norm(state.T_prev_curr[:3, 3]))
        if state.motion_covariance is not None:
            track.step_sigma = scale * float(np.sqrt(np.trace(state.motion_covariance[:3, :3])))


def seconds(stamp_ns: int) -> float:
    """Nanoseconds → seconds, from the two parts of a ROS stamp."""
    whole, nanoseconds = divmod(stamp_ns, 10**9)
    return whole + 1e-9 * nanoseconds


def depth_facts(depth: np.ndarray) -> tuple[float, float | None]:
    """Share of valid pixels (0..1) and median depth [m], None without one; looked up on a coarse grid."""
    sample = depth[::COARSE, ::COARSE]
    valid = sample[np.isfinite(sample)]
    return valid.size / sample.size, float(np.median(valid)) if valid.size else None


def model_facts(estimator: Estimator) -> dict[str, object]:
    """What diagnostics say about the model."""
    bundle = estimator.bundle
    return {
        "bundle": f"{bundle.name} {bundle.version}",
        "digest": bundle.digest,
        **estimator.engines.facts,
        "depth network": "{1}x{0}".format(*bundle.depth.size),
        "pose network": "{1}x{0}".format(*bundle.pose.size) if bundle.pose else "none",
    }


def model_info(estimator: Estimator, version: str) -> dict[str, object]:
    """What goes out once, as JSON on ~/model_info; `version` is that of this software."""
    bundle = estimator.bundle
    facts = {key.replace(" ", "_"): value for key, value in model_facts(estimator).items()}
    return {
        **facts,
        "name": bundle.name,
        "version": bundle.version,
        "range_m": bundle.range_m,
        "metric": bundle.metric,
        "licence": bundle.manifest.get("licence", ""),
        "node_version": version,
    }


def _camera_of(camera: Camera | None, depth: np.ndarray) -> Camera | None:
    """The camera of the depth grid."""
    height, width = depth.shape
    if camera is None or (camera.width, camera.height) == (width, height):
        return camera
    return camera.resized(width, height)


def _either(one: np.ndarray | None, other: np.ndarray) -> np.ndarray:
    return other if one is None else one | other


def _erase(depth: np.ndarray, bad: np.ndarray | None) -> None:
    """NaN into depth (H,W) where bad (h,w) is True."""
    if bad is None or not bad.any():
        return
    height, width = depth.shape
    if bad.shape != depth.shape:
        bad = cv2.resize(bad.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).view(bool)
    np.copyto(depth, np.nan, where=bad)
