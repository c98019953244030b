"""Count how often attempts at training have lost iterations, and expect how often they will.

Evictions that could save a checkpoint first have lost nothing, and do not count. The counts are in
the status, so that they survive the operator and the list of attempts.
"""

from __future__ import annotations

from video2world_common.checkpoint_interval import seconds_between_failures
from video2world_operator.api.conditions import Reason
from video2world_operator.api.spec import Spec
from video2world_operator.api.status import AttemptStatus, FailureStatus, Status
from video2world_operator.api.timestamps import parse_time

__all__ = ["SECONDS_BETWEEN_FAILURES", "correct", "expect", "expected_env"]

SECONDS_BETWEEN_FAILURES = "V2W_SECONDS_BETWEEN_FAILURES"  # for the trainer
# Ends that the user or the spec asked for, and such that more checkpoints would not have helped.
_WANTED = frozenset(
    {
        "Succeeded",
        "Suspended",
        "Interrupted",
        "SpecChanged",
        "DeadlineExceeded",
        "UserError",
        "VolumeLost",
        str(Reason.GROUP_SHRUNK),
        str(Reason.GROUP_GROWN),
    }
)
# Ends that leave the trainer a grace period to save: only those that lost iterations count.
_ANNOUNCED = frozenset({"Preempted", "Evicted", "PodDeleted", "JobDeleted", "Terminated"})


def expect(status: Status, spec: Spec) -> None:
    """Add the attempts that have ended to ``status.failures``, with the failures to expect next.

    Call it before an attempt starts, when all that the last one saved is known. Calling it twice is
    the same as once.
    """
    each, size = spec.processes_per_node, status.group_size
    devices = (size.running if size else spec.nodes) * each
    failures = (status.failures or FailureStatus(count=0, device_seconds=0)).model_copy()
    saved = status.checkpoint.iteration if status.checkpoint else 0
    for attempt in status.attempts:
        if attempt.end_time is None or attempt.number <= failures.attempt:
            continue
        failures.attempt = attempt.number
        if _lost_iterations(attempt, saved):
            failures.count += 1
            failures.lost_attempt = attempt.number
        failures.device_seconds += round(_held(attempt, (attempt.nodes or spec.nodes) * each), 1)
    failures.expected_seconds = round(
        seconds_between_failures(devices, failures.count, failures.device_seconds)
    )
    status.failures = failures


def expected_env(status: Status, spec: Spec) -> dict[str, str]:
    """Return the environment of an attempt whose trainer chooses the interval of checkpoints."""
    if spec.training.checkpoint.every_iterations != "Auto":
        return {}
    expect(status, spec)
    assert status.failures is not None
    return {SECONDS_BETWEEN_FAILURES: f"{status.failures.expected_seconds:.0f}"}


def correct(status: Status, iteration: int) -> None:
    """Do not count the last attempt if the open one resumes from what it saved after all.

    The last lines of its log were lost with its pod. Call it before the open attempt's record is
    corrected (:func:`gpu_time.correct_start`).
    """
    failures, attempts = status.failures, status.attempts[-2:]
    if failures is None or len(attempts) < 2 or attempts[0].number != failures.lost_attempt:
        return
    last = attempts[0]
    if last.reason in _ANNOUNCED and last.end_iteration <= iteration:
        failures.count -= 1
        failures.lost_attempt = 0


def _lost_iterations(attempt: AttemptStatus, saved: int) -> bool:
    """Whether an attempt failed and lost iterations; it counts for them even if just one saved."""
    if attempt.reason in _WANTED or attempt.end_iteration <= attempt.start_iteration:
        return False
    return attempt.reason not in _ANNOUNCED or attempt.end_iteration > saved


def _held(attempt: AttemptStatus, devices: int) -> float:
    """Return for how long an attempt held its devices, times their number."""
    start, end = parse_time(attempt.start_time), parse_time(attempt.end_time)
    if attempt.held_gpu_seconds or start is None or end is None:
        return attempt.held_gpu_seconds
    return max(0.0, (end - start).total_seconds()) * devices
