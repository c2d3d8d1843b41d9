"""One image message → depth [m], odometry, cloud [m], in the order in which they go out. Runs on the worker thread."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from std_msgs.msg import Header

from endomust_core.odometry import Odometry, OdometryState, to_body
from endomust_ros import messages
from endomust_ros.calibration import Calibration
from endomust_ros.diagnostics import Statistics, Tally
from endomust_ros.parameters import Parameters
from endomust_ros.preview import colourise

CLOUD_TOLERANCE = 1e-3  # s; camera stamps jitter, and 10 Hz out of 30 Hz should stay 10 Hz


@dataclass
class Track:
    """What has happened to the odometry; read by diagnostics and by the reset service."""

    state: str = "INIT"
    steps: int = 0
    lost: int = 0
    resets: int = 0
    path: float = 0.0  # m
    sigma: float = 0.0  # m, standard deviation of the position
    transforms: int = 0


class Pipeline:
    """`process(frame)` does everything for one image; `reset_odometry` may be called from another thread."""

    def __init__(
        self,
        estimator,
        parameters: Parameters,
        calibration: Calibration,
        outputs,
        broadcaster,
        tally: Tally,
        statistics: Statistics,
        now: Callable[[], float],
    ):
        self.parameters = parameters  # replaced whole when a dynamic parameter changes
        self.track = Track()
        self.seen: dict[str, object] = {}  # facts about the last image, for diagnostics
        self._estimator, self._calibration = estimator, calibration
        self._outputs, self._broadcaster = outputs, broadcaster
        self._tally, self._statistics, self._now = tally, statistics, now
        self._odometry = Odometry()
        self._odometry_lock = threading.Lock()
        self._last_stamp = self._last_cloud = self._last_transform = None

    def process(self, frame) -> None:
        """Decode, estimate, publish. A frame that cannot be used is counted and said, never raised."""
        p, start = self.parameters, time.perf_counter()
        stamp = seconds(frame.message.header.stamp)
        if self._is_stale(stamp, p) or not self._is_needed(p):
            return
        rgb = self._decode(frame)
        if rgb is None:
            return
        decoded = time.perf_counter()
        self._watch_stamp(stamp)
        header = self._header(frame.message.header, p)
        camera = self._camera(rgb)
        self._estimator.min_depth, self._estimator.max_depth = p.depth_min_range, p.depth_max_range
        estimate = self._estimator.estimate(rgb, p.scale_factor)
        estimated = time.perf_counter()
        grid = _camera_of(camera, estimate.depth)

        self._publish_depth(estimate.depth, grid, header, p)
        if camera is not None:
            self._publish_odometry(estimate.T_prev_curr, stamp, header, p)
            self._publish_cloud(estimate.depth, rgb, grid, stamp, header, p)
        self._publish_pictures(estimate.depth, rgb, header, p)

        self._observe(rgb, estimate, stamp, decode=decoded - start, publish=time.perf_counter() - estimated)

    @property
    def has_motion(self) -> bool:
        """True when the bundle can say how the camera moved."""
        return self._estimator.bundle.pose is not None

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

    # ---- before the estimate ----

    def _is_stale(self, stamp: float, p: Parameters) -> bool:
        age = self._now() - stamp
        stale = p.input_max_age > 0 and age > p.input_max_age
        if stale:
            self._tally.note("stale", f"image of {age:.3f} s age dropped; input.max_age is {p.input_max_age:g} s")
        return stale

    def _is_needed(self, p: Parameters) -> bool:
        """Odometry needs every image; without it an image is needed while somebody listens."""
        needed = (p.odom_enable and self.has_motion) or self._outputs.anyone()
        if not needed:
            self._tally.count("idle")
        return needed

    def _decode(self, frame) -> np.ndarray | None:
        try:
            decode = messages.compressed_to_rgb if frame.compressed else messages.image_to_rgb
            return decode(frame.message)
        except messages.ImageError as error:
            self._tally.note("decode", f"image dropped: {error}")
            return None

    def _watch_stamp(self, stamp: float) -> None:
        """A stamp that goes back means another recording, or the same one again: nothing that was known still holds."""
        last, self._last_stamp = self._last_stamp, stamp
        if last is None or stamp > last:
            return
        if stamp == last:
            self._tally.note(
                "same_stamp", "two images carry one stamp, so there is no speed; let the driver set stamps"
            )
            return
        self._estimator.reset()
        self._last_cloud = self._last_transform = None
        self._tally.note("jump", self.reset_odometry(f"stamps went back by {last - stamp:.3f} s"))

    def _header(self, header, p: Parameters) -> Header:
        """The input's stamp, bit by bit; its frame without the leading slash that tf2 refuses."""
        frame_id = p.frames_camera_optical or header.frame_id
        if frame_id.startswith("/"):
            self._tally.note("slash", f"frame_id '{frame_id}' starts with a slash; '{frame_id.lstrip('/')}' is used")
        elif not frame_id:
            self._tally.note("no_frame", "the images carry no frame_id; set frames.camera_optical to get TF and RViz")
        return Header(stamp=header.stamp, frame_id=frame_id.lstrip("/"))

    def _camera(self, rgb: np.ndarray):
        height, width = rgb.shape[:2]
        camera, reason, sentence = self._calibration.camera_for(width, height)
        self.seen["camera"] = reason or "calibrated"
        if camera is None:
            self._tally.note(reason, f"depth is published, cloud and odometry are not: {sentence}")
        return camera

    # ---- after it ----

    def _publish_depth(self, depth: np.ndarray, grid, header: Header, p: Parameters) -> None:
        if self._outputs.wanted("depth"):
            shown = depth if p.depth_invalid_value == "nan" else np.nan_to_num(depth, nan=0.0)
            message = messages.depth_to_image(shown, header, self._outputs.spare("depth"))
            self._outputs.publish("depth", message, keep=True)
        if grid is not None and self._outputs.wanted("depth_info"):
            self._outputs.publish("depth_info", messages.camera_info_message(grid, header))

    def _publish_odometry(self, T_prev_curr: np.ndarray | None, stamp: float, header: Header, p: Parameters) -> None:
        if not p.odom_enable or not self.has_motion:
            return
        state = to_body(self._step(T_prev_curr, stamp, p))
        if self._outputs.wanted("odom"):
            message = messages.odometry_message(state, header.stamp, p.frames_odom, header.frame_id)
            self._outputs.publish("odom", message)
        newer = self._last_transform is None or stamp > self._last_transform
        if state.state != "LOST" and newer and header.frame_id and not self._broadcaster.reason:
            transform = messages.transform_message(state.T_odom_camera, header.stamp, p.frames_odom, header.frame_id)
            self._broadcaster.send(transform)
            self._last_transform = stamp
            self.track.transforms += 1

    def _step(self, T_prev_curr: np.ndarray | None, stamp: float, p: Parameters) -> OdometryState:
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
            self._tally.note("lost", "the motion between two images is not plausible; the pose is held for this image")
        return state

    def _publish_cloud(self, depth, rgb, grid, stamp: float, header: Header, p: Parameters) -> None:
        if not (p.points_enable and self._outputs.wanted("points") and self._cloud_is_due(stamp, p.points_max_rate)):
            return
        self._last_cloud = stamp
        picture, spare = messages.matched(rgb, depth.shape), self._outputs.spare("points")
        message = messages.cloud_message(depth, picture, grid, header, spare, p.points_stride)
        self._outputs.publish("points", message, keep=True)

    def _cloud_is_due(self, stamp: float, rate: float) -> bool:
        return rate == 0 or self._last_cloud is None or stamp - self._last_cloud >= 1 / rate - CLOUD_TOLERANCE

    def _publish_pictures(self, depth: np.ndarray, rgb: np.ndarray, header: Header, p: Parameters) -> None:
        if self._outputs.wanted("rgb"):
            picture = messages.matched(rgb, depth.shape)
            self._outputs.publish("rgb", messages.rgb_to_image(picture, header, self._outputs.spare("rgb")), keep=True)
        if self._outputs.wanted("color"):
            picture = colourise(depth, p.color_min, p.color_max, p.color_map)
            message = messages.color_to_image(picture, header, self._outputs.spare("color"))
            self._outputs.publish("color", message, keep=True)

    def _observe(self, rgb: np.ndarray, estimate, stamp: float, **durations: float) -> None:
        """Numbers for diagnostics; depth is looked at on a coarse grid, which costs little."""
        sample = estimate.depth[::8, ::8]
        valid = sample[np.isfinite(sample)]
        depth = {"valid": 100.0 * valid.size / sample.size}
        if valid.size:
            depth["median_depth"] = float(np.median(valid))
        self._statistics.add(**durations, **estimate.timing, **depth)
        self._statistics.add(age=self._now() - stamp, finished=time.monotonic())
        self.seen["size"] = f"{rgb.shape[1]}x{rgb.shape[0]}"
        self._tally.count("answered")


def seconds(stamp) -> float:
    return stamp.sec + 1e-9 * stamp.nanosec


def _camera_of(camera, depth: np.ndarray):
    """The camera of the depth grid."""
    height, width = depth.shape
    if camera is None or (camera.width, camera.height) == (width, height):
        return camera
    return camera.resized(width, height)
