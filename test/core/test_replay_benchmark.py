"""The benchmark of replay measures what it says, on a recording that it repeats with stamps that go on."""

import json

import numpy as np
import pytest

pytest.importorskip("onnx", reason="writes the mock bundle")

from mock_bundle import write_mock_bundle
from small_recording import write_small_recording

from endomust_core import replay_benchmark
from endomust_core.decoding import stamp_ns_from_cdr
from endomust_core.recording import COMPRESSED_TOPIC, RecordingReader


def test_a_repeated_recording_goes_on_in_time(tmp_path):
    source = write_small_recording(tmp_path / "small.mcap", frames=5)
    with RecordingReader(replay_benchmark.repeated(source, tmp_path / "long.mcap", 12)) as reader:
        stamps = [stamp_ns_from_cdr(cdr) for _, _, _, cdr in reader.messages([COMPRESSED_TOPIC])]
    assert len(stamps) == 12
    np.testing.assert_allclose(np.diff(stamps), 1e9 / 15, rtol=1e-6)


def test_the_command_measures_all_three_and_memory(tmp_path):
    source = write_small_recording(tmp_path / "small.mcap", frames=5)
    bundle = write_mock_bundle(tmp_path / "mock")
    arguments = [str(source), "--bundle", str(bundle), "--images", "6", "--rounds", "1", "--memory", "5"]
    assert replay_benchmark.main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    (row,) = found["rounds"]
    assert row["share"] == pytest.approx(row["replay"] / min(row["decode"], row["inference"]))
    assert found["median"] == row and 20 < found["peak_mb"]["5"] < 2000
