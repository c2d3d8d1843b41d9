"""A camera for benchmarks, in a process of its own: rendered frames again and again, raw or JPEG, with stamps of now.

Every message is made and serialised once; while it runs only the stamp changes, so that the camera takes little of the
cores that the node is measured on. On SIGINT it writes which stamps were sent, and ends.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import rclpy
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from endomust_core.camera import Camera
from endomust_core.decoding import camera_from_info, restamped_cdr, rgb_from
from endomust_core.recording import RecordingReader
from endomust_core.resources import share
from endomust_ros import messages
from endomust_ros.transport import fast_dds_environment

FRAMES = 24  # of the recording, played forwards and backwards, so that the camera never jumps
OPTICAL_FRAME = "endoscope_optical_frame"
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Loop:
    """Serialised messages in the order in which they are sent, and a hash of their pixels."""

    images: list[bytes]
    info: bytes
    digest: str


def make_loop(size: tuple[int, int], transport: str = "raw", frames: int = FRAMES) -> Loop:
    """The first frames of the recording that ships, at `size` (width, height)."""
    pictures, camera = _recorded(frames)
    header = Header(frame_id=OPTICAL_FRAME)
    make = _jpeg if transport == "compressed" else messages.rgb_to_image
    pictures = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
    there = [serialize_message(make(picture, header)) for picture in pictures]
    info = serialize_message(messages.camera_info_message(camera.resized(*size), header))
    pixels = hashlib.sha256(b"".join(map(bytes, pictures)))  # not of the messages: what fills their gaps is random
    return Loop([*there, *there[-2:0:-1]], info, pixels.hexdigest())


def _recorded(frames: int) -> tuple[list[np.ndarray], Camera]:
    pictures: list[np.ndarray] = []
    with RecordingReader(share("models", "demo", "endoscope.mcap")) as reader:
        topic = reader.camera_topic()
        camera = camera_from_info(reader.first(reader.camera_info_topic(topic)), rectified=False)
        for _, kind, _, cdr in reader.messages([topic]):
            pictures.append(np.ascontiguousarray(rgb_from(reader.deserialize(kind, cdr))))
            if len(pictures) == frames:
                break
    return pictures, camera


def _jpeg(rgb: np.ndarray, header: Header) -> CompressedImage:
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    message = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
    message.data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return message


class CameraTopics:
    """Publishers of one camera: an image and its camera_info with equal stamps."""

    def __init__(self, node, namespace: str, transport: str):
        # Reliable, because that serves both kinds of subscribers; five deep, as camera drivers are.
        qos = QoSProfile(depth=5, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)
        topic, kind = f"{namespace}/image_raw", Image
        if transport == "compressed":
            topic, kind = f"{topic}/compressed", CompressedImage
        self._image = node.create_publisher(kind, topic, qos)
        self._info = node.create_publisher(CameraInfo, f"{namespace}/camera_info", qos)

    def send(self, image: bytes, info: bytes) -> int:
        """Publish both, stamped now; returns the stamp [ns]."""
        stamp = time.time_ns()
        self._info.publish(restamped_cdr(info, stamp))
        self._image.publish(restamped_cdr(image, stamp))
        return stamp


def ticks(rate: float, stop: list) -> Iterator[int]:
    """0, 1, 2, … at `rate` [Hz] until `stop` is not empty; numbers whose moment has passed are left out."""
    start, number = time.monotonic(), 0
    while not stop:
        late = time.monotonic() - start - number / rate
        if late < 0:
            time.sleep(-late)
        elif late > 1 / rate:
            number += int(late * rate)
        yield number
        number += 1


def main(args: list[str] | None = None) -> int:
    """Publish until SIGINT or SIGTERM; the stamps go to --out."""
    options = _parse(args)
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))
    os.environ.update(fast_dds_environment(os.environ))
    loop = make_loop(options.size, options.transport)
    rclpy.init(args=[], signal_handler_options=rclpy.SignalHandlerOptions.NO)
    node = rclpy.create_node("camera", namespace=options.namespace, start_parameter_services=False)
    camera = CameraTopics(node, options.namespace, options.transport)
    stamps = [camera.send(loop.images[i % len(loop.images)], loop.info) for i in ticks(options.rate, stop)]
    node.destroy_node()
    rclpy.shutdown()
    options.out.write_text(json.dumps({"digest": loop.digest, "stamps_ns": stamps}) + "\n", encoding="utf-8")
    return 0


def size_of(text: str) -> tuple[int, int]:
    """'640x480' → (640, 480), for argparse."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text} is not WIDTHxHEIGHT, such as 640x480")
    return int(width), int(height)


def _parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m endomust_ros.benchmark_source", description=__doc__.split("\n")[0])
    parser.add_argument("--namespace", default="/endoscope")
    parser.add_argument("--size", type=size_of, default=(640, 480))
    parser.add_argument("--rate", type=float, default=30.0, help="images a second")
    parser.add_argument("--transport", choices=("raw", "compressed"), default="raw")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the stamps that were sent")
    return parser.parse_args(args)


if __name__ == "__main__":
    sys.exit(main())
