"""The trivial predictors say what they are named for."""

import numpy as np
import pytest

from endomust_core.baselines import BASELINES, centre_is_far, constant_depth, inverse_square_brightness
from endomust_core.metrics import depth_metrics


def test_the_centre_is_far_and_the_corners_a_third_of_it():
    depth = centre_is_far(np.zeros((9, 9, 3), np.uint8))
    assert depth[4, 4] == pytest.approx(1) and depth[0, 0] == depth[8, 8] == pytest.approx(1 / 3)
    assert depth[4, 0] == pytest.approx(1 - (2 / 3) / np.sqrt(2))
    with pytest.raises(ValueError):
        depth[0, 0] = 5  # shared between images


def test_brightness_falls_with_the_square_of_distance():
    """Twice as far is a quarter of the light, which display values show as 0.25^(1/2.2)."""
    near, far = 250, round(250 * 0.25 ** (1 / 2.2))
    depth = inverse_square_brightness(np.array([[[near] * 3, [far] * 3, [0] * 3]], np.uint8))[0]
    assert depth[1] / depth[0] == pytest.approx(2, rel=0.01)
    assert np.isfinite(depth).all()  # black is far, not infinitely far


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_can_be_scored_at_any_size(name):
    rgb = np.random.default_rng(0).integers(0, 256, (7, 12, 3), dtype=np.uint8)
    depth = BASELINES[name](rgb)
    assert depth.shape == (7, 12) and (depth > 0).all()
    assert depth_metrics(depth, np.full((7, 12), 0.05), 1e-3, 0.3)["coverage"] == 1.0


def test_constant_depth_is_right_where_the_world_is_flat():
    assert depth_metrics(constant_depth(np.zeros((4, 4, 3), np.uint8)), np.full((4, 4), 0.05))["abs_rel"] == 0
