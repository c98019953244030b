"""What MultiKueue needs of a resource, in the cluster that sends it and in the one that runs it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from operators import Resource
from video2world_operator.api.constants import GROUP, MULTIKUEUE
from video2world_operator.api.spec import Spec
from video2world_operator.api.status import parse_status
from video2world_operator.plan import multikueue
from video2world_operator.plan.multikueue import Dispatch
from video2world_operator.reconcile.reconciler import plan_of

VERSION = "kueue.x-k8s.io/v1beta2"
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
EARLIER = "2026-11-30T11:00:00Z"


def resource(generation=1, labels=None, annotations=None, **spec):
    sent = {"managedBy": MULTIKUEUE, "scheduling": {"queueName": "gpus"}}
    body = Resource.body(**(sent | spec))
    about = {"uid": "0123456789", "generation": generation, "namespace": "a"}
    about |= {"labels": labels or {}, "annotations": annotations or {}}
    return body | {"metadata": body["metadata"] | about}


def dispatch(body, found=(), status=None):
    plan = plan_of(body)
    return multikueue.dispatch(plan, body, parse_status(status), found, VERSION, NOW)


def workload(body=None, admission="gpus", **conditions):
    """The Workload of ``body`` as Kueue has written it; ``conditions`` are statuses and reasons."""
    made = dispatch(body or resource()).create
    written = [
        {"type": kind, "status": status, "reason": reason, "lastTransitionTime": EARLIER}
        for kind, (status, reason) in conditions.items()
    ]
    status = {"conditions": written, "admission": {"clusterQueue": admission}}
    about = made["metadata"] | {"generation": 1, "uid": f"of-{made['metadata']['name']}"}
    return made | {"metadata": about, "status": status}


def states(change):
    return {c["type"]: (c["status"], c["reason"]) for c in change["conditions"]}


def ended(body, kind="Succeeded"):
    """The status of a run of ``body`` that has ended."""
    stages = [
        {"name": s.name, "state": "Succeeded", "inputsHash": s.inputs_hash}
        for s in plan_of(body).stages
    ]
    condition = {"type": kind, "status": "True", "reason": "Finished", "message": "Done."}
    condition["lastTransitionTime"] = EARLIER
    return {"phase": kind, "message": "Done.", "stages": stages, "conditions": [condition]}


ADMITTED = {"QuotaReserved": ("True", "QuotaReserved"), "Admitted": ("True", "Admitted")}


def test_the_values_of_managed_by_are_ours_and_kueues():
    (field,) = (f for n, f in Spec.model_fields.items() if n == "managed_by")
    assert str(field.annotation).count(GROUP) == 1
    assert MULTIKUEUE in str(field.annotation)


@pytest.mark.parametrize("manager", [None, f"{GROUP}/operator"])
def test_a_resource_of_this_cluster_is_not_dispatched(manager):
    assert not multikueue.is_dispatched({"spec": {} if manager is None else {"managedBy": manager}})
    assert multikueue.is_dispatched({"spec": {"managedBy": MULTIKUEUE}})


def test_the_workload_asks_for_the_train_group():
    body = resource()
    made = dispatch(body).create
    assert made["apiVersion"] == VERSION
    assert made["metadata"]["name"] == "run-01234567-1"
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("0123456789", True)
    assert "finalizers" not in made["metadata"]
    (pods,) = made["spec"]["podSets"]
    job = plan_of(body).stage("train").job
    assert made["spec"]["queueName"] == "gpus"
    assert (pods["count"], pods["template"]) == (2, job["spec"]["template"])


def test_a_workload_that_waits_is_left_alone():
    waiting = workload(QuotaReserved=("False", "Pending"))
    assert dispatch(resource(), [waiting]) == Dispatch(patched=waiting)


def test_a_suspended_resource_has_no_workload():
    waiting = workload()
    assert dispatch(resource(suspend=True), [waiting]) == Dispatch(delete=(waiting,))
    assert dispatch(resource(suspend=True)) == Dispatch()


def test_workloads_of_other_owners_are_left_alone():
    foreign = workload() | {"metadata": {"name": "run-01234567-1"}}
    assert dispatch(resource(suspend=True), [foreign]) == Dispatch()


def test_a_change_of_the_spec_is_dispatched_anew():
    running = workload(**ADMITTED)
    changed = dispatch(resource(generation=2), [running])
    assert changed.create["metadata"]["name"] == "run-01234567-2"
    assert changed.delete == (running,)


def test_an_admitted_workload_is_ready_since_its_pods_run_elsewhere():
    change = dispatch(resource(), [workload(**ADMITTED)]).status
    assert states(change)["PodsReady"] == ("True", "Started")
    assert "admission" not in change
    done = workload(**ADMITTED, PodsReady=("True", "Started"))
    assert dispatch(resource(), [done]).status is None


@pytest.mark.parametrize(
    ("reason", "requeued"), [("Preempted", "True"), ("AdmissionCheck", "False")]
)
def test_an_evicted_workload_gives_its_quota_back(reason, requeued):
    evicted = workload(**ADMITTED, Evicted=("True", reason), PodsReady=("True", "Started"))
    change = dispatch(resource(), [evicted]).status
    assert change["admission"] is None
    assert states(change) == {
        "Evicted": ("True", reason),
        "Requeued": (requeued, reason),
        "QuotaReserved": ("False", "Pending"),
        "Admitted": ("False", "NoReservation"),
        "PodsReady": ("False", "WaitForStart"),
    }
    after = evicted | {"status": change}
    assert dispatch(resource(), [after]).status is None  # once


def test_a_finished_workload_is_left_alone():
    finished = workload(**ADMITTED, Evicted=("True", "Preempted"), Finished=("True", "Succeeded"))
    assert dispatch(resource(), [finished], ended(resource())) == Dispatch(patched=finished)


def test_what_has_ended_is_not_dispatched_again():
    body = resource()
    assert dispatch(body, [], ended(body)) == Dispatch()  # Kueue has deleted its Workload
    later = resource(generation=2, ttlSecondsAfterFinished=60)
    assert dispatch(later, [workload()], ended(body)) == Dispatch()


def test_a_change_of_what_has_ended_is_dispatched_if_there_is_something_to_do():
    more = resource(generation=2, training={"iterations": 200})
    assert dispatch(more, [workload()], ended(resource())).create is not None
    retried = resource(generation=2, ttlSecondsAfterFinished=60)
    assert dispatch(retried, [workload()], ended(resource(), "Failed")).create is not None


NAME = {"kueue.x-k8s.io/prebuilt-workload-name": "run-01234567-1"}
ORIGIN = {"kueue.x-k8s.io/multikueue-origin": "multikueue"}


@pytest.mark.parametrize(
    ("labels", "annotations", "name"),
    [
        (ORIGIN, NAME, "run-01234567-1"),
        (ORIGIN | NAME, {}, "run-01234567-1"),  # before Kueue 0.18
        ({}, NAME, ""),  # a user's
        (ORIGIN, {}, ""),
    ],
)
def test_copies_are_known_by_their_origin(labels, annotations, name):
    about = resource(labels=labels, annotations=annotations)["metadata"]
    assert multikueue.workload_of_copy(about) == name


def test_a_copy_owns_its_workload_and_returns_its_quota():
    sent = workload(**ADMITTED)
    del sent["metadata"]["ownerReferences"]  # MultiKueue does not copy them
    copy = resource() | {"status": {}}
    metadata, status = multikueue.answer(sent, copy, parse_status(None), NOW)
    (owner,) = metadata["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("0123456789", True)
    assert status["reclaimablePods"] == [{"name": "train", "count": 2}]
    assert states(status)["PodsReady"] == ("True", "Started")
    owned = sent | {"metadata": sent["metadata"] | metadata, "status": sent["status"] | status}
    assert multikueue.answer(owned, copy, parse_status(None), NOW) == (None, None)


@pytest.mark.parametrize("kind", ["Succeeded", "Failed"])
def test_a_copy_finishes_its_workload(kind):
    sent = workload(**ADMITTED)
    _, status = multikueue.answer(sent, resource(), parse_status(ended(resource(), kind)), NOW)
    (finished,) = (c for c in status["conditions"] if c["type"] == "Finished")
    assert (finished["status"], finished["reason"]) == ("True", kind)
    assert finished["message"] == "Done."
    after = sent | {"status": sent["status"] | status}
    assert multikueue.answer(after, resource(), parse_status(ended(resource())), NOW)[1] is None


def test_the_evicted_workload_of_a_copy_gives_its_quota_back():
    evicted = workload(**ADMITTED, Evicted=("True", "ClusterQueueStopped"))
    _, status = multikueue.answer(evicted, resource(), parse_status(None), NOW)
    assert status["admission"] is None
    assert states(status)["Admitted"] == ("False", "NoReservation")
    # unless it has ended meanwhile
    _, status = multikueue.answer(evicted, resource(), parse_status(ended(resource())), NOW)
    assert states(status)["Finished"] == ("True", "Succeeded")
