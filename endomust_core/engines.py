"""Bundle → both networks opened, on the first provider that works and agrees with the reference.

All of it happens before the first image of the camera: building, the golden self-test, and choosing another provider
where one is refused.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from endomust_core import golden
from endomust_core.backends import Backend, Choice, first_that_works, open_with
from endomust_core.bundle import Bundle
from endomust_core.engine_cache import EngineCache


@dataclass(frozen=True)
class EngineOptions:
    """How the networks are to run; the node's parameters model.* have these names and defaults."""

    providers: Sequence[str] = ("cpu",)
    precision: str = "auto"
    threads: int = 0
    device_id: int = 0
    cache_dir: str | Path | None = None  # None: the user's cache folder
    self_test: str = "require"  # off, warn, require
    self_test_tolerance: float = 0.02  # median relative error, on top of what the manifest says of the precision
    rebuild: bool = False


@dataclass(frozen=True)
class Engines:
    """Both networks of a bundle, opened. Pose is None where the bundle has none."""

    depth: Backend
    pose: Backend | None
    self_test: golden.SelfTest | None
    seconds: float  # that opening and testing took

    @property
    def provider(self) -> str:
        """One of those asked for."""
        return self.depth.provider

    @property
    def facts(self) -> dict[str, str]:
        """Words for diagnostics, the same keys whatever runs."""
        found = {"provider": self.provider, "precision": self.depth.precision, **self.depth.facts}
        return found | {"self-test": "not done" if self.self_test is None else str(self.self_test)}


def open_engines(bundle: Bundle, options: EngineOptions | None = None) -> Engines:
    """Open, build where needed, and test. Raises BackendError when no provider of the list serves, BundleError when the
    bundle itself is at fault; what was skipped is logged."""
    options = options or EngineOptions()
    choice = Choice(
        precision=options.precision,
        threads=options.threads,
        device=options.device_id,
        cache=EngineCache(options.cache_dir or None),
        rebuild=options.rebuild,
        bundle=bundle.name,
    )

    def attempt(provider: str) -> Engines:
        start = time.perf_counter()
        depth = open_with(bundle.depth, provider, choice)
        pose = open_with(bundle.pose, provider, choice) if bundle.pose else None
        tested = golden.checked(bundle, depth, pose, options.self_test, options.self_test_tolerance)
        return Engines(depth, pose, tested, time.perf_counter() - start)

    return first_that_works(options.providers, attempt)
