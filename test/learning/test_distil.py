"""Distillation: the student comes closer to its teacher, faults are dropped, stopped runs go on, export takes them."""

import json
from functools import partial

import cv2
import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from mock_bundle import write_mock_bundle  # noqa: E402
from small_run import SMALL_DEPTH, small_presets, write_frames  # noqa: E402

from endomust_core import cli  # noqa: E402
from endomust_core.bundle import load_bundle, resize_rgb  # noqa: E402
from endomust_core.data import DataError  # noqa: E402
from endomust_core.data.cache import cache  # noqa: E402
from endomust_core.data.sequences import open_sequences  # noqa: E402
from endomust_core.learning import distil as distil_file  # noqa: E402
from endomust_core.learning import release  # noqa: E402
from endomust_core.learning.checkpoint import CheckpointError, load_checkpoint, save_checkpoint  # noqa: E402
from endomust_core.learning.config import ConfigError  # noqa: E402
from endomust_core.learning.distil import (  # noqa: E402
    DistillationLosses,
    distil,
    distillation_losses,
    losses_against,
    score,
    without_worst,
)
from endomust_core.learning.eager import open_eager  # noqa: E402
from endomust_core.learning.networks.depth import DepthNetwork  # noqa: E402
from endomust_core.learning.networks.pose import PoseNetwork  # noqa: E402
from endomust_core.learning.pretrain import Training, fit  # noqa: E402
from endomust_core.learning.run import RunError  # noqa: E402
from endomust_core.learning.teaching import Frames, Teacher, ask, open_teacher, scene_sequences  # noqa: E402

SIZE = (56, 70)
PLAIN = {"smallest_crop": 1.0, "stretch": 1.0, "colour": 0.0, "bfloat16": False}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    torch.set_num_threads(1)
    small_presets(monkeypatch)


class Redness:
    """A teacher to whom red is near, from 40 to 300 per metre; it counts its calls, and may fail at some of them."""

    name, version, digest, backend, path, metric = "redness", "1.0", "0" * 64, "test/cpu", "", False

    def __init__(self, stop_at=None, broken=()):
        self.calls, self.stop_at, self.broken = 0, stop_at, broken

    def disparity(self, rgb):
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        said = 40 * np.exp(2 / 255 * cv2.blur(resize_rgb(rgb, SIZE)[..., 0].astype(np.float32), (5, 5)))
        if self.calls - 1 in self.broken:
            said[3, 3] = np.nan
        return said


def taught_by(predictor, relative=False):
    return Teacher(predictor, SIZE, (0.002, 0.35), relative)


@pytest.fixture
def redness(monkeypatch):
    """The teacher of every run, whatever its name."""
    predictor = Redness()
    monkeypatch.setattr(distil_file, "open_teacher", lambda path, backend: taught_by(predictor))
    return predictor


def write_config(folder, **sections):
    """distil.yaml and eight frames; sections replace or extend those of a run of four steps."""
    if not (folder / "frames").exists():
        write_frames(folder / "frames")
    values = {
        "name": "small",
        "teacher": "redness",
        "frames": {"train": [f"folder:{folder / 'frames'}"], "size": [64, 80]},
        "depth": {
            "preset": "small",
            "size": list(SIZE),
            "steps": 4,
            "batch": 2,
            "warm_up": 1,
            "save_every": 2,
            **PLAIN,
        },
    }
    for name, value in sections.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    (folder / "distil.yaml").write_text(yaml.safe_dump(values))
    return folder / "distil.yaml"


def frames_of(folder, teacher, tmp_path, groups="folder"):
    cached = cache(open_sequences(f"folder:{folder}"), tmp_path / "cache", (64, 80))
    answers = [ask(teacher, sequence, tmp_path / "teacher") for sequence in cached]
    return Frames(cached, answers, [groups] * len(cached), teacher.relative, "cpu")


# --- losses ---------------------------------------------------------------------------------------------------------


