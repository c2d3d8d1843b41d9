"""What is made to be looked at (cloud, rgb, colours, compressed depth), one message at a time; on the second thread.

Depth, odometry and transforms never wait for these: the worker leaves a `Picture` in the mailbox of a thread of low
priority. Each output has a slot of its own, so a cloud that is due is replaced by the next cloud only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from std_msgs.msg import Header

from endomust_core.pipeline import Answer
from endomust_ros import messages
from endomust_ros.parameters import Parameters
from endomust_ros.preview import colourise


class Picture(NamedTuple):
    """One output that is due for one image, with everything it is made of; nobody changes any of it."""

    output: str
    answer: Answer
    header: Header
    parameters: Parameters


class Painter:
    """`paint(picture)` makes one message and publishes it. These outputs belong to the thread that calls it."""

    def __init__(self, outputs, statistics):
        self._outputs, self._statistics = outputs, statistics

    def paint(self, picture: Picture) -> None:
        start = time.perf_counter()
        make = PICTURES[picture.output]
        self._outputs.publish(picture.output, make(picture, self._outputs.spare(picture.output)), keep=True)
        self._statistics.add(**{picture.output: time.perf_counter() - start})


def _points(picture: Picture, spare):
    answer, p = picture.answer, picture.parameters
    confidence = None if answer.judgement is None else answer.confidence
    return messages.cloud_message(
        answer.depth,
        answer.picture,
        answer.camera,
        picture.header,
        spare,
        p.points_stride,
        p.points_fields,
        confidence,
        p.points_min_confidence,
    )


def _rgb(picture: Picture, spare):
    return messages.rgb_to_image(picture.answer.picture, picture.header, spare)


def _color(picture: Picture, spare):
    return messages.color_to_image(_painted(picture), picture.header, spare)


def _color_compressed(picture: Picture, spare):
    return messages.jpeg_message(_painted(picture), picture.header)


def _painted(picture: Picture) -> np.ndarray:
    p = picture.parameters
    return colourise(picture.answer.depth, p.color_min, p.color_max, p.color_map)


def _compressed_depth(picture: Picture, spare):
    p = picture.parameters
    coding = (p.depth_min_range, p.depth_max_range, p.compressed_depth_format, p.compressed_depth_level)
    return messages.compressed_depth_message(picture.answer.depth, picture.header, *coding)


PICTURES: dict[str, Callable] = {
    "points": _points,
    "rgb": _rgb,
    "color": _color,
    "color_compressed": _color_compressed,
    "compressed_depth": _compressed_depth,
}
