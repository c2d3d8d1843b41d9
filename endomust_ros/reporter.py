"""What the operator sees on /diagnostics: the tasks input, inference, depth, odometry, device and memory.

Levels: OK; WARN when something is missing or was rejected; ERROR when images come and nothing usable goes out. Each is
about the time since the last report. docs/ros.md lists the thresholds.
"""

import math
import time
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticStatus

from endomust_ros import machine
from endomust_ros.diagnostics import ERROR, OK, WARN, Statistics, Tally, percentile_values, status
from endomust_ros.pictures import PICTURES

# arrival: stamp → work begins
STAGES = ("arrival", "decode", "preprocess", "depth", "pose", "postprocess", "confidence", "publish")
DROPPED = ("busy", "stale", "rate", "paused", "decode", "view", "idle", "stopped")
REJECTED = ("decode", "view")  # images that nothing can be done with
BY_REASON = ("mask_old", "mask_encoding", "mask_decode", "mask_size", "pose", "set_pose")  # other messages not used
WITHOUT_CAMERA = ("no_info", "uncalibrated", "size")
LATE = 10  # images replaced by newer ones since the last report that make an overload
SLOW = 0.9  # of input.expected_rate
FEW_VALID = 1.0  # % of pixels


class Reporter:
    """Builds the statuses; the counts of the last report are remembered."""

    def __init__(
        self, node_name: str, tally: Tally, statistics: Statistics, clock: Callable[[], float] = time.monotonic
    ):
        self._name, self._tally, self._statistics, self._clock = node_name, tally, statistics, clock
        self._before: dict[str, int] = {}
        self._born = self._started = clock()

    def idle(self, state: str) -> list[DiagnosticStatus]:
        """What is said while the node does not work on images."""
        self._started = self._clock()
        tasks = [self._status(task, OK, state, {}) for task in ("input", "inference", "depth", "odometry", "device")]
        return [*tasks, self._memory()]

    def active(self, inputs, pipeline, model: dict, transforms, scheduling, accelerator, paused) -> list:
        """The tasks of a node that works on images."""
        counts = self._tally.counts()
        recent = {reason: count - self._before.get(reason, 0) for reason, count in counts.items()}
        self._before = counts
        return [
            self._input(inputs, pipeline, counts, recent, paused),
            self._inference(model, scheduling, counts, recent),
            self._depth(pipeline, counts, recent),
            self._odometry(pipeline, transforms, recent),
            self._device(model, accelerator),
            self._memory(),
        ]

    def _input(self, inputs, pipeline, counts: dict, recent: dict, paused: bool) -> DiagnosticStatus:
        facts, loss, camera = inputs.describe(), inputs.gaps.loss(), pipeline.seen.get("camera", "unknown")
        silence = self._clock() - max(self._statistics.last("finished") or 0.0, self._started)
        level, sentence = self._input_level(inputs, pipeline, facts, counts, recent, silence, paused)
        values = {
            **facts,
            "size": pipeline.seen.get("size", "-"),
            "camera": camera,
            "view": pipeline.seen.get("view", "-"),
            "received": counts.get("received", 0),
            "answered": counts.get("answered", 0),
            **{f"dropped {reason}": counts.get(reason, 0) for reason in DROPPED},
            **{f"without camera: {reason}": counts.get(reason, 0) for reason in WITHOUT_CAMERA},
            **{f"not used: {reason}": counts.get(reason, 0) for reason in BY_REASON},
            "withheld": counts.get("withheld", 0),
            "period [s]": loss.period or "-",
            "missing": loss.missing,
            "transport loss [%]": "-" if loss.percent is None else loss.percent,
            "stamp jumps": counts.get("jump", 0),
            "clock jumps": counts.get("clock_jump", 0),
            "same stamps": counts.get("same_stamp", 0),
            "silence [s]": silence,
            **percentile_values(self._statistics, "age", "age [s]"),
            "last fault": self._tally.last or "-",
        }
        return self._status("input", level, sentence, values)

    def _input_level(self, inputs, pipeline, facts, counts, recent, silence, paused):
        """The first thing that is wrong, the worst before the others."""
        p, loss, got = pipeline.parameters, inputs.gaps.loss(), recent.get("received", 0)
        rejected, camera = sum(recent.get(reason, 0) for reason in REJECTED), pipeline.seen.get("camera", "unknown")
        rate = self._statistics.rate("finished")
        if paused:
            return WARN, "paused by service; call ~/pause with false to go on"
        if rejected and not recent.get("answered"):
            return ERROR, f"no image can be used: {self._tally.last}"
        if rejected:
            return WARN, f"{rejected} of {got} images dropped: {self._tally.last}"
        if not facts["publishers"]:
            return WARN, f"nobody publishes {facts['topic']}; start the camera driver or remap image"
        if inputs.incompatible:
            return WARN, next(iter(inputs.incompatible.values()))
        if silence > p.input_timeout and not got:
            where = f"{facts['topic']}, published by {facts['published by']}"
            return WARN, f"no image for {silence:.1f} s on {where}; {_if_the_camera_runs(facts)}"
        if recent.get("jump") or recent.get("clock_jump"):
            return WARN, f"time went back, everything started again (jump number {counts.get('jump', 0)})"
        if camera not in ("calibrated", "unknown"):
            return WARN, f"no calibration in use ({camera}): depth only, no cloud and no odometry"
        if loss.serious:
            return WARN, f"{loss.percent:.0f} % of the images never arrived; {_against_loss(facts)}"
        if 0 < rate < SLOW * p.input_expected_rate:
            return WARN, f"{rate:.1f} images a second, {p.input_expected_rate:g} are expected (input.expected_rate)"
        unused = [reason for reason in BY_REASON if recent.get(reason)]
        if unused:
            return WARN, f"{recent[unused[0]]} messages not used ({unused[0]}): {self._tally.last}"
        return OK, "receiving"

    def _inference(self, model: dict, scheduling, counts: dict, recent: dict) -> DiagnosticStatus:
        overload = recent.get("busy", 0) >= LATE
        values = {**model, "failures": counts.get("failure", 0), "rate [Hz]": self._statistics.rate("finished")}
        values |= {"overload": overload, "scheduling": scheduling.describe()}
        values |= {f"skipped {picture}": counts.get(f"skipped {picture}", 0) for picture in PICTURES}
        for stage in (*STAGES, *PICTURES):
            values |= percentile_values(self._statistics, stage, f"{stage} [ms]", 1e3)
        if recent.get("failure"):
            level = WARN if recent.get("answered") else ERROR
            return self._status("inference", level, f"{recent['failure']} images failed: {self._tally.last}", values)
        if scheduling.problems:
            return self._status("inference", WARN, scheduling.describe(), values)
        if overload:
            hint = "take a smaller model, depth.resolution network, input.max_rate, or a faster provider"
            late = f"overload: {recent['busy']} images were replaced by newer ones; {hint}"
            return self._status("inference", WARN, late, values)
        return self._status("inference", OK, f"{model['bundle']} on {model['provider']}", values)

    def _depth(self, pipeline, counts: dict, recent: dict) -> DiagnosticStatus:
        p, valid, (jumps, last_jump) = pipeline.parameters, self._statistics.last("valid"), pipeline.scale_jumps
        scale, judgement = pipeline.scale.now(), pipeline.seen.get("judgement")
        values = {
            "range [m]": f"{p.depth_min_range:g} to {p.depth_max_range:g}",
            "scale mode": scale.mode,
            "scale factor": scale.factor,
            "scale sigma [%]": "-" if scale.sigma is None else 100 * scale.sigma,
            "metric": scale.metric,
            "scale": scale.reason,
            **_robot(pipeline.scale),
            "scale jumps": jumps,
            "last scale jump [%]": "-" if last_jump is None else 100 * (last_jump - 1),
            "valid [%]": valid if valid is not None else "-",
            "median [m]": self._statistics.last("median_depth") or "-",
            "confidence mean": "-" if judgement is None else float(judgement.value.mean()),
            **({} if judgement is None else {f"{name} [%]": 100 * v for name, v in judgement.shares.items()}),
        }
        if recent.get("withheld"):
            sentence = f"withheld, metres are not known: {scale.reason} (scale.require_metric)"
            return self._status("depth", ERROR, sentence, values)
        if valid is None or not recent.get("answered"):
            return self._status("depth", OK, "no new image", values)
        if valid < FEW_VALID:
            hint = "nearly no depth lies between depth.min_range and depth.max_range; check them and scale.factor"
            return self._status("depth", WARN, hint, values)
        if recent.get("scale_jump"):
            sentence = f"the scale of depth jumped {recent['scale_jump']} times; see depth.temporal_filter"
            return self._status("depth", WARN, sentence, values)
        if scale.mode == "kinematic" and not scale.metric:
            return self._status("depth", WARN, f"the scale is not locked: {scale.reason}", values)
        return self._status("depth", OK, f"{valid:.0f} % of the pixels have depth", values)

    def _odometry(self, pipeline, transforms, recent: dict) -> DiagnosticStatus:
        track = pipeline.track
        values = {
            "state": track.state,
            "why lost": track.reason or "-",
            "steps": track.steps,
            "lost": track.lost,
            "resets": track.resets,
            "segment": track.segment,
            "keyframe": track.keyframe,
            "points that agree": track.inliers,
            "path [m]": track.path,
            "position sigma [m]": track.sigma,
            "step sigma [m]": track.step_sigma,
            "transforms sent": track.transforms,
            "TF": f"off: {transforms.reason}" if transforms.reason else "on",
        }
        if not pipeline.parameters.odom_enable:
            return self._status("odometry", OK, "odom.enable is false", values)
        if not pipeline.has_motion:
            return self._status("odometry", OK, "the bundle has no pose network, so there is no odometry", values)
        if recent.get("lost"):
            sentence = f"lost for {recent['lost']} images ({track.reason}), the pose is held"
            return self._status("odometry", WARN, sentence, values)
        if recent.get("jump") or recent.get("clock_jump"):
            return self._status("odometry", WARN, f"reset number {track.resets}: time went back", values)
        if recent.get("base"):
            return self._status("odometry", WARN, pipeline.without_base(), values)
        off = f", TF is off: {transforms.reason}" if transforms.reason else ""
        conflict = "already has the parent" in transforms.reason
        return self._status("odometry", WARN if conflict else OK, track.state + off, values)

    def _device(self, model: dict, accelerator) -> DiagnosticStatus:
        facts = accelerator.facts()
        values = {"provider": model["provider"], **facts, **machine.processor()}
        return self._status("device", OK, str(facts.get("GPU", "the processor")), values)

    def _memory(self) -> DiagnosticStatus:
        facts = machine.memory()
        values = {**facts, "up [s]": self._clock() - self._born}
        resident = facts["resident [MB]"]
        sentence = f"{resident:.0f} MB resident" if isinstance(resident, float) else "not known on this system"
        return self._status("memory", OK, sentence, values)

    def _status(self, task: str, level, sentence: str, values: dict) -> DiagnosticStatus:
        return status(f"{self._name}: {task}", level, sentence, values)


def _robot(scale) -> dict[str, object]:
    """What the robot's poses say of scale, while they are asked."""
    found = scale.estimate
    if found is None:
        return {}
    sigma = "-" if found.sigma is None else f"{found.sigma:.2%}"
    return {
        "kinematic": f"{found.state}: {found.factor:.5g} ± {sigma}" if found.factor else found.state,
        "kinematic pairs": found.pairs,
        "kinematic baseline [m]": found.baseline,
        "kinematic delay [s]": found.delay,
        "kinematic axes off [deg]": math.degrees(found.axes_angle),
        "kinematic locks given up": found.jumps,
    }


def _against_loss(facts: dict) -> str:
    """What to do about images that are lost on their way."""
    if facts["transport"] == "compressed":
        return "let the camera driver publish reliably, or look for what holds the network up"
    return "start the camera driver with camera.launch.py (raw images need its DDS profile), or take compressed images"


def _if_the_camera_runs(facts: dict) -> str:
    return f"if the camera runs, its images are lost on the way: {_against_loss(facts)}"
