"""Load everything that all samples share: prompts' embeddings, VAE and network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_preprocess.vae.vae import load_vae
from video2world_preprocess.video.resize import Geometry
from video2world_trainer.checkpoint.run_config import RunConfig, actions_of, attention_pattern
from video2world_trainer.distributed.activation_checkpoint import prepare_blocks
from video2world_trainer.distributed.process_group import World
from video2world_trainer.generation.checkpoint_choice import choose_checkpoint
from video2world_trainer.generation.clip_format import ClipFormat, choose_clip_format
from video2world_trainer.generation.guidance_parallel import shard_sample, splits_branches
from video2world_trainer.generation.machine_fit import needs_offload, warn_of_cpu_time
from video2world_trainer.generation.pipeline import Encoders, Pipeline
from video2world_trainer.generation.prompts import PromptEmbeddings, negative_prompt_of
from video2world_trainer.generation.requests import SampleRequest
from video2world_trainer.generation.sample_actions import ActionPlan, without_text
from video2world_trainer.generation.weight_offload import offload_weights
from video2world_trainer.model.attention import Attend
from video2world_trainer.model.attention_backends import select_for
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.lora import AdapterFacts
from video2world_trainer.model.presets import PRESETS, DiTConfig, Preset, preset
from video2world_trainer.model.sparse_attention import why_unsupported
from video2world_trainer.model.sparse_kernels import sparse_for
from video2world_trainer.model.state_dict import fitting_weights

__all__ = ["empty_network", "load_pipeline", "loaded_network"]


def load_pipeline(
    args: argparse.Namespace, requests: Sequence[SampleRequest], world: World
) -> Pipeline:
    """Check the flags, then load T5, which is released again, and everything else.

    Raises:
        UserError: a flag or file is invalid, or this machine is too small.
    """
    checkpoint, run = choose_checkpoint(args, PRESETS[args.model_size])
    recorded = actions_of(checkpoint, run)
    chosen = preset(
        args.model_size,
        rope_ratios=run.rope_ratios,
        actions=recorded.conditioning if recorded else None,
    )
    given = max(request.num_conditional_frames for request in requests)
    clip = choose_clip_format(args, chosen, run, checkpoint, given)
    actions = ActionPlan(requests, recorded, checkpoint, clip.frames, args.frames)
    _note_unread_flags(args, actions, requests, clip)
    if not actions.reads_text:
        requests = [without_text(request) for request in requests]
    sparse = args.natten or attention_pattern(checkpoint, run) == "sparse"
    if sparse and (problem := why_unsupported(chosen.size, clip.grid)):
        raise UserError(f"{'--natten' if args.natten else checkpoint}: {problem}")
    branches = max(request.branches for request in requests)
    if world.size > 1 and branches != min(request.branches for request in requests):
        raise UserError(
            "--batch_input_json: guidance 0 and above it in one batch need --num_gpus 1"
        )
    skeleton = empty_network(chosen.dit)
    parameters = sum(one.numel() for one in skeleton.parameters())
    if world.device.type == "cpu":
        passes = max(
            one.branches * (one.num_steps + 1) * len(actions.chunks(one)) for one in requests
        )
        warn_of_cpu_time(chosen, parameters, clip.tokens, passes, force=args.force)
    targets = tuple(args.lora_target_modules.split(",")) if args.lora_target_modules else None
    weights = fitting_weights(
        skeleton,
        checkpoint,
        ema=args.load_ema,
        adapters=AdapterFacts(args.lora_alpha, args.lora_rank, targets),
        recorded=run.adapters,
        adapted=args.use_lora,
    )
    encoders: Encoders | None = None

    def load_encoders() -> None:
        nonlocal encoders
        encoders = Encoders(
            _embed_prompts(args, requests if actions.reads_text else (), chosen, run, world.device),
            load_vae(args.vae_path or f"{chosen.base_folder}/tokenizer", world.device),
        )

    # T5 first: it and the network are never on the GPU together
    world.on_main_rank(load_encoders)
    split = splits_branches(world, branches)
    offload = args.offload or needs_offload(
        chosen.dit,
        parameters,
        clip,
        world,
        branches=1 if split else branches,
        ranks=world.size // 2 if split else world.size,
    )
    if encoders is not None:
        encoders.vae.prepare_to_decode(4 if offload else 16)
    on_gpu = world.device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    net = loaded_network(
        chosen.dit, weights, torch.device("cpu") if offload else world.device, dtype
    )
    choice = select_for("auto", world.device, dtype)
    attend: Attend | Sequence[Attend] = choice.attend
    attention = choice.name
    if sparse:
        kernel, attend = sparse_for(chosen.size, clip.grid, world.device, dtype, choice.attend)
        attention = f"{kernel}, sparse"
    mesh = shard_sample(net, attend, choice.cross_attention, world, branches, clip.grid[0])
    prepare_blocks(net, compiled=on_gpu and chosen.size != "Tiny")
    if offload:
        offload_weights(net, world.device)
    return Pipeline(
        args=args,
        world=world,
        preset=chosen,
        checkpoint=checkpoint,
        geometry=cast("Geometry", args.geometry or run.geometry or "crop"),
        clip=clip,
        attention=attention,
        sparse=sparse,
        offload=offload,
        net=net,
        mesh=mesh,
        encoders=encoders,
        actions=actions,
    )


def _note_unread_flags(
    args: argparse.Namespace,
    actions: ActionPlan,
    requests: Sequence[SampleRequest],
    clip: ClipFormat,
) -> None:
    """Log which flags have no effect for this checkpoint."""
    if not actions.reads_text:
        if any(one.prompt or one.negative_prompt for one in requests):
            say("note: prompts have no effect: this checkpoint reads actions alone")
        if any(one.guidance for one in requests):
            say("note: guidance has no effect without text, and is left out: half the cost")
    if actions.recorded is None and args.autoregressive:
        say("note: --autoregressive has no effect: this checkpoint follows no actions")
    if args.chunk_size is not None and args.chunk_size != clip.frames - 1:
        say(
            f"note: --chunk_size {args.chunk_size} has no effect: this checkpoint makes clips of "
            f"{clip.frames} frames, from {clip.frames - 1} actions"
        )


def _embed_prompts(
    args: argparse.Namespace,
    requests: Sequence[SampleRequest],
    chosen: Preset,
    run: RunConfig,
    device: torch.device,
) -> PromptEmbeddings:
    prompts = PromptEmbeddings(
        args.text_encoder_path or chosen.text_encoder_folder,
        str(device),
        run.text_length or chosen.text_tokens,
    )
    negative = (negative_prompt_of(request, chosen.size) for request in requests)
    prompts.prepare(requests, *filter(None, negative))
    return prompts


def empty_network(dit: DiTConfig) -> VideoDiT:
    """Create the network without memory for its weights."""
    with torch.device("meta"):
        return VideoDiT(dit)


def loaded_network(
    dit: DiTConfig, weights: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> VideoDiT:
    """Create the network on ``device``, moving one tensor at a time: there is no second copy.

    Empties ``weights``.
    """
    # buffers do not depend on the number of blocks
    buffers = dict(VideoDiT(replace(dit, num_blocks=0)).named_buffers())
    state = {name: one.to(device) for name, one in buffers.items()}
    for name in list(weights):
        state[name] = weights.pop(name).to(device, dtype)
    net = empty_network(dit)
    net.load_state_dict(state, strict=True, assign=True)
    return net.eval().requires_grad_(False)
