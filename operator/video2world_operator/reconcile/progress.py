"""Update the status from the progress events of the workers."""

from __future__ import annotations

from video2world_common.progress_events import (
    SAMPLE_ROWS,
    CheckpointSaved,
    Evaluated,
    Event,
    ItemProgress,
    Resumed,
    SamplesMade,
    TrainProgress,
    Validated,
    VolumeSeen,
    Withdrawn,
    duration,
)
from video2world_operator.api.status import (
    CheckpointStatus,
    EvaluationStatus,
    ProgressStatus,
    SamplesStatus,
    State,
    Status,
    ValidationStatus,
)

__all__ = ["update_samples", "update_status"]


def update_status(status: Status, event: Event, now: str) -> None:
    """Bring ``status`` up to date with ``event``, read at ``now`` (RFC 3339).

    The checkpoint changes only with its iteration: ``progress`` lines repeat it.
    """
    match event:
        case TrainProgress():
            status.progress = _progress(event)
            if event.checkpoint:
                _checkpoint(status, event.checkpoint, "", now)
            validation = status.validation
            if validation is not None and event.iteration > validation.iteration:
                del validation.stopped  # training continues
        case Validated():
            status.validation = _validation(event)
        case ItemProgress():
            if (entry := status.stage_status(event.stage)) is not None:
                entry.done, entry.total = event.done, event.total
                if event.unit:
                    entry.unit = event.unit
        case CheckpointSaved():
            _checkpoint(status, event.iteration, event.path, now)
        case Withdrawn():
            del status.checkpoint
            if event.iteration:
                _checkpoint(status, event.iteration, event.path, now)
        case SamplesMade():
            update_samples(
                status,
                event.checkpoint,
                iteration=event.iteration,
                state=_samples_state(event),
                done=event.done,
                total=event.total,
                message=event.message,
            )
        case Evaluated():
            facts = {name: value for name, value in vars(event).items() if value is not None}
            del facts["stage"]
            if event.actions is not None:
                facts["actions"] = vars(event.actions)
            status.evaluation = EvaluationStatus.model_validate(facts)
        case VolumeSeen():
            # a worker that was given an identity does not change it
            if event.identity and not event.expected and not status.volume_id:
                status.volume_id = event.identity
        case Resumed():
            if event.iteration > (status.checkpoint.iteration if status.checkpoint else 0):
                _checkpoint(status, event.iteration, "", now)
        case _:
            pass


def update_samples(
    status: Status,
    checkpoint: str,
    *,
    iteration: int | None = None,
    state: State | None = None,
    done: int | None = None,
    total: int | None = None,
    message: str | None = None,
) -> None:
    """Update the row of ``status.samples`` for ``checkpoint``, or add one.

    Fields that are None stay as they are. Rows are sorted by iteration; the newest are kept.
    """
    rows = {row.checkpoint: row for row in status.samples}
    row = rows.setdefault(checkpoint, SamplesStatus(checkpoint=checkpoint))
    if iteration is not None:
        row.iteration = iteration
    if state is not None:
        row.state = state
    if done is not None:
        row.done = done
    if total is not None:
        row.total = total
    if message is not None:
        row.message = message
    ordered = sorted(rows.values(), key=lambda r: (r.iteration is not None, r.iteration or 0))
    status.samples = ordered[-SAMPLE_ROWS:]


def _progress(event: TrainProgress) -> ProgressStatus:
    progress = ProgressStatus(
        iteration=event.iteration,
        iterations=event.iterations,
        text=f"{event.iteration}/{event.iterations}",
        loss=None if event.loss is None else _readable(event.loss),
    )
    if event.seconds_per_iteration is not None and event.seconds_per_iteration >= 0:
        progress.seconds_per_iteration = event.seconds_per_iteration
    if event.eta_seconds is not None:
        progress.eta_seconds = max(0, round(event.eta_seconds))
        progress.eta = duration(event.eta_seconds)
    if event.phase:
        progress.phase = event.phase
    if event.checkpoint_interval is not None:
        progress.checkpoint_interval = event.checkpoint_interval
        progress.checkpoint_interval_reason = event.checkpoint_interval_reason
    if event.warning:
        progress.warning = event.warning
    return progress


def _validation(event: Validated) -> ValidationStatus:
    validation = ValidationStatus(iteration=event.iteration)
    for field, loss in (
        ("loss", event.loss),
        ("low_noise", event.low),
        ("middle_noise", event.middle),
        ("high_noise", event.high),
        ("best_loss", event.best_loss),
        ("base_loss", event.base_loss),
    ):
        if loss is not None:
            setattr(validation, field, _readable(loss))
    if event.best_iteration is not None:
        validation.best_iteration = event.best_iteration
    if event.weights:
        validation.weights = {"regular": "Regular", "ema": "EMA"}.get(event.weights, event.weights)
    if event.stopped:
        validation.stopped = event.stopped
    return validation


def _readable(loss: float) -> float:
    """Round to six digits."""
    return float(f"{loss:.6g}")


def _samples_state(event: SamplesMade) -> State:
    if event.done == event.total:
        return "Succeeded"
    return "Skipped" if event.message else "Running"


def _checkpoint(status: Status, iteration: int, path: str, now: str) -> None:
    old = status.checkpoint
    if old is not None and old.iteration == iteration and path in ("", old.path):
        return
    status.checkpoint = CheckpointStatus(iteration=iteration, time=now)
    if path:
        status.checkpoint.path = path
