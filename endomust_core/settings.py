"""What may be set about the work on images: one frozen dataclass; the node's parameters have its names and defaults."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from endomust_core.metric_scale import ScaleSettings
from endomust_core.visual_odometry import OdometrySettings

_ODOMETRY, _SCALE = OdometrySettings(), ScaleSettings()


@dataclass(frozen=True)
class Settings:
    """Lengths in metres, times in seconds, angles in radians."""

    input_undistort: bool = True  # raw images become those of a pinhole
    input_roi: tuple[int, ...] = ()  # x, y, width, height [pixels]; empty is all
    input_flip: str = "none"  # none | h | v | 180
    input_antialias: bool = True
    mask_detect: bool = False  # look for instruments in the image itself
    depth_min_range: float = 0.003  # nearer depth is invalid
    depth_max_range: float = 0.5
    depth_confidence_threshold: float = 0.0  # depth of a lower confidence is invalid
    depth_mask_specular: bool = False
    depth_mask_border: bool = True
    depth_temporal_filter: float = 0.0  # share of the past
    scale_mode: str = "fixed"  # none | fixed | file | kinematic
    scale_factor: float = 1.0  # multiplies depth and translation
    scale_require_metric: bool = False
    scale_window: float = _SCALE.scale_window
    scale_min_baseline: float = _SCALE.scale_min_baseline
    scale_lock_sigma: float = _SCALE.scale_lock_sigma
    scale_pose_axes: str = _SCALE.scale_pose_axes
    scale_time_offset: float = _SCALE.scale_time_offset
    scale_estimate_delay: bool = _SCALE.scale_estimate_delay
    odom_enable: bool = True
    odom_max_translation: float = _ODOMETRY.odom_max_translation  # from one image to the next; more counts as lost
    odom_max_rotation: float = _ODOMETRY.odom_max_rotation
    odom_refine: bool = _ODOMETRY.odom_refine
    odom_keyframe: bool = _ODOMETRY.odom_keyframe
    odom_lost_frames: int = _ODOMETRY.odom_lost_frames
    odom_on_lost: str = _ODOMETRY.odom_on_lost
    odom_covariance_scale: float = _ODOMETRY.odom_covariance_scale
    frames_odom: str = "odom"
    frames_camera_optical: str = ""  # empty: the frame_id of the image
    points_max_rate: float = 10.0  # clouds per second of image time; 0 is one for every image
    time_on_jump: str = "reset"  # reset | ignore | shutdown, when stamps go back


DEFAULTS = Settings()


def settings_from(words: Iterable[str], base: Settings | None = None) -> Settings:
    """`odom.refine=false`, `depth.temporal_filter=0.5`, … → Settings. Raises ValueError in words."""
    base, values = base or Settings(), {}
    names = {entry.name.replace("_", ".", 1): entry.name for entry in dataclasses.fields(Settings)}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            raise ValueError(f"'{word}' sets nothing; write NAME=VALUE, such as odom.refine=false")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise ValueError(f"there is no setting '{name}'; did you mean '{near}'?")
        values[names[name]] = _converted(name, text, getattr(base, names[name]))
    return dataclasses.replace(base, **values)


def words_of(settings: Settings) -> list[str]:
    """What differs from the defaults, as `settings_from` reads it."""
    names = {entry.name: entry.name.replace("_", ".", 1) for entry in dataclasses.fields(Settings)}
    changed = {
        field: getattr(settings, field) for field in names if getattr(settings, field) != getattr(DEFAULTS, field)
    }
    return [f"{names[field]}={_text(value)}" for field, value in changed.items()]


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _converted(name: str, text: str, now: object) -> object:
    try:
        value = yaml.safe_load(text) if not isinstance(now, str) else text
    except yaml.YAMLError:
        value = None
    if isinstance(now, float) and type(value) is int:
        value = float(value)
    if isinstance(now, tuple) and isinstance(value, list):
        value = tuple(value)
    if type(value) is not type(now):
        raise ValueError(f"{name} is '{text}'; it must be a {type(now).__name__} such as {now}")
    return value
