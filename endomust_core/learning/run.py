"""The folder of a training run: resolved configuration, state to go on from, kept networks, scores; all atomic.

config.yaml, state.pt (everything a resume needs), {depth,pose,…}.pt (best on validation, adapters merged), scores.yaml,
history.jsonl, events.* (TensorBoard), pictures/, nonfinite-*.pt where a run broke.
"""

import errno
import logging
import os
import shutil
import signal
from pathlib import Path

import torch
import yaml

from endomust_core.learning.checkpoint import load_checkpoint, save_checkpoint

log = logging.getLogger(__name__)
FREE_ON_RESUME = {"train.steps", "train.epochs", "train.save_every", "train.validate_every", "train.picture_every",
                  "data.workers", "train.device", "data.cache", "name", "description"}  # fmt: skip


class RunError(RuntimeError):
    """The folder of a run does not allow what was asked; the message says what would."""


class RunFolder:
    """Files of one run; only rank 0 writes. Raises RunError where the folder holds another run or the disk is full."""

    def __init__(self, path: Path, config: dict, resume: bool, world):
        self.path, self.world = path, world
        self.writes = world.rank == 0
        config = plain(config)
        record, state = path / "config.yaml", path / "state.pt"
        if resume:
            if not record.is_file():
                raise RunError(f"{path} holds no run to resume; leave out --resume to start one there")
            compare(yaml.safe_load(record.read_text()), config, path)
        elif state.exists() or record.exists():
            raise RunError(f"{path} already holds a run; --resume goes on with it, another --out starts a new one")
        self.resume = resume
        world.wait()
        if self.writes:
            path.mkdir(parents=True, exist_ok=True)
            record.write_text(yaml.safe_dump(config, sort_keys=False))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self.writes:
            for part in self.path.glob("*.part"):
                part.unlink(missing_ok=True)

    def load_state(self, device) -> dict | None:
        """What `save_state` last wrote, or None at the start of a run or where it stopped before its first save."""
        path = self.path / "state.pt"
        if not self.resume or not path.is_file():
            return None
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except Exception as error:
            raise RunError(f"{path} cannot be read ({error}); the run must start again in another folder") from error

    def save_state(self, state: dict) -> None:
        """Replace state.pt as a whole; it is on the disk before the old one goes."""
        if not self.writes:
            return
        with disk_full_in_words(self.path):
            write_atomically(self.path / "state.pt", state)

    def save_networks(self, networks: dict, meta: dict) -> None:
        """One checkpoint per network, as `load_checkpoint` and `endomust export` read them."""
        if not self.writes:
            return
        with disk_full_in_words(self.path):
            for name, network in networks.items():
                save_checkpoint(self.path / f"{name}.pt", network, meta)

    def load_networks(self) -> dict:
        """The kept networks by name."""
        kinds = [name for name in ("depth", "pose", "optical_flow", "appearance_flow", "decomposition", "light_adjust")
                 if (self.path / f"{name}.pt").exists()]  # fmt: skip
        return {name: load_checkpoint(self.path / f"{name}.pt", name)[0] for name in kinds}

    def write_scores(self, key: str, scores: dict) -> None:
        """Scores on the test data under `before` or `after` in scores.yaml."""
        if not self.writes:
            return
        path = self.path / "scores.yaml"
        known = yaml.safe_load(path.read_text()) if path.exists() else {}
        path.write_text(yaml.safe_dump(known | {key: plain(scores)}, sort_keys=False))
        for kind, rows in scores.items():
            log.info("test %s, %s: %s", key, kind, rows.get("all", rows) if isinstance(rows, dict) else rows)

    def save_batch(self, update: int, batch, losses: dict) -> Path:
        """Keep a batch whose loss is not finite."""
        path = self.path / f"nonfinite-{update:06d}-rank{self.world.rank}.pt"
        content = {"update": update, "names": batch.names, "batch": batch.state(),
                   "losses": {name: value.detach().cpu() for name, value in losses.items()}}  # fmt: skip
        with disk_full_in_words(self.path):
            write_atomically(path, content)
        return path


class StopRequest:
    """Ctrl-C or SIGTERM asks for a stop after the current update; a second Ctrl-C stops at once."""

    def __init__(self):
        self.asked = False
        self.before = {}

    def __enter__(self):
        def ask(number, frame):
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked = True
            log.info("stopping after this update; Ctrl-C again stops at once, and what was not saved is lost")

        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[number] = signal.signal(number, ask)
            except ValueError:  # not the main thread: whoever runs it handles signals
                break
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def write_atomically(path: Path, content: dict) -> None:
    """torch.save under another name, flushed to the disk, then renamed."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


class disk_full_in_words:  # noqa: N801  reads as a phrase after `with`
    """A full disk → RunError that says where, how much is free, and that the last save is intact."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        chain, full = error, False
        while chain is not None:  # torch wraps what the system said
            full |= isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT)
            full |= "No space left" in str(chain) or "unexpected pos" in str(chain)
            chain = chain.__cause__ or chain.__context__
        if full:
            free = shutil.disk_usage(self.folder).free / 1e6
            raise RunError(
                f"the disk of {self.folder} is full ({free:.0f} MB free); the last save is intact. Make room, then go "
                "on with --resume"
            ) from error


def compare(before: dict, now: dict, path: Path) -> None:
    """RunError naming the first setting in which a resumed run would differ."""
    old, new = flat(before), flat(now)
    for key in [*new, *old]:
        if key not in FREE_ON_RESUME and old.get(key) != new.get(key):
            raise RunError(
                f"{path} was started with {key}={old.get(key)!r}, now it is {new.get(key)!r}; use the same settings to "
                "resume, or another --out"
            )


def flat(values: dict, before: str = "") -> dict:
    """Nested dict → {'section.key': value}."""
    rows = {}
    for key, value in values.items():
        if isinstance(value, dict):
            rows |= flat(value, f"{before}{key}.")
        else:
            rows[f"{before}{key}"] = value
    return rows


def plain(value):
    """Tuples to lists, NumPy and torch numbers to floats, so that YAML stays readable."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
