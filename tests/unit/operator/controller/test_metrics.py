"""The operator's metrics: counted from watch events, read by Prometheus' own parsers."""

import asyncio
import subprocess
import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from reconcile_world import STAGES
from scraped_metrics import Scraped, lived, tool
from video2world_operator.controller.metrics import resource_in
from video2world_operator.controller.resource import Resource

OPEN = "application/openmetrics-text;version=1.0.0"


def test_a_run_is_counted_once():
    scraped = Scraped()
    lived(scraped)
    for stage in STAGES:
        labels = {"stage": stage, "outcome": "Succeeded"}
        assert scraped.value("stage_duration_seconds_count", **labels) == 1
        seconds = scraped.value("stage_duration_seconds_sum", **labels)
        assert seconds == (180 if stage == "train" else 100)
        attempts = 2 if stage == "train" else 1
        assert scraped.value("time_to_running_seconds_count", stage=stage) == attempts
    assert scraped.value("restarts_total", reason="Crashed") == 1
    assert scraped.value("restarts_total", reason="NodeLost") == 0
    assert scraped.value("finished_total", outcome="Succeeded") == 1
    assert scraped.value("resources", phase="Succeeded") == 1
    scraped.look()  # nothing new
    assert scraped.value("finished_total", outcome="Succeeded") == 1


def test_what_happened_before_the_process_is_not_counted():
    first = Scraped()
    lived(first)
    second = Scraped(first.world)
    second.look()
    assert second.value("finished_total", outcome="Succeeded") == 0
    assert second.value("restarts_total", reason="Crashed") == 0
    assert second.value("stage_duration_seconds_count", stage="train", outcome="Succeeded") is None
    assert second.value("resources", phase="Succeeded") == 1  # but it is there


def test_gauges_show_the_current_state():
    scraped = Scraped()
    world = scraped.world
    now = datetime.now(UTC)
    world.now = now - timedelta(hours=3)
    world.to_training()
    world.round()
    moment = (now - timedelta(hours=2)).isoformat(timespec="seconds")
    world.body["status"] |= {
        "checkpoint": {"iteration": 500, "time": moment},
        "progress": {"iteration": 500, "iterations": 1000, "secondsPerIteration": 2.0},
        "gpuSeconds": {"useful": 100.0, "lost": 20.0, "idle": 3.0},
        "evaluation": {"verdict": "Worse", "actions": {"followed": False}},
        "evictionCost": {"gpus": 16, "gpuSeconds": 1.0, "since": moment},  # written long ago
    }
    scraped.look()
    assert scraped.value("actions_followed", followed="false") == 1
    assert scraped.value("actions_followed", followed="true") == 0
    assert scraped.value("resources", phase="Running") == 1
    assert scraped.value("resources", phase="Failed") == 0
    assert scraped.value("stages_at_work", stage="train") == 1
    assert scraped.value("stages_at_work", stage="latents") == 0
    assert scraped.value("gpu_seconds", use="useful") == 100
    assert scraped.value("gpu_seconds", use="lost") == 20
    assert scraped.value("gpu_seconds_at_risk") == pytest.approx(16 * 7200, abs=16 * 60)
    assert scraped.value("checkpoint_age_seconds_max") == pytest.approx(7200, abs=60)
    assert scraped.value("checkpoints_overdue") == 1  # due every 500 x 2 s
    world.body["status"]["progress"]["secondsPerIteration"] = 10.0  # due every 5000 s
    scraped.look()
    assert scraped.value("checkpoints_overdue") == 0
    world.body["spec"]["training"]["checkpoint"] = {"everyIterations": "Auto"}
    world.body["status"]["progress"]["checkpointInterval"] = 100  # due every 1000 s
    scraped.look()
    assert scraped.value("checkpoints_overdue") == 1
    assert scraped.value("cache_age_seconds") == 7
    scraped.resources.clear()
    scraped.metrics.observe_resource(("ns", "run"), None, ())
    assert scraped.value("resources", phase="Running") == 0
    assert scraped.value("checkpoint_age_seconds_max") == 0
    assert scraped.value("gpu_seconds_at_risk") == 0


def test_reconciliations_and_requests():
    scraped = Scraped()

    async def work():
        task = asyncio.create_task(scraped.queue.run())
        for key in ("good", "bad"):
            scraped.queue.add(key)
        await asyncio.sleep(0.1)
        assert scraped.value("queue_depth") == 0
        task.cancel()

    asyncio.run(work())
    assert scraped.value("reconcile_duration_seconds_count", result="ok") == 1
    assert scraped.value("reconcile_duration_seconds_count", result="error") == 1
    path = "/apis/video2world.dev/v1alpha1/namespaces/a/video2worldposttrains/x/status"
    scraped.metrics.count_request("PATCH", path, 200, 0.01)
    about = {"method": "PATCH", "resource": "video2worldposttrains/status", "code": "200"}
    assert scraped.value("api_requests_total", **about) == 1
    assert scraped.value("api_request_duration_seconds_count", method="PATCH") == 1


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/api/v1/namespaces/ns/pods/pods/log", "pods/log"),
        ("/api/v1/namespaces/jobs/services/run-train", "services"),
        ("/apis/batch/v1/namespaces/ns/jobs", "jobs"),
        ("/apis/batch/v1/namespaces/ns/jobs/status", "jobs/status"),  # a Job of that name: bounded
        ("/apis/video2world.dev/v1alpha1/video2worldposttrains", "video2worldposttrains"),
        ("/apis", "other"),
        ("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "other"),
    ],
)
def test_paths_are_reduced_to_their_kind(path, resource):
    assert resource_in(path) == resource


@pytest.mark.parametrize(("accept", "parse"), [("", classic), (OPEN, openmetrics)])
def test_prometheus_own_parsers_read_the_metrics(accept, parse):
    scraped = Scraped()
    lived(scraped)
    families = {family.name: family for family in parse(scraped.text(accept))}
    assert families["video2world_stage_duration_seconds"].type == "histogram"
    assert all(family.documentation for name, family in families.items() if "video2" in name)
    assert scraped.metrics.expose(accept)[1].startswith(accept.split(";")[0] or "text/plain")


def test_promtool_finds_no_problems():
    scraped = Scraped()
    lived(scraped)
    checked = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=scraped.text(), text=True, capture_output=True
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_series_and_memory_do_not_grow_with_the_resources():
    scraped = Scraped()
    lived(scraped)
    series = len(scraped.text().splitlines())
    assert series < 600
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(1000):
        scraped.metrics.observe_resource(
            (f"ns-{number}", f"run-{number}"), Resource(scraped.world.body), ()
        )
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(scraped.text().splitlines()) == series
    assert grown < 2 << 20
    for number in range(1000):
        scraped.metrics.observe_resource((f"ns-{number}", f"run-{number}"), None, ())
    assert len(scraped.metrics._known) == 1


def test_pods_that_never_come_are_not_counted_as_running():
    scraped = Scraped()
    world = scraped.world
    scraped.look()
    world.settle()
    scraped.look()
    world.start_pods(phase="Pending", ready=False)
    scraped.look()
    assert scraped.value("time_to_running_seconds_count", stage="download") is None
    world.pod("run-download-1-0", phase="Running", ready=True)
    scraped.look()
    assert scraped.value("time_to_running_seconds_count", stage="download") == 1
