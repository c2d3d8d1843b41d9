"""Missing images told from stamps: cameras with known losses, that stop, jump, jitter, or change their rate."""

import numpy as np
import pytest

from endomust_ros.stamp_gaps import ENOUGH, TOO_MANY, WINDOW, StampGaps

PERIOD = 1 / 30  # s


def heard(times) -> StampGaps:
    gaps = StampGaps()
    for time in times:
        gaps.add(round(1e9 * (1000.0 + time)))
    return gaps


def camera(images=300, period=PERIOD, start=0.0):
    return start + period * np.arange(images)


def thinned(times, kept, seed=0):
    """Each image arrives with the probability `kept`."""
    return times[np.random.default_rng(seed).random(times.size) < kept]


def test_nothing_is_missing_from_a_whole_stream():
    loss = heard(camera()).loss()
    assert (loss.missing, loss.percent, loss.serious) == (0, 0.0, False) and np.isclose(loss.period, PERIOD)


def test_nothing_is_said_before_the_period_is_known():
    assert heard(camera(ENOUGH)).loss() == (None, 0, None)
    assert heard(camera(ENOUGH + 1)).loss().percent == 0.0


def test_one_gap_of_four_periods_is_three_missing():
    times = np.delete(camera(104), [50, 51, 52])
    loss = heard(times).loss()
    assert loss.missing == 3 and np.isclose(loss.percent, 100 * 3 / 103)  # 100 gaps seen
    assert not loss.serious and loss.percent < TOO_MANY


@pytest.mark.parametrize("kept", [0.9, 0.7, 0.5, 0.3])
def test_random_loss_from_the_start_is_measured(kept):
    loss = heard(thinned(camera(1200), kept)).loss()
    assert np.isclose(loss.period, PERIOD, rtol=0.02) and loss.serious
    assert abs(loss.percent - 100 * (1 - kept)) < 6


def test_loss_that_begins_late_is_measured_over_the_window():
    gaps = heard(np.append(camera(600), thinned(camera(600, start=600 * PERIOD), 0.5)))
    assert 40 < gaps.loss().percent < 60


def test_jitter_of_the_stamps_is_no_loss():
    times = camera(400) + np.random.default_rng(1).normal(0, 0.08 * PERIOD, 400)
    assert heard(times).loss().percent < 1.0


def test_late_stamps_are_no_loss():
    """Every tenth is 0.7 periods late: gaps of 1.7 and 0.3 periods."""
    times = camera(400)
    times[::10] += 0.7 * PERIOD
    assert heard(times).loss().missing == 0


def test_stamps_without_a_rhythm_say_nothing():
    """Someone presses a button, or stamps are those of bursts on a bus."""
    assert heard(np.cumsum(np.random.default_rng(2).uniform(0.005, 0.2, 300))).loss().percent is None


def test_a_camera_that_stops_has_lost_nothing():
    assert heard(np.append(camera(100), camera(100, start=60.0))).loss().missing == 0


def test_a_jump_back_and_equal_stamps_are_no_loss():
    twice = np.concatenate([camera(100, start=50.0), camera(100), camera(1, start=99 * PERIOD)])
    assert heard(twice).loss() == (pytest.approx(PERIOD, rel=1e-6), 0, 0.0)


@pytest.mark.parametrize("periods", [(1 / 30, 1 / 15), (1 / 15, 1 / 30), (1 / 30, 1 / 60), (1 / 60, 1 / 25)])
def test_a_camera_that_takes_another_rate_has_lost_nothing(periods):
    """As many do when it gets dark; a few images are in doubt, then the new period is known."""
    before, after = periods
    times = np.append(camera(300, before), camera(ENOUGH, after, start=299 * before + after))
    loss = heard(times).loss()
    assert loss.missing == 0 and np.isclose(loss.period, after)


def test_a_slow_camera_may_take_its_time():
    assert heard(camera(60, period=0.5)).loss().percent == 0.0
    assert heard(np.delete(camera(60, period=0.5), 30)).loss().missing == 1


def test_what_we_did_not_listen_to_is_not_missing():
    gaps = heard(camera(100))
    gaps.restart()
    for time in camera(100, start=100 * PERIOD + 0.5):
        gaps.add(round(1e9 * (1000.0 + time)))
    assert gaps.loss().missing == 0


def test_the_window_forgets():
    gaps = heard(np.append(thinned(camera(300), 0.5), camera(WINDOW + 1, start=300 * PERIOD)))
    assert gaps.loss().missing == 0
