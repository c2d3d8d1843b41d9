"""Two estimators, one set of networks: opened once, used by one thread at a time, changed over together."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("onnx", reason="writes the mock bundle")

from mock_bundle import write_mock_bundle

from endomust_core import shared_engines
from endomust_core.bundle import load_bundle
from endomust_core.engines import EngineOptions
from endomust_core.estimator import Estimator
from endomust_core.shared_engines import InTurn, SharedEngines

OPTIONS = EngineOptions(threads=1, self_test="off")


@pytest.fixture
def bundle(tmp_path):
    return load_bundle(write_mock_bundle(tmp_path / "mock", translation=(0.001, 0.0, 0.0)))


def test_the_same_bundle_is_opened_once(bundle, monkeypatch):
    opened, real = [], shared_engines.open_engines
    monkeypatch.setattr(shared_engines, "open_engines", lambda *given: opened.append(given) or real(*given))
    share = SharedEngines()
    first, second = share(bundle, OPTIONS), share(bundle, OPTIONS)
    assert first is second and len(opened) == 1
    assert share(bundle, EngineOptions(threads=2, self_test="off")) is not first and len(opened) == 2


def test_each_camera_keeps_its_own_image_before(bundle):
    share = SharedEngines()
    left, right = (Estimator(bundle, engines=share(bundle, OPTIONS)) for _ in range(2))
    image = np.full((60, 80, 3), 128, np.uint8)
    assert left.estimate(image).T_prev_curr is None and right.estimate(image).T_prev_curr is None
    assert left.estimate(image).T_prev_curr[0, 3] == pytest.approx(0.001)


def test_two_threads_never_run_the_networks_at_once():
    class Slow:
        provider, precision, inputs, outputs, facts = "cpu", "fp32", {}, {}, {}

        def __init__(self):
            self.inside, self.most = 0, 0

        def run(self, inputs):
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(0.002)
            self.inside -= 1
            return inputs

    slow, turn = Slow(), threading.Lock()
    backends = [InTurn(slow, turn), InTurn(slow, turn)]
    threads = [threading.Thread(target=lambda b=b: [b.run({}) for _ in range(20)]) for b in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slow.most == 1


def test_a_bundle_that_was_exported_again_is_opened_again(bundle, tmp_path):
    share = SharedEngines()
    first = share(bundle, OPTIONS)
    other = load_bundle(write_mock_bundle(tmp_path / "mock", near=0.01))
    assert share(other, OPTIONS) is not first
