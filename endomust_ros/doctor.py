"""The ROS half of `endomust doctor`: middleware, shared memory, sockets, and a short look at what is published → rows.

Every check is a function of facts. rclpy is loaded by live_look.py alone, after another process has tried it.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from endomust_core.checks import FAIL, OK, WARN, Finding, Row, calibration, examine, size_words, text_of, together
from endomust_core.checks.software import Imported, try_imports
from endomust_ros.dds_profile import SIZE, camera_messages, node_messages, segment_bytes
from endomust_ros.transport import PARTICIPANTS, SHARED_MEMORY, VARIABLES, dds_profile, fast_dds_environment

IMAGE_SIZE = (1024, 1280)  # H, W of the usual endoscope camera, where nobody tells and none runs
DEFAULT_SEGMENT = 512 << 10  # bytes of shared memory that Fast DDS gives a participant by itself
MESSAGES = ("rclpy", "sensor_msgs.msg", "nav_msgs.msg", "diagnostic_msgs.msg", "lifecycle_msgs.srv", "std_srvs.srv")
HIGHEST_SAFE_DOMAIN, HIGHEST_DOMAIN = 101, 232  # above the first, ports meet those that Linux hands out
FRESH, FUTURE = 1.0, -0.05  # s: an older stamp is no live camera, a younger one another clock
INSTALLED = Path("/opt/ros")
DEPTH = re.compile(r"16UC1|32FC1")  # encodings of images that no camera sends us


def examine_ros(
    seconds: float = 3.0, topic: str | None = None, image_size: tuple[int, int] | None = None
) -> tuple[list[Row], tuple[int, int]]:
    """The rows, and the size (H, W) of the images: as given, as the camera sends, or the usual one.

    Changes os.environ as the node does at its start, so that both see the same ROS.
    """
    shell = dict(os.environ)
    try:
        os.environ.update(fast_dds_environment(os.environ))
    except (ValueError, OSError) as error:
        said = Row("ROS environment", FAIL, str(error), "correct the variable, or take it out of the environment")
        return [said], image_size or IMAGE_SIZE
    imports = try_imports(MESSAGES)
    rows = [examine("ROS client", client, imports, os.environ, _distributions())]
    if any(found.error for found in imports.values()):
        return rows, image_size or IMAGE_SIZE
    looks = [examine("middleware", middleware, os.environ), examine("domain", domain, os.environ)]
    seen = None
    if not any(row.level == FAIL for row in looks):
        seen, failed = _look(seconds, topic)
        looks += failed
    camera = seen.camera if seen else None
    size = image_size or (max(camera.sizes) if camera else IMAGE_SIZE)
    arriving = bool(camera and camera.rate)
    rows += [*looks, *_transport(shell, size, arriving), examine("TF", transforms, *_tf_packages())]
    return rows + (live_rows(seen) if seen else []), size


def _look(seconds: float, topic: str | None):
    """(what was seen or None, rows about a look that failed)."""
    try:
        from endomust_ros.live_look import look

        return look(seconds, topic), []
    except Exception as error:  # whatever rclpy raises, the rest of the page must come out
        said = f"ROS does not start: {type(error).__name__}: {error}"
        return None, [Row("live look", FAIL, said, "check the rows above and the messages on the terminal")]


def _transport(shell: Mapping[str, str], size: tuple[int, int], arriving: bool) -> list[Row]:
    """`shell` is the environment as the user has it, before we did what the node does at its start."""
    largest = max(camera_messages(size[1], size[0]).values())
    space = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    total, free = (space.total, space.free) if space else (None, None)
    read, write = (text_of(f"/proc/sys/net/core/{name}_max") for name in ("rmem", "wmem"))
    return [
        examine("shared memory", shared_memory, total, free, size),
        examine("Fast DDS profile", profile, shell, size, arriving),
        examine("socket buffers", sockets, read, write, largest, is_local(shell)),
    ]


def _distributions() -> list[str]:
    return sorted(path.parent.name for path in INSTALLED.glob("*/setup.bash"))


def _tf_packages() -> tuple[bool, bool]:
    return find_spec("tf2_ros") is not None, find_spec("tf2_msgs") is not None


# ---- the environment ---------------------------------------------------------------------------------------------


def client(imports: Mapping[str, Imported], env: Mapping[str, str], installed: Sequence[str]) -> Finding:
    """rclpy and the message packages import."""
    broken = {module: found.error for module, found in imports.items() if found.error}
    if not broken:
        return Finding(OK, f"rclpy and messages import, ROS_DISTRO {env.get('ROS_DISTRO') or 'not set'}")
    if "No module named" in broken.get("rclpy", ""):
        if installed:
            said = f"ROS 2 {' and '.join(installed)} is installed in {INSTALLED} and not sourced"
            remedy = f"source {INSTALLED}/{installed[-1]}/setup.bash, and that of the workspace if there is one"
            return Finding(FAIL, said, remedy)
        remedy = "install ROS 2, or pip install 'endomust_ros[ros]'; --no-ros leaves these checks out"
        return Finding(WARN, "ROS 2 is not installed: no node here; replay, evaluate and train work", remedy)
    said = "; ".join(f"import {module}: {error}" for module, error in broken.items())
    return Finding(FAIL, said, "install these packages of the same ROS distribution, for the Python that runs this")


def middleware(env: Mapping[str, str]) -> Finding:
    """The implementation that is asked for is installed."""
    name = env.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    prefixes = [Path(part) for part in env.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if part]
    if not prefixes:
        return Finding(FAIL, "AMENT_PREFIX_PATH is empty, so ROS finds no middleware", "source the setup file of ROS")
    if not any((prefix / "lib" / f"lib{name}.so").exists() for prefix in prefixes):
        remedy = f"apt install ros-$ROS_DISTRO-{name.replace('_', '-')}, or unset RMW_IMPLEMENTATION"
        return Finding(FAIL, f"{name} is not installed in any prefix of AMENT_PREFIX_PATH", remedy)
    return Finding(OK, name)


def domain(env: Mapping[str, str]) -> Finding:
    """Number and reach of discovery; the camera must have the same."""
    text = env.get("ROS_DOMAIN_ID", "") or "0"
    if not text.isdecimal() or int(text) > HIGHEST_DOMAIN:
        return Finding(FAIL, f"ROS_DOMAIN_ID is '{text}'", f"a number from 0 to {HIGHEST_SAFE_DOMAIN}")
    reach = env.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "") or "SUBNET"
    if reach == "OFF":
        remedy = "set ROS_AUTOMATIC_DISCOVERY_RANGE to LOCALHOST or SUBNET"
        return Finding(FAIL, "discovery is off, so no node finds another", remedy)
    where = "this machine only" if is_local(env) else "every machine of this network"
    if int(text) > HIGHEST_SAFE_DOMAIN:
        remedy = f"take a number up to {HIGHEST_SAFE_DOMAIN}"
        return Finding(WARN, f"domain {text}: its ports may be taken by other programs", remedy)
    return Finding(OK, f"domain {text}, {where}; the camera needs the same")


def is_local(env: Mapping[str, str]) -> bool:
    """True where ROS talks within this machine only."""
    return env.get("ROS_AUTOMATIC_DISCOVERY_RANGE") in ("LOCALHOST", "OFF") or env.get("ROS_LOCALHOST_ONLY") == "1"


def shared_memory(total: int | None, free: int | None, size: tuple[int, int]) -> Finding:
    """/dev/shm holds the segments of camera and node for images of this size (H, W)."""
    if total is None or free is None:
        return Finding(FAIL, f"there is no {SHARED_MEMORY}", "start the container with --ipc=host or --shm-size=512m")
    height, width = size
    need = PARTICIPANTS * segment_bytes(node_messages(width, height).values())
    sentence = f"{size_words(free)} of {size_words(total)} free"
    if free >= need:
        return Finding(OK, f"{sentence}; camera and node want {size_words(need)} for {width}x{height}")
    used = "; files of processes that crashed may fill it (fastdds shm clean)" if total >= need else ""
    remedy = f"start the container with --ipc=host or --shm-size=512m{used}; or send JPEG, which is small"
    said = f"{sentence}, camera and node want {size_words(need)} for {width}x{height}: raw images get lost"
    return Finding(FAIL, said, remedy)


def profile(env: Mapping[str, str], size: tuple[int, int], arriving: bool) -> Finding:
    """What the node would use, and what a camera driver started from this shell would; `arriving`: images do come."""
    height, width = size
    largest = max(camera_messages(width, height).values())
    path, why = dds_profile(env)
    set_here = next((env[name] for name in VARIABLES if env.get(name)), None)
    if not env.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp").startswith("rmw_fastrtps"):
        return Finding(OK, "not needed: another middleware is in use")
    if env.get("FASTDDS_BUILTIN_TRANSPORTS"):
        said = f"FASTDDS_BUILTIN_TRANSPORTS={env['FASTDDS_BUILTIN_TRANSPORTS']} is kept; every process needs the same"
        return Finding(OK, said)
    used = path or set_here
    segment = segment_of(used) if used else DEFAULT_SEGMENT
    room = f"{Path(used).name if used else 'no profile'}, {size_words(segment)} of shared memory"
    if segment < largest:
        remedy = f"let the node make its own: unset {VARIABLES[0]}, {VARIABLES[1]} and ENDOMUST_DDS_PROFILE"
        return Finding(WARN, f"{room}, an image of {width}x{height} has {size_words(largest)}: {why}", remedy)
    if segment < segment_bytes(node_messages(width, height).values()):
        return Finding(WARN, f"{room}: tight for {width}x{height}", f"set {SIZE}={width}x{height}, for the driver too")
    if set_here or arriving:
        return Finding(OK, f"{room}{'' if set_here else ' for the node; images arrive'}")
    return Finding(OK, f"{room} for the node; the camera driver needs its own (camera.launch.py)")


def segment_of(path: str | Path) -> int:
    """Shared memory that a profile gives a participant [bytes]; the default where it says nothing."""
    sizes = [node.text for node in ElementTree.parse(path).iter() if node.tag.endswith("segment_size") and node.text]
    return max((int(text) for text in sizes), default=DEFAULT_SEGMENT)


def sockets(read: str | None, write: str | None, largest: int, local: bool) -> Finding:
    """Kernel buffers against a raw image that comes from another machine."""
    if not (read and write):
        return Finding(OK, "their limits cannot be read here (container)")
    smallest = min(int(read), int(write))
    sentence = f"rmem_max {size_words(int(read))}, wmem_max {size_words(int(write))}"
    if local or smallest >= largest:
        return Finding(OK, sentence + (", not needed within one machine" if local else ""))
    limit = 1 << (2 * largest - 1).bit_length()
    remedy = (
        f"if the camera or a viewer is on another machine: sudo sysctl -w net.core.rmem_max={limit} "
        f"net.core.wmem_max={limit} net.ipv4.ipfrag_time=3 net.ipv4.ipfrag_high_thresh=134217728; or send JPEG"
    )
    return Finding(WARN, f"{sentence}: a raw image from another machine ({size_words(largest)}) may get lost", remedy)


def transforms(library: bool, messages: bool) -> Finding:
    """/tf can be sent."""
    if library or messages:
        return Finding(OK, "tf2_ros is installed" if library else "tf2_msgs is installed")
    remedy = "apt install ros-$ROS_DISTRO-tf2-ros-py; odometry is published as a topic all the same"
    return Finding(WARN, "neither tf2_ros nor tf2_msgs is installed: TF is off", remedy)


# ---- what was seen -----------------------------------------------------------------------------------------------


def live_rows(seen) -> list[Row]:
    """The node, every image topic and its calibration."""
    rows = [examine("node", node_state, seen)]
    cameras = [topic for topic in seen.topics if not _is_depth(topic)]
    if not cameras:
        said = "nobody publishes images"
        remedy = "start the camera driver, in the same domain; ros2 topic list shows what there is"
        return [*rows, Row("images", WARN, said, remedy)]
    for topic in cameras:
        rows += [examine("images", images, topic, seen.simulated_time), examine("camera_info", info, topic)]
    if seen.unheard:
        rows.append(Row("more images", OK, f"not listened to: {', '.join(seen.unheard)} (--topic picks one)"))
    return rows


def _is_depth(topic) -> bool:
    return bool(topic.encodings) and all(DEPTH.search(encoding) for encoding in topic.encodings)


def node_state(seen) -> Finding:
    """Our node runs, and what it complains about."""
    if not seen.nodes:
        return Finding(OK, "not running")
    states = ", ".join(f"{name} is {state}" for name, state in seen.nodes.items())
    if seen.complaints:
        said = "; ".join(f"{name}: {sentence}" for name, sentence in seen.complaints.items())
        return Finding(WARN, f"{states}; {said}", "see /diagnostics")
    if any(state != "active" for state in seen.nodes.values()):
        return Finding(WARN, states, "configure and activate it (ros2 lifecycle set); its log says why it could not")
    return Finding(OK, states)


def images(topic, simulated_time: bool) -> Finding:
    """Images arrive, whole, alike, and with stamps of this clock."""
    if not topic.arrivals:
        said = (
            f"{topic.name}: {topic.publishers} publish {topic.kind} images ({_words(topic.reliability)}), none arrived"
        )
        remedy = "if they are large, start the driver with camera.launch.py, which gives it shared memory for them"
        return Finding(FAIL, said, remedy)
    sizes = " and ".join(f"{width}x{height}" for height, width in sorted(topic.sizes)) or "unknown size"
    rate = f"{topic.rate:.3g} Hz" if topic.rate else "one image"
    age = f"age {1e3 * statistics.median(topic.ages):.0f} ms" if abs(topic.ages[-1]) < FRESH else "not live"
    coding = re.search("jpeg|png", _words(topic.encodings)) if topic.kind == "compressed" else None
    fine = f"{topic.name}: {sizes} {coding[0] if coding else _words(topic.encodings)}, {rate}"
    fine += f", {_words(topic.reliability)}, {age}"
    complaints = [*_delivery(topic), *_stamps(topic, simulated_time)]
    found = together(complaints, fine)
    return found if found.level == OK else found._replace(sentence=f"{fine}; {found.sentence}")


def _delivery(topic) -> list[Finding]:
    found, loss = [], topic.gaps.loss()
    if topic.publishers > 1:
        found.append(Finding(WARN, f"{topic.publishers} publishers on one topic", "leave one of them on"))
    if len(topic.sizes) > 1:
        remedy = "publish one size: cloud and odometry need that of the calibration"
        found.append(Finding(WARN, "the size changes", remedy))
    if loss.serious:
        remedy = "start the driver with camera.launch.py, which gives it shared memory for large images; or send JPEG"
        found.append(Finding(WARN, f"{loss.percent:.0f} % of the images got lost on the way", remedy))
    if "best_effort" in topic.reliability and topic.kind == "raw" and topic.largest > DEFAULT_SEGMENT:
        remedy = "offer reliable in the driver; the node takes what is offered"
        found.append(Finding(WARN, "large images are offered best effort: one lost packet loses the image", remedy))
    return found


def _stamps(topic, simulated_time: bool) -> list[Finding]:
    age = statistics.median(topic.ages)
    if 0 in topic.stamps:
        return [Finding(FAIL, "the driver does not stamp its images", "make the driver write header.stamp")]
    if len(topic.stamps) > 1 and len(set(topic.stamps)) == 1:
        return [Finding(FAIL, "every image has the same stamp", "make the driver write header.stamp for every image")]
    if any(later < earlier for earlier, later in zip(topic.stamps, topic.stamps[1:], strict=False)):
        remedy = "leave one publisher on; where a recording loops, odometry starts again each time"
        return [Finding(WARN, "stamps go back", remedy)]
    if simulated_time or FUTURE <= age <= FRESH:
        return []
    if age < FUTURE:
        remedy = "synchronise the clocks of both machines (chrony, PTP)"
        return [Finding(WARN, f"stamps are {-age:.2g} s in the future", remedy)]
    remedy = "for a recording endomust play --now, or use_sim_time and --clock; for a camera compare the clocks"
    return [Finding(WARN, f"stamps are {_duration(age)} old; input.max_age would drop them", remedy)]


def info(topic) -> Finding:
    """The calibration beside the images."""
    if topic.info is None:
        remedy = f"publish {topic.info_topic}, or remap camera_info; without it depth only, no cloud and no odometry"
        silent = "is published and silent" if topic.info_publishers else "is not published"
        return Finding(WARN, f"{topic.info_topic} {silent}", remedy)
    image_size = next(iter(topic.sizes)) if len(topic.sizes) == 1 else None
    found = calibration.calibration(topic.info, image_size)
    frames = topic.frames - {topic.info.frame_id}
    if frames:
        remedy = "give image and camera_info the same frame_id"
        found = together([found, Finding(WARN, f"images carry the frame {_words(frames)}", remedy)], "")
    return found._replace(sentence=f"{topic.info_topic}: {found.sentence}")


def _words(values) -> str:
    return " and ".join(sorted(repr(v) if not v else v for v in values)) or "unknown"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds > 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"
