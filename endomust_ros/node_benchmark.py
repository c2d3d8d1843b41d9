"""The running node, end to end across DDS: fps, age, stage times, drops, processor and memory, as a table and as JSON.

Three processes: a camera that stamps every image at the moment it is sent, the node, and this one, which listens. Age
is arrival here minus header stamp. Every run starts the node anew; the first with an empty cache, the others with what
it left there. The figures of a run are of images sent within its seconds; the table holds medians of all runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import yaml

from endomust_core import benchmarking
from endomust_core.benchmarking import busy_metrics, median_of, peer_metrics, slope, summary
from endomust_core.resources import bundle_path
from endomust_ros.benchmark_monitor import DEFAULT, OUTPUTS, Heard, Monitor, Sampler, stages_of
from endomust_ros.benchmark_source import size_of
from endomust_ros.dds_profile import SIZE, ProfileError
from endomust_ros.process import NodeProcess, NodeProcessError
from endomust_ros.transport import fast_dds_environment

CAMERA_TIMEOUT = 60.0  # s until the camera is announced
START_TIMEOUT = 600.0  # s until the first depth image; an engine may have to be built
SETTLE = 2.0  # s after the first depth image, which are not measured
LAST_ANSWERS = 1.2  # s after a run, for answers on their way and one more diagnostics message
DROPS = ("busy", "stale", "decode", "idle")
AGE_PARTS = 6  # of the long run, whose ages are compared
PATH_FULL = 600.0  # s after which ~/path holds as many poses as it ever will
WARM_UP = 60.0  # s of the long run that do not count for its slope: pools and caches fill


class BenchmarkError(RuntimeError):
    """The benchmark cannot go on; the message says what to do next."""


@dataclasses.dataclass(frozen=True)
class Window:
    """One measured stretch of a running node."""

    begin_ns: int
    end_ns: int
    start_s: float  # from starting the process to the first depth image
    node_cpu_s: float
    source_cpu_s: float
    heard: Heard
    sampler: Sampler


def main(args: list[str] | None = None) -> int:
    """`endomust bench node`: prints a table, writes --json; 2 with a sentence where it cannot measure."""
    options = _parse(args)
    if options.overhead:
        from endomust_ros import benchmark

        return benchmark.main(_overhead_arguments(options))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the processes started here would go on
    try:
        content = measure(options)
    except (BenchmarkError, NodeProcessError, ProfileError, FileNotFoundError) as error:
        sys.stderr.write(f"endomust bench node: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("endomust bench node: stopped; the node was stopped too\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stdout.write(table(content["results"]) + "\n")
    if options.json:
        benchmarking.write(options.json, content)
    return 0


def measure(options: argparse.Namespace) -> dict:
    """All runs and, where asked for, the long one: the document that --json writes."""
    _parameters(options)  # a mistake in them should be said before anything is started
    os.environ.setdefault(SIZE, "{}x{}".format(*options.size))
    os.environ.update(fast_dds_environment(os.environ))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")  # its images are nobody else's business
    namespace = f"/benchmark_{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="endomust-benchmark-") as name:
        folder = Path(name)
        with Monitor(namespace, options.outputs) as monitor:
            windows, growth = _run_all(options, namespace, folder, monitor)
        sent = json.loads((folder / "sent.json").read_text(encoding="utf-8"))
    runs = [run_of(window, sent["stamps_ns"]) for window in windows]
    starts = [window.start_s for window in windows]
    results = {
        "options": _facts(options),
        "runs": runs,
        "median": median_of(runs),
        "cold_start_s": starts[0],
        "warm_start_s": statistics.median(starts[1:]) if starts[1:] else None,
        "growth": growth,
    }
    hashes = _hashes(windows[-1].heard, options, sent["digest"])
    return benchmarking.document("node", results, command=_command(options), hashes=hashes)


# ---- running ----


def _run_all(options, namespace: str, folder: Path, monitor: Monitor) -> tuple[list[Window], dict | None]:
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    source = ["--namespace", namespace, "--size", "{}x{}".format(*options.size), "--rate", str(options.rate)]
    source += ["--transport", options.transport, "--out", str(folder / "sent.json")]
    with NodeProcess("endomust_ros.benchmark_source", source, folder / "source.log") as camera:
        _wait(lambda: monitor.sees(_image_topic(options, namespace)), CAMERA_TIMEOUT, camera, camera)
        windows = []
        for number in range(options.runs):
            log = folder / f"node_{number}.log"
            with NodeProcess("endomust_ros.depth_node", _node_arguments(options, namespace), log, cache) as node:
                windows.append(_one_run(options.seconds, node, camera, monitor))
                last = number == options.runs - 1
                growth = None
                if last and options.growth_minutes:
                    growth = _grow(options.growth_minutes, node, camera, windows[-1].heard)
                _check(node, camera)
        camera.stop()
    return windows, growth


def _one_run(seconds: float, node: NodeProcess, camera: NodeProcess, monitor: Monitor) -> Window:
    heard = monitor.renew()
    _wait(lambda: heard.arrivals["depth"] or _refused(heard), START_TIMEOUT, node, camera)
    took = time.monotonic() - node.started
    if _refused(heard):
        raise BenchmarkError(f"the node could not configure\n{node.last_words()}")
    time.sleep(SETTLE)
    before, source_before, begin = node.use(), camera.use(), time.time_ns()
    with Sampler(node.pid) as sampler:
        time.sleep(seconds)
    end = time.time_ns()
    cpu, source_cpu = node.use() - before, camera.use() - source_before
    time.sleep(LAST_ANSWERS)
    _check(node, camera)
    return Window(begin, end, took, cpu.cpu_s, source_cpu.cpu_s, heard, sampler)


def _refused(heard: Heard) -> bool:
    """A node starts by itself before it reports anything, so one that reports as unconfigured has failed to."""
    return any(tasks.get("input", {}).get("message") == "unconfigured" for _, tasks in heard.diagnostics)


def _grow(minutes: float, node: NodeProcess, camera: NodeProcess, heard: Heard) -> dict:
    """Memory, descriptors and age of the depth over a long run; everything else is left as it is."""
    begin, descriptors = time.time_ns(), []
    with Sampler(node.pid) as sampler:
        deadline = time.monotonic() + 60 * minutes
        while time.monotonic() < deadline:
            _check(node, camera)
            descriptors.append(_descriptors(node.pid))
            time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
    growth = growth_of(sampler.times, sampler.resident)
    growth["descriptors"] = {"start": descriptors[0], "end": descriptors[-1], "max": max(descriptors)}
    arrivals = dict(heard.arrivals["depth"])  # a copy: the listening thread goes on
    return growth | ages_of(arrivals, begin, time.time_ns())


def _descriptors(pid: int) -> int:
    """Open files and sockets of a process; 0 where the system does not say."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _wait(condition: Callable[[], object], timeout: float, node: NodeProcess, camera: NodeProcess) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        _check(node, camera)
        if time.monotonic() > deadline:
            raise BenchmarkError(f"nothing came within {timeout:.0f} s\n{node.last_words()}")
        time.sleep(0.002)


