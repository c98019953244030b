"""Work spread over the devices of a pod: a process for each, this one alone where there is one."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from .stage import end_helpers, end_with_parent

__all__ = ["devices", "spread"]

Item = TypeVar("Item")
Result = TypeVar("Result")
_work: Callable[[Any], Any]


def devices(device: str, processes: int | None) -> list[str]:
    """A device for each process: every GPU that is visible, or one CPU, unless told otherwise."""
    if device != "cuda":
        return [device] * (processes or 1)
    count = torch.cuda.device_count()
    return [f"cuda:{index % count}" for index in range(processes or count)]


def _start(load: Callable[[str], Callable[[Any], Any]], waiting: Any, threads: int) -> None:
    global _work
    end_with_parent()
    torch.set_num_threads(threads)
    _work = load(waiting.get())


def _run(item: Any) -> Any:
    return _work(item)


def spread(
    load: Callable[[str], Callable[[Item], Result]], items: Iterable[Item], on: list[str]
) -> Iterator[tuple[Item, Result]]:
    """Yield ``(item, load(device)(item))`` as each is done; ``load`` is called once a device.

    Raises:
        OSError: a worker process was killed; and what ``load`` and its work raise.
    """
    if len(on) == 1:
        work = load(on[0])
        for item in items:
            yield item, work(item)
        return
    context = multiprocessing.get_context("spawn")
    waiting = context.Queue()
    for device in on:
        waiting.put(device)
    threads = max(1, len(os.sched_getaffinity(0)) // len(on))
    pool = ProcessPoolExecutor(
        len(on), context, initializer=_start, initargs=(load, waiting, threads)
    )
    try:
        futures = {pool.submit(_run, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        end_helpers()
        if isinstance(error, BrokenProcessPool):
            raise OSError(
                "a worker process could not load what it needs, or was killed for want of memory: "
                "see above, or give the stage more memory (spec.stages)"
            ) from None
        raise
    pool.shutdown()
