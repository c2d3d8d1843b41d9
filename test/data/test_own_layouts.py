"""Our own layouts and SimCol3D's images open lazily and in metres; what is missing is named."""

import cv2
import numpy as np
import pytest
import yaml

from endomust_core.data import DataError, open_dataset
from endomust_core.data.simcol3d import METRES_PER_UNIT


def write_scene(path, domain, seed, rng):
    level = rng.integers(20, 120, (2, 12, 16), dtype=np.uint8)
    rgb = np.stack([level, level // 2, level // 2], -1)
    fov = np.ones((12, 16), bool)
    fov[0] = False
    np.savez(path / f"{domain}-{seed}.npz", rgb=rgb, depth=(level * 1e-3).astype(np.float16), fov=fov)


def test_scenes_are_grouped_by_domain_and_read_one_by_one(tmp_path):
    rng = np.random.default_rng(0)
    for domain, seed in (("sinus", 2), ("colon", 1), ("colon", 0)):
        write_scene(tmp_path, domain, seed, rng)
    dataset = open_dataset(f"scenes:{tmp_path}")
    assert dataset.groups() == {"colon": [0, 1, 2, 3], "sinus": [4, 5]} and dataset.tasks == ("depth",)
    sample = dataset[5]
    assert sample.name == "sinus-2/1" and np.isnan(sample.depth[0]).all()
    assert sample.depth[5] == pytest.approx(sample.rgb[5, :, 0] * 1e-3, rel=1e-3)
    assert len(open_dataset(f"scenes:{tmp_path}", "sinus")) == 2
    (tmp_path / "colon-9.npz").write_bytes(b"half")
    with pytest.raises(DataError, match="colon-9.npz is no scene file"):
        open_dataset(f"scenes:{tmp_path}")


def test_simcol3d_depth_is_in_metres(tmp_path):
    folder = tmp_path / "Frames_S1"
    folder.mkdir()
    cv2.imwrite(str(folder / "FrameBuffer_0000.png"), np.full((8, 8, 3), 90, np.uint8))
    units = np.full((8, 8), 128 * 256, np.uint16)
    units[0, 0] = 0
    cv2.imwrite(str(folder / "Depth_0000.png"), units)
    (sample,) = open_dataset(f"simcol3d:{tmp_path}")
    assert sample.depth[1, 1] == pytest.approx(0.20 * 128 / 255) and np.isnan(sample.depth[0, 0])
    assert pytest.approx(20 / 100 / 255 / 256) == METRES_PER_UNIT and sample.group == "Frames_S1"


def test_rendered_folder_reads_back_its_unit(tmp_path):
    for name in ("rgb", "depth"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "rgb/000000.png"), np.full((8, 8, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "depth/000000.png"), np.full((8, 8), 500, np.uint16))
    (tmp_path / "meta.yaml").write_text(yaml.safe_dump({"domain": "colon", "depth_unit_m": 1e-4}))
    (sample,) = open_dataset(f"rendered:{tmp_path}")
    assert sample.depth[0, 0] == pytest.approx(0.05) and sample.group == tmp_path.name


@pytest.mark.parametrize(("spec", "words"), [("kitti:/x", "unknown data set"), ("scenes:", "say where"),
                                             ("simcol3d:{}", "FrameBuffer"),
                                             ("scenes:{}", "npz"), ("rendered:{}", "meta.yaml")])  # fmt: skip
def test_a_wrong_layout_shows_the_right_one(tmp_path, spec, words):
    with pytest.raises(DataError, match=words):
        open_dataset(spec.format(tmp_path))


def test_missing_depth_is_named(tmp_path):
    cv2.imwrite(str(tmp_path / "FrameBuffer_0003.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="Depth_0003.png is missing"):
        list(open_dataset(f"simcol3d:{tmp_path}"))


def test_a_rendered_sequence_says_what_it_lacks(tmp_path):
    for name in ("rgb", "depth"):
        (tmp_path / "one" / name).mkdir(parents=True)
    for number in (0, 2):
        cv2.imwrite(str(tmp_path / f"one/rgb/{number:06d}.png"), np.full((8, 8, 3), 90, np.uint8))
        cv2.imwrite(str(tmp_path / f"one/depth/{number:06d}.png"), np.full((8, 8), 500, np.uint16))
    (tmp_path / "one/meta.yaml").write_text(yaml.safe_dump({"depth_unit_m": 1e-4, "frames": 3}))
    (tmp_path / "one/poses.txt").write_text("# stamp\n" + "".join(f"{n / 25} 0 0 {n} 0 0 0 1\n" for n in range(3)))
    dataset = open_dataset(f"rendered:{tmp_path}")
    assert len(dataset) == 3 and dataset.tasks == ("depth", "pose") and dataset.name == "rendered"
    assert dataset[2].T_world_camera[2, 3] == 2 and dataset[2].index == 2
    with pytest.raises(DataError, match="rendered one/000001: rgb/000001.png is missing"):
        dataset[1]
    (tmp_path / "one/poses.txt").write_text("0 0 0 0 0 0 0 1\n")
    with pytest.raises(DataError, match="has 1 poses, the sequence 3 frames"):
        open_dataset(f"rendered:{tmp_path}")
    (tmp_path / "one/meta.yaml").write_text("frames: 3\n")
    with pytest.raises(DataError, match="one is no sequence .*depth_unit_m"):
        open_dataset(f"rendered:{tmp_path}")
