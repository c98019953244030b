"""Decide what Kueue's MultiKueue needs of resources that it sends to another cluster.

MultiKueue's adapter for custom jobs (Kueue's pkg/controller/admissionchecks/multikueue) copies a
resource to another cluster and its status back. It leaves to the job's own operator what Kueue's
job controllers do for the jobs that they know (pkg/controller/jobframework/reconciler.go):

- in the cluster that sends: create the Workload that waits in the queue, and give its quota back
  when it is evicted;
- in the cluster where the copy runs: own the copy's Workload, give its quota back when it is
  evicted, and finish it with the copy.

The copy's Workload only chooses the cluster. Its quota is returned as soon as the copy is there:
the train Job of the copy waits in that cluster's queue by itself, as that of any resource does, so
that stages without GPUs do not hold any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from video2world_operator.api.conditions import Type, is_true
from video2world_operator.api.constants import API_VERSION, KIND, MULTIKUEUE
from video2world_operator.api.status import Status
from video2world_operator.api.timestamps import format_time
from video2world_operator.plan.labels import ORIGIN_LABEL, RESOURCE_LABEL
from video2world_operator.plan.plan import Plan
from video2world_operator.plan.stage import Manifest

__all__ = [
    "Dispatch",
    "answer",
    "dispatch",
    "is_dispatched",
    "own_workloads",
    "workload_of_copy",
]

Object = Mapping[str, Any]
WORKLOAD_NAME = "kueue.x-k8s.io/prebuilt-workload-name"  # annotation; a label before Kueue 0.18
POD_SET = "train"
_REQUEUED_AT_ONCE = ("Preempted", "NodeFailures")  # otherwise Kueue decides when


@dataclass(frozen=True)
class Dispatch:
    """What to do in the cluster that sends a resource: objects to create, delete and patch.

    ``status`` is to be merged into that of the Workload ``patched``; None if it needs no change.
    """

    create: Manifest | None = None
    delete: tuple[Object, ...] = ()
    patched: Object | None = None
    status: Object | None = None


def is_dispatched(body: Object) -> bool:
    """Whether MultiKueue runs the resource in another cluster: it is left alone here."""
    return (body.get("spec") or {}).get("managedBy") == MULTIKUEUE


def workload_of_copy(metadata: Object) -> str:
    """Return the name of the Workload of a copy that MultiKueue made; empty if it is none."""
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if ORIGIN_LABEL not in labels:
        return ""
    return str(annotations.get(WORKLOAD_NAME) or labels.get(WORKLOAD_NAME) or "")


def own_workloads(body: Object, found: Sequence[Object]) -> list[Object]:
    """Return those of the Workloads ``found`` whose controller is the resource."""
    uid = body["metadata"]["uid"]
    return [
        one
        for one in found
        if any(o["uid"] == uid for o in one["metadata"].get("ownerReferences") or ())
    ]


def dispatch(
    plan: Plan, body: Object, status: Status, found: Sequence[Object], version: str, now: datetime
) -> Dispatch:
    """Decide what to do for a resource that another cluster runs.

    MultiKueue never copies a change of the spec. Each generation of the resource therefore has a
    Workload of its own, and with the last one's its copy is deleted.

    Args:
        plan: its plan.
        body: the resource.
        status: its status, which MultiKueue copies from the other cluster.
        found: the Workloads with its label.
        version: group and version of the Workload to create.
        now: the time, with time zone.
    """
    ours = own_workloads(body, found)
    if plan.resource.spec.suspend:
        return Dispatch(delete=tuple(ours))
    wanted = _workload(plan, body, version)
    current = next((w for w in ours if _name(w) == wanted["metadata"]["name"]), None)
    others = tuple(w for w in ours if w is not current)
    if current is not None:
        return Dispatch(delete=others, patched=current, status=_handle_admission(current, now))
    if _is_done(plan, status, ours):
        return Dispatch()
    return Dispatch(create=wanted, delete=others)


def answer(
    workload: Object, owner: Object, status: Status, now: datetime
) -> tuple[Object | None, Object | None]:
    """Return the changes of a copy's Workload: its metadata, and its status.

    Args:
        workload: the Workload that MultiKueue created for the copy.
        owner: the copy, which becomes its controller, so that MultiKueue finds the copy when it
            deletes what has no counterpart any more.
        status: the copy's status.
        now: the time, with time zone.
    """
    metadata = None
    if not own_workloads(owner, [workload]):
        others = workload["metadata"].get("ownerReferences") or []
        metadata = {"ownerReferences": [*others, _owner(owner)]}
    before = workload.get("status") or {}
    if _is_true(before, "Finished"):
        return metadata, None
    if _is_evicted(before) and not _has_ended(status):
        return metadata, _give_back(workload, now)
    after = dict(before)
    sets = workload["spec"]["podSets"]
    if not before.get("reclaimablePods"):
        after["reclaimablePods"] = [{"name": s["name"], "count": s["count"]} for s in sets]
    after = _set(after, workload, now, "PodsReady", True, "Started", "The resource runs here")
    for kind, reason in ((Type.SUCCEEDED, "Succeeded"), (Type.FAILED, "Failed")):
        if is_true(status.conditions, kind):
            after = _set(after, workload, now, "Finished", True, reason, status.message or reason)
    return metadata, _changes(before, after)


def _handle_admission(workload: Object, now: datetime) -> Object | None:
    """Return the status to merge into an evicted or admitted Workload; None if there is no need."""
    status: Object = workload.get("status") or {}
    if _is_true(status, "Finished"):
        return None
    if _is_evicted(status):
        return _give_back(workload, now)
    if _is_true(status, "Admitted") and not _is_true(status, "PodsReady"):
        text = "Another cluster runs the resource"
        after = _set(status, workload, now, "PodsReady", True, "Started", text)
        return _changes(status, after)
    return None


def _give_back(workload: Object, now: datetime) -> Object | None:
    """Return the status of an evicted Workload without its quota.

    In the cluster that sends, nothing runs that would have to end first. MultiKueue then deletes
    the copy, or waits for its Workload's next admission; what a copy runs has quota of its own.
    """
    status = workload["status"]
    evicted = next(c for c in status["conditions"] if c["type"] == "Evicted")
    reason, message = evicted["reason"], evicted.get("message", "")
    at_once = reason in _REQUEUED_AT_ONCE
    text = "The workload has no reservation"
    after = {**status, "admission": None}
    after = _set(after, workload, now, "Requeued", at_once, reason, message)
    after = _set(after, workload, now, "QuotaReserved", False, "Pending", message)
    after = _set(after, workload, now, "Admitted", False, "NoReservation", text)
    after = _set(after, workload, now, "PodsReady", False, "WaitForStart", text)
    return _changes(status, after)


def _is_done(plan: Plan, status: Status, ours: Sequence[Object]) -> bool:
    """Whether the resource has ended, and nothing is to run that it has not run.

    Without any Workload left (Kueue deletes finished ones in time) it stays as it ended. A change
    of the spec since then counts if the resource has failed, or if it changes what the stages do.
    """
    if not _has_ended(status):
        return False
    done = {(entry.name, entry.inputs_hash) for entry in status.stages}
    same = all((stage.name, stage.inputs_hash) in done for stage in plan.stages)
    return not ours or (same and is_true(status.conditions, Type.SUCCEEDED))


def _workload(plan: Plan, body: Object, version: str) -> Manifest:
    metadata = body["metadata"]
    job = plan.stage("train").job
    name = f"{plan.name}-{metadata['uid'][:8]}-{metadata['generation']}"
    labels = {k: v for k, v in job["metadata"]["labels"].items() if k.startswith("app.kube")}
    pods = {"name": POD_SET, "count": job["spec"]["completions"]}
    queue = plan.resource.spec.scheduling.queue_name
    return {
        "apiVersion": version,
        "kind": "Workload",
        "metadata": {
            "name": name,
            "namespace": plan.namespace,
            "labels": labels | {RESOURCE_LABEL: plan.name},
            "ownerReferences": [_owner(body)],
        },
        "spec": {"queueName": queue, "podSets": [pods | {"template": job["spec"]["template"]}]},
    }


def _owner(body: Object) -> Manifest:
    metadata = body["metadata"]
    owner: Manifest = {"apiVersion": API_VERSION, "kind": KIND, "name": metadata["name"]}
    return owner | {"uid": metadata["uid"], "controller": True}


def _name(workload: Object) -> str:
    return str(workload["metadata"]["name"])


def _has_ended(status: Status) -> bool:
    return any(is_true(status.conditions, kind) for kind in (Type.SUCCEEDED, Type.FAILED))


def _is_evicted(status: Object) -> bool:
    """Whether a Workload holds quota that it has to give back."""
    return _is_true(status, "Evicted") and _is_true(status, "QuotaReserved")


def _is_true(status: Object, kind: str) -> bool:
    conditions = status.get("conditions") or ()
    return any((c["type"], c["status"]) == (kind, "True") for c in conditions)


def _changes(before: Object, after: Object) -> Object | None:
    """Return the fields of ``after`` that ``before`` has not, or otherwise; None without any."""
    return {k: v for k, v in after.items() if before.get(k) != v} or None


def _set(
    status: Object,
    workload: Object,
    now: datetime,
    kind: str,
    value: bool,
    reason: str,
    message: str,
) -> dict[str, Any]:
    """Return ``status`` with a condition set, which stays as it is if it is there already."""
    conditions = list(status.get("conditions") or ())
    old = next((c for c in conditions if c["type"] == kind), None)
    if old is not None and (old["status"], old["reason"]) == (str(value), reason):
        return dict(status)
    is_same = old is not None and old["status"] == str(value)
    new = {
        "type": kind,
        "status": str(value),
        "reason": reason,
        "message": message[:1024],
        "lastTransitionTime": old["lastTransitionTime"] if old and is_same else format_time(now),
        "observedGeneration": workload["metadata"].get("generation", 1),
    }
    return {**status, "conditions": [*(c for c in conditions if c is not old), new]}
