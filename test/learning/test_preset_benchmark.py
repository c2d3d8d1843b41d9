"""Benchmarks of engines and presets: every way is there, ratios are of one run, the file is readable JSON."""

import json

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'endomust_ros[train]'")
pytest.importorskip("onnx", reason="needs onnx: pip install 'endomust_ros[export]'")

from endomust_core import engine_benchmark  # noqa: E402
from endomust_core.backends import BackendError  # noqa: E402
from endomust_core.learning import preset_benchmark  # noqa: E402


def test_presets_beside_eager_pytorch(tmp_path, capsys):
    out = tmp_path / "presets.json"
    arguments = ["--presets", "tiny", "--providers", "cpu", "--precisions", "fp32", "fp16", "--threads", "1"]
    assert preset_benchmark.main([*arguments, "--rounds", "1", "--repeats", "2", "--json", str(out)]) == 0
    ways = json.loads(out.read_text())["results"]["presets"]["tiny"]
    assert set(ways) == {"PyTorch eager fp32", "cpu fp32"}  # fp16 is not for the processor and left out
    assert ways["PyTorch eager fp32"]["speedup"] == 1.0 and ways["cpu fp32"]["speedup"] > 0
    assert ways["cpu fp32"]["ms"]["n"] == 2 and 0 <= ways["cpu fp32"]["median_relative_difference"] < 1e-4
    assert "| tiny 224x168 | cpu fp32 |" in capsys.readouterr().out


def test_engines_of_a_bundle(tmp_path, capsys):
    out = tmp_path / "engines.json"
    assert engine_benchmark.main(["--precisions", "auto", "--rounds", "1", "--repeats", "2", "--json", str(out)]) == 0
    content = json.loads(out.read_text())
    way = content["results"]["ways"]["cpu auto"]
    assert way["precision"] == "fp32" and way["speedup"] == 1.0 and way["both"]["n"] == 2
    assert way["cold_s"] > 0 and "differs from the reference by 0.0" in way["self_test"]  # weights stored as float16
    assert len(content["hashes"]["model"]) == 64 and content["machine"]["cores"] >= 1
    assert "| cpu auto | fp32 |" in capsys.readouterr().out


def test_no_engine_at_all_is_said():
    with pytest.raises(BackendError, match="none of these providers opens here"):
        engine_benchmark.main(["--providers", "cpu", "--precisions", "fp16", "--rounds", "1"])
