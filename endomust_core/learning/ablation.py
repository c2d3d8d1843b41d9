"""The same training with one thing changed at a time, several seeds each → a table of test scores, mean ± sd.

A study is a YAML file: `base` (a training configuration), `seeds`, `overrides` for all, and `variants`, name → list of
KEY=VALUE. Runs that are finished are not repeated, so a study can be stopped and gone on with, or extended. Several
processes may work on one study: each takes a run that no other has, and the cache of frames is filled once.
"""

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

from endomust_core.learning.config import ConfigError
from endomust_core.learning.train import train

log = logging.getLogger(__name__)
COLUMNS = {  # heading → where in scores.yaml, factor
    "AbsRel": ("depth", "abs_rel", 1.0),
    "δ1": ("depth", "a1", 1.0),
    "scale std": ("depth", "scale_std", 1.0),
    "ATE 5 [µm]": ("motion", "ate", 1e6),
    "ATE full [mm]": ("motion", "ate_full", 1e3),
    "focal [%]": ("motion", "focal_error", 100.0),
    "albedo": ("decomposition", "albedo_error", 1.0),
}


def ablate(study_path, out, only=(), seeds=()) -> dict[str, list[dict]]:
    """Run a study into `out`/<variant>-<seed>; returns {variant: [scores of each seed]}.

    `only` and `seeds` name variants and seeds to run, all without them; a run that another process has is left to it.
    The table holds whatever is finished. Raises ConfigError for a study that is none, and for names that it lacks.
    """
    study_path, out = Path(study_path), Path(out)
    study = read_study(study_path)
    base = study_path.parent / study["base"]
    variants = chosen("variant", only, study["variants"])
    for seed in chosen("seed", seeds, study["seeds"]):
        for name in variants:
            folder = out / f"{name}-{seed}"
            with claim(folder) as mine:
                if not mine:
                    log.info("== %s, seed %d: another process is at it", name, seed)
                    continue
                if finished(folder):
                    continue
                log.info("== %s, seed %d", name, seed)
                overrides = [*study["overrides"], *study["variants"][name]]
                overrides += [f"seed={seed}", f"data.cache={out / 'cache'}"]
                train(base, overrides, folder, resume=(folder / "config.yaml").exists())
                (folder / "state.pt").unlink(missing_ok=True)  # a study keeps scores and networks, not optimisers
            write_table(study, out)
    return collected(study, out)


def chosen(kind: str, wanted, known) -> list:
    """Those wanted, all where none is; ConfigError for one that is not known."""
    if unknown := [str(name) for name in wanted if name not in known]:
        raise ConfigError(f"no {kind} {', '.join(unknown)}; there are {', '.join(map(str, known))}")
    return list(wanted or known)


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """True where this process has the folder now, False where another has; the end of the process gives it back."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def write_table(study: dict, out: Path) -> None:
    """table.md of what is finished; one process at a time, so that the last one to write has seen every run."""
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        part = out / "table.md.part"
        part.write_text(table(collected(study, out)))
        os.replace(part, out / "table.md")


def read_study(path: Path) -> dict:
    """The YAML file with its defaults filled in."""
    if not path.is_file():
        raise ConfigError(f"no study {path}; see config/ablation-tiny.yaml for one")
    study = yaml.safe_load(path.read_text())
    if not isinstance(study, dict) or not {"base", "variants"} <= study.keys():
        raise ConfigError(f"{path} is no study; it needs base (a training configuration) and variants")
    wrong = study.keys() - {"base", "variants", "seeds", "overrides"}
    if wrong:
        raise ConfigError(f"{path}: unknown key {sorted(wrong)[0]!r}; known: base, variants, seeds, overrides")
    return {"seeds": [1, 2, 3], "overrides": [], **study}


def finished(folder: Path) -> bool:
    """True where the run has scored its networks after training, and has put its state away.

    The text is not parsed: another process may be writing it. The state goes when all of it is written.
    """
    scores = folder / "scores.yaml"
    scored = scores.exists() and re.search("^after:", scores.read_text(), re.MULTILINE) is not None
    return scored and not (folder / "state.pt").exists()


def collected(study: dict, out: Path) -> dict[str, list[dict]]:
    """Scores of all finished runs; `before training` is the start that every seed shares."""
    found: dict[str, list[dict]] = {}
    for name in study["variants"]:
        for seed in study["seeds"]:
            if finished(out / f"{name}-{seed}"):
                scores = yaml.safe_load((out / f"{name}-{seed}" / "scores.yaml").read_text())
                found.setdefault("before training", [scores["before"]])
                found.setdefault(name, []).append(scores["after"])
    return found


def table(found: dict[str, list[dict]]) -> str:
    """Markdown: a row per variant, mean ± standard deviation over seeds (n - 1)."""
    columns = {
        heading: place
        for heading, place in COLUMNS.items()
        if any(place[1] in rows[0].get(place[0], {}).get("all", {}) for rows in found.values())
    }
    lines = ["| variant | seeds | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 2)]
    for name, rows in found.items():
        cells = []
        for kind, key, factor in columns.values():
            values = [factor * row[kind]["all"][key] for row in rows if key in row.get(kind, {}).get("all", {})]
            cells.append(mean_and_deviation(values))
        lines.append(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean_and_deviation(values: list[float]) -> str:
    """'0.123 ± 0.004', with as many digits as the mean deserves."""
    if not values:
        return "–"
    mean = float(np.mean(values))
    digits = 4 if abs(mean) < 1 else 2
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"
