"""What the operator sees on /diagnostics: counts, statistics and the tasks input, inference, depth, odometry.

Levels: OK; WARN when something is missing or was rejected; ERROR when images come and nothing usable goes out.
"""

import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from endomust_ros.pictures import PICTURES

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
WINDOW = 300  # images that the statistics look back on
PERCENTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
STAGES = ("arrival", "decode", "preprocess", "depth", "pose", "postprocess", "publish")  # arrival: stamp → work begins
QUIET = 5.0  # s between two log lines that say the same


class Tally:
    """Counts events by reason and logs each kind of sentence at most every QUIET seconds. Safe from every thread."""

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._log, self._clock = log, clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._said: dict[tuple[str, str], float] = {}
        self.last = ""

    def count(self, reason: str) -> None:
        with self._lock:
            self._counts[reason] += 1

    def note(self, reason: str, sentence: str) -> None:
        """Count, and log unless a sentence that differs in numbers only was logged a moment ago."""
        key, now = (reason, re.sub(r"\d+", "#", sentence)), self._clock()
        with self._lock:
            self._counts[reason] += 1
            self.last = sentence
            quiet = now - self._said.get(key, -np.inf) < QUIET
            if not quiet:
                self._said[key] = now
                total = self._counts[reason]
        if not quiet:
            self._log(sentence if total == 1 else f"{sentence} ({reason}: {total} so far)")

    def __getitem__(self, reason: str) -> int:
        with self._lock:
            return self._counts[reason]

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)


