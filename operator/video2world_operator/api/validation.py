"""Parse and validate resources: return typed objects, or errors with remedies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from video2world_common.attention_pattern import published_pattern
from video2world_common.model_sizes import SIZES
from video2world_operator.api import wording
from video2world_operator.api.constants import (
    API_VERSION,
    GROUP,
    KIND,
    MAX_PROMPTS,
    RESERVED_ENV,
    STAGES,
)
from video2world_operator.api.dataset_validation import dataset_problems
from video2world_operator.api.errors import InvalidResource, Problem
from video2world_operator.api.experiments import expand
from video2world_operator.api.inference_spec import MAX_GPUS
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.api.spec import Spec
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
    spec, heads = resource.spec, SIZES[resource.spec.model.size].num_heads
    yield from dataset_problems(spec.dataset)
    phases = spec.training.phases
    if spec.training.iterations is None and (not phases or phases[-1].iterations is None):
        yield Problem(
            "spec.training.iterations",
            "missing; set the number of steps to train, such as 1000, or spec.training.experiment",
        )
    world = spec.nodes * spec.processes_per_node
    if world % spec.context_parallel or heads % spec.context_parallel:
        fitting = [n for n in range(1, world + 1) if world % n == 0 and heads % n == 0]
        yield Problem(
            "spec.training.contextParallelSize",
            f"{spec.context_parallel} is not valid: it must divide nodes x gpusPerNode ({world}) "
            f"and the {heads} attention heads of {spec.model.size}; use {_either(fitting)}",
        )
    if spec.device == "CPU" and not spec.tiny:
        yield Problem(
            "spec.training.device",
            f"CPU cannot train {spec.model.size}; use GPU, or spec.model.size Tiny",
        )
    yield from _phases(spec)
    yield from _attention_pattern(spec)
    modes = spec.storage.access_mode
    if modes == "ReadWriteOncePod" and spec.pods_sharing_volume > 1:
        yield Problem(
            "spec.storage.accessMode",
            f"{modes} does not allow {spec.pods_sharing_volume} pods; use ReadWriteMany",
        )
    yield from _validation(spec)
    yield from _inference(spec)
    yield from _evaluation(spec)
    yield from _paths(resource)
    yield from _environment(spec)


def _phases(spec: Spec) -> Iterator[Problem]:
    phases, total, field = spec.training.phases, spec.training.iterations, "spec.training.phases"
    if not phases:
        return
    if "resolution" in spec.model.model_fields_set:
        yield Problem(
            "spec.model.resolution",
            f"{spec.model.resolution} is set together with training.phases, which set the "
            "resolution; keep one of them",
        )
    for number, phase in enumerate(phases[:-1]):
        if phase.iterations is None:
            yield Problem(
                f"{field}[{number}].iterations",
                "missing; set how long this phase is: only the last can take the rest",
            )
        if phase.resolution == phases[number + 1].resolution:
            yield Problem(
                f"{field}[{number + 1}].resolution",
                f"{phase.resolution} is that of the phase before, too; make them one",
            )
    before, last = sum(phase.iterations or 0 for phase in phases[:-1]), phases[-1].iterations
    if total is not None and last is not None and before + last != total:
        yield Problem(
            "spec.training.iterations",
            f"{total} contradicts training.phases, which add up to {before + last}; remove it, or "
            "the iterations of the last phase",
        )
    if total is not None and last is None and total <= before:
        yield Problem(
            "spec.training.iterations",
            f"{total} leaves no iteration for the last of training.phases: those before take "
            f"{before}; raise it, or shorten them",
        )


def _attention_pattern(spec: Spec) -> Iterator[Problem]:
    field, training = "spec.training.attentionPattern", spec.training
    published = published_pattern(spec.model.weights or "")
    if published is not None and published != training.attention_pattern.lower():
        yield Problem(
            field,
            f"{training.attention_pattern} cannot start from {spec.model.weights} "
            f"(spec.model.weights), which has {published} attention; use {published.capitalize()}, "
            "or remove the weights",
        )
    if not spec.sparse:
        return
    others = [phase.resolution for phase in spec.phases if phase.resolution != "720p"]
    if others and not spec.tiny:
        where = "a phase's resolution" if training.phases else "spec.model.resolution"
        yield Problem(
            field,
            f"Sparse weights exist for 720p only, and {where} is {others[0]}; use 720p, or Dense",
        )
    if training.attention not in ("Auto", "FlashAttention4"):
        yield Problem(
            field,
            f"{training.attention} (spec.training.attention) has no Sparse attention; use Auto, or "
            "Dense",
        )


def _validation(spec: Spec) -> Iterator[Problem]:
    validation, training = spec.training.validation, spec.training
    field = "spec.training.validation"
    if validation is None:
        limit = training.stop_when.validation_loss_not_better_for
        if limit is not None:
            yield Problem(
                "spec.training.stopWhen.validationLossNotBetterFor",
                f"nothing is validated; add {field}, or remove it",
            )
        return
    if validation.weights == "EMA" and not training.ema:
        yield Problem(
            f"{field}.weights",
            "there are no EMA weights with training.ema: false; use Regular, or remove "
            "training.ema",
        )
    yield from _held_out(spec, field)


def _held_out(spec: Spec, field: str) -> Iterator[Problem]:
    """Check that the windows that ``field`` is about are held out."""
    dataset = spec.dataset
    for name, source, held_out in (
        ("agibot", dataset.agibot, "validationEpisodeIDs"),
        ("lerobot", dataset.lerobot, "validationEpisodes"),
        ("videos", dataset.videos, "validationNames"),
    ):
        if source is not None and not source.holds_out:
            yield Problem(
                field,
                f"there are no held-out windows; set dataset.{name}.{held_out} or "
                "validationPercent, or remove it",
            )


def _inference(spec: Spec) -> Iterator[Problem]:
    inference = spec.inference
    if inference.checkpoint is not None and inference.checkpoints:
        yield Problem(
            "spec.inference.checkpoint",
            f"{inference.checkpoint} is set together with checkpoints; keep one of them (move this "
            "one into the list)",
        )
    if inference.every_checkpoint and not inference.samples:
        yield Problem(
            "spec.inference.everyCheckpoint",
            "there is nothing to generate; add inference.samples, or remove it",
        )
    heads, gpus = SIZES[spec.model.size].num_heads, inference.gpus
    if heads % inference.ranks_per_branch(gpus):
        fitting = [n for n in range(1, MAX_GPUS + 1) if heads % inference.ranks_per_branch(n) == 0]
        yield Problem(
            "spec.inference.gpus",
            f"{gpus} is not valid: {_who_shares(gpus, inference.ranks_per_branch(gpus))} must "
            f"divide the {heads} attention heads of {spec.model.size}; use {_either(fitting)}",
        )
    if "best" in inference.names and spec.training.validation is None:
        field = "checkpoints" if inference.checkpoints else "checkpoint"
        yield Problem(
            f"spec.inference.{field}",
            "best is the checkpoint with the least validation loss, and nothing is validated; add "
            "training.validation, or use latest",
        )
    if inference.weights == "EMA" and not spec.training.ema:
        yield Problem(
            "spec.inference.weights",
            "EMA weights are not saved with training.ema: false; use Regular, or remove "
            "training.ema",
        )


def _who_shares(gpus: int, ranks: int) -> str:
    return "they" if ranks == gpus else f"the {ranks} that share a branch of guidance"


def _evaluation(spec: Spec) -> Iterator[Problem]:
    if spec.evaluation is None:
        return
    yield from _held_out(spec, "spec.evaluation")
    if "best" in spec.evaluation.names and spec.training.validation is None:
        yield Problem(
            "spec.evaluation.checkpoints",
            "best is the checkpoint with the least validation loss, and nothing is validated; add "
            "training.validation, or use latest",
        )
    late = [n for n in spec.evaluation.names if n.isdecimal() and int(n) > spec.iterations]
    if late and spec.training.iterations is not None:
        yield Problem(
            "spec.evaluation.checkpoints",
            f"{late[0]} comes after the last iteration, {spec.iterations} "
            "(spec.training.iterations); use an earlier one, or latest",
        )
    if len(set(spec.evaluation.metrics)) < len(spec.evaluation.metrics):
        yield Problem("spec.evaluation.metrics", "a metric is named twice; keep one")


def _either(numbers: list[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last


def _paths(resource: Video2WorldPostTrain) -> Iterator[Problem]:
    spec = resource.spec
    agibot, prepared, videos = spec.dataset.agibot, spec.dataset.prepared, spec.dataset.videos
    lerobot = spec.dataset.lerobot
    paths = {
        "spec.model.weights": spec.model.weights,
        "spec.dataset.agibot.path": agibot and agibot.path,
        "spec.dataset.agibot.captionFile": agibot and agibot.caption_file,
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
