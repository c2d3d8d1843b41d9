"""One image message → decode → endomust_core.pipeline → depth, confidence, odometry, TF; on the worker thread.

What is only looked at is handed over to another thread (pictures.py).
"""

import time
from collections.abc import Callable

import numpy as np
from std_msgs.msg import Header

from endomust_core import pipeline as core
from endomust_core.camera import CameraError
from endomust_core.decoding import compressed_size, compressed_to_rgb, stamp_ns
from endomust_core.frames import about_base
from endomust_core.odometry import OdometryState, inverse
from endomust_core.pipeline import Answer, Calibration, Track, depth_facts, seconds
from endomust_ros import messages
from endomust_ros.diagnostics import Statistics, Tally
from endomust_ros.masks import Masks
from endomust_ros.parameters import Parameters, resolution
from endomust_ros.paths import Path
from endomust_ros.pictures import PICTURES, Picture

METRIC = ("depth", "confidence", "depth_info", "odom", "pose", "path", *PICTURES)  # withheld while metres are unknown


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
        hand_over: Callable[[Picture], None],
        scale=None,
    ):
        """`hand_over` takes what is made elsewhere: it must not wait."""
        self.parameters = parameters  # replaced whole when a dynamic parameter changes
        self.seen: dict[str, object] = {}  # facts about the last image, for diagnostics
        self.masks = Masks(tally.note)
        self.path = Path()
        self.snapshots: list[Callable[[Answer], None]] = []  # called once each with the next answer
        self.camera_frame = ""  # of the last image
        self.base = None  # (4, 4) T_camera_base where odometry is about another frame than the camera
        self._core = core.Pipeline(estimator, parameters, calibration, tally.note, scale)
        self._outputs, self._broadcaster = outputs, broadcaster
        self._tally, self._statistics, self._now = tally, statistics, now
        self._hand_over = hand_over
        self._last_stamp: int | None = None
        # Calls `finish` on another thread (mailbox.Follower), so that the networks of the next image begin meanwhile;
        # None: everything happens in `process`.
        self.follower = None
        self._enough = _enough(estimator, parameters)

    def process(self, frame) -> Answer | None:
        """Decode, estimate, publish depth, and leave the rest to `finish`. A frame that cannot be used is counted and
        said, never raised."""
        p, start = self.parameters, time.perf_counter()
        self._core.settings = p
        stamp = stamp_ns(frame.message)
        arrival = self._now() - seconds(stamp)
        if self._is_stale(arrival, p) or not self._is_needed(p):
            return None
        seen = self._look(frame)
        if seen is None:
            return None
        decoded = time.perf_counter() - start - sum(seen.look.timing.values())
        mask = self.masks.at(stamp, p.mask_max_age)
        if self._core.motion_comes_first or (self._last_stamp is not None and stamp <= self._last_stamp):
            self.settle()  # this image touches what the one before still uses
        self._last_stamp = stamp
        answer = self._core.estimate(seen.rgb, stamp, frame.message.header.frame_id, seen, mask)
        header = Header(stamp=frame.message.header.stamp, frame_id=answer.frame_id)
        self.camera_frame = answer.frame_id

        ready = time.perf_counter()
        self._publish_depth(answer, header, p)  # before the pose network runs, where depth does not need it
        durations = {"arrival": arrival, "decode": decoded, "publish": time.perf_counter() - ready}
        rest = answer, header, p, durations
        if self.follower is None:
            self.finish(rest)
        else:
            self.follower.put(rest)
        return answer

    def settle(self) -> None:
        """Return when nothing of an earlier image is in work any more."""
        if self.follower is not None:
            self.follower.settle()

    def finish(self, rest: tuple) -> None:
        """Motion, confidence, and what is published of them."""
        answer, header, p, durations = rest
        state = self._core.move(answer)
        moved = time.perf_counter()
        self._publish_odometry(answer, state, header, p)
        judged = self._judge(answer, p)
        self._publish_confidence(answer, judged, header)
        self._hand_over_pictures(answer, header, p)
        self._take_snapshots(answer)

        durations["publish"] += time.perf_counter() - moved - answer.timing.get("confidence", 0.0)
        self._observe(answer, **durations)

    @property
    def has_motion(self) -> bool:
        """True when the bundle can say how the camera moved."""
        return self._core.has_motion

    @property
    def ended(self) -> bool:
        """True when stamps went back and time.on_jump is shutdown."""
        return self._core.ended

    @property
    def scale(self):
        """Where metres come from (endomust_core/scale.py)."""
        return self._core.scale

    @property
    def scale_jumps(self) -> tuple[int, float | None]:
        """How often the scale of depth jumped from one image to the next, and the ratio of the last time."""
        return self._core.scale_jumps.count, self._core.last_scale_jump

    @property
    def track(self) -> Track:
        """What has happened to the odometry; read by diagnostics."""
        return self._core.track

    def without_base(self) -> str:
        """Why there is no odometry for frames.base."""
        return (
            f"odometry waits for fixed transforms between {self.parameters.frames_base} (frames.base) and "
            f"{self.camera_frame or 'the camera'} on /tf_static; publish them or leave frames.base empty"
        )

    def reset_odometry(self, cause: str) -> str:
        """Start again at the origin; returns what was given up, in numbers."""
        self.path.clear()
        return self._core.reset_odometry(cause)

    def reset(self, cause: str) -> str:
        """Forget all images."""
        self.path.clear()
        return self._core.reset(cause)

    def set_pose(self, T_odom_camera: np.ndarray, covariance: np.ndarray | None) -> str:
        """frames.base, or the camera, is here in frames.odom [m]; go on from there. Raises ValueError."""
        if self.parameters.frames_base:
            if self.base is None:
                raise ValueError(self.without_base())
            T_odom_camera = T_odom_camera @ inverse(self.base)
        self.path.clear()
        return self._core.set_pose(T_odom_camera, covariance)

    # ---- before the estimate ----

    def _is_stale(self, age: float, p: Parameters) -> bool:
        stale = p.input_max_age > 0 and age > p.input_max_age
        if stale:
            self._tally.note("stale", f"image of {age:.3f} s age dropped; input.max_age is {p.input_max_age:g} s")
        return stale

    def _is_needed(self, p: Parameters) -> bool:
        """Odometry needs every image; without it an image is needed while somebody listens."""
        motion = self.has_motion and (p.odom_enable or self.scale.listens)
        needed = motion or self._outputs.anyone() or bool(self.snapshots)
        if not needed:
            self._tally.count("idle")
        return needed

    def _look(self, frame) -> core.Seen | None:
        try:
            rgb, size = self._decoded(frame)
            return self._core.look(rgb, size)
        except messages.ImageError as error:
            self._tally.note("decode", f"image dropped: {error}")
        except CameraError as error:
            self._tally.note("view", f"image dropped: {error}")
        return None

    def _decoded(self, frame) -> tuple[np.ndarray, tuple[int, int] | None]:
        """The picture, and the size of the camera's image where a smaller one is enough."""
        if not frame.compressed:
            return messages.image_to_rgb(frame.message), None
        if self._enough is None:
            return compressed_to_rgb(frame.message), None
        return compressed_to_rgb(frame.message, self._enough), compressed_size(frame.message)

    # ---- after it ----

    def _wanted(self, name: str, answer: Answer) -> bool:
        return self._outputs.wanted(name) and not (answer.withheld and name in METRIC)

    def _publish_depth(self, answer: Answer, header: Header, p: Parameters) -> None:
        if answer.withheld:
            self._tally.note("withheld", f"nothing metric goes out, the scale is not known: {answer.scale.reason}")
        if self._wanted("depth", answer):
            spare = self._outputs.spare("depth")
            if p.depth_encoding == "16UC1":
                message = messages.depth_to_millimetres(answer.depth, header, spare)
            else:
                shown = answer.depth if p.depth_invalid_value == "nan" else np.nan_to_num(answer.depth, nan=0.0)
                message = messages.depth_to_image(shown, header, spare)
            self._outputs.publish("depth", message, keep=True)
        if answer.camera is not None and self._wanted("depth_info", answer):
            self._outputs.publish("depth_info", messages.camera_info_message(answer.camera, header))

    def _publish_odometry(self, answer: Answer, state: OdometryState | None, header: Header, p: Parameters) -> None:
        if state is None or answer.withheld:
            return
        child = header.frame_id
        if p.frames_base:
            if self.base is None:
                self._tally.note("base", self.without_base())
                return
            state, child = about_base(state, self.base), p.frames_base
        if self._wanted("odom", answer):
            self._outputs.publish("odom", messages.odometry_message(state, header.stamp, p.frames_odom, child))
        if self._wanted("pose", answer):
            self._outputs.publish("pose", messages.pose_message(state, header.stamp, p.frames_odom))
        if not state.withheld and self.path.add(answer.stamp_ns, state) and self._wanted("path", answer):
            self._outputs.publish("path", self.path.message(header.stamp, p.frames_odom))
        if self._broadcaster.sends(child, p) and self._core.transform_is_due(answer, state):
            transform = messages.transform_message(state.T_odom_camera, header.stamp, p.frames_odom, child)
            self._broadcaster.send(messages.inverted(transform) if p.tf_invert else transform)

    def _judge(self, answer: Answer, p: Parameters) -> bool:
        """Confidence costs some milliseconds, so it is there for whoever asks."""
        points = self._wanted("points", answer) and p.points_enable
        points = points and (p.points_fields == "xyzrgbc" or p.points_min_confidence > 0)
        wanted = self._wanted("confidence", answer) or points or bool(self.snapshots)
        if wanted:
            self._core.judge(answer)
        return answer.judgement is not None

    def _publish_confidence(self, answer: Answer, judged: bool, header: Header) -> None:
        if judged and self._wanted("confidence", answer):
            message = messages.depth_to_image(answer.confidence, header, self._outputs.spare("confidence"))
            self._outputs.publish("confidence", message, keep=True)

    def _hand_over_pictures(self, answer: Answer, header: Header, p: Parameters) -> None:
        for name in PICTURES:
            if self._wanted(name, answer) and self._is_due(name, answer, p):
                self._hand_over(Picture(name, answer, header, p))

    def _is_due(self, picture: str, answer: Answer, p: Parameters) -> bool:
        if picture == "points":
            return p.points_enable and self._core.cloud_is_due(answer)
        return picture != "compressed_depth" or p.compressed_depth_enable

    def _take_snapshots(self, answer: Answer) -> None:
        while self.snapshots:
            self.snapshots.pop(0)(answer)

    def _observe(self, answer: Answer, **durations: float) -> None:
        """Numbers for diagnostics."""
        share, median = depth_facts(answer.depth)
        depth = {"valid": 100.0 * share} | ({} if median is None else {"median_depth": median})
        self._statistics.add(**durations, **answer.timing, **depth)
        self._statistics.add(age=self._now() - seconds(answer.stamp_ns), finished=time.monotonic())
        rgb = answer.seen.rgb
        self.seen["size"] = f"{rgb.shape[1]}x{rgb.shape[0]}"
        self.seen["camera"] = answer.calibration
        self.seen["view"] = _words(answer.seen.view)
        self.seen["scale"] = answer.scale
        self.seen["judgement"] = answer.judgement
        self._tally.count("answered")


def _words(view) -> str:
    """What is done to the image, for diagnostics."""
    width, height = view.size
    x, y, _, _ = view.roi
    done = [f"{width}x{height} at {x},{y}"] if view.size != view.raw_size else []
    done += ["undistorted"] if view.bends else []
    done += [f"flipped {view.flip}"] if view.flip != "none" else []
    return ", ".join(done) or "as it comes"


def _enough(estimator, p: Parameters) -> tuple[int, int] | None:
    """Width and height that a decoded JPEG must have at least; None where all of it is needed."""
    wanted = resolution(p.depth_resolution)
    if wanted == "input" or p.input_roi:
        return None
    sizes = [spec.size[::-1] for spec in (estimator.bundle.depth, estimator.bundle.pose) if spec is not None]
    if wanted != "network":
        sizes.append(wanted)
    return max(width for width, _ in sizes), max(height for _, height in sizes)
