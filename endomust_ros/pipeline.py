"""One image message → decode → endomust_core.pipeline → depth, odometry, TF; on the worker thread.

What is only looked at is handed over to another thread (pictures.py).
"""

import time
from collections.abc import Callable

import numpy as np
from std_msgs.msg import Header

from endomust_core import pipeline as core
from endomust_core.decoding import compressed_to_rgb, stamp_ns
from endomust_core.pipeline import Answer, Calibration, Track, depth_facts, seconds
from endomust_ros import messages
from endomust_ros.diagnostics import Statistics, Tally
from endomust_ros.parameters import Parameters
from endomust_ros.pictures import PICTURES, Picture


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
    ):
        """`hand_over` takes what is made elsewhere: it must not wait."""
        self.parameters = parameters  # replaced whole when a dynamic parameter changes
        self.seen: dict[str, object] = {}  # facts about the last image, for diagnostics
        self._core = core.Pipeline(estimator, parameters, calibration, tally.note)
        self._outputs, self._broadcaster = outputs, broadcaster
        self._tally, self._statistics, self._now = tally, statistics, now
        self._hand_over = hand_over

    def process(self, frame) -> None:
        """Decode, estimate, publish. A frame that cannot be used is counted and said, never raised."""
        p, start = self.parameters, time.perf_counter()
        stamp = stamp_ns(frame.message)
        arrival = self._now() - seconds(stamp)
        if self._is_stale(arrival, p) or not self._is_needed(p):
            return
        rgb = self._decode(frame)
        if rgb is None:
            return
        decoded = time.perf_counter()
        self._core.settings = p
        answer = self._core.estimate(rgb, stamp, frame.message.header.frame_id)
        ready = time.perf_counter()
        header = Header(stamp=frame.message.header.stamp, frame_id=answer.frame_id)

        self._publish_depth(answer, header, p)  # before the pose network runs
        self._publish_odometry(answer, header, p)
        self._hand_over_pictures(answer, rgb, header, p)

        publish = time.perf_counter() - ready - answer.timing["pose"]
        self._observe(rgb, answer, arrival=arrival, decode=decoded - start, publish=publish)

    @property
    def has_motion(self) -> bool:
        """True when the bundle can say how the camera moved."""
        return self._core.has_motion

    @property
    def track(self) -> Track:
        """What has happened to the odometry; read by diagnostics."""
        return self._core.track

    def reset_odometry(self, cause: str) -> str:
        """Start again at the origin; returns what was given up, in numbers."""
        return self._core.reset_odometry(cause)

    # ---- before the estimate ----

    def _is_stale(self, age: float, p: Parameters) -> bool:
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
            return (compressed_to_rgb if frame.compressed else messages.image_to_rgb)(frame.message)
        except messages.ImageError as error:
            self._tally.note("decode", f"image dropped: {error}")
            return None

    # ---- after it ----

    def _publish_depth(self, answer: Answer, header: Header, p: Parameters) -> None:
        if self._outputs.wanted("depth"):
            shown = answer.depth if p.depth_invalid_value == "nan" else np.nan_to_num(answer.depth, nan=0.0)
            message = messages.depth_to_image(shown, header, self._outputs.spare("depth"))
            self._outputs.publish("depth", message, keep=True)
        if answer.camera is not None and self._outputs.wanted("depth_info"):
            self._outputs.publish("depth_info", messages.camera_info_message(answer.camera, header))

    def _publish_odometry(self, answer: Answer, header: Header, p: Parameters) -> None:
        state = self._core.move(answer)
        if state is None:
            return
        if self._outputs.wanted("odom"):
            message = messages.odometry_message(state, header.stamp, p.frames_odom, header.frame_id)
            self._outputs.publish("odom", message)
        if not self._broadcaster.reason and self._core.transform_is_due(answer, state):
            transform = messages.transform_message(state.T_odom_camera, header.stamp, p.frames_odom, header.frame_id)
            self._broadcaster.send(transform)

    def _hand_over_pictures(self, answer: Answer, rgb: np.ndarray, header: Header, p: Parameters) -> None:
        for name in filter(self._outputs.wanted, PICTURES):
            if self._is_due(name, answer, p):
                self._hand_over(Picture(name, answer, rgb, header, p))

    def _is_due(self, picture: str, answer: Answer, p: Parameters) -> bool:
        if picture == "points":
            return p.points_enable and self._core.cloud_is_due(answer)
        return picture != "compressed_depth" or p.compressed_depth_enable

    def _observe(self, rgb: np.ndarray, answer: Answer, **durations: float) -> None:
        """Numbers for diagnostics."""
        share, median = depth_facts(answer.depth)
        depth = {"valid": 100.0 * share} | ({} if median is None else {"median_depth": median})
        self._statistics.add(**durations, **answer.timing, **depth)
        self._statistics.add(age=self._now() - seconds(answer.stamp_ns), finished=time.monotonic())
        self.seen["size"] = f"{rgb.shape[1]}x{rgb.shape[0]}"
        self.seen["camera"] = answer.calibration
        self._tally.count("answered")
