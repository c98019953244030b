"""Decide which checkpoints are sampled during training (``inference.everyCheckpoint``).

One Job at a time makes the samples of the newest checkpoint. A checkpoint is skipped if a newer one
appears before its Job has started a pod, so that Jobs do not queue up. Training does not depend on
the samples, and a failure here fails nothing else. ``status.samples`` has one row per checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from video2world_operator.api.status import SamplesStatus, State, Status
from video2world_operator.plan.stage import SAMPLING
from video2world_operator.reconcile.failures import diagnose
from video2world_operator.reconcile.observed_state import Job, Pod
from video2world_operator.reconcile.progress import update_samples

__all__ = [
    "ENDED",
    "Step",
    "abandon",
    "begin",
    "conclude",
    "decide",
    "end",
    "is_sampled",
    "label",
    "record_ended_jobs",
]

ENDED = ("Succeeded", "Failed", "Skipped")
OVERTAKEN = "skipped: a newer checkpoint was saved before its pods could start"
LATE = "skipped: training ended before its pods could start"
GONE = "interrupted"


def label(iteration: int) -> str:
    """Return the name of a checkpoint, which its files have too."""
    return f"iter_{iteration:09d}"


def begin(status: Status, iteration: int, total: int) -> None:
    """Record that the ``total`` samples of a checkpoint are being made."""
    row = _row(status, iteration)
    update_samples(
        status,
        label(iteration),
        iteration=iteration,
        state="Running",
        done=row.done if row else 0,
        total=total,
        message="",
    )


def end(status: Status, iteration: int, state: State, message: str = "") -> None:
    """Record how the making of a checkpoint's samples ended."""
    row = _row(status, iteration)
    if state == "Succeeded" and row and row.message:
        return  # its worker has reported why there are none
    done = (row.total or None) if row and state == "Succeeded" else None
    update_samples(
        status, label(iteration), iteration=iteration, state=state, message=message, done=done
    )


def is_sampled(status: Status, iteration: int) -> bool:
    """Return whether all samples of a checkpoint are made."""
    row = _row(status, iteration)
    return row is not None and row.state == "Succeeded"


def abandon(status: Status) -> None:
    """Mark samples that are still being made as skipped: their Job or process is gone."""
    for row in status.samples:
        if row.state == "Running":
            update_samples(status, row.checkpoint, state="Skipped", message=GONE)


def conclude(status: Status) -> None:
    """Mark samples that are still being made as done: the inference stage has succeeded."""
    for row in status.samples:
        if row.state == "Running":
            update_samples(status, row.checkpoint, state="Succeeded", done=row.total or None)


def _row(status: Status, iteration: int) -> SamplesStatus | None:
    return next((row for row in status.samples if row.iteration == iteration), None)


@dataclass(frozen=True)
class Step:
    """The next step: Jobs to apply and delete, and the state to report."""

    apply: int | None = None  # iteration whose Job is applied
    delete: tuple[Job, ...] = ()
    running: int | None = None  # iteration whose samples are being made
    failed: tuple[int, str] | None = None  # the newest iteration that failed, and why


def decide(
    status: Status, jobs: Sequence[Job], pods: Sequence[Pod], *, training: bool, total: int
) -> Step:
    """Update the rows of ``status`` from ``jobs`` and ``pods``, and return the next step.

    ``training``: the train stage is running, so that new checkpoints are sampled. ``total``:
    samples of each checkpoint.
    """
    record_ended_jobs(status, jobs, pods)
    ours = [job for job in jobs if job.stage == SAMPLING and not job.deleting]
    newest = status.checkpoint.iteration if training and status.checkpoint else 0
    row = _row(status, newest)
    wanted = newest if newest and (row is None or row.state == "Running") else 0
    live = [job for job in ours if not job.finished]
    for job in live:
        if job.attempt == wanted or _started(job, pods):
            return Step(running=job.attempt)
        end(status, job.attempt, "Skipped", OVERTAKEN if training else LATE)
    if live:
        return Step(delete=tuple(live))
    for lost in status.samples:  # its Job is gone, and it is no longer the newest
        number = lost.iteration
        if lost.state == "Running" and number and number != wanted and training:
            end(status, number, "Skipped", GONE)
    if wanted:
        begin(status, wanted, total)
        return Step(wanted, tuple(j for j in ours if j.attempt != wanted), running=wanted)
    failed = [
        (row.iteration, row.message)
        for row in status.samples
        if row.state == "Failed" and row.iteration is not None
    ]
    return Step(failed=failed[-1] if failed else None)


def record_ended_jobs(status: Status, jobs: Sequence[Job], pods: Sequence[Pod]) -> None:
    """Record how Jobs ended."""
    for job in jobs:
        row = _row(status, job.attempt)
        if job.stage != SAMPLING or not job.finished or (row and row.state in ENDED):
            continue
        if job.complete:
            end(status, job.attempt, "Succeeded")
            continue
        mine = [p for p in pods if (p.stage, p.attempt) == (SAMPLING, job.attempt)]
        found = diagnose(job, [p for p in mine if p.deleted is None])
        why = found.message if found else job.message or job.failed
        end(status, job.attempt, "Failed", why[:1000])


def _started(job: Job, pods: Sequence[Pod]) -> bool:
    return any(
        p.phase != "Pending" and p.deleted is None
        for p in pods
        if (p.stage, p.attempt) == (SAMPLING, job.attempt)
    )
