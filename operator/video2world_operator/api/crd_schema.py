"""Build the CustomResourceDefinition from the API's models."""

from __future__ import annotations

from typing import Any

from video2world_common.experiments import EXPERIMENTS
from video2world_operator.api import cel_rules
from video2world_operator.api.constants import GROUP, KIND, PLURAL, VERSION
from video2world_operator.api.experiments import OVERRIDES, SHORT_NAMES, fields_of
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.api.spec import Spec
from video2world_operator.api.status import Status

__all__ = ["build"]

Schema = dict[str, Any]

_RULES = "x-kubernetes-validations"
_COLUMNS = (
    ("Phase", "string", ".status.phase", 0, "Summary of the conditions."),
    ("Stage", "string", ".status.stage", 0, "The running stage."),
    ("Progress", "string", ".status.progress.text", 0, "Iterations done, of the total."),
    ("ETA", "string", ".status.progress.eta", 0, "Time until training ends."),
    ("Restarts", "integer", ".status.restarts", 0, "Restarts of the training group."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since creation."),
    ("Loss", "number", ".status.progress.loss", 1, "Training loss."),
    ("Validation", "number", ".status.validation.loss", 1, "Loss on held-out clips."),
    (
        "Checkpoint",
        "integer",
        ".status.checkpoint.iteration",
        1,
        "Newest checkpoint's iteration.",
    ),
    ("Nodes", "string", ".status.groupSize.text", 1, "Nodes of an elastic group, of those asked."),
    ("Message", "string", ".status.message", 1, "Human-readable summary."),
)
_MAP_LISTS = {
    "status.conditions": "type",
    "status.stages": "name",
    "status.samples": "checkpoint",
}
_KEPT = {
    "type",
    "description",
    "enum",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "default",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
}


def _leaves(fields: Any, prefix: str) -> set[str]:
    """Return the paths of all fields that are set."""
    if not isinstance(fields, dict):
        return {prefix}
    return set().union(*(_leaves(v, f"{prefix}.{k}") for k, v in fields.items()))


_NO_SERVER_DEFAULT: set[str] = {f"spec.{override.field}" for override in OVERRIDES.values()}.union(
    *(_leaves(fields_of(experiment), "spec") for experiment in EXPERIMENTS.values())
)
"""Fields that an experiment or override may set: a default from the API server would hide whether
the user set them, so the description names it and the operator applies it."""


def build() -> dict[str, Any]:
    """Return the CustomResourceDefinition as an object."""
    spec, status = _schema(Spec, "spec"), _schema(Status, "status")
    # An experiment may set the model, an override the dataset: CEL rules require them instead.
    spec["required"] = ["training"]
    model = spec["properties"]["model"]
    model.pop("required")
    spec[_RULES] = cel_rules.spec_rules()
    root: Schema = {
        "type": "object",
        "description": (Video2WorldPostTrain.__doc__ or "").strip(),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        _RULES: [cel_rules.name_rule(), *cel_rules.change_rules()],
    }
    columns = [
        {"name": n, "type": t, "jsonPath": p, "priority": priority, "description": d}
        for n, t, p, priority, d in _COLUMNS
    ]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": root},
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["v2w"],
                "categories": ["all"],
            },
            "versions": [version],
        },
    }


def _schema(model: type[Spec] | type[Status], path: str) -> Schema:
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return _structural(raw, raw.get("$defs", {}), path)


