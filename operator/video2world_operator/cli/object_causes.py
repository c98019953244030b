"""Find causes in a resource's PVC, Job and pods, and in the events about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from video2world_common.progress_events import duration
from video2world_operator.api.conditions import Reason
from video2world_operator.cli.remedies import Cause, Remedies
from video2world_operator.cli.snapshot import KubeObject
from video2world_operator.reconcile.observed_state import Job, KubeEvent, Pod
from video2world_operator.reconcile.reason_remedies import BY_REASON
from video2world_operator.reconcile.stuck_stages import Finding, judge, reports

__all__ = [
    "blocked_pods",
    "group_reports",
    "pvc_causes",
    "stuck_job",
    "suspended_job",
    "terminating_pods",
    "workload_reports",
]

GANG = "pod group is unschedulable"  # how the scheduler's message about a waiting group begins


def pvc_causes(
    pvc: KubeObject, events: Sequence[KubeEvent], remedies: Remedies, *, deletion_reported: bool
) -> Iterator[Cause]:
    """Explain a PVC that is being deleted, unless the conditions say so, or is not bound."""
    name = pvc["metadata"]["name"]
    if "deletionTimestamp" in pvc["metadata"]:
        if not deletion_reported:
            text = Reason.CLAIM_DELETED.text(claim=name)
            yield Cause(text, remedies.fill(BY_REASON[Reason.CLAIM_DELETED]))
        return
    if (pvc.get("status") or {}).get("phase") != "Pending":
        return
    reported = reports(events, pvc["metadata"].get("uid", ""))
    if cause := remedies.known(*(event.text for event in reported)):
        yield cause
    elif reported and reported[0].warning:
        remedy = f"kubectl describe pvc {name} -n {remedies.namespace} shows more"
        yield Cause(f"PVC {name} is not bound.", remedy, reported[0].text)


def terminating_pods(pods: Sequence[Pod], now: datetime) -> Iterator[Cause]:
    """Explain pods that have outlived their grace period."""
    for pod in pods:
        if _is_terminating(pod) and pod.deleted is not None and now > pod.deleted:
            yield Cause(
                f"Pod {pod.name} does not terminate: its node {pod.node} is not responding.",
                "The operator deletes it by force after a minute; check the node: kubectl "
                f"describe node {pod.node}",
            )


def blocked_pods(
    pods: Sequence[Pod], remedies: Remedies, group: Sequence[str] = ()
) -> Iterator[Cause]:
    """Explain pods that cannot be scheduled or started, once for each text.

    ``group`` are the Events about their PodGroup: Volcano tells only there what the group lacks.
    """
    blocked: dict[str, Pod] = {}
    for pod in pods:
        text = pod.waits or pod.unschedulable
        if text and not _is_terminating(pod):
            blocked.setdefault(text, pod)
    # A pod that waits for its group says less than the pod that the group waits for.
    alone = {text: pod for text, pod in blocked.items() if not text.startswith(GANG)}
    for text, pod in (alone or blocked).items():
        if pod.unschedulable and (cause := remedies.known(*group, pod=pod)):
            yield Cause(cause.what, cause.remedy, "\n".join([*group[:1], text]))
            continue
        yield remedies.known(text, pod=pod) or _blocked_pod(pod, text, remedies)


def _blocked_pod(pod: Pod, text: str, remedies: Remedies) -> Cause:
    what = "is waiting for a node" if pod.unschedulable else "cannot start its container"
    remedy = f"kubectl describe pod {pod.name} -n {remedies.namespace} shows more"
    return Cause(f"Pod {pod.name} {what}.", remedy, text)


def _is_terminating(pod: Pod) -> bool:
    return pod.deleted is not None and not pod.over


def suspended_job(job: Job, events: Sequence[KubeEvent], remedies: Remedies) -> Iterator[Cause]:
    """Explain a Job that is suspended without being in a queue."""
    if job.suspended and not job.queue:
        text = Reason.JOB_SUSPENDED.text(
            stage=job.stage, job=job.name, namespace=remedies.namespace
        )
        reported = [event.text for event in reports(events, job.uid)]
        yield Cause(text, remedies.fill(BY_REASON[Reason.JOB_SUSPENDED]), "\n".join(reported))


def stuck_job(
    job: Job,
    pods: Sequence[Pod],
    desired: int,
    events: Sequence[KubeEvent],
    remedies: Remedies,
    now: datetime,
    bound: float,
) -> Iterator[Cause]:
    """Explain a Job without progress: known errors at once, others after ``bound`` seconds."""
    for finding in judge(job, pods, desired, events, now, 0).findings:
        overdue = now - finding.since >= timedelta(seconds=bound)
        if overdue or remedies.known(*finding.evidence):
            yield _stuck(finding, remedies, now)


def _stuck(finding: Finding, remedies: Remedies, now: datetime) -> Cause:
    age = duration(max((now - finding.since).total_seconds(), 0))
    what = f"{finding.what}; no progress for {age}."
    reported = "\n".join(finding.evidence)
    if cause := remedies.known(*finding.evidence, pod=finding.pod):
        return Cause(cause.what, cause.remedy, f"{reported}\n{what}")
    return Cause(what, remedies.fill(finding.remedy, finding.pod), reported)


def group_reports(job_name: str, job: Job | None, events: Sequence[KubeEvent]) -> list[str]:
    """Return what was reported of the PodGroup of a Job, which has its name, newest first."""
    since = job.created if job else None
    about = [
        event
        for event in events
        if (event.kind, event.name) == ("PodGroup", job_name)
        and (since is None or event.time is None or event.time >= since)
    ]
    about.sort(key=lambda event: event.time.timestamp() if event.time else 0.0, reverse=True)
    return [event.text for event in about]


def workload_reports(job_name: str, job: Job | None, events: Sequence[KubeEvent]) -> list[str]:
    """Return what Kueue reported of a Job's Workload, whose name begins with the Job's."""
    uids = dict.fromkeys(
        event.uid
        for event in events
        if event.kind == "Workload" and event.name.startswith(f"job-{job_name}-")
    )
    since = job.created if job else None
    return [event.text for uid in uids for event in reports(events, uid, since)]
