"""The work queue: round-robin over tenants, one worker per key, no key is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time

from video2world_operator.kube.workqueue import WorkQueue


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


def test_urgent_keys_overtake_but_not_forever():
    order = []

    async def work(key):
        order.append(key)

    queue = WorkQueue(work, workers=1, urgent=lambda key: key[0] == "u")
    for number in range(4):
        queue.add(("calm", number))
    for number in range(8):
        queue.add(("u", number))
    run(queue, 0.2)
    assert [kind for kind, _ in order] == [
        *["u"] * 3,
        "calm",
        *["u"] * 3,
        "calm",
        *["u"] * 2,
        "calm",
        "calm",
    ]
    assert sorted(order) == sorted({*order})


def test_a_waiting_key_that_becomes_urgent_overtakes_once_it_is_added_again():
    order, failed = [], set()

    async def work(key):
        order.append(key)
        await asyncio.sleep(0.01)

    async def fail():
        await asyncio.sleep(0.035)
        failed.add(19)
        queue.add(19)

    queue = WorkQueue(work, workers=1, urgent=failed.__contains__)
    for number in range(20):
        queue.add(number)
    run(queue, 0.5, fail())
    assert sorted(order) == [*range(20)]
    assert order.index(19) < 8


def test_a_tenant_leaves_workers_to_others():
    at_once, most, waited = 0, 0, None

    async def work(key):
        nonlocal at_once, most, waited
        if key[0] == "quiet":
            waited = time.monotonic() - added
            return
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.2)
        at_once -= 1

    async def come():
        nonlocal added
        await asyncio.sleep(0.1)
        added = time.monotonic()
        queue.add(("quiet", 0))

    added = 0.0
    queue = WorkQueue(work, workers=8, tenant=lambda key: key[0], per_tenant=2)
    for number in range(6):
        queue.add(("noisy", number))
    run(queue, 0.8, come())
    assert most == 2
    assert waited is not None
    assert waited < 0.09
    assert queue.depth == 0


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


def test_a_delayed_key_comes_at_its_time_or_earlier_if_asked():
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


def test_a_failed_key_is_retried_and_holds_up_no_other():
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


def test_it_ends_when_cancelled_however_busy_it_is():
    async def work(key):
        await asyncio.sleep(0)

    async def cancelled_after(steps):
        queue = WorkQueue(work, workers=2)
        queue.add("later", 60)
        task = asyncio.create_task(queue.run())
        await asyncio.sleep(0.001)
        queue.add("a")
        for _ in range(steps):  # of the loop: the key is on its way through them
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=1)
        task.cancel()
        return bool(done)

    assert [asyncio.run(cancelled_after(steps)) for steps in range(12)] == [True] * 12
