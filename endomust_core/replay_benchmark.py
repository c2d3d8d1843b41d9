"""How near replay comes to the slower of decoding alone and inference alone, images per second, on one recording.

    python -m endomust_core.replay_benchmark SOURCE [--images 240] [--rounds 3] [--threads 1] [--memory 200 2000]

All three run in turn, round after round, so that they feel the same machine. Recordings are repeated until they hold
`--images`. `--threads` leaves the networks fewer cores than there are, as on a machine with more of them than they use.
`--memory` replays each number of images in a process of its own and gives its peak.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2

from endomust_core.bundle import default_bundle, load_bundle
from endomust_core.decoding import restamped_cdr, stamp_ns_from_cdr
from endomust_core.estimator import Estimator
from endomust_core.footage import Shot, open_footage
from endomust_core.pipeline import Calibration, Pipeline, Settings
from endomust_core.recording import RecordingReader
from endomust_core.recording_writer import RecordingWriter
from endomust_core.replay import replay
from endomust_core.resources import bundle_path

HELD = 60  # decoded images that inference alone goes through again and again
PEAK = """
import resource, sys
from endomust_core.replay import replay
replay(sys.argv[1], sys.argv[2], sys.argv[3], overwrite=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
log = logging.getLogger(__name__)


def decode_only(source: Path) -> float:
    """Images per second of reading and decoding, and nothing else."""
    start = time.perf_counter()
    count = sum(isinstance(item, Shot) for item in open_footage(source).items)
    return count / (time.perf_counter() - start)


def inference_only(source: Path, bundle: Path, images: int, threads: int = 0) -> float:
    """Images per second of the node's pipeline on decoded images in memory."""
    shots, footage, calibration = [], open_footage(source), Calibration()
    if footage.first_info is not None:
        calibration.update(footage.first_info)  # without a camera the pose network would rest
    for item in footage.items:
        if isinstance(item, Shot) and item.rgb is not None:
            shots.append(item)
        if len(shots) == HELD:
            break
    estimator = Estimator(load_bundle(bundle), threads=threads)
    estimator.warm_up(1)
    pipeline = Pipeline(estimator, Settings(), calibration, lambda reason, sentence: None)
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    start = time.perf_counter()
    for index in range(images):
        shot = shots[index % len(shots)]
        pipeline.move(pipeline.estimate(shot.rgb, shot.stamp_ns, shot.frame_id))
    took = time.perf_counter() - start
    cv2.setNumThreads(before)
    return images / took


def whole_replay(source: Path, bundle: Path, folder: Path, threads: int = 0) -> float:
    """Images per second of replay with everything that it writes by default."""
    summary = replay(source, bundle, folder / "replay", overwrite=True, threads=threads).summary
    return summary["images"]["answered"] / summary["speed"]["seconds"]


def repeated(source: Path, out: Path, images: int) -> Path:
    """A recording of so many images: the source, again and again, with stamps that go on; other sources stay."""
    if source.suffix != ".mcap":
        return source
    with RecordingReader(source) as reader, RecordingWriter(out) as writer:
        image_topic = reader.camera_topic()
        topics = [topic for topic in (image_topic, reader.camera_info_topic(image_topic)) if topic]
        period = round(reader.duration_s * 1e9 * (1 + 1 / max(1, reader.count(image_topic) - 1)))
        turn = 0
        while writer.counts.get(image_topic, 0) < images:
            for topic, kind, log_ns, cdr in reader.messages(topics):
                shift = turn * period
                if writer.counts.get(image_topic, 0) < images:
                    writer.write_raw(topic, kind, restamped_cdr(cdr, stamp_ns_from_cdr(cdr) + shift), log_ns + shift)
            turn += 1
    return out


def peak_mb(source: Path, bundle: Path, folder: Path) -> float:
    """Peak resident memory of a process that replays the source and does nothing else."""
    command = [sys.executable, "-c", PEAK, str(source), str(bundle), str(folder / "peak")]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(source: Path, bundle: Path, options: argparse.Namespace, folder: Path) -> dict:
    """All numbers of one run; files go into `folder`."""
    recording = repeated(source, folder / "repeated.mcap", options.images)
    rows = []
    for number in range(options.rounds):
        row = {
            "decode": decode_only(recording),
            "inference": inference_only(recording, bundle, options.images, options.threads),
            "replay": whole_replay(recording, bundle, folder, options.threads),
        }
        row["share"] = row["replay"] / min(row["decode"], row["inference"])
        log.info("round %d: %s", number + 1, ", ".join(f"{name} {value:.3g}" for name, value in row.items()))
        rows.append(row)
    peaks = {}
    for length in options.memory:
        peaks[length] = peak_mb(repeated(source, folder / f"{length}.mcap", length), bundle, folder)
        log.info("%d images: peak %.0f MB", length, peaks[length])
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]} if rows else None
    return {"unit": "images per second", "rounds": rows, "median": median, "peak_mb": peaks}


def main(arguments: list[str] | None = None) -> int:
    """The command; logs what it measures."""
    parser = argparse.ArgumentParser(
        prog="python -m endomust_core.replay_benchmark", description=__doc__.split("\n")[0]
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--bundle", type=bundle_path, help="model bundle (default: endomust-tiny)")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of the networks (default: all cores)")
    parser.add_argument("--memory", type=int, nargs="*", default=[], metavar="IMAGES", help="such as 200 2000")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or default_bundle()
        found = measure(options.source, bundle, options, Path(folder))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if found["median"] is not None:
        log.info("median: %s", ", ".join(f"{name} {value:.3g}" for name, value in found["median"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
