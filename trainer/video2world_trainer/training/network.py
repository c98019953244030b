"""Build the network of a run: initial weights, and adapters for LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_trainer.checkpoint.recorded_actions import PUBLISHED_FILE, RecordedActions
from video2world_trainer.checkpoint.run_config import RunConfig, attention_pattern
from video2world_trainer.distributed.process_group import World
from video2world_trainer.model.action_conditioning import is_text_parameter
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.lora import AdapterFacts, inject
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.model.state_dict import load_dit_weights
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.dataset import generator_for

__all__ = ["build_network", "initial_weights_path"]


def initial_weights_path(config: TrainConfig) -> Path | None:
    """Return the weights that a run starts from; None for random ones, as Tiny has."""
    if config.dit_path:
        return Path(config.dit_path)
    if not config.reads_text:
        return Path(PUBLISHED_FILE) if config.size == "2B" else None
    sparse = config.attention_pattern == "sparse"
    published = PRESETS[config.size].base_weights(config.resolution, config.fps, sparse=sparse)
    return Path(published) if published else None


def build_network(
    config: TrainConfig, world: World, actions: RecordedActions | None = None
) -> VideoDiT:
    """Return the network with its initial weights and adapters, on the rank's device.

    Args:
        config: the run's settings.
        world: all ranks.
        actions: the actions that it reads; None for none.

    Raises:
        UserError: the initial weights are missing or do not fit.
    """
    preset = PRESETS[config.size]
    dit = replace(
        preset.dit,
        rope_ratio_t=config.rope_t,
        rope_ratio_h=config.rope_h,
        rope_ratio_w=config.rope_w,
        actions=actions.conditioning if actions else None,
    )
    path = initial_weights_path(config)
    if path is not None and not path.exists():
        raise UserError(
            f"model.config.model_manager_config.dit_path={path} does not exist; "
            f"get the base weights with: {_download(config)}"
        )
    dtype = torch.float32 if world.device.type == "cpu" else getattr(torch, preset.compute_dtype)
    with world.device:
        net = VideoDiT(dit).to(dtype)
    if path is not None:
        run = RunConfig.read(path.parent / "config.json")
        _require_pattern(config.attention_pattern, path, run)
        given = AdapterFacts(config.dit_lora_alpha or None)
        left = load_dit_weights(
            net, path, adapters=given, recorded=run.adapters, without_actions=actions is not None
        )
        if left:
            net.init_action_embedders(generator_for(config.seed, "actions", 0))
            if world.is_main_rank:
                say(_fresh_embedders(path, left, actions))
    else:  # Tiny has no published weights
        net.cpu().init_weights(generator_for(config.seed, "weights", 0))
        net.to(world.device)
    if not config.reads_text:
        _freeze_cross_attention(net)
    if config.architecture == "lora":
        inject(
            net,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            targets=config.lora_targets.split(","),
            generator=generator_for(config.seed, "adapters", 0),
        )
    return net


def _download(config: TrainConfig) -> str:
    """Return the command that downloads a run's base weights."""
    command = f"python -m video2world_preprocess.download --model_sizes {config.size}"
    if not config.reads_text:
        return f"{command} --model_types sample_action_conditioned --checkpoint_dir checkpoints"
    return (
        f"{command} --model_types video2world --fps {config.fps} "
        f"--resolution {config.resolution.removesuffix('p')} --checkpoint_dir checkpoints"
        f"{' --natten' if config.attention_pattern == 'sparse' else ''}"
    )


def _fresh_embedders(path: Path, names: list[str], actions: RecordedActions | None) -> str:
    start = "they add zero, so training starts exactly as these weights"
    if actions is not None and actions.kind == "per_clip":
        start = "they start at random values, as in Cosmos-Predict2"
    return (
        f"{path} has no action embedders (exactly their {len(names)} tensors are missing): {start}"
    )


def _freeze_cross_attention(net: VideoDiT) -> None:
    """Keep cross-attention as it is in a network without captions.

    It adds exactly zero, so its gradients are zero: weight decay alone would change it.
    """
    for name, parameter in net.named_parameters():
        if is_text_parameter(name):
            parameter.requires_grad_(False)


def _require_pattern(wanted: str, path: Path, run: RunConfig) -> None:
    found = attention_pattern(path, run)
    if found not in (None, wanted):
        raise UserError(
            f"model.attention_pattern={wanted}: {path} was trained with {found} attention; set "
            f"model.attention_pattern={found}, or name other weights in "
            "model.config.model_manager_config.dit_path"
        )
