"""Decide how many nodes the next attempt at training has: a pure function of facts and the time.

A group shrinks only while it does not train: its attempt has lacked nodes for longer than a bound.
It grows only while it trains, once more nodes could be had for that long, at the first checkpoint
after that. So a change follows the one before after the bound at the earliest, and no group is
drained that has not saved anything new.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

__all__ = ["Facts", "Memory", "Verdict", "decide", "largest", "size_at_start"]

UNKNOWN_ROOM = 8  # times longer until a group grows into room that could not be counted
MAX_DOUBLINGS = 6


@dataclass(frozen=True)
class Facts:
    """What is known about the current attempt, which has ``nodes``, and about the cluster.

    ``usable`` are the node counts that an attempt may have, largest first. ``lacking``: it has not
    got all its nodes. ``running``: it has, and all are ready. ``got`` is how many it has got, if
    that shows how many can be had; ``room`` how many nodes and quota have room for. None: unknown.
    ``saved_at`` is the time of the newest checkpoint that was saved since its start.
    """

    nodes: int
    usable: tuple[int, ...]
    lacking: bool = False
    running: bool = False
    got: int | None = None
    room: int | None = None
    saved_at: datetime | None = None


@dataclass(frozen=True)
class Memory:
    """What is remembered from one decision to the next."""

    waiting_since: datetime | None = None  # the attempt has lacked nodes
    room_since: datetime | None = None  # more nodes could be had
    changed: datetime | None = None
    failed_growths: int = 0  # in a row; reset once a grown group has saved a checkpoint
    grown: bool = False  # whether the last change was growth


@dataclass(frozen=True)
class Verdict:
    """The number of nodes: that of the current attempt, unless another one is to follow.

    ``why`` tells why it changes, or ``blocked`` why it cannot although the attempt has waited for
    too long. Decide again at ``check_at``, if nothing happens until then.
    """

    nodes: int
    memory: Memory
    why: str = ""
    blocked: str = ""
    check_at: datetime | None = None


def decide(facts: Facts, memory: Memory, bound: timedelta, now: datetime) -> Verdict:
    """Decide whether the current attempt continues, or another with more or fewer nodes follows.

    ``bound`` is how long an attempt lacks nodes before it shrinks, and how long there is room for
    more before it grows.
    """
    memory = replace(
        memory,
        waiting_since=_past(memory.waiting_since, now),
        room_since=_past(memory.room_since, now),
        changed=_past(memory.changed, now),
    )
    if facts.lacking:
        return _shrink(facts, replace(memory, room_since=None), bound, now)
    memory = replace(memory, waiting_since=None)
    if memory.grown and facts.running and facts.saved_at:
        memory = replace(memory, failed_growths=0)
    if facts.running and facts.usable and facts.nodes < facts.usable[0]:
        return _grow(facts, memory, bound, now)
    return Verdict(facts.nodes, replace(memory, room_since=None))


def largest(usable: tuple[int, ...], limit: int) -> int | None:
    """Return the largest usable count up to ``limit``; None if there is none."""
    return next((count for count in usable if count <= limit), None)


def size_at_start(usable: tuple[int, ...], before: int, room: int | None) -> int:
    """Return the nodes of a first attempt, or of one that resumes a suspended run.

    It asks for all nodes, unless the run had fewer ``before`` and there is still no room for all.
    """
    if room is not None and before < usable[0] and room < usable[0]:
        return largest(usable, room) or usable[0]
    return usable[0]


def _past(moment: datetime | None, now: datetime) -> datetime | None:
    """Return ``moment``, at most ``now``: it may have been written when the clock was ahead."""
    return moment if moment is None else min(moment, now)


def _shrink(facts: Facts, memory: Memory, bound: timedelta, now: datetime) -> Verdict:
    since = memory.waiting_since or now
    memory = replace(memory, waiting_since=since)
    if now < since + bound:
        return Verdict(facts.nodes, memory, check_at=since + bound)
    smaller = tuple(count for count in facts.usable if count < facts.nodes)
    known = [count for count in (facts.got, facts.room) if count is not None]
    can = min([*known, facts.nodes])
    target = largest(smaller, can)
    seconds = f"{bound.total_seconds():.0f}"
    if can < facts.nodes:
        found = f"{can} of {facts.nodes} nodes could be had for {seconds} s"
    else:
        found = f"not all of {facts.nodes} nodes could be had for {seconds} s"
    if target is None:
        counts = ", ".join(map(str, reversed(smaller)))
        rest = f"usable are {counts} or more" if smaller else "no smaller number is usable"
        return Verdict(facts.nodes, memory, blocked=f"{found}, and {rest}")
    changed = replace(memory, waiting_since=None, changed=now, grown=False)
    return Verdict(target, changed, why=found)


def _grow(facts: Facts, memory: Memory, bound: timedelta, now: datetime) -> Verdict:
    larger = tuple(count for count in facts.usable if count > facts.nodes)
    target = larger[-1] if facts.room is None else largest(larger, facts.room)
    if target is None:
        return Verdict(facts.nodes, replace(memory, room_since=None))
    since = memory.room_since or now
    memory = replace(memory, room_since=since)
    patience = bound * 2 ** min(memory.failed_growths, MAX_DOUBLINGS)
    if facts.room is None:
        patience *= UNKNOWN_ROOM
    due = max(since, memory.changed or since) + patience
    if now < due:
        return Verdict(facts.nodes, memory, check_at=due)
    if facts.saved_at is None or facts.saved_at < due:
        return Verdict(facts.nodes, memory)  # until the next checkpoint, whose event wakes us
    if facts.room is None:
        why = "it is unknown how many nodes can be had, so more are tried"
    else:
        why = f"{facts.room} nodes can be had"
    failed = memory.failed_growths + 1  # until it has run
    changed = replace(memory, room_since=None, changed=now, grown=True, failed_growths=failed)
    return Verdict(target, changed, why=why)
