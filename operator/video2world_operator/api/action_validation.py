"""Check the rules about actions, each of which is a rule in cel_action_rules.py too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from video2world_common import per_clip_actions
from video2world_common.model_sizes import SIZES
from video2world_operator.api.dataset_spec import ActionsSpec, DatasetSpec
from video2world_operator.api.errors import Problem, either
from video2world_operator.api.spec import Spec

__all__ = ["PER_CLIP_RANKS", "action_problems"]

_LATENT_FRAMES = 1 + (per_clip_actions.FRAMES - 1) // 4
PER_CLIP_RANKS = [n for n in range(1, _LATENT_FRAMES + 1) if SIZES["2B"].num_heads % n == 0]
"""Possible numbers of GPUs that share a clip of PerClip: each has some of its latent frames."""


def action_problems(spec: Spec) -> Iterator[Problem]:
    """Report what contradicts the actions that are read, or conditioning on them."""
    yield from _source(spec.dataset)
    conditioning = spec.training.conditioning
    if conditioning is None:
        yield from _unused(spec)
        return
    if not spec.dataset.may_have_actions:
        yield Problem(
            "spec.training.conditioning",
            "the dataset has no actions; set dataset.actions (of agibot or lerobot), use "
            "dataset.bridge, or remove it",
        )
    yield from _samples(spec)
    if spec.per_clip:
        yield from _per_clip(spec)


def _source(dataset: DatasetSpec) -> Iterator[Problem]:
    if dataset.actions is None:
        return
    if not dataset.agibot and not dataset.lerobot:
        yield Problem(
            "spec.dataset.actions",
            "they are read from agibot and lerobot only; those of bridge and of a prepared dataset "
            "need no settings, and videos have none; remove it",
        )
    yield from _distinct(dataset.actions)
    if dataset.actions.normalization == "Published" and (
        dataset.actions.representation != "RelativePose"
    ):
        yield Problem(
            "spec.dataset.actions.normalization",
            "Published scales the seven numbers of relative poses; use representation: "
            "RelativePose, or normalization: Statistics",
        )


def _distinct(actions: ActionsSpec) -> Iterator[Problem]:
    lists: dict[str, Sequence[str]] = {"columns": actions.columns, "names": actions.names}
    for field, entries in lists.items():
        for twice in sorted({entry for entry in entries if entries.count(entry) > 1}):
            yield Problem(f"spec.dataset.actions.{field}", f"{twice} is listed twice; keep one")


def _unused(spec: Spec) -> Iterator[Problem]:
    """Report settings that only a model conditioned on actions has a use for."""
    for number, sample in enumerate(spec.inference.samples):
        if sample.actions:
            yield Problem(
                f"spec.inference.samples[{number}].actions",
                "the model is not conditioned on actions; set training.conditioning, or remove it",
            )
    if spec.evaluation is not None and spec.evaluation.fail_when_actions_ignored:
        yield Problem(
            "spec.evaluation.failWhenActionsIgnored",
            "the model is not conditioned on actions; set training.conditioning, or remove it",
        )


def _samples(spec: Spec) -> Iterator[Problem]:
    """Check that each sample has actions: its own, or those of the window it continues."""
    inference = spec.inference
    without = [n for n, sample in enumerate(inference.samples) if not sample.actions]
    for number in without:
        path = inference.samples[number].input
        if not path.startswith(("val/", "train/")) and "videos/" not in path:
            yield Problem(
                f"spec.inference.samples[{number}].actions",
                f"missing; the model follows actions, and the input {path} is no window of a "
                "dataset, which would have some",
            )
    if without and inference.frames_from == "Last":
        yield Problem(
            "spec.inference.framesFrom",
            f"Last leaves no actions of the input to follow; set samples[{without[0]}].actions, or "
            "use First",
        )


def _per_clip(spec: Spec) -> Iterator[Problem]:
    """Check what the published network does not have, or has in one way only."""
    variant = "spec.training.conditioning.actions.variant"
    training, inference = spec.training, spec.inference
    if spec.model.size != "2B":
        yield Problem(
            variant,
            f"PerClip is a network of size 2B, and spec.model.size is {spec.model.size}; use 2B, "
            "or PerFrame",
        )
    if training.experiment:
        yield Problem(
            "spec.training.experiment",
            "it sets another frame size and clip length than PerClip has; remove it, or use "
            "PerFrame",
        )
    else:
        for field in ("resolution", "fps"):
            if field in spec.model.model_fields_set:
                yield Problem(
                    f"spec.model.{field}",
                    "PerClip has clips of 13 frames of 480x640; remove it, or use PerFrame",
                )
    if training.phases:
        yield Problem(
            "spec.training.phases",
            "PerClip has one frame size, 480x640; remove them, or use PerFrame",
        )
    if spec.sparse:
        yield Problem(
            "spec.training.attentionPattern",
            "Sparse weights exist for 720p only, and PerClip has frames of 480x640; use Dense, or "
            "PerFrame",
        )
    if spec.context_parallel not in PER_CLIP_RANKS:
        yield Problem(
            "spec.training.contextParallelSize",
            f"{spec.context_parallel} is not valid: the GPUs share the {_LATENT_FRAMES} latent "
            f"frames of a PerClip clip; use {either(PER_CLIP_RANKS)}",
        )
    if spec.dataset.captions:
        yield Problem("spec.dataset.captions", "PerClip has no text; remove it, or use PerFrame")
    for number, sample in enumerate(inference.samples):
        if sample.prompt or sample.negative_prompt:
            field = "prompt" if sample.prompt else "negativePrompt"
            yield Problem(
                f"spec.inference.samples[{number}].{field}",
                "PerClip has no text; remove it, or use PerFrame",
            )
    if inference.num_conditional_frames != 1:
        yield Problem(
            "spec.inference.numConditionalFrames",
            f"{inference.num_conditional_frames} is not valid: PerClip continues one frame; use 1",
        )
    if inference.gpus not in PER_CLIP_RANKS:
        yield Problem(
            "spec.inference.gpus",
            f"{inference.gpus} is not valid: they share the {_LATENT_FRAMES} latent frames of a "
            f"PerClip clip; use {either(PER_CLIP_RANKS)}",
        )
