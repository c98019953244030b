"""Explain why a field's value is refused, and what to write instead."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.api.errors import nearest
from video2world_operator.api.resource import Video2WorldPostTrain

__all__ = ["Schema", "at", "message", "missing", "unknown", "without_nulls"]

Schema = Mapping[str, Any]
MOST_SHOWN = 60  # characters of a refused value

_HINTS = {
    "apiVersion": f"write apiVersion: {API_VERSION}",
    "kind": f"write kind: {KIND}",
    "spec": "write model, dataset and training in it",
    "spec.model": "write model: {size: 2B} (or 14B, Tiny), or set spec.training.experiment",
    "spec.model.size": "use Tiny, 2B or 14B",
    "spec.dataset": "set one of agibot, lerobot, prepared or videos: {agibot: {taskIDs: [327]}}",
    "spec.training": "write training: {iterations: 1000}",
    "metadata": "write metadata: {name: ...}",
    "metadata.name": "write a name for the resource",
}
_KEYS = (
    "use letters, digits, dashes, dots and underscores, at most 63 characters, with or without a "
    "domain in front, such as example.com/team"
)
_BOOLEAN_WORDS = ("true", "false", "yes", "no", "on", "off", "y", "n")


# ---------------------------------------------------------------------- the schema


@cache
def _root() -> dict[str, Any]:
    return Video2WorldPostTrain.model_json_schema(by_alias=True, mode="validation")


def _branches(node: Schema) -> list[Schema]:
    """Return the schemas that a value may have: several for a number or text; never null."""
    if "$ref" in node:
        target = _root()["$defs"][node["$ref"].rpartition("/")[2]]
        return _branches({**target, **{k: v for k, v in node.items() if k != "$ref"}})
    found = [one for branch in node.get("anyOf", []) for one in _branches(branch)]
    about = {key: node[key] for key in ("description", "default", "examples") if key in node}
    found = [{**branch, **about} for branch in found or [node]]
    return [branch for branch in found if branch.get("type") != "null"]


def _inner(node: Schema, part: str | int) -> Schema | None:
    """Return the schema of a field or item of ``node``."""
    if isinstance(part, int):
        return node.get("items")
    if part in node.get("properties", {}):
        return dict(node["properties"][part])
    keyed = node.get("patternProperties")  # labels and annotations
    values = next(iter(keyed.values())) if keyed else node.get("additionalProperties")
    return values if isinstance(values, Mapping) else None


def at(location: Sequence[str | int]) -> list[Schema]:
    """Return the schemas of a location in the document; empty if anything is allowed there."""
    nodes = _branches(_root())
    for part in location:
        nodes = [b for node in nodes if (one := _inner(node, part)) for b in _branches(one)]
    return nodes


def without_nulls(value: Any, node: Schema | None = None) -> Any:
    """Drop the null fields that the API server drops too: those that the schema defines."""
    nodes = _branches(_root() if node is None else node)
    if isinstance(value, dict):
        made = {}
        for name, inner in value.items():
            known = next((one for n in nodes if (one := _inner(n, name)) is not None), None)
            if known is not None and inner is None:
                continue
            made[name] = inner if known is None else without_nulls(inner, known)
        return made
    items = next((n["items"] for n in nodes if "items" in n), None)
    if isinstance(value, list) and items is not None:
        return [without_nulls(inner, items) for inner in value]
    return value


# ---------------------------------------------------------------------- messages


def missing(path: str, location: Sequence[str | int]) -> str:
    """Explain that a required field is missing."""
    hint = _HINTS.get(path)
    nodes = at(location)
    if not hint:
        example = f": {location[-1]}: {_flow(_example(nodes[0]))}" if nodes else ""
        hint = f"set it{_described(nodes)}{example}"
    return f"missing; {hint}"


def unknown(location: Sequence[str | int]) -> str:
    """Explain that a field does not exist."""
    known = [name for node in at(location[:-1]) for name in node.get("properties", {})]
    return f"unknown field; {nearest(location[-1], known)}"


def message(location: Sequence[str | int], value: Any, source: str | None = None) -> str:
    """Explain why the schema refuses ``value``; ``source`` is its text in the file."""
    if location[-1:] == ["[key]"]:
        return f"{_shown(location[-2])} is not valid as a key; {_KEYS}"
    nodes = at(location)
    if not nodes or not location:
        return f"{_shown(value)} is not valid; remove it"
    choices = _choices(nodes)
    several = any(not _choices([node]) for node in nodes)  # a number, or one word
    if choices and type(value) is type(choices[0]) and not several:
        near = nearest(value, map(str, choices))
        asked = f"; {near}" if near.startswith("did") else ""
        return f"{_shown(value)} is not one of the choices; use {_either(choices)}{asked}"
    remedy = _remedy(nodes, value, source, item=isinstance(location[-1], int))
    return f"{_shown(value)} is not valid{_described(nodes)}; {remedy}"


def _remedy(nodes: Sequence[Schema], value: Any, source: str | None, *, item: bool) -> str:
    kinds = {node.get("type", _kind(node)): node for node in nodes}
    written = source if source is not None else _flow(value)
    if "array" in kinds:
        return _of_list(kinds["array"], value)
    if "object" in kinds:
        return _of_object(kinds["object"], value, item=item)
    if "boolean" in kinds:
        unquoted = isinstance(value, str) and value.strip().lower() in _BOOLEAN_WORDS
        return "write true or false" + (" without quotes" if unquoted else "")
    number = kinds.get("integer") or kinds.get("number")
    if isinstance(value, str) and number and (meant := _number(value, number)) is not None:
        return f"write {meant} without quotes"
    text = kinds.get("string")
    if number and text and (words := _choices([text])):  # a number, or one word
        return f"{_of_number(number)}, or {_either(words)}"
    if text and (choices := text.get("enum")):
        return f"use {_either(choices)}"
    if text and isinstance(value, (bool, int, float)) and not (number and value.__class__ is int):
        own = written and len(written) < MOST_SHOWN and _fits(written, text)
        quoted = written if own else str(_example(text))
        return f"write it in quotes, such as {json.dumps(quoted, ensure_ascii=False)}"
    if text:
        return _of_text(text, value)
    return _of_number(number or {})


def _of_list(node: Schema, value: Any) -> str:
    most, least = node.get("maxItems"), node.get("minItems", 0)
    if isinstance(value, list):
        if most is not None and len(value) > most:
            return f"it has {len(value)} entries, use at most {most}"
        return f"write at least {_count(least, 'entry', 'entries')}, such as {_list_of(node)}"
    items = _branches(node["items"])
    short = isinstance(value, (str, int, float)) and len(str(value)) < MOST_SHOWN
    own = short and any(_fits(value, item) for item in items)
    return f"write a list: {_list_of(node, value if own else None)}"


def _list_of(node: Schema, value: Any = None) -> str:
    """Write a list in YAML, with ``value`` or an example in it."""
    (item, *_) = _branches(node["items"])
    if item.get("type") == "object" and "properties" in item:
        return _block_item(item)
    default = node.get("default")
    if value is None and default:
        return _flow(default)
    return _flow([_example(item) if value is None else value])


def _block_item(item: Schema, value: Any = None) -> str:
    example = _example(item)
    if isinstance(value, str) and len(item.get("required", [])) == 1 and len(value) < MOST_SHOWN:
        field = item["required"][0]
        inner = _branches(item["properties"][field])[0]
        example = {field: value} if _fits(value, inner) else example
    text = _flow(example)
    return f"`- {text[1:-1] if len(example) == 1 else text}`"


def _of_object(node: Schema, value: Any, *, item: bool) -> str:
    most = node.get("maxProperties")
    if isinstance(value, dict) and most is not None:
        return f"it has {len(value)} entries, use at most {most}"
    if "properties" in node:
        return f"write {_block_item(node, value) if item else _flow(_example(node))}"
    values = _inner(node, "")
    shown = _example(_branches(values)[0]) if values else "..."
    return f"write fields in it, as in name: {_flow(shown)}"


def _of_text(node: Schema, value: Any) -> str:
    most = node.get("maxLength")
    if isinstance(value, str) and most is not None and len(value) > most and "expected" not in node:
        return f"it has {len(value)} characters, use at most {most}"
    if "expected" not in node:
        return "write text"
    if isinstance(value, str) and (better := _better(node, value)):
        return better
    return f"write {node['expected']}, such as {_example(node)}"


def _better(node: Schema, value: str) -> str:
    """Suggest a valid value close to ``value``; empty if none is obvious."""
    quantity = re.fullmatch(r"([0-9.]+) *([kKMGTPE])(i?)[bB]?", value.strip())
    if quantity and any(unit in node["expected"] for unit in ("Ki",)):
        number, unit = quantity[1], quantity[2]
        decimal = f"{number}{'k' if unit in 'kK' else unit}"
        options = [one for one in (decimal, f"{number}{unit.upper()}i") if _fits(one, node)]
        return f"write {_either(options)}" if options else ""
    if node["expected"].startswith("lowercase"):
        allowed = "-a-z0-9." if "dots" in node["expected"] else "-a-z0-9"
        name = re.sub(f"[^{allowed}]+", "-", value.lower())[: node["maxLength"]].strip("-.")
        if _fits(name, node):
            return f"write {node['expected']}, such as {name}"
    return ""


def _of_number(node: Schema) -> str:
    if choices := node.get("enum"):
        return f"use {_either(choices)}"
    whole = "a whole number" if node["type"] == "integer" else "a number"
    low, high = node.get("minimum"), node.get("maximum")
    above = node.get("exclusiveMinimum")
    start = f"above {_flow(above)} and at most" if above is not None else f"from {_flow(low)} to"
    bounds = f" {start} {_flow(high)}" if high is not None else ""
    return f"write {whole}{bounds}, such as {_flow(_example(node))}"


# ---------------------------------------------------------------------- values


def _kind(node: Schema) -> str:
    return (
        "object"
        if {"properties", "additionalProperties", "patternProperties"} & set(node)
        else "string"
    )


def _choices(nodes: Sequence[Schema]) -> list[Any]:
    return [c for n in nodes for c in n.get("enum", [n["const"]] if "const" in n else [])]


def _number(text: str, node: Schema) -> str | None:
    """Return ``text`` if it is a number that ``node`` accepts."""
    text = text.strip()
    try:
        value: int | float = int(text) if node["type"] == "integer" else float(text)
    except ValueError:
        return None
    return text if _fits(value, node) and text.isascii() and "_" not in text else None


def _fits(value: Any, node: Schema) -> bool:
    """Return whether ``node`` accepts the scalar ``value``."""
    if node.get("type") == "string":
        if not isinstance(value, str):
            return False
        length = node.get("minLength", 0) <= len(value) <= node.get("maxLength", len(value))
        return length and (re.search(node.get("pattern", ""), value) is not None)
    if node.get("type") not in ("integer", "number") or isinstance(value, (bool, str)):
        return False
    if node.get("enum"):
        return value in node["enum"]
    low, high = node.get("minimum", value), node.get("maximum", value)
    return bool(low <= value <= high) and bool(value > node.get("exclusiveMinimum", value - 1))


def _example(node: Schema) -> Any:
    """Return a valid value."""
    if node.get("examples"):
        return node["examples"][0]
    if choices := _choices([node]):
        return choices[0]
    if node.get("default") is not None and not isinstance(node["default"], (dict, list)):
        return node["default"]
    match node.get("type"):
        case "object":
            fields: Mapping[str, Any] = node.get("properties", {})
            names = node.get("required") or list(fields)[:1]
            return {name: _example(_branches(fields[name])[0]) for name in names}
        case "array":
            return [_example(_branches(node["items"])[0])]
        case "boolean":
            return True
        case "integer" | "number":
            low = node.get("minimum", 0)
            return 1000 if low <= 1000 <= node.get("maximum", 1000) and "maximum" in node else low
        case _:
            return "text"


def _described(nodes: Sequence[Schema]) -> str:
    text = next((n["description"] for n in nodes if n.get("description")), "")
    first = text.partition(". ")[0].strip().rstrip(".")
    return f" ({first})" if first else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        short = value if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]}..."
        return repr(short)
    return "an empty entry" if value is None else _flow(value)


def _flow(value: Any) -> str:
    """Write a value as YAML in flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)


def _either(choices: Sequence[Any]) -> str:
    *first, last = map(_flow, choices)
    return f"{', '.join(first)} or {last}" if first else last


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
