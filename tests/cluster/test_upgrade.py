"""Upgrade from the previous release: its chart and operator run, then today's take over."""

from __future__ import annotations

import os

import pytest
from benchmarks.upgrade.previous import Unreachable, previous, unpack
from benchmarks.upgrade.situations import SITUATIONS
from benchmarks.upgrade.trial import FAULTS, upgrade

from operators import Resource
from repository import ROOT
from video2world_operator.api.yaml_reader import as_json, documents

EARLIER = sorted((ROOT / "tests/unit/operator/plan/earlier_resources").glob("*.yaml"))


def test_an_upgrade_restarts_nothing_and_makes_no_job_twice(tmp_path):
    """`make bench-upgrade` does it with a hundred resources."""
    try:
        release = unpack(previous(), tmp_path / "previous")
    except Unreachable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    figures = upgrade(release, len(SITUATIONS), tmp_path, settle=4)
    assert {fault: figures[fault] for fault in FAULTS} == {fault: [] for fault in FAULTS}
    assert figures["jobs_before"] >= 3 * len(SITUATIONS)  # there was something to restart


def test_todays_crd_accepts_earlier_resources(cluster, namespace):
    path = Resource(cluster, namespace).path
    for file in EARLIER:
        (read,) = documents(file.read_text(), file.name)
        document = as_json(read.value)
        document["metadata"].pop("namespace", None)
        made = cluster.admin.post(f"{path}?dryRun=All&fieldValidation=Strict", document)
        assert made["spec"]["training"], file.name
