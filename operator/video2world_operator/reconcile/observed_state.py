"""Define the observed state of a resource's children, read from the API's objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from video2world_common.progress_events import Event
from video2world_operator.api.timestamps import parse_time
from video2world_operator.plan.labels import (
    ATTEMPT_LABEL,
    EVICTION_COST_ANNOTATION,
    HASH_ANNOTATION,
    PODS_ANNOTATION,
    QUEUE_LABEL,
    RESOURCE_LABEL,
    STAGE_LABEL,
)
from video2world_operator.plan.optional_apis import Capabilities
from video2world_operator.plan.stage import container_of
from video2world_operator.reconcile.workload import Workload

__all__ = ["Claim", "Job", "KubeEvent", "ObservedState", "Pod", "VolumePeer"]

Object = Mapping[str, Any]
JOB_CONTROLLER = "kubernetes.io/job-controller"  # spec.managedBy of a Job that Kubernetes runs
_STARTING = (None, "ContainerCreating", "PodInitializing")  # normal reasons to wait


def _describe(condition: Object) -> str:
    said = ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
    return f"{condition['type']} ({said})" if said else str(condition["type"])


def _label(labels: Object, name: str) -> str:
    return str(labels.get(name, ""))


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


@dataclass(frozen=True)
class Job:
    """A batch/v1 Job of a stage."""

    name: str
    uid: str
    stage: str
    attempt: int
    inputs_hash: str
    owner: str  # UID of its controller
    pods_hash: str = ""  # see plan.manifests.pods_hash
    deleting: bool = False
    suspended: bool = False  # by a queue or by someone else: the operator never suspends it
    queued: bool = False  # it is suspended or has been: Kueue manages it
    complete: bool = False
    failed: str = ""  # the Failed condition's reason
    message: str = ""
    created: datetime | None = None
    started: datetime | None = None  # when it was created or last resumed; None while suspended
    ended: datetime | None = None  # when it became complete or failed
    completions: int = 1
    queue: str = ""  # Kueue's queue, from its label
    managed_by: str = ""  # another controller than that of Kubernetes, which then ignores it
    notes: tuple[str, ...] = ()  # its true conditions, as text, and why it is idle
    eviction_cost: int = 0  # as announced: see reconcile.eviction_cost

    @classmethod
    def of(cls, body: Object) -> Job:
        """Read a Job from its API object."""
        metadata, status = body["metadata"], body.get("status") or {}
        reported = status.get("conditions") or []
        conditions = {c["type"]: c for c in reported if c["status"] == "True"}
        failed = conditions.get("Failed") or conditions.get("FailureTarget") or {}
        owners = [o["uid"] for o in metadata.get("ownerReferences") or [] if o.get("controller")]
        labels, spec = metadata.get("labels") or {}, body.get("spec") or {}
        suspended = bool(spec.get("suspend"))
        manager = str(spec.get("managedBy") or "")
        end = conditions.get("Complete") or conditions.get("Failed") or {}
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            stage=_label(labels, STAGE_LABEL),
            attempt=_number(_label(labels, ATTEMPT_LABEL)),
            inputs_hash=(metadata.get("annotations") or {}).get(HASH_ANNOTATION, ""),
            owner=owners[0] if owners else "",
            pods_hash=(metadata.get("annotations") or {}).get(PODS_ANNOTATION, ""),
            deleting="deletionTimestamp" in metadata,
            suspended=suspended,
            queued=suspended or any(c["type"] == "Suspended" for c in reported),
            complete="Complete" in conditions or "SuccessCriteriaMet" in conditions,
            failed=failed.get("reason", "Failed") if failed else "",
            message=failed.get("message", ""),
            created=parse_time(metadata.get("creationTimestamp")),
            started=parse_time(status.get("startTime")),
            ended=parse_time(end.get("lastTransitionTime")),
            completions=int(spec.get("completions") or 1),
            queue=_label(labels, QUEUE_LABEL),
            managed_by="" if manager == JOB_CONTROLLER else manager,
            notes=(
                *(["spec.parallelism is 0"] if spec.get("parallelism") == 0 else []),
                *(_describe(c) for c in conditions.values()),
            ),
            eviction_cost=_number(
                (metadata.get("annotations") or {}).get(EVICTION_COST_ANNOTATION, "")
            ),
        )

    @property
    def finished(self) -> bool:
        """Whether it will start no more pods."""
        return self.complete or bool(self.failed)


@dataclass(frozen=True)
class Pod:
    """A pod of a stage, with the state of its worker's container and of the others."""

    name: str
    uid: str
    stage: str
    attempt: int
    index: int
    phase: str
    node: str = ""
    ready: bool = False
    started: datetime | None = None
    ended: datetime | None = None
    deleted: datetime | None = None  # when its grace period ends, if it is being deleted
    deletion_requested: datetime | None = None
    exit_code: int | None = None
    reason: str = ""  # why container or pod ended: OOMKilled, Evicted, ...
    tail: str = ""  # last lines of its log, if it failed
    waits: str = ""  # why its container does not start: ImagePullBackOff: ...
    unschedulable: str = ""
    disruption: str = ""  # reason of its DisruptionTarget condition
    disruption_message: str = ""
    created: datetime | None = None
    scheduler: str = ""  # its schedulerName
    scheduled: bool = True  # a scheduler has considered it, and placed it or reported why not
    not_ready: datetime | None = None  # since when it is not ready, after it has started
    states: tuple[str, ...] = ()  # containers that are not running normally, as text
    still_running: tuple[str, ...] = ()  # other containers, except native sidecars

    @classmethod
    def of(cls, body: Object) -> Pod:
        """Read a pod from its API object."""
        metadata, status = body["metadata"], body.get("status") or {}
        spec = body.get("spec") or {}
        labels = metadata.get("labels") or {}
        conditions = {c["type"]: c for c in status.get("conditions") or []}
        disruption = conditions.get("DisruptionTarget", {})
        if disruption.get("status") != "True":
            disruption = {}
        scheduled, ready = conditions.get("PodScheduled", {}), conditions.get("Ready", {})
        stage = _label(labels, STAGE_LABEL)
        states = [
            c.get("state") or {}
            for c in status.get("containerStatuses") or []
            if c.get("name") == container_of(stage)
        ]
        state = states[0] if states else {}
        ended, waiting = state.get("terminated") or {}, state.get("waiting") or {}
        why = f"{waiting.get('reason', '')}: {waiting.get('message', '')}".strip(": ")
        deleted = parse_time(metadata.get("deletionTimestamp"))
        grace = timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            stage=stage,
            attempt=_number(_label(labels, ATTEMPT_LABEL)),
            index=_number(_label(labels, "batch.kubernetes.io/job-completion-index")),
            phase=status.get("phase", "Pending"),
            node=spec.get("nodeName", ""),
            ready=ready.get("status") == "True",
            started=parse_time(status.get("startTime")),
            ended=parse_time(ended.get("finishedAt")),
            deleted=deleted,
            deletion_requested=deleted - grace if deleted else None,
            exit_code=ended.get("exitCode"),
            reason=ended.get("reason") or status.get("reason", ""),
            tail=ended.get("message", "") if ended.get("exitCode") else "",
            waits=why if waiting.get("reason") not in _STARTING else "",
            unschedulable=(
                scheduled.get("message", "") or scheduled.get("reason", "")
                if scheduled.get("status") == "False"
                else ""
            ),
            disruption=disruption.get("reason", ""),
            disruption_message=disruption.get("message", ""),
            created=parse_time(metadata.get("creationTimestamp")),
            scheduler=spec.get("schedulerName", ""),
            scheduled=bool(scheduled) or bool(spec.get("nodeName")),
            not_ready=(
                parse_time(ready.get("lastTransitionTime"))
                if ready.get("status") == "False"
                else None
            ),
            states=tuple(_states(spec, status)),
            still_running=tuple(
                c["name"]
                for c in status.get("containerStatuses") or []
                if c["name"] != container_of(stage) and "running" in (c.get("state") or {})
            ),
        )

    @property
    def container(self) -> str:
        """Name of the worker's container."""
        return container_of(self.stage)

    @property
    def over(self) -> bool:
        """Whether its containers have ended."""
        return self.phase in ("Succeeded", "Failed")


