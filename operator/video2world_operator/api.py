"""The door by which resources come in: files and objects become typed, or errors that help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from .errors import InvalidResource, Problem, nearest
from .experiments import expand
from .models import (
    API_VERSION,
    GROUP,
    KIND,
    MAX_PROMPTS,
    PLURAL,
    RESERVED_ENV,
    SIZES,
    STAGES,
    Condition,
    Spec,
    Status,
    Video2WorldPostTrain,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "PLURAL",
    "SIZES",
    "STAGES",
    "Condition",
    "InvalidResource",
    "Spec",
    "Status",
    "Video2WorldPostTrain",
    "load_resource",
    "parse",
]


def load_resource(source: str | Path) -> Video2WorldPostTrain:
    """Read a resource from a file (``Path``, or ``str`` without a line break) or from YAML text.

    Other documents in the file are passed over; exactly one must be of our kind.
    Raises :class:`InvalidResource`, whose lines name the field, what is wrong and the remedy.
    """
    import yaml  # here, so that `v2w --help` does not wait for it

    name = "the text"
    if isinstance(source, Path) or "\n" not in source:
        name = str(source)
        try:
            source = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            remedy = f"cannot be read ({error.strerror}); give the path of a YAML file"
            raise InvalidResource([Problem(name, remedy)]) from None
        except UnicodeDecodeError:
            raise InvalidResource([Problem(name, "is not text; give a YAML file")]) from None

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """A safe loader that refuses a key given twice, of which YAML silently drops one."""

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if key.value in keys:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            keys.add(key.value)
        loader.flatten_mapping(node)
        return dict(loader.construct_pairs(node, deep=True))

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        documents = [d for d in yaml.load_all(source, Loader) if d is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
        what = getattr(error, "problem", None) or str(error)
        message = f"not valid YAML: {what}; check indentation, quotes and colons there"
        raise InvalidResource([Problem(where, message)]) from None
    ours = [d for d in documents if isinstance(d, dict) and _is_ours(d)]
    if len(ours) != 1:
        raise InvalidResource([_count(name, documents, len(ours))])
    return parse(ours[0])


def _is_ours(document: dict[Any, Any]) -> bool:
    group = str(document.get("apiVersion", "")).partition("/")[0]
    return document.get("kind") == KIND or group == GROUP


def _count(name: str, documents: list[Any], ours: int) -> Problem:
    if ours > 1:
        return Problem(name, f"holds {ours} resources of kind {KIND}; keep one a file")
    kinds = [str(d.get("kind", "without kind")) for d in documents if isinstance(d, dict)]
    found = f"holds {', '.join(kinds)}" if kinds else "holds no object"
    remedy = f"write apiVersion: {API_VERSION} and kind: {KIND}"
    return Problem(name, f"{found}, not a {KIND}; {remedy}")


def parse(document: Mapping[str, Any]) -> Video2WorldPostTrain:
    """Make the resource from an object as YAML or the API server gives it.

    Experiment and overrides are put into the typed fields first. Raises :class:`InvalidResource`.
    """
    raw = dict(document)
    problems: list[Problem] = []
    if isinstance(raw.get("spec"), Mapping):
        raw["spec"], problems = expand(raw["spec"])
    try:
        resource = Video2WorldPostTrain.model_validate(raw, by_name=False, by_alias=True)
    except ValidationError as error:
        raise InvalidResource(problems + _explained(error)) from None
    problems += _contradictions(resource)
    if problems:
        raise InvalidResource(problems)
    return resource


def _explained(error: ValidationError) -> list[Problem]:
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        location = [part for part in detail["loc"] if part not in _UNION_TAGS]
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
        problems.setdefault(path, Problem(path, _message(detail, location)))
    return list(problems.values())


_UNION_TAGS = {"int", "float", "constrained-str", "constrained-int", "[key]"}


def _message(detail: Any, location: list[Any]) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields(location[:-1])
        return f"unknown field; {nearest(location[-1], known)}"
    if kind == "missing":
        hint = _HINTS.get(".".join(map(str, location)))
        return "missing; " + (hint or f"give it{_described(location)}")
    if kind == "literal_error":
        choices = context["expected"].replace("'", "")
        near = nearest(value, choices.replace(" or ", ", ").split(", "))
        asked = f"; {near}" if near.startswith("did") else ""
        return f"{value!r} is not one of them; use {choices}{asked}"
    if kind == "string_pattern_mismatch":
        return f"{value!r} does not fit{_described(location)}; it must match {context['pattern']}"
    text = detail["msg"]
    text = text.removeprefix("Input should be ").removeprefix("a ").removeprefix("valid ")
    shown = f"{value!r} " if isinstance(value, (str, int, float)) else ""
    return f"{shown}does not fit; it must be {text}{_described(location)}"


_HINTS = {
    "spec.model": "write model: {size: 2B} (or 14B, Tiny), or name spec.training.experiment",
    "spec.model.size": "use Tiny, 2B or 14B",
    "spec.dataset": "give one of agibot, prepared or videos: {agibot: {taskIDs: [327]}}",
    "spec.training": "write training: {iterations: 1000}",
    "metadata": "write metadata: {name: ...}",
    "metadata.name": "give the resource a name",
}


def _model_at(location: list[Any]) -> tuple[type[BaseModel] | None, str]:
    """The model that lies at a location of the document, and the description of its last field."""
    model: type[BaseModel] | None = Video2WorldPostTrain
    described = ""
    for part in location:
        if isinstance(part, int) or model is None:
            continue
        field = next((f for f in model.model_fields.values() if f.alias == part), None)
        described = (field.description or "") if field else ""
        model = _inner_model(field.annotation) if field else None
    return model, described


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_inner_model, get_args(annotation))), None)


def _fields(location: list[Any]) -> list[str]:
    model, _ = _model_at(location)
    return [f.alias or name for name, f in model.model_fields.items()] if model else []


def _described(location: list[Any]) -> str:
    _, described = _model_at(location)
    return f" ({described.rstrip('.')})" if described else ""


def _contradictions(resource: Video2WorldPostTrain) -> Iterator[Problem]:
    """What no single field shows: each check has its twin as a CEL rule in the CRD."""
    spec, size = resource.spec, SIZES[resource.spec.model.size]
    given = [name for name in ("agibot", "prepared", "videos") if getattr(spec.dataset, name)]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        yield Problem(
            "spec.dataset", f"{found} given; give exactly one of agibot, prepared, videos"
        )
    if spec.training.iterations is None:
        yield Problem(
            "spec.training.iterations",
            "missing; give the number of steps to train, such as 1000, or name spec.training."
            "experiment",
        )
    world = spec.nodes * spec.processes_per_node
    if world % spec.context_parallel or size.heads % spec.context_parallel:
        fitting = [n for n in range(1, world + 1) if world % n == 0 and size.heads % n == 0]
        yield Problem(
            "spec.training.contextParallelSize",
            f"{spec.context_parallel} does not fit: it must divide nodes x gpusPerNode ({world}) "
            f"and the {size.heads} attention heads of {spec.model.size}; use {_either(fitting)}",
        )
    if spec.device == "CPU" and not spec.tiny:
        yield Problem(
            "spec.training.device",
            f"CPU cannot train {spec.model.size}; use GPU, or spec.model.size Tiny",
        )
    modes = spec.storage.access_mode
    if modes == "ReadWriteOncePod" and spec.sharing > 1:
        yield Problem(
            "spec.storage.accessMode",
            f"{modes} cannot be shared by {spec.sharing} pods; use ReadWriteMany",
        )
    yield from _inference(spec)
    yield from _paths(resource)
    yield from _environment(spec)


def _inference(spec: Spec) -> Iterator[Problem]:
    inference = spec.inference
    if inference.checkpoint is not None and inference.checkpoints:
        remedy = "given beside checkpoints; keep one of them (put this one into the list)"
        yield Problem("spec.inference.checkpoint", f"{inference.checkpoint} {remedy}")
    if inference.every_checkpoint and not inference.samples:
        yield Problem(
            "spec.inference.everyCheckpoint",
            "there is nothing to make; name inference.samples, or leave it out",
        )
    if inference.weights == "EMA" and not spec.training.ema:
        yield Problem(
            "spec.inference.weights",
            "EMA is not kept with training.ema: false; use Regular, or leave training.ema out",
        )


def _either(numbers: list[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last


def _paths(resource: Video2WorldPostTrain) -> Iterator[Problem]:
    spec = resource.spec
    agibot, prepared, videos = spec.dataset.agibot, spec.dataset.prepared, spec.dataset.videos
    paths = {
        "spec.model.weights": spec.model.weights,
        "spec.dataset.agibot.path": agibot and agibot.path,
        "spec.dataset.agibot.captionFile": agibot and agibot.caption_file,
        "spec.dataset.prepared.path": prepared and prepared.path,
        "spec.dataset.videos.path": videos and videos.path,
        "spec.storage.subPath": spec.storage.sub_path,
        "spec.inference.checkpoint": spec.inference.checkpoint,
    }
    for number, sample in enumerate(spec.inference.samples):
        paths[f"spec.inference.samples[{number}].input"] = sample.input
    for field, path in paths.items():
        if path and ".." in path.split("/"):
            yield Problem(field, f"{path!r} leaves the volume; give a path without ..")
    if sum(len(s.prompt) for s in spec.inference.samples) > MAX_PROMPTS:
        remedy = (
            f"all prompts together have more than {MAX_PROMPTS} characters; use several resources"
        )
        yield Problem("spec.inference.samples", remedy)
    outputs = [s.output for s in spec.inference.samples if s.output]
    for twice in sorted({o for o in outputs if outputs.count(o) > 1}):
        yield Problem("spec.inference.samples", f"output {twice} is given twice; rename one")


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
                yield Problem(path, f"{variable.name} is set by the plan itself; remove it")
            if variable.name in names:
                yield Problem(path, f"{variable.name} is given twice; keep one")
            names.add(variable.name)
