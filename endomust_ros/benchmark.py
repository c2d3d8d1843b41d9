"""Times the node's work on one image outside the networks [ms], beside the usual ways to do it, in the same run.

Message in, message out; DDS is not timed. The usual ways are what most Python nodes do: images are copied in and out as
cv_bridge does, depth is resized after the inversion, and the cloud is built by numpy with a mesh grid for every image,
by a Python loop that packs one point at a time, or as a list of tuples in the manner of sensor_msgs_py.
"""

import argparse
import array
import os
import shlex
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header

from endomust_core import benchmarking
from endomust_core.bundle import resize_rgb
from endomust_core.camera import Camera
from endomust_core.cloud import ray_planes
from endomust_core.estimator import to_depth
from endomust_core.odometry import Odometry, se3, so3_exp, to_body
from endomust_core.resources import share
from endomust_ros import messages

ALLOWED_P95 = {(640, 512): 5.0, (1280, 1024): 12.0}  # ms of ours in total, with the shipped stride
NETWORK = (168, 224)  # H, W of the default bundle
STEPS = ("message → rgb", "resize", "disparity → depth", "depth → message", "cloud → message", "odometry → message")
SAME = ("resize", "odometry → message")  # steps that are one function in every way
WAYS = ("ours", "mesh grid", "point by point", "point list")
LOOPS = ("point by point", "point list")  # in Python, pixel by pixel; a few runs say enough


@dataclass(frozen=True)
class World:
    """One image and what the networks would say about it; the same for all ways."""

    message: Image
    camera: Camera
    disparity: np.ndarray  # (H, W) float32 [1/m] at network size
    motion: np.ndarray  # (4, 4) T_prev_curr [m]


def world(width: int, height: int) -> World:
    """Noise as image (nothing here depends on the content), a wavy surface 3 to 15 cm away, a small motion."""
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (height, width, 3), np.uint8)
    camera = Camera(width, height, 0.9 * width, 0.9 * width, width / 2 - 0.5, height / 2 - 0.5)
    v, u = np.mgrid[: NETWORK[0], : NETWORK[1]].astype(np.float32)
    disparity = 1 / (0.09 + 0.06 * np.sin(u / 40) * np.cos(v / 30))
    header = Header(stamp=Time(sec=1), frame_id="endoscope_optical_frame")
    motion = se3(so3_exp(np.array([0.01, 0.0, 0.02])), np.array([0.001, 0.0, 0.001]))
    return World(messages.rgb_to_image(rgb, header), camera, disparity.astype(np.float32), motion)


class Ours:
    """The functions that the node calls, with the memory it keeps."""

    def __init__(self, world: World, stride: int):
        self._world, self._stride = world, stride
        self._depth = self._cloud = None
        self._odometry = Odometry()
        ray_planes(world.camera, stride)  # made once for a calibration

    def rgb(self) -> np.ndarray:
        return messages.image_to_rgb(self._world.message)

    def resize(self, rgb: np.ndarray) -> np.ndarray:
        return resize_rgb(rgb, NETWORK)

    def depth(self) -> np.ndarray:
        world = self._world
        return to_depth(world.disparity, world.camera.width, world.camera.height, 1.0, 0.003, 0.5)

    def depth_message(self, depth: np.ndarray) -> Image:
        self._depth = messages.depth_to_image(depth, self._world.message.header, self._depth)
        return self._depth

    def cloud_message(self, depth: np.ndarray, rgb: np.ndarray) -> PointCloud2:
        camera, header = self._world.camera, self._world.message.header
        self._cloud = messages.cloud_message(depth, rgb, camera, header, self._cloud, self._stride)
        return self._cloud

    def odometry_message(self):
        state = to_body(self._odometry.step(self._world.motion, time.perf_counter()))
        return messages.odometry_message(state, self._world.message.header.stamp, "odom", "camera")


class Copying(Ours):
    """Images in the manner of cv_bridge: a copy in, a colour conversion there and back, `tobytes` out. Fresh memory."""

    def rgb(self) -> np.ndarray:
        message = self._world.message
        pixels = np.frombuffer(bytes(message.data), np.uint8).reshape(message.height, message.width, 3)
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)

    def depth(self) -> np.ndarray:
        camera = self._world.camera
        depth = 1.0 / np.maximum(self._world.disparity, 1e-6)
        depth = cv2.resize(depth, (camera.width, camera.height), interpolation=cv2.INTER_LINEAR)
        return np.where((depth >= 0.003) & (depth <= 0.5), depth, np.nan).astype(np.float32)

    def depth_message(self, depth: np.ndarray) -> Image:
        message = Image(header=self._world.message.header, height=depth.shape[0], width=depth.shape[1])
        message.encoding, message.step = "32FC1", 4 * depth.shape[1]
        message.data = depth.tobytes()
        return message


