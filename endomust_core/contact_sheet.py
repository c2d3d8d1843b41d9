"""A recording of the node's answers → one picture: rows of colour, depth [m], confidence, and the cloud aside."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from endomust_core.camera import Camera
from endomust_core.decoding import camera_from, depth_from, rgb_from, stamp_ns
from endomust_core.odometry import so3_exp
from endomust_core.recording import RecordingError, RecordingReader

WIDTH = 320  # px of one picture
TURN, TILT = np.radians(-32.0), np.radians(22.0)  # of the eye that looks at the cloud, about the middle of the scene
SPLAT = 3  # px of a point
NEAR_SHARE, FAR_SHARE = 2, 98  # percentiles of inverse depth between which the colours lie, one range for all rows
MARGIN, INK = 22, (235, 235, 235)


def contact_sheet(recording: str | Path, rows: int = 5, node: str = "/endomust") -> np.ndarray:
    """(H,W,3) uint8 RGB. The recording holds rgb/image_rect, depth/image_rect, and what there is of confidence and
    depth/camera_info of `node`; `rows` images are taken at equal distances. Raises RecordingError."""
    topics = {
        name: f"{node}/{topic}"
        for name, topic in (
            ("rgb", "rgb/image_rect"),
            ("depth", "depth/image_rect"),
            ("confidence", "depth/confidence"),
            ("info", "depth/camera_info"),
        )
    }
    stamps = _common_stamps(recording, topics)
    if not stamps:
        raise RecordingError(
            f"{recording} holds no depth image beside an rgb image of {node}; record with "
            "python -m endomust_ros.record --rgb"
        )
    chosen = {stamps[i] for i in np.linspace(0, len(stamps) - 1, min(rows, len(stamps))).round().astype(int)}
    found = _read(recording, topics, chosen)
    low, high = _inverse_range([found[stamp]["depth"] for stamp in sorted(chosen)])
    lines = [_row(found[stamp], (stamp - stamps[0]) / 1e9, low, high) for stamp in sorted(chosen)]
    return np.vstack([_head(lines[0].shape[1], low, high), *lines])


def _common_stamps(recording, topics: dict[str, str]) -> list[int]:
    seen: dict[str, set[int]] = {"rgb": set(), "depth": set(), "confidence": set()}
    with RecordingReader(recording) as reader:
        wanted = {topics[name]: name for name in seen if topics[name] in reader.topics}
        for topic, kind, _, cdr in reader.messages(list(wanted)):
            seen[wanted[topic]].add(stamp_ns(reader.deserialize(kind, cdr)))
    both = seen["rgb"] & seen["depth"]
    return sorted(both & seen["confidence"] or both)


def _read(recording, topics: dict[str, str], chosen: set[int]) -> dict[int, dict[str, object]]:
    convert = {"rgb": rgb_from, "depth": depth_from, "confidence": depth_from, "info": camera_from}
    found: dict[int, dict[str, object]] = {stamp: {} for stamp in chosen}
    with RecordingReader(recording) as reader:
        names = {topic: name for name, topic in topics.items() if topic in reader.topics}
        for topic, kind, _, cdr in reader.messages(list(names)):
            message = reader.deserialize(kind, cdr)
            if (stamp := stamp_ns(message)) in chosen:
                found[stamp][names[topic]] = convert[names[topic]](message)
    return found


def _inverse_range(depths: list[np.ndarray]) -> tuple[float, float]:
    inverse = np.concatenate([(1 / depth[np.isfinite(depth)])[::97] for depth in depths])
    return tuple(np.percentile(inverse, (NEAR_SHARE, FAR_SHARE))) if inverse.size else (0.0, 1.0)


def _row(found: dict, seconds: float, low: float, high: float) -> np.ndarray:
    rgb, depth = found["rgb"], found["depth"]
    pictures = [rgb, _coloured(1 / depth, low, high, cv2.COLORMAP_TURBO)]
    if "confidence" in found:
        known = np.where(np.isfinite(depth), found["confidence"], np.nan)
        pictures.append(_coloured(known, 0, 1, cv2.COLORMAP_VIRIDIS))
    height = round(WIDTH * rgb.shape[0] / rgb.shape[1])
    cells = [cv2.resize(p, (WIDTH, height), interpolation=cv2.INTER_AREA) for p in pictures]
    cells.append(_cloud(depth, rgb, found.get("info"), height))
    cv2.putText(cells[0], f"{seconds:.1f} s", (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, INK, 1, cv2.LINE_AA)
    return np.hstack(cells)


def _head(width: int, low: float, high: float) -> np.ndarray:
    head = np.zeros((MARGIN, width, 3), np.uint8)
    names = ["colour", f"depth: red {1e3 / high:.0f} mm, blue {1e3 / low:.0f} mm", "confidence: dark 0, yellow 1"]
    names = [*(names if width == 4 * WIDTH else names[:2]), "cloud, seen from the side"]
    for place, name in enumerate(names):
        cv2.putText(head, name, (8 + place * WIDTH, MARGIN - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
    return head


def _coloured(values: np.ndarray, low: float, high: float, colours: int) -> np.ndarray:
    """(H,W) → (H,W,3) RGB; NaN is black."""
    with np.errstate(invalid="ignore"):
        levels = np.nan_to_num(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    picture = cv2.applyColorMap(levels, colours)[..., ::-1]
    return np.ascontiguousarray(np.where(np.isfinite(values)[..., None], picture, np.uint8(0)))


def _cloud(depth: np.ndarray, rgb: np.ndarray, camera: Camera | None, height: int) -> np.ndarray:
    """The points as an eye sees them that went round the scene; black where nothing is known of the camera."""
    view = np.zeros((height, WIDTH, 3), np.uint8)
    if camera is None:
        cv2.putText(view, "no calibration", (90, height // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK, 1, cv2.LINE_AA)
        return view
    points, colours = camera.back_project(depth).reshape(-1, 3), rgb.reshape(-1, 3)
    good = np.isfinite(points).all(axis=1)
    if not good.any():
        return view
    points, colours = points[good], colours[good]
    middle = np.array([0.0, 0.0, np.median(points[:, 2])])
    turned = (points - middle) @ (so3_exp([TILT, 0, 0]) @ so3_exp([0, TURN, 0])).T + middle
    focal = camera.fx * WIDTH / camera.width * 0.9
    ahead = turned[:, 2] > 0.1 * middle[2]
    turned, colours = turned[ahead], colours[ahead]
    u, v = focal * turned[:, 0] / turned[:, 2], focal * turned[:, 1] / turned[:, 2]
    u = np.rint(u - np.median(u) + WIDTH / 2).astype(int)
    v = np.rint(v - np.median(v) + height / 2).astype(int)
    order = np.argsort(-turned[:, 2])  # the nearest are painted last
    u, v, colours = u[order], v[order], colours[order]
    for dv in range(SPLAT):
        for du in range(SPLAT):
            inside = (u + du >= 0) & (u + du < WIDTH) & (v + dv >= 0) & (v + dv < height)
            view[v[inside] + dv, u[inside] + du] = colours[inside]
    return view
