"""Which image topic is the camera's: ROS graph, or recording → exactly one name, or a sentence that says why not."""

import os
import time
from collections.abc import Callable

from endomust_core.recording import COMPRESSED_IMAGE, IMAGE, RecordingReader

# s until everybody is known: Fast DDS repeats its announcement every 3 s, and with the first one lost on a busy machine
# the second of two cameras was overlooked in 2 of 5 looks of one second.
PATIENCE = 3.5
PERIOD = 0.25  # s between two looks
RESET = "/reset_odometry"  # a service of our node, whatever its name: its images are answers, not a camera
EXAMPLE = "/endoscope/image_raw"


class NoCamera(LookupError):
    """There is not exactly one camera; the message lists what there is and says what to do."""


def recorded(path: str) -> tuple[str, list[str]]:
    """Raw name of the only colour stream in a recording, and all its topics; raises RecordingError in words."""
    with RecordingReader(path) as recording:
        return recording.camera_topic().removesuffix("/compressed"), list(recording.topics)


def streams(node) -> dict[str, bool]:
    """Image topics that are published now, by their raw names → whether a camera_info is published beside them."""
    ours = tuple(
        f"{name.removesuffix(RESET)}/" for name, _ in node.get_service_names_and_types() if name.endswith(RESET)
    )
    found = set()
    for topic, kinds in node.get_topic_names_and_types():
        raw = topic.removesuffix("/compressed")
        is_image = IMAGE in kinds or (COMPRESSED_IMAGE in kinds and raw != topic)
        if is_image and node.count_publishers(topic) and not (ours and topic.startswith(ours)):
            found.add(raw)
    return {raw: bool(node.count_publishers(f"{raw.rpartition('/')[0]}/camera_info")) for raw in sorted(found)}


def only_camera(node, wait: Callable[[float], object] = time.sleep) -> str:
    """Look for as long as a camera may stay unknown, then name the only one; raises NoCamera. `wait` takes seconds."""
    for _ in range(round(PATIENCE / PERIOD)):
        if sum(streams(node).values()) > 1:
            break  # that will not get better
        wait(PERIOD)
    seen = streams(node)
    cameras = [topic for topic, calibrated in seen.items() if calibrated]
    if len(cameras) == 1:
        return cameras[0]
    raise NoCamera(_why_not(cameras, list(seen)))


def find_camera() -> str:
    """`only_camera` of the graph, with a node of its own for the look."""
    import rclpy

    context = rclpy.Context()
    rclpy.init(args=[], context=context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node(f"endomust_launch_{os.getpid()}", context=context, start_parameter_services=False)
        try:
            return only_camera(node)
        finally:
            node.destroy_node()
    finally:
        rclpy.shutdown(context=context)


def _why_not(cameras: list[str], images: list[str]) -> str:
    if cameras:
        return f"there are several cameras: {', '.join(cameras)}; say which one: image_topic:={cameras[0]}"
    if images:
        what = "images are published without a camera_info beside them"
        return f"{what}: {', '.join(images)}; if one is the camera, say so: image_topic:={images[0]}"
    return (
        "nobody publishes images; start the camera driver first, or name the topic, and the node waits for it: "
        f"image_topic:={EXAMPLE}"
    )
