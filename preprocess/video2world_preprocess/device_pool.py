"""Process items on all devices of a pod, in one process per device."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, TypeVar

import torch

from video2world_preprocess.item_faults import Crashed, reason_for
from video2world_preprocess.worker_pool import WorkerPool

__all__ = ["devices", "process_items"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def devices(device: str, processes: int | None) -> list[str]:
    """Return a device per process: by default one process per visible GPU, or one on the CPU."""
    if device != "cuda":
        return [device] * (processes or 1)
    count = torch.cuda.device_count()
    return [f"cuda:{index % count}" for index in range(processes or count)]


def _loaded(
    load: Callable[[str], Callable[[Any], Any]], output: Path, threads: int, device: str
) -> Callable[[Any], tuple[Any, str | None]]:
    """Load in a worker process."""
    torch.set_num_threads(threads)
    return functools.partial(_outcome, load(device), output)


def _outcome(work: Callable[[Any], Any], output: Path, item: Any) -> tuple[Any, str | None]:
    try:
        return work(item), None
    except Exception as error:
        return None, reason_for(error, output)


def process_items(
    load: Callable[[str], Callable[[Item], Result]],
    items: Iterable[Item],
    devices: list[str],
    output: Path,
) -> Iterator[tuple[Item, Result | None, str | None]]:
    """Yield each item with the result of ``load(device)(item)``, as items are finished.

    ``load`` is called once per process. An item without a result comes with the reason instead: an
    error, or the end of the process that worked on it.

    Raises:
        OSError: nothing can be written to the folder ``output``, or a process cannot load.
        Exception: whatever ``load`` raises.
    """
    if len(devices) == 1:
        work = load(devices[0])
        for item in items:
            yield item, *_outcome(work, output, item)
        return
    threads = max(1, len(os.sched_getaffinity(0)) // len(devices))
    with WorkerPool(functools.partial(_loaded, load, output, threads), devices) as pool:
        futures = {pool.submit(item): item for item in items}
        for future in as_completed(futures):
            try:
                yield futures[future], *future.result()
            except Crashed as error:
                reason = f"{reason_for(error, output)}; give the stage more memory (spec.stages)"
                yield futures[future], None, reason
