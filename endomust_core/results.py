"""A recording of the node's outputs → numbers: depth [m] and trajectory [m] against the ground truth in the same file.

Messages belong together when their header stamps are equal. Two passes over the file: the first reads stamps, poses and
true depth, the second one depth image at a time, so that long recordings fit into memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from endomust_core.decoding import cloud_from, depth_from, pose_from, rgb_from, stamp_ns_from_cdr
from endomust_core.metrics import align, depth_metrics, mean_metrics
from endomust_core.recording import RecordingReader
from endomust_core.report import FramePicture

PICTURES = 5  # frames shown


@dataclass(frozen=True)
class Topics:
    """Where a recording keeps what is needed; topics that are absent count as empty."""

    image: str
    depth: str
    odom: str
    points: str
    true_pose: str
    true_depth: Sequence[str]


@dataclass
class Trajectory:
    """Positions (N,3) [m] of matched stamps; `aligned` is the estimate moved onto the truth, where there is one."""

    seconds: np.ndarray
    aligned: np.ndarray
    truth: np.ndarray | None = None
    scale: float = 1.0
    ate: float = float("nan")  # m, root mean square distance after alignment with scale
    path: float = 0.0  # m, length of the true path, or of the estimate


@dataclass
class Results:
    """What a recording says about the node; stamps [ns] in order of time."""

    image_stamps: list[int] = field(default_factory=list)
    depth_stamps: list[int] = field(default_factory=list)
    odom_stamps: list[int] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)  # share of pixels with depth, per depth image
    depth_scores: list[dict[str, float]] = field(default_factory=list)
    frames: list[FramePicture] = field(default_factory=list)
    cloud: tuple[np.ndarray, np.ndarray | None] | None = None
    cloud_stamp: int = 0
    trajectory: Trajectory | None = None

    @property
    def depth_mean(self) -> dict[str, float] | None:
        """Mean of the depth scores, None without ground truth."""
        return mean_metrics(self.depth_scores) if self.depth_scores else None

    def seconds(self, stamp: int) -> float:
        """Time [s] since the first image."""
        return (stamp - self.image_stamps[0]) / 1e9 if self.image_stamps else 0.0


def results_of(recording: RecordingReader, topics: Topics) -> Results:
    """Read a recording twice and compare what belongs together."""
    results, poses, true_poses, true_depths = _first_pass(recording, topics)
    shown = _chosen(results.depth_stamps, true_depths)
    _second_pass(recording, topics, results, true_depths, shown)
    results.trajectory = trajectory_of(poses, true_poses, results.image_stamps[0] if results.image_stamps else 0)
    return results


def trajectory_of(poses: Mapping[int, np.ndarray], truth: Mapping[int, np.ndarray], start_ns: int) -> Trajectory | None:
    """Match (4,4) poses by stamp [ns] and align them with rotation, translation and scale; None without poses."""
    if not poses:
        return None
    both = sorted(poses.keys() & truth.keys())
    if len(both) < 3:
        stamps = sorted(poses)
        positions = np.array([poses[s][:3, 3] for s in stamps])
        return Trajectory(_seconds(stamps, start_ns), positions, path=path_length(positions))
    estimate = np.array([poses[s][:3, 3] for s in both])
    true = np.array([truth[s][:3, 3] for s in both])
    scale, R, t = align(estimate, true)
    aligned = scale * estimate @ R.T + t
    ate = float(np.sqrt(np.mean(np.sum((aligned - true) ** 2, axis=1))))
    return Trajectory(_seconds(both, start_ns), aligned, true, scale, ate, path_length(true))


def path_length(positions: np.ndarray) -> float:
    """Length [m] of the polyline through (N,3) positions."""
    return float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum()) if len(positions) > 1 else 0.0


def _first_pass(recording: RecordingReader, topics: Topics):
    results, poses, true_poses, true_depths = Results(), {}, {}, {}
    wanted = [topics.image, topics.depth, topics.odom, topics.true_pose, *topics.true_depth]
    for topic, msgtype, _, cdr in recording.messages([t for t in wanted if t in recording.topics]):
        stamp = stamp_ns_from_cdr(cdr)
        if topic == topics.image:
            results.image_stamps.append(stamp)
        elif topic == topics.depth:
            results.depth_stamps.append(stamp)
        elif topic == topics.odom:
            results.odom_stamps.append(stamp)
            poses[stamp] = pose_from(recording.deserialize(msgtype, cdr))
        elif topic == topics.true_pose:
            true_poses[stamp] = pose_from(recording.deserialize(msgtype, cdr))
        else:
            true_depths[stamp] = cdr, msgtype
    return results, poses, true_poses, true_depths


def _second_pass(recording: RecordingReader, topics: Topics, results: Results, true_depths, shown: list[int]) -> None:
    images, depths, truths = {}, {}, {}
    cloud_at = shown[len(shown) // 2] if shown else 0
    wanted = [t for t in (topics.image, topics.depth, topics.points) if t in recording.topics]
    for topic, msgtype, _, cdr in recording.messages(wanted):
        stamp = stamp_ns_from_cdr(cdr)
        if topic == topics.image:
            if stamp in shown:
                images[stamp] = rgb_from(recording.deserialize(msgtype, cdr))
        elif topic == topics.depth:
            depth = depth_from(recording.deserialize(msgtype, cdr))
            results.valid.append(float(np.isfinite(depth).mean()))
            truth = _true_depth(recording, true_depths.get(stamp))
            if truth is not None:
                _score(results, depth, truth)
            if stamp in shown:
                depths[stamp], truths[stamp] = depth, truth
        elif results.cloud is None or abs(stamp - cloud_at) < abs(results.cloud_stamp - cloud_at):
            results.cloud, results.cloud_stamp = cloud_from(recording.deserialize(msgtype, cdr)), stamp
    for stamp in shown:
        if stamp in images:
            caption = f"{results.seconds(stamp):.2f} s"
            results.frames.append(FramePicture(caption, images[stamp], depths[stamp], truths[stamp]))


def _score(results: Results, depth: np.ndarray, truth: np.ndarray) -> None:
    if truth.shape != depth.shape:  # nearest: depth must not be averaged over edges
        truth = cv2.resize(truth, depth.shape[::-1], interpolation=cv2.INTER_NEAREST)
    if (np.isfinite(depth) & np.isfinite(truth)).any():
        results.depth_scores.append(depth_metrics(depth, truth))


def _true_depth(recording: RecordingReader, message) -> np.ndarray | None:
    if message is None:
        return None
    cdr, msgtype = message
    return depth_from(recording.deserialize(msgtype, cdr))


def _chosen(depth_stamps: list[int], true_depths) -> list[int]:
    """Stamps of a few frames spread over the recording, those with true depth first."""
    known = [s for s in depth_stamps if s in true_depths]
    pool = known if len(known) >= 3 else depth_stamps
    return [pool[i] for i in sorted({round(x) for x in np.linspace(0, len(pool) - 1, PICTURES)})] if pool else []


def _seconds(stamps: Sequence[int], start_ns: int) -> np.ndarray:
    return (np.array(stamps, np.int64) - start_ns) / 1e9
