"""The record of the loss on changing numbers of nodes: differences, document."""

import json

import pytest
from benchmarks.elastic import DOCUMENT, RESULTS, differences, markdown

LOSSES = {"fixed": [10.0] * 6, "elastic": [10.0, 10.0, 10.001, 10.0, 10.0, 9.9]}


def test_differences_of_each_attempt():
    assert differences(LOSSES) == pytest.approx([0, 1e-4, 1e-2])


def test_a_missed_goal_is_said():
    record = json.loads(RESULTS.read_text()) | {"losses": {"all": LOSSES}}
    assert "| 0.0e+00 | 1.0e-04 | 1.0e-02 | missed |" in markdown(record)


def test_the_document_has_the_record():
    assert markdown(json.loads(RESULTS.read_text())) in DOCUMENT.read_text()
