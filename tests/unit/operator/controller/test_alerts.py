"""Alert rules and dashboard, run by Prometheus itself: alerts fire, panels show data."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from repository import ROOT
from scraped_metrics import Scraped, lived, tool
from video2world_trainer.training.prometheus import METRICS

FILES = ROOT / "charts" / "video2world-operator" / "files"
RULES = FILES / "alerts.yaml"
BOARD = FILES / "dashboards" / "video2world.json"


def alerts() -> dict[str, dict]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_every_alert_names_a_remedy() -> None:
    for name, rule in alerts().items():
        assert name.startswith("Video2World")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "remedy"}
    page = (FILES.parents[2] / "docs" / "watching.md").read_text()
    assert [name for name in alerts() if f"`{name}`" not in page] == []


def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(
        [tool("promtool"), "check", "rules", RULES], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout


# Series that make the alert fire after so many minutes, and such as do not: a value a minute.
CASES = {
    "Video2WorldNoOperator": ({}, {'video2world_resources{phase="Running"}': "1x120"}, 10),
    "Video2WorldTrainingCrashes": (
        {'video2world_restarts_total{reason="Crashed"}': "0+1x120"},
        {'video2world_restarts_total{reason="Preempted"}': "0+1x120"},
        60,
    ),
    "Video2WorldResourceFailed": (
        {'video2world_finished_total{outcome="Failed"}': "0 0 1x120"},
        {'video2world_finished_total{outcome="Succeeded"}': "0 0 1x120"},
        20,
    ),
    "Video2WorldCheckpointOverdue": (
        {"video2world_checkpoints_overdue": "1x120"},
        {"video2world_checkpoints_overdue": "0x120"},
        30,
    ),
    "Video2WorldLossNotFinite": (
        {"video2world_training_skipped_steps": "0 0 2x120"},
        {"video2world_training_skipped_steps": "2x120"},
        20,
    ),
    "Video2WorldTrainingSilent": (
        {"video2world_training_report_time_seconds": "0x120"},
        {"video2world_training_report_time_seconds": "0+60x120"},
        60,
    ),
    "Video2WorldQueueLags": (
        {"video2world_queue_lag_seconds": "90x120"},
        {"video2world_queue_lag_seconds": "5x120"},
        20,
    ),
    "Video2WorldCacheStale": (
        {"video2world_cache_age_seconds": "400x120"},
        {"video2world_cache_age_seconds": "3x120"},
        20,
    ),
}


def test_each_alert_fires_only_when_it_should(tmp_path: Path) -> None:
    assert CASES.keys() == alerts().keys()
    tests = []
    for name, (bad, good, minutes) in CASES.items():
        rule = alerts()[name]
        for series, fires in ((bad, True), (good, False)):
            labels = rule["labels"] | next(
                (
                    dict(e.split("=") for e in s.partition("{")[2][:-1].replace('"', "").split(","))
                    for s in series
                    if "{" in s
                ),
                {},
            )
            expected = [{"exp_labels": labels, "exp_annotations": rule["annotations"]}]
            tests.append(
                {
                    "interval": "1m",
                    "input_series": [{"series": s, "values": v} for s, v in series.items()],
                    "alert_rule_test": [
                        {
                            "alertname": name,
                            "eval_time": f"{minutes}m",
                            "exp_alerts": expected if fires else [],
                        }
                    ],
                }
            )
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": tests}))
    done = subprocess.run([tool("promtool"), "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- the dashboard


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[str]:
    """URL of a Prometheus that scrapes the metrics of an operator and of a training."""
    binary, scraped = tool("prometheus"), Scraped()
    lived(scraped)
    scraped.metrics.count_request("GET", "/api/v1/pods", 200, 0.1)
    scraped.metrics.count_reconciliation(0.01, True)
    training = "".join(f"video2world_training_{name} 1\n" for name in METRICS)

    class Figures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write((scraped.text() + training).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Figures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "v2w",
                "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}],
            }
        ],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    flags = [
        f"--config.file={tmp_path / 'prometheus.yaml'}",
        f"--web.listen-address={address}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([binary, *flags], stdout=log, stderr=log)
    yield f"http://{address}"
    process.terminate()
    process.wait()
    server.shutdown()


def asked(url: str, expr: str) -> list:
    """Return Prometheus' result for an expression; empty also while it is starting."""
    query = urllib.parse.urlencode({"query": expr})
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=10) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise AssertionError(f"{expr}: {error.read().decode()}") from None
        return []
    except OSError:
        return []


def test_every_panel_shows_data(prometheus: str) -> None:
    board = json.loads(BOARD.read_text())
    panels = {panel["title"]: panel for panel in board["panels"]}
    assert len(panels) == len(board["panels"]) == len({p["id"] for p in board["panels"]})
    expressions = {
        target["expr"]: title for title, panel in panels.items() for target in panel["targets"]
    }
    missing, until = dict(expressions), time.monotonic() + 60
    while missing and time.monotonic() < until:  # a rate needs two scrapes
        missing = {expr: title for expr, title in missing.items() if not asked(prometheus, expr)}
        time.sleep(0.3)
    assert missing == {}
    for one in expressions:
        for result in asked(prometheus, one):
            assert "__error__" not in result["metric"]
