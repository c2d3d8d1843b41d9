"""Python and its packages: versions as installed and imports as tried in processes of their own → findings.

A library built for another NumPy can end the process that imports it, so the doctor lets others try.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from endomust_core.checks import FAIL, OK, WARN, Finding, together, version_tuple

PYTHON = (3, 10)
REQUIRED = {  # module → (package, oldest version), as setup.py asks for them
    "numpy": ("numpy", "1.21"),
    "cv2": ("opencv-python-headless", "4.5"),
    "onnxruntime": ("onnxruntime", "1.16"),
    "yaml": ("PyYAML", "5.4"),
}
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-rocm", "onnxruntime-directml")
# What Python says when an extension was built for NumPy 1 and meets NumPy 2, or the other way round.
ABI_WORDS = re.compile(r"_ARRAY_API|compiled using NumPy|numpy\.core\.multiarray failed|dtype size changed")
IMPORT = "import importlib, sys\nm = importlib.import_module(sys.argv[1])\nprint(getattr(m, '__version__', ''))"


class Imported(NamedTuple):
    """How an import went; an empty error means well. `stderr` is what the import said on its way."""

    version: str = ""
    error: str = ""
    stderr: str = ""


def environment() -> dict[str, str]:
    """This process's environment with this package on the path, for processes that the doctor starts."""
    ours = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def try_imports(modules: Iterable[str], timeout: float = 30.0) -> dict[str, Imported]:
    """Import each module in a process of its own, all at once."""
    command, pipe = [sys.executable, "-c", IMPORT], subprocess.PIPE
    options = {"stdout": pipe, "stderr": pipe, "text": True, "env": environment()}
    started = {module: subprocess.Popen([*command, module], **options) for module in modules}
    return {module: _outcome(process, timeout) for module, process in started.items()}


def _outcome(process: subprocess.Popen, timeout: float) -> Imported:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Imported(error=f"took longer than {timeout:.0f} s")
    if process.returncode < 0:
        return Imported(error=f"ended the process ({signal.Signals(-process.returncode).name})", stderr=err)
    if process.returncode:
        return Imported(error=err.strip().splitlines()[-1] if err.strip() else "failed", stderr=err)
    return Imported(out.strip().splitlines()[-1] if out.strip() else "", stderr=err)


def python(version: tuple[int, ...], executable: str) -> Finding:
    """The interpreter is new enough."""
    words = ".".join(map(str, version[:3]))
    if version[:2] < PYTHON:
        needed = ".".join(map(str, PYTHON))
        return Finding(FAIL, f"{words} is too old", f"make the virtual environment with Python {needed} or newer")
    return Finding(OK, f"{words} ({executable})")


def libraries(imports: Mapping[str, Imported]) -> Finding:
    """Everything the networks need imports and is new enough."""
    complaints = [_library(module, imports[module], imports) for module in REQUIRED]
    versions = ", ".join(f"{REQUIRED[module][0]} {imports[module].version}" for module in REQUIRED)
    return together(complaints, versions)


def _library(module: str, found: Imported, imports: Mapping[str, Imported]) -> Finding:
    package, oldest = REQUIRED[module]
    if found.error:
        return Finding(FAIL, f"import {module}: {found.error}", import_remedy(package, found, imports["numpy"].version))
    if found.version and version_tuple(found.version) < version_tuple(oldest):
        return Finding(FAIL, f"{package} {found.version} is too old", f"pip install '{package}>={oldest}'")
    return Finding(OK, "")


def import_remedy(package: str, found: Imported, numpy_version: str) -> str:
    """What to do about an import that failed; NumPy's two ABIs are the usual cause."""
    crashed = "ended the process" in found.error
    if ABI_WORDS.search(found.stderr) or ABI_WORDS.search(found.error) or crashed:
        older = version_tuple(numpy_version) >= (2,)
        return f"{package} was built for another NumPy than {numpy_version}: " + (
            f"install a newer {package}, or pip install 'numpy<2'" if older else f"install {package} again, or NumPy 2"
        )
    if "No module named" in found.error:
        return f"pip install {package}"
    if "libGL" in found.error or "libgthread" in found.error:
        return "install opencv-python-headless in the place of opencv-python; it needs no display libraries"
    return f"install {package} again"


def cv_bridge(found: Imported, numpy_version: str) -> Finding:
    """cv_bridge, where installed, imports; the node needs it for rare image encodings only."""
    if not found.error:
        return Finding(OK, "imports; used for rare image encodings only")
    remedy = import_remedy("cv_bridge", found, numpy_version)
    return Finding(WARN, f"does not import ({found.error}); the node works, without rare image encodings", remedy)


def duplicates(installed: Mapping[str, str]) -> Finding:
    """No two distributions write the same folder: the one installed last wins, and uninstalling either breaks both."""
    complaints = []
    for packages, folder in ((OPENCV, "cv2"), (RUNTIMES, "onnxruntime")):
        several = [f"{name} {installed[name]}" for name in packages if name in installed]
        if len(several) > 1:
            names = " ".join(name for name in packages if name in installed)
            remedy = f"pip uninstall {names}, then install the one you want"
            said = f"{' and '.join(several)} share the folder {folder}"
            complaints.append(Finding(WARN, said, remedy))
    return together(complaints, "one OpenCV, one ONNX Runtime")
