"""Parameters of the node (parameter_table.py) ↔ ROS: declared, checked, changed, and refused in words.

`declare(node)` gives the Parameters the node was started with; `changed(...)` gives new ones or says in words why not.
A dynamic parameter takes effect with the next image; a static one is read by `configure` and refused once that is done.
"""

import array
import dataclasses
import difflib
from collections.abc import Iterable, Mapping

from endomust_core import confinement
from endomust_core.backends import PROVIDERS
from endomust_core.engines import EngineOptions
from endomust_ros.parameter_table import ABOUT, DEFAULTS, Parameters

STATIC = "needs cleanup and configure"


class ParameterError(ValueError):
    """A parameter value that cannot be used; the text names the parameter, the value and what is allowed."""


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
        same = _plain(value, name) == getattr(now, ABOUT[name].name)
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
    new = dataclasses.replace(base, **{ABOUT[name].name: _plain(value, name) for name, value in values.items()})
    for name in values:
        _check_choice(name, getattr(new, ABOUT[name].name))
    resolution(new.depth_resolution)
    _check_order("depth.min_range", new.depth_min_range, "depth.max_range", new.depth_max_range)
    _check_order("color.min", new.color_min, "color.max", new.color_max)
    _check_roi(new.input_roi)
    for name in ("frames.odom", "frames.camera_optical", "frames.base"):
        if getattr(new, ABOUT[name].name).startswith("/"):
            raise ParameterError(f"{name} starts with a slash, which tf2 refuses; leave the slash out")
    if not new.frames_odom:
        raise ParameterError("frames.odom is empty; give the odometry frame a name")
    try:
        confinement.check_parameters({name: getattr(new, ABOUT[name].name) for name in confinement.PARAMETERS})
    except confinement.ConfinementError as error:
        raise ParameterError(str(error)) from error
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


def _check_roi(roi: tuple[int, ...]) -> None:
    if roi and (len(roi) != 4 or min(roi) < 0 or min(roi[2:]) < 1):
        raise ParameterError(f"input.roi is {list(roi)}; write [x, y, width, height] in pixels, or [] for all")


def _plain(value, name: str):
    if ABOUT[name].metadata["switch"] and isinstance(value, bool):
        return "on" if value else "off"
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
    message.dynamic_typing = about["switch"]
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
