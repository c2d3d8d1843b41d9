"""Configuration files: YAML and key=value overrides into nested frozen dataclasses.

An unknown key is an error that names the nearest.
"""

import dataclasses
import difflib
import typing
from pathlib import Path

import yaml


class ConfigError(ValueError):
    """The configuration says something that the program does not understand."""


def load_config(kind, path, overrides=()):
    """Read `path` and apply overrides like `depth.steps=500`; returns a `kind`.

    Raises ConfigError with the key and what is allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} is not of the form key=value")
        place = values
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
        place[last] = yaml.safe_load(text)
    return build(kind, values, path.name)


def build(kind, values, where):
    """dict → dataclass `kind`, section by section."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a section with keys, not {values!r}")
    hints, fields = typing.get_type_hints(kind), {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(hints)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {advice}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            value = build(hint, value, f"{where}: {key}")
        elif hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            try:
                value = float(value)  # YAML reads 1e-3 as text
            except ValueError:
                raise ConfigError(f"{where}: {key} must be a number, not {value!r}") from None
        elif hint in (int, str, bool, float) and (
            not isinstance(value, hint) or (hint is int and isinstance(value, bool))
        ):
            raise ConfigError(f"{where}: {key} must be of type {hint.__name__}, not {value!r}")
        elif typing.get_origin(hint) is tuple and isinstance(value, list):
            value = tuple(value)
        fields[key] = value
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None