class Statistics:
    """The last WINDOW samples of named quantities. Safe from every thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._samples: dict[str, deque[float]] = {}

    def add(self, **values: float) -> None:
        with self._lock:
            for name, value in values.items():
                self._samples.setdefault(name, deque(maxlen=WINDOW)).append(value)

    def percentiles(self, name: str) -> tuple[float, ...] | None:
        """The PERCENTILES, None without a sample."""
        with self._lock:
            samples = list(self._samples.get(name, ()))
        return tuple(np.percentile(samples, tuple(PERCENTILES.values()))) if samples else None

    def last(self, name: str) -> float | None:
        with self._lock:
            samples = self._samples.get(name)
            return samples[-1] if samples else None

    def names(self) -> list[str]:
        with self._lock:
            return list(self._samples)

    def rate(self, name: str) -> float:
        """Events per second from samples that are times [s]; 0 with fewer than two."""
        with self._lock:
            samples = list(self._samples.get(name, ()))
        span = samples[-1] - samples[0] if samples else 0.0
        return (len(samples) - 1) / span if span > 0 else 0.0


def status(name: str, level, sentence: str, values: dict, hardware: str = "") -> DiagnosticStatus:
    """One task; floats are written with four digits."""
    message = DiagnosticStatus(name=name, level=level, message=sentence, hardware_id=hardware)
    message.values = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
    return message


def array_of(stamp, statuses: list) -> DiagnosticArray:
    message = DiagnosticArray(status=statuses)
    message.header.stamp = stamp
    return message


def percentile_values(statistics: Statistics, name: str, label: str, factor: float = 1.0) -> dict[str, float]:
    """{'<label> p50': …, …, '<label> max': …}, empty without a sample."""
    got = statistics.percentiles(name)
    return {} if got is None else {f"{label} {q}": value * factor for q, value in zip(PERCENTILES, got, strict=True)}


def _text(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _against_loss(facts: dict) -> str:
    """What to do about images that are lost on their way."""
    if facts["transport"] == "compressed":
        return "let the camera driver publish reliably, or look for what holds the network up"
    return "start the camera driver with camera.launch.py (raw images need its DDS profile), or take compressed images"


def _if_the_camera_runs(facts: dict) -> str:
    return f"if the camera runs, its images are lost on the way: {_against_loss(facts)}"


# ---- the four tasks -------------------------------------------------------------------------------------------------


class Reporter:
    """Builds the four statuses; a level is about the time since the last report, whose counts are remembered."""

    def __init__(
        self, node_name: str, tally: Tally, statistics: Statistics, clock: Callable[[], float] = time.monotonic
    ):
        self._name, self._tally, self._statistics, self._clock = node_name, tally, statistics, clock
        self._before: dict[str, int] = {}
        self._started = clock()

    def idle(self, state: str) -> list[DiagnosticStatus]:
        """What is said while the node does not work on images."""
        self._started = self._clock()
        return [self._status(task, OK, state, {}) for task in ("input", "inference", "depth", "odometry")]

    def active(self, inputs, pipeline, model: dict, broadcaster, scheduling) -> list[DiagnosticStatus]:
        """The four tasks of a node that works on images."""
        counts = self._tally.counts()
        recent = {reason: count - self._before.get(reason, 0) for reason, count in counts.items()}
        self._before = counts
        return [
            self._input(inputs, pipeline, counts, recent),
            self._inference(model, scheduling, counts, recent),
            self._depth(pipeline, recent),
            self._odometry(pipeline, broadcaster, counts, recent),
        ]

    def _input(self, inputs, pipeline, counts: dict, recent: dict) -> DiagnosticStatus:
        facts = inputs.describe()
        answered = self._statistics.last("finished") or 0.0
        silence = self._clock() - max(answered, self._started)
        got = recent.get("received", 0)
        rejected = recent.get("decode", 0)
        camera = pipeline.seen.get("camera", "unknown")
        loss = inputs.gaps.loss()
        if rejected and not recent.get("answered"):
            level, sentence = ERROR, f"no image can be used: {self._tally.last}"
        elif rejected:
            level, sentence = WARN, f"{rejected} of {got} images dropped: {self._tally.last}"
        elif not facts["publishers"]:
            level, sentence = WARN, f"nobody publishes {facts['topic']}; start the camera driver or remap image"
        elif silence > pipeline.parameters.input_timeout and not got:
            level, sentence = WARN, f"no image for {silence:.1f} s on {facts['topic']}; {_if_the_camera_runs(facts)}"
        elif recent.get("jump"):
            level, sentence = WARN, f"stamps went back, everything started again (jump number {counts['jump']})"
        elif camera not in ("calibrated", "unknown"):
            level, sentence = WARN, f"no calibration in use ({camera}): depth only, no cloud and no odometry"
        elif loss.serious:
            level, sentence = WARN, f"{loss.percent:.0f} % of the images never arrived; {_against_loss(facts)}"
        else:
            level, sentence = OK, "receiving"
        values = {
            **facts,
            "size": pipeline.seen.get("size", "-"),
            "camera": camera,
            "received": counts.get("received", 0),
            "answered": counts.get("answered", 0),
            **{f"dropped {reason}": counts.get(reason, 0) for reason in ("busy", "stale", "decode", "idle")},
            **{f"without camera: {reason}": counts.get(reason, 0) for reason in ("no_info", "uncalibrated", "size")},
            "period [s]": loss.period or "-",
            "missing": loss.missing,
            "transport loss [%]": "-" if loss.percent is None else loss.percent,
            "stamp jumps": counts.get("jump", 0),
            "same stamps": counts.get("same_stamp", 0),
            "silence [s]": silence,
            **percentile_values(self._statistics, "age", "age [s]"),
            "last fault": self._tally.last or "-",
        }
        return self._status("input", level, sentence, values)

    def _inference(self, model: dict, scheduling, counts: dict, recent: dict) -> DiagnosticStatus:
        values = {**model, "failures": counts.get("failure", 0), "rate [Hz]": self._statistics.rate("finished")}
        values["scheduling"] = scheduling.describe()
        values |= {f"skipped {picture}": counts.get(f"skipped {picture}", 0) for picture in PICTURES}
        for stage in (*STAGES, *PICTURES):
            values |= percentile_values(self._statistics, stage, f"{stage} [ms]", 1e3)
        if recent.get("failure"):
            level = WARN if recent.get("answered") else ERROR
            return self._status("inference", level, f"{recent['failure']} images failed: {self._tally.last}", values)
        if scheduling.problems:
            return self._status("inference", WARN, scheduling.describe(), values)
        return self._status("inference", OK, f"{model['bundle']} on {model['provider']}", values)

    def _depth(self, pipeline, recent: dict) -> DiagnosticStatus:
        p, valid = pipeline.parameters, self._statistics.last("valid")
        values = {
            "range [m]": f"{p.depth_min_range:g} to {p.depth_max_range:g}",
            "scale factor": p.scale_factor,
            "valid [%]": valid if valid is not None else "-",
            "median [m]": self._statistics.last("median_depth") or "-",
        }
        if valid is None or not recent.get("answered"):
            return self._status("depth", OK, "no new image", values)
        if valid < 1.0:
            hint = "nearly no depth lies between depth.min_range and depth.max_range; check them and scale.factor"
            return self._status("depth", WARN, hint, values)
        return self._status("depth", OK, f"{valid:.0f} % of the pixels have depth", values)

    def _odometry(self, pipeline, broadcaster, counts: dict, recent: dict) -> DiagnosticStatus:
        track = pipeline.track
        values = {
            "state": track.state,
            "steps": track.steps,
            "lost": track.lost,
            "resets": track.resets,
            "path [m]": track.path,
            "position sigma [m]": track.sigma,
            "transforms sent": track.transforms,
            "TF": f"off: {broadcaster.reason}" if broadcaster.reason else "on",
        }
        if not pipeline.parameters.odom_enable:
            return self._status("odometry", OK, "odom.enable is false", values)
        if not pipeline.has_motion:
            return self._status("odometry", OK, "the bundle has no pose network, so there is no odometry", values)
        if recent.get("lost"):
            return self._status("odometry", WARN, f"lost for {recent['lost']} images, the pose is held", values)
        if recent.get("jump"):
            return self._status("odometry", WARN, f"reset number {track.resets}: stamps went back", values)
        off = f", TF is off: {broadcaster.reason}" if broadcaster.reason else ""
        return self._status("odometry", OK, track.state + off, values)

    def _status(self, task: str, level, sentence: str, values: dict) -> DiagnosticStatus:
        return status(f"{self._name}: {task}", level, sentence, values)
