"""What the cluster shows of a resource's children, as typed values made of the API's objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from .plan import (
    ATTEMPT_LABEL,
    HASH_ANNOTATION,
    PODS_ANNOTATION,
    RESOURCE_LABEL,
    STAGE_LABEL,
    container_of,
)
from .progress import Event

__all__ = ["Capabilities", "Claim", "Job", "Observed", "Peer", "Pod", "parse_time"]

Object = Mapping[str, Any]


def parse_time(text: str | None) -> datetime | None:
    """An RFC 3339 time as Kubernetes writes it; None for none or for what is no time."""
    if not text:
        return None
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


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
    pods_hash: str = ""  # see plan.pods_hash
    deleting: bool = False
    suspended: bool = False  # by Kueue: we never set it
    queued: bool = False  # it is suspended, or was: Kueue has taken it up
    complete: bool = False
    failed: str = ""  # the Failed condition's reason
    message: str = ""

    @classmethod
    def of(cls, body: Object) -> Job:
        """The Job in an object of the API."""
        metadata, status = body["metadata"], body.get("status") or {}
        told = status.get("conditions") or []
        conditions = {c["type"]: c for c in told if c["status"] == "True"}
        suspended = bool((body.get("spec") or {}).get("suspend"))
        failed = conditions.get("Failed") or conditions.get("FailureTarget") or {}
        owners = [o["uid"] for o in metadata.get("ownerReferences") or [] if o.get("controller")]
        labels = metadata.get("labels") or {}
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
            queued=suspended or any(c["type"] == "Suspended" for c in told),
            complete="Complete" in conditions or "SuccessCriteriaMet" in conditions,
            failed=failed.get("reason", "Failed") if failed else "",
            message=failed.get("message", ""),
        )

    @property
    def finished(self) -> bool:
        """Whether it will start no more pods."""
        return self.complete or bool(self.failed)


@dataclass(frozen=True)
class Pod:
    """A pod of a stage, with what a diagnosis needs of its one container."""

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
    deleted: datetime | None = None  # when its grace ends, once somebody asked it to go
    asked: datetime | None = None  # when that was
    exit_code: int | None = None
    reason: str = ""  # why container or pod ended: OOMKilled, Evicted, ...
    tail: str = ""  # last lines of its log, where it failed
    waits: str = ""  # why its container does not start: ImagePullBackOff: ...
    unschedulable: str = ""
    disruption: str = ""  # reason of its DisruptionTarget condition
    disruption_message: str = ""

    @classmethod
    def of(cls, body: Object) -> Pod:
        """The pod in an object of the API."""
        metadata, status = body["metadata"], body.get("status") or {}
        labels = metadata.get("labels") or {}
        conditions = {c["type"]: c for c in status.get("conditions") or []}
        disruption = conditions.get("DisruptionTarget", {})
        if disruption.get("status") != "True":
            disruption = {}
        scheduled = conditions.get("PodScheduled", {})
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
            node=(body.get("spec") or {}).get("nodeName", ""),
            ready=conditions.get("Ready", {}).get("status") == "True",
            started=parse_time(status.get("startTime")),
            ended=parse_time(ended.get("finishedAt")),
            deleted=deleted,
            asked=deleted - grace if deleted else None,
            exit_code=ended.get("exitCode"),
            reason=ended.get("reason") or status.get("reason", ""),
            tail=ended.get("message", "") if ended.get("exitCode") else "",
            waits=why if waiting.get("reason") not in (None, "ContainerCreating") else "",
            unschedulable=(
                scheduled.get("message", "") or scheduled.get("reason", "")
                if scheduled.get("status") == "False"
                else ""
            ),
            disruption=disruption.get("reason", ""),
            disruption_message=disruption.get("message", ""),
        )

    @property
    def container(self) -> str:
        """Name of its one container."""
        return container_of(self.stage)

    @property
    def over(self) -> bool:
        """Whether its containers have ended."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class Claim:
    """The PersistentVolumeClaim; ``modes`` is empty and ``found`` False where there is none."""

    name: str
    found: bool = True
    lost: bool = False
    modes: tuple[str, ...] = ()
    deleting: bool = False  # it goes, and its data too, once no pod uses it
    size: str = ""  # what it holds, or asks for while it is not bound

    @classmethod
    def of(cls, name: str, body: Object | None) -> Claim:
        """The claim in an object of the API, or its absence."""
        if body is None:
            return cls(name, found=False)
        spec, status = body["spec"], body.get("status") or {}
        asked = ((spec.get("resources") or {}).get("requests") or {}).get("storage", "")
        size = (status.get("capacity") or {}).get("storage", asked)
        modes = tuple(spec.get("accessModes") or ())
        deleting = "deletionTimestamp" in body["metadata"]
        return cls(name, True, status.get("phase") == "Lost", modes, deleting, size)


@dataclass(frozen=True)
class Peer:
    """Another resource on the same volume, older than ours and not at its end."""

    name: str
    run_folder: str
    hashes: Mapping[str, str]  # inputs hash of every stage that it has still to do


@dataclass(frozen=True)
class Capabilities:
    """Versions of the optional APIs that the cluster serves with their resource; empty: it does
    not serve them. That says nothing of whether anyone acts on their objects."""

    native: str = ""  # of PodGroup in scheduling.k8s.io
    volcano: str = ""  # of PodGroup in scheduling.volcano.sh
    coscheduling: str = ""  # of PodGroup in scheduling.x-k8s.io
    kueue: str = ""  # of LocalQueue in kueue.x-k8s.io

    @property
    def groups(self) -> frozenset[str]:
        """The API groups of those that are served."""
        names = {
            "scheduling.k8s.io": self.native,
            "scheduling.volcano.sh": self.volcano,
            "scheduling.x-k8s.io": self.coscheduling,
            "kueue.x-k8s.io": self.kueue,
        }
        return frozenset(group for group, version in names.items() if version)


@dataclass(frozen=True)
class Observed:
    """Everything a reconciliation sees besides the resource itself.

    ``claim`` is None while nobody looked; ``events`` are the worker's, in order, from the log of
    the stage's first pod; ``problems`` are the API server's refusals of the last round.
    """

    jobs: Sequence[Job] = ()
    pods: Sequence[Pod] = ()
    claim: Claim | None = None
    peers: Sequence[Peer] = ()
    capabilities: Capabilities = field(default_factory=Capabilities)
    events: Sequence[Event] = ()
    problems: Sequence[str] = ()
    pod_group: Object | None = None  # that of the attempt at training, where it was asked for
    preflight: Sequence[str] | None = None  # what the checks before training found; None: not made


def resource_of(body: Object) -> str:
    """Name of the resource that a child belongs to, by its label; empty if it bears none."""
    return _label(body["metadata"].get("labels") or {}, RESOURCE_LABEL)
