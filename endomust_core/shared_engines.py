"""One set of opened networks for several estimators of one process: two cameras, one engine, one copy in memory."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from endomust_core.backends import Backend
from endomust_core.bundle import Bundle
from endomust_core.engines import EngineOptions, Engines, open_engines


class SharedEngines:
    """Called as `open_engines` is; the same bundle with the same options gives the engines that run already."""

    def __init__(self):
        self._lock = threading.Lock()
        self._open: dict[tuple, Engines] = {}

    def __call__(self, bundle: Bundle, options: EngineOptions | None = None) -> Engines:
        """Open, or find again. Raises what `open_engines` raises."""
        key = bundle.digest, str(bundle.root), options
        with self._lock:
            if key not in self._open:
                self._open.clear()  # both cameras change over to a new bundle; the old one is kept by whom it serves
                engines, turn = open_engines(bundle, options), threading.Lock()
                pose = None if engines.pose is None else InTurn(engines.pose, turn)
                self._open[key] = replace(engines, depth=InTurn(engines.depth, turn), pose=pose)
            return self._open[key]


class InTurn:
    """A backend that one thread uses at a time: most libraries' sessions are not made for two, and cores are shared."""

    def __init__(self, backend: Backend, turn: threading.Lock):
        self._backend, self._turn = backend, turn
        self.provider, self.precision = backend.provider, backend.precision
        self.inputs, self.outputs, self.facts = backend.inputs, backend.outputs, backend.facts

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the backend does, when it is free."""
        with self._turn:
            return self._backend.run(inputs)
