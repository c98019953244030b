"""Parse command-line overrides into the settings of a training run."""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.experiments import EXPERIMENTS, full_name
from video2world_trainer.training.action_config import require_published_clip, settings_of_kind
from video2world_trainer.training.config import SETTINGS, TrainConfig, value_kind
from video2world_trainer.training.config_defaults import experiment_settings, size_defaults
from video2world_trainer.training.fixed_settings import FIXED, why_fixed
from video2world_trainer.training.phases import read_phases, with_phases

__all__ = ["VALUE_FORMATS", "read_config"]

VALUE_FORMATS = {
    "bool": "true or false",
    "int": "a whole number",
    "int | Literal['auto']": "a whole number, or auto",
    "float": "a number",
    "tuple[int, ...]": "[height,width], as [704,1280]",
    "tuple[float, ...]": "two numbers, as [0.9,0.99]",
    "tuple[tuple[int, ...], ...]": "[[height,width,iterations],...], as "
    "[[432,768,700],[704,1280,300]]",
    "str": "text",
}
"""How values are written, by the type of their setting."""


def _suggest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the setting that was probably meant: in the same group, or with the same last part."""
    group, _, last = name.rpartition(".")
    in_group = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == group}
    near = difflib.get_close_matches(last, in_group, n=1, cutoff=0.7)
    same = [one for one in known if one.rpartition(".")[2] == last]
    return in_group[near[0]] if near else same[0] if len(same) == 1 else None


def _unknown(key: str, value: str) -> str | None:
    """Return why an unknown or fixed setting is refused; None if it has the fixed value."""
    why = why_fixed(key, value)
    near = _nearest(key, SETTINGS)
    if key not in FIXED and near:
        return f"{key} is not a setting; did you mean {near}?"
    if why is None:
        return f"{key} is not a setting; python -m video2world_trainer.train --help lists them"
    return f"{key}={value} cannot be set here: {why}" if why else None


def _pair(text: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    value = tuple(ast.literal_eval(text))
    if len(value) != 2 or any(type(one) not in (int, kind) for one in value):
        raise ValueError
    return tuple(map(kind, value))


def _convert(kind: str, text: str) -> Any:
    """Parse ``text`` as ``kind``; raise ValueError, KeyError, SyntaxError or TypeError."""
    if kind == "bool":
        return {"true": True, "false": False}[text.lower()]
    if kind == "str":
        return text
    if kind == "tuple[tuple[int, ...], ...]":
        return read_phases(text)
    if "'auto'" in kind:
        return text if text == "auto" else _convert("int", text)
    if kind == "tuple[int, ...]":
        return _pair(text, int)
    if kind == "tuple[float, ...]":
        return _pair(text, float)
    text = re.sub(r"^\[(.*)\]$", r"\1", text)  # the schedule's settings are lists of one
    return int(text.replace("_", "")) if kind == "int" else float(text)


def _parse_value(key: str, text: str) -> Any:
    """Parse and check the value of the setting ``key``."""
    setting = SETTINGS[key]
    kind = value_kind(setting)
    text = text.strip().strip("\"'")
    try:
        value = _convert(kind, text)
        numbers = value if isinstance(value, tuple) else () if value == "auto" else (value,)
        if any(isinstance(one, float) and not math.isfinite(one) for one in numbers):
            raise ValueError
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise UserError(f"{key}={text}: this must be {VALUE_FORMATS[kind]}") from None
    low, high, choices = (setting.metadata[name] for name in ("low", "high", "choices"))
    if low is not None and any(one < low for one in numbers):
        raise UserError(f"{key}={text}: this must be at least {low}")
    if high is not None and any(one > high for one in numbers):
        raise UserError(f"{key}={text}: this must be at most {high}")
    if choices and value not in choices:
        raise UserError(f"{key}={text}: this must be one of {', '.join(choices)}")
    return value


def read_config(overrides: Iterable[str]) -> TrainConfig:
    """Parse ``experiment=NAME`` and ``dotted.key=value`` arguments into settings.

    Later arguments win. Settings without an argument come from the experiment, otherwise from the
    model size. A leading ``+``, as Hydra writes new keys, is accepted.

    Raises:
        UserError: a name is unknown, a setting is fixed here, or a value is invalid; the message
            has the reason or the expected value.
    """
    given: dict[str, str] = {}
    for text in overrides:
        key, equals, value = text.lstrip("+").partition("=")
        if not equals:
            raise UserError(f"{text}: write an override as key=value")
        given[key.strip()] = value
    settings: dict[str, Any] = {}
    name = given.pop("experiment", "").strip()
    if name:
        full = full_name(name)
        if full not in EXPERIMENTS:
            hint = _suggest(full, EXPERIMENTS)
            if "action_conditioned" in name:  # Cosmos-Predict2's is named so
                hint = "set model.size=2B and model.action_conditioning=per_clip instead"
            raise UserError(f"experiment={name} is not known; {hint}")
        settings |= experiment_settings(EXPERIMENTS[full])
    read: dict[str, Any] = {}
    for key, value in given.items():
        if key not in SETTINGS:
            if problem := _unknown(key, value):
                raise UserError(problem)
            continue
        read[SETTINGS[key].name] = _parse_value(key, value)
    wanted = read.get("size", settings.get("size", "2B"))
    if name and wanted != settings["size"]:
        raise UserError(f"model.size={wanted} contradicts experiment={name}: leave one of them out")
    by_kind = settings_of_kind(read.get("action_conditioning", "none"), wanted)
    settings = with_phases({**size_defaults(wanted), **by_kind, **settings, **read}, read)
    config = TrainConfig(**settings)
    _validate(config)
    return config


def _validate(config: TrainConfig) -> None:
    """Check what the bounds of single settings do not cover.

    Raises:
        UserError: two settings contradict each other, or a name or size is invalid.
    """
    for key, value in (("project", config.project), ("group", config.group)):
        if not re.fullmatch(r"[\w][\w.-]*", value):
            raise UserError(f"job.{key}={value}: this must be a folder name")
    if not re.fullmatch(r"[\w][\w.-]*", config.name):
        raise UserError(
            f"job.name={config.name!r}: give the run's folder a name of letters, digits, _ . -"
        )
    if (config.num_frames - 1) % 4:
        raise UserError(
            f"dataloader_train.dataset.num_frames={config.num_frames}: the VAE takes 4k+1 frames, "
            f"as {config.num_frames - (config.num_frames - 1) % 4}"
        )
    if config.min_conditional > config.max_conditional:
        raise UserError(
            f"model.config.pipe_config.min_num_conditional_frames={config.min_conditional} is "
            f"above max_num_conditional_frames={config.max_conditional}"
        )
    frames = config.latent_shape[1]
    if frames > 1 and config.max_conditional >= frames:
        raise UserError(
            f"model.config.pipe_config.max_num_conditional_frames={config.max_conditional}: a clip "
            f"has {frames} latent frames, and at least one must be left to generate"
        )
    if any(beta >= 1 for beta in config.betas):
        raise UserError(f"optimizer.betas={list(config.betas)}: both must be below 1")
    if config.dit_lora_alpha and not config.dit_path:
        raise UserError(
            "model.config.model_manager_config.lora_alpha applies to the adapters in "
            "model.config.model_manager_config.dit_path: set that too, or leave it out"
        )
    if config.offload and not config.compile:
        raise UserError(
            "model.config.offload_block_inputs=true needs model.config.compile=true: only "
            "inputs of compiled blocks can be offloaded"
        )
    _validate_validation(config)
    if not config.reads_text:
        sizes = [config.video_size, *(one[:2] for one in config.phases)]
        require_published_clip(config.size, config.num_frames, sizes)
    if any(side % 16 for side in config.video_size):
        raise UserError(
            f"dataloader_train.dataset.video_size={list(config.video_size)}: height and width "
            "must be multiples of 16"
        )


def _validate_validation(config: TrainConfig) -> None:
    if not config.run_validation:
        if config.stop_after_validations:
            raise UserError(
                f"trainer.stop_after_validations={config.stop_after_validations}: nothing is "
                "validated; set trainer.run_validation=true too, or leave it out"
            )
        return
    if config.validation_weights == "ema" and not config.ema:
        raise UserError(
            "trainer.validation_weights=ema: there is no moving average with "
            "model.config.pipe_config.ema.enabled=false; use regular"
        )
