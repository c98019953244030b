"""Check the rules of spec.training, each of which is a rule in cel_rules.py too."""

from __future__ import annotations

from collections.abc import Iterator

from video2world_common.attention_pattern import published_pattern
from video2world_common.model_sizes import SIZES
from video2world_operator.api.errors import Problem, either
from video2world_operator.api.spec import MAX_ACCUMULATION, Spec

__all__ = ["held_out_problems", "training_problems"]


def training_problems(spec: Spec) -> Iterator[Problem]:
    """Report what contradicts spec.training."""
    heads = SIZES[spec.model.size].num_heads
    phases = spec.training.phases
    if spec.training.iterations is None and (not phases or phases[-1].iterations is None):
        yield Problem(
            "spec.training.iterations",
            "missing; set the number of steps to train, such as 1000, or spec.training.experiment",
        )
    world = spec.nodes * spec.processes_per_node
    if world % spec.context_parallel or heads % spec.context_parallel:
        fitting = [n for n in range(1, world + 1) if world % n == 0 and heads % n == 0]
        yield Problem(
            "spec.training.contextParallelSize",
            f"{spec.context_parallel} is not valid: it must divide nodes x gpusPerNode ({world}) "
            f"and the {heads} attention heads of {spec.model.size}; use {either(fitting)}",
        )
    if spec.device == "CPU" and not spec.tiny:
        yield Problem(
            "spec.training.device",
            f"CPU cannot train {spec.model.size}; use GPU, or spec.model.size Tiny",
        )
    yield from _min_nodes(spec)
    yield from _phases(spec)
    yield from _attention_pattern(spec)
    yield from _validation(spec)


def _min_nodes(spec: Spec) -> Iterator[Problem]:
    least, field = spec.training.min_nodes, "spec.training.minNodes"
    if least is None or least == spec.nodes:
        return
    if least > spec.nodes:
        yield Problem(field, f"{least} is more than spec.training.nodes ({spec.nodes}); use fewer")
    elif len(spec.usable_nodes) < 2:
        smaller = sorted(set(spec.nodes_keeping_batch) - {spec.nodes})
        remedy = f"use {either(smaller)}" if smaller else "remove it, or change nodes"
        yield Problem(
            field,
            f"{least} is not valid: no node count from {least} to {spec.nodes - 1} divides nodes "
            f"({spec.nodes}), at most by {MAX_ACCUMULATION}, and holds whole context-parallel "
            f"groups ({spec.context_parallel} processes, {spec.processes_per_node} per node); "
            f"{remedy}",
        )


def _phases(spec: Spec) -> Iterator[Problem]:
    phases, total, field = spec.training.phases, spec.training.iterations, "spec.training.phases"
    if not phases:
        return
    if "resolution" in spec.model.model_fields_set:
        yield Problem(
            "spec.model.resolution",
            f"{spec.model.resolution} is set together with training.phases, which set the "
            "resolution; keep one of them",
        )
    for number, phase in enumerate(phases[:-1]):
        if phase.iterations is None:
            yield Problem(
                f"{field}[{number}].iterations",
                "missing; set how long this phase is: only the last can take the rest",
            )
        if phase.resolution == phases[number + 1].resolution:
            yield Problem(
                f"{field}[{number + 1}].resolution",
                f"{phase.resolution} is that of the phase before, too; make them one",
            )
    before, last = sum(phase.iterations or 0 for phase in phases[:-1]), phases[-1].iterations
    if total is not None and last is not None and before + last != total:
        yield Problem(
            "spec.training.iterations",
            f"{total} contradicts training.phases, which add up to {before + last}; remove it, or "
            "the iterations of the last phase",
        )
    if total is not None and last is None and total <= before:
        yield Problem(
            "spec.training.iterations",
            f"{total} leaves no iteration for the last of training.phases: those before take "
            f"{before}; raise it, or shorten them",
        )


def _attention_pattern(spec: Spec) -> Iterator[Problem]:
    field, training = "spec.training.attentionPattern", spec.training
    published = published_pattern(spec.model.weights or "")
    if published is not None and published != training.attention_pattern.lower():
        yield Problem(
            field,
            f"{training.attention_pattern} cannot start from {spec.model.weights} "
            f"(spec.model.weights), which has {published} attention; use {published.capitalize()}, "
            "or remove the weights",
        )
    if not spec.sparse:
        return
    others = [phase.resolution for phase in spec.phases if phase.resolution != "720p"]
    if others and not spec.tiny:
        where = "a phase's resolution" if training.phases else "spec.model.resolution"
        yield Problem(
            field,
            f"Sparse weights exist for 720p only, and {where} is {others[0]}; use 720p, or Dense",
        )
    if training.attention not in ("Auto", "FlashAttention4"):
        yield Problem(
            field,
            f"{training.attention} (spec.training.attention) has no Sparse attention; use Auto, or "
            "Dense",
        )


def _validation(spec: Spec) -> Iterator[Problem]:
    validation, training = spec.training.validation, spec.training
    field = "spec.training.validation"
    if validation is None:
        limit = training.stop_when.validation_loss_not_better_for
        if limit is not None:
            yield Problem(
                "spec.training.stopWhen.validationLossNotBetterFor",
                f"nothing is validated; add {field}, or remove it",
            )
        return
    if validation.weights == "EMA" and not training.ema:
        yield Problem(
            f"{field}.weights",
            "there are no EMA weights with training.ema: false; use Regular, or remove "
            "training.ema",
        )
    yield from held_out_problems(spec, field)


def held_out_problems(spec: Spec, field: str) -> Iterator[Problem]:
    """Check that the windows that ``field`` is about are held out."""
    dataset = spec.dataset
    for name, source, held_out in (
        ("agibot", dataset.agibot, "validationEpisodeIDs"),
        ("lerobot", dataset.lerobot, "validationEpisodes"),
        ("videos", dataset.videos, "validationNames"),
    ):
        if source is not None and not source.holds_out:
            yield Problem(
                field,
                f"there are no held-out windows; set dataset.{name}.{held_out} or "
                "validationPercent, or remove it",
            )
