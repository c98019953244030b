"""Define the settings of a training run.

Dotted names are those of Cosmos-Predict2's configuration, where it has the setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from video2world_common.experiments import DATASET
from video2world_preprocess.video.resize import Geometry
from video2world_trainer.distributed.activation_checkpoint import (
    RECOMPUTE_POLICIES,
    RecomputePolicy,
)
from video2world_trainer.model.lora import TARGETS
from video2world_trainer.training.action_config import ActionConfig
from video2world_trainer.training.batch_config import BatchConfig
from video2world_trainer.training.checkpoint_config import CheckpointConfig
from video2world_trainer.training.config_setting import setting as _setting
from video2world_trainer.training.ema import EMA_RATE
from video2world_trainer.training.loss import (
    HIGH_SIGMA_RATIO,
    LOSS_SCALE,
    TEXT_DROPOUT,
    NoiseDistribution,
)
from video2world_trainer.training.lr_schedule import LinearSchedule
from video2world_trainer.training.validation_config import ValidationConfig

__all__ = [
    "SETTINGS",
    "TrainConfig",
    "as_overrides",
    "clip_latent_shape",
    "settings_without_effect",
    "value_kind",
]

_NET = "model.config.pipe_config.net."


@dataclass(frozen=True)
class TrainConfig(BatchConfig, CheckpointConfig, ActionConfig, ValidationConfig):
    """Settings of a training run; each field's metadata has its dotted name, meaning and bounds."""

    size: str = _setting("model.size", "2B", "model size", choices=("Tiny", "2B", "14B"))
    geometry: Geometry = _setting(  # noqa: RUF009 (it returns a dataclasses.field)
        "model.geometry",
        "crop",
        "how videos were fitted to the frame size; must match the latents",
        choices=("crop", "stretch"),
    )
    attention_pattern: str = _setting(
        "model.attention_pattern",
        "dense",
        "self-attention: dense, or the sparse patterns of the published -natten weights",
        choices=("dense", "sparse"),
    )
    project: str = _setting("job.project", "posttraining", "folder below checkpoints/")
    group: str = _setting("job.group", "video2world", "folder below the project's")
    name: str = _setting("job.name", "", "folder of the run")
    max_iter: int = _setting("trainer.max_iter", 100_000, "total number of iterations", low=1)
    phases: tuple[tuple[int, ...], ...] = _setting(
        "trainer.phases",
        (),
        "frame sizes to train at one after the other; the last phase takes the rest of "
        "trainer.max_iter if its iterations are left out",
    )
    logging_iter: int = _setting("trainer.logging_iter", 10, "iterations between reports", low=1)
    seed: int = _setting("trainer.seed", 0, "seed of noise, order and adapters", low=0)
    timeout: float = _setting(
        "trainer.timeout_seconds",
        1800.0,
        "end the process after this time without an iteration",
        low=1,
    )
    stop_when_diverged: bool = _setting(
        "trainer.stop_when_diverged", False, "end with code 2 when the loss diverges"
    )
    tensorboard: bool = _setting("trainer.tensorboard", False, "also write TensorBoard event files")
    context_parallel_size: int = _setting(
        "model_parallel.context_parallel_size", 1, "ranks that share a clip", low=1
    )
    shard_size: int = _setting(
        "model.config.fsdp_shard_size",
        8,
        "most ranks to shard the model over with FSDP; 1: no FSDP, -1: all ranks",
        low=-1,
    )
    compile: bool = _setting("model.config.compile", True, "compile blocks (on GPUs; not for Tiny)")
    keep_activations: Literal["auto"] | RecomputePolicy = _setting(  # noqa: RUF009 (as above)
        "model.config.keep_activations",
        "auto",
        "what blocks save for the backward pass; auto: the most that fits",
        choices=("auto", *RECOMPUTE_POLICIES),
    )
    offload: bool = _setting(
        "model.config.offload_block_inputs", False, "save the blocks' inputs in host memory"
    )
    dataset_dir: str = _setting(
        "dataloader_train.dataset.dataset_dir", f"datasets/{DATASET}/train", "folder of the split"
    )
    num_frames: int = _setting(
        "dataloader_train.dataset.num_frames", 93, "pixel frames per clip, 4k+1", low=1
    )
    video_size: tuple[int, ...] = _setting(
        "dataloader_train.dataset.video_size",
        (704, 1280),
        "height and width, multiples of 16",
        low=1,
    )
    text_length: int = _setting(
        "dataloader_train.dataset.text_length", 512, "number of caption tokens, padded", low=1
    )
    cache: bool = _setting("dataloader_train.dataset.cache", False, "cache all samples in memory")
    encode: bool = _setting(
        "dataloader_train.dataset.encode",
        False,
        "encode videos in the training step instead of reading precomputed latents",
    )
    vae_path: str = _setting(
        "model.config.vae_path", "", "folder of the VAE for encode; empty: next to the base weights"
    )
    architecture: str = _setting(
        "model.config.train_architecture",
        "base",
        "base: train all weights; lora: train adapters only",
        choices=("base", "lora"),
    )
    lora_rank: int = _setting("model.config.lora_rank", 16, "rank of the adapters", low=1)
    lora_alpha: float = _setting(
        "model.config.lora_alpha", 16.0, "adapters are scaled by alpha / rank", low=0
    )
    lora_targets: str = _setting(
        "model.config.lora_target_modules",
        ",".join(TARGETS),
        "suffixes of the names of adapted layers",
    )
    dit_path: str = _setting(
        "model.config.model_manager_config.dit_path",
        "",
        "initial weights; empty: the published ones, or random ones for Tiny",
    )
    dit_lora_alpha: float = _setting(
        "model.config.model_manager_config.lora_alpha",
        0.0,
        "alpha of the adapters in dit_path, if the file does not record it; 0: no adapters",
        low=0,
    )
    ema: bool = _setting(
        "model.config.pipe_config.ema.enabled",
        True,
        "keep an exponential moving average of the weights",
    )
    ema_rate: float = _setting(
        "model.config.pipe_config.ema.rate",
        EMA_RATE,
        "width of the averaging window relative to the training so far",
        low=1e-3,
        high=0.28,
    )
    min_conditional: int = _setting(
        "model.config.pipe_config.min_num_conditional_frames",
        1,
        "fewest latent frames to condition on",
        low=0,
    )
    max_conditional: int = _setting(
        "model.config.pipe_config.max_num_conditional_frames",
        1,
        "most latent frames to condition on",
        low=0,
    )
    text_dropout: float = _setting(
        "model.config.pipe_config.conditioner.text.dropout_rate",
        TEXT_DROPOUT,
        "share of samples trained without their caption",
        low=0,
        high=1,
    )
    adjust_noise: bool = _setting(
        "model.config.adjust_video_noise",
        True,
        "multiply noise levels by the square root of the latent frame count",
    )
    high_sigma_ratio: float = _setting(
        "model.config.high_sigma_ratio",
        HIGH_SIGMA_RATIO,
        "share of samples that are almost pure noise",
        low=0,
        high=1,
    )
    loss_scale: float = _setting(
        "model.config.loss_scale", LOSS_SCALE, "factor of the loss", low=1e-6
    )
    loss_weight: str = _setting(
        "model.config.loss_weight",
        "flow",
        "weight of a noise level s: flow is (1+s)^2/s^2, as in the newest Cosmos-Predict2; edm is "
        "(s^2+1)/s^2, as in the guide's commit",
        choices=("flow", "edm"),
    )
    attention: str = _setting(
        f"{_NET}atten_backend",
        "minimal_a2a",
        "attention backend; minimal_a2a: the fastest available",
    )
    rope_h: float = _setting(
        f"{_NET}rope_h_extrapolation_ratio", 3.0, "RoPE extrapolation ratio over height", low=0.01
    )
    rope_w: float = _setting(
        f"{_NET}rope_w_extrapolation_ratio", 3.0, "RoPE extrapolation ratio over width", low=0.01
    )
    rope_t: float = _setting(
        f"{_NET}rope_t_extrapolation_ratio", 1.0, "RoPE extrapolation ratio over time", low=0.01
    )
    learning_rate: float = _setting("optimizer.lr", 2**-15.5, "base learning rate", low=0)
    betas: tuple[float, ...] = _setting(
        "optimizer.betas", (0.9, 0.99), "decay rates of AdamW's moments", low=0, high=1
    )
    eps: float = _setting("optimizer.eps", 1e-8, "AdamW's epsilon", low=0)
    weight_decay: float = _setting(
        "optimizer.weight_decay", 0.1, "weight decay of every parameter", low=0
    )
    clip_norm: float = _setting(
        "optimizer.clip_norm", 0.0, "largest gradient norm; 0: no clipping", low=0
    )
    warm_up_steps: int = _setting(
        "scheduler.warm_up_steps", 2000, "warm-up iterations, from f_start to f_max", low=0
    )
    cycle_length: int = _setting(
        "scheduler.cycle_lengths",
        400_000,
        "iteration at which f_min is reached; it holds from then on",
        low=0,
    )
    f_max: float = _setting("scheduler.f_max", 0.99, "highest factor of the learning rate", low=0)
    f_min: float = _setting(
        "scheduler.f_min", 0.0, "factor at the end (the guide's commit: 0.4, for 14B 0.1)", low=0
    )
    f_start: float = _setting("scheduler.f_start", 1e-6, "factor at the first iteration", low=0)

    @property
    def schedule(self) -> LinearSchedule:
        """The schedule of the learning rate."""
        return LinearSchedule(
            self.warm_up_steps, self.cycle_length, self.f_max, self.f_min, self.f_start
        )

    @property
    def job_folder(self) -> Path:
        """The run's folder, relative to the volume's root."""
        return Path("checkpoints", self.project, self.group, self.name)

    @property
    def checkpoint_folder(self) -> Path:
        """The folder of the run's checkpoints, relative to the volume's root."""
        return self.job_folder / "checkpoints"

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape of one clip's latents at the final frame size: channels, frames, height, width."""
        return clip_latent_shape(self.num_frames, self.video_size)

    @property
    def fps(self) -> int:
        """Frames per second of the videos, which follows from the clips."""
        return 4 if not self.reads_text else 10 if self.num_frames == 61 else 16

    @property
    def resolution(self) -> str:
        """Resolution of the published base weights that match the frame size."""
        return "480p" if min(self.video_size) < 700 else "720p"

    @property
    def noise_distribution(self) -> NoiseDistribution:
        """Distribution of the randomness of samples."""
        return NoiseDistribution(
            (self.min_conditional, self.max_conditional),
            self.text_dropout,
            self.high_sigma_ratio,
            self.adjust_noise,
        )


