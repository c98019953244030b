"""Why a resource does not get on, in words, and what to do: from what is observed of it alone.

What Kubernetes reports is free text; :mod:`video2world_operator.reconcile.known_errors` knows the
usual errors by a pattern.
A text that no rule knows is shown as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from video2world_common.progress_events import duration
from video2world_operator.api.conditions import STATUS_REFUSED, Reason, Type, find
from video2world_operator.api.status import Condition
from video2world_operator.api.timestamps import parse_time
from video2world_operator.cli.snapshot import Snapshot
from video2world_operator.plan.manifests import GPU
from video2world_operator.plan.stage import container_of
from video2world_operator.reconcile.known_errors import BUSY_GPUS, BY_REASON, LOGS, facts, known
from video2world_operator.reconcile.observed_state import Job, KubeEvent, Pod
from video2world_operator.reconcile.stuck_stages import BOUND, Finding, judge, reports

__all__ = ["Cause", "Facts", "explain"]

Object = Mapping[str, Any]
GANG = "pod group is unschedulable"  # what the scheduler writes at pods that wait for others
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

    ``events`` are the namespace's core/v1 Events; ``jobs`` and ``nodes`` are None where the user
    may not list them; ``spec`` and ``metadata`` are the resource's; ``gpus_per_node`` is what one
    training pod asks for.
    """

    metadata: Object = field(default_factory=dict)
    spec: Object = field(default_factory=dict)
    claim: Object | None = None
    events: Sequence[Object] = ()
    nodes: Sequence[Object] | None = None
    gpus_per_node: int = 0
    definition: str = ""  # what is wrong with the CRD in the cluster
    jobs: Sequence[Job] | None = None


