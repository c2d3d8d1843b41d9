"""`endomust render`: what lies on disk can be read back and is what was rendered."""

import cv2
import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")

from endomust_core.camera import load_camera  # noqa: E402
from endomust_core.recording import COMPRESSED_TOPIC, DEPTH_PNG_TOPIC, POSE_TOPIC, RecordingReader  # noqa: E402
from endomust_core.simulation import render  # noqa: E402
from endomust_core.simulation.command import render_command  # noqa: E402

SIZE = (64, 80)


def test_folder_holds_images_truth_poses_and_calibration(tmp_path):
    seen = []
    out = render_command(
        "laparo",
        2,
        tmp_path / "scene",
        SIZE,
        seed=1,
        detail=256,
        progress=lambda done, total: seen.append((done, total)),
    )
    frame = list(render("laparo", 2, SIZE, seed=1, detail=256))[1]
    rgb = cv2.imread(str(out / "rgb/000001.png"))[..., ::-1]
    assert np.array_equal(rgb, frame.rgb)
    unit = yaml.safe_load((out / "meta.yaml").read_text())["depth_unit_m"]
    depth = cv2.imread(str(out / "depth/000001.png"), cv2.IMREAD_UNCHANGED) * unit
    assert np.abs(depth - frame.depth)[frame.fov].max() <= unit
    pose = np.loadtxt(out / "poses.txt")[1]
    np.testing.assert_allclose(pose[1:4], frame.T_world_camera[:3, 3], atol=1e-7)
    assert load_camera(out / "camera.yaml").fx == pytest.approx(frame.camera.fx)
    truth = np.load(out / "truth/000001.npz")
    np.testing.assert_allclose(truth["flow"], frame.flow, atol=0.05)
    assert cv2.imread(str(out / "preview.png")).shape == (5 * SIZE[0], 2 * SIZE[1], 3)
    assert seen == [(1, 2), (2, 2)]
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]


def test_recording_has_images_camera_pose_and_thinned_depth(tmp_path):
    out = render_command("colon", 4, tmp_path / "scene.mcap", SIZE, detail=256, depth_every=2)
    with RecordingReader(out) as recording:
        assert recording.count(COMPRESSED_TOPIC) == recording.count(POSE_TOPIC) == 4
        assert recording.count(DEPTH_PNG_TOPIC) == 2
        stamps = [stamp for _, _, stamp, _ in recording.messages([COMPRESSED_TOPIC])]
    assert np.diff(stamps).tolist() == [40_000_000] * 3


def test_a_full_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        render_command("colon", 1, tmp_path, SIZE, detail=256)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("frames", "fps", "word"), [(0, 25.0, "at least one"), (1, 0.0, "positive")])
def test_senseless_requests_are_refused(tmp_path, frames, fps, word):
    with pytest.raises(ValueError, match=word):
        render_command("colon", frames, tmp_path / "out", SIZE, fps=fps)
