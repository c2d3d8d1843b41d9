"""Measures what DDS does to camera images between two processes: delivered [%], age and publish() [ms], jitter.

With our Fast DDS profile and without it, in turn, in one run. A camera process stamps images with the time at which it
publishes them; a listener, subscribed as the node is (KEEP_LAST 1), notes when each arrives. Nothing is done with them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from endomust_core import benchmarking
from endomust_core.resources import versions
from endomust_ros.dds_profile import SIZE, ProfileError, camera_messages, image_size, segment_bytes
from endomust_ros.transport import SWITCH, VARIABLES, dds_profile, fast_dds_environment

PROFILES = {"ours": "auto", "none": "none"}  # with our profile, and Fast DDS as it comes
PACKAGES = ("ros-rclpy", "ros-rmw-fastrtps-cpp")
RELIABILITIES = ("reliable", "best_effort")
TOPIC = "endomust_transport/image_raw"
MEET = 30.0  # s for the two processes to find each other
LINGER = 1.0  # s after the last image, for what is still on its way
END = 15.0  # s for a process to end


class BenchmarkError(RuntimeError):
    """A process of the benchmark did not do its part; the text holds what it said."""


def main(args: list[str] | None = None) -> int:
    """`endomust bench transport`: writes a table and, where asked, JSON; returns the exit code."""
    words = sys.argv[1:] if args is None else args
    options = _parse(words)
    if options.role:
        return {"camera": _camera, "listener": _listener}[options.role](options)
    try:
        results = measure(options)
    except (BenchmarkError, ProfileError, FileNotFoundError) as error:
        sys.stderr.write(f"endomust bench transport: {error}\n")
        return 2
    sys.stdout.write(table(results) + "\n")
    if options.json:
        command = shlex.join(["endomust", "bench", "transport", *words])
        benchmarking.write(options.json, benchmarking.document("transport", results, command=command))
    return 0


def measure(options: argparse.Namespace) -> dict:
    """All runs, profile and reliability taking turns; medians and the runs themselves."""
    width, height = image_size(options.size)
    chosen = RELIABILITIES if options.reliability == "both" else (options.reliability,)
    cases = [(profile, reliability) for reliability in chosen for profile in PROFILES]
    runs: dict[tuple[str, str], list[dict]] = {case: [] for case in cases}
    for number in range(options.runs):
        for case in cases if number % 2 == 0 else cases[::-1]:
            runs[case].append(_run(options, *case))
    found = [
        {"profile": profile, "reliability": reliability, "median": benchmarking.median_of(all_runs), "runs": all_runs}
        for (profile, reliability), all_runs in runs.items()
    ]
    messages = camera_messages(width, height)
    sent = {"encoding": "rgb8", "bytes": messages["rgb8"], "rate": options.rate, "seconds": options.seconds}
    room = {"segment_bytes": segment_bytes(messages.values()), "versions": versions(PACKAGES)}
    return {"width": width, "height": height, **sent, **room, "cases": found}


def table(results: Mapping) -> str:
    """Markdown: a row for each case, medians of its runs; delivered also as lowest to highest."""
    size = f"{results['width']}x{results['height']} rgb8 ({results['bytes'] / 1e6:.1f} MB) at {results['rate']:g} Hz"
    runs = len(results["cases"][0]["runs"])
    lines = [
        f"**{size}, {results['seconds']:g} s, medians of {runs} runs**\n",
        "| profile | reliability | delivered (all runs) | age p50 / p95 / p99 / max [ms] | publish() p50 / p95 [ms] |",
        "|---|---|---|---|---|",
    ]
    for case in results["cases"]:
        median, shares = case["median"], [run["delivered_percent"] for run in case["runs"]]
        delivered = f"{median['delivered_percent']:.1f} % ({min(shares):.1f} to {max(shares):.1f})"
        age = _times(median.get("age_ms", {}), ("p50", "p95", "p99", "max"))
        publish = _times(median["publish_ms"], ("p50", "p95"))
        lines.append(f"| {case['profile']} | {case['reliability']} | {delivered} | {age} | {publish} |")
    return "\n".join(lines)


def _times(found: Mapping, names: tuple[str, ...]) -> str:
    return " / ".join(f"{found[name]:.1f}" if name in found else "–" for name in names)


# ---- one run --------------------------------------------------------------------------------------------------------


def environment_of(profile: str, size: str, env: Mapping[str, str]) -> dict[str, str]:
    """`env` of a process of the benchmark, without the transport settings of whoever starts it."""
    own = {name: value for name, value in env.items() if name not in (*VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS")}
    own |= {SWITCH: PROFILES[profile], SIZE: size, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    own["RMW_IMPLEMENTATION"] = "rmw_fastrtps_cpp"
    root = str(Path(__file__).resolve().parent.parent)  # the processes run from the same checkout or installation
    own["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
    path, sentence = dds_profile(own, camera_messages)
    if profile == "ours" and path is None:
        raise BenchmarkError(f"there is no profile to measure: {sentence}")
    return fast_dds_environment(own, camera_messages)


def _run(options: argparse.Namespace, profile: str, reliability: str) -> dict:
    env = environment_of(profile, options.size, os.environ)
    # A domain of its own for each run, below those whose ports meet the ones that Linux hands out.
    env["ROS_DOMAIN_ID"] = str(random.SystemRandom().randrange(1, 100))
    with _Process("listener", options, reliability, env) as listener:
        listener.line()  # it has subscribed
        with _Process("camera", options, reliability, env) as camera:
            listener.line()  # it hears the camera
            camera.tell()
            sent = json.loads(camera.line(options.seconds + LINGER + END))
        listener.tell()
        arrived = json.loads(listener.line(END))
    return figures(sent, arrived)


def figures(sent: Mapping, arrived: Mapping) -> dict:
    """{stamps [ns], publish [s]} and {stamps [ns], arrivals [ns]} → what one run says."""
    begin = {stamp: 1e-9 * stamp for stamp in sent["stamps"]}
    end = {stamp: 1e-9 * at for stamp, at in zip(arrived["stamps"], arrived["arrivals"], strict=True)}
    ages = [at - begin[stamp] for stamp, at in end.items() if stamp in begin]
    return {
        "sent": len(begin),
        "delivered": len(ages),
        "delivered_percent": 100.0 * len(ages) / len(begin),
        "age_ms": benchmarking.summary(ages),
        "publish_ms": benchmarking.summary(sent["publish"]),
        **benchmarking.peer_metrics(begin, end),
        "load_1min": os.getloadavg()[0],
    }


class _Process:
    """This file in another process, as camera or listener; leaving the context ends it."""

    def __init__(self, role: str, options: argparse.Namespace, reliability: str, env: Mapping[str, str]):
        given = {"--size": options.size, "--rate": options.rate, "--seconds": options.seconds}
        words = [word for name, value in given.items() for word in (name, str(value))]
        command = [sys.executable, "-m", "endomust_ros.transport_benchmark", "--role", role, *words]
        self._role = role
        self._process = subprocess.Popen(
            [*command, "--reliability", reliability], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, kind, *unused) -> None:
        if kind is not None:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        try:
            self._process.wait(END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def line(self, patience: float = MEET) -> str:
        """The next line it says; BenchmarkError when none comes."""
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        text = self._process.stdout.readline() if ready else ""
        if not text:
            raise BenchmarkError(f"the {self._role} said nothing for {patience:.0f} s; its errors are above")
        return text

    def tell(self) -> None:
        """The word to go on to what comes next."""
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchmarkError(f"the {self._role} has ended before its time; its errors are above") from None


# ---- the two processes ----------------------------------------------------------------------------------------------


def _camera(options: argparse.Namespace) -> int:
    """Publish single pixels until told that they are heard, then images at the rate asked for; one line of JSON."""
    from endomust_ros.messages import rgb_to_image

    width, height = image_size(options.size)
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    with _node("camera") as node:
        publisher = node.create_publisher(_image_type(), TOPIC, _qos(options.reliability))
        pixel, message = rgb_to_image(picture[:1, :1], _header()), rgb_to_image(picture, _header())
        while not _told(patience=0.05):
            publisher.publish(pixel)
        stamps, durations = [], []
        begin = time.monotonic() + 0.2
        for number in range(round(options.seconds * options.rate)):
            time.sleep(max(begin + number / options.rate - time.monotonic(), 0.0))
            now = time.monotonic_ns()
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(now, 1_000_000_000)
            publisher.publish(message)
            stamps.append(now)
            durations.append(1e-9 * (time.monotonic_ns() - now))
        time.sleep(LINGER)
        _say({"stamps": stamps, "publish": durations})
    return 0


def _listener(options: argparse.Namespace) -> int:
    """Say when the camera is heard, note arrivals until told to stop; one line of JSON at the end."""
    from rclpy.executors import SingleThreadedExecutor

    from endomust_core.decoding import stamp_ns

    stamps, arrivals = [], []
    met = False

    def note(message) -> None:
        nonlocal met
        now = time.monotonic_ns()
        if stamp := stamp_ns(message):
            arrivals.append(now)
            stamps.append(stamp)
        elif not met:  # a pixel without a stamp
            met = True
            _say("heard")

    with _node("listener") as node:
        node.create_subscription(_image_type(), TOPIC, note, _qos(options.reliability))
        executor = SingleThreadedExecutor(context=node.context)
        executor.add_node(node)
        _say("listening")
        while not _told():
            executor.spin_once(timeout_sec=0.05)
        _say({"stamps": stamps, "arrivals": arrivals})
        executor.shutdown()
    return 0


@contextlib.contextmanager
def _node(name: str):
    """A ROS node for the length of a `with`."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(f"endomust_transport_{name}", start_parameter_services=False)
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _image_type():
    from sensor_msgs.msg import Image

    return Image


def _header():
    from std_msgs.msg import Header

    return Header(frame_id="endoscope_optical_frame")


def _qos(reliability: str):
    from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy

    policy = ReliabilityPolicy.RELIABLE if reliability == "reliable" else ReliabilityPolicy.BEST_EFFORT
    return QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=policy)


def _told(patience: float = 0.0) -> bool:
    return bool(select.select([sys.stdin], [], [], patience)[0])


def _say(content) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


# ---- options --------------------------------------------------------------------------------------------------------


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="endomust bench transport", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers to this file")
    parser.add_argument("--size", default="1280x1024", metavar="WxH", help="of the rgb8 images (default 1280x1024)")
    parser.add_argument("--rate", type=_positive, default=30.0, metavar="HZ", help="images per second (default 30)")
    parser.add_argument("--seconds", type=_positive, default=10.0, help="of each run (default 10)")
    parser.add_argument("--runs", type=int, default=5, help="of each case (default 5)")
    parser.add_argument("--reliability", choices=(*RELIABILITIES, "both"), default="both", help="(default both)")
    parser.add_argument("--role", choices=("camera", "listener"), help=argparse.SUPPRESS)
    return parser.parse_args(args)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


if __name__ == "__main__":
    sys.exit(main())
