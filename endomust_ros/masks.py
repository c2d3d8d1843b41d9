"""Newest message of the topic `mask` → (H, W) uint8 for an image of a certain stamp, 0 where to look away."""

import numpy as np

from endomust_core.decoding import DecodingError, stamp_ns
from endomust_ros import messages

ENCODINGS = ("mono8", "8UC1")


class Masks:
    """`update` is called by the main thread, `at` by the worker: both see one message that is replaced whole."""

    def __init__(self, note):
        """`note(reason, sentence)` gets what is wrong: mask_encoding, mask_old."""
        self._note, self._newest, self._made = note, None, None

    def update(self, message) -> None:
        self._newest = message

    def at(self, stamp: int, max_age: float) -> np.ndarray | None:
        """The mask for an image with this stamp [ns]; None where there is none, or only an old one."""
        message = self._newest
        if message is None:
            return None
        age = abs(stamp - stamp_ns(message)) * 1e-9
        if age > max_age:
            self._note("mask_old", f"the mask differs by {age:.2f} s from the image; mask.max_age is {max_age:g} s")
            return None
        if self._made is None or self._made[0] is not message:
            self._made = message, self._decoded(message)
        return self._made[1]

    def _decoded(self, message) -> np.ndarray | None:
        if message.encoding not in ENCODINGS:
            self._note("mask_encoding", f"a mask comes as '{message.encoding}'; publish mono8, 0 where to look away")
            return None
        try:
            return np.ascontiguousarray(messages.image_to_rgb(message)[..., 0])
        except DecodingError as error:
            self._note("mask_decode", f"mask not used: {error}")
            return None