def clip_latent_shape(num_frames: int, video_size: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the shape of one clip's latents: channels, frames, height, width."""
    height, width = video_size
    return 16, 1 + (num_frames - 1) // 4, height // 8, width // 8


SETTINGS = {one.metadata["key"]: one for one in fields(TrainConfig)}
"""Fields of :class:`TrainConfig` by their dotted names."""


def as_overrides(config: TrainConfig) -> dict[str, Any]:
    """Return every setting by its dotted name."""
    return {one.metadata["key"]: getattr(config, one.name) for one in fields(config)}


def value_kind(setting: Field[Any]) -> str:
    """Return the type of a setting's values as text; a choice is a ``str``."""
    return "str" if setting.metadata["choices"] else str(setting.type)


def settings_without_effect(config: TrainConfig) -> list[tuple[str, str]]:
    """Return changed settings that have no effect, each with the reason."""
    unused: dict[str, str] = {}
    if config.architecture == "base":
        for name in ("lora_rank", "lora_alpha", "lora_targets"):
            unused[name] = "model.config.train_architecture is base"
    if not config.encode:
        unused["vae_path"] = "dataloader_train.dataset.encode is false"
    if not config.reads_text:
        for name in ("text_dropout", "text_length"):
            unused[name] = "there are no captions with model.action_conditioning=per_clip"
    if not config.ema:
        unused["ema_rate"] = "model.config.pipe_config.ema.enabled is false"
    if not config.run_validation:
        for one in fields(ValidationConfig):
            unused[one.name] = "trainer.run_validation is false"
    return [
        (one.metadata["key"], unused[one.name])
        for one in fields(config)
        if one.name in unused and getattr(config, one.name) != one.default
    ]
