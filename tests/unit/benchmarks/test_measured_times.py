"""The table of measured times is that of the results, and estimates a record from the others."""

import json
from dataclasses import replace

import pytest
from benchmarks.measured_times import FITTED, collect, content, fit, main

from video2world_operator.preflight.measured_times import DATA, MeasuredTimes
from video2world_operator.preflight.work import CPU


@pytest.fixture(scope="module")
def collected():
    return collect()


def test_the_file_is_up_to_date(collected):
    assert DATA.read_text(encoding="utf-8") == content(collected)
    assert main(["--check"]) == 0


def test_a_record_left_out_is_estimated_within_ten_percent(collected):
    known = [one for one in (*collected.steps, *collected.samples) if one.work.gpu != CPU]
    errors = {one.work.text: one.left_out / one.seconds - 1 for one in known}
    assert len(errors) == len(known) > 20
    assert {text: error for text, error in errors.items() if abs(error) > 0.10} == {}


def test_left_out_means_that_no_record_of_the_same_work_is_used(collected):
    for number, one in enumerate(collected.steps):
        if one.work.gpu == CPU:
            continue
        others = [r for r in collected.steps if replace(r.work, gpu=one.work.gpu) != one.work]
        without = replace(collected, steps=others)
        rates = {name: float(f"{rate:.4g}") for name, rate in fit(without).items()}
        found = replace(without, rates=rates).step(one.work)
        assert found.seconds == pytest.approx(one.left_out, abs=1e-3), number


def test_no_rate_is_negative_and_every_rate_is_used(collected):
    assert set(collected.rates) == {*FITTED, "flex", "decoding"}
    assert all(rate > 0 for rate in collected.rates.values())


def test_the_newest_of_equal_measurements_counts(collected):
    assert len({one.work for one in collected.steps}) == len(collected.steps)
    (dense,) = [
        one
        for one in collected.steps
        if one.file == "train_step.json" and (one.work.size, one.work.sparse) == ("2B", False)
    ]
    assert dense.date == max(one.date for one in collected.steps if one.work.gpu == "H200")


def test_the_file_is_read_as_it_was_written(collected):
    read = MeasuredTimes.of(json.loads(content(collected)))
    assert list(read.steps) == list(collected.steps)
    assert list(read.samples) == list(collected.samples)
    assert (read.rates, read.densities) == (collected.rates, collected.densities)
    assert read.speedups == collected.speedups
