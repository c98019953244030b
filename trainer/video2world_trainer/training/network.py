"""Build the network of a run: initial weights, and adapters for LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from video2world_common.exit_codes import UserError
from video2world_trainer.checkpoint.run_config import RunConfig, attention_pattern
from video2world_trainer.distributed.process_group import World
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.lora import AdapterFacts, inject
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.model.state_dict import load_dit_weights
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.dataset import generator_for

__all__ = ["build_network"]


def build_network(config: TrainConfig, world: World) -> VideoDiT:
    """Return the network with its initial weights and adapters, on the rank's device.

    Raises:
        UserError: the initial weights are missing or do not fit.
    """
    preset = PRESETS[config.size]
    dit = replace(
        preset.dit,
        rope_ratio_t=config.rope_t,
        rope_ratio_h=config.rope_h,
        rope_ratio_w=config.rope_w,
    )
    sparse = config.attention_pattern == "sparse"
    published = preset.base_weights(config.resolution, config.fps, sparse=sparse)
    path = Path(config.dit_path or published or "")
    if path.name and not path.exists():
        remedy = (
            "python -m video2world_preprocess.download --model_types video2world "
            f"--model_sizes {config.size} --fps {config.fps} "
            f"--resolution {config.resolution.removesuffix('p')} --checkpoint_dir checkpoints"
            f"{' --natten' if sparse else ''}"
        )
        raise UserError(
            f"model.config.model_manager_config.dit_path={path} does not exist; "
            f"get the base weights with: {remedy}"
        )
    dtype = torch.float32 if world.device.type == "cpu" else getattr(torch, preset.compute_dtype)
    with world.device:
        net = VideoDiT(dit).to(dtype)
    if path.name:
        run = RunConfig.read(path.parent / "config.json")
        _require_pattern(config.attention_pattern, path, run)
        given = AdapterFacts(config.dit_lora_alpha or None)
        load_dit_weights(net, path, adapters=given, recorded=run.adapters)
    else:  # Tiny has no published weights
        net.cpu().init_weights(generator_for(config.seed, "weights", 0))
        net.to(world.device)
    if config.architecture == "lora":
        inject(
            net,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            targets=config.lora_targets.split(","),
            generator=generator_for(config.seed, "adapters", 0),
        )
    return net


def _require_pattern(wanted: str, path: Path, run: RunConfig) -> None:
    found = attention_pattern(path, run)
    if found not in (None, wanted):
        raise UserError(
            f"model.attention_pattern={wanted}: {path} was trained with {found} attention; set "
            f"model.attention_pattern={found}, or name other weights in "
            "model.config.model_manager_config.dit_path"
        )
