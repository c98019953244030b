"""Update the status from the progress events of the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from video2world_common.progress_events import (
    SAMPLE_ROWS,
    CheckpointSaved,
    Event,
    ItemProgress,
    Resumed,
    SamplesMade,
    TrainProgress,
    VolumeSeen,
    Withdrawn,
    duration,
)

__all__ = ["update_status", "with_samples"]


def update_status(status: Mapping[str, Any], event: Event, now: str) -> dict[str, Any]:
    """``status`` (the API's form) after ``event``, seen at ``now`` (RFC 3339); a new mapping.

    The checkpoint only moves when the iteration does: ``progress`` lines repeat it.
    """
    new = dict(status)
    match event:
        case TrainProgress():
            new["progress"] = _known(
                iteration=event.iteration,
                iterations=event.iterations,
                loss=None if event.loss is None else float(f"{event.loss:.6g}"),  # for people
                secondsPerIteration=event.seconds_per_iteration,
                etaSeconds=None if event.eta_seconds is None else max(0, round(event.eta_seconds)),
                warning=event.warning or None,
                text=f"{event.iteration}/{event.iterations}",
                eta=None if event.eta_seconds is None else duration(event.eta_seconds),
            )
            if event.checkpoint:
                _checkpoint(new, event.checkpoint, None, now)
        case ItemProgress():
            new["stages"] = [
                entry | _known(done=event.done, total=event.total, unit=event.unit or None)
                if entry.get("name") == event.stage
                else entry
                for entry in status.get("stages", [])
            ]
        case CheckpointSaved():
            _checkpoint(new, event.iteration, event.path or None, now)
        case Withdrawn():
            new.pop("checkpoint", None)
            if event.iteration:
                _checkpoint(new, event.iteration, event.path or None, now)
        case SamplesMade():
            new["samples"] = with_samples(
                status.get("samples") or [],
                event.checkpoint,
                iteration=event.iteration,
                state=_samples_state(event),
                done=event.done,
                total=event.total,
                message=event.message,
            )
        case VolumeSeen():
            if event.identity and not event.expected:  # of those told first it stays the first
                new.setdefault("volumeID", event.identity)
        case Resumed():
            if event.iteration > (new.get("checkpoint") or {}).get("iteration", 0):
                _checkpoint(new, event.iteration, None, now)
        case _:
            pass
    return new


def with_samples(
    rows: Sequence[Mapping[str, Any]], checkpoint: str, **fields: Any
) -> list[dict[str, Any]]:
    """``rows`` of ``status.samples`` with that of ``checkpoint`` brought up to date or added.

    Fields that are None stay as they were. Rows are in order of iterations, the newest are kept.
    """
    by_name = {row["checkpoint"]: dict(row) for row in rows}
    by_name[checkpoint] = by_name.get(checkpoint, {"checkpoint": checkpoint}) | _known(**fields)
    order = sorted(by_name.values(), key=lambda r: ("iteration" in r, r.get("iteration", 0)))
    return order[-SAMPLE_ROWS:]


def _samples_state(event: SamplesMade) -> str:
    if event.done == event.total:
        return "Succeeded"
    return "Skipped" if event.message else "Running"


def _known(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _checkpoint(status: dict[str, Any], iteration: int, path: str | None, now: str) -> None:
    old = status.get("checkpoint") or {}
    if old.get("iteration") == iteration and (path is None or old.get("path") == path):
        return
    status["checkpoint"] = _known(iteration=iteration, path=path, time=now)
