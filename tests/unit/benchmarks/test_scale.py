"""The scale benchmark's reading of the audit log, its goals and its document."""

from __future__ import annotations

import re

from benchmarks.scale import _others, document, goals
from benchmarks.scale_run import Scale, mix
from benchmarks.scale_seen import BENCH, JOBS, Seen, spread
from benchmarks.scale_systems import Ours, Trainer, TrainingOperator

OPERATOR = next(iter(Ours.accounts))


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


def life(seen):
    """Two pods of one GPU; the second crashes at 10 s, and a second attempt ends well at 30 s."""
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
        seen.take(one)


def test_a_life_is_read_from_the_audit_log():
    seen = Seen(Ours())
    life(seen)
    at = seen.posted["run"]
    assert seen.accepted["run"] - at == 0.5
    assert seen.whole("run", 2) - at == 3  # the refused one does not count
    assert seen.whole("run", 2, since=at + 8) - at == 13
    assert seen.whole("run", 3) is None
    assert [t - at for t in seen.deleted["run-train-1"]] == [10]
    assert seen.applied["run-train-1"] - max(seen.jobs["run-latents-1"]) == 0.5
    assert seen.requests == {
        "patch video2worldposttrains/status": 1,
        "create jobs": 1,
        "delete jobs": 1,
    }


def test_useful_is_only_what_a_group_did_while_it_was_whole_and_then_ended_well():
    seen = Seen(Ours())
    life(seen)
    # held: 5..12 and 5..10 of the first attempt, twice 15..30 of the second
    assert seen.goodput({"run": (2, 1)}, 0) == {"held": 7 + 5 + 30, "useful": 20}


def test_a_pod_may_run_before_the_scheduler_has_its_answer():
    """Seen once in a thousand: the kubelet was told, and told back, while the answer was written.
    A later pod may bear the name of an earlier one."""
    seen, scheduler = Seen(TrainingOperator()), "system:kube-scheduler"
    seen.take(event(5.1, "kwok", "patch", "pods/status", "run-worker-0"))
    seen.take(event(5.2, scheduler, "create", "pods/binding", "run-worker-0", asked=5.0))
    assert seen.pods["run-worker-0"].running
    assert seen.pods["run-worker-0"].bound > seen.pods["run-worker-0"].running
    seen.take(event(7, "kwok", "patch", "pods/status", "run-worker-0"))
    seen.take(event(9.2, scheduler, "create", "pods/binding", "run-worker-0", asked=9.0))
    assert not seen.pods["run-worker-0"].running


def test_pods_of_every_system_are_told_by_their_names_and_labels():
    assert Ours().resource_of("one-3-train-2-0-x7k2p") == "one-3"
    assert Ours().resource_of("one-3-latents-1-x7k2p") == ""
    assert TrainingOperator().resource_of("one-3-worker-2") == "one-3"
    assert Trainer().resource_of("one-3-node-0-2-x7k2p") == "one-3"
    labels = {"jobset.sigs.k8s.io/jobset-name": "a", "jobset.sigs.k8s.io/restart-attempt": "2"}
    assert Trainer().group(labels) == ("a", "2")
    assert Ours().group(train("3")) == ("run", "3")
    assert Ours().group({"video2world.dev/stage": "latents"}) is None


def test_the_mix_fits_the_nodes():
    works = mix(1000)
    assert len({w.name for w in works}) == 1000
    kinds = [re.match("[a-z]+", w.name)[0] for w in works]
    assert {k: kinds.count(k) for k in set(kinds)} == {"tiny": 550, "one": 300, "four": 150}
    gpus = sum(w.nodes * w.gpus for w in works)
    assert Scale().cluster_nodes * 8 > gpus + 20 * 32


def test_goals_say_what_is_missed_and_leave_out_what_was_not_measured():
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
                "probe": {"turn_to_4_pods_created": spread([1.0])},
            },
            "trainer": {"error": "RuntimeError: no"},
            "training-operator": {"probe": {"turn_to_4_pods_created": spread([0.5])}},
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
    assert "did not get through: RuntimeError: no" in text


def test_what_is_not_measured_again_stays_if_it_is_of_the_same_scale():
    asked = {"resources": 1000, "cluster_nodes": 9}
    before = {"scale": asked, "noise": {"delay_p99": 1}}
    before["systems"] = {"video2world": {"a": 1}, "trainer": {"b": 2}}
    assert _others({}, asked, []) == {"systems": {}}
    kept = {"systems": {"video2world": {"a": 1}}, "noise": {"delay_p99": 1}}
    assert _others(before, asked, ["trainer"]) == kept
    assert _others(before, asked, ["noise"]) == {"systems": before["systems"]}
    assert _others(before, asked | {"resources": 50}, ["trainer"]) == {"systems": {}}
