"""Summary and drawings of one replay → its report, one HTML page; depth in metres, times in seconds."""

from __future__ import annotations

from html import escape

import numpy as np

from endomust_core import report
from endomust_core.charts import Series, line_chart
from endomust_core.odometry import OPTICAL_TO_BODY
from endomust_core.replay_outputs import Made

THREADS = {
    "decode": "reading and decoding",
    "networks": "networks",
    "record": "recording, trajectory, cloud",
    "film": "video",
}


def replay_page(summary: dict, made: Made, curve: list, times: np.ndarray, facts: dict[str, str]) -> str:
    """`curve` holds (seconds, share of valid pixels, median depth [m]), `times` (N,4) seconds of the stages."""
    source, model = summary["source"], summary["model"]
    sections = [
        report.headline(_cards(summary)),
        _words_section(summary),
        report.frames_section(made.pictures, note=_frames_note(summary)),
        _cloud_section(summary, made),
        _trajectory_section(made),
        _depth_section(np.array(curve)),
        _speed_section(summary, times),
        report.table_section("Numbers", _numbers(summary)),
        _files_section(summary),
        report.environment_section(facts),
    ]
    name = source["path"].rstrip("/").rpartition("/")[2]
    when = facts["date"][:10]
    return report.page("Replay", f"{name}, model {model['name']} {model['version']}, {when}", sections)


def _cards(summary: dict) -> list[tuple[str, str, str]]:
    images, speed, source = summary["images"], summary["speed"], summary["source"]
    unusable = f"{images['unusable']} could not be used" if images["unusable"] else "none left out"
    cards = [(f"{images['answered']}", "images answered", unusable)]
    cards.append(
        (f"{speed['images_per_second']:.1f}", "images per second", f"{speed['times_real_time']:.2f} × real time")
    )
    median = summary["depth"]["median"]
    valid = f"{summary['depth']['valid']:.0%} of the pixels have depth"
    cards.append(("none" if median is None else f"{median * 1e3:.0f} mm", "median depth", valid))
    stretches = summary["odometry"]["stretches"]
    if stretches:
        longest = max(stretches, key=lambda stretch: stretch["poses"])
        held = f"{summary['odometry']['lost']} images lost" if summary["odometry"]["lost"] else "never lost"
        cards.append((f"{longest['length'] * 1e3:.0f} mm", "path of the camera", held))
    if summary["cloud"] is not None:
        voxel = f"one per {summary['cloud']['voxel'] * 1e3:g} mm voxel"
        cards.append((f"{summary['cloud']['points']:,}".replace(",", " "), "points in the fused cloud", voxel))
    cards.append((f"{source['seconds']:.1f} s", "of source", source["kind"]))
    return cards


def _words_section(summary: dict) -> str:
    """What a reader must know before looking at the rest."""
    scale = [] if summary["model"]["metric"] else [_scale_words(summary["scale"])]
    lists = []
    for title, sentences in (("Incomplete", summary["problems"]), ("Notes", summary["notes"] + scale)):
        if sentences:
            items = "".join(f"<li>{escape(sentence[:1].upper() + sentence[1:])}</li>" for sentence in sentences)
            lists.append(report.section(title, f"<ul>{items}</ul>"))
    return "".join(lists)


def _scale_words(scale: float) -> str:
    given = f" (here times {scale:g})" if scale != 1.0 else ""
    return (
        f"The scale of this model is that of its training scenes{given}, not of this camera: depth and path are right "
        "up to one factor. Measure one known distance and give --scale."
    )


def _frames_note(summary: dict) -> str:
    return "Evenly spaced over the source; one colour scale for all, grey where there is no depth."


def _cloud_section(summary: dict, made: Made) -> str:
    if made.cloud is None:
        why = "no image has a calibration" if not summary["odometry"]["stretches"] else "it was not asked for"
        return report.section("Fused cloud", "", f"There is none: {why}.")
    points, colours = made.cloud
    body_to_optical = np.linalg.inv(OPTICAL_TO_BODY)[:3, :3].astype(np.float32)
    note = (
        "Five images a second joined by the odometry, in the axes of the first camera; a surface seen twice at two "
        "depths shows where scale or motion drift."
    )
    title = "Fused cloud"
    return report.cloud_section(points @ body_to_optical.T, colours, note).replace("Point cloud", title, 1)


