"""Build the CustomResourceDefinition from the API's models."""

from __future__ import annotations

from typing import Any

from video2world_common.experiments import EXPERIMENTS, PREFIX
from video2world_common.model_sizes import SIZES
from video2world_operator.api.constants import (
    GROUP,
    KIND,
    MAX_NAME,
    MAX_PROMPTS,
    PLURAL,
    RESERVED_ENV,
    VERSION,
)
from video2world_operator.api.experiments import DECIDED, OVERRIDES, SHORT_NAMES, fields_of
from video2world_operator.api.mutability import adjustable, fixed
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.api.spec import NAME_PATTERN, NAME_WORDS, Spec
from video2world_operator.api.status import Status
from video2world_operator.api.train_settings import ALLOWED, SETTINGS

__all__ = ["build"]

Schema = dict[str, Any]

_COLUMNS = (
    ("Phase", "string", ".status.phase", 0, "Summary of the conditions."),
    ("Stage", "string", ".status.stage", 0, "The stage at work."),
    ("Progress", "string", ".status.progress.text", 0, "Iterations done and wanted."),
    ("ETA", "string", ".status.progress.eta", 0, "Time until training ends."),
    ("Restarts", "integer", ".status.restarts", 0, "Restarts of the train group."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since it was made."),
    ("Loss", "number", ".status.progress.loss", 1, "Training loss."),
    ("Checkpoint", "integer", ".status.checkpoint.iteration", 1, "Iteration last saved."),
    ("Message", "string", ".status.message", 1, "What is going on."),
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


def _given(choices: Any, prefix: str) -> set[str]:
    if not isinstance(choices, dict):
        return {prefix}
    return set().union(*(_given(v, f"{prefix}.{k}") for k, v in choices.items()))


_UNSET: set[str] = {f"spec.{override.field}" for override in OVERRIDES.values()}.union(
    *(_given(fields_of(experiment), "spec") for experiment in EXPERIMENTS.values())
)
"""Fields that an experiment or override may set: a default put in by the API server would hide
whether the user gave them, so theirs is told in the description and applied by the operator."""


def build() -> dict[str, Any]:
    """The CustomResourceDefinition as an object."""
    spec, status = _schema(Spec, "spec"), _schema(Status, "status")
    # The experiment may give the model, an override the data set: rules ask for them below.
    spec["required"] = ["training"]
    model = spec["properties"]["model"]
    model.pop("required")
    dataset = spec["properties"]["dataset"]
    dataset["x-kubernetes-validations"] = [
        _rule(
            "[has(self.agibot), has(self.prepared), has(self.videos)].exists_one(x, x)",
            "give exactly one of agibot, prepared, videos",
        )
    ]
    spec["x-kubernetes-validations"] = _spec_rules()
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
        "x-kubernetes-validations": [
            _rule(
                f"size(self.metadata.name) <= {MAX_NAME} && "
                f"self.metadata.name.matches('{NAME_PATTERN}')",
                f"metadata.name: write {NAME_WORDS.format(MAX_NAME)}, since pods and Services are "
                "named after it",
            ),
            *_started_rules(),
        ],
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


def _rule(rule: str, message: str, **more: str) -> dict[str, str]:
    return {"rule": rule, "message": message, **more}


def _started_rules() -> list[dict[str, str]]:
    """Once work has begun, what it is built on stays; where it runs changes while suspended."""
    started = "has(oldSelf.status) && has(oldSelf.status.startTime)"
    of_spec, training = fixed()
    same = [_unchanged(f"spec.training.{name}") for name in training]
    rules = [
        _rule(
            f"!({started}) || {_unchanged(f'spec.{name}')}",
            f"spec.{name} cannot be changed once work has begun: make another resource, "
            "what is done on the volume is not done again",
        )
        for name in of_spec
    ]
    rules.append(
        _rule(
            f"!({started}) || ({' && '.join(same)})",
            f"of spec.training only {', '.join(adjustable())} can be changed once work has begun: "
            "make another resource, what is done on the volume is not done again",
        )
    )
    rules.append(
        _rule(
            f"!({started}) || self.spec.suspend || oldSelf.spec.suspend || "
            f"{_unchanged('spec.scheduling')}",
            "spec.scheduling can be changed only while spec.suspend is true",
        )
    )
    return rules


def _unchanged(path: str) -> str:
    """The field is as it was. (``.?`` would be shorter; the server puts no bound to its cost.)"""
    new, old = f"self.{path}", f"oldSelf.{path}"
    return f"(has({new}) == has({old}) && (!has({new}) || {new} == {old}))"


def _by_size(field: str) -> str:
    """A CEL expression: the default of ``field`` for the model's size."""
    values = {name: getattr(size, field) for name, size in SIZES.items()}
    size = "self.model.size"
    return f"({size} == 'Tiny' ? {values['Tiny']} : {size} == '2B' ? {values['2B']} : " + (
        f"{values['14B']})"
    )


def _or_default(field: str, default: str) -> str:
    return f"(has(self.training.{field}) ? self.training.{field} : {default})"


def _overridden(name: str) -> str:
    overrides = "self.training.overrides"
    return f"(has({overrides}) && {overrides}.exists(o, {_NAME} == '{name}' && {_NOT_EMPTY}))"


# CEL for an override ``o``, written as name=value or "+ name = 'value'".
_NAME = "o.split('=')[0].replace('+', ' ').trim()"
_VALUE = """o.substring(o.indexOf('=') + 1).replace('"', ' ').replace("'", ' ').trim()"""
_NOT_EMPTY = """o.matches('(?s)=.*[^\\\\s"\\']')"""


def _known_override() -> str:
    """A CEL expression: ``o`` is an override that has a field or goes to the train command."""
    names = {*OVERRIDES, *SETTINGS} - {*DECIDED}
    texts = {
        name
        for name in names - {*OVERRIDES}
        if SETTINGS[name]["kind"] == "str" and not SETTINGS[name]["choices"]
    }
    fixed = [f"{name}={value}" for name, values in sorted(ALLOWED.items()) for value in values]
    return (
        f"o.contains('=') && ({_NAME} in {sorted(names - texts)} ? {_NOT_EMPTY} : "
        f"{_NAME} in {sorted(texts)} || ({_NAME} + '=' + {_VALUE}.lowerAscii()) in {fixed})"
    )


def _spec_rules() -> list[dict[str, str]]:
    sized = "has(self.model) && has(self.model.size)"
    named = "has(self.training.experiment)"
    # What experiment and overrides decide is checked by the operator, which knows them.
    plain = f"{sized} && !{named} && !{_overridden('model_parallel.context_parallel_size')}"
    parallel = _or_default("contextParallelSize", _by_size("context_parallel_size"))
    nodes = _or_default("nodes", _by_size("nodes"))
    processes = _or_default("gpusPerNode", _by_size("processes_per_node"))
    return [
        _rule(
            f"({sized}) || {named}",
            "model.size is missing; use Tiny, 2B or 14B, or name training.experiment",
        ),
        _rule(
            f"has(self.dataset) || {_overridden('dataloader_train.dataset.dataset_dir')}",
            "dataset is missing; give one of agibot, prepared, videos",
        ),
        _rule(
            f"has(self.training.iterations) || {named} || {_overridden('trainer.max_iter')}",
            "training.iterations is missing; give the number of steps to train",
        ),
        _rule(
            f"!({plain}) || ({nodes} * {processes} % {parallel} == 0 && "
            f"{_by_size('num_heads')} % {parallel} == 0)",
            "training.contextParallelSize must divide nodes x gpusPerNode and the attention "
            "heads (Tiny 4, 2B 16, 14B 40)",
        ),
        _rule(
            f"!({sized}) || !{named} || "
            f"self.training.experiment.matches('^({PREFIX})?' + self.model.size.lowerAscii() "
            "+ '_')",
            "model.size contradicts training.experiment; leave the field out or name the other "
            "experiment",
        ),
        _rule(
            f"(!({sized}) && !{named}) || ({sized} && self.model.size == 'Tiny') || "
            "!has(self.training.device) || self.training.device != 'CPU'",
            "training.device: CPU can train model.size Tiny only",
        ),
        _rule(
            "!has(self.storage) || !has(self.storage.accessMode) || "
            "self.storage.accessMode != 'ReadWriteOncePod' || "
            f"!({_shared(sized)})",
            "storage.accessMode: ReadWriteOncePod cannot be shared by several pods (nodes, "
            "dataset.shards, inference.parallelism, or inference.everyCheckpoint beside "
            "training); use ReadWriteMany",
        ),
        _rule(
            "!has(self.inference) || !has(self.inference.checkpoint) || "
            "!has(self.inference.checkpoints) || size(self.inference.checkpoints) == 0",
            "inference.checkpoint is given beside inference.checkpoints; keep one of them (put "
            "it into the list; checkpoint: null takes out what an older definition filled in)",
        ),
        _rule(
            "!has(self.inference) || !has(self.inference.everyCheckpoint) || "
            "!self.inference.everyCheckpoint || "
            "(has(self.inference.samples) && size(self.inference.samples) > 0)",
            "inference.everyCheckpoint: there is nothing to make; name inference.samples, or "
            "leave it out",
        ),
        _rule(
            "!has(self.inference) || !has(self.inference.weights) || "
            "self.inference.weights != 'EMA' || !has(self.training.ema) || self.training.ema",
            "inference.weights: EMA is not kept with training.ema: false; use Regular, or leave "
            "training.ema out",
        ),
    ]


def _shared(sized: str) -> str:
    """Whether several pods use the volume at the same time: the twin of ``Spec.sharing``."""
    nodes = f"(has(self.training.nodes) ? self.training.nodes : {sized} ? {_by_size('nodes')} : 1)"
    several = (
        "size(self.inference.samples) > 1 || (size(self.inference.samples) == 1 && "
        "has(self.inference.checkpoints) && self.inference.checkpoints.exists(c, "
        "string(c) == 'all' || string(c) != string(self.inference.checkpoints[0])))"
    )
    return (
        f"{nodes} > 1 || (has(self.dataset) && has(self.dataset.shards) && "
        "self.dataset.shards > 1) || (has(self.inference) && "
        "((has(self.inference.everyCheckpoint) && self.inference.everyCheckpoint) || "
        "(has(self.inference.parallelism) && self.inference.parallelism > 1 && "
        f"has(self.inference.samples) && ({several}))))"
    )


def _schema(model: type[Spec] | type[Status], path: str) -> Schema:
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return _structural(raw, raw.get("$defs", {}), path)


def _structural(raw: Schema, definitions: Schema, path: str) -> Schema:
    """One node as Kubernetes wants it: no $ref, no null, every list with its type."""
    raw = _worded(_inlined(raw, definitions), definitions)
    branches = [b for b in raw.pop("anyOf", []) if b.get("type") != "null"]
    if len(branches) == 1:
        raw = _inlined(branches[0], definitions) | raw
        branches = []
    if branches:  # quantities: 500m or 2; checkpoints: latest or 500
        text = next(b for b in branches if b["type"] == "string")
        number = next(b for b in branches if b["type"] == "integer")
        bounds = {name: number[name] for name in ("minimum", "maximum") if name in number}
        return {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": text["pattern"],
            "maxLength": text["maxLength"],
            **bounds,
        }
    node = {name: value for name, value in raw.items() if name in _KEPT and value is not None}
    if "const" in raw:
        node["enum"] = [raw["const"]]
    if "exclusiveMinimum" in raw:
        node |= {"minimum": raw["exclusiveMinimum"], "exclusiveMinimum": True}
    if "enum" in node:
        node.setdefault("type", "integer" if isinstance(node["enum"][0], int) else "string")
    if path in _UNSET and "default" in node:
        value = node.pop("default")
        shown = str(value).lower() if isinstance(value, bool) else value
        node["description"] = f"{node['description']} Default: {shown}."
    if node.get("default") in ([], {}) or path.startswith("status"):
        node.pop("default", None)  # nobody chooses a status: what is not known is not there
    if path == "spec.training.experiment":
        node["enum"] = sorted({*EXPERIMENTS, *SHORT_NAMES})
    if path == "spec.training.overrides" and node["type"] == "array":
        node["x-kubernetes-validations"] = [
            _rule(
                f"self.all(o, {_known_override()})",
                "write an override as name=value; docs/reference/training.md lists the names",
            )
        ]
    if path == "spec.inference.samples" and node["type"] == "array":  # its items share the path
        node["x-kubernetes-validations"] = [
            _rule(
                "self.all(a, !has(a.output) || self.exists_one(b, has(b.output) && "
                "b.output == a.output))",
                "an output is given twice; rename one",
            ),
            _rule(
                f"self.map(s, has(s.prompt) ? size(s.prompt) : 0).sum() <= {MAX_PROMPTS}",
                f"all prompts together have more than {MAX_PROMPTS} characters; "
                "use several resources",
            ),
        ]
    if node["type"] == "array":
        _array(node, raw, definitions, path)
    elif node["type"] == "object":
        _object(node, raw, definitions, path)
    elif node["type"] == "string":
        _string(node)
    elif node["type"] == "number" and node.get("minimum", 0) % 1:
        low, high = node["minimum"], node["maximum"]  # cut to whole numbers for whole numbers: 0
        node["x-kubernetes-validations"] = [
            _rule(
                f"self >= {low}",
                f"write a number from {low} to {high:g}",
            )
        ]
    return node


def _worded(raw: Schema, definitions: Schema) -> Schema:
    """``raw`` with the words for its form, or that of its entries, in its description."""
    if "description" not in raw:
        return raw
    inner = raw
    while "words" not in inner:
        below = inner.get("items") or inner.get("additionalProperties")
        branches = inner.get("anyOf") or ([below] if isinstance(below, dict) else [])
        if not branches:
            return raw
        inner = _inlined(branches[0], definitions)
    if "pattern" not in inner:
        return raw
    words = f"Write {inner['words']}, such as {inner['examples'][0]}."
    return {**raw, "description": f"{raw['description']} {words}"}


def _inlined(raw: Schema, definitions: Schema) -> Schema:
    if "$ref" not in raw:
        return dict(raw)
    target = definitions[raw["$ref"].rpartition("/")[2]]
    return dict(target) | {name: value for name, value in raw.items() if name != "$ref"}


def _array(node: Schema, raw: Schema, definitions: Schema, path: str) -> None:
    node["items"] = _structural(raw["items"], definitions, path)
    key = "name" if path.endswith(".env") else _MAP_LISTS.get(path)
    if key:
        node |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
        if path.endswith(".env"):
            prefixes = [r for r in RESERVED_ENV if r.endswith("_")]
            words = [r for r in RESERVED_ENV if not r.endswith("_")]
            refused = [f"!self.startsWith('{p}')" for p in prefixes]
            node["items"]["properties"]["name"]["x-kubernetes-validations"] = [
                _rule(
                    " && ".join([*refused, f"!(self in {words})"]),
                    "this variable is set by the plan itself; remove it",
                )
            ]
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
        # An object left out still gets the defaults of its fields.
        if "properties" in child and name not in required and inner.get("default", 0) is not None:
            defaults = ("default" in field for field in child["properties"].values())
            if any(defaults):
                child["default"] = {}
        node["properties"][name] = child
    if required:
        node["required"] = required


def _string(node: Schema) -> None:
    # Paths on the volume are the strings whose pattern may end in a slash or begins with latest.
    pattern = node.get("pattern", "")
    if pattern.endswith("/?$") or pattern.startswith("^(latest|"):
        node["x-kubernetes-validations"] = [
            _rule(
                "!self.split('/').exists(part, part == '..')",
                "leaves the volume; give a path without ..",
            )
        ]
