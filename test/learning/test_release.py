"""From a finished run to a bundle that loads; an unfinished run is refused with the way to finish it."""

import cv2
import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from endomust_core.bundle import load_bundle  # noqa: E402
from endomust_core.learning import release  # noqa: E402
from endomust_core.learning.checkpoint import CheckpointError, save_checkpoint  # noqa: E402
from endomust_core.learning.export import ExportError  # noqa: E402
from endomust_core.learning.networks.depth import DepthNetwork  # noqa: E402
from endomust_core.learning.networks.pose import PoseNetwork  # noqa: E402


@pytest.fixture
def run(tmp_path):
    """What pretrain leaves, with networks that learned nothing."""
    torch.manual_seed(0)
    config = {"name": "small", "description": "for a test", "seed": 7, "depth": {"size": [56, 70], "preset": "tiny"}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "run" / "scores.yaml").write_text(yaml.safe_dump({"depth": {"all": {"abs_rel": 0.5}}}))
    save_checkpoint(tmp_path / "run" / "depth.pt", DepthNetwork("tiny"))
    save_checkpoint(tmp_path / "run" / "pose.pt", PoseNetwork("tiny"))
    return tmp_path / "run"


def test_a_run_becomes_a_bundle_that_says_where_it_came_from(run, tmp_path):
    root = release.export_run(run, tmp_path / "bundle", version="1.2.3")
    bundle = load_bundle(root)
    assert (bundle.name, bundle.version, bundle.depth.size) == ("small", "1.2.3", (56, 70))
    assert bundle.pose is not None and bundle.metric is False
    origin = bundle.manifest["provenance"]
    assert origin["seed"] == 7 and origin["config"]["depth"]["preset"] == "tiny"
    assert "torch" in origin["program"] and len(origin["date"]) == 10
    assert bundle.manifest["scores"]["depth"]["all"]["abs_rel"] == 0.5
    assert bundle.manifest["verification"]["depth"]["onnx_vs_pytorch_max_rel"] < 1e-4


def test_real_frames_serve_for_the_verification_and_a_note_stays_with_the_bundle(run, tmp_path):
    rng = np.random.default_rng(0)
    images = [tmp_path / name for name in ("first.png", "second.png")]
    for path in images:
        cv2.imwrite(str(path), rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    bundle = load_bundle(release.export_run(run, tmp_path / "bundle", frames_from=images, note="trained twice"))
    assert bundle.manifest["provenance"]["verified_on"] == ["first.png", "second.png"]
    assert bundle.manifest["provenance"]["note"] == "trained twice"
    assert bundle.manifest["verification"]["frames"] == 2
    (tmp_path / "no.mp4").write_bytes(b"not a video")
    with pytest.raises(ExportError, match="neither an image nor a video"):
        release.export_run(run, tmp_path / "other", frames_from=[tmp_path / "no.mp4"])


def test_an_unfinished_run_is_refused(run, tmp_path):
    (run / "pose.pt").unlink()
    with pytest.raises(CheckpointError, match="holds no pose.pt.*goes on where it stopped"):
        release.export_run(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_outside_of_a_checkout_the_commit_is_unknown(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(release.subprocess, "run", absent)
    assert release.commit() == "unknown"
