"""Check overrides for settings of the train command that have no field of their own.

train_settings.json describes the settings; ``make generate`` writes it from the trainer.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["ALLOWED", "SETTINGS", "objection"]

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SETTINGS: Mapping[str, Mapping[str, Any]] = _DATA["settings"]
_FIXED: Mapping[str, Mapping[str, Any]] = _DATA["fixed"]
ALLOWED: Mapping[str, Iterable[str]] = {k: v["values"] for k, v in _FIXED.items() if v["values"]}
"""Fixed settings, each with the values that it has anyway, in lower case."""
_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "tuple[int, ...]": "two whole numbers, as [704,1280]",
    "tuple[float, ...]": "two numbers, as [0.9,0.99]",
}


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """Suggest a setting: a similar one in the same section, or one with the same last name."""
    place, _, last = name.rpartition(".")
    there = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == place}
    near = difflib.get_close_matches(last, there, n=1, cutoff=0.7)
    same = [one for one in known if one.rpartition(".")[2] == last]
    return there[near[0]] if near else same[0] if len(same) == 1 else None


def objection(name: str, value: str) -> str | None:
    """Explain why the train command would refuse ``name=value``; return None if it accepts it."""
    if name in SETTINGS:
        return _value(name, value, SETTINGS[name])
    near = _nearest(name, SETTINGS)
    fixed = [key for key in _FIXED if name == key or (key[-1] == "." and name.startswith(key))]
    if name not in _FIXED and near:
        return f"{name} is not a known setting; did you mean {near}?"
    if not fixed:
        return f"{name} is not a known setting; docs/reference/training.md lists them"
    found = _FIXED[max(fixed, key=len)]
    if value.lower() in found["values"]:
        return None
    return f"{name}={value} cannot be set here: {found['reason']}"


def _value(name: str, value: str, facts: Mapping[str, Any]) -> str | None:
    kind, choices = facts["kind"], facts["choices"]
    if choices and value not in choices:
        return f"{value!r} is not valid for {name}; use one of {', '.join(choices)}"
    if kind == "str":
        return None
    try:
        numbers = _numbers(kind, value)
    except (KeyError, ValueError):
        return f"{value!r} is not valid for {name}; use {_EXPECTED[kind]}"
    low, high = facts["low"], facts["high"]
    if low is not None and min(numbers) < low:
        return f"{value!r} is not valid for {name}; use at least {low}"
    if high is not None and max(numbers) > high:
        return f"{value!r} is not valid for {name}; use at most {high}"
    return None


def _numbers(kind: str, value: str) -> list[float]:
    if kind == "bool":
        return [{"true": 1.0, "false": 0.0}[value.lower()]]
    inner = re.sub(r"^[\[(](.*)[\])]$", r"\1", value)
    read = int if "int" in kind else float
    numbers = [float(read(one)) for one in inner.split(",")]
    if len(numbers) != (2 if kind.startswith("tuple") else 1) or not all(
        map(math.isfinite, numbers)
    ):
        raise ValueError
    return numbers
