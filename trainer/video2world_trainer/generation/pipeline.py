"""What is loaded once for all samples, and the making of one."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.model_sizes import SIZES
from video2world_preprocess.vae.vae import VideoVAE, load_vae
from video2world_trainer.checkpoint.folder import CheckpointFolder
from video2world_trainer.checkpoint.run_config import RunConfig
from video2world_trainer.distributed.activation_checkpoint import prepare_blocks
from video2world_trainer.distributed.parallelize import Layout
from video2world_trainer.distributed.process_group import World
from video2world_trainer.generation.conditioning import Condition, read_condition
from video2world_trainer.generation.denoise import (
    Settings,
    decoded,
    denoised,
    encode_given,
    given_mask,
)
from video2world_trainer.generation.guidance_parallel import (
    branches_apart,
    shared_layout,
    shared_velocity,
)
from video2world_trainer.generation.outputs import write_sample
from video2world_trainer.generation.requests import Item, Texts, meant
from video2world_trainer.generation.step_cache import computed_steps
from video2world_trainer.generation.weight_offload import stream_weights
from video2world_trainer.model.attention_backends import select_for
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.flops import pass_flops
from video2world_trainer.model.lora import AdapterFacts
from video2world_trainer.model.presets import PRESETS, DiTConfig, Preset, preset
from video2world_trainer.model.sparse_attention import patterns_for
from video2world_trainer.model.sparse_kernels import choose, sparse_attention
from video2world_trainer.model.state_dict import fitting_weights

__all__ = ["ASPECTS", "Engine", "load"]

ASPECTS: dict[str, dict[str, tuple[int, int]]] = {  # height, width (facts sheet 5.2)
    "720": {
        "1:1": (960, 960),
        "4:3": (704, 960),
        "3:4": (960, 704),
        "16:9": (704, 1280),
        "9:16": (1280, 704),
    },
    "480": {
        "1:1": (480, 480),
        "4:3": (480, 640),
        "3:4": (640, 480),
        "16:9": (432, 768),
        "9:16": (768, 432),
    },
}
# Upstream's own paragraph is not ours to ship; this one names the same kinds of flaws.
NEGATIVE_PROMPT = (
    "A low-quality video: blurry and noisy frames, compression artefacts, flicker, washed-out or "
    "oversaturated colours, bad exposure, jerky camera, unnatural motion, objects that deform, "
    "merge, vanish or pass through each other, implausible physics, text and watermarks."
)
CPU_FLOPS = 2e10  # a second and core, about: what a laptop's core does in float32


@dataclass(frozen=True)
class Engine:
    """Everything that is loaded once for all samples; ``texts`` and ``vae`` on the leader only."""

    args: argparse.Namespace
    world: World
    chosen: Preset
    run: RunConfig
    checkpoint: Path
    size: tuple[int, int]
    clip_frames: int
    fps: int
    attention: str
    offload: bool
    net: VideoDiT
    layout: Layout
    texts: Texts | None
    vae: VideoVAE | None

    def make(self, item: Item, after_step: Callable[[], None]) -> dict[str, Any] | None:
        """Generate one sample; the leader writes its files and gets what its ``.json`` tells.

        Raises:
            UserError: the item cannot be made (on every rank).
        """
        device = self.world.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        marks = [_now(device)]
        condition: Condition | None = None

        def begin() -> tuple[Tensor, Tensor]:
            nonlocal condition
            condition, given, text = self._begun(item)
            return given.cpu(), text

        given, text = self.world.leader_does(begin)
        given = given.to(device)
        given_latents = 1 + (item.num_conditional_frames - 1) // 4
        velocity = shared_velocity(
            self.net,
            text,
            given_mask(given, given_latents),
            self.layout,
            together=not self.offload,
        )
        marks.append(_now(device))
        settings = Settings(
            item.seed, item.num_steps, item.guidance, approximate=self.args.approximate
        )
        latents = denoised(velocity, given, given_latents, settings, after_step=after_step)
        marks.append(_now(device))
        if condition is None or self.vae is None:  # the leader has them
            return None
        if self.offload and device.type == "cuda":
            torch.cuda.empty_cache()
        timings = dict(zip(("condition", "denoise"), np.diff(marks).round(3).tolist(), strict=True))
        return write_sample(
            item.target,
            decoded(self.vae, latents),
            self.fps,
            condition,
            f"{item.source.name}   {self.checkpoint.name}",
            self._summary(item) | {"timings": timings},
            lambda: _peak(device),
        )

    def _begun(self, item: Item) -> tuple[Condition, Tensor, Tensor]:
        """What it starts from, its latents, and the embeddings of all branches."""
        assert self.vae is not None
        if not item.wording:
            raise UserError(
                f"{item.source}: give --prompt, as there is no caption {item.source.stem}.txt in "
                "../metas or beside it"
            )
        condition = read_condition(
            item.source,
            count=item.num_conditional_frames,
            clip_frames=self.clip_frames,
            size=self.size,
            geometry=self.args.geometry or self.run.geometry or "crop",
            frames=self.args.frames,
        )
        given = encode_given(self.vae, condition.given, self.clip_frames)
        return condition, given, self._text(item)

    def _text(self, item: Item) -> Tensor:
        assert self.texts is not None
        positive = self.texts.padded(item.wording)
        if not item.guidance:
            return positive
        return torch.cat([positive, self.texts.padded(led_away_from(item, self.chosen))])

    def _summary(self, item: Item) -> dict[str, Any]:
        args, device = self.args, self.world.device
        found = re.search(r"iter_(\d+)$", self.checkpoint.stem)
        evaluations = item.num_steps + 1
        if args.approximate:
            evaluations = len(computed_steps(evaluations))
        return {
            "prompt": item.wording,
            "negative_prompt": led_away_from(item, self.chosen),
            "input": str(item.source),
            "frames_from": args.frames,
            "conditional_frames": item.num_conditional_frames,
            "checkpoint": str(self.checkpoint),
            "iteration": int(found.group(1)) if found else None,
            "ema": args.load_ema,
            "model_size": self.chosen.size,
            "size": list(self.size),
            "fps": self.fps,
            "seed": item.seed,
            "guidance": item.guidance,
            "steps": item.num_steps,
            "approximate": args.approximate,
            "sparse": args.natten,
            "attention": self.attention,
            "gpus": self.world.size if device.type == "cuda" else 0,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "passes": evaluations * _branches(item),
        }


def led_away_from(item: Item, chosen: Preset) -> str | None:
    """What guidance leads away from; None: nothing, or the empty text (Tiny, unless it is given).

    As upstream, an empty negative prompt takes the positive one.
    """
    if not item.guidance:
        return None
    if item.negative_prompt is None:
        return None if chosen.size == "Tiny" else NEGATIVE_PROMPT
    return item.negative_prompt or item.wording


def _branches(item: Item) -> int:
    """Network evaluations at a noise level."""
    return 2 if item.guidance else 1


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)


def checkpoint_of(args: argparse.Namespace, chosen: Preset) -> tuple[Path, RunConfig]:
    """The weights' file and what it says of its training."""
    path = args.dit_path
    if path is None:
        published = chosen.base_weights(f"{args.resolution or '720'}p", args.fps or 16)
        if published is None:
            raise UserError("--dit_path: name the checkpoint; Tiny has no published weights")
        path = Path(published)
        if args.natten:
            path = path.with_name(f"{path.stem}-natten{path.suffix}")
    path = meant(path)
    if path.is_dir() and (path / "model").is_dir():
        iteration = CheckpointFolder(path).newest_whole(("model",))
        if iteration is None:
            raise UserError(f"--dit_path {path}: there is no checkpoint in this folder")
        path = CheckpointFolder(path).path("model", iteration)
    if not path.exists():
        raise UserError(
            f"--dit_path {path}: there is no such file; train first, or run the download stage"
        )
    return path, RunConfig.read(path.parent / "config.json")


