"""Write the rules about actions as CEL; see cel_rules.py, and action_validation.py for each."""

from __future__ import annotations

from video2world_operator.api.action_validation import PER_CLIP_RANKS
from video2world_operator.api.cel_expressions import CELRule, by_size, or_default, overridden, rule
from video2world_operator.api.errors import either

__all__ = ["action_rules", "actions_rules"]

_CONDITIONED = "has(self.training.conditioning)"
_PER_CLIP = f"({_CONDITIONED} && self.training.conditioning.actions.variant == 'PerClip')"
_SAMPLES = "has(self.inference) && has(self.inference.samples)"


def actions_rules() -> list[CELRule]:
    """Return the rules between fields of spec.dataset.actions."""
    distinct = " && ".join(
        f"(!has(self.{field}) || self.{field}.all(a, self.{field}.exists_one(b, b == a)))"
        for field in ("columns", "names")
    )
    return [
        rule(distinct, "a column or name is listed twice; keep one"),
        rule(
            "self.normalization != 'Published' || self.representation == 'RelativePose'",
            "normalization: Published scales the seven numbers of relative poses; use "
            "representation: RelativePose, or normalization: Statistics",
        ),
    ]


def action_rules() -> list[CELRule]:
    """Return the rules between actions and other fields of the spec."""
    dataset_dir = overridden("dataloader_train.dataset.dataset_dir")
    sources = " || ".join(f"has(self.dataset.{name})" for name in ("actions", "bridge", "prepared"))
    unused = "the model is not conditioned on actions; set training.conditioning, or remove it"
    window = "s.input.startsWith('val/') || s.input.startsWith('train/')"
    return [
        rule(
            "!has(self.dataset) || !has(self.dataset.actions) || has(self.dataset.agibot) || "
            "has(self.dataset.lerobot)",
            "dataset.actions: they are read from agibot and lerobot only; remove them for other "
            "sources",
        ),
        rule(
            f"!{_CONDITIONED} || !has(self.dataset) || {sources} || {dataset_dir}",
            "training.conditioning: the dataset has no actions; set dataset.actions (of agibot or "
            "lerobot), use dataset.bridge, or remove it",
        ),
        rule(
            f"{_CONDITIONED} || !({_SAMPLES}) || self.inference.samples.all(s, !has(s.actions))",
            f"inference.samples.actions: {unused}",
        ),
        rule(
            f"{_CONDITIONED} || !has(self.evaluation) || "
            "!has(self.evaluation.failWhenActionsIgnored) || "
            "!self.evaluation.failWhenActionsIgnored",
            f"evaluation.failWhenActionsIgnored: {unused}",
        ),
        rule(
            f"!{_CONDITIONED} || !({_SAMPLES}) || self.inference.samples.all(s, "
            f"has(s.actions) || {window} || s.input.contains('videos/'))",
            "inference.samples.actions: missing; the model follows actions, and an input that is "
            "no window of a dataset has none",
        ),
        rule(
            f"!{_CONDITIONED} || !({_SAMPLES}) || !has(self.inference.framesFrom) || "
            "self.inference.framesFrom != 'Last' || "
            "self.inference.samples.all(s, has(s.actions))",
            "inference.framesFrom: Last leaves no actions of the input to follow; set the actions "
            "of each sample, or use First",
        ),
        *_per_clip_rules(),
    ]


def _per_clip_rules() -> list[CELRule]:
    """Return the rules about what the published network lacks, or has in one way only."""
    parallel = or_default("contextParallelSize", by_size("context_parallel_size"))
    return [
        rule(
            f"!{_PER_CLIP} || !has(self.model) || !has(self.model.size) || self.model.size == '2B'",
            "training.conditioning.actions.variant: PerClip is a network of size 2B; use 2B in "
            "model.size, or PerFrame",
        ),
        rule(
            f"!{_PER_CLIP} || !has(self.training.experiment)",
            "training.experiment sets another frame size and clip length than PerClip has; remove "
            "it, or use PerFrame",
        ),
        rule(
            f"!{_PER_CLIP} || !has(self.model) || "
            "(!has(self.model.resolution) && !has(self.model.fps))",
            "model.resolution and model.fps: PerClip has clips of 13 frames of 480x640; remove "
            "them, or use PerFrame",
        ),
        rule(
            f"!{_PER_CLIP} || !has(self.training.phases) || size(self.training.phases) == 0",
            "training.phases: PerClip has one frame size, 480x640; remove them, or use PerFrame",
        ),
        rule(
            f"!{_PER_CLIP} || !has(self.training.attentionPattern) || "
            "self.training.attentionPattern != 'Sparse'",
            "training.attentionPattern: Sparse weights exist for 720p only, and PerClip has frames "
            "of 480x640; use Dense, or PerFrame",
        ),
        rule(
            f"!{_PER_CLIP} || !has(self.model) || !has(self.model.size) || "
            f"{overridden('model_parallel.context_parallel_size')} || "
            f"{parallel} in {PER_CLIP_RANKS}",
            "training.contextParallelSize: the GPUs share the 4 latent frames of a PerClip clip; "
            f"use {either(PER_CLIP_RANKS)}",
        ),
        rule(
            f"!{_PER_CLIP} || !has(self.dataset) || !has(self.dataset.captions)",
            "dataset.captions: PerClip has no text; remove it, or use PerFrame",
        ),
        rule(
            f"!{_PER_CLIP} || !({_SAMPLES}) || self.inference.samples.all(s, "
            "(!has(s.prompt) || s.prompt == '') && !has(s.negativePrompt))",
            "inference.samples: PerClip has no text; remove prompt and negativePrompt, or use "
            "PerFrame",
        ),
        rule(
            f"!{_PER_CLIP} || !has(self.inference) || "
            "!has(self.inference.numConditionalFrames) || "
            "self.inference.numConditionalFrames == 1",
            "inference.numConditionalFrames: PerClip continues one frame; use 1",
        ),
        rule(
            f"!{_PER_CLIP} || !has(self.inference) || !has(self.inference.gpus) || "
            f"self.inference.gpus in {PER_CLIP_RANKS}",
            "inference.gpus: they share the 4 latent frames of a PerClip clip; use "
            f"{either(PER_CLIP_RANKS)}",
        ),
    ]
