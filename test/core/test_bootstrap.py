"""Block bootstrap: intervals that hold what they promise, and that grow where frames resemble their neighbours."""

import math

import numpy as np
import pytest

from endomust_core.bootstrap import best_block, block_bootstrap, block_length, resampled


def correlated(random, count, memory):
    """(count,) scores of mean 0 and variance 1, each `memory` of the one before."""
    steps = random.normal(size=count)
    values = np.empty(count)
    values[0] = steps[0]
    for i in range(1, count):
        values[i] = memory * values[i - 1] + math.sqrt(1 - memory**2) * steps[i]
    return values


def coverage(memory, block, resample_groups=False, times=40):
    random = np.random.default_rng(3)
    hits = 0
    for seed in range(times):
        groups = {str(k): correlated(random, 80, memory) for k in range(7)}
        _, low, high = block_bootstrap(groups, draws=200, block=block, seed=seed, resample_groups=resample_groups)
        hits += low <= 0 <= high
    return hits / times


def test_independent_scores_get_the_textbook_interval():
    values = np.random.default_rng(0).normal(size=400)
    estimate, low, high = block_bootstrap({"a": values[:150], "b": values[150:]}, block=1)
    error = values.std() / 20
    assert estimate == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((estimate - 1.96 * error, estimate + 1.96 * error), abs=0.25 * error)


def test_the_interval_holds_what_it_promises():
    assert coverage(0.0, None) > 0.88
    assert coverage(0.9, 1) < 0.5, "treating neighbours as independent promises too much"
    assert coverage(0.9, None) > 0.55
    assert coverage(0.9, None, resample_groups=True) > 0.85


def test_blocks_grow_with_memory():
    random = np.random.default_rng(1)
    lengths = [best_block([correlated(random, 400, memory) for _ in range(3)]) for memory in (0.0, 0.7, 0.95)]
    assert lengths[0] <= 5 < lengths[1] < lengths[2] < 200
    assert best_block([np.ones(50)]) == 1


def test_blocks_are_neighbours_and_wrap_around():
    indices = resampled(10, 200, 3, np.random.default_rng(0))
    assert indices.shape == (200, 10)
    np.testing.assert_array_equal((indices[:, :3] - indices[:, :1]) % 10, np.tile([0, 1, 2], (200, 1)))
    assert indices.min() == 0 and indices.max() == 9
    counts = np.bincount(indices.ravel(), minlength=10)
    assert counts.min() > 0.7 * counts.mean(), "the ends are drawn as often as the middle"


def test_a_block_is_never_the_whole_sequence():
    assert [block_length(n, 50) for n in (1, 2, 9, 300)] == [1, 1, 3, 50]
    with pytest.raises(ValueError, match="impossible"):
        block_length(9, 0)


def test_the_same_seed_gives_the_same_interval():
    groups = {"a": np.arange(20.0), "b": np.arange(7.0)}
    assert block_bootstrap(groups, seed=4) == block_bootstrap(groups, seed=4) != block_bootstrap(groups, seed=5)


def test_sequences_that_differ_make_the_interval_wide_only_when_they_are_drawn_too():
    random = np.random.default_rng(2)
    groups = {str(k): k + 0.01 * random.normal(size=50) for k in range(5)}
    _, low, high = block_bootstrap(groups)
    assert high - low < 0.02
    _, low, high = block_bootstrap(groups, resample_groups=True)
    assert high - low > 1


def test_drawing_sequences_is_the_same_for_the_mean_and_for_a_mean_it_does_not_know():
    random = np.random.default_rng(5)
    groups = {"a": random.normal(size=40), "b": 2 + random.normal(size=11), "c": 1 + random.normal(size=25)}
    fast = block_bootstrap(groups, block=4, draws=1500, resample_groups=True)
    slow = block_bootstrap(groups, lambda v: float(np.mean(v)), block=4, draws=1500, resample_groups=True)
    assert fast == pytest.approx(slow, abs=0.12)


def test_any_statistic_works():
    groups = {"a": np.random.default_rng(0).exponential(size=300)}
    for statistic in (np.median, lambda v: float(np.median(v))):
        estimate, low, high = block_bootstrap(groups, statistic, draws=300)
        assert low < estimate == np.median(groups["a"]) < high


def test_sequences_of_one_image_are_independent_images():
    values = np.random.default_rng(0).normal(size=16)
    _, low, high = block_bootstrap({str(i): v for i, v in enumerate(values)})
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 4, rel=0.2)


def test_one_value_has_no_interval_and_none_is_an_error():
    estimate, low, high = block_bootstrap({"a": [0.3]})
    assert estimate == 0.3 and math.isnan(low) and math.isnan(high)
    with pytest.raises(ValueError, match="no score"):
        block_bootstrap({"a": []})
    with pytest.raises(ValueError, match="'b' holds scores that are not finite"):
        block_bootstrap({"a": [1.0], "b": [np.nan]})
