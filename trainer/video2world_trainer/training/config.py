"""The settings of a training run: the experiment's, with upstream's dotted overrides on top."""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.experiments import DATASET, EXPERIMENTS, Experiment, full_name
from video2world_common.model_sizes import SIZES
from video2world_trainer.distributed.activation_checkpoint import LEVELS
from video2world_trainer.model.lora import TARGETS
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.training.ema import EMA_RATE
from video2world_trainer.training.fixed_settings import FIXED, fixed
from video2world_trainer.training.loss import HIGH_SIGMA_RATIO, LOSS_SCALE, TEXT_DROPOUT, NoiseLaw

__all__ = [
    "TrainConfig",
    "defaults_by_size",
    "read_config",
    "settings_text",
    "shown",
]

_NET = "model.config.pipe_config.net."


def _key(
    name: str,
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] = (),
) -> Any:
    facts = {"key": name, "help": text, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class TrainConfig:
    """What one run does; each field has its dotted name on the command line and its meaning."""

    size: str = _key("model.size", "2B", "the model", choices=("Tiny", "2B", "14B"))
    geometry: str = _key(
        "model.geometry",
        "crop",
        "how latents were fitted to the picture, which must agree",
        choices=("crop", "stretch"),
    )
    project: str = _key("job.project", "posttraining", "folder below checkpoints/")
    group: str = _key("job.group", "video2world", "folder below the project's")
    name: str = _key("job.name", "", "folder of the run")
    max_iter: int = _key("trainer.max_iter", 100_000, "iterations in all", low=1)
    logging_iter: int = _key("trainer.logging_iter", 10, "iterations between reports", low=1)
    seed: int = _key("trainer.seed", 0, "seed of noise, order and adapters", low=0)
    save_iter: int = _key("checkpoint.save_iter", 500, "iterations between checkpoints", low=1)
    keep: int = _key("checkpoint.keep", 0, "newest checkpoints that stay; 0 keeps all", low=0)
    asynchronous: bool = _key("checkpoint.asynchronous", True, "write while training continues")
    timeout: float = _key(
        "trainer.timeout_seconds", 1800.0, "without an iteration for so long, end", low=1
    )
    stop_when_diverged: bool = _key(
        "trainer.stop_when_diverged", False, "end with code 2 when the loss diverges"
    )
    tensorboard: bool = _key("trainer.tensorboard", False, "write curves for TensorBoard too")
    context_parallel_size: int = _key(
        "model_parallel.context_parallel_size", 1, "ranks that share a clip", low=1
    )
    shard_size: int = _key(
        "model.config.fsdp_shard_size",
        8,
        "ranks over which FSDP shards the model, at most; 1: none, -1: all",
        low=-1,
    )
    compile: bool = _key("model.config.compile", True, "compile blocks (GPUs; not Tiny)")
    keep_activations: str = _key(
        "model.config.keep_activations",
        "auto",
        "what blocks keep for the backward pass",
        choices=("auto", *LEVELS),
    )
    offload: bool = _key(
        "model.config.offload_block_inputs", False, "keep the blocks' inputs in host memory"
    )
    dataset_dir: str = _key(
        "dataloader_train.dataset.dataset_dir", f"datasets/{DATASET}/train", "folder of the split"
    )
    batch_size: int = _key("dataloader_train.batch_size", 1, "clips a rank and iteration", low=1)
    num_frames: int = _key(
        "dataloader_train.dataset.num_frames", 93, "pixel frames of a clip, 4k+1", low=1
    )
    video_size: tuple[int, ...] = _key(
        "dataloader_train.dataset.video_size",
        (704, 1280),
        "height and width, multiples of 16",
        low=1,
    )
    text_length: int = _key(
        "dataloader_train.dataset.text_length", 512, "positions of the caption, padded", low=1
    )
    cache: bool = _key("dataloader_train.dataset.cache", False, "keep all samples in memory")
    encode: bool = _key(
        "dataloader_train.dataset.encode",
        False,
        "encode videos in the step instead of reading the latents stage's files",
    )
    vae_path: str = _key(
        "model.config.vae_path", "", "folder of the VAE for that; empty: beside the base weights"
    )
    architecture: str = _key(
        "model.config.train_architecture",
        "base",
        "all weights, or adapters only",
        choices=("base", "lora"),
    )
    lora_rank: int = _key("model.config.lora_rank", 16, "rank of the adapters", low=1)
    lora_alpha: float = _key(
        "model.config.lora_alpha", 16.0, "adapters are scaled by alpha / rank", low=0
    )
    lora_targets: str = _key(
        "model.config.lora_target_modules", ",".join(TARGETS), "ends of the adapted layers' names"
    )
    dit_path: str = _key(
        "model.config.model_manager_config.dit_path",
        "",
        "weights to start from; empty: the published ones, Tiny from its seed",
    )
    dit_lora_alpha: float = _key(
        "model.config.model_manager_config.lora_alpha",
        0.0,
        "alpha of the adapters in these weights, if they have some and do not say it; 0: none",
        low=0,
    )
    ema: bool = _key("model.config.pipe_config.ema.enabled", True, "keep averaged weights")
    ema_rate: float = _key(
        "model.config.pipe_config.ema.rate",
        EMA_RATE,
        "width of the averaging window, relative to the training so far",
        low=1e-3,
        high=0.28,
    )
    min_conditional: int = _key(
        "model.config.pipe_config.min_num_conditional_frames",
        1,
        "latent frames that are given, at least",
        low=0,
    )
    max_conditional: int = _key(
        "model.config.pipe_config.max_num_conditional_frames",
        1,
        "latent frames that are given, at most",
        low=0,
    )
    text_dropout: float = _key(
        "model.config.pipe_config.conditioner.text.dropout_rate",
        TEXT_DROPOUT,
        "share of samples without their caption",
        low=0,
        high=1,
    )
    adjust_noise: bool = _key(
        "model.config.adjust_video_noise",
        True,
        "multiply noise levels by the root of the clip's latent frames",
    )
    high_sigma_ratio: float = _key(
        "model.config.high_sigma_ratio",
        HIGH_SIGMA_RATIO,
        "share of samples that see almost pure noise",
        low=0,
        high=1,
    )
    loss_scale: float = _key("model.config.loss_scale", LOSS_SCALE, "factor of the loss", low=1e-6)
    loss_weight: str = _key(
        "model.config.loss_weight",
        "flow",
        "of a noise level s: flow, (1+s)^2/s^2 as the newest code, or edm, (s^2+1)/s^2 as the "
        "guide's own commit",
        choices=("flow", "edm"),
    )
    attention: str = _key(
        f"{_NET}atten_backend", "minimal_a2a", "kernel; minimal_a2a: the best that is there"
    )
    rope_h: float = _key(
        f"{_NET}rope_h_extrapolation_ratio", 3.0, "RoPE ratio over the height", low=0.01
    )
    rope_w: float = _key(
        f"{_NET}rope_w_extrapolation_ratio", 3.0, "RoPE ratio over the width", low=0.01
    )
    rope_t: float = _key(
        f"{_NET}rope_t_extrapolation_ratio", 1.0, "RoPE ratio over the time", low=0.01
    )
    learning_rate: float = _key("optimizer.lr", 2**-15.5, "base learning rate", low=0)
    betas: tuple[float, ...] = _key(
        "optimizer.betas", (0.9, 0.99), "decay of AdamW's moments", low=0, high=1
    )
    eps: float = _key("optimizer.eps", 1e-8, "AdamW's epsilon", low=0)
    weight_decay: float = _key("optimizer.weight_decay", 0.1, "on every parameter", low=0)
    clip_norm: float = _key(
        "optimizer.clip_norm", 0.0, "largest norm of the gradients; 0: not clipped", low=0
    )
    warm_up_steps: int = _key(
        "scheduler.warm_up_steps", 2000, "iterations from f_start to f_max", low=0
    )
    cycle_length: int = _key(
        "scheduler.cycle_lengths", 400_000, "iteration at which f_min is reached, and held", low=0
    )
    f_max: float = _key("scheduler.f_max", 0.99, "factor of the learning rate, highest", low=0)
    f_min: float = _key(
        "scheduler.f_min", 0.0, "at the end (the guide's own commit: 0.4, for 14B 0.1)", low=0
    )
    f_start: float = _key("scheduler.f_start", 1e-6, "at the first iteration", low=0)

    @property
    def job_folder(self) -> Path:
        """The run's folder, relative to the volume's root."""
        return Path("checkpoints", self.project, self.group, self.name)

    @property
    def checkpoint_folder(self) -> Path:
        """Where the run's checkpoints lie."""
        return self.job_folder / "checkpoints"

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape of one clip's latents: channels, frames, height, width."""
        height, width = self.video_size
        return 16, 1 + (self.num_frames - 1) // 4, height // 8, width // 8

    @property
    def noise_law(self) -> NoiseLaw:
        """How the randomness of samples is distributed."""
        return NoiseLaw(
            (self.min_conditional, self.max_conditional),
            self.text_dropout,
            self.high_sigma_ratio,
            self.adjust_noise,
        )

    def without_effect(self) -> list[tuple[str, str]]:
        """Name the settings that were changed although others leave them without effect."""
        idle: dict[str, str] = {}
        if self.architecture == "base":
            for name in ("lora_rank", "lora_alpha", "lora_targets"):
                idle[name] = "model.config.train_architecture is base"
        if not self.encode:
            idle["vae_path"] = "dataloader_train.dataset.encode is false"
        if not self.ema:
            idle["ema_rate"] = "model.config.pipe_config.ema.enabled is false"
        return [
            (one.metadata["key"], idle[one.name])
            for one in fields(self)
            if one.name in idle and getattr(self, one.name) != one.default
        ]

    def as_overrides(self) -> dict[str, Any]:
        """Every setting under its dotted name."""
        return {one.metadata["key"]: getattr(self, one.name) for one in fields(self)}


def _defaults(size: str) -> dict[str, Any]:
    """What a model size decides, from its preset."""
    chosen, shared = PRESETS[size], SIZES[size]
    return {
        "num_frames": shared.clip_frames[16],
        "video_size": shared.frame_sizes["720p"],
        "text_length": chosen.text_tokens,
        "cache": size == "Tiny",  # its whole data set takes a few megabytes
        "asynchronous": size != "Tiny",  # whose checkpoints are written in no time
        "shard_size": {"Tiny": 1, "2B": 8, "14B": 32}[size],
        "rope_h": chosen.dit.rope_ratio_h,
        "rope_w": chosen.dit.rope_ratio_w,
        "rope_t": chosen.dit.rope_ratio_t,
        "learning_rate": shared.learning_rate,
        "weight_decay": chosen.weight_decay,
        "warm_up_steps": shared.warmup_iterations,
        "cycle_length": chosen.cycle_length,
        "f_max": chosen.f_max,
        "f_min": chosen.f_min,
        "f_start": chosen.f_start,
    }


def _experiment_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the fields that an experiment sets."""
    size = SIZES[experiment.model_size]
    return {
        "size": experiment.model_size,
        "geometry": experiment.geometry,
        "name": experiment.job_name,
        "max_iter": experiment.iterations,
        "save_iter": experiment.save_iterations,
        "shard_size": experiment.shard_size,
        "context_parallel_size": experiment.context_parallel_size,
        "num_frames": size.clip_frames[experiment.fps],
        "video_size": size.frame_sizes[experiment.resolution],
        "rope_h": experiment.rope_ratio,
        "rope_w": experiment.rope_ratio,
    }


_FIELDS = {one.metadata["key"]: one for one in fields(TrainConfig)}


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "tuple[int, ...]": "[height,width], as [704,1280]",
    "tuple[float, ...]": "two numbers, as [0.9,0.99]",
    "str": "a text",
}
"""What a value must be, by the type of its setting."""


def _suggest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the setting that was probably meant: in the same place, or of the same last name."""
    place, _, last = name.rpartition(".")
    there = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == place}
    near = difflib.get_close_matches(last, there, n=1, cutoff=0.7)
    same = [one for one in known if one.rpartition(".")[2] == last]
    return there[near[0]] if near else same[0] if len(same) == 1 else None


