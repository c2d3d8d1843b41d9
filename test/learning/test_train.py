"""Runs as a user starts them: files, progress, resuming after a kill to the bit, several processes, and bad input."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from small_run import small_presets, write_config, write_frames

from endomust_core.data import DataError
from endomust_core.learning import run as run_file
from endomust_core.learning.checkpoint import load_checkpoint
from endomust_core.learning.config import ConfigError
from endomust_core.learning.journal import duration
from endomust_core.learning.run import RunError
from endomust_core.learning.train import NonFiniteError, OutOfMemory, Trainer, train

ROOT = Path(__file__).resolve().parents[2]
PRESETS = """
import sys, pytest
sys.path.insert(0, {here!r})
from small_run import small_presets
small_presets(pytest.MonkeyPatch())
from endomust_core.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def frames(tmp_path):
    torch.set_num_threads(1)
    return write_frames(tmp_path / "frames")


@pytest.fixture
def config(tmp_path, frames, monkeypatch):
    small_presets(monkeypatch)
    return write_config(tmp_path / "small.yaml", frames)


@pytest.fixture
def program(tmp_path):
    """The command `endomust` with the small presets, as a script."""
    path = tmp_path / "endomust_small.py"
    path.write_text(PRESETS.format(here=str(Path(__file__).parent)))
    return path


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def state_of(run):
    return torch.load(run / "state.pt", weights_only=True)


