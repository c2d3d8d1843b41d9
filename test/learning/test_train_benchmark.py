"""The training benchmark steps both trainers on the same images, in turns, and reports their ratio."""

import json

import torch
from small_run import small_presets, write_config

from endomust_core.learning import benchmark

PEER = """
import time
seen = []
def make_step(images):
    assert sorted(images) == [-1, 0, 1] and images[0].shape == (2, 3, 64, 80)
    def step():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
    return step
"""


def test_both_trainers_are_measured_and_compared(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    small_presets(monkeypatch)
    (tmp_path / "peer.py").write_text(PEER)
    config = write_config(tmp_path / "c.yaml", "")
    out = tmp_path / "train.json"
    arguments = [str(config), "--rounds", "2", "--peer", str(tmp_path / "peer.py"), "losses.cycle=0"]
    assert benchmark.main([*arguments, "--json", str(out)]) == 0
    found = json.loads(out.read_text())["results"]
    assert found["peer"]["cpu_s"] >= 0.05 and found["ours"]["cpu_s"] > 0
    assert found["ratio"]["cpu_s"] == found["peer"]["cpu_s"] / found["ours"]["cpu_s"]
    alone = benchmark.run(benchmark._parse([str(config), "--rounds", "1", "--only", "ours"]))
    assert "peer" not in alone and alone["peak_MiB"] > 100


def test_the_images_are_neighbouring_frames():
    images = benchmark.triplet_images(2, (64, 80))
    assert images[-1].shape == (2, 3, 64, 80)
    assert torch.equal(images[1][0], images[-1][1])  # what follows the first is what comes before the second
    assert not torch.equal(images[0], images[1])
