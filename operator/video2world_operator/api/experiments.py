"""Translate the guide's named experiments and dotted overrides into fields of the spec."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from video2world_common.experiments import EXPERIMENTS, PREFIX, Experiment, full_name
from video2world_common.model_sizes import SIZES
from video2world_operator.api.errors import Problem, nearest
from video2world_operator.api.train_settings import SETTINGS, objection

__all__ = ["DECIDED", "OVERRIDES", "SHORT_NAMES", "expand", "fields_of", "passed_on"]

SHORT_NAMES = tuple(name.removeprefix(PREFIX) for name in EXPERIMENTS)


def fields_of(experiment: Experiment) -> dict[str, Any]:
    """Return what an experiment sets, as fields of the spec."""
    model = {
        "size": experiment.model_size,
        "resolution": experiment.resolution,
        "fps": experiment.fps,
        "geometry": experiment.geometry.capitalize(),
        "ropeRatio": experiment.rope_ratio,
    }
    training = {
        "jobName": experiment.job_name,
        "iterations": experiment.iterations,
        "contextParallelSize": experiment.context_parallel_size,
        "checkpoint": {"everyIterations": experiment.save_iterations},
    }
    return {"model": model, "training": training}


@dataclass(frozen=True)
class _Override:
    field: str
    read: Callable[[str], Any]
    expected: str


def _number(kind: type[int] | type[float]) -> Callable[[str], Any]:
    return lambda text: kind(text.replace("_", "")) if kind is int else kind(text)


def _number_or_auto(text: str) -> int | str:
    return "Auto" if text == "auto" else int(text.replace("_", ""))


def _choice(**choices: str) -> Callable[[str], Any]:
    def read(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError
        return choices[text.lower()]

    return read


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _validation(text: str) -> dict[str, Any] | None:
    return {} if _flag(text) else None


def _geometry(text: str) -> str:
    sizes = {size: name for name, size in SIZES["2B"].frame_sizes.items()}
    return sizes[tuple(int(side) for side in re.findall(r"\d+", text))]  # type: ignore[index]


def _phases(text: str) -> list[dict[str, Any]]:
    sizes = {size: name for name, size in SIZES["2B"].frame_sizes.items()}
    phases = []
    for height, width, *rest in json.loads(text):
        if len(rest) > 1 or not all(type(number) is int for number in rest):
            raise ValueError
        length = {"iterations": rest[0]} if rest else {}
        phases.append({"resolution": sizes[height, width]} | length)
    return phases


def _text(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _dataset_root(text: str) -> str:
    # The guide names the folder of one split; our path is its parent, with train/ and val/.
    return _text(text.rstrip("/").removesuffix("/train"))


_WHOLE, _NUMBER, _SIZE = "a whole number", "a number", "Tiny, 2B or 14B"
_RATIO = _Override("model.ropeRatio", _number(float), _NUMBER)

OVERRIDES: Mapping[str, _Override] = {
    "trainer.max_iter": _Override("training.iterations", _number(int), _WHOLE),
    "trainer.phases": _Override("training.phases", _phases, "[[432,768,700],[704,1280,300]]"),
    "trainer.seed": _Override("training.seed", _number(int), _WHOLE),
    "checkpoint.save_iter": _Override(
        "training.checkpoint.everyIterations", _number_or_auto, f"{_WHOLE}, or auto"
    ),
    "checkpoint.keep": _Override("training.checkpoint.keep", _number(int), _WHOLE),
    "job.name": _Override("training.jobName", _text, "a folder name"),
    "model_parallel.context_parallel_size": _Override(
        "training.contextParallelSize", _number(int), _WHOLE
    ),
    "dataloader_train.batch_size": _Override("training.batchSize", _number(int), _WHOLE),
    "trainer.grad_accum_iter": _Override("training.gradientAccumulation", _number(int), _WHOLE),
    "dataloader_train.dataset.dataset_dir": _Override(
        "dataset.prepared.path", _dataset_root, "a folder on the volume"
    ),
    "dataloader_train.dataset.video_size": _Override(
        "model.resolution", _geometry, "[704,1280] or [432,768]"
    ),
    "model.config.train_architecture": _Override(
        "training.architecture", _choice(base="Base", lora="LoRA"), "base or lora"
    ),
    "model.config.lora_rank": _Override("training.lora.rank", _number(int), _WHOLE),
    "model.config.lora_alpha": _Override("training.lora.alpha", _number(int), _WHOLE),
    "model.config.pipe_config.net.atten_backend": _Override(
        "training.attention",
        _choice(
            minimal_a2a="Auto",
            transformer_engine="TransformerEngine",
            flash_attention_4="FlashAttention4",
            flash_attention_3="FlashAttention3",
            flash_attention_2="FlashAttention2",
            torch="Torch",
        ),
        "transformer_engine, minimal_a2a, flash_attention_4, flash_attention_3, "
        "flash_attention_2 or torch",
    ),
    "model.attention_pattern": _Override(
        "training.attentionPattern", _choice(dense="Dense", sparse="Sparse"), "dense or sparse"
    ),
    "model.config.pipe_config.net.rope_h_extrapolation_ratio": _RATIO,
    "model.config.pipe_config.net.rope_w_extrapolation_ratio": _RATIO,
    "model.config.pipe_config.ema.enabled": _Override("training.ema", _flag, "true or false"),
    "model.config.model_manager_config.dit_path": _Override(
        "model.weights", _text, "a file on the volume"
    ),
    "optimizer.lr": _Override("training.learningRate", _number(float), _NUMBER),
    "optimizer.clip_norm": _Override("training.gradientClipNorm", _number(float), _NUMBER),
    "trainer.timeout_seconds": _Override("training.hangTimeoutSeconds", _number(int), _WHOLE),
    "trainer.stop_when_diverged": _Override("training.stopWhenDiverged", _flag, "true or false"),
    "trainer.run_validation": _Override("training.validation", _validation, "true or false"),
    "trainer.validation_iter": _Override(
        "training.validation.everyIterations", _number(int), _WHOLE
    ),
    "trainer.validation_clips": _Override("training.validation.clips", _number(int), _WHOLE),
    "trainer.validation_levels": _Override("training.validation.levels", _number(int), _WHOLE),
    "trainer.validation_weights": _Override(
        "training.validation.weights", _choice(regular="Regular", ema="EMA"), "regular or ema"
    ),
    "trainer.stop_after_validations": _Override(
        "training.stopWhen.validationLossNotBetterFor", _number(int), _WHOLE
    ),
    "model.size": _Override(
        "model.size", _choice(tiny="Tiny", **{"2b": "2B", "14b": "14B"}), _SIZE
    ),
    "model.geometry": _Override(
        "model.geometry", _choice(crop="Crop", stretch="Stretch"), "crop or stretch"
    ),
    "model.config.model_manager_config.lora_alpha": _Override(
        "model.loraAlpha", _number(float), _NUMBER
    ),
    "scheduler.warm_up_steps": _Override(
        "training.warmupIterations", lambda text: int(text.strip("[]")), _WHOLE
    ),
}
"""Dotted name on the guide's command line → field of the spec and parser of the value."""