def _check(node: NodeProcess, camera: NodeProcess) -> None:
    node.check()
    if not camera.alive():
        raise BenchmarkError(f"the camera of the benchmark has ended\n{camera.last_words()}")


def _node_arguments(options: argparse.Namespace, namespace: str) -> list[str]:
    remaps = {
        "__ns": namespace,
        "image": f"{namespace}/image_raw",
        "/diagnostics": f"{namespace}/diagnostics",
        "/tf": f"{namespace}/tf",
    }
    arguments = ["--ros-args"]
    for name, value in remaps.items():
        arguments += ["--remap", f"{name}:={value}"]
    for name, value in _parameters(options).items():
        arguments += ["--param", f"{name}:={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}"]
    return arguments


def _image_topic(options: argparse.Namespace, namespace: str) -> str:
    return f"{namespace}/image_raw" + ("/compressed" if options.transport == "compressed" else "")


def _parameters(options: argparse.Namespace) -> dict[str, object]:
    values: dict[str, object] = {"input.transport": options.transport, "points.stride": options.stride}
    if options.model is not None:
        values["model.path"] = str(options.model.resolve())
    if options.provider:
        values["model.providers"] = options.provider.split(",")
    if options.threads is not None:
        values["model.threads"] = options.threads
    for setting in options.parameter or ():
        name, equals, value = setting.partition("=")
        if not equals:
            raise BenchmarkError(f"--parameter {setting}: write NAME=VALUE, such as realtime.nice=-5")
        values[name] = yaml.safe_load(value)
    return values