def _unknown(key: str, value: str) -> str | None:
    """Return why a setting that is not here cannot be changed; None if it need not be."""
    why = fixed(key, value)
    near = _nearest(key, _FIELDS)
    if key not in FIXED and near:
        return f"{key} is not a setting; did you mean {near}?"
    if why is None:
        return f"{key} is not a setting; python -m video2world_trainer.train --help lists them"
    return f"{key}={value} cannot be set here: {why}" if why else None


def defaults_by_size(one: Field[Any]) -> dict[str, Any]:
    """Return a setting's default for each model."""
    return {size: _defaults(size).get(one.name, one.default) for size in PRESETS}


def settings_text() -> str:
    """List every setting with its meaning, default and limits, for people."""
    lines = ["settings (key=value; the default of 2B first):"]
    for one in fields(TrainConfig):
        facts, defaults = one.metadata, defaults_by_size(one)
        kind = (
            f"one of {', '.join(facts['choices'])}" if facts["choices"] else _KINDS[str(one.type)]
        )
        others = [f"{size}: {shown(v)}" for size, v in defaults.items() if v != defaults["2B"]]
        default = ", ".join([f"default {shown(defaults['2B'])}", *others])
        lines += [f"  {facts['key']}", f"      {facts['help']} ({kind}; {default})"]
    return "\n".join(
        [*lines, "", "experiments (experiment=NAME):", *(f"  {n}" for n in EXPERIMENTS)]
    )


