"""Generate one sample after another with models that are loaded once."""

from __future__ import annotations

import argparse
import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from video2world_trainer.generation.action_chunks import Chunk, kept_parts
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
from video2world_trainer.generation.sample_actions import ActionPlan, SampleActions, without_text
from video2world_trainer.generation.step_cache import computed_steps
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import Preset
from video2world_trainer.training.dataset import TEXT_WIDTH

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
    actions: ActionPlan
    measure: Compare = compare  # of a sample's video with its ground truth

    def steps(self, request: SampleRequest) -> int:
        """Return how often :meth:`generate` calls ``after_step`` for a sample."""
        return len(self.actions.chunks(request)) * (request.num_steps + 1)

    def generate(
        self, request: SampleRequest, after_step: Callable[[], None]
    ) -> dict[str, Any] | None:
        """Generate one sample: a collective call of all ranks.

        Args:
            request: the sample.
            after_step: called after each of the ``num_steps`` + 1 evaluations of a clip.

        Returns:
            The content of the sample's ``.json`` on the main rank, which writes the files; None on
            other ranks.

        Raises:
            UserError: input, prompt or actions of this sample are invalid (on every rank).
        """
        device, main = self.world.device, self.encoders is not None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if not self.actions.reads_text:
            request = without_text(request)
        actions = self.actions.of(request)
        chunks = self.actions.chunks(request)
        stopwatch = _Stopwatch(device)
        condition: Conditioning | None = None

        def encode_inputs() -> tuple[Tensor, Tensor]:
            nonlocal condition
            condition, latents, text = self._encode_inputs(request, actions)
            return latents.cpu(), text

        given, text = self.world.on_main_rank(encode_inputs)
        given_frames = 1 + (request.num_conditional_frames - 1) // 4
        video: list[np.ndarray] = []  # of the chunks before the last
        for chunk in chunks:
            if chunk.number:
                given = self.world.on_main_rank(lambda: self._encode(video[-1][-1:]).cpu())
                given_frames = 1
            given = given.to(device)
            velocity = parallel_velocity(
                self.net,
                text,
                conditioning_mask(given, given_frames),
                self.mesh,
                actions=None if actions is None else actions.tensor(chunk),
                batch_branches=not self.offload,
            )
            settings = SamplingSettings(
                chunk.seed(request.seed),
                request.num_steps,
                request.guidance,
                approximate=self.args.approximate,
            )
            stopwatch.add("condition")
            latents = denoise(velocity, given, given_frames, settings, after_step=after_step)
            stopwatch.add("denoise")
            if self.offload and device.type == "cuda":
                torch.cuda.empty_cache()
            if main and chunk is not chunks[-1]:
                video.append(np.concatenate([*self._decode(latents, chunk)]))
                stopwatch.add("decode")
        if condition is None:  # not the main rank
            return None
        return write_sample(
            request.target,
            itertools.chain(video, self._decode(latents, chunks[-1])),
            self.clip.fps,
            condition,
            f"{request.source.name}   {self.checkpoint.name}",
            self._summary(request, actions) | {"timings": stopwatch.seconds},
            lambda: _peak_memory_gib(device),
            self.measure,
            actions=actions.trace if actions else None,
        )

    def _decode(self, latents: Tensor, chunk: Chunk) -> Iterator[np.ndarray]:
        """Yield the chunk's frames that belong to the video, in parts."""
        assert self.encoders is not None
        return kept_parts(decode_video(self.encoders.vae, latents), chunk.kept)

    def _encode(self, frames: np.ndarray) -> Tensor:
        assert self.encoders is not None
        return encode_condition(self.encoders.vae, frames, self.clip.frames)

    def _encode_inputs(
        self, request: SampleRequest, actions: SampleActions | None
    ) -> tuple[Conditioning, Tensor, Tensor]:
        """Return the conditioning frames, their latents, and the embeddings of all branches."""
        assert self.encoders is not None
        reads_text = self.actions.reads_text
        if reads_text and not request.effective_prompt:
            raise UserError(
                f"{request.source}: give --prompt, as there is no caption "
                f"{request.source.stem}.txt in ../metas or next to it"
            )
        condition = read_conditioning(
            request.source,
            count=request.num_conditional_frames,
            clip_frames=self.clip.frames if actions is None else actions.frames,
            size=self.clip.size,
            geometry=self.geometry,
            frames=self.args.frames,
        )
        if actions is not None and not actions.of_input:
            condition = replace(condition, ground_truth=None)
        given = self._encode(condition.frames)
        if not reads_text:
            return condition, given, torch.zeros(1, 1, TEXT_WIDTH)
        embeddings = [self.encoders.prompts.padded(request.effective_prompt)]
        if request.guidance:
            negative = negative_prompt_of(request, self.preset.size)
            embeddings.append(self.encoders.prompts.padded(negative))
        return condition, given, torch.cat(embeddings)

    def _summary(self, request: SampleRequest, actions: SampleActions | None) -> dict[str, Any]:
        """Return the facts of the sample's ``.json`` that are known before it is written."""
        args, device = self.args, self.world.device
        found = re.search(r"iter_(\d+)$", self.checkpoint.stem)
        evaluations = request.num_steps + 1
        if args.approximate:
            evaluations = len(computed_steps(evaluations))
        return {
            "prompt": request.effective_prompt if self.actions.reads_text else "",
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
            "passes": evaluations * request.branches * len(self.actions.chunks(request)),
            "actions": actions.to_json() if actions else None,
        }


class _Stopwatch:
    """Sum up the seconds of a sample's phases, which end when the device has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._mark = self._now()
        self._seconds: dict[str, float] = {}

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def add(self, phase: str) -> None:
        """Add the time since the last call to ``phase``."""
        now = self._now()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._mark
        self._mark = now

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, rounded."""
        return {phase: round(seconds, 3) for phase, seconds in self._seconds.items()}


def _peak_memory_gib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
