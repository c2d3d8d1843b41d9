"""A study runs every variant with every seed once, goes on where it stopped, and its table says what was measured."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from small_run import small_presets, write_config

from endomust_core.learning import ablation
from endomust_core.learning.ablation import ablate, claim, finished, mean_and_deviation, table
from endomust_core.learning.config import ConfigError, load_config
from endomust_core.learning.train import TrainConfig
from endomust_core.simulation.command import render_command


@pytest.fixture
def study(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    small_presets(monkeypatch)
    rendered = render_command("colon", 4, tmp_path / "colon", (64, 80), detail=64)
    write_config(tmp_path / "base.yaml", "", data__train=[f"rendered:{rendered}"], data__test=[f"rendered:{rendered}"])
    path = tmp_path / "study.yaml"
    variants = {"plain": [], "rank 2": ["depth.lora.rank=2"]}
    content = {"base": "base.yaml", "seeds": [1, 2], "overrides": ["train.steps=1"], "variants": variants}
    path.write_text(yaml.safe_dump(content))
    return path


def test_every_variant_and_seed_runs_once_and_the_table_has_their_spread(tmp_path, study, monkeypatch):
    out, runs = tmp_path / "out", []
    real = ablation.train
    monkeypatch.setattr(ablation, "train", lambda *a, **k: (runs.append(a[2].name), real(*a, **k))[1])
    found = ablate(study, out, ["plain"])
    assert runs == ["plain-1", "plain-2"] and set(found) == {"before training", "plain"}
    found = ablate(study, out)
    assert runs == ["plain-1", "plain-2", "rank 2-1", "rank 2-2"]  # what is finished is not repeated
    text = (out / "table.md").read_text()
    assert text == table(found)
    row = next(line for line in text.splitlines() if line.startswith("| rank 2 "))
    mean = sum(scores["depth"]["all"]["abs_rel"] for scores in found["rank 2"]) / 2
    assert f"{mean:.4f} ±" in row and "| 2 |" in row
    rank = yaml.safe_load((out / "rank 2-1" / "config.yaml").read_text())["depth"]["lora"]["rank"]
    assert rank == 2


def test_a_seed_alone_runs_and_a_run_that_another_process_has_is_left_to_it(tmp_path, study, monkeypatch):
    runs = recorded(monkeypatch, {})
    with claim(tmp_path / "out" / "plain-2") as mine:
        assert mine
        found = ablate(study, tmp_path / "out", seeds=[2])
    assert runs == ["rank 2-2"] and set(found) == {"before training", "rank 2"}
    found = ablate(study, tmp_path / "out", seeds=[2])  # it is free again
    assert runs == ["rank 2-2", "plain-2"] and len(found["plain"]) == 1


def test_many_processes_share_a_study(tmp_path, study, monkeypatch):
    """Locks hold between open files, so that threads show what processes do; a table of few runs is the slowest."""
    together = threading.Barrier(5)
    runs = recorded(monkeypatch, {"depth": {"all": {"abs_rel": 0.1}}})
    real = ablation.table

    def slow(found):
        time.sleep(0.2 / sum(map(len, found.values())))
        return real(found)

    monkeypatch.setattr(ablation, "table", slow)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: (together.wait(), ablate(study, tmp_path / "out")), range(5)))
    assert sorted(runs) == ["plain-1", "plain-2", "rank 2-1", "rank 2-2"]  # each once
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| plain | 2 |" in text and "| rank 2 | 2 |" in text  # who came last has seen all
    assert not list((tmp_path / "out").glob("*.part"))


def test_a_run_is_finished_when_its_scores_are_written_and_its_state_has_gone(tmp_path):
    scores = tmp_path / "scores.yaml"
    assert not finished(tmp_path)
    for text in ("", "before:\n  dep", "before:\n  depth:\n    after: 1\n"):  # another process is writing
        scores.write_text(text)
        assert not finished(tmp_path)
    scores.write_text("before: {}\nafter:\n  dep")
    (tmp_path / "state.pt").touch()
    assert not finished(tmp_path)
    (tmp_path / "state.pt").unlink()
    assert finished(tmp_path)


def recorded(monkeypatch, scores):
    """In place of training: the names of runs, in order, and of each the files that a run leaves, written slowly."""
    runs = []

    def train(base, overrides, folder, resume):
        assert not resume
        runs.append(folder.name)
        (folder / "config.yaml").touch()
        (folder / "state.pt").touch()
        with (folder / "scores.yaml").open("w") as file:
            for line in yaml.safe_dump({"before": scores, "after": scores}, sort_keys=False).splitlines(True):
                file.write(line)
                file.flush()
                time.sleep(0.01)

    monkeypatch.setattr(ablation, "train", train)
    return runs


def test_spread_is_the_sample_standard_deviation():
    assert mean_and_deviation([0.1, 0.2, 0.3]) == "0.2000 ± 0.1000"
    assert mean_and_deviation([12.0]) == "12.00"
    assert mean_and_deviation([]) == "–"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"variants": {"a": []}}, "needs base"),
        ({"base": "x.yaml", "variants": {}, "sed": 1}, "unknown key 'sed'"),
    ],
)
def test_a_study_that_is_none_is_refused(tmp_path, content, words):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=words):
        ablate(path, tmp_path / "out")


def test_an_unknown_variant_is_named(tmp_path, study):
    with pytest.raises(ConfigError, match="no variant rank 3; there are plain, rank 2"):
        ablate(study, tmp_path / "out", ["rank 3"])
    with pytest.raises(ConfigError, match="no seed 3; there are 1, 2"):
        ablate(study, tmp_path / "out", seeds=[3])
    with pytest.raises(ConfigError, match="no study"):
        ablate(tmp_path / "nothing.yaml", tmp_path / "out")


def test_the_studies_that_ship_name_only_settings_that_exist():
    folder = Path(__file__).resolve().parents[2] / "config"
    for name in ("ablation-tiny.yaml", "stages.yaml"):
        study = ablation.read_study(folder / name)
        for overrides in study["variants"].values():
            load_config(TrainConfig, folder / study["base"], [*study["overrides"], *overrides])
    for name in ("train.yaml", "train-paper.yaml", "train-tiny.yaml"):
        load_config(TrainConfig, folder / name)
