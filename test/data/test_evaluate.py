"""Data sets open imitations of their layout; evaluation scores a perfect and a wrong estimator as it must."""

import cv2
import numpy as np
import pytest
import yaml

from endomust_core.data import DataError, open_dataset
from endomust_core.data.simcol3d import METRES_PER_UNIT
from endomust_core.evaluate import centre_is_far, evaluate, inverse_square_brightness, markdown


class Oracle:
    """Answers with a fixed multiple of a known depth; depth is hidden in the red channel, 1 level = 1 mm."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def reset(self):
        pass

    def estimate(self, rgb):
        return type("Estimate", (), {"depth": rgb[..., 0] * np.float32(1e-3 * self.factor)})


def write_scene(path, domain, seed, rng):
    level = rng.integers(20, 120, (2, 12, 16), dtype=np.uint8)
    rgb = np.stack([level, level // 2, level // 2], -1)
    fov = np.ones((12, 16), bool)
    fov[0] = False
    np.savez(path / f"{domain}-{seed}.npz", rgb=rgb, depth=(level * 1e-3).astype(np.float16), fov=fov)


def test_scenes_are_scored_by_domain_and_scaled_per_image(tmp_path):
    rng = np.random.default_rng(0)
    write_scene(tmp_path, "colon", 1, rng)
    write_scene(tmp_path, "sinus", 2, rng)
    table = evaluate(Oracle(factor=3.0), open_dataset(f"scenes:{tmp_path}"))
    assert list(table["model"]) == ["colon", "sinus", "all"] and table["model"]["all"]["images"] == 4
    assert table["model"]["all"]["abs_rel"] < 1e-3  # a common factor is forgiven ...
    assert table["constant"]["all"]["abs_rel"] > 0.1
    metric = evaluate(Oracle(factor=3.0), open_dataset(f"scenes:{tmp_path}"), scaling="none")
    assert metric["model"]["all"]["abs_rel"] > 1  # ... but not when the score is metric
    assert "| model | sinus |" in markdown(table)


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
    assert sample.depth[0, 0] == pytest.approx(0.05) and sample.group == "colon"


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


def test_baselines_say_what_they_are_named_for():
    depth = centre_is_far(np.zeros((9, 9, 3), np.uint8))
    assert depth[4, 4] == pytest.approx(1) and depth[0, 0] == pytest.approx(1 / 3)
    dim, bright = inverse_square_brightness(np.array([[[64] * 3, [255] * 3]], np.uint8))[0]
    assert dim / bright == pytest.approx(np.sqrt((255 / 64) ** 2.2), rel=1e-4)  # display values carry a gamma of 2.2
