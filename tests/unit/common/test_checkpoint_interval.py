"""The interval of checkpoints loses least time, and stays within its bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video2world_common.checkpoint_interval import (
    LONGEST,
    SHARE,
    WRITES,
    Measured,
    choose,
    daly_seconds,
    every,
    next_save,
    seconds_between_failures,
)

HOUR = 3600.0
SECONDS = st.floats(0.001, 1000)


def wasted(seconds, cost, between, times_to_failure):
    """Share of time that a simulated run loses, with a save after every so many seconds of work.

    What was done since the last save that completed is done again after a failure.
    """
    saves = np.floor(times_to_failure / (seconds + cost)).sum()
    return 1 - seconds * saves / times_to_failure.sum()


@pytest.mark.parametrize(
    ("cost", "between"),
    [(0.9, 41 * HOUR), (5, 3 * HOUR), (60, 4 * HOUR), (600, 2 * HOUR), (120, 600), (60, 200)],
)
def test_no_other_interval_loses_one_percent_less_in_a_simulation(cost, between):
    failures = np.random.default_rng(0).exponential(between, 200_000)
    chosen = daly_seconds(cost, between)
    least = min(
        wasted(chosen * factor, cost, between, failures) for factor in np.geomspace(0.25, 4, 41)
    )
    assert wasted(chosen, cost, between, failures) <= 1.01 * least


@pytest.mark.parametrize(
    ("cost", "between", "expected"),
    [
        (0.9, 41 * HOUR, 514.8),  # Young: sqrt(2 x 0.9 x 147600) = 515.4
        (600, 2 * HOUR, 2553.0),  # Young: 2939
        (5, 2.5, 2.5),  # a save costs more than twice the time between failures
        (0, HOUR, 0),
    ],
)
def test_daly(cost, between, expected):
    assert daly_seconds(cost, between) == pytest.approx(expected, abs=0.05)


@given(SECONDS, SECONDS, SECONDS, st.floats(1, 1e9))
def test_the_interval_is_within_its_bounds(save, write, iteration, between):
    chosen = choose(Measured(save, write, iteration), between)
    seconds = chosen.iterations * iteration
    assert chosen.iterations >= 1
    shortest = max(SHARE * save, WRITES * write)
    assert seconds >= shortest - iteration / 2 or chosen.iterations == 1
    assert seconds <= max(LONGEST, shortest) + iteration
    assert chosen.text.startswith(f"{every(chosen.iterations)}: saves cost ")


@pytest.mark.parametrize(
    ("measured", "between", "expected"),
    [
        (
            Measured(0.9, 30, 10),
            41 * HOUR,
            "every 51 iterations: saves cost 0.9 s, a failure every 1d17h expected",
        ),
        (
            Measured(0.9, 30, 10),
            9000 * HOUR,
            "every 360 iterations: saves cost 0.9 s, a failure every 375d00h expected (the "
            "longest, 1h00m)",
        ),
        (
            Measured(20, 0, 0.5),
            HOUR / 60,
            "every 400 iterations: saves cost 20s, a failure every 1m00s expected (the shortest, "
            "10 times the cost of a save)",
        ),
        (
            Measured(0.5, 60, 1),
            HOUR,
            "every 120 iterations: saves cost 0.5 s, a failure every 1h00m expected (the "
            "shortest, 2 times as long as writing one takes)",
        ),
    ],
)
def test_the_reason_names_what_decides(measured, between, expected):
    assert choose(measured, between).text == expected


def test_the_published_rate():
    """Llama 3: 419 interruptions of 16,384 GPUs in 54 days, one every 3.1 hours."""
    assert seconds_between_failures(16_384) == pytest.approx(54 * 24 * HOUR / 419)
    assert seconds_between_failures(8) == pytest.approx(264 * 24 * HOUR, rel=0.01)


@given(st.integers(1, 10_000), st.integers(0, 1000), st.floats(0, 1e12), st.floats(0, 1e12))
def test_failures_raise_the_rate_and_time_without_them_lowers_it(devices, failures, before, more):
    published = seconds_between_failures(devices)
    now = seconds_between_failures(devices, failures, before)
    assert now <= published * 1.000001  # one run without failures does not contradict it
    assert seconds_between_failures(devices, failures + 1, before) <= now
    assert seconds_between_failures(devices, failures, before + more) >= now * 0.999999


def test_observed_failures_count_for_more_than_the_published_rate():
    """Two failures in ten days of 32 GPUs: about one every five days, not every two months."""
    days = seconds_between_failures(32, 2, 32 * 10 * 24 * HOUR) / (24 * HOUR)
    assert days == pytest.approx(5, rel=0.1)


@given(st.integers(0, 10_000), st.integers(1, 3000), st.none() | st.integers(1, 2000))
def test_the_next_save(iteration, interval, validation):
    following = next_save(iteration, interval, validation)
    assert following > iteration
    if validation is None:
        assert following == iteration + interval
    elif interval >= validation:  # every checkpoint has a validation loss
        assert following % validation == 0
    else:  # every validated iteration has a checkpoint
        assert following <= (iteration // validation + 1) * validation
        assert following - iteration <= 2 * interval
