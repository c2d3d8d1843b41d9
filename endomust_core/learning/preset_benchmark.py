"""Times depth networks of every preset [ms]: exported engines beside eager PyTorch of the same network, in one run.

    endomust bench preset [--presets tiny small base] [--providers cpu openvino] [--device cuda] [--json OUT]

Weights are random: time does not depend on them. Image in host memory to inverse depth in host memory, copies to a GPU
and back included. All take turns, round after round, so that they feel the same machine; a ratio is the median of the
rounds' ratios.
"""

import argparse
import logging
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from endomust_core.backends import BackendError, Choice, open_with
from endomust_core.benchmarking import document, summary, write
from endomust_core.bundle import Bundle, load_bundle
from endomust_core.engine_cache import EngineCache
from endomust_core.learning.export import DepthGraph, export_bundle
from endomust_core.learning.networks.depth import DepthNetwork
from endomust_core.learning.release import unseen_frames

SIZES = {
    "tiny": (168, 224),
    "tiny-pyramid": (168, 224),
    "small-pyramid": (168, 224),
    "small": (224, 280),
    "base": (224, 280),
}  # H, W
EAGER = "PyTorch eager fp32"
WARM_UP = 3
Way = Callable[[np.ndarray], np.ndarray]  # (1,H,W,3) uint8 → (1,H,W) float32 [1/m]
log = logging.getLogger(__name__)


def network(preset: str) -> DepthNetwork:
    """The preset with random weights, the same every time."""
    torch.manual_seed(0)
    return DepthNetwork(preset).eval()


def eager(graph: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> Way:
    """PyTorch as it comes."""
    graph = graph.to(device, dtype).eval()

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return graph(torch.from_numpy(image).to(device)).cpu().numpy()

    return run


class CudaGraph:
    """PyTorch in half precision, channels last, captured once as a CUDA graph on fixed memory and replayed.

    compiled: torch.compile fuses the small operations first, which takes a minute or two.
    """

    def __init__(self, graph: nn.Module, shape: tuple[int, ...], device: torch.device, compiled: bool = False):
        graph = graph.to(device).half().eval().to(memory_format=torch.channels_last)
        if compiled:
            graph = torch.compile(graph, dynamic=False)
        self._module = graph  # the captured graph reads its weights, wherever they are
        self._image = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._host = torch.zeros(shape, dtype=torch.uint8).pin_memory()
        side = torch.cuda.Stream(device)
        with torch.no_grad():
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    graph(self._image)
            torch.cuda.current_stream(device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._answer = graph(self._image)
        self._out = torch.zeros(self._answer.shape, dtype=torch.float32).pin_memory()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        self._host.numpy()[:] = image
        self._image.copy_(self._host, non_blocking=True)
        self._graph.replay()
        self._out.copy_(self._answer, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self._out.numpy().copy()


def engines(bundle: Bundle, providers: list[str], precisions: list[str], threads: int, cache: Path) -> dict[str, Way]:
    """Every provider and precision that opens here; what does not is said."""
    found = {}
    for provider in providers:
        for precision in precisions:
            choice = Choice(precision, threads, cache=EngineCache(cache), bundle=bundle.name)
            try:
                backend = open_with(bundle.depth, provider, choice)
            except BackendError as error:
                log.info("left out: %s", error)
                continue
            found[f"{provider} {precision}"] = _way(backend, bundle)
            log.info("%s %s: %s", provider, precision, backend.facts)
    return found


def _way(backend, bundle: Bundle) -> Way:
    spec = bundle.depth
    return lambda image: backend.run({spec.input_name: image})[spec.outputs["disparity"]]


def measure(ways: dict[str, Way], image: np.ndarray, rounds: int, repeats: int) -> dict[str, dict]:
    """All ways in turn: {way: {ms: percentiles, speedup over EAGER, error against it}}."""
    wanted = ways[EAGER](image)
    errors = {}
    for name, way in ways.items():
        for _ in range(WARM_UP):
            found = way(image)
        error = float(np.median(np.abs(found - wanted) / np.abs(wanted)))
        errors[name] = error if np.isfinite(error) else None
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            taken = []
            for _ in range(repeats):
                start = time.perf_counter()
                way(image)
                taken.append(time.perf_counter() - start)
            times[name].append(taken)
        medians = {name: f"{1e3 * statistics.median(rows[-1]):.2f}" for name, rows in times.items()}
        log.info("round %d [ms]: %s", number + 1, medians)
    base = [statistics.median(taken) for taken in times[EAGER]]
    return {
        name: {
            "ms": summary([value for taken in rows for value in taken]),
            "speedup": statistics.median(b / statistics.median(taken) for b, taken in zip(base, rows, strict=True)),
            "median_relative_difference": errors[name],
        }
        for name, rows in times.items()
    }


def of_preset(preset: str, options: argparse.Namespace, folder: Path) -> dict[str, dict]:
    """Export the preset and measure all ways."""
    size, device = SIZES[preset], torch.device(options.device)
    built = network(preset)
    needed = [name for name in ("fp16", "int8") if name in options.precisions]
    root = export_bundle(
        built, None, folder / preset, size, name=preset, provenance={}, scores={}, frames=unseen_frames(each=4),
        weight_dtype="float32", precisions=["fp32", *needed],
    )  # fmt: skip
    bundle = load_bundle(root)
    graph = DepthGraph(network(preset), size)
    ways: dict[str, Way] = {EAGER: eager(graph, device)}
    if device.type == "cpu" and "bf16" in options.precisions:
        ways["PyTorch eager bf16"] = eager(DepthGraph(network(preset), size), device, torch.bfloat16)
    if device.type == "cuda":
        for name, compiled in (("PyTorch fp16, CUDA graph", False), ("… and torch.compile", True)):
            if options.compile or not compiled:
                half = DepthGraph(network(preset), size)
                ways[name] = CudaGraph(half, (1, *size, 3), device, compiled)
    ways |= engines(bundle, options.providers, options.precisions, options.threads, folder / "engines")
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    return measure(ways, image, options.rounds, options.repeats)


def table(results: dict[str, dict]) -> str:
    """Markdown: one row for each preset and way."""
    lines = ["| preset | way | p50 / p95 / p99 [ms] | against eager | difference |", "|---|---|---|---|---|"]
    for preset, ways in results.items():
        size = "{1}x{0}".format(*SIZES[preset])
        for name, found in ways.items():
            times = " / ".join(f"{found['ms'][q]:.2f}" for q in ("p50", "p95", "p99"))
            error = found["median_relative_difference"]
            difference = "not finite" if error is None else f"{error:.1e}"
            lines.append(f"| {preset} {size} | {name} | {times} | {found['speedup']:.2f}x | {difference} |")
    return "\n".join(lines)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="endomust bench preset", description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--providers", nargs="+", default=["cpu"], help="cpu, cuda, tensorrt, openvino")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], help="fp32, fp16, bf16, int8")
    parser.add_argument("--device", default="cpu", help="of PyTorch: cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="with cuda: also PyTorch with torch.compile")
    parser.add_argument("--threads", type=int, default=0, help="of the processor, for all (default: every core)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10, help="inferences of one way in a round")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers here too")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        results = {preset: of_preset(preset, options, Path(folder)) for preset in options.presets}
    sys.stdout.write(table(results) + "\n")
    if options.json:
        command = shlex.join(["endomust", "bench", "preset", *(sys.argv[1:] if arguments is None else arguments)])
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        if options.device.startswith("cuda"):
            facts["gpu"] = torch.cuda.get_device_name()
        write(options.json, document("preset", {**facts, "presets": results}, command=command))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(main())
