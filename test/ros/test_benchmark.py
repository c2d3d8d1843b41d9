"""All ways of the benchmark give the same messages, so their times may be compared; table and file are whole."""

import json

import numpy as np
import pytest

pytest.importorskip("sensor_msgs", reason="needs the ROS message packages: pip install 'endomust_ros[ros]'")

from endomust_ros import benchmark
from endomust_ros.benchmark import MeshGrid, Ours, PointByPoint, PointList


@pytest.mark.parametrize("other", [MeshGrid, PointByPoint, PointList])
def test_all_ways_say_the_same(other):
    scene = benchmark.world(64, 48)
    ours, theirs = Ours(scene, 2), other(scene, 2)
    assert np.array_equal(ours.rgb(), theirs.rgb())
    depth = ours.depth()
    assert ours.depth_message(depth).data == theirs.depth_message(depth).data
    mine, other_cloud = (np.frombuffer(way.cloud_message(depth, way.rgb()).data, np.float32) for way in (ours, theirs))
    mine, other_cloud = mine.reshape(-1, 4), other_cloud.reshape(-1, 4)
    assert np.allclose(mine[:, :3], other_cloud[:, :3], atol=1e-7)
    assert np.array_equal(mine[:, 3].view(np.uint32), other_cloud[:, 3].view(np.uint32))
    valid = np.isfinite(depth)
    assert np.median(np.abs(theirs.depth()[valid] - depth[valid])) < 1e-3


def test_table_and_file_hold_every_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ALLOWED_P95", {(64, 48): 5.0})
    assert benchmark.main(["--json", str(tmp_path / "out.json"), "--runs", "3", "--rounds", "2"]) == 0
    shown = capsys.readouterr().out
    content = json.loads((tmp_path / "out.json").read_text())
    results = content["results"]
    assert content["kind"] == "overhead" and content["machine"]["cores"] and results["unit"] == "ms"
    assert results["sizes"][0]["stride"] == benchmark.shipped_stride() == 4
    assert "64x48: p95 " in shown and "(allowed: 5 ms)" in shown
    for step in (*benchmark.STEPS, "total"):
        assert f"| {step} |" in shown
        for way in benchmark.WAYS:
            found = results["sizes"][0]["ways"][way][step]
            assert 0 < found["p50"] <= found["p95"] and found["runs"] >= 2
