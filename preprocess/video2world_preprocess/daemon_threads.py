"""Apply a function to items in daemon threads: a terminating pod does not wait for downloads."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["in_daemon_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_daemon_threads(
    work: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Iterator[Result]:
    """Yield the result of ``work`` for each item, in any order.

    After an error, threads start no further item.

    Raises:
        BaseException: that of the first item that failed.
    """
    tasks: queue.SimpleQueue[Item] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()
    stopped = threading.Event()
    for item in items:
        tasks.put(item)

    def serve() -> None:
        with contextlib.suppress(queue.Empty):
            while not stopped.is_set():
                item, outcome = tasks.get_nowait(), Future[Result]()
                try:
                    outcome.set_result(work(item))
                except BaseException as error:
                    outcome.set_exception(error)
                outcomes.put(outcome)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=serve, daemon=True).start()
    try:
        for _ in items:
            yield outcomes.get().result()
    finally:
        stopped.set()
