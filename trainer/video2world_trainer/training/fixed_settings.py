"""List the settings of Cosmos-Predict2's configuration that are fixed here, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FIXED", "Fixed", "why_fixed"]


@dataclass(frozen=True)
class Fixed:
    """The reason why a setting is fixed, and the ``values`` that are accepted: the fixed one."""

    reason: str
    values: tuple[str, ...] = ()


_READER = "latents are small files, which one thread reads ahead"
_HELD_OUT = (
    "held-out clips are read as training reads its own: set dataloader_val.dataset.dataset_dir"
)
_SIZE = "the network's shape must match the weights: set model.size"
_NO_T5 = "training reads the embeddings stage's files and loads no text encoder"
_NO_WANDB = (
    "curves are in progress.jsonl, on the results page, at Prometheus and in TensorBoard "
    "(trainer.tensorboard)"
)
_SAMPLER = "training generates no samples: see --num_steps of video2world_trainer.inference"

FIXED: Mapping[str, Fixed] = {
    # groups
    "model": Fixed("name an experiment, or set model.size and the data set's size and frames"),
    "optimizer": Fixed("AdamW with float32 masters is the only optimizer", ("fusedadamw",)),
    "scheduler": Fixed("the guide's schedule is the only one", ("lambdalinear",)),
    "ckpt_type": Fixed("there is only one checkpoint format", ("standard",)),
    # trainer, checkpoint, job
    "trainer.distributed_parallelism": Fixed(
        "set model.config.fsdp_shard_size (1 for none)", ("fsdp",)
    ),
    "trainer.max_val_iter": Fixed("set trainer.validation_clips and trainer.validation_levels"),
    "trainer.timeout_period": Fixed("set trainer.timeout_seconds"),
    "trainer.cudnn.deterministic": Fixed("kernels are chosen by the hardware", ("false",)),
    "trainer.cudnn.benchmark": Fixed("kernels are chosen by the hardware", ("true",)),
    "trainer.grad_scaler_args.": Fixed("bfloat16 needs no loss scaling"),
    "trainer.memory_format": Fixed("the layout in memory is fixed", ("preserve_format",)),
    "trainer.callbacks.grad_clip.": Fixed(
        "set optimizer.clip_norm: Cosmos-Predict2's clipping has no effect, so it is off by default"
    ),
    "trainer.callbacks.wandb.": Fixed(_NO_WANDB),
    "trainer.callbacks.": Fixed("there are no callbacks: set trainer.logging_iter"),
    "checkpoint.load_path": Fixed(
        "a run resumes from its own folder automatically; to start from other weights set "
        "model.config.model_manager_config.dit_path"
    ),
    "checkpoint.load_training_state": Fixed("a run always resumes with its complete state"),
    "checkpoint.strict_resume": Fixed("a run always resumes with its complete state", ("true",)),
    "job.wandb_mode": Fixed(_NO_WANDB),
    "model_parallel.tensor_model_parallel_size": Fixed(
        "there is no tensor parallelism: set model_parallel.context_parallel_size", ("1",)
    ),
    "model_parallel.pipeline_model_parallel_size": Fixed(
        "there is no pipeline parallelism: set model_parallel.context_parallel_size", ("1",)
    ),
    "model_parallel.sequence_parallel": Fixed(
        "set model_parallel.context_parallel_size", ("false",)
    ),
    # data
    "dataloader_train.num_workers": Fixed(_READER),
    "dataloader_train.pin_memory": Fixed(_READER),
    "dataloader_train.drop_last": Fixed("epochs follow each other without a gap", ("true",)),
    "dataloader_train.sampler.": Fixed("the order is determined by trainer.seed"),
    "dataloader_val": Fixed(_HELD_OUT),
    "dataloader_val.": Fixed(_HELD_OUT),
    # optimizer, scheduler
    "optimizer.optim_type": Fixed("AdamW is the only optimizer", ("fusedadam",)),
    "optimizer.master_weights": Fixed("masters are always float32", ("true",)),
    "optimizer.capturable": Fixed("steps never synchronize with the device", ("true",)),
    "optimizer.bias_correction": Fixed("AdamW corrects the bias of its moments", ("true",)),
    "scheduler.verbosity_interval": Fixed("every progress report has the learning rate"),
    # model
    "model.config.precision": Fixed("training on GPUs uses bfloat16", ("bfloat16",)),
    "model.config.loss_reduce": Fixed(
        "the loss is a mean: multiply model.config.loss_scale to get a sum", ("mean",)
    ),
    "model.config.init_lora_weights": Fixed("adapters start at zero, as in PEFT", ("true",)),
    "model.config.input_video_key": Fixed("data sets have the guide's layout", ("video",)),
    "model.config.input_image_key": Fixed("training is on videos only", ("images",)),
    "model.config.debug_without_randomness": Fixed(
        "noise is determined by trainer.seed", ("false",)
    ),
    "model.config.model_manager_config.text_encoder_path": Fixed(_NO_T5, ("",)),
    "model.config.pipe_config.state_t": Fixed(
        "set dataloader_train.dataset.num_frames, to 4 (state_t - 1) + 1"
    ),
    "model.config.pipe_config.state_ch": Fixed("the VAE has 16 channels", ("16",)),
    "model.config.pipe_config.resolution": Fixed("set dataloader_train.dataset.video_size"),
    "model.config.pipe_config.resize_online": Fixed("videos are resized when latents are computed"),
    "model.config.pipe_config.adjust_video_noise": Fixed("set model.config.adjust_video_noise"),
    "model.config.pipe_config.conditioning_strategy": Fixed(
        "conditional frames are replaced, as the published weights expect", ("frame_replace",)
    ),
    "model.config.pipe_config.sigma_conditional": Fixed(
        "inference passes 0.0001 to the network, as in Cosmos-Predict2", ("0.0001", "1e-4")
    ),
    "model.config.pipe_config.sigma_data": Fixed("latents have unit variance", ("1.0", "1")),
    "model.config.pipe_config.precision": Fixed("training on GPUs uses bfloat16", ("bfloat16",)),
    "model.config.pipe_config.rectified_flow_t_scaling_factor": Fixed(
        "the published weights expect times from 0 to 1", ("1.0", "1")
    ),
    "model.config.pipe_config.rectified_flow_loss_weight_uniform": Fixed(
        "Cosmos-Predict2 does not read it: set model.config.loss_weight"
    ),
    "model.config.pipe_config.ema.iteration_shift": Fixed(
        "the average starts with the run", ("0",)
    ),
    "model.config.pipe_config.prompt_refiner_config.enabled": Fixed(
        "there is no prompt refiner", ("false",)
    ),
    "model.config.pipe_config.prompt_refiner_config.": Fixed("there is no prompt refiner"),
    "model.config.pipe_config.guardrail_config.enabled": Fixed("there is no guardrail", ("false",)),
    "model.config.pipe_config.guardrail_config.": Fixed("there is no guardrail"),
    "model.config.pipe_config.text_encoder_class": Fixed(_NO_T5, ("t5",)),
    "model.config.pipe_config.text_encoder.": Fixed(_NO_T5),
    "model.config.pipe_config.tokenizer.": Fixed("set model.config.vae_path"),
    "model.config.pipe_config.timestamps.": Fixed(_SAMPLER),
    "model.config.pipe_config.conditioner.": Fixed(
        "dropout applies to text only: set model.config.pipe_config.conditioner.text.dropout_rate"
    ),
    "model.config.pipe_config.net.action_dim": Fixed(
        "actions.json of the data set has the dimension: set model.action_conditioning", ("84",)
    ),
    "model.config.pipe_config.net.sac_config.": Fixed("set model.config.keep_activations"),
    "model.config.pipe_config.net.natten_parameters": Fixed(
        "set model.attention_pattern=sparse for the published patterns"
    ),
    "model.config.pipe_config.net.": Fixed(_SIZE),
}
"""By dotted name, or by a common prefix that ends in a dot; values are in lower case."""


def why_fixed(key: str, value: str) -> str | None:
    """Return why ``key`` cannot be ``value``: empty if that is its value, None for unknown keys."""
    names = [name for name in FIXED if key == name or (name[-1] == "." and key.startswith(name))]
    if not names:
        return None
    found = FIXED[max(names, key=len)]
    value = value.strip().strip("\"'").lower()
    return "" if value in found.values else found.reason
