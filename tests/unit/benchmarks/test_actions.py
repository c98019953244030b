"""The sabotage test of the action gate: what it exchanges, its record and its document."""

import json

import pytest
from benchmarks.actions import DOCUMENT, MARKS, RESULTS, documented, permute

from video2world_trainer.evaluation.action_gate import LEAST_LIFT

RECORD = json.loads(RESULTS.read_text())


@pytest.mark.parametrize("count", [2, 3, 96])
def test_no_window_keeps_its_actions(tmp_path, count):
    names = [f"w{number}.safetensors" for number in range(count)]
    for name in names:
        (tmp_path / name).write_text(name)
    permute(tmp_path, seed=1)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert sorted(found) == sorted(found.values()) == sorted(names)
    assert all(name != content for name, content in found.items())


def test_the_gate_was_right_about_every_run():
    runs = RECORD["runs"].values()
    sabotaged = [run for run in runs if run["sabotaged"]]
    assert sorted(run["seed"] for run in sabotaged) == list(range(10))
    assert not any(run["followed"] for run in sabotaged)
    assert all(run["followed"] for run in runs if not run["sabotaged"])
    # the least lift that counts is far from both
    assert max(abs(run["lift"]) for run in sabotaged) < LEAST_LIFT / 2  # by chance
    assert min(run["lift"] for run in runs if not run["sabotaged"]) > 10 * LEAST_LIFT


def test_the_document_matches_the_committed_record():
    text = DOCUMENT.read_text()
    assert all(mark in text for mark in MARKS)
    assert text == documented(text, RECORD)
