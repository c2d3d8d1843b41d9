"""What is installed: the shipped files (models/, config/, launch/), wherever they lie, and versions of packages."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "endomust_ros"


def share(*parts: str) -> Path:
    """Path of a shipped file or folder, e.g. share("config", "depth.yaml"); FileNotFoundError lists where it looked."""
    looked = [root.joinpath(*parts) for root in roots()]
    for path in looked:
        if path.exists():
            return path
    places = "\n  ".join(str(path) for path in looked)
    raise FileNotFoundError(
        f"{'/'.join(parts)} is not installed; looked for\n  {places}\n"
        "Install the package again, source the ROS workspace, or run from a checkout."
    )


def shipped_bundle(name: str) -> Path | None:
    """Folder of the model bundle that ships under this name, such as endomust-small; None where there is none."""
    if not name or name.startswith(".") or Path(name).name != name:
        return None
    folders = (root / "models" / name for root in roots())
    return next((folder for folder in folders if os.path.isfile(folder / "manifest.yaml")), None)


def bundle_path(text: str) -> Path:
    """A path as somebody gave it; where nothing lies there, it may be the name of a bundle that ships."""
    # os.path asks without complaint about what can be no path, such as a name of thousands of letters
    return Path(text) if os.path.exists(text) else shipped_bundle(text) or Path(text)


def roots() -> list[Path]:
    """Folders that may hold the shipped files, the most specific first."""
    found = []
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "package.xml").is_file():
        found.append(checkout)
    prefixes = [sys.prefix, sysconfig.get_path("data")]  # they differ for Debian's own Python
    prefixes += [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    found += [Path(prefix) / "share" / PACKAGE for prefix in prefixes]
    return list(dict.fromkeys(found))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Package → installed version, of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