def same(a, b):
    """Nested states equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_run_leaves_networks_config_curves_and_pictures(tmp_path, config):
    out = train(config, [], tmp_path / "run")
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["batch"] == 2
    for kind in ("depth", "pose", "optical_flow", "appearance_flow", "decomposition", "light_adjust"):
        network, meta = load_checkpoint(out / f"{kind}.pt", kind)
        assert meta["update"] == 4
    picture = cv2.imread(str(out / "pictures" / "000004.png"))
    assert picture is not None and picture.std() > 10
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["update"] == 4 and rows[-1]["alignment/photometric"] > 0
    assert not list(out.glob("*.part"))


def test_curves_are_tensorboards(tmp_path, config):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(train(config, [], tmp_path / "run")))
    events.Reload()
    tags = events.Tags()
    assert {"registration/photometric", "decomposition/reconstruction", "learning_rate"} <= set(tags["scalars"])
    assert tags["images"] == ["networks"]


def test_overfitting_two_triplets_lowers_every_steps_loss(tmp_path, config):
    out = train(
        config, ["train.steps=60", "train.schedule=constant", "losses.mask_border=false"], tmp_path / "run", overfit=2
    )
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    for name in ("registration/photometric", "decomposition/reconstruction"):
        assert rows[-1][name] < 0.9 * rows[0][name], name


def test_validation_without_truth_keeps_the_best_by_photometric_loss(tmp_path, config, frames):
    out = train(config, [f"data.validation=[folder:{frames}]", "train.validate_every=2"], tmp_path / "run")
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    scores = {row["update"]: row["validation/photometric/loss"] for row in rows if "validation/photometric/loss" in row}
    assert set(scores) == {2, 4}
    _, meta = load_checkpoint(out / "depth.pt", "depth")
    assert meta["validation"] == pytest.approx(min(scores.values()))


def test_validation_data_that_cannot_be_scored_is_refused_before_the_first_update(tmp_path, config):
    lonely = write_frames(tmp_path / "lonely", count=2)
    with pytest.raises(DataError, match="no triplet"):
        train(config, [f"data.validation=[folder:{lonely}]"], tmp_path / "run")
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_rendered_truth_is_scored_before_and_after(tmp_path, monkeypatch):
    from endomust_core.simulation.command import render_command

    small_presets(monkeypatch)
    rendered = render_command("colon", 4, tmp_path / "colon", (64, 80), detail=64)
    config = write_config(tmp_path / "c.yaml", "", data__train=[f"rendered:{rendered}"])
    sources = [f"data.{name}=[rendered:{rendered}]" for name in ("validation", "test")]
    out = train(config, [*sources, "train.steps=2", "losses.intrinsics=given"], tmp_path / "run")
    scores = yaml.safe_load((out / "scores.yaml").read_text())
    for moment in ("before", "after"):
        assert scores[moment]["depth"]["all"]["images"] == 4 and scores[moment]["depth"]["all"]["abs_rel"] > 0
        assert scores[moment]["motion"]["all"]["length"] > 0
    assert scores["before"] != scores["after"]


def test_a_run_becomes_a_bundle_that_names_no_patient(tmp_path, config):
    pytest.importorskip("onnx")
    from endomust_core.bundle import load_bundle
    from endomust_core.learning.release import export_run

    out = train(config, ["train.steps=1"], tmp_path / "run")
    bundle = load_bundle(export_run(out, tmp_path / "bundle"))
    assert (tuple(bundle.depth.size), tuple(bundle.pose.size)) == ((64, 80), (64, 80))
    text = (tmp_path / "bundle" / "manifest.yaml").read_text()
    assert "endomust train" in text and "1 folder" in text and str(tmp_path) not in text
    assert not bundle.metric


# --- stopping and going on ------------------------------------------------------------------------------------------


def test_killed_at_any_update_a_run_goes_on_to_the_bit(tmp_path, config, program):
    whole = train(config, ["train.steps=6"], tmp_path / "whole")
    command = [sys.executable, program, "train", config, "train.steps=6", "--out", tmp_path / "cut"]
    for attempt in range(8):  # each start comes a little farther before it is shot
        extra = ["--resume"] if (tmp_path / "cut" / "config.yaml").exists() else []
        process = subprocess.Popen([*map(str, command), *extra], env=environment(), stderr=subprocess.PIPE, text=True)
        if attempt < 3:
            for line in process.stderr:
                if line.startswith(f"{1 + 2 * attempt}/6"):
                    break
            time.sleep(0.05 * attempt)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            continue
        process.communicate()
        assert process.returncode == 0
        break
    assert same(state_of(whole), state_of(tmp_path / "cut"))
    assert same(
        torch.load(whole / "depth.pt", weights_only=True)["state_dict"],
        torch.load(tmp_path / "cut" / "depth.pt", weights_only=True)["state_dict"],
    )


def test_resumed_sweep_per_epoch_is_the_same_to_the_bit(tmp_path, config):
    options = ["train.interleave=epoch", "train.steps=6", "train.save_every=1"]
    whole = train(config, options, tmp_path / "whole")
    real, count = Trainer.step_through, []

    def stopping(self, batch):
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt
        return real(self, batch)

    Trainer.step_through = stopping
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config, options, tmp_path / "cut")
    finally:
        Trainer.step_through = real
    assert same(state_of(whole), state_of(train(config, options, tmp_path / "cut", resume=True)))


def test_ctrl_c_finishes_the_update_saves_and_says_how_to_go_on(tmp_path, config, program):
    command = [sys.executable, program, "train", config, "train.steps=5000", "--out", tmp_path / "run"]
    process = subprocess.Popen(list(map(str, command)), env=environment(), stderr=subprocess.PIPE, text=True)
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("1/5000"):
            process.send_signal(signal.SIGINT)
            break
    said += process.communicate()[1]
    assert process.returncode == 130
    assert "--resume goes on" in said
    assert state_of(tmp_path / "run")["update"] >= 1


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, config):
    out = train(config, ["train.steps=1"], tmp_path / "run")
    with pytest.raises(RunError, match="--resume"):
        train(config, [], out)
    with pytest.raises(RunError, match="holds no run to resume"):
        train(config, [], tmp_path / "nothing", resume=True)


def test_resuming_with_other_settings_names_the_setting(tmp_path, config):
    out = train(config, ["train.steps=1"], tmp_path / "run")
    with pytest.raises(RunError, match=r"losses.cycle=0.5, now it is 0.7"):
        train(config, ["train.steps=2", "losses.cycle=0.7"], out, resume=True)


def test_a_finished_run_can_be_made_longer(tmp_path, config):
    out = train(config, ["train.steps=2"], tmp_path / "run")
    train(config, ["train.steps=4"], out, resume=True)
    assert state_of(out)["update"] == 4


# --- several processes ----------------------------------------------------------------------------------------------


def test_two_processes_have_the_loss_of_one_on_the_same_batch(tmp_path, config, program):
    single = train(config, ["train.steps=2"], tmp_path / "single")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", program]
    command += ["train", config, "train.steps=2", "--out", tmp_path / "double"]
    done = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [
        [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        for run in (single, tmp_path / "double")
    ]
    assert len(rows[0]) == len(rows[1]) == 2
    for one, two in zip(*rows, strict=True):
        for name in one:
            if not name.startswith("gradient/") or one["update"] == 1:
                assert two[name] == pytest.approx(one[name], abs=1e-5, rel=1e-5), name


def test_a_batch_that_does_not_divide_is_refused(tmp_path, config, monkeypatch):
    monkeypatch.setattr("endomust_core.learning.distributed.World.__init__", lambda *a: None, raising=True)
    from contextlib import contextmanager

    from endomust_core.learning import distributed

    @contextmanager
    def three(device):
        world = object.__new__(distributed.World)
        world.__dict__.update(rank=0, size=3, device=torch.device("cpu"))
        yield world

    monkeypatch.setattr(distributed, "processes", three)
    with pytest.raises(ConfigError, match="must divide among 3"):
        train(config, [], tmp_path / "run")


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_keeps_the_batch(tmp_path, config, monkeypatch):
    from endomust_core.learning.steps import Forward

    real = Forward.decomposition_losses
    monkeypatch.setattr(
        Forward, "decomposition_losses", lambda self: {k: v * float("nan") for k, v in real(self).items()}
    )
    with pytest.raises(NonFiniteError, match=r"decomposition/reconstruction.* is not finite.*update 0"):
        train(config, [], tmp_path / "run")
    kept = torch.load(next((tmp_path / "run").glob("nonfinite-*.pt")), weights_only=True)
    assert kept["batch"]["target"].shape == (2, 3, 64, 80) and len(kept["names"]) == 2


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_hurt(tmp_path, config, monkeypatch):
    from endomust_core.learning import train as train_file

    real = train_file.total_of

    def poisoned(values):
        total = real(values)
        total.register_hook(lambda gradient: gradient * float("inf"))
        return total

    monkeypatch.setattr(train_file, "total_of", poisoned)
    with pytest.raises(NonFiniteError, match="gradient is not finite"):
        train(config, [], tmp_path / "run")


def test_a_full_disk_is_said_and_the_last_save_stays(tmp_path, config, monkeypatch):
    real, saves = torch.save, []

    def full(content, file):
        saves.append(1)
        if len(saves) > 1:
            raise OSError(28, "No space left on device")
        real(content, file)

    monkeypatch.setattr(run_file.torch, "save", full)
    with pytest.raises(RunError, match=r"disk of .* is full .* --resume"):
        train(config, [], tmp_path / "run")
    assert state_of(tmp_path / "run")["update"] == 2
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_says_what_makes_it_smaller(tmp_path, config, monkeypatch, error):
    def explode(self, batch):
        raise error

    monkeypatch.setattr(Trainer, "step_through", explode)
    with pytest.raises(OutOfMemory, match="train.batch.*depth.checkpointing=true"):
        train(config, [], tmp_path / "run")


def test_other_faults_keep_their_own_words(tmp_path, config, monkeypatch):
    def explode(self, batch):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Trainer, "step_through", explode)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="^shapes differ$"):
        train(config, [], tmp_path / "run")
    assert threading.active_count() == before  # nobody goes on making batches


def test_a_broken_frame_stops_the_run_or_is_skipped_as_configured(tmp_path, config, frames, caplog):
    (frames / "0003.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="0003.png"):
        train(config, [], tmp_path / "stopped")
    with caplog.at_level("INFO"):
        train(config, ["data.on_error=skip", "train.steps=1"], tmp_path / "skipped")
    assert "1 frames skipped" in caplog.text and "0003.png" in caplog.text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.train=[]", "names no source"),
        ("data.train=[folder:/does/not/exist]", "not/exist"),
        ("losses.cycel=1", "did you mean cycle"),
        ("depth.preset=huge", "tiny, small, base"),
        ("depth.size=[100, 100]", "multiples of 14"),
        ("depth.init=/does/not/exist.pt", "does not exist"),
        ("train.precision=int4", "fp32, bf16, fp16"),
        ("train.precision=fp16", "bf16 or fp32 on a CPU"),
        ("train.device=tpu9", "auto, cpu, cuda"),
        ("losses.intrinsics=given", "choose mean"),
        ("data.size=[10, 10]", "at least 64"),
        ("data.gap=50", "gap 50"),
    ],
)
def test_bad_settings_are_refused_in_words(tmp_path, config, override, words):
    with pytest.raises(ValueError, match=words):
        train(config, [override], tmp_path / "run")


def test_a_gpu_that_is_not_there_is_said(tmp_path, config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        train(config, ["train.device=cuda"], tmp_path / "run")


@pytest.mark.parametrize(("seconds", "text"), [(7, "7 s"), (300, "5 min"), (5400, "1 h 30 min"), (90000, "25 h 0 min")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
