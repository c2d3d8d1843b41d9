"""A study runs every variant with every seed once, goes on where it stopped, and its table says what was measured."""

from pathlib import Path

import pytest
import torch
import yaml
from small_run import small_presets, write_config

from endomust_core.learning import ablation
from endomust_core.learning.ablation import ablate, mean_and_deviation, table
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
    with pytest.raises(ConfigError, match="no study"):
        ablate(tmp_path / "nothing.yaml", tmp_path / "out")


def test_the_studies_that_ship_name_only_settings_that_exist():
    folder = Path(__file__).resolve().parents[2] / "config"
    study = ablation.read_study(folder / "ablation-tiny.yaml")
    for overrides in study["variants"].values():
        load_config(TrainConfig, folder / study["base"], [*study["overrides"], *overrides])
    for name in ("train.yaml", "train-paper.yaml", "train-tiny.yaml"):
        load_config(TrainConfig, folder / name)