def shown(value: Any) -> str:
    """Write a value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"


def _pair(text: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    value = tuple(ast.literal_eval(text))
    if len(value) != 2 or any(type(one) not in (int, kind) for one in value):
        raise ValueError
    return tuple(map(kind, value))


def _typed(kind: str, text: str) -> Any:
    """Read ``text`` as ``kind``; raise ValueError or the like where it is another."""
    if kind == "bool":
        return {"true": True, "false": False}[text.lower()]
    if kind == "str":
        return text
    if kind == "tuple[int, ...]":
        return _pair(text, int)
    if kind == "tuple[float, ...]":
        return _pair(text, float)
    text = re.sub(r"^\[(.*)\]$", r"\1", text)  # upstream's schedule settings are lists of one
    return int(text.replace("_", "")) if kind == "int" else float(text)


def _read(key: str, text: str) -> Any:
    """The value of ``text`` in the type of the setting ``key``."""
    setting = _FIELDS[key]
    kind = str(setting.type)
    text = text.strip().strip("\"'")
    try:
        value = _typed(kind, text)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(one, float) and not math.isfinite(one) for one in numbers):
            raise ValueError
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise UserError(f"{key}={text}: this must be {_KINDS[kind]}") from None
    low, high, choices = (setting.metadata[name] for name in ("low", "high", "choices"))
    if low is not None and any(one < low for one in numbers):
        raise UserError(f"{key}={text}: this must be at least {low}")
    if high is not None and any(one > high for one in numbers):
        raise UserError(f"{key}={text}: this must be at most {high}")
    if choices and value not in choices:
        raise UserError(f"{key}={text}: this must be one of {', '.join(choices)}")
    return value


def read_config(overrides: Iterable[str]) -> TrainConfig:
    """The settings that ``overrides`` (``experiment=NAME``, ``dotted.key=value``) ask for.

    Later ones win; the experiment fills what they leave open, and the model size what both leave
    open. A leading ``+`` (Hydra's "new key") is accepted.

    Raises:
        UserError: an unknown name, a setting of upstream's that is fixed here, or a value that
            does not fit, with the reason or what is expected.
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
            raise UserError(f"experiment={name} is not known; {_suggest(full, EXPERIMENTS)}")
        settings |= _experiment_settings(EXPERIMENTS[full])
    read: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _FIELDS:
            if problem := _unknown(key, value):
                raise UserError(problem)
            continue
        read[_FIELDS[key].name] = _read(key, value)
    wanted = read.get("size", settings.get("size", "2B"))
    if name and wanted != settings["size"]:
        raise UserError(f"model.size={wanted} contradicts experiment={name}: leave one of them out")
    settings = {**_defaults(wanted), **settings, **read}
    config = TrainConfig(**settings)
    _check(config)
    return config


def _check(config: TrainConfig) -> None:
    """Refuse what the single settings' bounds cannot see."""
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
            "model.config.model_manager_config.lora_alpha is of the adapters in "
            "model.config.model_manager_config.dit_path: name that file, or leave it out"
        )
    if config.offload and not config.compile:
        raise UserError(
            "model.config.offload_block_inputs=true needs model.config.compile=true: only compiled "
            "blocks hand over what they keep"
        )
    if any(side % 16 for side in config.video_size):
        raise UserError(
            f"dataloader_train.dataset.video_size={list(config.video_size)}: height and width "
            "must be multiples of 16"
        )