# ---- numbers ----


def run_of(window: Window, stamps_ns: list[int]) -> dict:
    """What one run says; `stamps_ns` is everything that the camera ever sent."""
    sent = {stamp: stamp / 1e9 for stamp in stamps_ns if window.begin_ns <= stamp < window.end_ns}
    if not sent:
        raise BenchmarkError("the camera sent nothing within the run; ask for more --seconds or a higher --rate")
    came = {name: _within(times, sent) for name, times in window.heard.arrivals.items()}
    depth, seconds = came["depth"], (window.end_ns - window.begin_ns) / 1e9
    memory = window.sampler.resident
    return {
        "seconds": seconds,
        "sent": len(sent),
        "delivered": {name: len(times) for name, times in came.items()},
        "fps": len(depth) / seconds,
        "age_ms": {name: summary([at - sent[stamp] for stamp, at in times.items()]) for name, times in came.items()},
        "stages_ms": _stages(window),
        "dropped": _drops(window),
        "cpu_ms_per_image": 1e3 * window.node_cpu_s / max(1, len(depth)),
        "cpu_cores": window.node_cpu_s / seconds,
        "source_cpu_cores": window.source_cpu_s / seconds,
        "resident_mb": {"start": memory[0], "end": memory[-1], "max": max(memory)} if memory else {},
        "start_s": window.start_s,
        **peer_metrics(sent, depth),
        **busy_metrics(window.sampler.busy),
    }


def _within(arrivals: Mapping[int, int], sent: Mapping[int, float]) -> dict[int, float]:
    """Stamp → arrival [s] of the answers to images of this run."""
    return {stamp: at / 1e9 for stamp, at in arrivals.items() if stamp in sent}


def _during(window: Window) -> list[dict]:
    """The diagnostics of the run, with the last one before it (which the counts start from)."""
    end = window.end_ns + int(1e9 * LAST_ANSWERS)
    before = [tasks for at, tasks in window.heard.diagnostics if at < window.begin_ns][-1:]
    return before + [tasks for at, tasks in window.heard.diagnostics if window.begin_ns <= at < end]


def _stages(window: Window) -> dict[str, dict[str, float]]:
    """Percentiles as the node last said them (they look back on its last images); max of all that it said."""
    said = [stages_of(tasks) for tasks in _during(window)[1:]]
    if not said:
        return {}
    highest: dict[str, float] = {}
    for stages in said:
        for stage, values in stages.items():
            highest[stage] = max(highest.get(stage, 0.0), values.get("max", 0.0))
    return {stage: {**values, "max": highest[stage]} for stage, values in said[-1].items()}


def _drops(window: Window) -> dict[str, int]:
    """Images that the node gave up, by reason, and pictures that it left out, by output."""
    during = _during(window)
    if len(during) < 2:
        return {}
    first, last = ({**tasks.get("input", {}), **tasks.get("inference", {})} for tasks in (during[0], during[-1]))
    names = [name for name in last if name.startswith("skipped ")]
    keys = {**{reason: f"dropped {reason}" for reason in DROPS}, "failures": "failures", **{n: n for n in names}}
    return {name: int(last[key]) - int(first.get(key, 0)) for name, key in keys.items() if key in last}


