"""One run of the demo → its headline numbers in words and its page; times are monotonic seconds, stamps nanoseconds."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from endomust_core import report
from endomust_core.resources import versions
from endomust_core.results import Results
from endomust_ros.player import Played
from endomust_ros.process import ProcessUse


@dataclass
class Run:
    """What was measured while the recording played."""

    image_topic: str
    played: Played
    use: ProcessUse
    sent: dict[int, float] = field(default_factory=dict)  # header stamp [ns] → monotonic time before publishing [s]
    depth_at: dict[int, float] = field(default_factory=dict)  # header stamp [ns] → arrival [s]
    odom_at: dict[int, float] = field(default_factory=dict)
    dropped: int = 0  # messages the disk was too slow for
    model: dict = field(default_factory=dict)

    def share(self, answers: dict[int, float]) -> float:
        """Share of the images sent that have an answer with their stamp."""
        return sum(stamp in answers for stamp in self.sent) / len(self.sent) if self.sent else 0.0

    def latencies(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds since the first image, and latency [s], of every answered image."""
        answered = sorted(stamp for stamp in self.sent if stamp in self.depth_at)
        start = min(self.sent.values(), default=0.0)
        times = np.array([self.sent[s] - start for s in answered])
        return times, np.array([self.depth_at[s] - self.sent[s] for s in answered])


def table(run: Run, results: Results) -> list[tuple[str, str]]:
    """Headline numbers in words, for the terminal and the report."""
    _, latency = run.latencies()
    rows = [
        ("images played", f"{len(run.sent)} in {run.played.seconds:.1f} s"),
        ("answered with depth", f"{_count(run, run.depth_at)} ({run.share(run.depth_at):.1%})"),
        ("answered with odometry", f"{_count(run, run.odom_at)} ({run.share(run.odom_at):.1%})"),
        ("latency", _percentiles(latency)),
        ("node", f"{run.use.cpu_percent():.0f} % of one core, at most {run.use.peak_mb:.0f} MB of memory"),
        ("pixels with depth", f"{np.mean(results.valid):.1%}" if results.valid else "none"),
        ("depth, AbsRel", _depth_words(results)),
        ("trajectory, ATE", _trajectory_words(results)),
        ("pacing of the player", f"95 % of messages at most {run.played.late_p95() * 1e3:.1f} ms late"),
    ]
    if run.dropped:
        rows.append(("not recorded", f"{run.dropped} messages: the disk is too slow"))
    return rows


def demo_page(source: Path, run: Run, results: Results, command: str) -> str:
    """The report of one run."""
    times, latency = run.latencies()
    seconds = [results.seconds(s) for s in results.depth_stamps]
    model = f"{run.model.get('name')} {run.model.get('version')}"
    today = datetime.date.today().isoformat()
    sections = [
        report.headline(_cards(run, results, latency)),
        _frames_section(results),
        _cloud_section(results),
        _trajectory_section(results),
        report.latency_section(latency, times, "From just before an image is published until its depth arrives here."),
        report.valid_section(np.array(seconds), np.array(results.valid)),
        report.table_section("Numbers", table(run, results)),
        report.environment_section(_environment(run, source, command)),
    ]
    subtitle = f"{source.name}, model {model} on {run.model.get('provider')}, {today}"
    return report.page("EndoMUST demo", subtitle, sections)


def _cards(run: Run, results: Results, latency: np.ndarray) -> list[tuple[str, str, str]]:
    cards = [(f"{run.share(run.depth_at):.1%}", "answered with depth", f"{len(run.sent)} images in real time")]
    if latency.size:
        p50, p95 = np.percentile(latency, (50, 95)) * 1e3
        cards.append((f"{p95:.0f} ms", "latency p95", f"median {p50:.0f} ms"))
    cards.append((f"{run.use.cpu_percent():.0f} %", "of one core", "processor time of the node"))
    if results.depth_mean:
        scored = f"{len(results.depth_scores)} frames, median-scaled"
        cards.append((f"{results.depth_mean['abs_rel']:.3f}", "AbsRel", scored))
    trajectory = results.trajectory
    if trajectory is not None and trajectory.truth is not None:
        path = f"path {trajectory.path * 1e3:.0f} mm, aligned with scale"
        cards.append((f"{trajectory.ate * 1e3:.2f} mm", "trajectory error", path))
    return cards


def _frames_section(results: Results) -> str:
    """Depth beside the true depth; the scale that a single camera cannot know is taken from the truth, and said."""
    if results.depth_mean is None:
        return report.frames_section(results.frames, note="Depth as the node published it; one colour scale for all.")
    factor = results.depth_mean["ratio"]
    frames = [dataclasses.replace(frame, depth=frame.depth * np.float32(factor)) for frame in results.frames]
    note = f"The node's depth is multiplied by {factor:.3f}, the mean of the medians' ratios; one colour scale for all."
    return report.frames_section(frames, note=note)


def _cloud_section(results: Results) -> str:
    if results.cloud is None:
        return report.section("Point cloud", "", "No cloud arrived: the recording holds no calibrated camera_info.")
    note = f"Cloud of the image at {results.seconds(results.cloud_stamp):.2f} s, in the camera's optical frame."
    return report.cloud_section(*results.cloud, note)


def _trajectory_section(results: Results) -> str:
    trajectory = results.trajectory
    if trajectory is None:
        return report.section("Trajectory", "", "No odometry arrived.")
    if trajectory.truth is None:
        note = "Odometry in the frame odom; the recording holds no true poses to compare it with."
    else:
        note = f"Moved onto the ground truth by rotation, translation and a scale of {trajectory.scale:.3f}."
    return report.trajectory_section(trajectory.seconds, trajectory.aligned, trajectory.truth, note)


def _environment(run: Run, source: Path, command: str) -> dict[str, str]:
    packages = ("endomust_ros", "numpy", "onnxruntime", "rosbags", "opencv-python-headless", "ros-rclpy", "rclpy")
    return {
        "model": f"{run.model.get('name')} {run.model.get('version')}",
        "model sha256": str(run.model.get("digest", "")),
        "provider": str(run.model.get("provider", "")),
        "recording": str(source),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform(terse=True)}",
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name, version in versions(packages).items()),
        "middleware": os.environ.get("RMW_IMPLEMENTATION", "default"),
        "command": command,
    }


def _count(run: Run, answers: dict[int, float]) -> int:
    return sum(stamp in answers for stamp in run.sent)


def _percentiles(latency: np.ndarray) -> str:
    if not latency.size:
        return "no answers"
    p50, p95, p99, most = (*np.percentile(latency, (50, 95, 99)) * 1e3, latency.max() * 1e3)
    return f"p50 {p50:.1f}  p95 {p95:.1f}  p99 {p99:.1f}  max {most:.1f} ms"


def _depth_words(results: Results) -> str:
    mean = results.depth_mean
    if mean is None:
        return "no true depth in the recording"
    return f"{mean['abs_rel']:.4f} over {len(results.depth_scores)} frames (median-scaled by {mean['ratio']:.3f})"


def _trajectory_words(results: Results) -> str:
    trajectory = results.trajectory
    if trajectory is None or trajectory.truth is None:
        return "no odometry or no true poses"
    error, path = trajectory.ate * 1e3, trajectory.path * 1e3
    return f"{error:.2f} mm on a path of {path:.1f} mm (aligned, scale {trajectory.scale:.3f})"