def _states(spec: Object, status: Object) -> list[str]:
    """Describe the containers that are not running normally, init containers first."""
    sidecars = {
        c["name"] for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"
    }
    found = []
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or []:
            name, state = container["name"], container.get("state") or {}
            waiting, ended = state.get("waiting"), state.get("terminated")
            if waiting is not None:
                said = ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
                found.append(f"container {name} waits: {said or 'to start'}")
            elif ended is not None and ended.get("exitCode"):
                found.append(f"container {name} ended with exit code {ended['exitCode']}")
            elif "running" in state and kind == "initContainerStatuses" and name not in sidecars:
                found.append(f"init container {name} is still running")
            elif "running" in state and not container.get("ready"):
                found.append(f"container {name} is running, but not ready")
    return found


@dataclass(frozen=True)
class KubeEvent:
    """A core/v1 Event about an object, identified by its UID: names are reused."""

    uid: str
    kind: str
    name: str
    text: str  # its reason and message
    warning: bool = False
    time: datetime | None = None

    @classmethod
    def of(cls, body: Object) -> KubeEvent:
        """Read an Event from its API object, as of its last occurrence."""
        about = body.get("involvedObject") or {}
        times = (
            (body.get("series") or {}).get("lastObservedTime"),
            body.get("lastTimestamp"),
            body.get("eventTime"),
            (body.get("metadata") or {}).get("creationTimestamp"),
        )
        text = f"{body.get('reason') or ''}: {body.get('message') or ''}".strip(": \n")
        time = parse_time(next((t for t in times if t), None))
        return cls(
            about.get("uid", ""),
            about.get("kind", ""),
            about.get("name", ""),
            text,
            body.get("type") == "Warning",
            time,
        )


