"""Test the training metrics for Prometheus."""

from __future__ import annotations

import math
import re
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from repository import ROOT
from video2world_trainer.training.prometheus import METRICS, PrometheusExporter


def scraped(exporter: PrometheusExporter) -> dict[str, float]:
    url = f"http://127.0.0.1:{exporter.port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels == {}  # so that the number of series has a bound
            found[sample.name.removeprefix("video2world_training_")] = sample.value
    return found


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    made = PrometheusExporter("0")
    yield made
    made.close()


def test_metrics_have_the_values_of_the_last_report(exporter: PrometheusExporter) -> None:
    exporter.update(iteration=7, loss=None, tokens_per_second=3.5, unheard_of=1)
    found = scraped(exporter)
    assert found.keys() == METRICS.keys()
    assert (found["iteration"], found["tokens_per_second"]) == (7, 3.5)
    assert math.isnan(found["loss"])
    exporter.update(iteration=8, loss=0.25)
    assert scraped(exporter)["loss"] == 0.25
    assert scraped(exporter)["report_time_seconds"] > 1.7e9


def test_a_metric_is_computed_at_every_scrape(exporter: PrometheusExporter) -> None:
    values = iter((5.0, 6.5))
    exporter.compute("gpu_seconds_at_risk", lambda: next(values))
    exporter.update(iteration=7)
    assert [scraped(exporter)["gpu_seconds_at_risk"] for _ in range(2)] == [5.0, 6.5]


def test_a_local_run_listens_on_loopback_only(exporter: PrometheusExporter) -> None:
    assert exporter._server.server_address[0] == "127.0.0.1"


def test_without_a_usable_port_training_continues(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("V2W_METRICS_PORT", raising=False)
    PrometheusExporter().update(iteration=1)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        PrometheusExporter(str(taken.getsockname()[1])).update(iteration=1)
    PrometheusExporter("70000").update(iteration=1)
    PrometheusExporter("x").update(iteration=1)
    assert capsys.readouterr().out.count("note: no metrics on port") == 3


def test_docs_list_every_metric_and_rules_and_dashboards_use_no_others() -> None:
    page = (ROOT / "docs" / "watching.md").read_text()
    listed = set(re.findall(r"`video2world_training_(\w+)`", page))
    assert listed == set(METRICS)
    files = ROOT / "charts" / "video2world-operator" / "files"
    for path in (files / "alerts.yaml", files / "dashboards" / "video2world.json"):
        asked = set(re.findall(r"video2world_training_(\w+)", path.read_text()))
        assert asked
        assert asked <= set(METRICS)
