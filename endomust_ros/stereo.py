"""Do both cameras of a stereo endoscope agree on metres? Answers of two nodes [m] → scale against the baseline.

Looked at once a second on a thread of low priority; depth never waits for it. Said on /diagnostics, and nothing else is
done with it: whoever wants the metres of the baseline sets scale.factor, which the sentence names.
"""

import time
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from endomust_core.conveyor import NICE
from endomust_core.pipeline import Answer
from endomust_core.stereo_scale import stereo_scale
from endomust_ros.diagnostics import OK, WARN, array_of, status
from endomust_ros.mailbox import Worker

PERIOD = 1.0  # s between two looks
TOGETHER_NS = 5_000_000  # stamps of one pair differ by less
SIGMAS, SHARE = 3.0, 0.05  # a difference beyond both is worth a warning


class StereoCheck:
    """`see(side, answer, baseline)` for every image of both cameras; publishes `stereo` on /diagnostics."""

    def __init__(self, node, name: str, now: Callable[[], float] = time.monotonic):
        self._node, self._name, self._now = node, name, now
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._newest: dict[str, tuple[Answer, float | None]] = {}
        self._next = now()
        self._worker = Worker(self._compare, self._on_failure, name="endomust-stereo", nice=NICE)
        self._worker.start()
        self.last: DiagnosticStatus | None = None

    def see(self, side: str, answer: Answer, baseline: float | None) -> None:
        """Called by the worker of either node. `baseline` [m] is what the side's camera_info says, None for nothing."""
        self._newest[side] = answer, baseline
        left, right = self._newest.get("left"), self._newest.get("right")
        if left is None or right is None or self._now() < self._next:
            return
        if abs(left[0].stamp_ns - right[0].stamp_ns) <= TOGETHER_NS:
            self._next = self._now() + PERIOD
            self._worker.put((left[0], right[0], right[1] or left[1]))

    def close(self) -> None:
        """Stop the thread."""
        self._worker.stop()
        self._node.destroy_publisher(self._publisher)

    def _compare(self, pair) -> None:
        left, right, baseline = pair
        self.last = status(f"{self._name}: stereo", *judged(left, right, baseline))
        self._publisher.publish(array_of(self._node.get_clock().now().to_msg(), [self.last]))

    def _on_failure(self, error: Exception) -> None:
        self._node.get_logger().warning(f"the stereo check failed: {error}")


def judged(left: Answer, right: Answer, baseline: float | None) -> tuple[bytes, str, dict[str, object]]:
    """Level, sentence and values of one pair of answers."""
    if left.camera is None or right.camera is None:
        return WARN, "no calibration: the stereo check needs camera_info of both cameras", {}
    if not baseline:
        return WARN, "camera_info says nothing of the baseline (P[3] is 0); calibrate the pair as stereo", {}
    if left.depth.shape != right.depth.shape:
        return WARN, "the depth images differ in size; use one resolution for both cameras", {}
    found = stereo_scale(left.picture, right.picture, left.depth, left.camera, baseline)
    values = {"baseline [m]": baseline, "matches": found.matches, "scale mode": left.scale.mode}
    if found.factor is None:
        return OK, f"nothing to compare: {found.reason}", values
    values |= {"baseline / predicted": found.factor, "sigma": found.sigma}
    off = found.factor - 1
    if abs(off) > SHARE and abs(off) > SIGMAS * found.sigma * found.factor:
        better = left.scale.factor * found.factor
        sentence = f"depth of the left camera is {_percent(1 / found.factor - 1)} against the baseline"
        return WARN, f"{sentence}; scale.factor {better:.4g} would agree", values
    return OK, f"depth agrees with the baseline to {_percent(off)}", values


def _percent(share: float) -> str:
    return f"{100 * share:+.0f} %"
