"""Work spread over the devices of a pod: a process for each, this one alone where there is one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, TypeVar

import torch

from video2world_preprocess.item_faults import Crashed, reason_for
from video2world_preprocess.worker_pool import Helpers

__all__ = ["devices", "spread"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def devices(device: str, processes: int | None) -> list[str]:
    """A device for each process: every GPU that is visible, or one CPU, unless told otherwise."""
    if device != "cuda":
        return [device] * (processes or 1)
    count = torch.cuda.device_count()
    return [f"cuda:{index % count}" for index in range(processes or count)]


def _loaded(
    load: Callable[[str], Callable[[Any], Any]], output: Path, threads: int, device: str
) -> Callable[[Any], tuple[Any, str | None]]:
    """Load in a helper process."""
    torch.set_num_threads(threads)
    return functools.partial(_outcome, load(device), output)


def _outcome(work: Callable[[Any], Any], output: Path, item: Any) -> tuple[Any, str | None]:
    try:
        return work(item), None
    except Exception as error:
        return None, reason_for(error, output)


def spread(
    load: Callable[[str], Callable[[Item], Result]],
    items: Iterable[Item],
    on: list[str],
    output: Path,
) -> Iterator[tuple[Item, Result | None, str | None]]:
    """Yield each item with the result of ``load(device)(item)``, as it is done.

    ``load`` is called once a device. In place of a result there is the reason why an item has
    none: an error, or the end of the process that worked on it.

    Raises:
        OSError: nothing can be written into the folder ``output``, a process cannot load, or the
            like; and what ``load`` raises.
    """
    if len(on) == 1:
        work = load(on[0])
        for item in items:
            yield item, *_outcome(work, output, item)
        return
    threads = max(1, len(os.sched_getaffinity(0)) // len(on))
    with Helpers(functools.partial(_loaded, load, output, threads), on) as helpers:
        futures = {helpers.submit(item): item for item in items}
        for future in as_completed(futures):
            try:
                yield futures[future], *future.result()
            except Crashed as error:
                reason = f"{reason_for(error, output)}; give the stage more memory (spec.stages)"
                yield futures[future], None, reason
