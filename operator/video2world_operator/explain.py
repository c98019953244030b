"""Why a resource does not get on, in words, and what to do: from what is observed of it alone.

What Kubernetes says of a trouble is free text; :mod:`.troubles` knows the usual ones by a pattern.
A text that no rule knows is shown as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .conditions import Reason, Type, find
from .observed import Pod, parse_time
from .plan import GPU
from .progress import duration
from .troubles import AGAIN_CLUSTER, AGAIN_LOCAL, BY_REASON, LOGS, matching
from .view import Snapshot

__all__ = ["STATUS_REFUSED", "Cause", "Facts", "explain"]

Object = Mapping[str, Any]
GANG = "pod group is unschedulable"  # what the scheduler writes at pods that wait for others
STATUS_REFUSED = "StatusRefused"  # reason of the operator's event at a resource
UNSEEN_SECONDS = 10.0  # after so long without a status nobody looks after the resource


@dataclass(frozen=True)
class Cause:
    """One thing that holds a resource up: what, what to do, and in whose words it was told."""

    what: str
    remedy: str
    evidence: str = ""


@dataclass(frozen=True)
class Facts:
    """What is seen besides status and pods; of a local run there is none of it.

    ``events`` are the namespace's core/v1 Events; ``nodes`` is None where the user may not list
    them; ``spec`` and ``metadata`` are the resource's; ``gpus_per_node`` is what one training pod
    asks for.
    """

    metadata: Object = field(default_factory=dict)
    spec: Object = field(default_factory=dict)
    claim: Object | None = None
    events: Sequence[Object] = ()
    nodes: Sequence[Object] | None = None
    gpus_per_node: int = 0
    definition: str = ""  # what is wrong with the CRD in the cluster


_NOT_SO = (
    Type.DEFINITION,
    Type.AUTHORIZED,
    Type.ACCEPTED,
    Type.CHILDREN_APPLIED,
    Type.VOLUME_READY,
)


def explain(seen: Snapshot, around: Facts, now: datetime) -> list[Cause]:
    """The causes, the decisive first; empty if the resource gets on or has succeeded."""
    return _Case(seen, around, now).causes()


class _Case:
    """One resource at one moment."""

    def __init__(self, seen: Snapshot, around: Facts, now: datetime) -> None:
        self.seen, self.around, self.now = seen, around, now
        self.status = seen.status
        self.conditions = self.status.get("conditions") or []
        self.stage = self.status.get("stage") or self._failed_stage()
        self.entry: Object = next(
            (e for e in self.status.get("stages", []) if e["name"] == self.stage), {}
        )
        self.attempt = self.entry.get("attempt", 0)
        self.pods = [p for p in seen.pods if (p.stage, p.attempt) == (self.stage, self.attempt)]

    def causes(self) -> list[Cause]:
        if not self.status:
            return [self._nobody_looks()] if self._unseen() else []
        if self._true(Type.SUCCEEDED):
            return []
        for kind in (Type.FAILED, Type.SUSPENDED):
            if (condition := self._true(kind)) is not None:
                return [self._of_condition(condition)]
        found = [self._of_condition(c) for kind in _NOT_SO if (c := self._false(kind))]
        if self.seen.gone:
            found.append(Cause(self.seen.note, "Run the same `v2w run` command again"))
        if not found or self._false(Type.VOLUME_READY):
            found += self._claim()
        found += [*self._waiting(), *self._pods(), *self._missing_pods()]
        if not found and self._stale():
            found.append(self._nobody_looks())
        gang = self._false(Type.GANG)
        if self.stage == "train" and gang and gang["reason"] == Reason.GANG_UNATTENDED:
            found.append(self._of_condition(gang))
        if lost := self._false(Type.CONTENT):
            found.append(self._of_condition(lost))
        train: Object = next((e for e in self.status.get("stages", []) if e["name"] == "train"), {})
        if train.get("state") == "Pending" and (foreseen := self._false(Type.PREFLIGHT)):
            found.append(self._of_condition(foreseen))
        return list(dict.fromkeys(found))

    # ------------------------------------------------------------------ the operator

    def _unseen(self) -> bool:
        created = parse_time(self.around.metadata.get("creationTimestamp"))
        return created is None or (self.now - created).total_seconds() > UNSEEN_SECONDS

    def _stale(self) -> bool:
        """Whether the spec was changed and nobody has acted on that, as far as one can see."""
        generation = self.around.metadata.get("generation")
        return bool(generation) and self.status.get("observedGeneration") != generation

    def _nobody_looks(self) -> Cause:
        if self.around.definition:
            what, _, remedy = self.around.definition.rpartition(": ")
            return Cause(f"{what}.", f"{remedy[:1].upper()}{remedy[1:]}")
        for event in sorted(self.around.events, key=_when, reverse=True):
            about = event.get("involvedObject") or {}
            if event.get("reason") == STATUS_REFUSED and about.get("name") == self.seen.name:
                return Cause(
                    "The operator cannot write this resource's status.",
                    "Apply the manifests/crd.yaml of the operator's version, or upgrade the chart",
                    str(event.get("message", "")),
                )
        return Cause(
            "No operator looks after this resource.",
            "Install it (helm install v2w charts/video2world-operator), or see why it is down: "
            "kubectl get pods -A -l app.kubernetes.io/name=video2world-operator; it may serve "
            "other namespaces only (watchNamespaces)",
        )

    # ------------------------------------------------------------------ conditions

    def _true(self, kind: Type) -> Object | None:
        condition = find(self.conditions, kind)
        return condition if condition and condition.get("status") == "True" else None

    def _false(self, kind: Type) -> Object | None:
        condition = find(self.conditions, kind)
        return condition if condition and condition.get("status") == "False" else None

    def _of_condition(self, condition: Object) -> Cause:
        message = condition.get("message", "")
        tail = self.entry.get("logTail", "")
        if known := self._known(message) or self._known(tail):
            return Cause(known.what, known.remedy, message)
        remedy = BY_REASON.get(condition.get("reason", ""), "Its own words say what to do")
        return Cause(message, self._fill(remedy), _last(tail))

    def _failed_stage(self) -> str:
        failed = [e["name"] for e in self.status.get("stages", []) if e["state"] == "Failed"]
        return failed[0] if failed else ""

    def _waiting(self) -> Iterator[Cause]:
        """What waits without anything being wrong with a pod."""
        progressing = find(self.conditions, Type.PROGRESSING) or {}
        started = find(self.conditions, Type.PODS_STARTED) or {}
        if progressing.get("reason") == Reason.WAITING:
            yield self._of_condition(progressing)
        if started.get("reason") == Reason.QUEUED and not self.pods:
            said = next((t for t in self._told(f"job-{self.job}") if self._known(t)), "")
            known = self._known(said)
            remedy = self._fill(BY_REASON[Reason.QUEUED])
            yield known or Cause(started.get("message", ""), remedy)
        if self.entry.get("state") == "Restarting":
            when = parse_time(self.status.get("nextAttemptTime"))
            left = (when - self.now).total_seconds() if when else 0
            last = self.entry.get("message", "")
            known = self._known(last)
            what = f"Stage {self.stage} failed and starts again"
            what += f" in {duration(left)}." if left > 0 else " once its last pods are gone."
            remedy = known.remedy if known else self._fill("Nothing to do; if it repeats: " + LOGS)
            yield Cause(what, remedy, last)

    # ------------------------------------------------------------------ pods, claim, events

    @property
    def job(self) -> str:
        """Name of the Job at work."""
        return f"{self.seen.name}-{self.stage}-{self.attempt}"

    def _pods(self) -> Iterator[Cause]:
        """What keeps pods from starting or ending; the same words of many pods count once."""
        told: dict[str, Pod] = {}
        for pod in self.pods:
            if pod.deleted is not None and not pod.over:
                if self.now > pod.deleted:
                    yield Cause(
                        f"Pod {pod.name} does not end: its node {pod.node} does not answer.",
                        "The operator forces it out after a minute; see to the node: kubectl "
                        f"describe node {pod.node}",
                    )
            elif text := pod.waits or pod.unschedulable:
                told.setdefault(text, pod)
            elif pod.phase == "Pending":
                for said in self._told(pod.name):
                    if known := self._known(said, pod):
                        yield known
                        break
        # that the others of its group have no room says less than what those others wait for
        own = {text: pod for text, pod in told.items() if not text.startswith(GANG)}
        for text, pod in (own or told).items():
            yield self._known(text, pod) or self._unknown(pod, text)

    def _unknown(self, pod: Pod, text: str) -> Cause:
        what = "waits for a node" if pod.unschedulable else "cannot start its container"
        remedy = f"kubectl describe pod {pod.name} -n {{namespace}} says more"
        return Cause(f"Pod {pod.name} {what}.", self._fill(remedy), text)

    def _missing_pods(self) -> Iterator[Cause]:
        """Why a Job makes no pods: its own events tell."""
        alive = [p for p in self.pods if p.deleted is None]
        if self.entry.get("state") == "Running" and len(alive) < self.entry.get("desired", 1):
            for said in self._told(self.job):
                if known := self._known(said):
                    yield known
                    return

    def _claim(self) -> Iterator[Cause]:
        claim = self.around.claim
        ready = find(self.conditions, Type.VOLUME_READY) or {}
        if claim is not None and "deletionTimestamp" in claim["metadata"]:
            if ready.get("reason") != Reason.CLAIM_DELETED:
                text = Reason.CLAIM_DELETED.text(claim=claim["metadata"]["name"])
                yield Cause(text, self._fill(BY_REASON[Reason.CLAIM_DELETED]))
            return
        if claim is None or (claim.get("status") or {}).get("phase") != "Pending":
            return
        for said in self._told(claim["metadata"]["name"]):
            if known := self._known(said):
                yield known
                return

    def _told(self, prefix: str) -> Iterator[str]:
        """Warnings and such about objects whose names begin so, the newest first."""
        about = [
            e
            for e in self.around.events
            if str((e.get("involvedObject") or {}).get("name", "")).startswith(prefix)
        ]
        about.sort(key=_when, reverse=True)
        yield from (f"{e.get('reason', '')}: {e.get('message', '')}" for e in about)

    # ------------------------------------------------------------------ rules

    def _known(self, text: str, pod: Pod | None = None) -> Cause | None:
        """What the first rule that matches makes of ``text``."""
        if (found := matching(text)) is None:
            return None
        rule, facts = found
        what = self._fill(rule.what, pod, **facts)
        return Cause(what, self._fill(rule.remedy, pod, **facts), text)

    def _fill(self, text: str, pod: Pod | None = None, **facts: str) -> str:
        metadata, storage = self.around.metadata, self.around.spec.get("storage") or {}
        trouble, remedy = self._gpus()
        again = AGAIN_CLUSTER if metadata else AGAIN_LOCAL
        known = {
            "again": again.format(name=self.seen.name),
            "name": self.seen.name,
            "namespace": metadata.get("namespace", "default"),
            "stage": self.stage,
            "pod": pod.name if pod else f"{self.job}-0",
            "claim": storage.get("claimName") or f"{self.seen.name}-data",
            "gpu_trouble": trouble,
            "gpu_remedy": remedy,
        }
        return text.format_map(known | facts)

    def _gpus(self) -> tuple[str, str]:
        """Whether GPUs are busy or not there at all, as far as the nodes may be looked at."""
        counts = [_gpus_of(node) for node in self.around.nodes or ()]
        wanted = self.around.gpus_per_node if self.stage == "train" else 1
        if self.around.nodes is not None and not any(counts):
            return (
                f"No node of the cluster has GPUs ({GPU}).",
                "Add GPU nodes with NVIDIA's device plugin, or use spec.model.size: Tiny",
            )
        if counts and (most := max(counts)) < wanted:
            return (
                f"Each training pod asks for {wanted} GPUs, but the largest node has {most}.",
                f"Set spec.training.gpusPerNode to at most {most} (in a new resource: it "
                "cannot change later), and nodes accordingly",
            )
        return (
            f"Not enough GPUs are free for stage {self.stage}.",
            "Wait until others end (it starts by itself), add nodes, or suspend another: "
            "kubectl get v2w -A",
        )


def _gpus_of(node: Object) -> int:
    return int((node.get("status") or {}).get("allocatable", {}).get(GPU, 0))


def _when(event: Object) -> str:
    times: Iterable[str | None] = (
        (event.get("series") or {}).get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp") if "metadata" in event else None,
    )
    return next((t for t in times if t), "")


def _last(tail: str) -> str:
    return "\n".join(tail.strip().splitlines()[-3:])
