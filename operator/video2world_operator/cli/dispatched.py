"""Say where a resource of MultiKueue runs, or why it is not sent to another cluster."""

from __future__ import annotations

from collections.abc import Iterator

from video2world_operator.cli.remedies import Cause
from video2world_operator.preflight.dispatch import DispatchFacts, who_manages

__all__ = ["dispatch_causes", "dispatch_note"]


def dispatch_note(facts: DispatchFacts, suspended: bool) -> str:
    """Return one line about it for `v2w status`."""
    if suspended:
        return "(suspended: it runs in no cluster; what is shown is its last state)"
    if nobody := who_manages(facts):
        return f"(managed by nobody: {nobody.what})"
    if facts.cluster:
        return f"({'ran' if facts.finished else 'runs'} in cluster {facts.cluster})"
    if facts.waits:
        return f"(waits in queue {facts.queue} for a cluster: {facts.waits})"
    return "(no operator has queued it for another cluster)" if facts.workload is None else ""


def dispatch_causes(facts: DispatchFacts) -> Iterator[Cause]:
    """Explain why a resource that is not suspended runs in no cluster."""
    if nobody := who_manages(facts):
        remedy = f"{nobody.remedy[:1].upper()}{nobody.remedy[1:]}"
        yield Cause(f"This resource is managed by nobody: {nobody.what}.", remedy)
    elif facts.waits and facts.workload is not None:
        about = facts.workload["metadata"]
        yield Cause(
            f"It waits in queue {facts.queue} for a cluster that can run it.",
            f"Wait, or raise the quota of the queues: kubectl describe workload {about['name']} "
            f"-n {about['namespace']}, here and in the other clusters",
            facts.waits,
        )
