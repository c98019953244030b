"""Compare what a status claims with what its resource's history shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from video2world_operator.api.conditions import Type

from .history import DONE, Attempt, Run

__all__ = ["describe", "false_claims"]


def describe(attempt: Attempt | None) -> str:
    """Name an attempt for people."""
    return f"{attempt[0]} {attempt[1]}" if attempt else "any attempt"


def false_claims(run: Run, before: Mapping[str, Any], known: Set[tuple[str, str]]) -> Iterator[str]:
    """Yield each claim of the run's status that its history contradicts.

    Args:
        run: the resource with its new status.
        before: its previous status.
        known: stages and inputs hashes that workers report as done before.
    """
    status, old = run.status, {e["name"]: e for e in before.get("stages", [])}
    for entry in status.get("stages", []):
        yield from _false_stage_claims(run, entry, old.get(entry["name"], {}), known)
    if status.get("phase") == "Succeeded":
        for entry in status["stages"]:
            if entry["state"] not in DONE:
                yield f"Succeeded, but {entry['name']} is {entry['state']}"
    if status.get("phase") == "Failed" and before.get("phase") != "Failed":
        yield from _false_failure_claims(run)
    restarts = status.get("restarts", 0) - before.get("restarts", 0)
    if restarts > 1:
        yield f"{restarts} restarts at once"
    if restarts == 1:
        cause = _restarted_attempt(status)
        if cause is None or cause not in run.disturbed:
            yield f"a restart, but nothing has happened to {describe(cause)}"
        counted = status.get("chargedRestarts", 0) > before.get("chargedRestarts", 0)
        if counted and cause not in run.crashed:
            yield (
                "a restart counts against the backoff limit, but nothing has crashed in "
                f"{describe(cause)}"
            )


def _false_stage_claims(
    run: Run, entry: Mapping[str, Any], old: Mapping[str, Any], known: Set[tuple[str, str]]
) -> Iterator[str]:
    name, state = entry["name"], entry["state"]
    attempt = (name, entry.get("attempt", 0))
    inputs = entry.get("inputsHash", "")
    if state == "Succeeded" and old.get("state") != "Succeeded":
        if attempt not in run.finished:
            yield f"{describe(attempt)} is Succeeded, but its Job did not complete"
        elif run.finished[attempt] != inputs:
            yield f"{describe(attempt)} is Succeeded, but its Job had other inputs"
    if state == "Skipped" and old.get("state") != "Skipped" and (name, inputs) not in known:
        yield f"{name} is Skipped, but no worker reported it as done"
    if state == "Running" and entry.get("jobUID") and attempt not in run.applied:
        yield f"{describe(attempt)} is Running, but its Job never existed"
    if state == "Running" and entry.get("ready", 0) > run.ready.get(attempt, 0):
        yield f"{entry['ready']} pods of {describe(attempt)} are claimed to be ready"


def _false_failure_claims(run: Run) -> Iterator[str]:
    conditions = run.status.get("conditions", [])
    reason = next((c.get("reason") for c in conditions if c["type"] == Type.FAILED), None)
    stage = next((e for e in run.status["stages"] if e["state"] == "Failed"), None)
    if stage is None:
        yield "Failed, but no stage is"
        return
    attempt = (stage["name"], stage.get("attempt", 0))
    if reason == "UserError" and stage["name"] not in run.user_errors:
        yield f"failed by a user error, but no pod of {stage['name']} exited with code 2"
    if reason == "StageFailed" and attempt not in run.failed_jobs:
        yield f"failed, but the Job of {describe(attempt)} did not"
    if reason == "RestartsExhausted" and attempt not in run.crashed:
        yield f"failed after its last restart, but nothing crashed in {describe(attempt)}"
    if reason == "DeadlineExceeded" and not run.spec.get("activeDeadlineSeconds"):
        yield "failed by a deadline that it does not have"


def _restarted_attempt(status: Mapping[str, Any]) -> Attempt | None:
    for entry in status.get("stages", []):
        if entry["state"] == "Restarting":
            return (entry["name"], entry["attempt"] - 1)
    return None