def growth_of(times: list[float], resident: list[float]) -> dict:
    """Memory [MB] over time [s]: start, end, and slope after the first minute (a fifth, of a short run).

    settled_mb_per_10min: the slope from when the path is full, ten minutes on; None in a run too short to have one.
    """
    skip = min(WARM_UP, times[-1] / 5)
    late = [(t, mb) for t, mb in zip(times, resident, strict=True) if t >= skip]
    settled = [(t, mb) for t, mb in late if t >= PATH_FULL]
    return {
        "minutes": times[-1] / 60,
        "resident_mb": {"start": resident[0], "after_warm_up": late[0][1], "end": resident[-1], "max": max(resident)},
        "slope_mb_per_10min": 600 * slope(*zip(*late, strict=True)),
        "settled_mb_per_10min": 600 * slope(*zip(*settled, strict=True)) if times[-1] >= 2 * PATH_FULL else None,
        "samples": [[round(t, 1), round(mb, 2)] for t, mb in list(zip(times, resident, strict=True))[::5]],
    }


def ages_of(arrivals: Mapping[int, int], begin_ns: int, end_ns: int) -> dict:
    """Age of the depth images [ms] in equal parts of a long run, and how many came. The camera stamps when it sends."""
    edges = np.linspace(0, end_ns - begin_ns, AGE_PARTS + 1)
    stamps = np.array(sorted(stamp for stamp in arrivals if begin_ns <= stamp < end_ns), np.int64)
    ages = 1e-6 * np.array([arrivals[stamp] - stamp for stamp in stamps.tolist()])
    since = stamps - begin_ns
    parts = [ages[(since >= low) & (since < high)] for low, high in itertools.pairwise(edges)]
    percentiles = {f"p{q}": [round(float(np.percentile(p, q)), 2) if p.size else None for p in parts] for q in (50, 99)}
    return {"age_ms": percentiles, "depth_images": len(stamps)}


def _hashes(heard: Heard, options: argparse.Namespace, images: str) -> dict[str, str]:
    """sha256 of model, engine where the node names one, parameters and images."""
    config = json.dumps(_parameters(options), sort_keys=True)
    hashes = {"config": hashlib.sha256(config.encode()).hexdigest(), "images": images}
    info = json.loads(heard.model_info) if heard.model_info else {}
    if info.get("digest"):
        hashes["model"] = info["digest"]
    engines = {key: value for key, value in info.items() if "engine" in key and isinstance(value, str) and value}
    return hashes | engines


# ---- words ----


def table(results: Mapping) -> str:
    """Markdown: the medians of all runs."""
    m, facts = results["median"], results["options"]
    runs = results["runs"]
    lines = [
        f"**{facts['size']} {facts['transport']} at {facts['rate']:g} Hz, cloud stride {facts['stride']}**, medians of "
        f"{len(runs)} runs of {facts['seconds']:g} s\n",
        "| what | value |",
        "|---|---|",
        f"| depth images sent / delivered | {m['sent']:.0f} / {m['delivered']['depth']:.0f} |",
        f"| depth images a second, median and worst run | {m['fps']:.1f}, {min(run['fps'] for run in runs):.1f} |",
    ]
    for name in OUTPUTS:
        if m["age_ms"].get(name, {}).get("n"):
            lines.append(f"| age of {name}, p50 / p95 / p99 / max [ms] | {_four(m['age_ms'][name])} |")
    for stage, values in m["stages_ms"].items():
        what = "age, as the node sees it" if stage == "age" else f"stage {stage}"
        lines.append(f"| {what}, p50 / p95 / p99 / max [ms] | {_four(values)} |")
    dropped = ", ".join(f"{name} {count:g}" for name, count in m["dropped"].items() if count) or "none"
    lines += [
        f"| dropped or left out in a run | {dropped} |",
        f"| processor time of the node for one image [ms] | {m['cpu_ms_per_image']:.1f} |",
        f"| node / camera, cores in use | {m['cpu_cores']:.2f} / {m['source_cpu_cores']:.2f} |",
        f"| resident memory, start / end of a run [MB] | {_ends(m['resident_mb'])} |",
        f"| process start to first depth, cold / warm [s] | {_starts(results)} |",
    ]
    growth = results.get("growth")
    if growth:
        lines.append(f"| memory over {growth['minutes']:.1f} min, start / end [MB] | {_ends(growth['resident_mb'])} |")
        lines.append(f"| growth after the first minute [MB per 10 min] | {growth['slope_mb_per_10min']:+.2f} |")
        if growth["settled_mb_per_10min"] is not None:
            lines.append(f"| growth after ten minutes [MB per 10 min] | {growth['settled_mb_per_10min']:+.2f} |")
        counts = " / ".join(map(str, growth["descriptors"].values()))
        lines.append(f"| open descriptors, start / end / most | {counts} |")
        for name, ages in growth["age_ms"].items():
            words = " ".join("-" if age is None else f"{age:.1f}" for age in ages)
            lines.append(f"| age of depth, {name} of each sixth of it [ms] | {words} |")
        lines.append(f"| depth images in it | {growth['depth_images']} |")
    return "\n".join(lines)


