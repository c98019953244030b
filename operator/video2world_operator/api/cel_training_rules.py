"""Write the rules about phases and validation as CEL; see cel_rules.py."""

from __future__ import annotations

from video2world_operator.api.cel_expressions import LAST_PHASE, PHASED, CELRule, rule
from video2world_operator.api.constants import UNKNOWN_ITERATION
from video2world_operator.api.spec import MAX_ACCUMULATION
from video2world_operator.api.training_spec import MAX_PHASES

__all__ = [
    "HELD_OUT",
    "automatic_interval_rules",
    "holds_out",
    "min_nodes_rules",
    "phases_rules",
    "validation_rules",
]

_DIGITS = [*"0123456789"]
_FACTORS = list(range(2, MAX_ACCUMULATION + 1))
_ADDED_PHASES = "self.training.phases.map(p, has(p.iterations) ? p.iterations : 0).sum()"


def phases_rules() -> list[CELRule]:
    """Return the rules about phases."""
    phases, total = "self.training.phases", "self.training.iterations"
    numbers, added = list(range(MAX_PHASES - 1)), _ADDED_PHASES
    return [
        rule(
            f"!{PHASED} || !has(self.model) || !has(self.model.resolution)",
            "model.resolution is set together with training.phases, which set the resolution; keep "
            "one of them",
        ),
        rule(
            f"!{PHASED} || {numbers}.all(i, i + 1 >= size({phases}) || "
            f"has({phases}[i].iterations))",
            "training.phases: iterations are missing; only the last phase can take the rest",
        ),
        rule(
            f"!{PHASED} || {numbers}.all(i, i + 1 >= size({phases}) || "
            f"{phases}[i].resolution != {phases}[i + 1].resolution)",
            "training.phases: two phases in a row have the same resolution; make them one",
        ),
        rule(
            f"!{PHASED} || !has({total}) || "
            f"(has({LAST_PHASE}.iterations) ? {added} == {total} : {added} < {total})",
            "training.iterations contradicts training.phases: it must be their sum, or leave some "
            "to a last phase without iterations",
        ),
    ]


def min_nodes_rules(known: str, nodes: str, plain: str, whole: str) -> list[CELRule]:
    """Return the rules about minNodes, of CEL expressions.

    Args:
        known: ``nodes`` can be evaluated.
        nodes: the nodes asked for.
        plain: ``whole`` can be evaluated.
        whole: a group of ``nodes / k`` nodes holds whole context-parallel groups.
    """
    least = "self.training.minNodes"
    return [
        rule(
            f"!has({least}) || !({known}) || {least} <= {nodes}",
            "training.minNodes is more than training.nodes; lower it",
        ),
        rule(
            f"!has({least}) || !({plain}) || {least} >= {nodes} || {_FACTORS}.exists(k, "
            f"{nodes} % k == 0 && {nodes} / k >= {least} && {whole})",
            "training.minNodes: no smaller node count divides training.nodes and holds whole "
            "context-parallel groups; lower it, or remove it",
        ),
    ]


def validation_rules() -> list[CELRule]:
    """Return the rules about validation, unless an override may turn it on."""
    plain = "(!has(self.training.overrides) || size(self.training.overrides) == 0)"
    validation = "self.training.validation"
    limit = "self.training.stopWhen.validationLossNotBetterFor"
    best = (
        "has(self.inference) && ((has(self.inference.checkpoint) && "
        "string(self.inference.checkpoint) == 'best') || (has(self.inference.checkpoints) && "
        "self.inference.checkpoints.exists(c, string(c) == 'best')))"
    )

    return [
        rule(
            f"!{plain} || !has(self.training.stopWhen) || !has({limit}) || has({validation})",
            "training.stopWhen.validationLossNotBetterFor: nothing is validated; add "
            "training.validation, or remove it",
        ),
        rule(
            f"!has({validation}) || !has({validation}.weights) || {validation}.weights != 'EMA' "
            "|| !has(self.training.ema) || self.training.ema",
            "training.validation.weights: there are no EMA weights with training.ema: false; use "
            "Regular, or remove training.ema",
        ),
        rule(
            f"!has({validation}) || !has(self.dataset) || "
            f"({' && '.join(map(holds_out, HELD_OUT))})",
            "training.validation: there are no held-out windows; set validationEpisodeIDs, "
            "validationEpisodes, validationNames or validationPercent in dataset, or remove it",
        ),
        rule(
            f"!{plain} || !({best}) || has({validation})",
            "inference.checkpoint: best is the checkpoint with the least validation loss, and "
            "nothing is validated; add training.validation, or use latest",
        ),
        rule(
            f"!{plain} || !has(self.evaluation) || !has(self.evaluation.checkpoints) || "
            "!self.evaluation.checkpoints.exists(c, string(c) == 'best') || "
            f"has({validation})",
            "evaluation.checkpoints: best is the checkpoint with the least validation loss, and "
            "nothing is validated; add training.validation, or use latest",
        ),
    ]


def automatic_interval_rules() -> list[CELRule]:
    """Refuse to name iterations of checkpoints that the trainer chooses.

    A number is what starts and ends with a digit: the API server would take matches() for too
    expensive, since it does not bound the length of a text where integers are allowed too.
    """
    every, last = "self.training.checkpoint.everyIterations", "self.training.iterations"
    fixed = (
        f"!has(self.training.checkpoint) || !has({every}) || string({every}) != 'Auto' || "
        f"!has({last})"
    )

    def known(name: str) -> str:
        ends = [f"{name}.charAt({place}) in {_DIGITS}" for place in ("0", f"size({name}) - 1")]
        return f"(!({' && '.join(ends)}) || {name} == string({last}))"

    one, several = "self.inference.checkpoint", "self.inference.checkpoints"
    evaluated = "self.evaluation.checkpoints"
    return [
        rule(
            f"{fixed} || !has(self.inference) || !has({one}) || {known(one)}",
            f"inference.checkpoint: {UNKNOWN_ITERATION}",
        ),
        rule(
            f"{fixed} || !has(self.inference) || !has({several}) || "
            f"{several}.all(c, {known('string(c)')})",
            f"inference.checkpoints: {UNKNOWN_ITERATION}",
        ),
        rule(
            f"{fixed} || !has(self.evaluation) || !has({evaluated}) || "
            f"{evaluated}.all(c, {known('string(c)')})",
            f"evaluation.checkpoints: {UNKNOWN_ITERATION}",
        ),
    ]


HELD_OUT = {
    "agibot": "validationEpisodeIDs",
    "lerobot": "validationEpisodes",
    "videos": "validationNames",
}


def holds_out(source: str) -> str:
    """Return a CEL expression: ``source`` is another one, or holds out some windows."""
    place = f"self.dataset.{source}"
    listed = f"{place}.{HELD_OUT[source]}"
    percent = f"(has({place}.validationPercent) && {place}.validationPercent > 0)"
    return f"(!has({place}) || (has({listed}) && size({listed}) > 0) || {percent})"
