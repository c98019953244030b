"""Change the number of nodes of an elastic training group, and report it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from video2world_operator.api.conditions import Reason, Type
from video2world_operator.api.status import GroupSizeStatus
from video2world_operator.api.timestamps import format_time, parse_time
from video2world_operator.plan import gang
from video2world_operator.plan.stage import Stage
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.failure_policy import fail_attempt
from video2world_operator.reconcile.failures import Failure
from video2world_operator.reconcile.group_size import Facts, Memory, Verdict, decide, size_at_start
from video2world_operator.reconcile.observed_state import Job, Pod

__all__ = ["accept_min_nodes", "begin_group", "resize"]


def accept_min_nodes(draft: Draft) -> None:
    """Make ``status.groupSize`` fit the spec, whose minNodes may change at any time."""
    spec, status, size = draft.resource.spec, draft.status, draft.status.group_size
    if size is None and len(spec.usable_nodes) > 1:
        size = status.group_size = GroupSizeStatus(asked=spec.nodes, running=spec.nodes)
    if size is None:
        return
    if len(spec.usable_nodes) < 2 and size.running == spec.nodes:
        del status.group_size
        kept = [c for c in status.conditions if c.type != Type.FULL_SIZE]
        status.conditions = kept
        return
    size.asked, size.usable = spec.nodes, list(spec.usable_nodes)
    size.text = f"{size.running}/{size.asked}"


def begin_group(draft: Draft) -> None:
    """Choose the size of a group that starts without an attempt before it."""
    if (size := draft.status.group_size) is not None:
        usable = draft.resource.spec.usable_nodes
        _set_size(size, size_at_start(usable, size.running, draft.observed.room))
        for name in ("waiting_since", "room_since", "failed_growths", "last_change"):
            delattr(size, name)
        if size.running < size.asked:
            _report(draft, "")


def resize(draft: Draft, stage: Stage, job: Job, pods: Sequence[Pod]) -> bool:
    """Return whether another attempt with more or fewer nodes follows the current one."""
    size = draft.status.group_size
    if size is None or job.deleting:
        return False
    facts = _facts(draft, size, job, pods)
    bound = timedelta(seconds=draft.policy.elastic_after)
    verdict = decide(facts, _remembered(size), bound, draft.now)
    _remember(size, verdict.memory)
    if facts.room is not None:
        size.available = facts.room
    elif "available" in size.model_fields_set:
        del size.available
    if verdict.check_at is not None:
        draft.is_due(verdict.check_at)
    if facts.lacking or size.running < size.asked:
        draft.requeue()  # nodes and quota are not watched
    if verdict.nodes == size.running:
        _report(draft, verdict.blocked)
        return False
    _change(draft, stage, size, verdict)
    return True


def _change(draft: Draft, stage: Stage, size: GroupSizeStatus, verdict: Verdict) -> None:
    """End the current attempt, which saves a checkpoint if it trains, and begin the next one."""
    reason = Reason.GROUP_GROWN if verdict.memory.grown else Reason.GROUP_SHRUNK
    _set_size(size, verdict.nodes)
    size.message, size.change_time = verdict.why, format_time(draft.now)
    facts = {"nodes": size.running, "asked": size.asked, "why": verdict.why}
    draft.set_condition(Type.FULL_SIZE, False, reason, **facts)
    why = reason.text(**facts).rstrip(".")
    fail_attempt(draft, stage, draft.entry(stage.name), Failure(str(reason), why))
    del draft.status.next_attempt_time  # nothing has failed that could fail again


def _set_size(size: GroupSizeStatus, nodes: int) -> None:
    size.running, size.text = nodes, f"{nodes}/{size.asked}"


def _facts(draft: Draft, size: GroupSizeStatus, job: Job, pods: Sequence[Pod]) -> Facts:
    nodes, queued = size.running, job.suspended and bool(job.queue)
    placed = sum(bool(pod.node) for pod in pods)
    # A pod without a node counts only once a scheduler has looked for one.
    refused = len(pods) < nodes or any(p.unschedulable for p in pods if not p.node)
    got: int | None = None
    if not queued:
        together = gang.choose(draft.resource, draft.observed.capabilities, nodes).scheduled is None
        if len(pods) < nodes:
            got = len(pods)  # a quota of the namespace
        elif not (together or draft.resource.spec.scheduling.scheduler_name):
            got = placed
    return Facts(
        nodes=nodes,
        usable=draft.resource.spec.usable_nodes,
        lacking=queued or (not job.suspended and placed < nodes and refused),
        running=not job.suspended and sum(pod.ready for pod in pods) == nodes,
        got=got,
        room=draft.observed.room,
        saved_at=_saved_at(draft),
    )


def _saved_at(draft: Draft) -> datetime | None:
    """Return the time of the newest checkpoint, if the current attempt has saved it."""
    checkpoint, records = draft.status.checkpoint, draft.status.attempts
    if checkpoint is None or not records or records[-1].end_time is not None:
        return None
    is_new = checkpoint.iteration > records[-1].start_iteration
    return parse_time(checkpoint.time) if is_new else None


def _report(draft: Draft, blocked: str) -> None:
    """Set the condition FullSize of an attempt that continues."""
    size = draft.status.group_size
    assert size is not None
    facts = {"nodes": size.running, "asked": size.asked}
    if blocked:
        draft.set_condition(Type.FULL_SIZE, False, Reason.GROUP_WAITING, why=blocked, **facts)
    elif size.running < size.asked:
        why = size.message or "fewer nodes could be had"
        draft.set_condition(Type.FULL_SIZE, False, Reason.GROUP_SHRUNK, why=why, **facts)
    elif size.waiting_since is None:
        del size.message
        draft.set_condition(Type.FULL_SIZE, True, Reason.GROUP_COMPLETE, **facts)


def _remembered(size: GroupSizeStatus) -> Memory:
    return Memory(
        waiting_since=parse_time(size.waiting_since),
        room_since=parse_time(size.room_since),
        changed=parse_time(size.change_time),
        failed_growths=size.failed_growths,
        grown=size.last_change == "Grown",
    )


def _remember(size: GroupSizeStatus, memory: Memory) -> None:
    for name, moment in (
        ("waiting_since", memory.waiting_since),
        ("room_since", memory.room_since),
        ("change_time", memory.changed),
    ):
        if moment is not None:
            setattr(size, name, format_time(moment))
        elif getattr(size, name) is not None:
            delattr(size, name)
    if memory.failed_growths != size.failed_growths:
        size.failed_growths = memory.failed_growths
    if memory.changed is not None:
        size.last_change = "Grown" if memory.grown else "Shrunk"
