"""Say where a resource of MultiKueue runs, or why it is not sent to another cluster."""

from __future__ import annotations

from collections.abc import Iterator

from video2world_operator.cli.remedies import Cause
from video2world_operator.preflight.dispatch import DispatchFacts, why_unmanaged

__all__ = ["dispatch_causes", "dispatch_note"]


def dispatch_note(facts: DispatchFacts, suspended: bool) -> str:
    """Return one line about it for `v2w status`."""
    if suspended:
        return "(suspended: it runs in no cluster; what is shown is its last state)"
    if unmanaged := why_unmanaged(facts):
        return f"(managed by no controller: {unmanaged.what})"
    if facts.cluster:
        return f"({'ran' if facts.finished else 'runs'} in cluster {facts.cluster})"
    if facts.waits:
        return f"(waits in queue {facts.queue} for a cluster: {facts.waits})"
    return "(no operator has queued it for another cluster)" if facts.workload is None else ""


def dispatch_causes(facts: DispatchFacts) -> Iterator[Cause]:
    """Explain why a resource that is not suspended runs in no cluster."""
    if unmanaged := why_unmanaged(facts):
        remedy = f"{unmanaged.remedy[:1].upper()}{unmanaged.remedy[1:]}"
        yield Cause(f"No controller manages this resource: {unmanaged.what}.", remedy)
    elif facts.waits and facts.workload is not None:
        about = facts.workload["metadata"]
        yield Cause(
            f"It waits in queue {facts.queue} for a cluster that can run it.",
            f"Wait, or raise the quota of the queues: kubectl describe workload {about['name']} "
            f"-n {about['namespace']}, here and in the other clusters",
            facts.waits,
        )