def _structural(raw: Schema, definitions: Schema, path: str) -> Schema:
    """Convert a node to a structural schema: no $ref, no null, every list with its type."""
    raw = _described(_inlined(raw, definitions), definitions)
    branches = [b for b in raw.pop("anyOf", []) if b.get("type") != "null"]
    if len(branches) == 1:
        raw = _inlined(branches[0], definitions) | raw
        branches = []
    if branches:  # quantities (500m or 2) and checkpoints (latest or 500)
        text = next(b for b in branches if b["type"] == "string")
        number = next(b for b in branches if b["type"] == "integer")
        bounds = {name: number[name] for name in ("minimum", "maximum") if name in number}
        if "const" in text:  # a number, or one word
            text |= {"pattern": f"^{text['const']}$", "maxLength": len(text["const"])}
        node = {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": text["pattern"],
            "maxLength": text["maxLength"],
            **bounds,
        }
        if path in _NO_SERVER_DEFAULT:
            node["description"] = f"{raw['description']} Default: {raw['default']}."
        return node
    node = {name: value for name, value in raw.items() if name in _KEPT and value is not None}
    if "const" in raw:
        node["enum"] = [raw["const"]]
    if "exclusiveMinimum" in raw:
        node |= {"minimum": raw["exclusiveMinimum"], "exclusiveMinimum": True}
    if "enum" in node:
        node.setdefault("type", "integer" if isinstance(node["enum"][0], int) else "string")
    if node.get("default") in ([], {}) or path.startswith("status"):
        node.pop("default", None)  # a status has no defaults: a field that is not known is absent
    if path in _NO_SERVER_DEFAULT and "default" in node:
        value = node.pop("default")
        shown = str(value).lower() if isinstance(value, bool) else value
        node["description"] = f"{node['description']} Default: {shown}."
    if path == "spec.training.experiment":
        node["enum"] = sorted({*EXPERIMENTS, *SHORT_NAMES})
    if path == "spec.training.overrides" and node["type"] == "array":
        node[_RULES] = [cel_rules.overrides_rule()]
    if path == "spec.inference.samples" and node["type"] == "array":  # its items share the path
        node[_RULES] = cel_rules.samples_rules()
    if path == "spec.dataset.actions":
        node[_RULES] = cel_rules.actions_rules()
    if path == "spec.dataset.lerobot":
        node[_RULES] = cel_rules.lerobot_rules()
    if node["type"] == "array":
        _array(node, raw, definitions, path)
    elif node["type"] == "object":
        _object(node, raw, definitions, path)
    elif node["type"] == "string":
        _string(node)
    elif node["type"] == "number" and node.get("minimum", 0) % 1:
        # for a whole number, the API server cuts the bound to a whole number too: to 0
        node[_RULES] = [cel_rules.minimum_rule(node["minimum"], node["maximum"])]
    return node


def _described(raw: Schema, definitions: Schema) -> Schema:
    """Add to the description what form the value, or its entries, must have."""
    if "description" not in raw:
        return raw
    inner = raw
    while "expected" not in inner:
        below = inner.get("items") or inner.get("additionalProperties")
        branches = inner.get("anyOf") or ([below] if isinstance(below, dict) else [])
        if not branches:
            return raw
        inner = _inlined(branches[0], definitions)
    if "pattern" not in inner:
        return raw
    form = f"Write {inner['expected']}, such as {inner['examples'][0]}."
    return {**raw, "description": f"{raw['description']} {form}"}


def _inlined(raw: Schema, definitions: Schema) -> Schema:
    if "$ref" not in raw:
        return dict(raw)
    target = definitions[raw["$ref"].rpartition("/")[2]]
    return dict(target) | {name: value for name, value in raw.items() if name != "$ref"}


def _array(node: Schema, raw: Schema, definitions: Schema, path: str) -> None:
    node["items"] = _structural(raw["items"], definitions, path)
    named = path.endswith((".env", ".resourceClaims"))
    key = "name" if named else _MAP_LISTS.get(path)
    if key:
        node |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
        if path.endswith(".env"):
            node["items"]["properties"]["name"][_RULES] = [cel_rules.env_name_rule()]
    else:
        node["x-kubernetes-list-type"] = "atomic"


def _object(node: Schema, raw: Schema, definitions: Schema, path: str) -> None:
    if "properties" not in raw:
        values = raw.get("additionalProperties", True)
        if values is True:
            node["x-kubernetes-preserve-unknown-fields"] = True
        else:
            node["additionalProperties"] = _structural(values, definitions, f"{path}.*")
        return
    node["properties"] = {}
    required = raw.get("required", [])
    for name, inner in raw["properties"].items():
        child = _structural(inner, definitions, f"{path}.{name}")
        # An omitted object still gets the defaults of its fields.
        if "properties" in child and name not in required and inner.get("default", 0) is not None:
            defaults = ("default" in field for field in child["properties"].values())
            if any(defaults):
                child["default"] = {}
        node["properties"][name] = child
    if required:
        node["required"] = required


def _string(node: Schema) -> None:
    # Paths on the volume: the strings whose pattern has segments or starts with latest.
    pattern = node.get("pattern", "")
    if r"(/[^/$\x00]+)*" in pattern or pattern.startswith("^(latest|"):
        node[_RULES] = [cel_rules.path_rule()]
