"""Trajectories: a TUM file comes back, its length is right, and thinned values are even and bounded."""

import numpy as np
import pytest

from endomust_core.odometry import se3, so3_exp
from endomust_core.trajectory import Thinned, TrajectoryWriter, read_trajectory


def pose(index):
    return se3(so3_exp(np.array([0.1, -0.2, 0.3]) * index), np.array([0.003, 0.004, 0.0]) * index)


def test_poses_come_back_from_a_tum_file(tmp_path):
    writer = TrajectoryWriter(tmp_path / "t.txt")
    for index in range(5):
        writer.add(1_700_000_000_000_000_001 + index * 10**8, pose(index))
    writer.close()
    stamps, poses = read_trajectory(tmp_path / "t.txt")
    np.testing.assert_allclose(poses, [pose(index) for index in range(5)], atol=1e-8)
    np.testing.assert_allclose(np.diff(stamps), 0.1, atol=1e-6)
    assert writer.poses == 5 and writer.length == pytest.approx(4 * 0.005)
    assert "1700000000.000000001 0.000000000" in (tmp_path / "t.txt").read_text()


def test_a_line_that_is_no_pose_is_named(tmp_path):
    (tmp_path / "t.txt").write_text("# comment\n1.0 0 0 0 0 0 0 1\n2.0 0 0\n")
    with pytest.raises(ValueError, match="line 3 is no pose in TUM format: 2.0 0 0"):
        read_trajectory(tmp_path / "t.txt")


@pytest.mark.parametrize("count", [0, 1, 10, 11, 999, 1000])
def test_thinned_values_are_even_and_bounded(count):
    thinned = Thinned(10)
    for value in range(count):
        thinned.add(value)
    assert thinned.values == list(range(0, count, thinned.every)) and len(thinned.values) <= 10
    assert count < 10 or len(thinned.values) >= 5
