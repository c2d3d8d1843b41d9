"""Engines of a bundle: the golden self-test accepts what agrees, refuses what does not, and the list goes on."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from mock_bundle import write_mock_bundle

from endomust_core import backends, golden
from endomust_core.backends import BackendError, Choice, open_with
from endomust_core.bundle import BundleError, default_bundle, load_bundle
from endomust_core.engines import EngineOptions, open_engines
from endomust_core.estimator import Estimator

SIZE = (6, 8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundle") / "mock"
    return load_bundle(write_mock_bundle(root, size=SIZE, rotation=(0.1, 0.2, 0.3), golden=True))


@pytest.fixture
def wrong(monkeypatch):
    """Makes the network of one kind answer wrong, as a broken engine would."""

    def spoil(kind, provider="cpu", by=1.05):
        real = backends._library

        def library(name):
            opener = real("cpu")

            def opened(spec, _, choice):
                backend = opener(spec, "cpu", choice)
                if name == provider and spec.kind == kind:
                    run = backend.run
                    backend.run = lambda inputs: {out: by * values for out, values in run(inputs).items()}
                backend.provider = name
                return backend

            return opened

        monkeypatch.setattr(backends, "_library", library)

    return spoil


def test_an_engine_that_agrees_passes_and_says_by_how_much(bundle):
    engines = open_engines(bundle, EngineOptions())
    assert engines.self_test.passed and engines.self_test.depth_error < 1e-6
    assert engines.self_test.motion_error < 1e-6 and engines.self_test.depth_ms > 0
    assert engines.facts["provider"] == "cpu" and engines.facts["precision"] == "fp32"
    assert "differs from the reference by 0.00% in depth" in engines.facts["self-test"]


@pytest.mark.parametrize("kind", ["depth", "pose"])
def test_an_engine_that_disagrees_is_refused_with_the_numbers(bundle, wrong, kind):
    wrong(kind)
    where = "by 5.00% in depth" if kind == "depth" else "motion by 5.00%"
    with pytest.raises(BackendError, match=f"{where}.*allowed 2.00%.*its depth would be wrong.*--rebuild"):
        open_engines(bundle, EngineOptions())


def test_a_difference_within_the_tolerance_passes(bundle, wrong):
    wrong("depth", by=1.05)
    assert open_engines(bundle, EngineOptions(self_test_tolerance=0.06)).self_test.passed
    wrong("depth", by=np.nan)
    with pytest.raises(BackendError, match="by inf% in depth"):
        open_engines(bundle, EngineOptions(self_test_tolerance=0.06))


def test_a_provider_that_gives_wrong_depth_is_skipped_where_another_may_be_tried(bundle, wrong, caplog):
    wrong("depth", provider="tensorrt")
    engines = open_engines(bundle, EngineOptions(("tensorrt", "cpu")))
    assert engines.provider == "cpu"
    assert "on 'tensorrt' (fp32) differs from the reference by 5.00%" in caplog.text
    assert "running on 'cpu'" in caplog.text


def test_warn_goes_on_and_off_does_not_look(bundle, wrong, caplog):
    wrong("depth")
    assert not open_engines(bundle, EngineOptions(self_test="warn")).self_test.passed
    assert "its depth would be wrong" in caplog.text
    caplog.clear()
    assert open_engines(bundle, EngineOptions(self_test="off")).self_test is None
    assert not caplog.text
    with pytest.raises(BackendError, match="the self-test is 'maybe'; choose one of off, warn, require"):
        open_engines(bundle, EngineOptions(self_test="maybe"))


def test_a_bundle_without_golden_images_says_so_and_runs(tmp_path, caplog):
    bundle = load_bundle(write_mock_bundle(tmp_path / "mock", size=SIZE))
    assert open_engines(bundle).self_test is None
    assert "carries no golden.npz" in caplog.text


def test_golden_images_that_are_damaged_are_named(tmp_path):
    root = write_mock_bundle(tmp_path / "mock", size=SIZE, golden=True)
    (root / "golden.npz").write_bytes((root / "golden.npz").read_bytes()[:-9])
    with pytest.raises(BundleError, match="golden.npz sha256 differs"):
        load_bundle(root)
    with pytest.raises(BundleError, match="golden.npz does not serve"):
        golden.load_golden(replace(load_mock(tmp_path), golden=root / "golden.npz"))


def load_mock(folder):
    return load_bundle(write_mock_bundle(folder / "other", size=SIZE))


def test_golden_images_of_another_size_are_refused(tmp_path, bundle):
    other = load_bundle(write_mock_bundle(tmp_path / "mock", size=(12, 16), golden=True))
    with pytest.raises(BundleError, match=r"its images are \(12, 16, 3\), the network takes \(6, 8\)"):
        golden.load_golden(replace(bundle, golden=other.golden))


def test_what_the_precision_is_known_to_cost_is_allowed_on_top(bundle, wrong):
    wrong("depth", by=1.03)
    costs = {"precision": {"fp32": {"depth": {"median_rel": 0.02}, "pose": {"median_rel": 0.001}}}}
    known = replace(bundle, manifest=bundle.manifest | {"verification": costs})
    assert open_engines(known, EngineOptions()).self_test.tolerance == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("provider", "precision", "words"),
    [
        ("cpu", "fp16", "'cpu' does not run fp16 here; it runs fp32, int8"),
        ("cpu", "int8", "no int8 graph of its depth network; make one with endomust export .* --precision int8"),
        ("cpu", "fp8", "the precision 'fp8' is unknown; choose from auto, fp32"),
    ],
)
def test_a_precision_that_cannot_be_had_is_refused_in_words(bundle, provider, precision, words):
    with pytest.raises(BackendError, match=words):
        open_with(bundle.depth, provider, Choice(precision))


def test_the_default_bundle_carries_golden_images_and_the_estimator_tests_them(caplog):
    with caplog.at_level(logging.WARNING):
        estimator = Estimator(load_bundle(default_bundle()), threads=1)
    assert estimator.engines.self_test.passed and not caplog.text
