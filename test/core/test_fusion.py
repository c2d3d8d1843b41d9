"""Fused clouds: a plane seen from many places stays that plane, memory stays bounded, veils and black borders go."""

import numpy as np
import pytest
from small_recording import CAMERA, NORMAL, OFFSET, depth_at, image_at, pose_at

from endomust_core.fusion import Fusion, trusted_points, write_ply


def fused(frames=8, **options):
    fusion = Fusion(**options)
    for index in range(frames):
        fusion.add(depth_at(index), image_at(index), CAMERA, pose_at(index))
    return fusion


def test_a_plane_seen_from_eight_places_is_one_plane():
    fusion = fused(voxel=0.001)
    points, colours = fusion.cloud()
    assert np.abs(points @ NORMAL - OFFSET).max() < 1e-6 and points.dtype == np.float32
    assert len(points) < 8 * 7680 / 2, "what is seen again joins what is there"
    assert colours.shape == points.shape and 60 < colours.mean() < 230


def test_colours_are_those_of_the_picture():
    fusion = Fusion(voxel=0.0005)
    rgb = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
    rgb[...] = (200, 90, 40)
    fusion.add(depth_at(0), rgb, CAMERA, pose_at(0))
    assert (fusion.cloud()[1] == (200, 90, 40)).all()


def test_too_many_voxels_double_their_size():
    fusion = fused(voxel=1e-5, most=200)
    points, _ = fusion.cloud()
    assert len(points) <= 200 and fusion.voxel / 1e-5 == 2 ** round(np.log2(fusion.voxel / 1e-5))
    assert fusion.voxel > 1e-5 and np.abs(points @ NORMAL - OFFSET).max() < 1e-6


def test_voxels_on_both_sides_of_the_origin_stay_apart_when_they_grow():
    fusion = Fusion(voxel=1e-3, most=8)
    near = (-0.5e-3, 0.5e-3)
    points = np.array([[x, y, z, 9, 9, 9] for x in (-3.5e-3, *near) for y in near for z in near], np.float32)
    fusion._waiting, fusion.images = [points], 1
    fusion._sort_in()
    assert len(fusion._keys) == 8 and fusion.voxel == 4e-3 and fusion._sums[:, 6].sum() == 12
    means, _ = fusion.cloud()
    assert sorted(np.unique(means[:, 0])) == pytest.approx([-2e-3, 0.5e-3]), "nothing crosses the origin"
    with pytest.raises(ValueError, match="give 8 at least"):
        Fusion(most=4)


def test_edges_black_pixels_and_missing_depth_are_left_out():
    depth = np.full((CAMERA.height, CAMERA.width), 0.05, np.float32)
    depth[:, 48:] = 0.10
    depth[:40, :24] = np.nan
    rgb = np.full((*depth.shape, 3), 100, np.uint8)
    rgb[60:] = 3
    points = trusted_points(depth, rgb, CAMERA, stride=1)
    u, v = (points[:, :2] / points[:, 2:3] * 90 + (47.5, 39.5)).T.round().astype(int)
    kept = np.zeros(depth.shape, bool)
    kept[v, u] = True
    assert not kept[:40, :25].any() and not kept[60:].any() and not kept[:, 47:49].any()
    assert kept[45:59, 2:46].all() and kept[2:59, 50:].all()


def test_a_ply_file_holds_what_was_given(tmp_path):
    points, colours = np.array([[0.1, -0.2, 0.3], [1, 2, 3]]), np.array([[1, 2, 3], [250, 4, 5]])
    write_ply(tmp_path / "c.ply", points, colours, "metres")
    head, _, body = (tmp_path / "c.ply").read_bytes().partition(b"end_header\n")
    assert b"element vertex 2\n" in head and b"comment metres\n" in head and len(body) == 2 * 15
    rows = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    np.testing.assert_allclose(rows["xyz"], points, rtol=1e-6)
    np.testing.assert_array_equal(rows["rgb"], colours)
    assert [f.name for f in tmp_path.iterdir()] == ["c.ply"]


def test_nothing_gives_an_empty_cloud(tmp_path):
    points, colours = Fusion().cloud()
    assert points.shape == (0, 3) and colours.shape == (0, 3)
    assert b"element vertex 0" in write_ply(tmp_path / "c.ply", points, colours).read_bytes()
