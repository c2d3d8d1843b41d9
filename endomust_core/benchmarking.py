"""What every benchmark writes: times [s] → percentiles [ms], the machine, hashes, one JSON document.

Where ros2_benchmark (NVIDIA) measures the same, the key and its definition are the same (`PEER_KEYS`), so that one
script reads both. It has no percentiles of single images; those are under our own keys.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from endomust_core import __version__
from endomust_core.resources import versions

FORMAT = 1
PACKAGES = ("numpy", "opencv-python-headless", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch")
PERCENTILES = (50, 95, 99)
PEER_KEYS = tuple(  # as they stand in the JSON files of ros2_benchmark 4.5
    f"BasicPerformanceMetrics.{name}"
    for name in (
        "RECEIVED_DURATION",
        "MEAN_PLAYBACK_FRAME_RATE",
        "MEAN_FRAME_RATE",
        "NUM_MISSED_FRAMES",
        "NUM_FRAMES_SENT",
        "FIRST_SENT_RECEIVED_LATENCY",
        "LAST_SENT_RECEIVED_LATENCY",
        "FIRST_INPUT_LATENCY",
        "LAST_INPUT_LATENCY",
        "MAX_LATENCY",
        "MIN_LATENCY",
        "MEAN_LATENCY",
        "MAX_JITTER",
        "MIN_JITTER",
        "MEAN_JITTER",
        "STD_DEV_JITTER",
    )
)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Times [s] → {p50, p95, p99, max, mean, n} in milliseconds; only n, zero, without any."""
    times = 1e3 * np.asarray(seconds, np.float64)
    if not times.size:
        return {"n": 0}
    found = {f"p{q}": float(np.percentile(times, q)) for q in PERCENTILES}
    return found | {"max": float(times.max()), "mean": float(times.mean()), "n": int(times.size)}


def peer_metrics(sent: Mapping[int, float], received: Mapping[int, float]) -> dict[str, float]:
    """Stamp → time [s] of sending and of arrival, in that order → PEER_KEYS [ms, frames per second].

    As in ros2_benchmark a rate is the number of frames over the time between the first and the last. {} where less than
    three of the sent frames arrived.
    """
    start, end = np.array(list(sent.values())), np.array(list(received.values()))
    latency = np.array([received[stamp] - at for stamp, at in sent.items() if stamp in received])
    if latency.size < 3 or start[-1] <= start[0] or end[-1] <= end[0]:
        return {}
    jitter = np.abs(np.diff(np.diff(end)))
    values = (
        1e3 * (end[-1] - end[0]),
        start.size / (start[-1] - start[0]),
        end.size / (end[-1] - end[0]),
        start.size - end.size,
        start.size,
        *(1e3 * np.array([end[0] - start[0], end[-1] - start[-1]])),
        *(1e3 * np.array([latency[0], latency[-1], latency.max(), latency.min(), latency.mean()])),
        *(1e3 * np.array([jitter.max(), jitter.min(), jitter.mean(), jitter.std()])),
    )
    return dict(zip(PEER_KEYS, map(float, values), strict=True))


def busy_metrics(percent: Sequence[float]) -> dict[str, float]:
    """Samples of how busy all cores together were [%] → the keys of ros2_benchmark; {} without any."""
    if not len(percent):
        return {}
    found = {"MAX": np.max, "MIN": np.min, "MEAN": np.mean, "STDDEV": np.std}
    return {f"ResourceMetrics.{name}_OVERALL_CPU_UTILIZATION": float(of(percent)) for name, of in found.items()}


def median_of(runs: Sequence[Mapping]) -> dict:
    """Medians of the numbers that all runs have, nested dictionaries too; what is no number is left out."""
    found = {}
    for key, value in runs[0].items():
        values = [run.get(key) for run in runs]
        if isinstance(value, Mapping):
            found[key] = median_of([run.get(key) or {} for run in runs])
        elif all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            found[key] = statistics.median(values)
    return found


def machine() -> dict[str, object]:
    """What the figures depend on: processor, cores that may be used, memory, versions, load of the last minute."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_1min": os.getloadavg()[0],
        "versions": versions(PACKAGES),
    }


def document(kind: str, results: object, *, command: str, hashes: Mapping[str, str] | None = None) -> dict:
    """One benchmark as JSON holds it; `hashes` of model, engine and configuration, whatever there is."""
    return {
        "format": FORMAT,
        "kind": kind,
        "command": command,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "endomust": __version__,
        "machine": machine(),
        "hashes": dict(hashes or {}),
        "results": results,
    }


def write(path: str | Path, content: Mapping) -> Path:
    """Write the document; numbers that are not finite are refused, because JSON has none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def resident_mb(process: int | str = "self") -> float:
    """Resident memory of a process [MB] (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def cpu_seconds(process: int | str = "self") -> float:
    """Processor time that a process has used, all its threads, user and system [s] (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def core_seconds() -> tuple[float, float]:
    """(busy, all) seconds of all cores together since the machine started (Linux)."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = ticks[3] + ticks[4]  # idle and waiting for a disk
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), sum(ticks) / os.sysconf("SC_CLK_TCK")


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares change of `values` per unit of `times`; 0 with fewer than two different times."""
    x, y = np.asarray(times, np.float64), np.asarray(values, np.float64)
    if x.size < 2 or np.ptp(x) == 0:
        return 0.0
    x = x - x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
