"""Define how far a worker's log has been read."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from video2world_operator.reconcile.observed_state import Pod

MAX_TOLD = 1000  # events of a worker that are kept while its resource cannot be written


@dataclass
class _Log:
    """How far a pod's log has been read."""

    read_at: float = field(default_factory=time.monotonic)  # nothing is told at the start
    since: str = ""  # time stamp of the last line read
    lines: int = 0  # lines read that bear it
    final: bool = False


def _tells(pod: Pod, pods: Iterable[Pod]) -> bool:
    """Whether a pod's log is read: the first one's; where samples are shared between pods, each of
    which tells of the whole, the first one's that is still at work, and what the others left."""
    if pod.container != "inference":
        return pod.index == 0
    if pod.over:
        return True
    beside = [
        p.index for p in pods if (p.stage, p.attempt) == (pod.stage, pod.attempt) and not p.over
    ]
    return pod.index == min(beside)
