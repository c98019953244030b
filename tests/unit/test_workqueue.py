"""The work queue: tenants take turns, nothing is worked on twice at once, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib

from video2world_operator.workqueue import WorkQueue


def run(queue, seconds, also=None):
    async def both():
        task = asyncio.create_task(queue.run())
        if also is not None:
            await also
        await asyncio.sleep(seconds)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(both())


def test_a_tenant_with_many_keys_holds_another_up_by_one_key_at_most():
    order = []

    async def work(key):
        order.append(key)
        await asyncio.sleep(0.001)

    queue = WorkQueue(work, workers=1, tenant=lambda key: key[0])
    for number in range(50):
        queue.add(("noisy", number))
    for number in range(3):
        queue.add(("quiet", number))
    run(queue, 0.5)
    assert len(order) == 53
    assert [order.index(("quiet", n)) for n in range(3)] == [1, 3, 5]


def test_a_key_added_while_it_is_worked_on_is_worked_on_once_more_and_never_twice_at_once():
    at_once = most = rounds = 0

    async def work(key):
        nonlocal at_once, most, rounds
        at_once += 1
        most, rounds = max(most, at_once), rounds + 1
        await asyncio.sleep(0.05)
        at_once -= 1

    queue = WorkQueue(work, workers=4)
    queue.add("a")

    async def more():
        await asyncio.sleep(0.02)
        for _ in range(5):
            queue.add("a")

    run(queue, 0.3, more())
    assert (most, rounds) == (1, 2)


def test_a_key_put_off_comes_at_its_time_and_earlier_if_asked():
    seen = []

    async def work(key):
        seen.append(key)

    async def add():
        queue.add("later", 0.2)
        queue.add("sooner", 5)
        queue.add("sooner", 0)
        queue.add("never", 0.1)
        queue.forget("never")

    queue = WorkQueue(work)
    run(queue, 0.5, add())
    assert seen == ["sooner", "later"]


def test_what_fails_comes_again_and_holds_nobody_up():
    seen = []

    async def work(key):
        seen.append(key)
        if key == "bad" and seen.count("bad") < 3:
            raise OSError("no")

    queue = WorkQueue(work, first_delay=0.05, expected=(OSError,))
    queue.add("bad")
    queue.add("good")
    run(queue, 0.5)
    assert seen.count("bad") == 3
    assert seen.count("good") == 1
    assert queue.depth == 0
