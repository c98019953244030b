"""Parse and validate resources: return typed objects, or errors with remedies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from video2world_operator.api import wording
from video2world_operator.api.action_validation import action_problems
from video2world_operator.api.constants import (
    API_VERSION,
    GROUP,
    KIND,
    MAX_PROMPTS,
    QUEUE_MISSING,
    RESERVED_ENV,
    RESULTS_DELETED,
    STAGES,
)
from video2world_operator.api.dataset_validation import dataset_problems
from video2world_operator.api.device_claims import claim_problems
from video2world_operator.api.errors import InvalidResource, Problem
from video2world_operator.api.experiments import expand
from video2world_operator.api.inference_validation import evaluation_problems, inference_problems
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.api.spec import Spec
from video2world_operator.api.training_validation import training_problems
from video2world_operator.api.wording import without_nulls
from video2world_operator.api.yaml_reader import (
    Document,
    documents,
    from_json,
    join,
    text_of,
    to_json,
)

__all__ = ["load_manifest", "load_resource", "parse"]


def load_manifest(source: str | Path) -> dict[str, Any]:
    """Read a resource from a file or YAML text as kubectl would send it, without validating it.

    Other documents in the file are ignored; exactly one must be of our kind.

    Raises:
        InvalidResource: the file cannot be read, or does not hold exactly one resource.
    """
    return dict(_document(source).value)


def load_resource(source: str | Path) -> Video2WorldPostTrain:
    """Read a resource from a file (``Path``, or ``str`` without a line break) or from YAML text.

    Raises:
        InvalidResource: each of its lines names line and field, what is wrong and the remedy.
    """
    return _parsed(_document(source))


def parse(document: Mapping[str, Any]) -> Video2WorldPostTrain:
    """Parse a resource from an object of the API server, or from one that it would be sent.

    Experiment and overrides are applied to the typed fields first.

    Raises:
        InvalidResource: the resource is not valid.
    """
    return _parsed(Document(document))


def _document(source: str | Path) -> Document:
    name = "the text"
    if isinstance(source, Path) or "\n" not in source:
        name = str(source)
        source = text_of(Path(source))
    found = documents(source, name)
    ours = [d for d in found if isinstance(d.value, dict) and _is_ours(d.value)]
    if len(ours) != 1:
        raise InvalidResource([_count(name, [d.value for d in found], len(ours))])
    return ours[0]


def _is_ours(document: dict[Any, Any]) -> bool:
    group = str(document.get("apiVersion", "")).partition("/")[0]
    return document.get("kind") == KIND or group == GROUP


def _count(name: str, documents: list[Any], ours: int) -> Problem:
    if ours > 1:
        return Problem(name, f"contains {ours} resources of kind {KIND}; keep one per file")
    kinds = [str(d.get("kind", "an object without kind")) for d in documents if isinstance(d, dict)]
    found = f"contains {', '.join(kinds)}" if kinds else "contains no object"
    remedy = f"write apiVersion: {API_VERSION} and kind: {KIND}"
    return Problem(name, f"{found}, not a {KIND}; {remedy}")


def _parsed(document: Document) -> Video2WorldPostTrain:
    try:
        text = to_json(document.value)
    except (TypeError, ValueError) as error:
        raise InvalidResource(
            [Problem("the resource", f"JSON cannot represent it: {error}")]
        ) from None
    raw, problems = from_json(text), list[Problem]()
    if "null" in text:
        raw = without_nulls(raw)
    if isinstance(raw.get("spec"), dict):
        raw["spec"], problems = expand(raw["spec"])
    try:
        resource = _validated(raw)
    except ValidationError as error:
        problems += _explained(error, raw, document.sources)
        resource = None
    if resource is not None:
        problems += _contradictions(resource)
    problems += _unknown_fields(raw.get("status"), ["status"])
    if resource is None or problems:
        by_path: dict[str, Problem] = {}
        for one in problems:
            by_path.setdefault(one.path, replace(one, line=_line(one.path, document.lines)))
        raise InvalidResource(by_path.values())
    return resource


def _validated(raw: dict[str, Any]) -> Video2WorldPostTrain:
    """Return the typed resource; types are strict, as those of the API server.

    The server drops the status of a new object, so wrong values in it are ignored.
    """
    try:
        return _typed(raw)
    except ValidationError as error:
        if any(detail["loc"][:1] != ("status",) for detail in error.errors(include_url=False)):
            raise
        return _typed({key: value for key, value in raw.items() if key != "status"})


def _typed(raw: dict[str, Any]) -> Video2WorldPostTrain:
    # From JSON: in strict mode, pydantic accepts mappings as models from JSON only.
    return Video2WorldPostTrain.model_validate_json(
        json.dumps(raw), strict=True, by_name=False, by_alias=True
    )


def _unknown_fields(value: Any, location: list[str | int]) -> Iterator[Problem]:
    """Report unknown fields of a status: its models keep them, but the API server refuses them."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unknown_fields(item, [*location, number])
    if not isinstance(value, dict):
        return
    known = {name for node in wording.at(location) for name in node.get("properties", {})}
    for name, inner in value.items():
        here = [*location, name]
        if known and name not in known:
            yield Problem(_path(here), wording.unknown(here))
        else:
            yield from _unknown_fields(inner, here)


