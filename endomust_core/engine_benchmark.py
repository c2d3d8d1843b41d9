"""Times the engines of a bundle [ms], every provider and precision in turn, with opening cold and warm.

    endomust bench engine [BUNDLE] [--providers cpu openvino] [--precisions auto fp32] [--rounds 5] [--json OUT]

"Cold" opens with an empty engine cache, "warm" with what that left; both include the golden self-test. Depth and motion
of one image, in host memory before and after.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from endomust_core.backends import BackendError
from endomust_core.benchmarking import document, resident_mb, summary, write
from endomust_core.bundle import Bundle, default_bundle, load_bundle
from endomust_core.engines import EngineOptions, Engines, open_engines
from endomust_core.resources import bundle_path

WARM_UP = 3
log = logging.getLogger(__name__)


def opened(bundle: Bundle, options: argparse.Namespace, cache: Path) -> dict[str, tuple[Engines, dict]]:
    """Every provider and precision that opens here, twice → the second one and what opening cost."""
    found = {}
    for provider in options.providers:
        for precision in options.precisions:
            wish = EngineOptions(
                (provider,), precision, options.threads, options.device, cache / f"{provider}-{precision}"
            )
            try:
                before = resident_mb()
                cold = open_engines(bundle, wish)
                warm = open_engines(bundle, wish)
            except BackendError as error:
                log.info("left out: %s", error)
                continue
            costs = {"cold_s": cold.seconds, "warm_s": warm.seconds, "resident_mb": resident_mb() - before}
            found[f"{provider} {precision}"] = warm, costs | {"self_test": str(warm.self_test), **warm.facts}
    return found


def once(engines: Engines, bundle: Bundle, image: np.ndarray, pair: np.ndarray | None) -> tuple[float, float]:
    """Seconds of depth and of motion."""
    start = time.perf_counter()
    engines.depth.run({bundle.depth.input_name: image})
    middle = time.perf_counter()
    if engines.pose is not None:
        engines.pose.run({bundle.pose.input_name: pair})
    return middle - start, time.perf_counter() - middle


def measure(bundle: Bundle, options: argparse.Namespace, cache: Path) -> dict[str, dict]:
    """{way: {depth, motion, both: percentiles [ms]; against: ratio of medians to the first way; costs of opening}}."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, bundle.depth.input_shape, np.uint8)
    pair = random.integers(0, 256, bundle.pose.input_shape, np.uint8) if bundle.pose else None
    ways = opened(bundle, options, cache)
    if not ways:
        raise BackendError("none of these providers opens here; endomust doctor says why")
    times: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name, (engines, _) in ways.items():
            rows = [once(engines, bundle, image, pair) for _ in range(options.repeats + WARM_UP)]
            times[name].append(rows[WARM_UP:])
        log.info("round %d of %d", number + 1, options.rounds)
    medians = {name: [statistics.median(map(sum, rows)) for rows in rounds] for name, rounds in times.items()}
    first = next(iter(medians.values()))
    results = {}
    for name, (_, costs) in ways.items():
        rows = [row for rounds in times[name] for row in rounds]
        results[name] = {
            "depth": summary([depth for depth, _ in rows]),
            "motion": summary([motion for _, motion in rows]),
            "both": summary(list(map(sum, rows))),
            "speedup": statistics.median(a / b for a, b in zip(first, medians[name], strict=True)),
            **costs,
        }
    return results


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    first = next(iter(results))
    lines = [
        f"| engine | precision | depth p50 / p95 / p99 | motion p50 | both p50 | against {first} | cold / warm [s] |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        depth = " / ".join(f"{found['depth'][q]:.2f}" for q in ("p50", "p95", "p99"))
        lines.append(
            f"| {name} | {found['precision']} | {depth} | {found['motion']['p50']:.2f} | {found['both']['p50']:.2f} | "
            f"{found['speedup']:.2f}x | {found['cold_s']:.2f} / {found['warm_s']:.2f} |"
        )
    return "\n".join(lines)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="endomust bench engine", description=__doc__.split("\n")[0])
    parser.add_argument(
        "bundle", type=bundle_path, nargs="?", help="folder of the bundle, or endomust-small (default: endomust-tiny)"
    )
    parser.add_argument("--providers", nargs="+", default=["cpu"], help="cpu, cuda, tensorrt, openvino")
    parser.add_argument("--precisions", nargs="+", default=["auto"], help="auto, fp32, tf32, fp16, bf16, int8")
    parser.add_argument("--threads", type=int, default=0, help="of the processor (default: every core)")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=30, help="images of one way in a round")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers here too")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = _parse(arguments)
    bundle = load_bundle(options.bundle or default_bundle())
    with tempfile.TemporaryDirectory() as folder:
        results = measure(bundle, options, Path(folder))
    sys.stdout.write(table(results) + "\n")
    if options.json:
        command = shlex.join(["endomust", "bench", "engine", *(sys.argv[1:] if arguments is None else arguments)])
        engines = {f"engine {name}": found["engine key"] for name, found in results.items() if "engine key" in found}
        hashes = {"model": bundle.digest, **engines}
        write(options.json, document("engine", {"unit": "ms", "ways": results}, command=command, hashes=hashes))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(main())
