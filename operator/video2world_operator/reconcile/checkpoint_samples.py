"""Samples while training goes on (``inference.everyCheckpoint``): pure functions of a status.

One Job at a time makes the samples of the newest checkpoint; a checkpoint that is overtaken before
its Job has started a pod is passed over, so that nothing queues up. Training knows nothing of it,
and what fails here fails nothing else. ``status.samples`` has a row for each checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from video2world_operator.plan.stage import SAMPLING
from video2world_operator.reconcile.failures import diagnose
from video2world_operator.reconcile.observed_state import Job, Pod
from video2world_operator.reconcile.progress import with_samples

__all__ = [
    "ENDED",
    "Step",
    "abandon",
    "begin",
    "conclude",
    "decide",
    "end",
    "label",
    "made",
    "take_in",
]

ENDED = ("Succeeded", "Failed", "Skipped")
OVERTAKEN = "passed over: a newer checkpoint was there before its pods could start"
LATE = "passed over: training ended before its pods could start"
GONE = "interrupted"

Row = dict[str, Any]


def label(iteration: int) -> str:
    """A checkpoint's name, that of its files."""
    return f"iter_{iteration:09d}"


def _rows(status: Mapping[str, Any]) -> list[Row]:
    return [dict(row) for row in status.get("samples") or []]


def _merge(status: dict[str, Any], checkpoint: str, **fields: Any) -> None:
    status["samples"] = with_samples(status.get("samples") or [], checkpoint, **fields)


def begin(status: dict[str, Any], iteration: int, total: int) -> None:
    """Note that the samples of a checkpoint are being made; ``total`` of them."""
    done = (_row(status, iteration) or {}).get("done", 0)
    _merge(
        status,
        label(iteration),
        iteration=iteration,
        state="Running",
        done=done,
        total=total,
        message="",
    )


def end(status: dict[str, Any], iteration: int, state: str, message: str = "") -> None:
    """Note how the making of a checkpoint's samples ended."""
    row = _row(status, iteration) or {}
    if state == "Succeeded" and row.get("message"):
        return  # its worker has told why there are none
    done = row.get("total") if state == "Succeeded" else None
    _merge(status, label(iteration), iteration=iteration, state=state, message=message, done=done)


def made(status: Mapping[str, Any], iteration: int) -> bool:
    """Whether all samples of a checkpoint are there."""
    return (_row(status, iteration) or {}).get("state") == "Succeeded"


def abandon(status: dict[str, Any]) -> None:
    """What is still noted as being made is not any more: its Job or process has gone."""
    for row in _rows(status):
        if row.get("state") == "Running":
            _merge(status, row["checkpoint"], state="Skipped", message=GONE)


def conclude(status: dict[str, Any]) -> None:
    """The inference stage is done: what its pods had no time to tell."""
    for row in _rows(status):
        if row.get("state") == "Running":
            _merge(status, row["checkpoint"], state="Succeeded", done=row.get("total"))


def _row(status: Mapping[str, Any], iteration: int) -> Row | None:
    return next((r for r in _rows(status) if r.get("iteration") == iteration), None)


@dataclass(frozen=True)
class Step:
    """What follows: the iteration whose Job is applied, Jobs to delete, and what goes on."""

    apply: int | None = None
    delete: tuple[Job, ...] = ()
    running: int | None = None  # iteration whose samples are being made
    failed: tuple[int, str] | None = None  # the newest that failed, and why


def decide(
    status: dict[str, Any], jobs: Sequence[Job], pods: Sequence[Pod], *, training: bool, total: int
) -> Step:
    """Bring the rows of ``status`` up to date with ``jobs`` and ``pods``, and say what follows.

    ``training``: the train stage is at work, so that further checkpoints count; ``total``: samples
    of each checkpoint.
    """
    take_in(status, jobs, pods)
    ours = [job for job in jobs if job.stage == SAMPLING and not job.deleting]
    newest = (status.get("checkpoint") or {}).get("iteration", 0) if training else 0
    row = _row(status, newest)
    wanted = newest if newest and (row is None or row.get("state") == "Running") else 0
    live = [job for job in ours if not job.finished]
    for job in live:
        if job.attempt == wanted or _started(job, pods):
            return Step(running=job.attempt)
        end(status, job.attempt, "Skipped", OVERTAKEN if training else LATE)
    if live:
        return Step(delete=tuple(live))
    for lost in _rows(status):  # its Job has gone, and it is not the newest any more
        number = lost.get("iteration")
        if lost.get("state") == "Running" and number and number != wanted and training:
            end(status, number, "Skipped", GONE)
    if wanted:
        begin(status, wanted, total)
        return Step(wanted, tuple(j for j in ours if j.attempt != wanted), running=wanted)
    failed = [r for r in _rows(status) if r.get("state") == "Failed" and "iteration" in r]
    last = failed[-1] if failed else None
    return Step(failed=(last["iteration"], last.get("message", "")) if last else None)


def take_in(status: dict[str, Any], jobs: Sequence[Job], pods: Sequence[Pod]) -> None:
    """Note how those of the Jobs ended that have."""
    for job in jobs:
        row = _row(status, job.attempt) or {}
        if job.stage != SAMPLING or not job.finished or row.get("state") in ENDED:
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
