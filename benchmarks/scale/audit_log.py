"""Read times and requests of a run from the API server's audit log, the same for every system.

``system`` reads a training pod's resource and attempt from its labels, and the resource from its
name. Times are those of the API server's responses.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TextIO

__all__ = ["BENCH", "RULES", "Naming", "Pod", "Timeline", "percentiles", "tail"]

BENCH = "bench"  # the user of the benchmark's own requests
JOBS = "system:serviceaccount:kube-system:job-controller"
RULES: list[dict[str, Any]] = [
    {
        "level": "Request",
        "verbs": ["create"],
        "omitManagedFields": True,
        "resources": [{"group": "", "resources": ["pods"]}],
    },
    {
        "level": "Metadata",
        "users": ["kwok"],
        "verbs": ["patch", "delete"],
        "resources": [{"group": "", "resources": ["pods", "pods/status"]}],
    },
    {
        "level": "Metadata",
        "users": ["system:kube-scheduler"],
        "verbs": ["create"],
        "resources": [{"group": "", "resources": ["pods/binding"]}],
    },
    {
        "level": "Metadata",
        "users": [JOBS],
        "resources": [{"group": "batch", "resources": ["jobs/status"]}],
    },
]


class Naming(Protocol):
    """How a system labels and names its pods."""

    @property
    def accounts(self) -> Collection[str]:
        """User names of its service accounts."""

    def group(self, labels: Mapping[str, str]) -> tuple[str, str] | None:
        """Return resource and attempt of a training pod; None for another pod."""

    def resource_of(self, pod: str) -> str:
        """Return the resource of the training pod of this name; empty for another pod."""


@dataclass
class Pod:
    """When a training pod was bound, started to run, and ended or was deleted."""

    bound: float = 0.0
    running: float = 0.0
    ended: float = 0.0


@dataclass
class Timeline:
    """When things happened, brought up to date by :meth:`record`, event by event."""

    system: Naming
    posted: dict[str, float] = field(default_factory=dict)  # resources, when they were created
    created: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    accepted: dict[str, float] = field(default_factory=dict)  # resources: first status written
    first: dict[str, float] = field(default_factory=dict)  # a resource's first pod
    pods: dict[str, Pod] = field(default_factory=dict)
    jobs: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    deleted: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    applied: dict[str, float] = field(default_factory=dict)  # Jobs, by our operator
    requests: Counter[str] = field(default_factory=Counter)
    all_pods: int = 0

    def record(self, event: Mapping[str, Any]) -> None:
        """Record one event of the audit log."""
        if event.get("stage") == "ResponseStarted":
            return  # of a watch or log stream; its end is logged, too
        target = event.get("objectRef") or {}
        user, verb = event["user"]["username"], event["verb"]
        kind, name = target.get("resource", ""), target.get("name", "")
        if target.get("subresource"):
            kind = f"{kind}/{target['subresource']}"
        ok = event.get("responseStatus", {}).get("code", 0) < 300
        when = datetime.fromisoformat(event["stageTimestamp"]).timestamp()
        if user in self.system.accounts and verb != "watch" and kind not in _HOUSEKEEPING:
            self.requests[f"{verb} {kind}"] += 1
            if ok:
                self._record_request(verb, kind, name, when)
        if not ok:
            return
        if (verb, kind) == ("create", "pods"):
            self._record_creation(event, when)
        elif user == BENCH and verb == "create":
            self.posted[name] = when
        elif user == JOBS and kind == "jobs/status":
            self.jobs[name].append(when)
        elif self.system.resource_of(name):
            received = datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()
            self._record_pod(verb, kind, name, received, when)

    def _record_request(self, verb: str, kind: str, name: str, when: float) -> None:
        if kind in _STATUSES:
            self.accepted.setdefault(name, when)
        elif (verb, kind) == ("create", "jobs"):
            self.applied.setdefault(name, when)
        elif verb in ("delete", "deletecollection") and kind in ("jobs", "pods"):
            self.deleted[name].append(when)

    def _record_creation(self, event: Mapping[str, Any], when: float) -> None:
        self.all_pods += 1
        labels = event["requestObject"]["metadata"].get("labels") or {}
        group = self.system.group(labels)
        if group is not None:
            self.created[group].append(when)
        for label in _RESOURCE_LABELS:
            if label in labels:
                self.first.setdefault(labels[label], when)

    def _record_pod(self, verb: str, kind: str, name: str, received: float, when: float) -> None:
        if (verb, kind) == ("create", "pods/binding"):
            known = self.pods.get(name)
            if known is not None and known.running > received:
                known.bound = when  # it ran before the scheduler got its response
            else:
                self.pods[name] = Pod(bound=when)  # a new pod, even if an earlier one had its name
            return
        pod = self.pods.setdefault(name, Pod(bound=when))
        if (verb, kind) == ("patch", "pods/status"):
            if not pod.running:
                pod.running = when
            elif not pod.ended:
                pod.ended = when
        elif verb == "delete" and not pod.ended:
            pod.ended = when

    # ------------------------------------------------------------------ figures

    def attempts(self, resource: str) -> list[list[float]]:
        """Return the creation times of the pods of each attempt of a resource, in order."""
        found = [times for (name, _), times in self.created.items() if name == resource]
        return sorted(found, key=min)

    def group_created(self, resource: str, nodes: int, since: float = 0.0) -> float | None:
        """Return when ``nodes`` pods of one attempt after ``since`` had been created."""
        for times in self.attempts(resource):
            later = [when for when in times if when >= since]
            if len(later) >= nodes:
                return sorted(later)[nodes - 1]
        return None

    def goodput(self, works: Mapping[str, tuple[int, int]], until: float) -> dict[str, float]:
        """Return the GPU seconds held by training pods, and the useful ones among them.

        Useful are those in which a group that later succeeded was complete. ``works``: nodes and
        GPUs per node by resource.
        """
        held = useful = 0.0
        groups: dict[str, list[Pod]] = defaultdict(list)
        for name, pod in self.pods.items():
            resource = self.system.resource_of(name)
            if resource in works:
                held += ((pod.ended or until) - pod.bound) * works[resource][1]
                groups[resource].append(pod)
        for resource, pods in groups.items():
            nodes, gpus = works[resource]
            last = sorted(pods, key=lambda pod: pod.bound)[-nodes:]
            if len(last) == nodes and all(pod.running for pod in last):
                start, end = max(p.running for p in last), min(p.ended or until for p in last)
                useful += max(0.0, end - start) * gpus * nodes
        return {"held": round(held), "useful": round(useful)}


_STATUSES = ("video2worldposttrains/status", "pytorchjobs/status", "trainjobs/status")
_RESOURCE_LABELS = (
    "video2world.dev/resource",
    "training.kubeflow.org/job-name",
    "jobset.sigs.k8s.io/jobset-name",
)
# requests that a controller makes for itself, not for a resource
_HOUSEKEEPING = {"leases", "selfsubjectaccessreviews", "tokenreviews", "subjectaccessreviews", ""}


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return median, 99th percentile, maximum and number of ``values`` in seconds."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}
    p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    return {
        "count": len(ordered),
        "p50": round(statistics.median(ordered), 3),
        "p99": round(p99, 3),
        "max": round(ordered[-1], 3),
    }


def tail(log: Path) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield, each time, the events written to the audit log since the last time."""

    def new(stream: TextIO) -> Iterator[dict[str, Any]]:
        while True:
            position = stream.tell()
            line = stream.readline()
            if not line.endswith("\n"):
                stream.seek(position)  # still being written
                return
            yield json.loads(line)

    with log.open() as stream:
        while True:
            yield new(stream)