def _line(path: str, lines: Mapping[str, int]) -> int:
    """Return the line of a field, or of the closest enclosing one in the file."""
    while path not in lines and path:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path, 0)


def _explained(
    error: ValidationError, raw: dict[str, Any], sources: Mapping[str, str]
) -> Iterator[Problem]:
    for detail in error.errors(include_url=False):
        location, value = _place(raw, detail["loc"])
        kind = detail["type"]
        if kind == "missing":
            location.append(detail["loc"][-1])
        path = _path(location)
        if kind == "extra_forbidden":
            yield Problem(path, wording.unknown(location))
        elif kind == "missing":
            yield Problem(path, wording.missing(path, location))
        elif detail["loc"][-1] == "[key]":
            yield Problem(path, wording.message([*location, "[key]"], value))
        else:
            yield Problem(path, wording.message(location, value, sources.get(path)))


def _path(location: Iterable[str | int]) -> str:
    path = ""
    for part in location:
        path = join(path, part)
    return path


def _place(raw: Any, location: Sequence[str | int]) -> tuple[list[str | int], Any]:
    """Return the part of an error's location that is in the document, and the value there.

    The rest of a location names branches of a union, or a key.
    """
    found: list[str | int] = []
    for part in location:
        if isinstance(raw, dict) and part in raw:
            raw = raw[str(part)]
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
        else:
            break
        found.append(part)
    return found, raw


def _contradictions(resource: Video2WorldPostTrain) -> Iterator[Problem]:
    """Check the rules between fields, each of which is a rule in cel_rules.py too."""
    spec = resource.spec
    yield from dataset_problems(spec.dataset)
    yield from training_problems(spec)
    modes = spec.storage.access_mode
    if modes == "ReadWriteOncePod" and spec.pods_sharing_volume > 1:
        yield Problem(
            "spec.storage.accessMode",
            f"{modes} does not allow {spec.pods_sharing_volume} pods; use ReadWriteMany",
        )
    if spec.dispatched and not spec.scheduling.queue_name:
        yield Problem("spec.scheduling.queueName", QUEUE_MISSING)
    if spec.dispatched and spec.storage.retention == "Delete":
        yield Problem("spec.storage.retention", RESULTS_DELETED)
    yield from action_problems(spec)
    yield from inference_problems(spec)
    yield from evaluation_problems(spec)
    yield from claim_problems(spec)
    yield from _paths(resource)
    yield from _environment(spec)


def _paths(resource: Video2WorldPostTrain) -> Iterator[Problem]:
    spec = resource.spec
    agibot, prepared, videos = spec.dataset.agibot, spec.dataset.prepared, spec.dataset.videos
    lerobot, bridge = spec.dataset.lerobot, spec.dataset.bridge
    paths = {
        "spec.model.weights": spec.model.weights,
        "spec.dataset.agibot.path": agibot and agibot.path,
        "spec.dataset.agibot.captionFile": agibot and agibot.caption_file,
        "spec.dataset.bridge.path": bridge and bridge.path,
        "spec.dataset.lerobot.path": lerobot and lerobot.path,
        "spec.dataset.lerobot.subfolder": lerobot and lerobot.subfolder,
        "spec.dataset.lerobot.captionFile": lerobot and lerobot.caption_file,
        "spec.dataset.prepared.path": prepared and prepared.path,
        "spec.dataset.videos.path": videos and videos.path,
        "spec.storage.subPath": spec.storage.sub_path,
        "spec.inference.checkpoint": spec.inference.checkpoint,
        "spec.evaluation.lpipsWeights": spec.evaluation and spec.evaluation.lpips_weights,
    }
    for number, sample in enumerate(spec.inference.samples):
        paths[f"spec.inference.samples[{number}].input"] = sample.input
        paths[f"spec.inference.samples[{number}].actions"] = sample.actions
    for field, path in paths.items():
        if path and ".." in path.split("/"):
            yield Problem(field, f"{path!r} leaves the volume; use a path without ..")
    prompts = (len(s.prompt) + len(s.negative_prompt or "") for s in spec.inference.samples)
    if sum(prompts) > MAX_PROMPTS:
        remedy = (
            f"all prompts together have more than {MAX_PROMPTS} characters; use several resources"
        )
        yield Problem("spec.inference.samples", remedy)
    outputs = [s.output for s in spec.inference.samples if s.output]
    for twice in sorted({o for o in outputs if outputs.count(o) > 1}):
        yield Problem("spec.inference.samples", f"two samples have the output {twice}; rename one")


def _environment(spec: Spec) -> Iterator[Problem]:
    for stage in STAGES:
        names: set[str] = set()
        for number, variable in enumerate(getattr(spec.stages, stage).env):
            path = f"spec.stages.{stage}.env[{number}].name"
            reserved = [
                r
                for r in RESERVED_ENV
                if variable.name == r or (r.endswith("_") and variable.name.startswith(r))
            ]
            if reserved:
                yield Problem(path, f"{variable.name} is set by the operator; remove it")
            if variable.name in names:
                yield Problem(path, f"{variable.name} is set twice; keep one")
            names.add(variable.name)
