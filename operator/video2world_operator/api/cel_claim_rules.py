"""Write the rules about claims for devices as CEL; see cel_rules.py."""

from __future__ import annotations

from video2world_operator.api.cel_expressions import CELRule, rule
from video2world_operator.api.constants import GPU, STAGES, STAGES_WITHOUT_GPU

__all__ = ["claim_rules"]


def claim_rules() -> list[CELRule]:
    """Return the rules about claims for devices."""
    claiming = {stage: _claims(f"self.stages.{stage}") for stage in STAGES}
    of_group = "(has(self.training.resourceClaims) && size(self.training.resourceClaims) > 0)"
    anything = " || ".join(
        [of_group, *(claiming[s] for s in STAGES if s not in STAGES_WITHOUT_GPU)]
    )
    unset = "(!has(self.training.device) || self.training.device == 'Auto')"
    on_cpu = (
        "((has(self.training.device) && self.training.device == 'CPU') || "
        f"({unset} && has(self.model) && has(self.model.size) && self.model.size == 'Tiny'))"
    )
    claiming_group = {**claiming, "train": f"({of_group} || {claiming['train']})"}
    limited = [f"({claiming_group[stage]} && {_limited(stage)})" for stage in STAGES]
    return [
        rule(
            f"!({of_group} && {claiming['train']})",
            "stages.train.resourceClaims is set together with training.resourceClaims; keep one of "
            "them",
        ),
        rule(
            f"!({' || '.join(claiming[stage] for stage in STAGES_WITHOUT_GPU)})",
            f"stages.resourceClaims: the stages {', '.join(STAGES_WITHOUT_GPU)} use no GPU; remove "
            "it there",
        ),
        rule(
            f"!({anything}) || !{on_cpu}",
            "resourceClaims: the device is CPU; remove them, or set training.device: GPU",
        ),
        rule(
            f"!({' || '.join(limited)})",
            f"stages.resources: {GPU} is set together with resourceClaims, which the stage's GPUs "
            "come from; remove one of them",
        ),
    ]


def _claims(place: str) -> str:
    """Return a CEL expression: the stage at ``place`` has claims."""
    claims = f"{place}.resourceClaims"
    return f"(has(self.stages) && has({place}) && has({claims}) && size({claims}) > 0)"


def _limited(stage: str) -> str:
    """Return a CEL expression: the stage's resources name GPUs."""
    place = f"self.stages.{stage}"
    named = " || ".join(
        f"(has({place}.resources.{part}) && '{GPU}' in {place}.resources.{part})"
        for part in ("requests", "limits")
    )
    return f"(has(self.stages) && has({place}) && has({place}.resources) && ({named}))"
