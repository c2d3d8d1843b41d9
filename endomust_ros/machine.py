"""What the operating system says of this process and its accelerator: memory [MB], descriptors, temperature, power."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

MB = 1e-6
PATIENCE = 2.0  # s for nvidia-smi
PERIOD = 10.0  # s between two looks at the accelerator
FIELDS = {
    "name": "GPU",
    "memory.used": "GPU memory [MB]",
    "temperature.gpu": "GPU temperature [C]",
    "power.draw": "GPU power [W]",
    "utilization.gpu": "GPU load [%]",
}


def memory(proc: Path = Path("/proc/self")) -> dict[str, object]:
    """Resident memory and open descriptors; '-' where the system does not say (not Linux)."""
    try:
        pages = int((proc / "statm").read_text().split()[1])
        resident = pages * os.sysconf("SC_PAGE_SIZE") * MB
        descriptors = len(os.listdir(proc / "fd"))
        threads = len(os.listdir(proc / "task"))
    except (OSError, ValueError, IndexError):
        return {"resident [MB]": "-", "descriptors": "-", "threads": "-"}
    return {"resident [MB]": resident, "descriptors": descriptors, "threads": threads}


def processor(sys: Path = Path("/sys/class/thermal")) -> dict[str, object]:
    """Load of the machine and its hottest sensor; a Jetson's board has several."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else "-"
    return {"cores": os.cpu_count(), "load (1 min)": load, "hottest [C]": _hottest(sys)}


def jetson(nvpmodel: Path = Path("/etc/nvpmodel.conf"), model: Path = Path("/proc/device-tree/model")) -> dict:
    """Board and power mode; empty on other machines."""
    if not nvpmodel.exists():
        return {}
    facts = {"board": model.read_text(errors="replace").strip("\0\n") if model.exists() else "Jetson"}
    lines = _ask(["nvpmodel", "-q"]).splitlines()
    mode = next((line.partition(":")[2].strip() for line in lines if line.startswith("NV Power Mode")), "-")
    return facts | {"power mode": mode}


class Accelerator:
    """Facts about the GPU, refreshed by a thread of their own: asking takes longer than an image."""

    def __init__(self, wanted: bool, device: int = 0):
        """`wanted` False looks for nothing: the networks run on the processor."""
        self._wanted, self._device = wanted, device
        self._facts: dict[str, object] = {}
        self._next = 0.0
        self._busy = threading.Lock()

    def facts(self) -> dict[str, object]:
        """What was known at the last look."""
        if self._wanted and time.monotonic() >= self._next and self._busy.acquire(blocking=False):
            self._next = time.monotonic() + PERIOD
            threading.Thread(target=self._look, name="endomust-gpu", daemon=True).start()
        return dict(self._facts)

    def _look(self) -> None:
        try:
            query = f"--query-gpu={','.join(FIELDS)}"
            text = _ask(["nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={self._device}"])
            values = [value.strip() for value in text.strip().split(",")]
            smi = dict(zip(FIELDS.values(), values, strict=True)) if len(values) == len(FIELDS) else {}
            self._facts = smi | jetson()
        finally:
            self._busy.release()


def _hottest(sys: Path) -> float | str:
    found = []
    for sensor in sys.glob("thermal_zone*/temp"):
        try:
            found.append(int(sensor.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    return max(found) if found else "-"


def _ask(command: list[str]) -> str:
    """What a program prints; empty where it is missing or does not answer."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
