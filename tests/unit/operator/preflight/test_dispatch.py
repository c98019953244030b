"""Whether anyone manages a resource that MultiKueue is to send to another cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from video2world_operator.api.constants import MULTIKUEUE
from video2world_operator.api.status import parse_status
from video2world_operator.api.validation import parse
from video2world_operator.cli.dispatched import dispatch_note
from video2world_operator.cli.explain import explain
from video2world_operator.cli.snapshot import ClusterObjects, Snapshot
from video2world_operator.plan.plan import make_plan
from video2world_operator.preflight.check import Verdict
from video2world_operator.preflight.cluster_checks import check_cluster
from video2world_operator.preflight.dispatch import DispatchFacts, why_unmanaged
from video2world_operator.preflight.facts import ClusterFacts
from video2world_operator.preflight.requirements import estimate

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
CREATED = {"creationTimestamp": "2026-11-30T11:00:00Z"}
QUEUE = {"metadata": {"name": "gpus"}, "spec": {"clusterQueue": "all"}}
OF_STRATEGY = {"admissionChecksStrategy": {"admissionChecks": [{"name": "clusters"}]}}
CHECK = {"metadata": {"name": "clusters"}, "spec": {"controllerName": MULTIKUEUE}}
OTHER = {"metadata": {"name": "other"}, "spec": {"controllerName": MULTIKUEUE}}
INACTIVE = {"type": "Active", "status": "False", "message": "Inactive clusters: [a]"}


def cluster_queue(spec):
    return {"metadata": {"name": "all"}, "spec": spec}


READY = DispatchFacts(
    "gpus", True, QUEUE, cluster_queue(OF_STRATEGY), [CHECK], {"metadata": {}, "spec": {}}
)


def waiting(state="Pending", message="", **status):
    about = {"name": "run-0-1", "namespace": "a"}
    check = {"name": "clusters", "state": state, "message": message}
    return {"metadata": about, "spec": {}, "status": {"admissionChecks": [check], **status}}


UNMANAGED = {
    "no Kueue": (DispatchFacts("gpus"), "this cluster serves no Kueue"),
    "no queue": (replace(READY, local_queue=None), "no LocalQueue gpus"),
    "no check": (replace(READY, cluster_queue=cluster_queue({})), "no admission check"),
    "another check": (replace(READY, checks=[OTHER]), "no admission check"),
    "no cluster": (
        replace(READY, checks=[CHECK | {"status": {"conditions": [INACTIVE]}}]),
        "AdmissionCheck clusters is not active: Inactive clusters: [a]",
    ),
    "no adapter": (
        replace(READY, workload=waiting("Rejected", "No multikueue adapter found")),
        "Kueue does not send it: No multikueue adapter found",
    ),
}


@pytest.mark.parametrize("name", UNMANAGED)
def test_a_resource_that_no_controller_manages_is_named(name):
    facts, expected = UNMANAGED[name]
    unmanaged = why_unmanaged(facts)
    assert unmanaged is not None
    assert expected in unmanaged.what
    objects = ClusterObjects(CREATED, dispatch=facts)
    cause, *_ = explain(Snapshot("run", parse_status(None)), objects, NOW)
    assert expected in cause.what
    assert "No controller manages" in cause.what
    assert cause.remedy
    assert expected in dispatch_note(facts, suspended=False)


@pytest.mark.parametrize(
    "facts",
    [
        READY,
        replace(READY, cluster_queue=cluster_queue({"admissionChecks": ["clusters"]})),  # v1beta1
        replace(READY, cluster_queue=None),
        replace(READY, checks=None),
    ],
)
def test_what_may_not_be_read_is_no_problem(facts):
    assert why_unmanaged(facts) is None


def test_a_resource_that_waits_is_explained_by_kueue():
    facts = replace(READY, workload=waiting(message="the workload got reservation nowhere"))
    (cause,) = explain(
        Snapshot("run", parse_status(None)), ClusterObjects(CREATED, dispatch=facts), NOW
    )
    assert "waits in queue gpus" in cause.what
    assert cause.evidence == "the workload got reservation nowhere"
    assert "kubectl describe workload run-0-1 -n a" in cause.remedy


def test_a_resource_in_another_cluster_is_explained_by_its_status():
    facts = replace(READY, workload=waiting("Ready", clusterName="berlin"))
    objects = ClusterObjects(CREATED | {"generation": 7}, dispatch=facts)
    running = {"phase": "Running", "observedGeneration": 1, "stage": "train"}
    seen = Snapshot("run", parse_status(running))
    assert explain(seen, objects, NOW) == []
    assert dispatch_note(facts, suspended=False) == "(runs in cluster berlin)"
    assert "suspended" in dispatch_note(facts, suspended=True)
    failed = {"type": "Failed", "status": "True", "reason": "UserError", "message": "bad flag"}
    failed["lastTransitionTime"] = CREATED["creationTimestamp"]
    seen = Snapshot("run", parse_status(running | {"phase": "Failed", "conditions": [failed]}))
    (cause,) = explain(seen, objects, NOW)
    assert cause.what == "bad flag"


def test_without_an_operator_it_is_not_queued():
    facts = replace(READY, workload=None)
    seen, objects = Snapshot("run", parse_status(None)), ClusterObjects(CREATED, dispatch=facts)
    (cause,) = explain(seen, objects, NOW)
    assert "No operator is managing" in cause.what
    assert "no operator has queued it" in dispatch_note(facts, suspended=False)


def checks(facts):
    body = {
        "apiVersion": "video2world.dev/v1alpha1",
        "kind": "Video2WorldPostTrain",
        "metadata": {"name": "run"},
        "spec": {
            "model": {"size": "2B"},
            "dataset": {"agibot": {"taskIDs": [327]}},
            "training": {"iterations": 10},
            "managedBy": MULTIKUEUE,
            "scheduling": {"queueName": "gpus"},
        },
    }
    plan = make_plan(parse(body))
    found = check_cluster(
        plan, estimate(plan.resource), ClusterFacts("a", nodes=[], dispatch=facts)
    )
    return {check.name: check for check in found}


def test_preflight_checks_who_manages_it_and_not_this_clusters_nodes():
    found = checks(READY)
    assert found["managedBy"].verdict is Verdict.OK
    assert set(found) == {"operator", "CRD", "API server", "managedBy"}
    assert checks(replace(READY, checks=None))["managedBy"].verdict is Verdict.UNKNOWN
    failed = checks(DispatchFacts("gpus"))["managedBy"]
    assert failed.verdict is Verdict.FAIL
    assert "install Kueue" in failed.remedy
