"""Where the GPU time of training goes: attempts, and useful, lost and idle GPU seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from video2world_operator.reconcile.observed_state import Pod

__all__ = ["close_attempt", "observe", "open_attempt", "restart_was_not_charged", "resumed"]

KEPT = 10  # attempts that the status lists
_NOTHING = {"useful": 0.0, "lost": 0.0, "idle": 0.0}


def _split(
    held: float, seconds_per_iteration: float, gpus: int, done: int, kept: int
) -> dict[str, float]:
    """GPU seconds by use: ``done`` iterations were run, ``kept`` of them are in a checkpoint."""
    cost = seconds_per_iteration * gpus
    useful = min(held, max(kept, 0) * cost)
    lost = min(held - useful, max(done - max(kept, 0), 0) * cost)
    return {"useful": useful, "lost": lost, "idle": held - useful - lost}


def _plus(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: round(a.get(name, 0.0) + b[name], 1) for name in _NOTHING}


def open_attempt(status: dict[str, Any], number: int) -> None:
    """Begin the record of an attempt, which goes on from the newest checkpoint."""
    start = (status.get("checkpoint") or {}).get("iteration", 0)
    record = {"number": number, "startIteration": start, "endIteration": start}
    status["attempts"] = [*status.get("attempts", [])[-KEPT + 1 :], record]


def _open_record(status: Mapping[str, Any]) -> dict[str, Any] | None:
    records = status.get("attempts") or []
    return records[-1] if records and "endTime" not in records[-1] else None


def observe(
    status: dict[str, Any], pods: Sequence[Pod], gpus: int, nodes: int, now: datetime
) -> None:
    """Bring the open attempt's record and ``gpuSeconds`` up to date.

    ``pods`` are the attempt's own, ``gpus`` is what all ``nodes`` of them hold together. While it
    runs, every iteration counts as useful. What was held only grows, also when a clock goes
    backwards.
    """
    record = _open_record(status)
    if record is None:
        return
    started = [pod.started for pod in pods if pod.started]
    if started and "startTime" not in record:
        record["startTime"] = _text(min(started))
    held = sum(
        max(0.0, ((pod.ended or now) - pod.started).total_seconds()) for pod in pods if pod.started
    )
    record["heldGPUSeconds"] = round(max(record.get("heldGPUSeconds", 0.0), held * gpus / nodes), 1)
    iteration = (status.get("progress") or {}).get("iteration", 0)
    record["endIteration"] = max(record["endIteration"], iteration)
    if gpus:
        live = _live(status, record, gpus, record["endIteration"])
        status["gpuSeconds"] = _plus(status.get("closedGPUSeconds") or _NOTHING, live)


def _live(
    status: Mapping[str, Any], record: Mapping[str, Any], gpus: int, kept: int
) -> dict[str, float]:
    speed = (status.get("progress") or {}).get("secondsPerIteration", 0.0)
    start = record["startIteration"]
    done = record["endIteration"] - start
    return _split(record.get("heldGPUSeconds", 0.0), speed, gpus, done, kept - start)


def close_attempt(
    status: dict[str, Any], gpus: int, now: datetime, reason: str, message: str, charged: bool
) -> None:
    """End the open attempt's record; iterations beyond the newest checkpoint become lost.

    ``gpus`` is what all pods of the group hold together.
    """
    record = _open_record(status)
    if record is None:
        return
    record |= {"endTime": _text(now), "reason": reason, "message": message, "charged": charged}
    if gpus:
        kept = (status.get("checkpoint") or {}).get("iteration", 0)
        if reason == "Succeeded":
            kept = record["endIteration"]
        part = _live(status, record, gpus, min(kept, record["endIteration"]))
        closed = _plus(status.get("closedGPUSeconds") or _NOTHING, part)
        status["closedGPUSeconds"] = status["gpuSeconds"] = closed


def resumed(status: dict[str, Any], iteration: int, gpus: int) -> None:
    """Learn from an attempt where it began: further on than was known, if the last pod's final
    lines went with it. What had been taken for lost in the attempt before was useful then.
    """
    record = _open_record(status)
    if record is None or iteration <= record["startIteration"]:
        return
    known, record["startIteration"] = record["startIteration"], iteration
    record["endIteration"] = max(record["endIteration"], iteration)
    records = status["attempts"]
    if len(records) < 2:
        return
    before = records[-2]
    saved = min(iteration, before["endIteration"]) - max(known, before["startIteration"])
    before["endIteration"] = max(before["endIteration"], iteration)
    spent = status.get("closedGPUSeconds")
    if gpus and spent and saved > 0:
        speed = (status.get("progress") or {}).get("secondsPerIteration", 0.0)
        moved = min(spent["lost"], saved * speed * gpus)
        part = {"useful": moved, "lost": -moved, "idle": 0.0}
        status["closedGPUSeconds"] = status["gpuSeconds"] = _plus(spent, part)


def restart_was_not_charged(status: dict[str, Any], reason: str, message: str) -> None:
    """Take the charge of the last restart back: only now it shows that the platform caused it."""
    records = status.get("attempts") or []
    closed = [r for r in records if r.get("endTime")]
    if closed and closed[-1].get("charged"):
        closed[-1] |= {"charged": False, "reason": reason, "message": message}
        status["chargedRestarts"] = max(0, status.get("chargedRestarts", 0) - 1)


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
