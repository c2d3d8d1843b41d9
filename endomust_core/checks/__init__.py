"""What a check of this machine says: OK, WARN or FAIL, a sentence and what to do; a check that raises is a FAIL too.

Standard library only at import time, here and in the files beside: the doctor must run where NumPy does not.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

OK, WARN, FAIL = "OK", "WARN", "FAIL"


class Finding(NamedTuple):
    """The answer of one check; the remedy is empty where nothing is to be done."""

    level: str
    sentence: str
    remedy: str = ""


@dataclass(frozen=True)
class Row:
    """A finding under the name of its check."""

    name: str
    level: str
    sentence: str
    remedy: str = ""


def examine(name: str, check: Callable[..., Finding], *facts) -> Row:
    """The row of one check; one that raises says so and never ends the others."""
    try:
        return Row(name, *check(*facts))
    except Exception as error:
        sentence, _, advice = str(error).rpartition("; ")
        if sentence and type(error).__module__.startswith("endomust_"):
            return Row(name, FAIL, sentence, advice)  # our errors say what to do after the last semicolon
        said = f"this check did not work here: {type(error).__name__}: {error}"
        return Row(name, FAIL, said, "mend what the error names, or report it with this line")


def worst(findings: Sequence[Finding | Row]) -> str:
    """FAIL before WARN before OK."""
    levels = {finding.level for finding in findings}
    return next((level for level in (FAIL, WARN) if level in levels), OK)


def together(findings: Sequence[Finding], fine: str) -> Finding:
    """Several complaints as one finding; `fine` is said when there is none."""
    bad = [finding for finding in findings if finding.level != OK]
    if not bad:
        return Finding(OK, fine)
    remedies = dict.fromkeys(finding.remedy for finding in bad if finding.remedy)
    return Finding(worst(bad), "; ".join(finding.sentence for finding in bad), "; ".join(remedies))


def text_of(path: str | Path) -> str | None:
    """A small file of /proc, /sys or /etc; None where it is absent or may not be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def output_of(command: Sequence[str], timeout: float = 10.0) -> str | None:
    """What a command prints; None where it is absent, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def version_tuple(text: str) -> tuple[int, ...]:
    """'10.3.0.30' → (10, 3, 0, 30); what is no number ends it."""
    numbers = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def size_words(count: float) -> str:
    """Bytes for people: 3.9 MB, 212 kB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"
