"""Every parameter of the node in one frozen dataclass: name, default, unit, range, and whether it may change later.

`declare(node)` gives the Parameters the node was started with; `changed(...)` gives new ones or says in words why not.
A dynamic parameter takes effect with the next image; a static one is read by `configure` and refused once that is done.
"""

import array
import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from endomust_core.backends import PRECISIONS, PROVIDERS
from endomust_core.compressed_depth import FORMATS
from endomust_core.engines import EngineOptions
from endomust_core.golden import MODES
from endomust_core.pipeline import Settings
from endomust_ros.preview import MAPS

STATIC = "needs cleanup and configure"
ENGINES = EngineOptions()
CORE = Settings()  # one default, one place: what replay needs too is set there


class ParameterError(ValueError):
    """A parameter value that cannot be used; the text names the parameter, the value and what is allowed."""


def _parameter(name, default, description, *, unit="", limits=None, choices=None, dynamic=False):
    about = {"name": name, "description": description, "unit": unit, "limits": limits, "choices": choices}
    about["dynamic"] = dynamic
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
        "model.path", "", "Folder or manifest.yaml of the model bundle; empty is the one that ships."
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
        "input.rectified", False, "The images are rectified: use P of camera_info instead of K and the distortion."
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

    scale_factor: float = _parameter(
        "scale.factor", CORE.scale_factor, "Multiplies depth and translation.", limits=(1e-6, 1e6), dynamic=True
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

    frames_odom: str = _parameter(
        "frames.odom", CORE.frames_odom, "Frame in which the camera moves; x forward, y left, z up at the start."
    )
    frames_camera_optical: str = _parameter(
        "frames.camera_optical",
        CORE.frames_camera_optical,
        "Frame of all outputs; empty takes the frame_id of the image.",
    )
    tf_publish: bool = _parameter(
        "tf.publish", True, "Send frames.odom → camera to /tf; false where the camera already has a parent."
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


def engine_options(p: Parameters) -> EngineOptions:
    """How the networks are to run."""
    return EngineOptions(
        providers=p.model_providers,
        precision=p.model_precision,
        threads=p.model_threads,
        device_id=p.model_device_id,
        cache_dir=p.model_engine_cache_dir or None,
        self_test=p.model_self_test,
        self_test_tolerance=p.model_self_test_tolerance,
    )


def default(name: str):
    """Default of a parameter by its ROS name."""
    return getattr(DEFAULTS, ABOUT[name].name)


def declare(node) -> Parameters:
    """Declare all parameters on the node and return what it was started with. Raises ParameterError in words."""
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    values = {}
    for name in ABOUT:
        try:
            values[name] = _declare(node, name)
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise ParameterError(f"{name}: {error} ({_allowed(name)})") from error
    for stranger in unknown(getattr(node, "_parameter_overrides", {}), set(ABOUT) | set(_declared_by_ros(node))):
        node.get_logger().warning(stranger)
    return parameters_from(values)


def parameters_from(values: Mapping[str, object]) -> Parameters:
    """Parameters from ROS names and values; what is missing keeps its default. Raises ParameterError."""
    return _checked(DEFAULTS, values)


def changed(now: Parameters, values: Mapping[str, object], configured: bool) -> Parameters:
    """`now` with some values changed. Raises ParameterError: not allowed, or static while the node is configured."""
    for name, value in values.items():
        same = _plain(value) == getattr(now, ABOUT[name].name)
        if configured and not ABOUT[name].metadata["dynamic"] and not same:
            raise ParameterError(f"{name} is static: it {STATIC} (set it while the node is unconfigured)")
    return _checked(now, values)


def unknown(given: Iterable[str], known: Iterable[str]) -> list[str]:
    """One sentence for every given name that no parameter has, with the nearest one that exists."""
    known = sorted(known)
    sentences = []
    for name in sorted(given):
        if name in known or name.startswith("qos_overrides."):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        sentences.append(f"unknown parameter '{name}' has no effect; did you mean '{near[0]}'?")
    return sentences


def resolution(text: str):
    """'input', 'network' or 'WIDTHxHEIGHT' → the same word, or (width, height). Raises ParameterError."""
    if text in ("input", "network"):
        return text
    width, cross, height = text.partition("x")
    if cross and width.isdigit() and height.isdigit() and int(width) and int(height):
        return int(width), int(height)
    raise ParameterError(f"depth.resolution is '{text}'; write input, network, or WIDTHxHEIGHT such as 640x512")


def _checked(base: Parameters, values: Mapping[str, object]) -> Parameters:
    new = dataclasses.replace(base, **{ABOUT[name].name: _plain(value) for name, value in values.items()})
    for name in values:
        _check_choice(name, getattr(new, ABOUT[name].name))
    resolution(new.depth_resolution)
    _check_order("depth.min_range", new.depth_min_range, "depth.max_range", new.depth_max_range)
    _check_order("color.min", new.color_min, "color.max", new.color_max)
    for name in ("frames.odom", "frames.camera_optical"):
        if getattr(new, ABOUT[name].name).startswith("/"):
            raise ParameterError(f"{name} starts with a slash, which tf2 refuses; leave the slash out")
    if not new.frames_odom:
        raise ParameterError("frames.odom is empty; give the odometry frame a name")
    if not new.model_providers:
        raise ParameterError(f"model.providers is empty; give at least one of {', '.join(PROVIDERS)}")
    return new


def _check_choice(name: str, value) -> None:
    choices = ABOUT[name].metadata["choices"]
    for one in value if isinstance(value, tuple) else (value,):
        if choices and one not in choices:
            raise ParameterError(f"{name} is '{one}'; it must be one of {', '.join(choices)}")


def _check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    if not low < high:
        raise ParameterError(f"{low_name} ({low:g} m) must be smaller than {high_name} ({high:g} m)")


def _plain(value):
    return tuple(value) if isinstance(value, list | tuple | array.array) else value


def _declare(node, name: str):
    """Declare one parameter and return its value. rclpy guesses the type of a default, but an empty list has none."""
    from rclpy.parameter import Parameter

    value = default(name)
    if value != ():
        plain = list(value) if isinstance(value, tuple) else value
        return node.declare_parameter(name, plain, _descriptor(name)).value
    integers = Parameter.Type.INTEGER_ARRAY
    got = node.declare_parameter(name, integers, _descriptor(name)).value
    if got is None:  # left unset, it would keep all other values out of the answer to one question for several
        node.set_parameters([Parameter(name, integers, [])])
    return got or ()


def _allowed(name: str) -> str:
    about, kind = ABOUT[name].metadata, type(default(name)).__name__
    limits = f" from {about['limits'][0]:g} to {about['limits'][1]:g}" if about["limits"] else ""
    example = ", written with a point, such as 10.0" if kind == "float" else ""
    items = "list of strings" if default(name) else "list of integers"
    return f"expected: {items if kind == 'tuple' else kind}{limits}{example}"


def _descriptor(name: str):
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    about = ABOUT[name].metadata
    when = "takes effect with the next image" if about["dynamic"] else f"static: {STATIC}"
    unit = f" [{about['unit']}]" if about["unit"] else ""
    message = ParameterDescriptor(description=f"{about['description']}{unit} ({when})")
    if about["choices"]:
        message.additional_constraints = f"one of: {', '.join(about['choices'])}"
    if about["limits"] and isinstance(default(name), float):
        low, high = map(float, about["limits"])
        message.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif about["limits"]:
        message.integer_range = [IntegerRange(from_value=about["limits"][0], to_value=about["limits"][1])]
    return message


def _declared_by_ros(node) -> Iterable[str]:
    """Names that rclpy itself declares, such as use_sim_time."""
    return (name for name in getattr(node, "_parameters", {}))
