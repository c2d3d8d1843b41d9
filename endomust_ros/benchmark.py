"""Times the node's work on one image outside the networks [ms], beside the usual ways to do it, in the same run.

Message in, message out; DDS is not timed. The usual ways are what most Python nodes do: images are copied in and out as
cv_bridge does, depth is resized after the inversion, and the cloud is built by numpy with a mesh grid for every image,
or by a Python loop that packs one point at a time.
"""

import argparse
import array
import json
import os
import platform
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header

from endomust_core.bundle import resize_rgb
from endomust_core.camera import Camera
from endomust_core.cloud import ray_planes
from endomust_core.estimator import to_depth
from endomust_core.odometry import Odometry, se3, so3_exp, to_body
from endomust_ros import messages

SIZES = ((640, 512), (1280, 1024))
NETWORK = (168, 224)  # H, W of the default bundle
STEPS = ("message → rgb", "resize", "disparity → depth", "depth → message", "cloud → message", "odometry → message")
SAME = ("resize", "odometry → message")  # steps that are one function in every way
WAYS = ("ours", "mesh grid", "point by point")


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
        s, camera = self._stride, self._world.camera
        parts = []
        for v in range(0, camera.height, s):
            for u in range(0, camera.width, s):
                z = depth[v, u]
                r, g, b = rgb[v, u]
                bits = int(r) << 16 | int(g) << 8 | int(b)
                x, y = (u - camera.cx) * z / camera.fx, (v - camera.cy) * z / camera.fy
                parts.append(struct.pack("<fffI", x, y, z, bits))
        return _cloud_of(b"".join(parts), depth[::s, ::s].shape, self._world.message.header)


def _cloud_of(data: bytes, shape: tuple[int, int], header) -> PointCloud2:
    message = PointCloud2(header=header, height=shape[0], width=shape[1], point_step=16, row_step=16 * shape[1])
    message.data = array.array("B", data)
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
    """All ways on one image size: {way: {step: {p50, p95, runs}}} [ms]. The loop in Python gets fewer runs."""
    scene = world(*size)
    makers = {"ours": Ours, "mesh grid": MeshGrid, "point by point": PointByPoint}
    found = {}
    for name in WAYS:
        count = runs if name != "point by point" else max(2, runs // 40)
        found[name] = {step: _summary(values) for step, values in measure(makers[name](scene, stride), count).items()}
    return {"width": size[0], "height": size[1], "stride": stride, "ways": found}


def _summary(values: list[float]) -> dict[str, float]:
    return {"p50": float(np.percentile(values, 50)), "p95": float(np.percentile(values, 95)), "runs": len(values)}


def table(result: dict) -> str:
    """Markdown: one row a step; p50 / p95 [ms] for ours, p50 and its ratio to ours for the usual ways."""
    ways = result["ways"]
    lines = [
        f"**{result['width']}x{result['height']}, cloud stride {result['stride']}** (milliseconds)\n",
        "| step | ours p50 / p95 | usual, cloud by mesh grid | usual, cloud point by point |",
        "|---|---|---|---|",
    ]
    for step in (*STEPS, "total"):
        ours = ways["ours"][step]
        others = ["same" if step in SAME else _against(ways[name][step]["p50"], ours["p50"]) for name in WAYS[1:]]
        lines.append(f"| {step} | {ours['p50']:.3f} / {ours['p95']:.3f} | {' | '.join(others)} |")
    return "\n".join(lines)


def _against(other: float, ours: float) -> str:
    return f"{other:.3f} ({other / ours:.1f}x)"


def machine() -> dict[str, object]:
    return {
        "cpu_cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "opencv_threads": cv2.getNumThreads(),
        "field_checks": os.environ.get("ROS_PYTHON_CHECK_FIELDS", "0"),
        "load_1min": os.getloadavg()[0],
    }


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m endomust_ros.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers to this file")
    parser.add_argument("--runs", type=int, default=200, help="runs of each way (the Python loop gets a fortieth)")
    parser.add_argument("--stride", type=int, default=1, help="every n-th pixel becomes a point")
    options = parser.parse_args(args)
    cv2.setNumThreads(1)  # the node's default: the cores belong to the networks
    results = [compare(size, options.stride, options.runs) for size in SIZES]
    sys.stdout.write("\n\n".join(map(table, results)) + "\n")
    if options.json:
        content = {"unit": "ms", "machine": machine(), "results": results}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
