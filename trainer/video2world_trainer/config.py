"""The settings of a training run: the experiment's, with upstream's dotted overrides on top."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from video2world_preprocess.stage import UserError

from .lora import TARGETS
from .memory import LEVELS
from .presets import PRESETS

__all__ = ["EXPERIMENTS", "TrainConfig", "read_config"]

_NET = "model.config.pipe_config.net."
_PREFIX = "predict2_video2world_training_"
_DATASET = "agibot_head_center_fisheye_color"


def _key(
    name: str, default: Any, *, low: float | None = None, choices: tuple[Any, ...] = ()
) -> Any:
    return field(default=default, metadata={"key": name, "low": low, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """What one run does. The dotted name on each line is its name on the command line."""

    size: str = _key("model.size", "2B", choices=("Tiny", "2B", "14B"))
    geometry: str = _key("model.geometry", "crop", choices=("crop", "stretch"))
    project: str = _key("job.project", "posttraining")
    group: str = _key("job.group", "video2world")
    name: str = _key("job.name", "")
    max_iter: int = _key("trainer.max_iter", 100_000, low=1)
    logging_iter: int = _key("trainer.logging_iter", 10, low=1)
    seed: int = _key("trainer.seed", 0, low=0)
    save_iter: int = _key("checkpoint.save_iter", 500, low=1)
    keep: int = _key("checkpoint.keep", 0, low=0)  # newest checkpoints kept; 0 keeps all
    asynchronous: bool = _key("checkpoint.asynchronous", True)  # write while training goes on
    timeout: float = _key("trainer.timeout_seconds", 1800.0, low=1)  # without progress: give up
    tensorboard: bool = _key("trainer.tensorboard", False)
    context_parallel_size: int = _key("model_parallel.context_parallel_size", 1, low=1)
    # ranks that FSDP cuts the model over, at most; 1: none, every rank has it all; -1: all ranks
    shard_size: int = _key("model.config.fsdp_shard_size", 8, low=-1)
    compile: bool = _key("model.config.compile", True)  # on GPUs, all sizes but Tiny
    keep_activations: str = _key("model.config.keep_activations", "auto",
                                 choices=("auto", *LEVELS))  # fmt: skip
    offload: bool = _key("model.config.offload_block_inputs", False)  # to host memory
    dataset_dir: str = _key("dataloader_train.dataset.dataset_dir", f"datasets/{_DATASET}/train")
    batch_size: int = _key("dataloader_train.batch_size", 1, low=1)  # clips a rank and iteration
    num_frames: int = _key("dataloader_train.dataset.num_frames", 93, low=1)  # pixel frames
    video_size: tuple[int, ...] = _key("dataloader_train.dataset.video_size", (704, 1280))  # H, W
    text_length: int = _key("dataloader_train.dataset.text_length", 512, low=1)  # tokens, padded
    cache: bool = _key("dataloader_train.dataset.cache", False)  # keep the samples in memory
    # encode videos in the step instead of reading the latents stage's files
    encode: bool = _key("dataloader_train.dataset.encode", False)
    vae_path: str = _key("model.config.vae_path", "")  # then; default: beside the base weights
    architecture: str = _key("model.config.train_architecture", "base", choices=("base", "lora"))
    lora_rank: int = _key("model.config.lora_rank", 16, low=1)
    lora_alpha: float = _key("model.config.lora_alpha", 16.0, low=0)
    lora_targets: str = _key("model.config.lora_target_modules", ",".join(TARGETS))
    dit_path: str = _key("model.config.model_manager_config.dit_path", "")
    ema: bool = _key("model.config.pipe_config.ema.enabled", True)
    attention: str = _key(f"{_NET}atten_backend", "minimal_a2a")
    rope_h: float = _key(f"{_NET}rope_h_extrapolation_ratio", 3.0, low=0.01)
    rope_w: float = _key(f"{_NET}rope_w_extrapolation_ratio", 3.0, low=0.01)
    rope_t: float = _key(f"{_NET}rope_t_extrapolation_ratio", 1.0, low=0.01)
    learning_rate: float = _key("optimizer.lr", 2**-15.5, low=0)
    weight_decay: float = _key("optimizer.weight_decay", 0.1, low=0)
    clip_norm: float = _key("optimizer.clip_norm", 0.0, low=0)  # 0: gradients are not clipped
    warm_up_steps: int = _key("scheduler.warm_up_steps", 2000, low=0)
    cycle_length: int = _key("scheduler.cycle_lengths", 400_000, low=0)
    f_max: float = _key("scheduler.f_max", 0.99, low=0)
    f_min: float = _key("scheduler.f_min", 0.0, low=0)
    f_start: float = _key("scheduler.f_start", 1e-6, low=0)

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

    def as_overrides(self) -> dict[str, Any]:
        """Every setting under its dotted name."""
        return {one.metadata["key"]: getattr(self, one.name) for one in fields(self)}


def _defaults(size: str) -> dict[str, Any]:
    """What a model size decides, from its preset."""
    chosen = PRESETS[size]
    return {
        "num_frames": chosen.clip_frames[16],
        "video_size": chosen.sizes["720p"],
        "text_length": chosen.text_tokens,
        "cache": size == "Tiny",  # its whole data set takes a few megabytes
        "asynchronous": size != "Tiny",  # whose checkpoints are written in no time
        "shard_size": {"Tiny": 1, "2B": 8, "14B": 32}[size],
        "rope_h": chosen.dit.rope_ratio_h,
        "rope_w": chosen.dit.rope_ratio_w,
        "rope_t": chosen.dit.rope_ratio_t,
        "learning_rate": chosen.learning_rate,
        "weight_decay": chosen.weight_decay,
        "warm_up_steps": chosen.warm_up_steps,
        "cycle_length": chosen.cycle_length,
        "f_max": chosen.f_max,
        "f_min": chosen.f_min,
        "f_start": chosen.f_start,
    }


def _experiment(size: str, resolution: str | None, fps: int | None) -> dict[str, Any]:
    suffix = f"_{resolution}_{fps}fps" if resolution else ""
    settings: dict[str, Any] = {
        "size": size,
        "geometry": "stretch",
        "name": f"{size.lower()}_{_DATASET}{suffix}",
        "shard_size": 32 if size == "14B" and not resolution else 8,
        "context_parallel_size": 8 if size == "14B" else 1 if resolution == "480p" else 2,
        "num_frames": 61 if fps == 10 else 93,
        "video_size": (432, 768) if resolution == "480p" else (704, 1280),
    }
    # The 2B experiments train at ratio 2 although the base weights were made at 3
    return settings | ({"rope_h": 2.0, "rope_w": 2.0} if size == "2B" else {})


EXPERIMENTS: Mapping[str, Mapping[str, Any]] = {
    f"{_PREFIX}{settings['name']}": settings
    for size in ("2B", "14B")
    for settings in (
        _experiment(size, None, None),
        *(_experiment(size, r, f) for r in ("480p", "720p") for f in (10, 16)),
    )
}
"""The guide's experiments: name to the fields they set."""