class MeshGrid(Copying):
    """The cloud with numpy alone: rays, stack and structure anew for every image."""

    def cloud_message(self, depth: np.ndarray, rgb: np.ndarray) -> PointCloud2:
        s, camera = self._stride, self._world.camera
        u, v = np.meshgrid(np.arange(0, camera.width, s), np.arange(0, camera.height, s))
        z, colour = depth[::s, ::s], rgb[::s, ::s].astype(np.uint32)
        x, y = (u - camera.cx) * z / camera.fx, (v - camera.cy) * z / camera.fy
        packed = (colour[..., 0] << 16 | colour[..., 1] << 8 | colour[..., 2]).astype(np.uint32)
        points = np.zeros(z.shape, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("rgb", "u4")])
        points["x"], points["y"], points["z"], points["rgb"] = x, y, z, packed
        return _cloud_of(points.tobytes(), z.shape, self._world.message.header)


class PointByPoint(Copying):
    """The cloud as a Python loop that packs one point at a time."""

    def cloud_message(self, depth: np.ndarray, rgb: np.ndarray) -> PointCloud2:
        data = b"".join(struct.pack("<fffI", *point) for point in self._points(depth, rgb))
        return _cloud_of(data, depth[:: self._stride, :: self._stride].shape, self._world.message.header)

    def _points(self, depth: np.ndarray, rgb: np.ndarray) -> Iterator[tuple[float, float, float, int]]:
        s, camera = self._stride, self._world.camera
        for v in range(0, camera.height, s):
            for u in range(0, camera.width, s):
                z = depth[v, u]
                r, g, b = rgb[v, u]
                bits = int(r) << 16 | int(g) << 8 | int(b)
                yield (u - camera.cx) * z / camera.fx, (v - camera.cy) * z / camera.fy, z, bits


class PointList(PointByPoint):
    """The cloud as a list of tuples that numpy turns into a structure, as create_cloud of sensor_msgs_py does."""

    def cloud_message(self, depth: np.ndarray, rgb: np.ndarray) -> PointCloud2:
        layout = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("rgb", "u4")]
        points = np.array(list(map(tuple, list(self._points(depth, rgb)))), layout)
        shape = depth[:: self._stride, :: self._stride].shape
        return _cloud_of(memoryview(points).cast("B"), shape, self._world.message.header)


def _cloud_of(data: bytes | memoryview, shape: tuple[int, int], header) -> PointCloud2:
    message = PointCloud2(header=header, height=shape[0], width=shape[1], point_step=16, row_step=16 * shape[1])
    message.data = array.array("B")
    message.data.frombytes(data)
    return message


def measure(way: Ours, runs: int) -> dict[str, list[float]]:
    """Milliseconds of every step and of their total, of each run after a first one that is thrown away."""
    times: dict[str, list[float]] = {step: [] for step in (*STEPS, "total")}
    for run in range(runs + 1):
        taken = dict(zip(STEPS, _once(way), strict=True))
        taken["total"] = sum(taken.values())
        for step, seconds in taken.items() if run else ():
            times[step].append(1e3 * seconds)
    return times


def _once(way: Ours) -> list[float]:
    marks = [time.perf_counter()]

    def timed(work: Callable, *arguments):
        result = work(*arguments)
        marks.append(time.perf_counter())
        return result

    rgb = timed(way.rgb)
    timed(way.resize, rgb)
    depth = timed(way.depth)
    timed(way.depth_message, depth)
    timed(way.cloud_message, depth, rgb)
    timed(way.odometry_message)
    return [end - start for start, end in zip(marks[:-1], marks[1:], strict=True)]


