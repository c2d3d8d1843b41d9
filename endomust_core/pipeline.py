"""What happens to each image, with ROS or without: rgb → depth [m], camera, odometry, and which outputs are due.

`estimate` then `move` for every image, in the order of the images: depth can go out before the pose network runs. The
node publishes what comes out, replay writes it down; nothing here knows which of the two it works for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from endomust_core.camera import Camera, CameraError
from endomust_core.decoding import camera_from_info
from endomust_core.estimator import Estimator, Look
from endomust_core.odometry import Odometry, OdometryState, to_body

CLOUD_TOLERANCE = 1e-3  # s; camera stamps jitter, and 10 Hz out of 30 Hz should stay 10 Hz
COARSE = 8  # every 8th pixel is looked at for the statistics of depth


@dataclass(frozen=True)
class Settings:
    """What may be set; the node's parameters have fields of the same names and these defaults."""

    depth_min_range: float = 0.003  # m; nearer depth is invalid
    depth_max_range: float = 0.5  # m
    scale_factor: float = 1.0  # multiplies depth and translation
    odom_enable: bool = True
    odom_max_translation: float = 0.02  # m from one image to the next; more counts as lost
    odom_max_rotation: float = 0.35  # rad
    frames_odom: str = "odom"
    frames_camera_optical: str = ""  # empty: the frame_id of the image
    points_max_rate: float = 10.0  # clouds per second of image time; 0 is one for every image


@dataclass
class Track:
    """What has happened to the odometry since it last started."""

    state: str = "INIT"
    steps: int = 0
    lost: int = 0
    resets: int = 0
    path: float = 0.0  # m
    sigma: float = 0.0  # m, standard deviation of the position
    transforms: int = 0


@dataclass(frozen=True)
class Answer:
    """What is known of one image before the odometry has moved."""

    stamp_ns: int
    frame_id: str
    depth: np.ndarray  # (H,W) float32 [m], NaN where invalid; its reader's own
    look: Look  # for `move`
    timing: dict[str, float]  # seconds: preprocess, depth, postprocess; `move` adds pose
    camera: Camera | None  # of the depth grid; None without a usable calibration
    calibration: str  # "calibrated", or the reason why not: no_info | uncalibrated | size


