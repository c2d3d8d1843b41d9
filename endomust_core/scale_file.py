"""A measured scale (m per network unit, relative sigma) <-> a small YAML file that names the model it belongs to.

The scale belongs to the networks of one bundle and to one camera: with other networks it means nothing, so loading it
beside another bundle is refused.
"""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import yaml

FORMAT = "endomust scale 1"
KEYS = {"format", "factor", "sigma", "digest", "date", "source", "facts"}
FACTORS = (1e-6, 1e6)  # m per network unit; the range of the parameter scale.factor


class ScaleFileError(ValueError):
    """The file holds no scale that can be used here; the message says why and what to do."""


@dataclass(frozen=True)
class SavedScale:
    """What a scale file says."""

    factor: float  # m per network unit
    sigma: float  # relative standard deviation
    digest: str  # of the bundle, one sha256
    date: str  # ISO 8601, UTC
    source: str  # how it was measured: kinematic | stereo | fixed
    facts: dict  # what else was worth keeping, plain values


def save_scale(path: str | Path, factor: float, sigma: float, facts: dict) -> Path:
    """Write the scale, whole or not at all; returns the path.

    `facts` must hold `digest`, that of the running bundle; `source` (default kinematic), `date` (default now) and
    whatever else may be in it. Raises ScaleFileError for what is no scale, OSError where nothing can be written.
    """
    path, rest = Path(path), dict(facts)
    content = {
        "format": FORMAT,
        "factor": float(factor),
        "sigma": float(sigma),
        "digest": str(rest.pop("digest", "")),
        "date": str(rest.pop("date", datetime.now(timezone.utc).isoformat(timespec="seconds"))),
        "source": str(rest.pop("source", "kinematic")),
        "facts": {str(key): _plain(value) for key, value in rest.items()},
    }
    _checked(content, "the scale to save")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yaml.safe_dump(content, file, sort_keys=False)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)  # mkstemp makes it private, and another user may run the node
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return path


def load_scale(path: str | Path, digest: str | None = None) -> SavedScale:
    """Read what `save_scale` wrote; `digest` is that of the running bundle. Raises ScaleFileError.

    Without `digest` the file is taken whatever model it belongs to.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScaleFileError(f"there is no scale file {path}; measure the scale and save it first") from None
    except OSError as error:
        raise ScaleFileError(f"{path} cannot be read ({error}); check the path and its permissions") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScaleFileError(f"{path} is not YAML ({error}); measure the scale again and save it") from error
    _checked(content, str(path))
    if digest is not None and content["digest"] != digest:
        raise ScaleFileError(
            f"{path} was measured with the model {content['digest'][:12]}, {digest[:12]} is running; measure the scale "
            "again with this model, or load the model of the file"
        )
    facts = dict(content["facts"] or {})
    date, source = str(content["date"]), str(content["source"])
    return SavedScale(float(content["factor"]), float(content["sigma"]), content["digest"], date, source, facts)


def _checked(content, where: str) -> None:
    """Raise ScaleFileError unless `content` is a mapping with the right keys and sensible numbers."""
    again = "measure the scale again and save it"
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ScaleFileError(f"{where} is no scale file (its format is not '{FORMAT}'); {again}")
    missing, unknown = sorted(KEYS - content.keys()), sorted(str(key) for key in content.keys() - KEYS)
    if missing or unknown:
        wrong = [f"misses {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ScaleFileError(f"{where} {' and '.join(wrong)}; {again}")
    factor, sigma = (_number(content[key], key, where) for key in ("factor", "sigma"))
    if not FACTORS[0] <= factor <= FACTORS[1]:
        raise ScaleFileError(f"{where}: factor is {factor}, it must lie in {FACTORS[0]:g} .. {FACTORS[1]:g}; {again}")
    if not 0 <= sigma < 1:
        raise ScaleFileError(f"{where}: sigma is {sigma}, it is relative and must lie in 0 .. 1; {again}")
    if not isinstance(content["digest"], str) or not content["digest"]:
        raise ScaleFileError(f"{where} does not say which model it belongs to (digest); {again}")
    if not isinstance(content["facts"], dict):
        raise ScaleFileError(f"{where}: facts must be names with values; {again}")


def _number(value, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ScaleFileError(f"{where}: {key} is {value!r}, not a finite number; measure the scale again and save it")
    return float(value)


def _plain(value):
    """numpy scalars -> Python's own, which YAML can write; what is neither number, truth nor text becomes text."""
    value = value.item() if hasattr(value, "item") else value
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
