"""Where parameters may point: a path as somebody gave it → the resolved path below an allowed folder, or an error.

Parameters of a ROS node can be set by whoever reaches it over the network, so a path in one must not become a way to
the whole disk. The environment of the process, which only its owner sets, says how far it goes:

ENDOMUST_PATHS (folders separated by os.pathsep) set: every path, read or written, lies below one of these folders, and
what is written may also go to the user's own folders of this project (~/.ros, and endomust/ in the XDG folders).
Not set: reading is free. Writing goes to the same own folders, or into a folder that exists already, that is no system
folder and has no hidden part (.ssh, .config).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

VARIABLE = "ENDOMUST_PATHS"
OWN = "endomust"  # our folder inside each XDG folder
XDG = {  # variable → its default below the home folder
    "XDG_CACHE_HOME": ".cache",
    "XDG_DATA_HOME": ".local/share",
    "XDG_STATE_HOME": ".local/state",
    "XDG_CONFIG_HOME": ".config",
}
SYSTEM = tuple(
    Path(f"/{name}")
    for name in (
        "bin",
        "boot",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "opt",
        "proc",
        "run",
        "sbin",
        "sys",
        "usr",
        "var",
    )
)
SCALE_SUFFIXES = (".yaml", ".yml")


class ConfinementError(ValueError):
    """A path that may not be used; the message names it, why, and what to do."""


# ---- what the node calls ----


def readable(path: str | Path, purpose: str, env: Mapping[str, str] | None = None) -> Path:
    """A file or folder that is read, resolved; it need not exist. `purpose` is the parameter's name."""
    return confined(path, allowed_folders(_environment(env)), purpose)


def writable_folder(path: str | Path, purpose: str, env: Mapping[str, str] | None = None) -> Path:
    """A folder that files are written to, resolved; where it may be made, it need not exist yet."""
    env = _environment(env)
    roots = _writable_roots(env)
    resolved = confined(path, roots, purpose)
    if resolved.exists() and not resolved.is_dir():
        raise ConfinementError(f"{purpose} is {path}, which is a file; give a folder")
    if roots is None:
        _check_free_to_write(resolved, path, purpose, env)
    return resolved


def writable_file(
    path: str | Path, purpose: str, suffixes: Iterable[str], env: Mapping[str, str] | None = None
) -> Path:
    """A file that is written, resolved: its name ends in one of `suffixes`, its folder is a `writable_folder`."""
    given = Path(_text(path, purpose))
    if given.name.startswith(".") or given.suffix not in suffixes:
        raise ConfinementError(f"{purpose} is {path}; give a file name that ends in {' or '.join(suffixes)}")
    resolved = confined(path, _writable_roots(_environment(env)), purpose)
    if resolved.suffix not in suffixes:
        raise ConfinementError(f"{purpose} is {path}, a link to {resolved}; give a file, not a link to another kind")
    if resolved.is_dir():
        raise ConfinementError(f"{purpose} is {path}, which is a folder; give a file in it")
    return writable_folder(resolved.parent, purpose, env) / resolved.name


def check_parameters(values: Mapping[str, str], env: Mapping[str, str] | None = None) -> None:
    """Check those path parameters of the node (ROS name → text) that are among `values` and not empty."""
    for name, value in values.items():
        if value and name in PARAMETERS:
            PARAMETERS[name](value, name, env)


# Engines are made of our own graphs and named by us, in a folder that is often made for them: where nothing is
# confined, the cache may be anywhere the user may write. snapshot.dir and scale.file are written on a service call.
PARAMETERS = {
    "model.path": readable,
    "model.engine_cache_dir": readable,
    "calibration.file": readable,
    "scale.file": lambda path, purpose, env: writable_file(path, purpose, SCALE_SUFFIXES, env),
    "snapshot.dir": writable_folder,
}

# ---- pure functions on paths ----