class Pipeline:
    """Remembers the last stamp and the odometry; `reset_odometry` may be called from another thread.

    `note(reason, sentence)` gets everything that is worth counting and saying: jump, same_stamp, slash, no_frame, lost,
    and the reasons why there is no camera.
    """

    def __init__(self, estimator: Estimator, settings, calibration: Calibration, note: Callable[[str, str], None]):
        self.settings = settings  # replaced whole when one changes; anything with the fields of Settings
        self.track = Track()
        self.estimator = estimator
        self._calibration, self._note = calibration, note
        self._odometry = Odometry()
        self._odometry_lock = threading.Lock()
        self._last_stamp = self._last_cloud = self._last_transform = None  # ns

    @property
    def has_motion(self) -> bool:
        """True when the bundle can say how the camera moved."""
        return self.estimator.bundle.pose is not None

    def estimate(self, rgb: np.ndarray, stamp_ns: int, frame_id: str, look: Look | None = None) -> Answer:
        """(H,W,3) uint8 RGB with its stamp and frame → depth and camera. A stamp that went back starts all anew.

        `look` is what the estimator's `look(rgb)` gave, where another thread called it ahead.
        """
        p = self.settings
        self._watch_stamp(stamp_ns)
        frame_id = self._usable_frame(frame_id, p.frames_camera_optical)
        camera, calibration = self._camera(rgb)
        self.estimator.min_depth, self.estimator.max_depth = p.depth_min_range, p.depth_max_range
        look = look or self.estimator.look(rgb)
        start = perf_counter()
        depth = self.estimator.depth(rgb, look, p.scale_factor)
        timing = look.timing | {"postprocess": perf_counter() - start, "pose": 0.0}
        return Answer(stamp_ns, frame_id, depth, look, timing, _camera_of(camera, depth), calibration)

    def move(self, answer: Answer) -> OdometryState | None:
        """Where the camera is now, in REP-103 axes; None without calibration or pose network, or when switched off."""
        p = self.settings
        if answer.camera is None or not p.odom_enable or not self.has_motion:
            self.estimator.remember(answer.look)
            return None
        start = perf_counter()
        T_prev_curr, _ = self.estimator.motion(answer.look, p.scale_factor)
        answer.timing["pose"] = perf_counter() - start
        return to_body(self._step(T_prev_curr, seconds(answer.stamp_ns), p))

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
            self.track = Track(resets=old.resets + 1, transforms=old.transforms)
        return (
            f"odometry starts again at the origin ({cause}); given up: {old.steps} steps, path {old.path:.4f} m, "
            f"{old.lost} lost frames; this is reset number {self.track.resets}"
        )

    def _watch_stamp(self, stamp_ns: int) -> None:
        """A stamp that goes back means another recording, or the same one again: nothing that was known still holds."""
        last, self._last_stamp = self._last_stamp, stamp_ns
        if last is None or stamp_ns > last:
            return
        if stamp_ns == last:
            self._note("same_stamp", "two images carry one stamp, so there is no speed; let the driver set stamps")
            return
        self.estimator.reset()
        self._last_cloud = self._last_transform = None
        self._note("jump", self.reset_odometry(f"stamps went back by {(last - stamp_ns) * 1e-9:.3f} s"))

    def _usable_frame(self, frame_id: str, given: str) -> str:
        """The frame of the outputs: without the leading slash that tf2 refuses."""
        frame_id = given or frame_id
        if frame_id.startswith("/"):
            self._note("slash", f"frame_id '{frame_id}' starts with a slash; '{frame_id.lstrip('/')}' is used")
        elif not frame_id:
            self._note("no_frame", "the images carry no frame_id; set frames.camera_optical to get TF and RViz")
        return frame_id.lstrip("/")

    def _camera(self, rgb: np.ndarray) -> tuple[Camera | None, str]:
        height, width = rgb.shape[:2]
        camera, reason, sentence = self._calibration.camera_for(width, height)
        if camera is None:
            self._note(reason, f"depth is published, cloud and odometry are not: {sentence}")
        return camera, reason or "calibrated"

    def _step(self, T_prev_curr: np.ndarray | None, stamp: float, p) -> OdometryState:
        with self._odometry_lock:
            self._odometry.max_translation, self._odometry.max_rotation = p.odom_max_translation, p.odom_max_rotation
            state, track = self._odometry.step(T_prev_curr, stamp), self.track
            track.state = state.state
            track.sigma = float(np.sqrt(np.trace(state.pose_covariance[:3, :3])))
            if state.state == "OK":
                track.steps += 1
                track.path += float(np.linalg.norm(T_prev_curr[:3, 3]))
        if state.state == "LOST":
            track.lost += 1
            self._note("lost", "the motion between two images is not plausible; the pose is held for this image")
        return state


class Calibration:
    """Newest CameraInfo → Camera [pixels] for an image of a certain size, or the reason why there is none.

    `update` may be called from another thread than `camera_for`: both see one tuple that is replaced whole.
    """

    def __init__(self, rectified: bool = False):
        """`rectified` takes P of camera_info instead of K and D."""
        self._rectified = rectified
        self._key = None
        self._known: tuple[Camera | None, str] = (None, "")

    def hold(self, camera: Camera) -> None:
        """Take a camera from elsewhere."""
        self._known = camera, ""

    def update(self, message) -> None:
        """Take a CameraInfo; one that says the same as the last costs next to nothing."""
        key = _key(message)
        if key == self._key:
            return
        try:
            self._known = camera_from_info(message, self._rectified), ""
        except CameraError as error:
            self._known = None, str(error)
        self._key = key

    def camera_for(self, width: int, height: int) -> tuple[Camera | None, str, str]:
        """(camera, "", "") or (None, reason, sentence) for an image of this size."""
        camera, problem = self._known
        if camera is not None and (camera.width, camera.height) == (width, height):
            return camera, "", ""
        if camera is not None:
            return (
                None,
                "size",
                (
                    f"the image is {width}x{height}, camera_info is for {camera.width}x{camera.height}; "
                    "publish the camera_info of this stream"
                ),
            )
        if problem:
            return None, "uncalibrated", problem
        return None, "no_info", "no camera_info has come yet; publish it beside the image or remap camera_info"


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


def _key(message) -> tuple:
    roi = message.roi
    return (
        message.width,
        message.height,
        message.distortion_model,
        bytes(memoryview(message.k)),
        bytes(memoryview(message.p)),
        tuple(message.d),
        message.binning_x,
        message.binning_y,
        roi.x_offset,
        roi.y_offset,
        roi.width,
        roi.height,
    )