def load(args: argparse.Namespace, items: Sequence[Item], world: World) -> Engine:
    """Check everything that can be checked cheaply, then load: T5, released again, then the rest.

    Raises:
        UserError: a flag, file or this machine does not fit; the message says which and why.
    """
    chosen = PRESETS[args.model_size]
    checkpoint, run = checkpoint_of(args, chosen)
    if run.size is not None and run.size != args.model_size:
        raise UserError(
            f"--model_size {args.model_size}: {checkpoint} was trained as {run.size}; use that"
        )
    chosen = preset(args.model_size, rope_ratios=run.rope_ratios)
    fps = args.fps or run.fps or 16
    clip_frames = run.num_frames or SIZES[chosen.size].clip_frames[fps]
    if args.fps is not None and clip_frames != SIZES[chosen.size].clip_frames[fps]:
        say(
            f"note: --fps {fps} is the playback's only: {checkpoint} makes clips of {clip_frames} "
            "frames"
        )
    given = max(item.num_conditional_frames for item in items)
    if given >= clip_frames:
        raise UserError(
            f"--num_conditional_frames {given}: {checkpoint} makes clips of "
            f"{clip_frames} frames, so nothing would be left to generate"
        )
    size = _size(args, chosen, run, checkpoint)
    grid = (1 + (clip_frames - 1) // 4, size[0] // 16, size[1] // 16)
    if args.natten and _asked_size(args) != ASPECTS["720"]["16:9"]:
        raise UserError("--natten: sparse checkpoints are for --resolution 720 of 16:9 only")
    patterns = patterns_for(chosen.size, grid) if args.natten else None
    branches = max(map(_branches, items))
    if world.size > 1 and branches != min(map(_branches, items)):
        raise UserError(
            "--batch_input_json: guidance 0 and above it in one batch need --num_gpus 1"
        )
    if world.device.type == "cpu":
        _warn_of_cpu(args, chosen, int(np.prod(grid)), items)
    targets = tuple(args.lora_target_modules.split(",")) if args.lora_target_modules else None
    weights = fitting_weights(
        _shell(chosen.dit),
        checkpoint,
        ema=args.load_ema,
        adapters=AdapterFacts(args.lora_alpha, args.lora_rank, targets),
        recorded=run.adapters,
        adapted=args.use_lora,
    )
    texts = vae = None
    if world.leads:  # T5 first: it and the network never lie on the GPU together
        texts = Texts(
            args.text_encoder_path or chosen.text_encoder_folder,
            str(world.device),
            run.text_length or chosen.text_tokens,
        )
        texts.prepare(items, *filter(None, (led_away_from(item, chosen) for item in items)))
        vae = load_vae(args.vae_path or f"{chosen.base_folder}/tokenizer", world.device)
    apart = branches_apart(world, branches)
    offload = args.offload or _too_small(chosen.dit, grid, world, 1 if apart else branches)
    if vae is not None:
        vae.prepare_to_decode(4 if offload else 16)
    on_gpu = world.device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    net = _network(chosen.dit, weights, torch.device("cpu") if offload else world.device, dtype)
    choice = select_for("auto", world.device, dtype)
    attend: Any = choice.attend
    attention = choice.name
    if patterns is not None:
        capability = torch.cuda.get_device_capability(world.device) if on_gpu else None
        kernel = choose(capability, dtype)
        attend = sparse_attention(patterns, grid, world.device, kernel, choice.attend)
        attention = f"{kernel}, sparse"
    layout = shared_layout(net, attend, choice.to_caption, world, branches, grid[0])
    prepare_blocks(net, compiled=on_gpu and chosen.size != "Tiny")
    if offload:
        stream_weights(net, world.device)
    return Engine(
        args,
        world,
        chosen,
        run,
        checkpoint,
        size,
        clip_frames,
        fps,
        attention,
        offload,
        net,
        layout,
        texts,
        vae,
    )


def _asked_size(args: argparse.Namespace) -> tuple[int, int]:
    return ASPECTS[args.resolution or "720"][args.aspect_ratio or "16:9"]


def _size(
    args: argparse.Namespace, chosen: Preset, run: RunConfig, checkpoint: Path
) -> tuple[int, int]:
    """Height and width of the video; says so where the checkpoint decides against the flags."""
    asked = _asked_size(args)
    decided = run.video_size or (
        SIZES["Tiny"].frame_sizes["720p"] if chosen.size == "Tiny" else asked
    )
    flags = [f"--{name}" for name in ("resolution", "aspect_ratio") if getattr(args, name)]
    if flags and decided != asked:
        say(
            f"note: the checkpoint decides the size: {checkpoint} makes {decided[1]}x{decided[0]} "
            f"(width x height), and {' and '.join(flags)} ha{'ve' if flags[1:] else 's'} no effect"
        )
    return decided


def _shell(dit: DiTConfig) -> VideoDiT:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return VideoDiT(dit)


def _network(
    dit: DiTConfig, weights: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> VideoDiT:
    """The network on ``device``, tensor by tensor: no second copy of it anywhere."""
    buffers = dict(VideoDiT(replace(dit, num_blocks=0)).named_buffers())  # they do not depend on it
    state = {name: one.to(device) for name, one in buffers.items()}
    for name in list(weights):
        state[name] = weights.pop(name).to(device, dtype)
    net = _shell(dit)
    net.load_state_dict(state, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def needed_bytes(dit: DiTConfig, parameters: int, tokens: int, branches: int) -> int:
    """Device memory of sampling without offload, about: weights and one block's activations.

    4 tensors of tokens x width and the MLP's inner one, in bfloat16, of every branch: at 2B and
    84,480 tokens 9.5e9 for 9.3e9 measured (docs/inference.md).
    """
    activations = tokens * dit.model_channels * (4 + dit.mlp_ratio) * 2 * branches
    return int(2 * parameters + activations)


def _too_small(dit: DiTConfig, grid: tuple[int, int, int], world: World, branches: int) -> bool:
    """Whether the GPU asks for offload."""
    if world.device.type != "cuda":
        return False
    parameters = sum(one.numel() for one in _shell(dit).parameters())
    needed = needed_bytes(dit, parameters, int(np.prod(grid)), branches)
    there = torch.cuda.get_device_properties(world.device).total_memory
    if needed <= 0.9 * there:
        return False
    if world.leads:
        say(
            f"note: about {needed / 2**30:.0f} GiB would be needed and this GPU has "
            f"{there / 2**30:.0f}: --offload is on"
        )
    return True


def _warn_of_cpu(
    args: argparse.Namespace, chosen: Preset, tokens: int, items: Sequence[Item]
) -> None:
    parameters = sum(one.numel() for one in _shell(chosen.dit).parameters())
    passes = max(_branches(item) * (item.num_steps + 1) for item in items)
    flops = pass_flops(chosen.dit, parameters, tokens) * passes
    hours = flops / (CPU_FLOPS * (os.cpu_count() or 1)) / 3600
    amount = f"{hours:.0f} hours" if hours > 2 else f"{max(1, hours * 60):.0f} min"
    if chosen.size == "14B" and not args.force:
        raise UserError(
            f"--model_size 14B: there is no GPU here; a sample would take about {amount} and 60 GB "
            "of memory: run it on a GPU, or add --force"
        )
    say(f"warning: no GPU: a {chosen.size} sample takes about {amount} on this CPU")