def smooth(seed=0, size=(40, 48)):
    """A random smooth inverse depth 1×1×H×W between 10 and 60 per metre."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random(size, np.float32), (0, 0), 4)
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return torch.from_numpy(10 + 50 * noise)[None, None]


def everywhere(values):
    return torch.ones_like(values, dtype=torch.bool)


def test_a_corrupted_patch_of_the_teacher_teaches_nothing():
    said = smooth().requires_grad_()
    target = 1.3 * said.detach()
    target[..., 10:18, 10:20] *= 6  # 80 of 1920 pixels: 4 %
    kept = without_worst(said.detach(), target, everywhere(target), 0.1)
    assert not kept[..., 10:18, 10:20].any()
    assert kept.float().mean() >= 0.89
    losses = losses_against(said, target, kept)
    assert losses["shape"].item() == pytest.approx(0, abs=1e-6)
    assert losses["gradient"].item() == pytest.approx(0, abs=1e-5)
    assert losses["scale"].item() == pytest.approx(np.log(1.3), abs=1e-5)
    sum(losses.values()).backward()
    assert said.grad[..., 10:18, 10:20].abs().max() == 0
    trusting = losses_against(said, target, without_worst(said.detach(), target, everywhere(target), 0.0))
    assert trusting["shape"].item() > 0.1 and trusting["gradient"].item() > 0.1


def test_the_worst_pixels_are_those_of_each_image_and_none_comes_back_into_the_mask():
    said = torch.cat([smooth(0), smooth(1)])
    target, mask = said.clone(), everywhere(said)
    target[0, :, :4] *= 3  # a tenth of the first image only
    mask[1, :, :, :24] = False
    kept = without_worst(said, target, mask, 0.1)
    assert not kept[0, :, :4].any() and kept[0, :, 4:].all()
    assert not (kept & ~mask).any() and kept[1].sum() >= 0.89 * mask[1].sum()
    assert not without_worst(said, target, torch.zeros_like(mask), 0.1).any()  # nothing to see is no error


def test_a_relative_teacher_is_followed_up_to_scale_and_offset():
    said = smooth()
    same = losses_against(3 * said + 7, said, everywhere(said), relative=True)
    assert set(same) == {"shape", "gradient"}
    assert all(value.item() == pytest.approx(0, abs=1e-3) for value in same.values())
    assert losses_against(smooth(1), said, everywhere(said), relative=True)["shape"].item() > 0.3
    upside_down = losses_against(70 - said, said, everywhere(said), relative=True)
    assert upside_down["shape"].item() > 0.3


def test_the_student_comes_closer_to_its_teacher(tmp_path):
    teacher = taught_by(Redness())
    frames = frames_of(write_frames(tmp_path / "frames"), teacher, tmp_path)
    torch.manual_seed(0)
    student = DepthNetwork(SMALL_DEPTH)
    before = score(student, frames, SIZE)["agreement"]["all"]
    options = Training("small", SIZE, steps=40, batch=3, learning_rate=4e-3, warm_up=5, average=0.5, **PLAIN)
    losses = partial(distillation_losses, weights=DistillationLosses())
    trained = fit(student, losses, frames, options, 1, tmp_path, "depth", lambda network: "")
    after = score(trained, frames, SIZE)["agreement"]["all"]
    assert after["abs_rel"] < 0.7 * before["abs_rel"]
    assert abs(np.log(after["ratio"])) < 0.3 * abs(np.log(before["ratio"]))  # its metre comes along
    assert after["images"] == 8


def test_a_batch_depends_on_seed_and_step_alone_and_has_truth_where_it_is_asked_for(tmp_path):
    teacher = taught_by(Redness())
    write_scenes(tmp_path / "scenes")
    cached = cache(scene_sequences(f"scenes:{tmp_path / 'scenes'}"), tmp_path / "cache", (64, 80))
    answers = [ask(teacher, sequence, tmp_path / "teacher") for sequence in cached]
    frames = Frames(cached, answers, [sequence.name for sequence in cached], False, "cpu")
    torch.manual_seed(0)
    network, options = DepthNetwork(SMALL_DEPTH), Training("small", SIZE, batch=2, bfloat16=False)
    weights = DistillationLosses(truth=0.5)
    first, again, other = (distillation_losses(network, frames, options, 1, step, weights) for step in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["shape/0"], other["shape/0"])
    assert set(first) == {
        f"{prefix}{name}/{scale}" for prefix in ("", "truth-") for name in ("shape", "scale", "gradient")
        for scale in range(4)
    }  # fmt: skip
    assert all(value.shape == (2,) and torch.isfinite(value).all() for value in first.values())
    assert first["truth-scale/0"].min() > 0  # a fresh network does not say 50 mm
    tables = score(network, frames, SIZE)
    assert set(tables) == {"depth", "teacher", "agreement"}
    assert set(tables["depth"]) == {"colon", "sinus", "all"} and tables["depth"]["all"]["images"] == 4


def write_scenes(folder):
    """Two scene files of two views as pretraining keeps them: true depth 50 mm inside of a round field of view."""
    folder.mkdir()
    y, x = np.mgrid[-1:1:64j, -1:1:80j]
    fov = x**2 + y**2 < 0.9
    rgb = np.repeat(np.where(fov, 128, 0).astype(np.uint8)[..., None], 3, 2)
    for name in ("colon-1", "sinus-2"):
        depth = np.full((2, 64, 80), 0.05, np.float16)
        with open(folder / f"{name}.npz", "wb") as file:
            np.savez(file, rgb=np.stack([rgb, rgb]), depth=depth, fov=fov)


# --- the teacher's answers ------------------------------------------------------------------------------------------


def test_answers_are_kept_and_an_interrupted_call_goes_on(tmp_path):
    cached = cache(open_sequences(f"folder:{write_frames(tmp_path / 'frames')}"), tmp_path / "cache", (64, 80))[0]
    stopped, first, second = Redness(stop_at=5), Redness(), Redness()
    with pytest.raises(KeyboardInterrupt):
        ask(taught_by(stopped), cached, tmp_path / "teacher")
    found = ask(taught_by(first), cached, tmp_path / "teacher")
    assert (stopped.calls, first.calls) == (5, 3)
    assert found.good.all() and found.inverse.dtype == np.float16
    for i in range(8):
        np.testing.assert_allclose(found.inverse[i], Redness().disparity(cached.rgb[i]), rtol=1e-3)
    ask(taught_by(second), cached, tmp_path / "teacher")
    assert second.calls == 0
    second.digest = "1" * 64  # another teacher: nothing of the old one may stay
    ask(taught_by(second), cached, tmp_path / "teacher")
    assert second.calls == 8


def test_a_map_that_is_not_finite_is_left_out_and_counted(tmp_path, redness):
    redness.broken = (2, 4)
    run = distil(write_config(tmp_path), out=tmp_path / "run")
    counts = yaml.safe_load((run / "scores.yaml").read_text())["frames"]
    assert (counts["learned_from"], counts["skipped"], counts["scored_on"]) == (6, 2, "training frames")
    redness.broken, redness.digest = range(100), "2" * 64
    with pytest.raises(DataError, match="no finite depth for any of 8 frames"):
        distil(write_config(tmp_path), out=tmp_path / "other")


def test_a_teacher_may_be_a_bundle_a_run_or_its_checkpoint(tmp_path):
    bundle = open_teacher(str(write_mock_bundle(tmp_path / "mock", size=SIZE, near=0.02, far=0.2)))
    assert (bundle.size, bundle.range_m, bundle.relative) == (SIZE, (0.02, 0.2), False)
    run = write_run(tmp_path / "run")
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    for place in (run, run / "depth.pt"):
        teacher = open_teacher(str(place))
        assert (teacher.size, teacher.range_m) == (SIZE, (0.002, 0.35))
        np.testing.assert_array_equal(teacher.predictor.disparity(image), open_eager(run).disparity(image))
    manifest = yaml.safe_load((tmp_path / "mock" / "manifest.yaml").read_text())
    manifest["scale"]["source"] = "none: relative depth"
    (tmp_path / "mock" / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    assert open_teacher(str(tmp_path / "mock")).relative


def write_run(folder, near=0.002, far=0.35):
    """What pretraining leaves, with networks that learned nothing."""
    torch.manual_seed(5)
    config = {**SMALL_DEPTH.__dict__, "min_depth": near, "max_depth": far}
    save_checkpoint(folder / "depth.pt", DepthNetwork(type(SMALL_DEPTH)(**config)))
    save_checkpoint(folder / "pose.pt", PoseNetwork("tiny"))
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "large", "depth": {"size": list(SIZE)}}))
    return folder


# --- whole runs -----------------------------------------------------------------------------------------------------


def test_a_stopped_run_ends_with_the_same_weights(tmp_path, redness, monkeypatch):
    config = write_config(tmp_path, frames={"cache": str(tmp_path / "cache")})
    whole = distil(config, out=tmp_path / "whole")
    assert redness.calls == 8

    def stop(scores):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(distil_file, "in_short", stop)  # while it scores after its second step
        distil(config, out=tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "depth.pt").exists() and redness.calls == 16
    resumed = distil(config, out=tmp_path / "stopped")
    assert redness.calls == 16
    networks = [load_checkpoint(run / "depth.pt", "depth")[0].state_dict() for run in (whole, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*(n.values() for n in networks), strict=True))
    with pytest.raises(RunError, match="started with seed=1, now it is 2"):
        distil(config, ["seed=2"], out=tmp_path / "stopped")
    redness.digest = "3" * 64
    with pytest.raises(RunError, match="other weights"):
        distil(config, out=tmp_path / "stopped")


def test_export_takes_the_run_and_no_path_travels_with_it(tmp_path, monkeypatch, capsys):
    frames = [f.astype(np.uint8) for f in 255 * np.random.default_rng(0).random((2, 64, 80, 3))]
    monkeypatch.setattr(release, "unseen_frames", lambda **_: frames)
    teacher = write_run(tmp_path / "teacher")
    config = write_config(tmp_path, teacher=str(teacher), frames={"validation": [f"folder:{tmp_path / 'frames'}"]})
    assert cli.main(["distil", str(config), "--out", str(tmp_path / "run"), "depth.steps=2"]) == 0
    assert "endomust export" in capsys.readouterr().out
    bundle = load_bundle(release.export_run(tmp_path / "run", tmp_path / "bundle"))
    assert (bundle.depth.size, bundle.pose is not None) == (SIZE, True)
    assert bundle.manifest["scores"]["agreement"]["all"]["images"] == 8
    told = bundle.manifest["provenance"]["config"]
    assert told["frames"]["train"] == "1 folder" and told["teacher"] == "large unreleased"
    assert str(tmp_path) not in json.dumps(bundle.manifest)
    kept = [load_checkpoint(run / "pose.pt", "pose")[0].state_dict() for run in (teacher, tmp_path / "run")]
    assert all(torch.equal(a, b) for a, b in zip(*(n.values() for n in kept), strict=True))


def test_a_fresh_student_takes_the_range_of_its_teacher_and_another_one_is_told_when_units_differ(tmp_path):
    teacher = write_run(tmp_path / "teacher", near=0.1, far=150.0)
    run = distil(write_config(tmp_path, teacher=str(teacher)), out=tmp_path / "run")
    student = load_checkpoint(run / "depth.pt", "depth")[0]
    assert (student.config.min_depth, student.config.max_depth) == (0.1, 150.0)
    start = write_run(tmp_path / "start")
    config = write_config(tmp_path, teacher=str(teacher), depth={"init": str(start)})
    with pytest.raises(ConfigError, match="units differ.*Leave depth.init out"):
        distil(config, out=tmp_path / "other")


def test_a_student_starts_from_a_run(tmp_path, redness):
    start = write_run(tmp_path / "start")
    config = write_config(tmp_path, depth={"init": str(start), "steps": 1, "learning_rate": 0.0})
    run = distil(config, out=tmp_path / "run")
    found, before = (load_checkpoint(folder / "depth.pt", "depth")[0].state_dict() for folder in (run, start))
    assert all(torch.equal(found[name], before[name]) for name in before)
    assert (run / "pose.pt").exists()  # the teacher has none, so the start's goes along


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["teacher=''"], ConfigError, "teacher names nothing to learn from"),
        (["teacher=nowhere"], ConfigError, "teacher nowhere does not exist"),
        (["frames.train=[]"], ConfigError, "frames.train names no source"),
        (["frames.train=video:a.mp4"], ConfigError, "lists of sources"),
        (["frames.train=[folder:/nowhere]"], DataError, "/nowhere does not exist"),
        (["depth.size=[60, 70]"], ConfigError, "multiples of 14"),
        (["depth.init=nowhere.pt"], ConfigError, "depth.init nowhere.pt does not exist"),
        (["losses.drop=1.0"], ConfigError, "share of the pixels"),
        (["losses.truth=1"], ConfigError, "no training frame has any"),
        (["losses.shapes=1"], ConfigError, "did you mean shape"),
        (["teacher_backend=tensorrt"], ConfigError, "runs in PyTorch"),
        (["device=cuda:77"], ConfigError, "write cpu"),
        (["pose=frames"], ConfigError, "holds no motion network"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_words(tmp_path, monkeypatch, overrides, error, words):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, teacher=str(write_run(tmp_path / "teacher")))
    with pytest.raises(error, match=words):
        distil(config, overrides, tmp_path / "run")


def test_a_relative_teacher_needs_frames_with_truth(tmp_path, monkeypatch):
    monkeypatch.setattr(distil_file, "open_teacher", lambda path, backend: taught_by(Redness(), relative=True))
    with pytest.raises(ConfigError, match="neither scale nor offset.*losses.truth=1"):
        distil(write_config(tmp_path), out=tmp_path / "run")
    write_scenes(tmp_path / "scenes")
    sources = [f"folder:{tmp_path / 'frames'}", f"scenes:{tmp_path / 'scenes'}"]
    run = distil(write_config(tmp_path, frames={"train": sources}, losses={"truth": 1.0}), out=tmp_path / "mixed")
    scores = yaml.safe_load((run / "scores.yaml").read_text())
    assert set(scores["agreement"]) == {"folder", "colon", "sinus", "all"} and "shape" in scores["agreement"]["all"]
    assert scores["depth"]["all"]["images"] == 4 and "teacher" not in scores


def test_a_folder_with_another_run_is_left_alone(tmp_path, redness):
    other = write_run(tmp_path / "run")
    with pytest.raises(RunError, match="holds a run of another command"):
        distil(write_config(tmp_path), out=other)


def test_a_run_without_a_motion_network_says_what_export_will_want(tmp_path, redness, caplog):
    run = distil(write_config(tmp_path), out=tmp_path / "run")
    assert "put a pose.pt into" in caplog.text and not (run / "pose.pt").exists()
    with pytest.raises(CheckpointError, match="holds no pose.pt"):
        release.export_run(run, tmp_path / "bundle")
