"""A node in its own process: starts it with a log file, says in words when it died, counts its processor seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LAST_LINES = 15  # of the log, shown when the node died
STOP_TIMEOUT = 15.0  # s from SIGINT until SIGKILL


class NodeProcessError(RuntimeError):
    """The node's process is not there; the message holds the end of its log."""


@dataclass(frozen=True)
class ProcessUse:
    """Processor seconds and wall seconds so far, and the most memory held [MB]; NaN where the system does not tell."""

    cpu_s: float = float("nan")
    wall_s: float = 0.0
    peak_mb: float = float("nan")

    def __sub__(self, earlier: ProcessUse) -> ProcessUse:
        return ProcessUse(self.cpu_s - earlier.cpu_s, self.wall_s - earlier.wall_s, self.peak_mb)

    def cpu_percent(self) -> float:
        """Processor time in percent of one core."""
        return 100 * self.cpu_s / self.wall_s if self.wall_s > 0 else float("nan")


class NodeProcess:
    """Context manager around `python -m MODULE ARGUMENTS`; leaving it always ends the process."""

    def __init__(self, module: str, arguments: list[str], log: Path, environment: Mapping[str, str] | None = None):
        """`environment` is added to ours."""
        self._log = log
        self._module = module
        self.started = time.monotonic()  # s
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**_environment(), **(environment or {})},
                start_new_session=True,  # Ctrl-C reaches us alone; we then stop the node in order
            )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *unused) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def check(self) -> None:
        """NodeProcessError with the end of the log when the node has ended by itself."""
        code = self._process.poll()
        if code is not None:
            raise NodeProcessError(f"the node ended with code {code}\n{self.last_words()}")

    def stop(self) -> int:
        """SIGINT, and SIGKILL when that is not heard; the exit code (negative: the signal that ended it)."""
        if self.alive():
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

    def last_words(self) -> str:
        """The end of the log, for error messages."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        shown = "\n".join(f"  | {line}" for line in lines[-LAST_LINES:]) or "  | (nothing)"
        return f"the last lines of {self._log}:\n{shown}"

    def use(self) -> ProcessUse:
        """Processor time and memory of the process up to now, from /proc."""
        wall = time.monotonic()
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return ProcessUse(wall_s=wall)
        ticks = int(fields[11]) + int(fields[12])  # user and system time
        peak_kb = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)
        return ProcessUse(ticks / os.sysconf("SC_CLK_TCK"), wall, peak_kb / 1024)


def _environment() -> dict[str, str]:
    """Ours, with the checkout or installation that we run from first, so that the node is of the same version."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1"}