def _trajectory_section(made: Made) -> str:
    drawn = [shape for poses, _, shape in made.trajectories if poses > 1]
    if not drawn:
        return ""
    longest = max(drawn, key=len)
    seconds = np.array([(stamp - longest[0][0]) / 1e9 for stamp, _ in longest])
    positions = np.array([position for _, position in longest])
    more = "" if len(drawn) == 1 else f" The longest of {len(drawn)} stretches between jumps of time."
    note = "Odometry frame: x forward, y left, z up at the first image." + more
    return report.trajectory_section(seconds, positions, None, note)


def _depth_section(curve: np.ndarray) -> str:
    medians = line_chart([Series(curve[:, 0], curve[:, 2] * 1e3, "median depth")], "time [s]", "median depth [mm]")
    percent = line_chart(
        [Series(curve[:, 0], curve[:, 1] * 100, "pixels with depth")], "time [s]", "pixels [%]", y_range=(0.0, 104.0)
    )
    note = "Jumps of the median while the picture stands still are the scale of the model, not the scene."
    return report.section("Depth over time", report.grid([medians, percent]), note)


def _speed_section(summary: dict, times: np.ndarray) -> str:
    speed = summary["speed"]
    busy = speed["busy_seconds"]
    rows = [
        (THREADS[name], f"{seconds:.1f} s busy ({seconds / speed['seconds']:.0%} of {speed['seconds']:.1f} s)")
        for name, seconds in busy.items()
    ]
    stages = speed["stages"]
    rows += [
        (f"{name}, each image", f"{value['p50'] * 1e3:.1f} ms (95 % under {value['p95'] * 1e3:.1f} ms)")
        for name, value in stages.items()
    ]
    note = "The four work at the same time; the one that is busy nearly all the time sets the pace."
    return report.table_section("Speed", rows, note)


def _numbers(summary: dict) -> list[tuple[str, str]]:
    source, images = summary["source"], summary["images"]
    rows = [("source", f"{source['path']} ({source['kind']})")]
    if source["topic"]:
        rows.append(("image topic", source["topic"]))
        rows.append(("camera_info", source["camera_info"] or "none"))
    rows += [
        ("images", f"{images['answered']} answered, {images['unusable']} unusable, {source['announced']} announced"),
        ("with odometry", str(images["with_odometry"])),
        ("size", ", ".join(f"{name} ({count})" for name, count in source["sizes"].items())),
        ("encoding", ", ".join(f"{name} ({count})" for name, count in source["encodings"].items())),
        ("pixels with depth", f"{summary['depth']['valid']:.1%}"),
        ("scale factor", f"{summary['scale']:g}"),
    ]
    for number, stretch in enumerate(summary["odometry"]["stretches"], start=1):
        rows.append((f"trajectory {number}", f"{stretch['poses']} poses, {stretch['length'] * 1e3:.1f} mm"))
    return rows


def _files_section(summary: dict) -> str:
    """Links to what lies beside the report; browsers do not play MPEG-4 Part 2, so the video is no picture here."""
    what = {
        "replay.mcap": "recording of all answers, for ros2 bag play and Foxglove",
        "depth.mp4": "video, colour beside depth (VLC, ffplay)",
        "trajectory": "poses in TUM format, metres",
        "cloud": "fused cloud, PLY, metres (MeshLab, CloudCompare)",
        "summary.json": "the numbers of this page",
    }
    rows = []
    for name in summary["files"]:
        words = next((text for start, text in what.items() if name.startswith(start)), "")
        if words:
            rows.append(f'<tr><th><a href="{escape(name)}">{escape(name)}</a></th><td>{escape(words)}</td></tr>')
    return report.section("Files", f'<div class="scroll"><table>{"".join(rows)}</table></div>')
