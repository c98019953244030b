"""Test the benchmark of the train command: shares, goals and table."""

from __future__ import annotations

import pytest
from benchmarks.training_run import MARKS, documented, figures, goals, validation


def _progress(*seconds: float) -> list[dict[str, object]]:
    return [
        {"event": "progress", "iteration": n, "seconds_per_iteration": one, "loss": 1.0 / n}
        for n, one in enumerate(seconds, 1)
    ]


def test_iterations_before_the_kernels_are_ready_do_not_count() -> None:
    found = figures(_progress(90.0, 3.0, 2.0, 2.5, 2.0, 7.0), 2, 6)
    assert found["first_seconds"] == 3.0
    assert found["all_seconds"] == [2.5, 2.0, 7.0]
    assert found["seconds"] == 2.5
    assert found["loss"] == pytest.approx(1 / 6)


def test_the_share_of_a_validation_is_of_the_time_between_two_of_them() -> None:
    seen = [{"event": "validation", "seconds": one, "loss": 2.0} for one in (130.0, 100.0)]
    found = validation(seen, 3.8)
    assert found["share_of_training_time"] == 0.05
    assert found["all_seconds"] == [130.0, 100.0]  # the first one compiles


@pytest.mark.parametrize(("share", "met"), [(0.05, True), (0.0501, False)])
def test_a_validation_may_take_five_percent(share: float, met: bool) -> None:
    (goal,) = goals({"sparse": {"validation": {"share_of_training_time": share}}, "phases": {}})
    assert goal["met"] is met


def test_the_document_shows_every_case() -> None:
    machine = dict.fromkeys(("nvidia_smi", "torch", "date", "command"), "X") | {"commit": "c" * 40}
    cases: dict[str, dict[str, object]] = {
        "phases": {"432x768": {"seconds": 3.0}, "704x1280": {"seconds": 10.7}},
        "step": {"seconds": 10.5},
        "sparse_kernels": {"natten, nothing": {"error": "OutOfMemoryError: 53 GiB"}},
    }
    cases["phases"]["validation"] = {"all_seconds": [200.4, 180.0], "share_of_training_time": 0.04}
    cases = {name: one | {"machine": machine} for name, one in cases.items()}
    record = {"cases": cases, "goals": goals(cases)}
    text = documented(f"a\n{MARKS[0]}\nold\n{MARKS[1]}\nb", record)
    assert "old" not in text
    assert text.count("commit cccccccccccc,") == 1  # the same for all cases
    assert "share of the time <= 0.05 | 0.04 | met |" in text
    assert "| dense, 432x768 | 3.00 |  |" in text
    assert "| dense, 704x1280 | 10.70 | 200, 180 |" in text
    assert "| dense step alone, without actions | 10.50 | |" in text
    assert "| natten, nothing | failed: OutOfMemoryError | | |" in text


@pytest.mark.parametrize(("seconds", "met"), [(10.9, True), (11.0, False)])
def test_actions_may_take_two_percent(seconds: float, met: bool) -> None:
    (goal,) = goals({"step": {"seconds": 10.7}, "step_with_actions": {"seconds": seconds}})
    assert goal["met"] is met
    assert goals({"step": {"seconds": 10.7}, "step_with_actions": {"error": "x"}}) == []
