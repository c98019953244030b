"""Judge whether a stage's Job makes progress, and collect the evidence if it does not.

The reconciler and ``v2w explain`` share this judgement: pure functions of the Job, its pods, the
Events about them and the time. Kubernetes reports free text;
:mod:`video2world_operator.reconcile.known_errors` explains the usual texts, and all others are
shown verbatim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from video2world_operator.api.timestamps import format_time
from video2world_operator.reconcile.failures import tail_of
from video2world_operator.reconcile.known_errors import LOGS, explain_error
from video2world_operator.reconcile.observed_state import Job, KubeEvent, Pod

__all__ = [
    "BOUND",
    "Finding",
    "Judgement",
    "Orphan",
    "describe_sidecar",
    "find_orphan",
    "judge",
    "message",
    "reports",
    "sidecar_remedy",
]

BOUND = 30.0  # seconds without progress after which a stage counts as stuck
MAX_REPORT = 500  # characters of a quoted Event in a message, which the remedy follows
LATEST = 3  # Events shown per object
NATIVE = "or use a native sidecar (an init container with restartPolicy: Always)"
_SLACK = timedelta(seconds=BOUND)  # warnings older than the newest normal Event by this count


@dataclass(frozen=True)
class Finding:
    """Something that makes no progress: ``what``, ``since`` when, and the evidence.

    ``uid`` is that of the object whose Events tell more; ``remedy`` is a template.
    """

    what: str
    remedy: str
    since: datetime
    uid: str
    evidence: tuple[str, ...] = ()  # verbatim, newest first
    pod: Pod | None = None


@dataclass(frozen=True)
class Judgement:
    """What is stuck, the objects whose Events tell why, and when to judge again at the latest."""

    findings: list[Finding]
    check_at: datetime | None
    uids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Orphan:
    """A pod of an earlier resource of the same name, and the object to delete, for kubectl."""

    pod: str
    object: str


def judge(
    job: Job,
    pods: Sequence[Pod],
    desired: int,
    events: Sequence[KubeEvent] | None,
    now: datetime,
    bound: float = BOUND,
) -> Judgement:
    """Judge a Job by the ``desired`` number of pods of its attempt.

    ``events`` are about the Job and its pods; None if they have not been read. The caller reports
    pods whose own status tells why they wait (:attr:`Pod.waits`, :attr:`Pod.unschedulable`) and
    pods that are being deleted.
    """
    if job.finished or job.suspended or job.deleting:
        return Judgement([], None)
    found: dict[object, Finding] = {}
    more: dict[object, int] = {}
    uids: list[str] = []
    check_at: datetime | None = None
    for finding in (*_missing(job, pods, desired, events), *_waiting(job, pods, events)):
        due = finding.since + timedelta(seconds=bound)
        if due > now:
            check_at = due if check_at is None else min(check_at, due)
            continue
        uids.append(finding.uid)
        same = finding.evidence or finding.uid  # the pods of a group have the same
        more[same] = more.get(same, -1) + 1
        found.setdefault(same, finding)
    findings = [
        replace(one, what=f"{one.what} (and {_more_pods(more[same])})") if more[same] else one
        for same, one in found.items()
    ]
    return Judgement(findings, check_at, tuple(dict.fromkeys(uids))[:LATEST])


def _more_pods(count: int) -> str:
    return "1 more pod" if count == 1 else f"{count} more pods"


def message(finding: Finding, facts: Mapping[str, str]) -> str:
    """Return the message for a finding; it changes only if the evidence changes."""
    if finding.pod is not None:
        facts = {**facts, "pod": finding.pod.name}
    error = explain_error(finding.evidence, facts)
    todo = finding.remedy.format_map(facts)
    if error is not None:
        todo = f"{error.what.rstrip('. ')}. {error.remedy}"
    quoted = [text[:MAX_REPORT] for text in finding.evidence[:1]]
    parts = (
        ": ".join((finding.what, *quoted)),
        todo,
        f"No progress since {format_time(finding.since)}",
    )
    return " ".join(f"{part.rstrip('. ')}." for part in parts)


def find_orphan(jobs: Sequence[Job], pods: Sequence[Pod], owner: str) -> Orphan | None:
    """Find a live pod that belongs to no Job of ``owner`` and that nothing is ending."""
    ours = {(job.stage, job.attempt) for job in jobs if job.owner == owner}
    theirs = {(job.stage, job.attempt): job for job in jobs if job.owner != owner}
    for pod in sorted(pods, key=lambda p: p.name):
        attempt = (pod.stage, pod.attempt)
        if pod.over or pod.deleted is not None or attempt in ours:
            continue
        job = theirs.get(attempt)
        if job is None:
            return Orphan(pod.name, f"pod {pod.name}")
        if not job.deleting:
            return Orphan(pod.name, f"job {job.name}")
    return None


def reports(
    events: Sequence[KubeEvent] | None, uid: str, since: datetime | None = None
) -> list[KubeEvent]:
    """Return the Events about an object since then, the newest of each reason, newest first.

    These are its warnings, or only the newest Event if a normal one is much newer than they are.
    """
    oldest = datetime.min.replace(tzinfo=UTC)
    mine = [
        e
        for e in events or ()
        if e.uid == uid and e.text and (since is None or e.time is None or e.time >= since)
    ]
    mine.sort(key=lambda e: e.time or oldest, reverse=True)
    normal = next((e.time for e in mine if not e.warning and e.time), oldest + _SLACK)
    warnings = [e for e in mine if e.warning and (e.time or normal) >= normal - _SLACK]
    by_reason: dict[str, KubeEvent] = {}
    for event in warnings or mine[:1]:
        by_reason.setdefault(event.text.partition(":")[0], event)
    return list(by_reason.values())[:LATEST]


# ---------------------------------------------------------------------- Jobs


def _missing(
    job: Job, pods: Sequence[Pod], desired: int, events: Sequence[KubeEvent] | None
) -> Iterator[Finding]:
    """Find a Job that has fewer pods than desired."""
    done = {p.index for p in pods if p.phase == "Succeeded"}
    there = sum(not p.over for p in pods)
    if there + len(done) >= desired or job.created is None:
        return
    ended = [p for p in pods if p.phase == "Failed"]
    times = [p.ended or p.created for p in ended] + [job.created]
    since = max(time for time in times if time is not None)
    newest = reports(events, job.uid, since)
    texts = tuple(e.text for e in newest)
    describe = f"kubectl describe job {job.name} -n {{namespace}} shows more"
    if job.managed_by:
        yield Finding(
            f"Job {job.name} has no pod: it is managed by the controller {job.managed_by} "
            "(spec.managedBy)",
            f"Check that {job.managed_by} is running, or find the webhook or admission policy "
            "that sets spec.managedBy on Jobs and exclude this namespace",
            since,
            job.uid,
            texts or job.notes,
        )
    elif newest and newest[0].warning:
        what = "its pod" if desired == 1 else f"{desired - there} of its {desired} pods"
        yield Finding(f"Job {job.name} cannot create {what}", describe, since, job.uid, texts)
    elif ended:
        last = max(ended, key=lambda p: (p.ended is not None, p.ended, p.name))
        code = "failed" if last.exit_code is None else f"ended with exit code {last.exit_code}"
        yield Finding(
            f"Pod {last.name} {code}; Job {job.name} starts another after a pause",
            LOGS,
            since,
            job.uid,
            tuple(tail_of(last).strip().splitlines()[-1:]),
            last,
        )
    else:
        what, reported = (
            f"Job {job.name} has created {there} of {desired} pods",
            texts or job.notes,
        )
        if not reported:
            what += "" if events is None else ", and no Event tells why"
            describe = f"Check that kube-controller-manager is running; {describe}"
        yield Finding(what, describe, since, job.uid, reported)


# ---------------------------------------------------------------------- pods


def _waiting(
    job: Job, pods: Sequence[Pod], events: Sequence[KubeEvent] | None
) -> Iterator[Finding]:
    """Find pods that do not start, do not become ready, or do not end."""
    for pod in sorted(pods, key=lambda p: p.index):
        if pod.over or pod.deleted is not None or pod.waits or pod.unschedulable:
            continue
        created = pod.created or job.created
        if pod.exit_code is not None:
            if (since := pod.ended or created) is not None:
                yield _not_ended(pod, since, events)
        elif created is None or pod.ready:
            continue
        elif not pod.scheduled:
            yield _not_scheduled(pod, created, events)
        else:
            since = pod.not_ready if pod.phase != "Pending" and pod.not_ready else created
            reported = (*_texts(pod, events), *pod.states)
            what = f"Pod {pod.name} on node {pod.node or '?'} has not started"
            if pod.phase != "Pending":
                what = f"Pod {pod.name} on node {pod.node or '?'} is running, but not ready"
            yield Finding(
                what,
                f"kubectl describe pod {pod.name} -n {{namespace}} shows more",
                since,
                pod.uid,
                reported,
                pod,
            )


def _texts(pod: Pod, events: Sequence[KubeEvent] | None) -> tuple[str, ...]:
    """Return the Events about a pod; once it has a node, without those about scheduling."""
    texts = (e.text for e in reports(events, pod.uid, pod.created))
    return tuple(t for t in texts if not (pod.node and t.startswith("FailedScheduling:")))


def _not_ended(pod: Pod, since: datetime, events: Sequence[KubeEvent] | None) -> Finding:
    if pod.still_running:
        return Finding(describe_sidecar(pod), sidecar_remedy(pod), since, pod.uid, (), pod)
    return Finding(
        f"The worker of pod {pod.name} has ended (exit code {pod.exit_code}), but its node "
        f"{pod.node} has not ended the pod",
        f"kubectl describe pod {pod.name} -n {{namespace}} shows more",
        since,
        pod.uid,
        _texts(pod, events),
        pod,
    )


def sidecar_remedy(pod: Pod) -> str:
    """Return the remedy for a sidecar that outlives the worker of ``pod``."""
    return f"Disable its injection with spec.stages.{pod.container}.podTemplate, {NATIVE}"


def describe_sidecar(pod: Pod) -> str:
    """Describe containers of ``pod`` that outlive its worker, or failed although it did not."""
    verb = "containers {} are" if len(pod.still_running) > 1 else "container {} is"
    others = f"{verb.format(' and '.join(pod.still_running))} still running"
    if not pod.still_running:
        others = " and ".join(pod.states) or "another container failed"
    return f"The worker of pod {pod.name} has ended (exit code {pod.exit_code}), but {others}"


def _not_scheduled(pod: Pod, since: datetime, events: Sequence[KubeEvent] | None) -> Finding:
    name = pod.scheduler or "default-scheduler"
    remedy = "Check that kube-scheduler is running"
    if name != "default-scheduler":
        remedy = f"Install {name}, or change spec.scheduling (schedulerName, gang)"
    return Finding(
        f"No scheduler has considered pod {pod.name}: its schedulerName is {name}",
        remedy,
        since,
        pod.uid,
        _texts(pod, events),
        pod,
    )
