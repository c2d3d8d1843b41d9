"""Running sums of depth and motion scores against answers worked out by hand."""

import numpy as np
import pytest

from endomust_core.depth_scores import METRICS, Curve, DepthScores, as_scored
from endomust_core.motion_scores import Motions, mean_intrinsics, mean_row, thinned
from endomust_core.odometry import se3


def scores(abs_rel, ratio=1.0):
    return dict.fromkeys(METRICS, 0.0) | {"abs_rel": abs_rel, "ratio": ratio}


def test_a_curve_puts_every_pixel_into_its_bin():
    """Bins [0,1), [1,2), [2,4]: an edge belongs to the bin above it, the last one to the last bin."""
    curve = Curve([0, 1, 2, 4])
    curve.add(np.array([0.0, 0.5, 1.0, 4.0, 4.1, -1.0]), np.array([0.1, 0.3, 0.5, 0.7, 9.0, 9.0]))
    curve.add(np.array([3.0]), np.array([0.1]))
    table = curve.table()
    assert table["pixels"] == [2, 1, 2] and table["abs_rel"] == pytest.approx([0.2, 0.5, 0.4])
    assert Curve([0, 1]).table() == {"edges": [0.0, 1.0], "abs_rel": [None], "pixels": [0]}


def test_all_is_the_mean_over_images_and_stands_last():
    table = DepthScores()
    for group, error in (("b", 0.1), ("a", 0.4), ("b", 0.1)):
        table.add("model", group, scores(error))
    found = table.table()["model"]
    assert list(found) == ["a", "b", "all"] and found["all"]["abs_rel"] == pytest.approx(0.2)
    assert found["a"]["ci95"]["abs_rel"] is None  # one image has no interval
    low, high = found["all"]["ci95"]["abs_rel"]
    assert (low + high) / 2 == pytest.approx(0.2) and high - 0.2 == pytest.approx(4.3027 * 0.1, rel=1e-4)
    assert found["b"]["scale_std"] == 0 and found["b"]["images"] == 2


def test_depth_as_scored_is_scaled_clamped_and_keeps_its_holes():
    depth = np.array([[0.1, np.nan, 0.5, -1.0]], np.float32)
    np.testing.assert_allclose(as_scored(depth, 2.0, 0.05, 0.3), [[0.2, np.nan, 0.3, np.nan]], rtol=1e-6)


def test_windows_do_not_reach_over_a_gap():
    """Right direction on both sides of a gap: no error, though the two pieces head different ways."""
    forward, sideways = se3(np.eye(3), [0, 0, 1e-3]), se3(np.eye(3), [1e-3, 0, 0])
    motions = Motions()
    for _ in range(3):
        motions.add(forward, forward)
    motions.cut()
    for _ in range(5):
        motions.add(2 * sideways - np.eye(4), sideways)
    row, trajectory = motions.scores()
    assert row["pieces"] == 2 and row["frames"] == 6 and len(motions) == 8
    assert row["ate_5frame"] == pytest.approx(0, abs=1e-12) and row["length"] == pytest.approx(5e-3)
    assert len(trajectory["truth"]) == 6


def test_windows_of_several_pieces_are_averaged_as_windows():
    """One window that is wrong by 1/2 mm in one piece of two frames, three right ones in another: a quarter of it."""
    right, wrong = se3(np.eye(3), [0, 0, 1e-3]), se3(np.eye(3), [1e-3, 0, 0])
    motions = Motions()
    motions.add(wrong, right)
    motions.cut()
    for _ in range(4):
        motions.add(right, right)
    row, _ = motions.scores()
    assert row["ate_5frame"] == pytest.approx(0.5e-3 / 4)
    values = np.array([0.5e-3, 0, 0, 0])
    assert row["ate_5frame_std"] == pytest.approx(values.std())


def test_means_over_sequences_leave_out_what_is_unknown():
    rows = [{"ate_full": 1.0, "frames": 3, "length": 2.0}, {"ate_full": None, "frames": 4, "length": 1.0}]
    assert mean_row(rows) == {"ate_full": 1.0, "frames": 7, "length": 3.0}
    rows = [{"predicted": [1.0] * 4, "true": None, "relative_error": None, "pairs": 2}] * 2
    assert mean_intrinsics(rows) == {"predicted": [1.0] * 4, "true": None, "relative_error": None, "pairs": 4}


def test_long_trajectories_are_thinned_to_their_ends():
    chosen = thinned(10_000)
    assert len(chosen) == 2000 and chosen[0] == 0 and chosen[-1] == 9999
    assert thinned(3).tolist() == [0, 1, 2]
