"""The scale benchmark's audit log reader, goals and document."""

from __future__ import annotations

import re

from benchmarks.scale.__main__ import _others
from benchmarks.scale.audit_log import BENCH, JOBS, Timeline, percentiles
from benchmarks.scale.kubeflow import Trainer, TrainingOperator
from benchmarks.scale.load import Scale, mix
from benchmarks.scale.report import document, goals
from benchmarks.scale.systems import Video2WorldOperator

OPERATOR = next(iter(Video2WorldOperator.accounts))


def event(second, user, verb, resource, name="", labels=None, code=200, asked=None):
    kind, _, sub = resource.partition("/")
    about = {"resource": kind, "name": name} | ({"subresource": sub} if sub else {})
    return {
        "user": {"username": user},
        "verb": verb,
        "objectRef": about,
        "requestReceivedTimestamp": f"2026-11-27T12:00:{asked or second:09.6f}Z",
        "stageTimestamp": f"2026-11-27T12:00:{second:09.6f}Z",
        "responseStatus": {"code": code},
        "requestObject": {"metadata": {"labels": labels or {}}},
    }


def train(attempt):
    return {
        "video2world.dev/resource": "run",
        "video2world.dev/stage": "train",
        "video2world.dev/attempt": attempt,
    }


def record_run(timeline):
    """Two one-GPU pods: the second crashes at 10 s, and a second attempt succeeds at 30 s."""
    for one in (
        event(1, BENCH, "create", "video2worldposttrains", "run"),
        event(1.5, OPERATOR, "patch", "video2worldposttrains/status", "run"),
        event(2, JOBS, "update", "jobs/status", "run-latents-1"),
        event(2.5, OPERATOR, "create", "jobs", "run-train-1"),
        event(3, JOBS, "create", "pods", labels=train("1")),
        event(4, JOBS, "create", "pods", labels=train("1")),
        event(4, JOBS, "create", "pods", labels=train("1"), code=409),
        *(
            event(5, "system:kube-scheduler", "create", "pods/binding", f"run-train-1-{i}-a")
            for i in range(2)
        ),
        *(event(6, "kwok", "patch", "pods/status", f"run-train-1-{i}-a") for i in range(2)),
        event(10, "kwok", "patch", "pods/status", "run-train-1-1-a"),
        event(11, OPERATOR, "delete", "jobs", "run-train-1"),
        event(12, "kwok", "delete", "pods", "run-train-1-0-a"),
        event(13, JOBS, "create", "pods", labels=train("2")),
        event(14, JOBS, "create", "pods", labels=train("2")),
        *(
            event(15, "system:kube-scheduler", "create", "pods/binding", f"run-train-2-{i}-b")
            for i in range(2)
        ),
        *(event(20, "kwok", "patch", "pods/status", f"run-train-2-{i}-b") for i in range(2)),
        *(event(30, "kwok", "patch", "pods/status", f"run-train-2-{i}-b") for i in range(2)),
        event(31, OPERATOR, "watch", "pods"),
        event(31, OPERATOR, "get", "pods/log", "run-train-2-0-b") | {"stage": "ResponseStarted"},
        event(31, OPERATOR, "update", "leases", "video2world-operator"),
    ):
        timeline.record(one)


def test_a_run_is_read_from_the_audit_log():
    timeline = Timeline(Video2WorldOperator())
    record_run(timeline)
    at = timeline.posted["run"]
    assert timeline.accepted["run"] - at == 0.5
    assert timeline.group_created("run", 2) - at == 3  # the refused one does not count
    assert timeline.group_created("run", 2, since=at + 8) - at == 13
    assert timeline.group_created("run", 3) is None
    assert [t - at for t in timeline.deleted["run-train-1"]] == [10]
    assert timeline.applied["run-train-1"] - max(timeline.jobs["run-latents-1"]) == 0.5
    assert timeline.requests == {
        "patch video2worldposttrains/status": 1,
        "create jobs": 1,
        "delete jobs": 1,
    }


