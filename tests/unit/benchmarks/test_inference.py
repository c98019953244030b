"""The record of the inference benchmark: goals, tables and document."""

import json

from benchmarks.inference import DOCUMENT, MARKS, ORDER, RESULTS, documented, goals, table
from benchmarks.inference_cases import CASES

PLACE = {
    "device": "X",
    "nvidia_smi": "X, 1, 2",
    "torch": "2",
    "date": "d",
    "commit": "c" * 40,
    "command": "python",
}


def cases(**changes):
    found = {
        "network_pass": {"seconds": 2.9, "of_diffusers": 0.74},
        "vae_decode": {"seconds": 3.0, "of_diffusers": 0.55},
        "sparse": {"seconds": 2.0, "of_dense": 0.35},
        "offload": {"seconds": 3.0, "peak_GiB": 11.0},
        "full_10fps": {"seconds": 103.0, "peak_GiB": 9.0, "approximate": {"of_exact": 0.42}},
        "full_16fps": {"seconds": 213.0, "peak_GiB": 20.0},
    } | changes
    return {name: one | {"machine": PLACE} for name, one in found.items()}


def test_every_goal_is_compared_with_its_own_figure():
    assert [one["met"] for one in goals(cases())] == [True] * 8
    slow = goals(cases(full_16fps={"seconds": 215.0, "peak_GiB": 33.0}, sparse={"of_dense": 0.6}))
    missed = [one["goal"].split(" <=")[0] for one in slow if not one["met"]]
    assert missed == [
        "2B, 720p, 93 frames, 35 steps with guidance, embedding to mp4, s",
        "sparse over dense, an evaluation of 93 frames",
        "peak memory, exact, GiB",
    ]
    assert goals({"network_pass": {"error": "no GPU", "machine": PLACE}}) == []
    record = {"cases": cases(), "goals": slow}
    assert "MISSED peak memory, exact, GiB <= 32: 33.0" in table(record)
    assert "**missed**" in documented("a" + MARKS[0] + "old" + MARKS[1] + "b", record)


def test_every_case_is_in_the_order():
    assert set(ORDER) == set(CASES)


def test_the_document_matches_the_committed_record():
    text = DOCUMENT.read_text()
    assert all(mark in text for mark in MARKS)
    assert text == documented(text, json.loads(RESULTS.read_text()))