def _four(values: Mapping[str, float]) -> str:
    return " / ".join(f"{values[key]:.1f}" if key in values else "-" for key in ("p50", "p95", "p99", "max"))


def _ends(memory: Mapping[str, float]) -> str:
    return f"{memory['start']:.0f} / {memory['end']:.0f}" if memory else "-"


def _starts(results: Mapping) -> str:
    warm = results["warm_start_s"]
    return f"{results['cold_start_s']:.2f} / " + (f"{warm:.2f}" if warm is not None else "-")


def _facts(options: argparse.Namespace) -> dict[str, object]:
    return {
        "size": "{}x{}".format(*options.size),
        "rate": options.rate,
        "seconds": options.seconds,
        "transport": options.transport,
        "stride": options.stride,
        "outputs": options.outputs,
        "parameters": _parameters(options),
    }


def _command(options: argparse.Namespace) -> str:
    """What to type to do this again."""
    words = ["endomust", "bench", "node", "--size", "{}x{}".format(*options.size), "--rate", f"{options.rate:g}"]
    words += ["--seconds", f"{options.seconds:g}", "--runs", str(options.runs), "--transport", options.transport]
    words += ["--outputs", *options.outputs, "--stride", str(options.stride)]
    for name in ("model", "provider", "threads", "growth_minutes", "json"):
        if getattr(options, name) not in (None, 0):
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    for setting in options.parameter or ():
        words += ["--parameter", setting]
    return shlex.join(words)


def _overhead_arguments(options: argparse.Namespace) -> list[str]:
    arguments = ["--stride", str(options.stride)]
    return arguments + (["--json", str(options.json)] if options.json else [])


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="endomust bench node", description=__doc__.split("\n")[0])
    add_arguments(parser)
    return parser.parse_args(args)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `endomust bench node`, for the command line of the project."""
    parser.add_argument("--model", type=bundle_path, help="model bundle (default: endomust-tiny)")
    parser.add_argument("--size", type=size_of, default=(640, 480), metavar="WxH", help="of the images (640x480)")
    parser.add_argument("--rate", type=_positive, default=30.0, help="images a second (default 30)")
    parser.add_argument("--seconds", type=_positive, default=30.0, help="of each run (default 30)")
    parser.add_argument("--runs", type=_at_least_one, default=5, help="times the node is started (default 5)")
    parser.add_argument("--transport", choices=("raw", "compressed"), default="raw")
    parser.add_argument(
        "--outputs", nargs="+", choices=tuple(OUTPUTS), default=list(DEFAULT), help="to subscribe to (depth is needed)"
    )
    parser.add_argument("--stride", type=_at_least_one, default=4, help="points.stride of the cloud (default 4)")
    parser.add_argument("--provider", help="what runs the networks; several separated by commas")
    parser.add_argument("--threads", type=int, help="model.threads (default: as the node ships)")
    parser.add_argument("--parameter", action="append", metavar="NAME=VALUE", help="any other parameter of the node")
    what = "then watch memory, descriptors and ages for so long"
    parser.add_argument("--growth-minutes", type=_positive, default=0.0, help=what)
    parser.add_argument("--overhead", action="store_true", help="time the node's own work outside the networks instead")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers to this file")


if __name__ == "__main__":
    sys.exit(main())
