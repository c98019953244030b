"""Account for the GPU time of training: attempts, and useful, lost and idle GPU seconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from video2world_operator.api.spec import Spec
from video2world_operator.api.status import AttemptStatus, GPUSeconds, Status
from video2world_operator.api.timestamps import format_time
from video2world_operator.reconcile.observed_state import Pod

__all__ = [
    "close_attempt",
    "correct_start",
    "has_started",
    "observe",
    "open_attempt",
    "uncount_last_restart",
]

KEPT = 10  # attempts listed in the status


def _split(
    held: float, seconds_per_iteration: float, gpus: int, done: int, kept: int
) -> GPUSeconds:
    """Split GPU seconds by use: ``kept`` of ``done`` iterations are in a checkpoint."""
    cost = seconds_per_iteration * gpus
    useful = min(held, max(kept, 0) * cost)
    lost = min(held - useful, max(done - max(kept, 0), 0) * cost)
    return GPUSeconds(useful=useful, lost=lost, idle=held - useful - lost)


def _add(a: GPUSeconds | None, useful: float, lost: float, idle: float = 0.0) -> GPUSeconds:
    a = a or GPUSeconds()
    return GPUSeconds(
        useful=round(a.useful + useful, 1),
        lost=round(a.lost + lost, 1),
        idle=round(a.idle + idle, 1),
    )


def open_attempt(status: Status, number: int, nodes: int) -> None:
    """Begin the record of an attempt, which resumes from the newest checkpoint."""
    start = _saved(status)
    record = AttemptStatus(number=number, start_iteration=start, end_iteration=start, nodes=nodes)
    status.attempts = [*status.attempts[-KEPT + 1 :], record]


def _saved(status: Status) -> int:
    """Return the iteration of the newest checkpoint."""
    return status.checkpoint.iteration if status.checkpoint else 0


def _gpus(record: AttemptStatus, spec: Spec) -> int:
    """Return the GPUs of an attempt; one without a number of nodes had all of them."""
    return spec.gpus_on(record.nodes or spec.nodes)


def _open_record(status: Status) -> AttemptStatus | None:
    records = status.attempts
    return records[-1] if records and records[-1].end_time is None else None


def has_started(status: Status) -> bool:
    """Return whether pods of the open attempt have started."""
    record = _open_record(status)
    return record is not None and record.start_time is not None


def observe(status: Status, pods: Sequence[Pod], spec: Spec, now: datetime) -> None:
    """Bring the open attempt's record and ``gpuSeconds`` up to date.

    ``pods`` are those of the attempt. While the attempt runs, every iteration counts as useful. The
    time held never decreases, even if the clock is set back.
    """
    record = _open_record(status)
    if record is None:
        return
    started = [pod.started for pod in pods if pod.started]
    if started and record.start_time is None:
        record.start_time = format_time(min(started))
    held = sum(
        max(0.0, ((pod.ended or now) - pod.started).total_seconds()) for pod in pods if pod.started
    )
    record.held_gpu_seconds = round(max(record.held_gpu_seconds, held * spec.gpus_on(1)), 1)
    iteration = status.progress.iteration if status.progress else 0
    record.end_iteration = max(record.end_iteration, iteration)
    if gpus := _gpus(record, spec):
        live = _live(status, record, gpus, record.end_iteration)
        status.gpu_seconds = _add(status.closed_gpu_seconds, live.useful, live.lost, live.idle)


def _pace(status: Status) -> float:
    """Return the seconds per iteration last reported, 0 if unknown."""
    return (status.progress.seconds_per_iteration if status.progress else None) or 0.0


def _live(status: Status, record: AttemptStatus, gpus: int, kept: int) -> GPUSeconds:
    start = record.start_iteration
    done = record.end_iteration - start
    return _split(record.held_gpu_seconds, _pace(status), gpus, done, kept - start)


def close_attempt(
    status: Status, spec: Spec, now: datetime, reason: str, message: str, counted: bool
) -> None:
    """End the open attempt's record; iterations beyond the newest checkpoint become lost."""
    record = _open_record(status)
    if record is None:
        return
    record.end_time = format_time(now)
    record.reason, record.message, record.charged = reason, message, counted
    del status.eviction_cost
    if gpus := _gpus(record, spec):
        kept = record.end_iteration if reason == "Succeeded" else _saved(status)
        part = _live(status, record, gpus, min(kept, record.end_iteration))
        closed = _add(status.closed_gpu_seconds, part.useful, part.lost, part.idle)
        status.closed_gpu_seconds = status.gpu_seconds = closed


def correct_start(status: Status, iteration: int, spec: Spec) -> None:
    """Correct the iteration at which the open attempt began.

    It is later than assumed if the last lines of the previous attempt's log were lost with their
    pod. Iterations of that attempt that were counted as lost then become useful.
    """
    record = _open_record(status)
    if record is None or iteration <= record.start_iteration:
        return
    known, record.start_iteration = record.start_iteration, iteration
    record.end_iteration = max(record.end_iteration, iteration)
    if len(status.attempts) < 2:
        return
    before = status.attempts[-2]
    saved = min(iteration, before.end_iteration) - max(known, before.start_iteration)
    before.end_iteration = max(before.end_iteration, iteration)
    spent = status.closed_gpu_seconds
    if (gpus := _gpus(before, spec)) and spent and saved > 0:
        moved = min(spent.lost, saved * _pace(status) * gpus)
        status.closed_gpu_seconds = status.gpu_seconds = _add(spent, moved, -moved)


def uncount_last_restart(status: Status, reason: str, message: str) -> None:
    """Stop counting the last restart: the platform turned out to have caused it."""
    closed = [record for record in status.attempts if record.end_time]
    if closed and closed[-1].charged:
        last = closed[-1]
        last.charged, last.reason, last.message = False, reason, message
        status.charged_restarts = max(0, status.charged_restarts - 1)