DECIDED: Mapping[str, str] = {
    "job.project": "runs of a resource are in checkpoints/posttraining/video2world",
    "job.group": "runs of a resource are in checkpoints/posttraining/video2world",
    "dataloader_val.dataset.dataset_dir": "held-out windows are in val/ of the data set",
    "dataloader_train.dataset.num_frames": "set spec.model.fps: 93 frames at 16, 61 at 10",
    "model.action_conditioning": "set spec.training.conditioning: per_frame is PerFrame, per_clip "
    "is PerClip",
}
"""Settings of the train command that follow from the resource, and how."""


def expand(spec: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return ``spec`` (as written) with its experiment and overrides applied to the typed fields.

    Typed fields override the experiment; an override that contradicts one is a problem.
    ``spec`` itself is not changed; expanding twice is the same as once.
    """
    training = spec.get("training")
    if not isinstance(training, Mapping):
        return dict(spec), []
    full, problems = _copy(spec), list[Problem]()
    for number, text in enumerate(_list(training.get("overrides"))):
        if isinstance(text, str):  # the schema refuses others
            problem = _override(full, text, f"spec.training.overrides[{number}]")
            problems += [problem] if problem else []
    name = training.get("experiment")
    if isinstance(name, str):
        experiment = EXPERIMENTS.get(full_name(name))
        if experiment is None:
            problems.append(
                Problem(
                    "spec.training.experiment",
                    f"{name:.99} is not an experiment of the guide; {nearest(name, EXPERIMENTS)}",
                )
            )
        else:
            model = full.get("model")  # the schema refuses it if it is no mapping
            size = model.get("size") if isinstance(model, dict) else None
            if size is not None and size != experiment.model_size:
                problems.append(
                    Problem(
                        "spec.model.size",
                        f"{size} contradicts the experiment {name}; "
                        "remove the field or use the other experiment",
                    )
                )
            _fill(full, _beside_phases(full["training"], fields_of(experiment)))
            full["training"]["experiment"] = experiment.name
    return full, problems


def _override(spec: dict[str, Any], text: str, path: str) -> Problem | None:
    name, equals, value = _parts(text)
    if not equals:
        return Problem(path, f"{text[:99]!r} has no value; write it as name=value")
    if name == "experiment":
        return Problem(path, "set the experiment in spec.training.experiment")
    if name in DECIDED:
        return Problem(path, f"{name} cannot be set: {DECIDED[name]}")
    if name not in OVERRIDES:
        why = objection(name, value)
        return Problem(path, why) if why else None
    override = OVERRIDES[name]
    try:
        parsed = override.read(value)
    except (KeyError, TypeError, ValueError):
        return Problem(path, f"{value!r} is not valid for {name}; use {override.expected}")
    *folders, field = override.field.split(".")
    place: Any = spec
    for folder in folders:
        place = place.setdefault(folder, {})
        if not isinstance(place, dict):
            return None  # malformed here, which the schema reports
    present = place.setdefault(field, parsed)
    refined = parsed == {} and isinstance(present, dict)  # an object that other fields fill
    if present != parsed and not refined:
        return Problem(
            path,
            f"{name}={value} contradicts spec.{override.field}: {place[field]}; keep one of them",
        )
    return None


def passed_on(overrides: Sequence[str]) -> dict[str, str]:
    """Return the overrides without a field, which the train command gets, by name."""
    found = {name: value for name, _, value in map(_parts, overrides) if name not in OVERRIDES}
    return {name: value for name, value in found.items() if name in SETTINGS}


def _beside_phases(training: Mapping[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Return an experiment's ``fields`` without those that follow from phases in the spec."""
    phases = [phase for phase in _list(training.get("phases")) if isinstance(phase, Mapping)]
    if phases:
        fields["model"].pop("resolution")
        if "iterations" in phases[-1]:
            fields["training"].pop("iterations")
    return fields


def _parts(text: str) -> tuple[str, str, str]:
    name, equals, value = text.strip().partition("=")
    return name.lstrip("+").strip(), equals, value.strip().strip("\"'")


def _fill(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for name, value in source.items():
        if isinstance(value, Mapping):
            inner = target.setdefault(name, {})
            if isinstance(inner, dict):
                _fill(inner, value)
        else:
            target.setdefault(name, value)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copy(inner) for name, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