def test_useful_gpu_time_is_that_of_complete_groups_that_succeed():
    timeline = Timeline(Video2WorldOperator())
    record_run(timeline)
    # held: 5..12 and 5..10 of the first attempt, twice 15..30 of the second
    assert timeline.goodput({"run": (2, 1)}, 0) == {"held": 7 + 5 + 30, "useful": 20}


def test_a_pod_may_run_before_the_scheduler_gets_its_response():
    """Seen once in a thousand: the kubelet reports before the scheduler gets its response.

    A later pod may have the name of an earlier one.
    """
    timeline, scheduler = Timeline(TrainingOperator()), "system:kube-scheduler"
    timeline.record(event(5.1, "kwok", "patch", "pods/status", "run-worker-0"))
    timeline.record(event(5.2, scheduler, "create", "pods/binding", "run-worker-0", asked=5.0))
    assert timeline.pods["run-worker-0"].running
    assert timeline.pods["run-worker-0"].bound > timeline.pods["run-worker-0"].running
    timeline.record(event(7, "kwok", "patch", "pods/status", "run-worker-0"))
    timeline.record(event(9.2, scheduler, "create", "pods/binding", "run-worker-0", asked=9.0))
    assert not timeline.pods["run-worker-0"].running


def test_training_pods_of_every_system_are_known_by_name_and_labels():
    assert Video2WorldOperator().resource_of("one-3-train-2-0-x7k2p") == "one-3"
    assert Video2WorldOperator().resource_of("one-3-latents-1-x7k2p") == ""
    assert TrainingOperator().resource_of("one-3-worker-2") == "one-3"
    assert Trainer().resource_of("one-3-node-0-2-x7k2p") == "one-3"
    labels = {"jobset.sigs.k8s.io/jobset-name": "a", "jobset.sigs.k8s.io/restart-attempt": "2"}
    assert Trainer().group(labels) == ("a", "2")
    assert Video2WorldOperator().group(train("3")) == ("run", "3")
    assert Video2WorldOperator().group({"video2world.dev/stage": "latents"}) is None


def test_the_mix_fits_the_nodes():
    works = mix(1000)
    assert len({w.name for w in works}) == 1000
    kinds = [re.match("[a-z]+", w.name)[0] for w in works]
    assert {k: kinds.count(k) for k in set(kinds)} == {"tiny": 550, "one": 300, "four": 150}
    gpus = sum(w.nodes * w.gpus for w in works)
    assert Scale().cluster_nodes * 8 > gpus + 20 * 32


def test_goals_show_what_is_missed_and_omit_what_was_not_measured():
    record = {
        "machine": {
            "cores": 2,
            "cpu": "x",
            "load_at_start": 0,
            "python": "3",
            "commit": "c",
            "date": "d",
            "command": "make",
        },
        "control_plane": "v1",
        "scale": {"cluster_nodes": 3, "resources": 5, "nodes": 4},
        "systems": {
            "video2world": {
                "fill": {"accepted_per_second": 5.0},
                "probe": {"turn_to_4_pods_created": percentiles([1.0])},
            },
            "trainer": {"error": "RuntimeError: no"},
            "training-operator": {"probe": {"turn_to_4_pods_created": percentiles([0.5])}},
        },
    }
    record["goals"] = goals(record)
    assert [(g["measured"], g["met"]) for g in record["goals"]] == [
        (5.0, False),
        (1.0, True),
        (1.0, False),
    ]
    text = document(record)
    assert "missed" in text
    assert "did not complete: RuntimeError: no" in text


def test_a_record_of_the_same_scale_keeps_parts_not_measured_again():
    asked = {"resources": 1000, "cluster_nodes": 9}
    before = {"scale": asked, "noise": {"delay_p99": 1}}
    before["systems"] = {"video2world": {"a": 1}, "trainer": {"b": 2}}
    assert _others({}, asked, []) == {"systems": {}}
    kept = {"systems": {"video2world": {"a": 1}}, "noise": {"delay_p99": 1}}
    assert _others(before, asked, ["trainer"]) == kept
    assert _others(before, asked, ["noise"]) == {"systems": before["systems"]}
    assert _others(before, asked | {"resources": 50}, ["trainer"]) == {"systems": {}}
