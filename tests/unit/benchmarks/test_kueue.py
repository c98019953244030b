"""The document shows the record of benchmarks.kueue, and the record's verdicts follow from it."""

import json

from benchmarks.kueue import DOCUMENT, RESULTS, _judged, documented


def test_the_document_shows_the_record():
    text = DOCUMENT.read_text()
    assert documented(text, json.loads(RESULTS.read_text())) == text


def test_a_run_that_is_much_slower_than_a_bare_job_misses_the_goal():
    seconds = {"bare": [1.0, 1.2, 1.1], "ours": [1.0, 1.3, 1.9]}
    missed, kept = _judged({"seconds": seconds}, kept=True)["goals"]
    assert (missed["met"], missed["measured"], kept["met"]) == (False, "+0.7 s", True)


def test_the_recorded_goals_are_met():
    record = json.loads(RESULTS.read_text())
    assert [one["met"] for one in _judged(record, kept=True)["goals"]] == [True, True]
    assert {name: len(values) for name, values in record["seconds"].items()} == {
        "bare": record["rounds"],
        "ours": record["rounds"],
    }
