"""Decide the number of nodes of the next attempt: tables, and worlds of nodes that come and go."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video2world_operator.reconcile.group_size import Facts, Memory, decide, largest, size_at_start

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
BOUND = timedelta(seconds=600)
USABLE = (4, 2, 1)


def ago(seconds):
    return NOW - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("facts", "since", "nodes", "said"),
    [
        ({}, 599, 4, ""),
        ({}, 600, 2, "not all of 4 nodes could be had for 600 s"),
        ({"room": 3}, 600, 2, "3 of 4 nodes could be had for 600 s"),
        ({"room": 1}, 600, 1, "1 of 4 nodes could be had for 600 s"),
        ({"room": 4}, 600, 2, "not all of 4 nodes"),  # though there seems to be room
        ({"room": 9, "got": 3}, 600, 2, "3 of 4"),
        ({"room": 2, "got": 1}, 600, 1, "1 of 4"),
        ({"nodes": 2}, 600, 1, "not all of 2 nodes"),
    ],
)
def test_an_attempt_without_all_its_nodes_shrinks_to_the_largest_usable_count(
    facts, since, nodes, said
):
    before = Facts(4, USABLE, lacking=True)
    verdict = decide(replace(before, **facts), Memory(ago(since)), BOUND, NOW)
    assert verdict.nodes == nodes
    assert said in verdict.why
    assert bool(verdict.why) == bool(said)
    if not said:
        assert verdict.check_at == ago(since) + BOUND


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"room": 1, "usable": (4, 2)}, "1 of 4 nodes could be had for 600 s, and usable are 2 or"),
        ({"room": 0}, "0 of 4 nodes could be had for 600 s, and usable are 1, 2 or more"),
        ({"usable": (4,)}, "and no smaller number is usable"),
        ({"nodes": 1}, "not all of 1 nodes could be had for 600 s, and no smaller number"),
        ({"got": 0, "room": 8}, "0 of 4 nodes"),
    ],
)
def test_an_attempt_waits_where_nothing_usable_can_be_had(facts, said):
    facts = replace(Facts(4, USABLE, lacking=True), **facts)
    verdict = decide(facts, Memory(ago(9999)), BOUND, NOW)
    assert verdict.nodes == facts.nodes
    assert said in verdict.blocked
    assert verdict.memory.waiting_since == ago(9999)


SHRUNK = Memory(changed=ago(5000))


@pytest.mark.parametrize(
    ("facts", "memory", "nodes"),
    [
        # since 700 s ago there has been room: since 100 s ago the group may grow
        ({"saved_at": ago(99)}, {}, 4),
        ({"saved_at": ago(101)}, {}, 2),
        ({"saved_at": None}, {}, 2),
        ({"saved_at": ago(99), "room": 3}, {}, 2),
        ({"saved_at": ago(99), "room": 9}, {}, 4),
        ({"saved_at": ago(99), "running": False}, {}, 2),
        ({"saved_at": ago(99), "lacking": True}, {}, 2),
        ({"saved_at": ago(99)}, {"changed": ago(650)}, 2),  # too soon after the last change
        ({"saved_at": ago(49)}, {"changed": ago(650)}, 4),
        # each growth that failed doubles the wait
        ({"saved_at": ago(1)}, {"failed_growths": 1}, 2),
        ({"saved_at": ago(1)}, {"failed_growths": 1, "room_since": ago(1300)}, 4),
        # what cannot be counted is tried rarely
        ({"saved_at": ago(1), "room": None}, {}, 2),
        ({"saved_at": ago(1), "room": None}, {"room_since": ago(4900)}, 4),
        ({"saved_at": ago(1), "room": None, "nodes": 1}, {"room_since": ago(4900)}, 2),
    ],
)
def test_a_group_grows_at_a_checkpoint_once_there_has_been_room(facts, memory, nodes):
    facts = replace(Facts(2, USABLE, running=True, room=4), **facts)
    memory = replace(SHRUNK, **{"room_since": ago(700)} | memory)
    verdict = decide(facts, memory, BOUND, NOW)
    assert verdict.nodes == nodes
    if nodes > facts.nodes:
        assert verdict.memory.grown
        assert verdict.memory.failed_growths == memory.failed_growths + 1
        assert verdict.memory.changed == NOW


def test_room_that_goes_away_again_has_to_last_anew():
    facts = Facts(2, USABLE, running=True, room=4, saved_at=ago(0))
    gone = decide(replace(facts, room=3), replace(SHRUNK, room_since=ago(700)), BOUND, NOW)
    assert gone.memory.room_since is None
    again = decide(facts, gone.memory, BOUND, NOW)
    assert (again.nodes, again.memory.room_since) == (2, NOW)


def test_a_grown_group_that_saved_a_checkpoint_has_not_failed():
    memory = Memory(changed=ago(9), failed_growths=3, grown=True)
    running = Facts(4, USABLE, running=True, room=4)
    assert decide(running, memory, BOUND, NOW).memory.failed_growths == 3
    saved = replace(running, saved_at=NOW)
    assert decide(saved, memory, BOUND, NOW).memory.failed_growths == 0


def test_times_from_a_clock_that_was_ahead_count_from_now():
    later = NOW + timedelta(days=1)
    verdict = decide(Facts(4, USABLE, lacking=True), Memory(later), BOUND, NOW)
    assert verdict.check_at == NOW + BOUND


@pytest.mark.parametrize(
    ("before", "room", "nodes"),
    [(4, None, 4), (4, 1, 4), (2, None, 4), (2, 4, 4), (2, 3, 2), (2, 1, 1), (2, 0, 4)],
)
def test_a_resumed_run_asks_for_all_nodes_unless_they_are_still_missing(before, room, nodes):
    assert size_at_start(USABLE, before, room) == nodes


class Simulation:
    """A run on a cluster whose nodes come and go, reconciled every so many seconds.

    The scheduler places all pods of a group or none. A node that goes takes the group down, which
    starts anew with as many nodes.
    """

    def __init__(self, usable, step, every, countable, gang):
        self.usable, self.step, self.every = usable, step, timedelta(seconds=every)
        self.countable, self.gang = countable, gang
        self.nodes, self.memory = usable[0], Memory()
        self.now, self.began, self.saved_at, self.placed = NOW, NOW, None, False
        self.changes = []  # time, nodes before and after

    def run(self, available, seconds):
        until = self.now + timedelta(seconds=seconds)
        while self.now < until:
            self.tick(available)
            self.now += timedelta(seconds=self.step)

    def tick(self, available):
        if self.placed and available < self.nodes:  # it fails, and is made again
            self.placed, self.began, self.saved_at = False, self.now, None
        elif not self.placed and available >= self.nodes:
            self.placed, self.began = True, self.now
        elif self.placed and self.now - (self.saved_at or self.began) >= self.every:
            self.saved_at = self.now
        facts = Facts(
            nodes=self.nodes,
            usable=self.usable,
            lacking=not self.placed,
            running=self.placed,
            got=None if self.gang or self.placed else available,
            room=available if self.countable else None,
            saved_at=self.saved_at,
        )
        verdict = decide(facts, self.memory, BOUND, self.now)
        self.memory = verdict.memory
        if verdict.nodes == self.nodes:
            return
        if verdict.nodes > self.nodes:
            assert self.placed
            assert self.saved_at is not None, "it grew without a checkpoint"
            assert self.saved_at > self.began
        else:
            assert not self.placed, "a running group was shrunk"
        self.changes.append((self.now, self.nodes, verdict.nodes))
        self.nodes, self.placed = verdict.nodes, False
        self.began, self.saved_at = self.now, None


GROUPS = [(4, 2, 1), (4, 2), (8, 4, 2, 1), (6, 3, 2), (32, 16, 8, 4), (2, 1)]


@settings(max_examples=60, deadline=None)
@given(
    usable=st.sampled_from(GROUPS),
    step=st.sampled_from([15, 60, 100]),
    every=st.sampled_from([120, 900, 4000]),
    countable=st.booleans(),
    gang=st.booleans(),
    history=st.lists(st.tuples(st.integers(0, 33), st.integers(60, 9000)), max_size=8),
)
def test_any_history_of_nodes_ends_in_full_size_without_flapping(
    usable, step, every, countable, gang, history
):
    world = Simulation(usable, step, every, countable, gang)
    for available, seconds in history:
        world.run(min(available, usable[0]), seconds)
    patience = 8 * 64 if not countable else 64
    world.run(usable[0], (patience * 600 + every + 1200) * (len(usable) if not countable else 1))
    assert world.nodes == usable[0]
    assert world.placed
    times = [moment for moment, _, _ in world.changes]
    for before, after in pairwise(times):
        assert after - before >= BOUND
    # with all nodes there, nothing changes any more
    settled = len(world.changes)
    world.run(usable[0], 20_000)
    assert len(world.changes) == settled


def test_nodes_that_flicker_faster_than_the_bound_change_nothing():
    world = Simulation(USABLE, 15, 300, True, True)
    for _ in range(20):
        world.run(4, 900)
        world.run(2, 500)
    assert world.changes == []
    world.run(2, 4000)
    assert [(a, b) for _, a, b in world.changes] == [(4, 2)]
    for _ in range(20):
        world.run(4, 500)
        world.run(2, 100)
    assert len(world.changes) == 1


@given(st.sampled_from(GROUPS), st.integers(0, 40))
def test_largest_is_usable_and_fits(usable, limit):
    found = largest(usable, limit)
    assert found is None or (found in usable and found <= limit)
    assert found == max((n for n in usable if n <= limit), default=None)