@dataclass(frozen=True)
class Claim:
    """The PersistentVolumeClaim; ``found`` is False if it does not exist."""

    name: str
    found: bool = True
    lost: bool = False
    modes: tuple[str, ...] = ()
    deleting: bool = False  # it is deleted with its data once no pod uses it
    size: str = ""  # its capacity, or its request while it is not bound

    @classmethod
    def of(cls, name: str, body: Object | None) -> Claim:
        """Read a claim from its API object; ``body`` is None if it does not exist."""
        if body is None:
            return cls(name, found=False)
        spec, status = body["spec"], body.get("status") or {}
        asked = ((spec.get("resources") or {}).get("requests") or {}).get("storage", "")
        size = (status.get("capacity") or {}).get("storage", asked)
        modes = tuple(spec.get("accessModes") or ())
        deleting = "deletionTimestamp" in body["metadata"]
        return cls(name, True, status.get("phase") == "Lost", modes, deleting, size)


@dataclass(frozen=True)
class VolumePeer:
    """An older resource on the same volume that has not ended."""

    name: str
    run_folder: str
    hashes: Mapping[str, str]  # inputs hash of every stage that is not done


@dataclass(frozen=True)
class ObservedState:
    """Everything a reconciliation knows besides the resource itself.

    ``claim`` is None if it has not been read. ``events`` are those of the workers, in order.
    ``problems`` are the API server's errors of the last reconciliation. ``kube_events`` are about
    objects that are stuck; None if they have not been read.
    """

    jobs: Sequence[Job] = ()
    pods: Sequence[Pod] = ()
    claim: Claim | None = None
    peers: Sequence[VolumePeer] = ()
    capabilities: Capabilities = field(default_factory=Capabilities)
    events: Sequence[Event] = ()
    problems: Sequence[str] = ()
    pod_group: Object | None = None  # that of the attempt at training, if it was read
    workload: Workload | None = None  # Kueue's, of the Job that waits, if it was read
    kube_events: Sequence[KubeEvent] | None = None
    preflight: Sequence[str] | None = None  # problems found before training; None: not checked
    room: int | None = None  # nodes that the training group could have, if that is known


def resource_of(body: Object) -> str:
    """Return the name of the resource that a child belongs to, by its label; empty without one."""
    return _label(body["metadata"].get("labels") or {}, RESOURCE_LABEL)
