"""What a run says while it works: progress with the time left, TensorBoard curves and pictures, history.jsonl."""

import json
import logging
import time
from pathlib import Path

import cv2
import numpy as np
import torch

log = logging.getLogger(__name__)
EVERY_S = 10.0  # between two lines


class Journal:
    """Notes of one run from update `start` of `total`; silent where `active` is False."""

    def __init__(self, folder: Path, start: int, total: int, active: bool = True):
        self.folder, self.start, self.total, self.active = folder, start, total, active
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0
        self.begin = self.last = time.monotonic()
        self.writer = self.open_writer() if active else None
        self.history = folder / "history.jsonl"
        if active and self.history.exists():  # what a stopped run wrote after its last save comes again
            rows = [json.loads(line) for line in self.history.read_text().splitlines() if line.strip()]
            kept = [row for row in rows if row["update"] <= start]
            self.history.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def open_writer(self):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.warning("tensorboard is not installed, so there are no curves: pip install tensorboard")
            return None
        return SummaryWriter(str(self.folder), purge_step=self.start + 1)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self.writer is not None:
            self.writer.close()

    def losses(self, update: int, values: dict[str, torch.Tensor], rate: float) -> None:
        """Add the losses of one update; now and then they become a line and points of the curves."""
        if not self.active:
            return
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1
        now = time.monotonic()
        if now - self.last < EVERY_S and update < self.total and update != self.start + 1:
            return
        self.last = now
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        speed = (update - self.start) / (now - self.begin)
        terms = "  ".join(f"{name.removeprefix('total/')} {value:.4f}" for name, value in means.items()
                          if name.startswith("total/"))  # fmt: skip
        left = (self.total - update) / speed
        self.note({"update": update, "learning_rate": rate, **means})
        log.info("%d/%d  %s  %.2f updates/s  %s left", update, self.total, terms, speed, duration(left))
        if self.writer is not None:
            for name, value in means.items():
                self.writer.add_scalar(name, value, update)
            self.writer.add_scalar("learning_rate", rate, update)

    def note(self, row: dict) -> None:
        """A line of history.jsonl."""
        with open(self.history, "a") as file:
            file.write(json.dumps(row) + "\n")

    def scores(self, update: int, found: dict) -> None:
        """Validation scores: a line, curves, and a row of history.jsonl."""
        if not self.active:
            return
        rows = {}
        for kind, table in found.items():
            overall = table.get("all", table) if isinstance(table, dict) else {"loss": table}
            rows |= {f"{kind}/{name}": float(value) for name, value in overall.items()}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in rows.items() if name in SHOWN)
        log.info("validation at %d: %s", update, shown)
        self.note({"update": update, **{f"validation/{name}": value for name, value in rows.items()}})
        if self.writer is not None:
            for name, value in rows.items():
                self.writer.add_scalar(f"validation/{name}", value, update)

    def picture(self, update: int, rgb: np.ndarray) -> None:
        """A panel (H, W, 3) uint8: into TensorBoard and pictures/<update>.png."""
        if not self.active:
            return
        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{update:06d}.png"), rgb[..., ::-1])
        if self.writer is not None:
            self.writer.add_image("networks", rgb, update, dataformats="HWC")


SHOWN = ("depth/abs_rel", "depth/a1", "depth/scale_std", "motion/ate", "motion/focal_error", "photometric/loss")


def duration(seconds: float) -> str:
    """5400 → '1 h 30 min'."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{int(minutes // 60)} h {int(minutes % 60)} min"
