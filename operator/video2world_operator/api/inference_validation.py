"""Check the rules of spec.inference and spec.evaluation; each is a rule in cel_rules.py too."""

from __future__ import annotations

from collections.abc import Iterator

from video2world_common.model_sizes import SIZES
from video2world_operator.api.constants import UNKNOWN_ITERATION
from video2world_operator.api.errors import Problem, either
from video2world_operator.api.inference_spec import MAX_GPUS
from video2world_operator.api.spec import Spec
from video2world_operator.api.training_validation import held_out_problems

__all__ = ["evaluation_problems", "inference_problems"]


def inference_problems(spec: Spec) -> Iterator[Problem]:
    """Report what contradicts spec.inference."""
    inference = spec.inference
    if inference.checkpoint is not None and inference.checkpoints:
        yield Problem(
            "spec.inference.checkpoint",
            f"{inference.checkpoint} is set together with checkpoints; keep one of them (move this "
            "one into the list)",
        )
    if inference.every_checkpoint and not inference.samples:
        yield Problem(
            "spec.inference.everyCheckpoint",
            "there is nothing to generate; add inference.samples, or remove it",
        )
    heads, gpus = SIZES[spec.model.size].num_heads, inference.gpus
    if heads % spec.ranks_per_branch(gpus):
        fitting = [n for n in range(1, MAX_GPUS + 1) if heads % spec.ranks_per_branch(n) == 0]
        yield Problem(
            "spec.inference.gpus",
            f"{gpus} is not valid: {_who_shares(gpus, spec.ranks_per_branch(gpus))} must "
            f"divide the {heads} attention heads of {spec.model.size}; use {either(fitting)}",
        )
    if "best" in inference.names and spec.training.validation is None:
        field = "checkpoints" if inference.checkpoints else "checkpoint"
        yield Problem(
            f"spec.inference.{field}",
            "best is the checkpoint with the least validation loss, and nothing is validated; add "
            "training.validation, or use latest",
        )
    field = "spec.inference.checkpoints" if inference.checkpoints else "spec.inference.checkpoint"
    yield from _unknown_iterations(spec, field, inference.names)
    if inference.weights == "EMA" and not spec.training.ema:
        yield Problem(
            "spec.inference.weights",
            "EMA weights are not saved with training.ema: false; use Regular, or remove "
            "training.ema",
        )


def _unknown_iterations(spec: Spec, field: str, names: list[str]) -> Iterator[Problem]:
    """Refuse to name iterations of checkpoints that the trainer chooses."""
    last = spec.training.iterations
    if spec.training.checkpoint.every_iterations == "Auto" and last is not None:
        digits = [name for name in names if {name[0], name[-1]} <= {*"0123456789"}]
        wrong = [name for name in digits if name != str(last)]
        if wrong:
            yield Problem(field, f"{wrong[0]}: {UNKNOWN_ITERATION}")


def _who_shares(gpus: int, ranks: int) -> str:
    return "they" if ranks == gpus else f"the {ranks} that share a branch of guidance"


def evaluation_problems(spec: Spec) -> Iterator[Problem]:
    """Report what contradicts spec.evaluation."""
    if spec.evaluation is None:
        return
    yield from held_out_problems(spec, "spec.evaluation")
    if "best" in spec.evaluation.names and spec.training.validation is None:
        yield Problem(
            "spec.evaluation.checkpoints",
            "best is the checkpoint with the least validation loss, and nothing is validated; add "
            "training.validation, or use latest",
        )
    yield from _unknown_iterations(spec, "spec.evaluation.checkpoints", spec.evaluation.names)
    late = [n for n in spec.evaluation.names if n.isdecimal() and int(n) > spec.iterations]
    if late and spec.training.iterations is not None:
        yield Problem(
            "spec.evaluation.checkpoints",
            f"{late[0]} comes after the last iteration, {spec.iterations} "
            "(spec.training.iterations); use an earlier one, or latest",
        )
    if len(set(spec.evaluation.metrics)) < len(spec.evaluation.metrics):
        yield Problem("spec.evaluation.metrics", "a metric is named twice; keep one")
