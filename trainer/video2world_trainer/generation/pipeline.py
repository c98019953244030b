"""Generate one sample after another with models that are loaded once."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video2world_common.exit_codes import UserError
from video2world_preprocess.vae.vae import VideoVAE
from video2world_preprocess.video.resize import Geometry
from video2world_trainer.distributed.parallelize import ParallelMesh
from video2world_trainer.distributed.process_group import World
from video2world_trainer.generation.clip_format import ClipFormat
from video2world_trainer.generation.conditioning import Conditioning, read_conditioning
from video2world_trainer.generation.denoise import (
    SamplingSettings,
    conditioning_mask,
    decode_video,
    denoise,
    encode_condition,
)
from video2world_trainer.generation.guidance_parallel import parallel_velocity
from video2world_trainer.generation.outputs import Compare, compare, write_sample
from video2world_trainer.generation.prompts import PromptEmbeddings, negative_prompt_of
from video2world_trainer.generation.requests import SampleRequest
from video2world_trainer.generation.step_cache import computed_steps
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import Preset

__all__ = ["Encoders", "Pipeline"]


@dataclass(frozen=True)
class Encoders:
    """What the main rank alone needs: it reads the inputs and writes the videos."""

    prompts: PromptEmbeddings
    vae: VideoVAE


@dataclass(frozen=True)
class Pipeline:
    """Everything that is loaded once for all samples; ``encoders`` is None on other ranks."""

    args: argparse.Namespace
    world: World
    preset: Preset
    checkpoint: Path
    geometry: Geometry
    clip: ClipFormat
    attention: str  # name of the kernel
    sparse: bool
    offload: bool
    net: VideoDiT
    mesh: ParallelMesh
    encoders: Encoders | None
    measure: Compare = compare  # of a sample's video with its ground truth

    def generate(
        self, request: SampleRequest, after_step: Callable[[], None]
    ) -> dict[str, Any] | None:
        """Generate one sample: a collective call of all ranks.

        Args:
            request: the sample.
            after_step: called after each of the ``num_steps`` + 1 evaluations.

        Returns:
            The content of the sample's ``.json`` on the main rank, which writes the files; None on
            other ranks.

        Raises:
            UserError: the input or prompt of this sample is invalid (on every rank).
        """
        device = self.world.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        marks = [_synchronized_time(device)]
        condition: Conditioning | None = None

        def encode_inputs() -> tuple[Tensor, Tensor]:
            nonlocal condition
            condition, latents, text = self._encode_inputs(request)
            return latents.cpu(), text

        given, text = self.world.on_main_rank(encode_inputs)
        given = given.to(device)
        given_frames = 1 + (request.num_conditional_frames - 1) // 4
        velocity = parallel_velocity(
            self.net,
            text,
            conditioning_mask(given, given_frames),
            self.mesh,
            batch_branches=not self.offload,
        )
        marks.append(_synchronized_time(device))
        settings = SamplingSettings(
            request.seed, request.num_steps, request.guidance, approximate=self.args.approximate
        )
        latents = denoise(velocity, given, given_frames, settings, after_step=after_step)
        marks.append(_synchronized_time(device))
        if condition is None or self.encoders is None:  # not the main rank
            return None
        if self.offload and device.type == "cuda":
            torch.cuda.empty_cache()
        timings = dict(zip(("condition", "denoise"), np.diff(marks).round(3).tolist(), strict=True))
        return write_sample(
            request.target,
            decode_video(self.encoders.vae, latents),
            self.clip.fps,
            condition,
            f"{request.source.name}   {self.checkpoint.name}",
            self._summary(request) | {"timings": timings},
            lambda: _peak_memory_gib(device),
            self.measure,
        )

    def _encode_inputs(self, request: SampleRequest) -> tuple[Conditioning, Tensor, Tensor]:
        """Return the conditioning frames, their latents, and the embeddings of all branches."""
        assert self.encoders is not None
        if not request.effective_prompt:
            raise UserError(
                f"{request.source}: give --prompt, as there is no caption "
                f"{request.source.stem}.txt in ../metas or next to it"
            )
        condition = read_conditioning(
            request.source,
            count=request.num_conditional_frames,
            clip_frames=self.clip.frames,
            size=self.clip.size,
            geometry=self.geometry,
            frames=self.args.frames,
        )
        given = encode_condition(self.encoders.vae, condition.frames, self.clip.frames)
        embeddings = [self.encoders.prompts.padded(request.effective_prompt)]
        if request.guidance:
            negative = negative_prompt_of(request, self.preset.size)
            embeddings.append(self.encoders.prompts.padded(negative))
        return condition, given, torch.cat(embeddings)

    def _summary(self, request: SampleRequest) -> dict[str, Any]:
        """Return the facts of the sample's ``.json`` that are known before it is written."""
        args, device = self.args, self.world.device
        found = re.search(r"iter_(\d+)$", self.checkpoint.stem)
        evaluations = request.num_steps + 1
        if args.approximate:
            evaluations = len(computed_steps(evaluations))
        return {
            "prompt": request.effective_prompt,
            "negative_prompt": negative_prompt_of(request, self.preset.size),
            "input": str(request.source),
            "frames_from": args.frames,
            "conditional_frames": request.num_conditional_frames,
            "checkpoint": str(self.checkpoint),
            "iteration": int(found.group(1)) if found else None,
            "ema": args.load_ema,
            "model_size": self.preset.size,
            "size": list(self.clip.size),
            "fps": self.clip.fps,
            "seed": request.seed,
            "guidance": request.guidance,
            "steps": request.num_steps,
            "approximate": args.approximate,
            "sparse": self.sparse,
            "attention": self.attention,
            "gpus": self.world.size if device.type == "cuda" else 0,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "passes": evaluations * request.branches,
        }


def _synchronized_time(device: torch.device) -> float:
    """Return the time in seconds once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_memory_gib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
