"""The table of the node's parameters: name, default, unit, range, description, and whether each may change later."""

import dataclasses
from dataclasses import dataclass, field

from endomust_core.backends import PRECISIONS, PROVIDERS
from endomust_core.compressed_depth import FORMATS
from endomust_core.engines import EngineOptions
from endomust_core.golden import MODES
from endomust_core.settings import Settings
from endomust_ros.preview import MAPS

ENGINES = EngineOptions()
CORE = Settings()  # one default, one place: what replay needs too is set there


def _parameter(name, default, description, *, unit="", limits=None, choices=None, dynamic=False, switch=False):
    """`switch`: true and false are taken for on and off, which YAML does not tell apart from them."""
    about = {"name": name, "description": description, "unit": unit, "limits": limits, "choices": choices}
    about |= {"dynamic": dynamic, "switch": switch}
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Parameters:
    """Values of all parameters; the field is the name with dots as underscores."""

    autostart: bool = _parameter(
        "autostart", True, "Configure and activate by itself at start; false for a lifecycle manager."
    )

    model_path: str = _parameter(
        "model.path",
        "",
        "Folder or manifest.yaml of the model bundle, or endomust-small, which ships too; empty is endomust-tiny.",
    )
    model_providers: tuple[str, ...] = _parameter(
        "model.providers",
        ("cpu",),
        "What may run the networks, in order of preference. None is replaced silently.",
        choices=PROVIDERS,
    )
    model_threads: int = _parameter(
        "model.threads", 0, "Threads of the inference on the CPU; 0 is all cores.", limits=(0, 256)
    )
    model_precision: str = _parameter(
        "model.precision",
        ENGINES.precision,
        "Precision of the networks; auto is what the provider does fastest, see docs/deploy.md.",
        choices=PRECISIONS,
    )
    model_device_id: int = _parameter("model.device_id", ENGINES.device_id, "Number of the GPU.", limits=(0, 15))
    model_engine_cache_dir: str = _parameter(
        "model.engine_cache_dir",
        "",
        "Folder of the engines built for this machine; empty is endomust/engines in the user's cache folder.",
    )
    model_self_test: str = _parameter(
        "model.self_test",
        ENGINES.self_test,
        "What happens when an engine differs from the reference images of the bundle: require refuses it.",
        choices=MODES,
    )
    model_self_test_tolerance: float = _parameter(
        "model.self_test_tolerance",
        ENGINES.self_test_tolerance,
        "Median relative difference that passes, on top of what the bundle says of the precision.",
        limits=(0.0, 0.5),
    )
    model_warmup_runs: int = _parameter(
        "model.warmup_runs", 3, "Inferences before the first image, so that it is not the slow one.", limits=(0, 100)
    )

    input_transport: str = _parameter(
        "input.transport",
        "auto",
        "Which input to listen to; auto takes what is published, raw before compressed.",
        choices=("auto", "raw", "compressed"),
    )
    input_qos: str = _parameter(
        "input.qos",
        "auto",
        "auto is reliable when every publisher offers it, else best effort.",
        choices=("auto", "sensor_data", "reliable"),
    )
    input_rectified: bool = _parameter(
        "input.rectified",
        False,
        "The images are rectified: use P of camera_info. A topic image_rect, image_rect_color or _mono is known to be.",
    )
    input_undistort: bool = _parameter(
        "input.undistort", CORE.input_undistort, "Undistort raw images, so that all outputs are those of a pinhole."
    )
    input_roi: tuple[int, ...] = _parameter(
        "input.roi",
        CORE.input_roi,
        "Part of the image to use, [x, y, width, height] in pixels; empty is all. Cuts off overlays and borders.",
    )
    input_flip: str = _parameter(
        "input.flip",
        CORE.input_flip,
        "Mirror the image left to right (h), top to bottom (v), or both (180).",
        choices=("none", "h", "v", "180"),
    )
    input_antialias: bool = _parameter(
        "input.antialias",
        CORE.input_antialias,
        "Average pixels before a reduction by more than two; false is faster and noisier.",
        dynamic=True,
    )
    input_max_rate: float = _parameter(
        "input.max_rate",
        0.0,
        "Images per second of image time that are used; 0 is all.",
        unit="Hz",
        limits=(0.0, 240.0),
        dynamic=True,
    )
    input_expected_rate: float = _parameter(
        "input.expected_rate",
        0.0,
        "Diagnostics warn when the camera is slower than 90 % of this; 0 learns the rate.",
        unit="Hz",
        limits=(0.0, 240.0),
        dynamic=True,
    )
    input_max_age: float = _parameter(
        "input.max_age",
        0.0,
        "Images older than this are dropped; 0 keeps all.",
        unit="s",
        limits=(0.0, 10.0),
        dynamic=True,
    )
    input_timeout: float = _parameter(
        "input.timeout",
        2.0,
        "Diagnostics warn when no image came for this long.",
        unit="s",
        limits=(0.1, 60.0),
        dynamic=True,
    )

    calibration_file: str = _parameter(
        "calibration.file", "", "ROS calibration file (YAML) of the camera; takes the place of camera_info."
    )

    mask_detect: bool = _parameter(
        "mask.detect",
        CORE.mask_detect,
        "Look for instruments in the image itself, on top of what the topic `mask` says.",
        dynamic=True,
    )
    mask_max_age: float = _parameter(
        "mask.max_age",
        0.2,
        "A mask whose stamp differs more from that of the image is not used.",
        unit="s",
        limits=(0.0, 60.0),
        dynamic=True,
    )

    depth_resolution: str = _parameter(
        "depth.resolution", "input", "Size of the depth image: input, network, or WIDTHxHEIGHT such as 640x512."
    )
    depth_min_range: float = _parameter(
        "depth.min_range", CORE.depth_min_range, "Nearer depth is invalid.", unit="m", limits=(0.0, 10.0), dynamic=True
    )
    depth_max_range: float = _parameter(
        "depth.max_range", CORE.depth_max_range, "Farther depth is invalid.", unit="m", limits=(0.0, 10.0), dynamic=True
    )
    depth_invalid_value: str = _parameter(
        "depth.invalid_value",
        "nan",
        "What stands for invalid depth; nan is the convention (REP-118).",
        choices=("nan", "zero"),
        dynamic=True,
    )

    depth_encoding: str = _parameter(
        "depth.encoding",
        "32FC1",
        "32FC1 is metres, NaN where invalid; 16UC1 is millimetres, 0 where invalid, and too coarse for most scenes.",
        choices=("32FC1", "16UC1"),
    )
    depth_confidence_threshold: float = _parameter(
        "depth.confidence_threshold",
        CORE.depth_confidence_threshold,
        "Depth of a lower confidence is invalid; 0 keeps all.",
        limits=(0.0, 1.0),
        dynamic=True,
    )
    depth_mask_specular: bool = _parameter(
        "depth.mask_specular",
        CORE.depth_mask_specular,
        "Depth is invalid on highlights. Off, as the networks see through most of them; confidence is low there.",
        dynamic=True,
    )
    depth_mask_border: bool = _parameter(
        "depth.mask_border",
        CORE.depth_mask_border,
        "Depth is invalid on the black surround of the lens.",
        dynamic=True,
    )
    depth_temporal_filter: float = _parameter(
        "depth.temporal_filter",
        CORE.depth_temporal_filter,
        "Share of the depth that comes from the images before, carried along with the camera; 0 is none.",
        limits=(0.0, 0.99),
        dynamic=True,
    )

    scale_mode: str = _parameter(
        "scale.mode",
        CORE.scale_mode,
        "Where metres come from: the bundle (none), scale.factor (fixed), scale.file, or the robot (kinematic).",
        choices=("none", "fixed", "file", "kinematic"),
        dynamic=True,
    )
    scale_factor: float = _parameter(
        "scale.factor",
        CORE.scale_factor,
        "Multiplies depth and translation in mode fixed, and in mode kinematic until that is locked.",
        limits=(1e-6, 1e6),
        dynamic=True,
    )
    scale_file: str = _parameter(
        "scale.file",
        "",
        "What save_scale writes and mode file reads; empty is endomust/scale.yaml in the user's configuration folder.",
    )
    scale_require_metric: bool = _parameter(
        "scale.require_metric",
        CORE.scale_require_metric,
        "Withhold depth, cloud and odometry until their metres are true metres.",
        dynamic=True,
    )
    scale_window: float = _parameter(
        "scale.window",
        CORE.scale_window,
        "How far the kinematic estimate looks back.",
        unit="s",
        limits=(1.0, 120.0),
        dynamic=True,
    )
    scale_min_baseline: float = _parameter(
        "scale.min_baseline",
        CORE.scale_min_baseline,
        "Movement of the robot below which two poses say nothing about scale.",
        unit="m",
        limits=(1e-4, 1.0),
        dynamic=True,
    )
    scale_lock_sigma: float = _parameter(
        "scale.lock_sigma",
        CORE.scale_lock_sigma,
        "Relative standard deviation below which the kinematic scale counts as known.",
        limits=(1e-4, 0.5),
        dynamic=True,
    )
    scale_pose_axes: str = _parameter(
        "scale.pose_axes",
        CORE.scale_pose_axes,
        "Axes of the camera frame in camera_pose: dvrk (x left, y up), optical (x right, y down), ros (x forward).",
        choices=("dvrk", "optical", "ros"),
    )
    scale_time_offset: float = _parameter(
        "scale.time_offset",
        CORE.scale_time_offset,
        "Added to the stamps of camera_pose; positive where images are stamped later than the poses they belong to.",
        unit="s",
        limits=(-1.0, 1.0),
        dynamic=True,
    )
    scale_estimate_delay: bool = _parameter(
        "scale.estimate_delay",
        CORE.scale_estimate_delay,
        "Find what is left of the delay between poses and images from their motions.",
        dynamic=True,
    )

    odom_enable: bool = _parameter(
        "odom.enable", CORE.odom_enable, "Publish odometry, where the bundle has a pose network.", dynamic=True
    )
    odom_max_translation: float = _parameter(
        "odom.max_translation",
        CORE.odom_max_translation,
        "A larger motion from one image to the next counts as lost.",
        unit="m",
        limits=(0.0, 10.0),
        dynamic=True,
    )
    odom_max_rotation: float = _parameter(
        "odom.max_rotation",
        CORE.odom_max_rotation,
        "A larger rotation from one image to the next counts as lost.",
        unit="rad",
        limits=(0.0, 3.1415926),
        dynamic=True,
    )
    odom_refine: bool = _parameter(
        "odom.refine",
        CORE.odom_refine,
        "Refine the motion of the network with tracked points and the predicted depth.",
        dynamic=True,
    )
    odom_keyframe: bool = _parameter(
        "odom.keyframe", CORE.odom_keyframe, "Measure the motion from a keyframe: no drift at rest.", dynamic=True
    )
    odom_lost_frames: int = _parameter(
        "odom.lost_frames",
        CORE.odom_lost_frames,
        "Lost images in a row after which odom.on_lost happens.",
        limits=(1, 1000),
        dynamic=True,
    )
    odom_on_lost: str = _parameter(
        "odom.on_lost",
        CORE.odom_on_lost,
        "Hold the pose, send a null orientation as rtabmap does, or reset to start anew from the held pose.",
        choices=("hold", "null", "reset"),
        dynamic=True,
    )
    odom_covariance_scale: float = _parameter(
        "odom.covariance_scale",
        CORE.odom_covariance_scale,
        "Multiplies all covariances.",
        limits=(1e-6, 1e6),
        dynamic=True,
    )

    frames_odom: str = _parameter(
        "frames.odom", CORE.frames_odom, "Frame in which the camera moves; x forward, y left, z up at the start."
    )
    frames_camera_optical: str = _parameter(
        "frames.camera_optical",
        CORE.frames_camera_optical,
        "Frame of all outputs; empty takes the frame_id of the image.",
    )
    frames_base: str = _parameter(
        "frames.base",
        "",
        "Frame whose pose odometry reports, such as the robot's body; empty is the camera. Needs its static transform.",
    )
    tf_publish: str = _parameter(
        "tf.publish",
        "auto",
        "Send frames.odom → camera to /tf; auto stops where the camera already has another parent.",
        choices=("auto", "on", "off"),
        dynamic=True,
        switch=True,
    )
    tf_invert: bool = _parameter(
        "tf.invert", False, "Send camera → frames.odom instead, for a camera that already has a parent.", dynamic=True
    )

    points_enable: bool = _parameter(
        "points.enable", True, "Publish the point cloud while somebody subscribes to it.", dynamic=True
    )
    points_stride: int = _parameter(
        "points.stride", 2, "Every n-th pixel in both directions becomes a point.", limits=(1, 32), dynamic=True
    )
    points_max_rate: float = _parameter(
        "points.max_rate",
        CORE.points_max_rate,
        "Clouds per second of image time; 0 is one for every image.",
        unit="Hz",
        limits=(0.0, 240.0),
        dynamic=True,
    )

    points_fields: str = _parameter(
        "points.fields",
        "xyzrgb",
        "What a point carries: xyz, with colour, or with colour and confidence.",
        choices=("xyz", "xyzrgb", "xyzrgbc"),
    )
    points_min_confidence: float = _parameter(
        "points.min_confidence",
        0.0,
        "Points of a lower confidence are left out of the cloud; 0 keeps all.",
        limits=(0.0, 1.0),
        dynamic=True,
    )

    color_map: str = _parameter(
        "color.map", "turbo", "Colours of the depth preview.", choices=tuple(MAPS), dynamic=True
    )
    color_min: float = _parameter(
        "color.min", 0.0, "Depth at the near end of the preview.", unit="m", limits=(0.0, 10.0), dynamic=True
    )
    color_max: float = _parameter(
        "color.max", 0.15, "Depth at the far end of the preview.", unit="m", limits=(0.0, 10.0), dynamic=True
    )

    compressed_depth_enable: bool = _parameter(
        "compressed_depth.enable",
        False,
        "Publish depth as compressedDepth too.",
        dynamic=True,
    )
    compressed_depth_format: str = _parameter(
        "compressed_depth.format",
        "png",
        "How the inverse depth is packed; both are lossless after 16 bits.",
        choices=FORMATS,
        dynamic=True,
    )
    compressed_depth_level: int = _parameter(
        "compressed_depth.level", 1, "Effort of the PNG; rvl has none.", limits=(0, 9), dynamic=True
    )

    diagnostics_period: float = _parameter(
        "diagnostics.period",
        1.0,
        "Time between two diagnostics messages; 0 is never.",
        unit="s",
        limits=(0.0, 60.0),
        dynamic=True,
    )
    diagnostics_window: int = _parameter(
        "diagnostics.window",
        300,
        "Images that statistics look back on.",
        limits=(10, 10000),
        dynamic=True,
    )
    time_on_jump: str = _parameter(
        "time.on_jump",
        CORE.time_on_jump,
        "What happens when stamps or the clock go back: start anew, carry on, or end the node.",
        choices=("reset", "ignore", "shutdown"),
        dynamic=True,
    )
    snapshot_dir: str = _parameter(
        "snapshot.dir", "", "Folder of the service snapshot; empty is endomust/snapshots in the user's data folder."
    )
    realtime_cpu_affinity: tuple[int, ...] = _parameter(
        "realtime.cpu_affinity", (), "Cores that the node may use, such as [2, 3]; empty leaves them as they are."
    )
    realtime_nice: int = _parameter(
        "realtime.nice",
        0,
        "Priority of the node's threads; below 0 comes before others and needs permission.",
        limits=(-20, 19),
    )
    realtime_cv_threads: int = _parameter(
        "realtime.cv_threads", 1, "Threads of OpenCV; few leave the cores to the inference.", limits=(1, 64)
    )


ABOUT = {entry.metadata["name"]: entry for entry in dataclasses.fields(Parameters)}
DEFAULTS = Parameters()
