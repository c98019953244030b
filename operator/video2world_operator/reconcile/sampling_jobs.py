"""Run the Jobs that make samples of checkpoints alongside training."""

from __future__ import annotations

from video2world_operator.api.conditions import Reason, Type
from video2world_operator.plan.stage import SAMPLING, Stage
from video2world_operator.reconcile import checkpoint_samples
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.observed_state import Job
from video2world_operator.reconcile.pods_started import report_stuck

__all__ = ["run_sampling", "unfinished"]


def run_sampling(draft: Draft, stage: Stage) -> None:
    """Apply and delete sampling Jobs while ``stage`` is the current one."""
    inference = draft.resource.spec.inference
    if not inference.every_checkpoint and not unfinished(draft):
        return
    state = draft.entry(stage.name).state
    training = stage.name == "train" and state in ("Running", "Restarting")
    step = checkpoint_samples.decide(
        draft.status,
        draft.jobs,
        draft.observed.pods,
        training=training and inference.every_checkpoint,
        total=len(inference.samples),
    )
    for job in step.delete:
        draft.delete_job(job)
    if step.apply is not None:
        draft.apply_attempt(draft.plan.sampling(step.apply))
    if step.running is not None:
        if not _is_stuck(draft, step.running):
            draft.set_condition(Type.SAMPLES, False, Reason.SAMPLING, iteration=step.running)
    elif step.failed is not None:
        iteration, message = step.failed
        draft.set_condition(
            Type.SAMPLES, False, Reason.SAMPLES_FAILED, iteration=iteration, message=message
        )
    else:
        draft.set_condition(Type.SAMPLES, True, Reason.SAMPLED)


def unfinished(draft: Draft) -> list[Job]:
    """Return the sampling Jobs that have not ended."""
    return [job for job in draft.jobs if job.stage == SAMPLING and not job.finished]


def _is_stuck(draft: Draft, iteration: int) -> bool:
    attempt = (SAMPLING, iteration)
    job = next((j for j in draft.jobs if (j.stage, j.attempt) == attempt), None)
    pods = [p for p in draft.observed.pods if (p.stage, p.attempt) == attempt]
    return job is not None and report_stuck(draft, Type.SAMPLES, job, pods, job.completions)
