"""The record of what Tiny learns with dense and with sparse attention, and its document."""

import json

import pytest
from benchmarks.sparse_learning import DOCUMENT, MARKS, RESULTS, documented, means

RECORD = json.loads(RESULTS.read_text())


def test_means_of_a_loss_curve():
    assert means([[10, 4.0], [20, 2.0], [30, 1.0]], 20) == {20: 3.0, 40: 1.0}


def test_every_run_is_what_it_is_called():
    runs = RECORD["runs"].values()
    assert all(run["sparse"] == (run["pattern"] == "Sparse") for run in runs)
    seeds = {
        pattern: [r["seed"] for r in runs if r["pattern"] == pattern]
        for pattern in ("Dense", "Sparse")
    }
    assert seeds["Dense"] == seeds["Sparse"]
    for run in runs:
        assert run["loss"][-1][0] == RECORD["iterations"]


def test_the_document_matches_the_committed_record():
    text = DOCUMENT.read_text()
    assert all(mark in text for mark in MARKS)
    assert text == documented(text, RECORD)
    worse = json.loads(json.dumps(RECORD))
    for run in worse["runs"].values():
        run["psnr"] += 5 if run["pattern"] == "Dense" else 0
    gains = [
        float(documented(text, one).partition(", PSNR ")[2].split()[0]) for one in (RECORD, worse)
    ]
    assert gains[1] == pytest.approx(gains[0] - 5, abs=0.011)