def confined(path: str | Path, roots: Iterable[Path] | None, purpose: str) -> Path:
    """`path` with `~`, `..` and symbolic links resolved, relative ones against the current folder.

    It must lie in or below one of `roots` (resolved folders); None sets no limit. Raises ConfinementError.
    """
    try:
        resolved = Path(_text(path, purpose)).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, an unknown user, a name that is too long
        raise ConfinementError(f"{purpose} is {path!r}, which is no path ({error}); give another one") from error
    if roots is None:
        return resolved
    roots = list(roots)
    if not any(resolved == root or root in resolved.parents for root in roots):
        where = ", ".join(str(root) for root in roots)
        leads = "" if str(resolved) == str(path) else f", which is {resolved}"
        raise ConfinementError(
            f"{purpose} is {path}{leads}, outside of the folders that {VARIABLE} allows ({where}); "
            f"move the file there, or start the node with another {VARIABLE}"
        )
    return resolved


def allowed_folders(env: Mapping[str, str]) -> tuple[Path, ...] | None:
    """The folders that ENDOMUST_PATHS names, resolved; None where it is not set. Set but empty is a mistake."""
    if VARIABLE not in env:
        return None
    names = [name for name in env[VARIABLE].split(os.pathsep) if name]
    folders = [Path(name).expanduser() for name in names]
    wrong = [str(folder) for folder in folders if not folder.is_absolute()]
    if not folders or wrong:
        what = f"names {wrong[0]}, which is not absolute" if wrong else "is set, and names no folder"
        raise ConfinementError(f"{VARIABLE} {what}; give absolute folders separated by '{os.pathsep}', or unset it")
    return tuple(folder.resolve() for folder in folders)


def own_folders(env: Mapping[str, str]) -> tuple[Path, ...]:
    """The user's folders that this project may fill, resolved: ROS's, and `endomust` in each XDG folder."""
    home = _home(env)
    folders = [Path(env.get("ROS_HOME") or home / ".ros")]
    # The XDG specification says that a relative value is to be ignored.
    given = {name: Path(env[name]) for name in XDG if Path(env.get(name, "")).is_absolute()}
    folders += [given.get(name, home / default) / OWN for name, default in XDG.items()]
    return tuple(folder.resolve() for folder in folders)


def _writable_roots(env: Mapping[str, str]) -> tuple[Path, ...] | None:
    """The allowed folders and the user's own, where our defaults lie; None without ENDOMUST_PATHS."""
    allowed = allowed_folders(env)
    return None if allowed is None else (*allowed, *own_folders(env))


def _check_free_to_write(folder: Path, given: str | Path, purpose: str, env: Mapping[str, str]) -> None:
    """Raises ConfinementError unless a resolved folder is one of the user's own or an ordinary one that exists."""
    own = own_folders(env)
    if any(folder == root or root in folder.parents for root in own):
        return
    remedy = f"give a folder below {own[0]}, one that you have made yourself, or set {VARIABLE}"
    home = _home(env).resolve()
    at_home = home != Path("/") and (folder == home or home in folder.parents)
    inside = folder.relative_to(home) if at_home else folder
    if any(part.startswith(".") for part in inside.parts):
        raise ConfinementError(
            f"{purpose} is {given}, in a hidden folder, where programs keep their settings; {remedy}"
        )
    if folder == Path("/") or (not at_home and any(folder == root or root in folder.parents for root in SYSTEM)):
        raise ConfinementError(f"{purpose} is {given}, in a system folder; {remedy}")
    if not folder.is_dir():
        raise ConfinementError(f"{purpose} is {given}, and there is no folder {folder}; make it first, or {remedy}")


def _home(env: Mapping[str, str]) -> Path:
    try:
        return Path(env.get("HOME") or Path.home())
    except RuntimeError:  # a container may run as a user that nobody knows
        return Path("/nonexistent")


def _text(path: str | Path, purpose: str) -> str:
    text = str(path)
    if not text.strip():
        raise ConfinementError(f"{purpose} is empty; give a path")
    if "\0" in text:
        raise ConfinementError(f"{purpose} holds a zero byte; give a path")
    return text


def _environment(env: Mapping[str, str] | None) -> Mapping[str, str]:
    return os.environ if env is None else env
