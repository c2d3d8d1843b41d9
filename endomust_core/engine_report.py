"""What opening the engines of a bundle found, as a few lines of text: provider, precision, self-test, latency [ms]."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from endomust_core.backends import Backend
from endomust_core.benchmarking import summary
from endomust_core.bundle import Bundle, NetworkSpec
from endomust_core.engines import Engines

RUNS = 30


def latency(backend: Backend, spec: NetworkSpec, runs: int = RUNS) -> dict[str, float]:
    """p50, p95, p99, max, mean [ms] of single inferences on noise, after two to warm up."""
    array = np.random.default_rng(0).integers(0, 256, spec.input_shape, np.uint8)
    times = []
    for _ in range(runs + 2):
        start = perf_counter()
        backend.run({spec.input_name: array})
        times.append(perf_counter() - start)
    return summary(times[2:])


def report(bundle: Bundle, engines: Engines) -> str:
    """One line for each network, one for the self-test."""
    lines = [f"{bundle.name} {bundle.version} on {engines.provider} is ready after {engines.seconds:.2f} s"]
    for spec, backend in ((bundle.depth, engines.depth), (bundle.pose, engines.pose)):
        if backend is None:
            continue
        facts = ", ".join(f"{name} {value}" for name, value in backend.facts.items() if name != "engine key")
        size = "{1}x{0}".format(*spec.size)
        took = latency(backend, spec)
        times = f"p50 {took['p50']:.2f}, p95 {took['p95']:.2f}, p99 {took['p99']:.2f} ms"
        lines.append(f"  {spec.kind:<6} {size:<9} {backend.precision:<5} {times}  ({facts})")
    lines.append(f"  self-test: {engines.self_test or 'the bundle has no golden images; export it again to get them'}")
    return "\n".join(lines)
