"""Faults of Kueue and its queue: the manager killed, the queue held, its quota shrunk."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from control_plane.kueue import Kueue

from .schedule import QUEUE_GPUS, Fault
from .target import Target, retry

__all__ = ["FAULTS", "restore"]

V = TypeVar("V")
_manager = threading.Lock()  # one fault of the manager at a time


def _kueue(target: Target) -> Kueue:
    if target.testbed.kueue is None:
        raise OSError("this testbed has no Kueue")
    return target.testbed.kueue


def _kill_manager(target: Target, fault: Fault, rng: random.Random) -> str:
    kueue = _kueue(target)
    with _manager:
        kueue.stop(grace=fault.options["grace"])
        time.sleep(fault.seconds)
        retry(kueue.start, 120)  # the API server may be down meanwhile
    return "done"


def _hold_queue(target: Target, fault: Fault, rng: random.Random) -> str:
    change = partial(_kueue(target).set_stop_policy, target.queue)
    return _change_meanwhile(fault, change, fault.options["policy"], "None")


def _shrink_quota(target: Target, fault: Fault, rng: random.Random) -> str:
    change = partial(_kueue(target).set_quota, target.queue)
    return _change_meanwhile(fault, change, fault.options["gpus"], QUEUE_GPUS)


def _change_meanwhile(fault: Fault, change: Callable[[V], None], value: V, usual: V) -> str:
    """Set a value for the duration of the fault, then the usual one again."""
    change(value)
    try:
        time.sleep(fault.seconds)
    finally:
        retry(partial(change, usual), 120)  # the API server may be down meanwhile
    return "done"


def restore(target: Target) -> None:
    """Give the queue back its quota and let it admit, whatever faults left."""
    if target.testbed.kueue is not None:
        retry(partial(target.testbed.kueue.set_quota, target.queue, QUEUE_GPUS), 120)
        retry(partial(target.testbed.kueue.set_stop_policy, target.queue, "None"), 120)


FAULTS: dict[str, Callable[[Target, Fault, random.Random], str]] = {
    "Kueue killed": _kill_manager,
    "queue held": _hold_queue,
    "quota shrunk": _shrink_quota,
}
