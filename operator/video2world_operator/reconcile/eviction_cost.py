"""Tell what an eviction of the training group would cost now, in GPU seconds.

The status has the figure, and the train Job an annotation for schedulers and scripts that choose
what to evict: it is written only when the cost has doubled or fallen, so that a run's Job is
written a few times between two checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from video2world_common.progress_events import duration
from video2world_operator.api.status import EvictionCost, Status
from video2world_operator.api.timestamps import format_time, parse_time
from video2world_operator.reconcile.observed_state import Pod

__all__ = ["announced", "describe", "gpu_seconds_at", "observe"]

FIRST_STEP = 3600.0  # GPU seconds: less is announced as 0
SHORTEST_STEP = 60.0  # seconds between two writes, with as many GPUs as it takes


def observe(status: Status, pods: Sequence[Pod], gpus: int, nodes: int, now: datetime) -> None:
    """Bring ``status.evictionCost`` up to date; there is none while no GPU is held.

    ``pods`` are those of the running attempt; ``gpus`` is the total of all ``nodes`` of them.
    """
    running = [pod.started for pod in pods if pod.started and not pod.ended]
    saved = parse_time(status.checkpoint.time) if status.checkpoint else None
    held = gpus * len(running) // nodes
    if not held or not status.attempts or status.attempts[-1].end_time:
        del status.eviction_cost
        return
    since = max([*([saved] if saved else []), min(running)])
    status.eviction_cost = EvictionCost(
        gpu_seconds=round(max(0.0, (now - since).total_seconds()) * held, 1),
        gpus=held,
        since=format_time(since),
    )


def gpu_seconds_at(cost: EvictionCost, now: datetime) -> float:
    """Return the cost at ``now``, from one that was written before."""
    since = parse_time(cost.since)
    return max(0.0, (now - since).total_seconds()) * cost.gpus if since else cost.gpu_seconds


def announced(cost: EvictionCost | None) -> int:
    """Return the value of the annotation: the cost, rounded down to a power of two of a step."""
    if cost is None:
        return 0
    step = max(FIRST_STEP, SHORTEST_STEP * cost.gpus)
    if cost.gpu_seconds < step:
        return 0
    doublings = math.floor(math.log2(cost.gpu_seconds / step))
    return round(math.ldexp(step, doublings))


def describe(cost: EvictionCost, now: datetime) -> str:
    """Say what an eviction would lose at ``now`` that cannot save a checkpoint first."""
    lost = gpu_seconds_at(cost, now)
    ago = duration(lost / cost.gpus) if cost.gpus else "0s"
    return (
        f"{duration(lost)} of GPU time ({cost.gpus} GPUs, {ago} since the last checkpoint or start)"
    )
