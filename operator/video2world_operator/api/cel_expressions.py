"""Write the CEL expressions that several rules between fields are made of."""

from __future__ import annotations

from video2world_common.model_sizes import SIZES

__all__ = [
    "LAST_PHASE",
    "NAME",
    "NOT_EMPTY",
    "PHASED",
    "VALUE",
    "CELRule",
    "by_size",
    "or_default",
    "overridden",
    "rule",
]

CELRule = dict[str, str]

# CEL for an override ``o``, written as name=value or "+ name = 'value'".
NAME = "o.split('=')[0].replace('+', ' ').trim()"
VALUE = """o.substring(o.indexOf('=') + 1).replace('"', ' ').replace("'", ' ').trim()"""
NOT_EMPTY = """o.matches('(?s)=.*[^\\\\s"\\']')"""

PHASED = "(has(self.training.phases) && size(self.training.phases) > 0)"
LAST_PHASE = "self.training.phases[size(self.training.phases) - 1]"


def rule(expression: str, message: str) -> CELRule:
    """Return a rule of the CRD: its expression, and the message if that is false."""
    return {"rule": expression, "message": message}


def overridden(name: str) -> str:
    """Return a CEL expression: the override ``name`` is set."""
    overrides = "self.training.overrides"
    return f"(has({overrides}) && {overrides}.exists(o, {NAME} == '{name}' && {NOT_EMPTY}))"


def by_size(field: str) -> str:
    """Return a CEL expression: the default of ``field`` for the model's size."""
    values = {name: getattr(size, field) for name, size in SIZES.items()}
    size = "self.model.size"
    return f"({size} == 'Tiny' ? {values['Tiny']} : {size} == '2B' ? {values['2B']} : " + (
        f"{values['14B']})"
    )


def or_default(field: str, default: str) -> str:
    """Return a CEL expression: ``field`` of spec.training, or ``default`` without it."""
    return f"(has(self.training.{field}) ? self.training.{field} : {default})"