_FIELDS = {one.metadata["key"]: one for one in fields(TrainConfig)}


def _suggest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _read(key: str, text: str) -> Any:
    """The value of ``text`` in the type of the setting ``key``."""
    setting = _FIELDS[key]
    kind = str(setting.type)
    text = text.strip().strip("\"'")
    try:
        value: Any
        if kind == "bool":
            value = {"true": True, "false": False}[text.lower()]
        elif kind == "int":
            # upstream's schedule settings are lists of one
            value = int(re.sub(r"^\[(.*)\]$", r"\1", text).replace("_", ""))
        elif kind == "float":
            value = float(re.sub(r"^\[(.*)\]$", r"\1", text))
            if not abs(value) < float("inf"):
                raise ValueError
        elif kind.startswith("tuple"):
            value = tuple(ast.literal_eval(text))
            if len(value) != 2 or any(type(one) is not int or one < 1 for one in value):
                raise ValueError
        else:
            value = text
    except (KeyError, ValueError, SyntaxError, TypeError):
        wanted = {
            "bool": "true or false",
            "int": "a whole number",
            "float": "a number",
        }.get(kind, "[height,width], as [704,1280]")
        raise UserError(f"{key}={text}: this must be {wanted}") from None
    low, choices = setting.metadata["low"], setting.metadata["choices"]
    if low is not None and value < low:
        raise UserError(f"{key}={text}: this must be at least {low}")
    if choices and value not in choices:
        raise UserError(f"{key}={text}: this must be one of {', '.join(choices)}")
    return value


def read_config(overrides: Iterable[str]) -> TrainConfig:
    """The settings that ``overrides`` (``experiment=NAME``, ``dotted.key=value``) ask for.

    Later ones win; the experiment fills what they leave open, and the model size what both leave
    open. A leading ``+`` (Hydra's "new key") is accepted.

    Raises:
        UserError: an unknown name (the nearest known one is suggested) or a value that does not
            fit, with the name and what is expected.
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
        full = name if name.startswith(_PREFIX) else _PREFIX + name
        if full not in EXPERIMENTS:
            raise UserError(f"experiment={name} is not known; {_suggest(full, EXPERIMENTS)}")
        settings |= EXPERIMENTS[full]
    read: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _FIELDS:
            raise UserError(f"{key} is not a setting; {_suggest(key, _FIELDS)}")
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
