"""Diagnose why an attempt ended, and whether that counts against the backoff limit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from video2world_common.exit_codes import EXIT_USER_ERROR
from video2world_common.progress_events import Failed, parse
from video2world_operator.api.conditions import Reason
from video2world_operator.reconcile.observed_state import Job, Pod

__all__ = ["REASONS", "Failure", "diagnose", "tail_of"]

EXIT_SAVED = 143  # of a worker that has saved its state on SIGTERM
MAX_TAIL = 2048  # characters
_NEVER = datetime.max.replace(tzinfo=UTC)

# Reasons of the pod condition DisruptionTarget (kubernetes.io/docs/concepts/workloads/pods/
# disruptions): the platform ended the pod, so that a restart does not count.
_DISRUPTIONS = {
    "PreemptionByScheduler": ("Preempted", "preempted by a pod of higher priority"),
    "DeletionByTaintManager": ("NodeLost", "deleted because its node was lost or tainted"),
    "EvictionByEvictionAPI": ("Evicted", "evicted, for example because its node is being drained"),
    "DeletionByPodGC": ("NodeLost", "deleted because its node no longer exists"),
    "TerminationByKubelet": ("Evicted", "stopped by its node (resource pressure or shutdown)"),
}
_POD_REASONS = {
    "NodeLost": "NodeLost",
    "Evicted": "Evicted",
    "Shutdown": "Evicted",
    "NodeShutdown": "Evicted",
    "Terminated": "Evicted",
    "NodeAffinity": "NodeLost",
    "UnexpectedAdmissionError": "NodeLost",
    "Preempting": "Preempted",
}
REASONS = frozenset(
    {reason for reason, _ in _DISRUPTIONS.values()}
    | set(_POD_REASONS.values())
    | {"Crashed", "Disrupted", "JobDeleted", "JobFailed", "OutOfMemory", "PodDeleted"}
    | {"SpecChanged", "VolumeLost"}
    | {str(Reason.GROUP_SHRUNK), str(Reason.GROUP_GROWN)}
    | {"Terminated", "UserError"}
)


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended.

    ``reason`` is one of :data:`REASONS`; ``message`` has the evidence. After a ``final`` failure
    another attempt is pointless.
    """

    reason: str
    message: str
    counted: bool = False  # against the backoff limit
    final: bool = False
    exit_code: int | None = None
    tail: str = ""


def diagnose(job: Job | None, pods: Sequence[Pod]) -> Failure | None:
    """Return why the attempt with this Job and these pods cannot continue; None while it can.

    A user error takes precedence, then disruptions by the platform, since the other pods crash
    when they lose a peer, then an end with saved state, and a crash comes last.
    """
    if job is not None and job.complete:
        return None
    failed = sorted(
        (p for p in pods if p.exit_code not in (None, 0) or p.phase == "Failed"),
        key=lambda p: (p.ended or _NEVER, p.index),  # the first failure is the cause
    )
    for pod in failed:
        if pod.exit_code == EXIT_USER_ERROR:
            said = (
                _worker_error(pod)
                or f"pod {pod.name} rejected its input (exit code {EXIT_USER_ERROR})"
            )
            return Failure("UserError", said, final=True, exit_code=2, tail=tail_of(pod))
    for pod in pods:
        if (disruption := _disruption(pod)) is not None:
            return disruption
    for pod in pods:
        if pod.deleted is not None and pod.phase != "Succeeded" and not _after_a_crash(pod, failed):
            return Failure("PodDeleted", f"pod {pod.name} was deleted", exit_code=pod.exit_code)
    if job is None or job.deleting:
        return Failure("JobDeleted", "its Job was deleted")
    crashed = [p for p in failed if p.exit_code != EXIT_SAVED]
    if failed and not crashed:
        pod = failed[0]
        return Failure(
            "Terminated",
            f"pod {pod.name} was stopped from outside; its state is saved",
            exit_code=EXIT_SAVED,
        )
    if crashed:
        return _crash(crashed[0])
    if job.failed:  # the pod that crashed was deleted before it was seen
        return Failure("JobFailed", job.message or job.failed)
    return None


def _after_a_crash(pod: Pod, failed: Sequence[Pod]) -> bool:
    """Return whether a pod was deleted after another had crashed, as the Job controller does.

    Times are in whole seconds. A crash in the same second counts as the cause: after a manual
    deletion the other pods take longer to crash.
    """
    return any(
        other.deleted is None
        and other.exit_code not in (None, EXIT_SAVED)
        and other.ended is not None
        and pod.deletion_requested is not None
        and other.ended <= pod.deletion_requested
        for other in failed
    )


def _disruption(pod: Pod) -> Failure | None:
    if pod.disruption:
        unknown = ("Disrupted", f"disrupted ({pod.disruption})")
        reason, what = _DISRUPTIONS.get(pod.disruption, unknown)
        details = f": {pod.disruption_message}" if pod.disruption_message else ""
        node = f" on {pod.node}" if pod.node else ""
        message = f"pod {pod.name}{node} was {what}{details}"
        return Failure(reason, message, exit_code=pod.exit_code)
    if pod.phase == "Failed" and pod.reason in _POD_REASONS:
        reason = _POD_REASONS[pod.reason]
        return Failure(reason, f"pod {pod.name} on {pod.node} failed: {pod.reason}")
    return None


def _crash(pod: Pod) -> Failure:
    code = pod.exit_code
    if pod.reason == "OOMKilled":
        message = (
            f"pod {pod.name} ran out of memory: raise "
            f"spec.stages.{pod.container}.resources.limits.memory, or lower spec.training.batchSize"
        )
        return Failure("OutOfMemory", message, counted=True, exit_code=code, tail=tail_of(pod))
    said = _worker_error(pod)
    ended = f"ended with exit code {code}" if code is not None else f"failed ({pod.reason})"
    message = f"pod {pod.name} {ended}" + (f": {said}" if said else "")
    return Failure("Crashed", message, counted=True, exit_code=code, tail=tail_of(pod))


def _worker_error(pod: Pod) -> str:
    """Return the reason that the worker itself gives in the last lines of its log."""
    lines = pod.tail.splitlines()
    for line in reversed(lines):
        if isinstance(event := parse(line), Failed) and event.message:
            return event.message
    for line in reversed(lines):
        if match := re.match(r"(?:error: |[\w.]*(?:Error|Exception): )(.+)", line):
            return match[0].removeprefix("error: ")[:500]
    return ""


def tail_of(pod: Pod) -> str:
    """Return the last lines of a failed pod's log without the event lines."""
    lines = [line for line in pod.tail.splitlines() if parse(line) is None]
    return "\n".join(lines)[-MAX_TAIL:]