def compare(size: tuple[int, int], stride: int, runs: int) -> dict:
    """All ways on one image size: {way: {step: {p50, p95, runs}}} [ms]. The loops in Python get fewer runs."""
    scene = world(*size)
    makers = {"ours": Ours, "mesh grid": MeshGrid, "point by point": PointByPoint, "point list": PointList}
    found = {}
    for name in WAYS:
        count = runs if name not in LOOPS else max(2, runs // 40)
        found[name] = {step: _summary(values) for step, values in measure(makers[name](scene, stride), count).items()}
    return {"width": size[0], "height": size[1], "stride": stride, "ways": found}


def repeated(sizes: Sequence[tuple[int, int]], stride: int, runs: int, rounds: int) -> list[dict]:
    """Medians of `rounds` comparisons of each size, in turns, so that a busy moment does not meet one size only."""
    all_rounds = [[compare(size, stride, runs) for size in sizes] for _ in range(rounds)]
    return [
        {**of_one_size[0], "ways": benchmarking.median_of([one["ways"] for one in of_one_size])}
        for of_one_size in zip(*all_rounds, strict=True)
    ]


def _summary(values: list[float]) -> dict[str, float]:
    return {"p50": float(np.percentile(values, 50)), "p95": float(np.percentile(values, 95)), "runs": len(values)}


def table(result: dict) -> str:
    """Markdown: one row a step; p50 / p95 [ms] of ours, p50 and its ratio to ours of the usual ways; then a verdict."""
    ways = result["ways"]
    lines = [
        f"**{_size(result)}, cloud stride {result['stride']}** (milliseconds)\n",
        "| step | ours p50 / p95 | " + " | ".join(f"usual, {way}" for way in WAYS[1:]) + " |",
        "|---" * (1 + len(WAYS)) + "|",
    ]
    for step in (*STEPS, "total"):
        ours = ways["ours"][step]
        others = ["same" if step in SAME else _against(ways[name][step]["p50"], ours["p50"]) for name in WAYS[1:]]
        lines.append(f"| {step} | {ours['p50']:.3f} / {ours['p95']:.3f} | {' | '.join(others)} |")
    return "\n".join([*lines, "", verdict(result)])


def verdict(result: dict) -> str:
    """One sentence: p95 of ours beside what is allowed, and how many times less ours is than a list of points."""
    ours, usual = (result["ways"][way]["total"] for way in ("ours", "point list"))
    allowed = ALLOWED_P95.get((result["width"], result["height"]))
    limit = f" (allowed: {allowed:g} ms)" if allowed else ""
    times = usual["p50"] / ours["p50"]
    return f"{_size(result)}: p95 {ours['p95']:.2f} ms{limit}; {times:.1f} times less than with a list of points."


def shipped_stride() -> int:
    """points.stride of the parameter file that ships."""
    text = share("config", "endomust.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["/**"]["ros__parameters"]["points.stride"]


def main(args: list[str] | None = None) -> int:
    """`endomust bench node --overhead`: prints the tables, writes --json."""
    parser = argparse.ArgumentParser(prog="python -m endomust_ros.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers to this file")
    parser.add_argument("--runs", type=int, default=200, help="runs of each way (the Python loops get a fortieth)")
    parser.add_argument("--rounds", type=int, default=5, help="of everything; medians are shown (default 5)")
    parser.add_argument("--stride", type=int, help="every n-th pixel becomes a point (default: config/endomust.yaml)")
    options = parser.parse_args(args)
    cv2.setNumThreads(1)  # the node's default: the cores belong to the networks
    stride = options.stride or shipped_stride()
    sizes = repeated(tuple(ALLOWED_P95), stride, options.runs, options.rounds)
    sys.stdout.write("\n\n".join(map(table, sizes)) + "\n")
    if options.json:
        command = ["endomust", "bench", "node", "--overhead", "--stride", str(stride), "--json", str(options.json)]
        results = {"unit": "ms", "rounds": options.rounds, "conditions": conditions(), "sizes": sizes}
        benchmarking.write(options.json, benchmarking.document("overhead", results, command=shlex.join(command)))
    return 0


def conditions() -> dict[str, object]:
    """What these times depend on, beside the machine."""
    checks = os.environ.get("ROS_PYTHON_CHECK_FIELDS", "0")
    return {"opencv_threads": cv2.getNumThreads(), "field_checks": checks}


def _size(result: dict) -> str:
    return f"{result['width']}x{result['height']}"


def _against(other: float, ours: float) -> str:
    return f"{other:.3f} ({other / ours:.1f}x)"


if __name__ == "__main__":
    sys.exit(main())
