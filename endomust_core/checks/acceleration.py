"""GPU, Jetson, TensorRT and execution providers: what they say of themselves, whether the bundle opens → findings."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from endomust_core.checks import FAIL, OK, WARN, Finding, version_tuple
from endomust_core.checks.software import environment

JETPACK = {  # Jetson Linux → JetPack
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}
OLDEST_L4T = 36  # JetPack 6; before it Python is 3.8
# On Jetson Orin these give depth of vision transformers whose scale is wrong and changes from image to image
# (ros2-depth-anything-v3-trt#16, depth-anything-tensorrt#49); users report that 10.14 and newer are cured.
WRONG_TENSORRT, CURED_TENSORRT = (10, 3), (10, 14)
OLDEST_DRIVER = 525  # of CUDA 12, which ONNX Runtime's GPU packages have been built for since 1.19
GPU = ("cuda", "tensorrt")
SLOW_MS = 100.0  # 10 images a second
RUNS = 7
MEASURE = (
    "import json, sys\nfrom endomust_core.checks.acceleration import measure\n"
    "sys.stdout.write('\\n' + json.dumps(measure(sys.argv[1], sys.argv[2])))"
)
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def gpu(listing: str | None, wanted: Sequence[str], jetson: str | None) -> Finding:
    """`listing` is the answer of QUERY; a GPU is missed only where a provider needs one."""
    needed = [name for name in wanted if name in GPU]
    if jetson is not None:
        return Finding(OK, "the GPU of the Jetson, see there")
    if not listing:
        if not needed:
            return Finding(OK, "none found, and none asked for")
        remedy = "install NVIDIA's driver; in a container docker run --gpus all; or ask for the provider cpu"
        level = FAIL if set(wanted) <= set(GPU) else WARN
        return Finding(level, f"nvidia-smi finds no GPU, needed for {' and '.join(needed)}", remedy)
    cards = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines()]
    sentence = "; ".join(", ".join(cells) for cells in cards)
    driver = version_tuple(cards[0][1]) if len(cards[0]) > 1 else ()
    if needed and driver and driver[0] < OLDEST_DRIVER:
        remedy = f"install driver {OLDEST_DRIVER} or newer"
        return Finding(WARN, f"{sentence}: the driver is too old for CUDA 12", remedy)
    return Finding(OK, sentence)


def l4t_version(release: str | None) -> str | None:
    """'# R36 (release), REVISION: 4.3, …' of /etc/nv_tegra_release → '36.4.3'."""
    found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release or "")
    if found is None:
        return None
    version = f"{found[1]}.{found[2]}"
    return version if version.count(".") == 2 else f"{version}.0"


def jetson(release: str | None, power_mode: str | None) -> Finding:
    """Jetson Linux is new enough; `power_mode` is what nvpmodel -q says."""
    version = l4t_version(release)
    if version is None:
        return Finding(OK, "this is no Jetson")
    jetpack = JETPACK.get(version)
    mode = re.search(r"NV Power Mode:\s*(\S+)", power_mode or "")
    sentence = f"Jetson Linux {version}, {f'JetPack {jetpack}' if jetpack else 'a JetPack this release does not know'}"
    sentence += f", power mode {mode[1]}" if mode else ""
    if int(version.split(".")[0]) < OLDEST_L4T:
        return Finding(FAIL, sentence, "flash JetPack 6 or newer: before it Python is too old")
    if mode and not mode[1].startswith("MAXN"):
        remedy = "sudo nvpmodel -m NUMBER, with that of a MAXN mode in /etc/nvpmodel.conf; then sudo jetson_clocks"
        return Finding(WARN, f"{sentence}: the clocks are held down", remedy)
    return Finding(OK, sentence)


def tensorrt(version: str | None, wanted: Sequence[str], on_jetson: bool) -> Finding:
    """TensorRT is there when it is asked for, and is none that gives wrong depth."""
    asked = "tensorrt" in wanted
    if version is None:
        if not asked:
            return Finding(OK, "not installed, and not asked for")
        remedy = "install TensorRT (Jetson: apt install nvidia-jetpack), or ask for the provider cuda or cpu"
        return Finding(FAIL if set(wanted) == {"tensorrt"} else WARN, "asked for and not installed", remedy)
    found, level = version_tuple(version), FAIL if asked else WARN
    remedy = "run it in a container with TensorRT 10.14 or newer, take JetPack 7, or ask for the provider cuda"
    if on_jetson and found[:2] == WRONG_TENSORRT:
        return Finding(level, f"{version} gives wrong depth for vision transformers on Jetson Orin", remedy)
    if on_jetson and WRONG_TENSORRT < found[:2] < CURED_TENSORRT:
        said = f"{version} is between 10.3, which gives wrong depth on Jetson Orin, and 10.14, which does not"
        return Finding(WARN, said, f"trust it only after its self-test; or {remedy}")
    return Finding(OK, f"{version}{'' if asked else ', not asked for'}")


def tensorrt_version(installed: Mapping[str, str], libraries: Sequence[str]) -> str | None:
    """From the Python package, or from the names of libnvinfer files; None where there is neither."""
    for name, version in sorted(installed.items()):
        if name.startswith("tensorrt"):
            return version
    matches = (re.search(r"libnvinfer\.so\.(\d+\.\d+\.[\d.]+)$", name) for name in libraries)
    return max((match[1] for match in matches if match), key=version_tuple, default=None)


def libnvinfer_files() -> list[str]:
    """libnvinfer where distributions put it."""
    folders = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/local/cuda/lib64", "/usr/lib64")
    return [str(path) for folder in folders for path in Path(folder).glob("libnvinfer.so.*")]


def measure(provider: str, bundle: str) -> dict:
    """{'ms': median of the depth network, 'tested': words} or {'error': why it does not open or is wrong}; seconds.

    TensorRT may build an engine for minutes, so it is only looked for; then there is neither key.
    """
    import numpy as np

    from endomust_core.backends import BackendError, installed
    from endomust_core.backends.onnxruntime import available_providers
    from endomust_core.bundle import BundleError, load_bundle
    from endomust_core.engines import EngineOptions, open_engines

    if provider == "tensorrt":
        there = installed("tensorrt") or "tensorrt" in available_providers()
        return (
            {} if there else {"error": "neither the Python package tensorrt nor an ONNX Runtime with it is installed"}
        )
    try:
        opened = load_bundle(bundle)
        engines = open_engines(opened, EngineOptions(providers=(provider,)))
    except (BackendError, BundleError) as error:
        return {"error": str(error)}
    spec, times = opened.depth, []
    image = np.full(spec.input_shape, 90, np.uint8)
    for _ in range(RUNS):
        start = time.perf_counter()
        engines.depth.run({spec.input_name: image})
        times.append(1e3 * (time.perf_counter() - start))
    return {"ms": statistics.median(times[1:]), "tested": str(engines.self_test or "")}


def measure_apart(provider: str, bundle: str | Path, timeout: float = 60.0) -> dict:
    """`measure` in a process of its own: a broken CUDA installation may end it."""
    command = [sys.executable, "-c", MEASURE, provider, str(bundle)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())
    except subprocess.TimeoutExpired:
        return {"error": f"'{provider}' did not open within {timeout:.0f} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        return {"error": f"'{provider}' does not open: {last[0]}"}
    return json.loads(done.stdout.splitlines()[-1])


def providers(wanted: Sequence[str], measured: Mapping[str, dict]) -> Finding:
    """The first provider that is asked for runs; `measured` holds an entry for each."""
    refused = [name for name in wanted if "error" in measured[name]]
    works = [name for name in wanted if name not in refused]
    reasons = "; ".join(measured[name]["error"] for name in refused)
    if not works:
        return Finding(FAIL, f"none of {', '.join(wanted)} runs", reasons)
    first = works[0]
    time_ms = measured[first].get("ms")
    speed = (
        "installed; not started here, it may build an engine for minutes"
        if time_ms is None
        else f"depth network {time_ms:.3g} ms"
    )
    tested = measured[first].get("tested")
    sentence = f"{first}: {speed}" + (f", {tested}" if tested else "")
    if wanted[0] in refused:
        return Finding(WARN, f"{sentence}, in the place of {wanted[0]}, which does not run", reasons)
    if time_ms is not None and time_ms > SLOW_MS:
        remedy = "take a smaller bundle or a GPU; the node answers the newest image and drops the others"
        return Finding(WARN, f"{sentence}: {1e3 / time_ms:.2g} images a second", remedy)
    return Finding(OK, sentence)


def bundle(path: str | Path) -> Finding:
    """The bundle is whole."""
    from endomust_core.bundle import load_bundle

    found = load_bundle(path)
    height, width = found.depth.size
    parts = f"depth {width}x{height}" + ("" if found.pose else ", no pose network and so no odometry")
    metric = "" if found.metric else ", not metric on real tissue"
    return Finding(OK, f"{found.name} {found.version}: {parts}, hashes agree{metric}")