# Reasons of a condition that a cluster shows better, where the user may see it.
_HELD_UP = (
    Reason.NO_PROGRESS,
    Reason.JOB_SUSPENDED,
    Reason.EARLIER_PODS,
    Reason.PODS_ENDING,
    Reason.UNSCHEDULABLE,
    Reason.CONTAINER_WAITS,
)
_DIVERGED = (
    "Make another resource with a lower spec.training.learningRate or more warmupIterations; with "
    "spec.training.stopWhenDiverged such a run ends by itself"
)
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
        self.conditions = self.status.conditions
        self.stage = self.status.stage or self._failed_stage()
        self.entry = self.status.stage_status(self.stage)
        self.attempt = self.entry.attempt if self.entry else 0
        self.pods = [p for p in seen.pods if (p.stage, p.attempt) == (self.stage, self.attempt)]
        self.events = [KubeEvent.of(event) for event in around.events]
        self.job_seen = next(
            (j for j in around.jobs or () if j.name == self.job and not self._foreign(j)), None
        )

    def causes(self) -> list[Cause]:
        if self.status.is_empty:
            return [self._nobody_looks()] if self._unseen() else []
        if self._true(Type.SUCCEEDED):
            return list(self._diverged())
        for kind in (Type.FAILED, Type.SUSPENDED):
            if (condition := self._true(kind)) is not None:
                return [self._of_condition(condition)]
        found = [self._of_condition(c) for kind in _NOT_SO if (c := self._false(kind))]
        if self.seen.gone:
            found.append(Cause(self.seen.note, "Run the same `v2w run` command again"))
        if not found or self._false(Type.VOLUME_READY):
            found += self._claim()
        found += [*self._waiting(), *self._pods(), *self._stuck()]
        if not found or self._reason(Type.PODS_STARTED) == Reason.EARLIER_PODS:
            found += self._shown_by_conditions()
        if not found and (self._stale() or self._unattended()):
            found.append(self._nobody_looks())
        gang = self._false(Type.GANG)
        if self.stage == "train" and gang and gang.reason == Reason.GANG_UNATTENDED:
            found.append(self._of_condition(gang))
        if lost := self._false(Type.CONTENT):
            found.append(self._of_condition(lost))
        train = self.status.stage_status("train")
        if train and train.state == "Pending" and (foreseen := self._false(Type.PREFLIGHT)):
            found.append(self._of_condition(foreseen))
        return list(dict.fromkeys([*found, *self._diverged()]))

    def _diverged(self) -> Iterator[Cause]:
        if self.status.progress and self.status.progress.warning:
            yield Cause(self.status.progress.warning, _DIVERGED)

    # ------------------------------------------------------------------ the operator

    def _unseen(self) -> bool:
        created = parse_time(self.around.metadata.get("creationTimestamp"))
        return created is None or (self.now - created).total_seconds() > UNSEEN_SECONDS

    def _stale(self) -> bool:
        """Whether the spec was changed and nobody has acted on that, as far as one can see."""
        generation = self.around.metadata.get("generation")
        return bool(generation) and self.status.observed_generation != generation

    def _nobody_looks(self) -> Cause:
        if self.around.definition:
            what, _, remedy = self.around.definition.rpartition(": ")
            return Cause(f"{what}.", f"{remedy[:1].upper()}{remedy[1:]}")
        for event in reports(self.events, self.around.metadata.get("uid", "")):
            reason, _, message = event.text.partition(": ")
            if reason == STATUS_REFUSED:
                return Cause(
                    "The operator cannot write this resource's status.",
                    "Apply the manifests/crd.yaml of the operator's version, or upgrade the chart",
                    message,
                )
        return Cause(
            "No operator looks after this resource.",
            "Install it (helm install v2w charts/video2world-operator), or see why it is down: "
            "kubectl get pods -A -l app.kubernetes.io/name=video2world-operator; it may serve "
            "other namespaces only (watchNamespaces)",
        )

    # ------------------------------------------------------------------ conditions

    def _true(self, kind: Type) -> Condition | None:
        condition = find(self.conditions, kind)
        return condition if condition and condition.status == "True" else None

    def _false(self, kind: Type) -> Condition | None:
        condition = find(self.conditions, kind)
        return condition if condition and condition.status == "False" else None

    def _reason(self, kind: Type) -> str:
        condition = find(self.conditions, kind)
        return condition.reason if condition else ""

    def _of_condition(self, condition: Condition) -> Cause:
        message = condition.message
        tail = self.entry.log_tail if self.entry else ""
        if known := self._known(message) or self._known(tail):
            return Cause(known.what, known.remedy, message)
        remedy = BY_REASON.get(condition.reason, LOGS)
        return Cause(message, self._fill(remedy), _last(tail))

    def _failed_stage(self) -> str:
        return next((e.name for e in self.status.stages if e.state == "Failed"), "")

    def _waiting(self) -> Iterator[Cause]:
        """What waits without anything being wrong with a pod."""
        progressing = find(self.conditions, Type.PROGRESSING)
        started = find(self.conditions, Type.PODS_STARTED)
        if progressing and progressing.reason == Reason.WAITING:
            yield self._of_condition(progressing)
        if started and started.reason == Reason.QUEUED and not self.pods:
            remedy = self._fill(BY_REASON[Reason.QUEUED])
            yield self._known(*self._of_workload()) or Cause(started.message, remedy)
        if self.entry and self.entry.state == "Restarting":
            when = parse_time(self.status.next_attempt_time)
            left = (when - self.now).total_seconds() if when else 0
            last = self.entry.message
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
        for pod in self.seen.pods:
            if pod.deleted is not None and not pod.over and self.now > pod.deleted:
                yield Cause(
                    f"Pod {pod.name} does not end: its node {pod.node} does not answer.",
                    "The operator forces it out after a minute; see to the node: kubectl "
                    f"describe node {pod.node}",
                )
        for pod in self.pods:
            if pod.deleted is not None and not pod.over:
                continue
            if text := pod.waits or pod.unschedulable:
                told.setdefault(text, pod)
        # that the others of its group have no room says less than what those others wait for
        own = {text: pod for text, pod in told.items() if not text.startswith(GANG)}
        for text, pod in (own or told).items():
            yield self._known(text, pod=pod) or self._unknown(pod, text)

    def _unknown(self, pod: Pod, text: str) -> Cause:
        what = "waits for a node" if pod.unschedulable else "cannot start its container"
        remedy = f"kubectl describe pod {pod.name} -n {{namespace}} says more"
        return Cause(f"Pod {pod.name} {what}.", self._fill(remedy), text)

    def _stuck(self) -> Iterator[Cause]:
        """What makes no progress: at once where it is known why, else after the bound."""
        job, entry = self.job_seen, self.entry
        if job is None or entry is None or entry.state != "Running":
            return
        if job.suspended and not job.queue:
            message = Reason.JOB_SUSPENDED.text(
                stage=self.stage, job=job.name, namespace=self._facts()["namespace"]
            )
            told = [e.text for e in reports(self.events, job.uid)]
            yield Cause(message, self._fill(BY_REASON[Reason.JOB_SUSPENDED]), "\n".join(told))
        desired = entry.desired or job.completions
        reported = self._reason(Type.PODS_STARTED) == Reason.NO_PROGRESS
        bound = 0.0 if reported else BOUND  # the operator's own
        for finding in judge(job, self.pods, desired, self.events, self.now, 0).findings:
            late = self.now - finding.since >= timedelta(seconds=bound)
            if late or self._known(*finding.evidence):
                yield self._of_finding(finding)

    def _of_finding(self, finding: Finding) -> Cause:
        age = duration(max((self.now - finding.since).total_seconds(), 0))
        told = "\n".join(finding.evidence)
        if rule := self._known(*finding.evidence, pod=finding.pod):
            told += f"\n{finding.what}; no progress for {age}."
            return Cause(rule.what, rule.remedy, told)
        what = f"{finding.what}; no progress for {age}."
        return Cause(what, self._fill(finding.remedy, finding.pod), told)

    def _shown_by_conditions(self) -> Iterator[Cause]:
        """What the operator says, where the objects are not there to be seen."""
        for kind in (Type.PODS_STARTED, Type.SAMPLES):
            condition = self._false(kind)
            shown = kind is Type.PODS_STARTED and self.job_seen is not None
            if condition and condition.reason in _HELD_UP and not shown:
                yield self._of_condition(condition)

    def _unattended(self) -> bool:
        """Whether what the operator should do next is overdue."""
        state = self.entry.state if self.entry else "Pending"
        if self.around.jobs is None or state not in ("Pending", "Running"):
            return False
        waiting = (Reason.WAITING_FOR_SAMPLES, Reason.SUSPENDING)
        if self._reason(Type.PROGRESSING) in waiting:
            return False
        job = self.job_seen
        times = [parse_time(c.last_transition_time) for c in self.conditions]
        times.append(parse_time(self.entry.start_time) if self.entry else None)
        if job is not None:
            times = [job.ended]
        newest = max((t for t in times if t is not None), default=None)
        return newest is not None and self.now - newest > timedelta(seconds=BOUND)

    def _foreign(self, job: Job) -> bool:
        uid = self.around.metadata.get("uid")
        return bool(uid) and job.owner != uid

    def _claim(self) -> Iterator[Cause]:
        claim = self.around.claim
        if claim is not None and "deletionTimestamp" in claim["metadata"]:
            if self._reason(Type.VOLUME_READY) != Reason.CLAIM_DELETED:
                text = Reason.CLAIM_DELETED.text(claim=claim["metadata"]["name"])
                yield Cause(text, self._fill(BY_REASON[Reason.CLAIM_DELETED]))
            return
        if claim is None or (claim.get("status") or {}).get("phase") != "Pending":
            return
        told = reports(self.events, claim["metadata"].get("uid", ""))
        if known := self._known(*(e.text for e in told)):
            yield known
        elif told and told[0].warning:
            name = claim["metadata"]["name"]
            remedy = f"kubectl describe pvc {name} -n {self._facts()['namespace']} shows more"
            yield Cause(f"The claim {name} is not bound.", remedy, told[0].text)

    def _of_workload(self) -> list[str]:
        """What Kueue reports of the Job's Workload, whose name begins with the Job's."""
        since = self.job_seen.created if self.job_seen else None
        uids = dict.fromkeys(
            e.uid
            for e in self.events
            if e.kind == "Workload" and e.name.startswith(f"job-{self.job}-")
        )
        return [e.text for uid in uids for e in reports(self.events, uid, since)]

    # ------------------------------------------------------------------ rules

    def _known(self, *texts: str, pod: Pod | None = None) -> Cause | None:
        """What the first rule that matches makes of the first of ``texts`` that one matches."""
        if (rule := known(texts, self._facts(pod))) is None:
            return None
        return Cause(rule.what, rule.remedy, rule.pattern)

    def _fill(self, text: str, pod: Pod | None = None) -> str:
        return text.format_map(self._facts(pod))

    def _facts(self, pod: Pod | None = None) -> dict[str, str]:
        metadata, storage = self.around.metadata, self.around.spec.get("storage") or {}
        trouble, remedy = self._gpus()
        found = facts(
            name=self.seen.name,
            namespace=metadata.get("namespace", "default"),
            job=self.job,
            stage=container_of(self.stage),
            local=not metadata,
            claim=storage.get("claimName") or f"{self.seen.name}-data",
        )
        found |= {"gpu_trouble": trouble, "gpu_remedy": remedy}
        return found | ({"pod": pod.name} if pod else {})

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
        return BUSY_GPUS.what.format(stage=self.stage), BUSY_GPUS.remedy


def _gpus_of(node: Object) -> int:
    return int((node.get("status") or {}).get("allocatable", {}).get(GPU, 0))


def _last(tail: str) -> str:
    return "\n".join(tail.strip().splitlines()[-3:])
