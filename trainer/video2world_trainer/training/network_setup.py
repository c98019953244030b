"""Set attention, recomputation and compilation of a network for the clips of a phase."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from video2world_trainer.distributed.activation_checkpoint import (
    RecomputePolicy,
    policies_for_free_memory,
    prepare_blocks,
)
from video2world_trainer.distributed.parallelize import ParallelMesh, apply_context_parallel
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.training.attention_choice import AttentionChoice
from video2world_trainer.training.config import TrainConfig
from video2world_trainer.training.optimizer import MasterAdamW
from video2world_trainer.training.phases import Phase

__all__ = ["NetworkSetup"]


class NetworkSetup:
    """What of a network depends on the frame size; weights and optimizer state do not.

    To be created when weights, optimizer state and averages are allocated, so that the remaining
    memory decides what blocks save.

    Args:
        config: the run's settings.
        mesh: all ranks and their groups.
        net: the network, sharded if FSDP is used.
        optimizer: its optimizer.
        choices: the attention of each phase, in order.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: ParallelMesh,
        net: VideoDiT,
        optimizer: MasterAdamW,
        choices: Mapping[Phase, AttentionChoice],
    ) -> None:
        self._config, self._mesh, self._net, self._optimizer = config, mesh, net, optimizer
        self.choices = choices
        self._apply(next(iter(choices)))

    def enter(self, phase: Phase) -> bool:
        """Set the network up for ``phase``; return whether that has changed it."""
        if phase == self.phase:
            return False
        if self._mesh.world.device.type == "cuda":
            torch.cuda.empty_cache()  # the last phase's activations count as free memory
        self._apply(phase)
        return True

    def _apply(self, phase: Phase) -> None:
        config, mesh = self._config, self._mesh
        self.phase, self.attention = phase, self.choices[phase]
        self._set_attention(phase)
        on_gpu = mesh.world.device.type == "cuda"
        compilable = self.attention.compilable and config.size != "Tiny"
        self.compiled = config.compile and on_gpu and compilable
        self.recompute_policies = self._policies(phase)
        prepare_blocks(  # shapes are static in compiled blocks: each size has its own graphs
            self._net,
            keep=self.recompute_policies,
            compiled=self.compiled,
            offload=config.offload and self.compiled,
        )

    def _set_attention(self, phase: Phase) -> None:
        choice = self.choices[phase]
        apply_context_parallel(
            self._net,
            choice.self_attention,
            choice.cross_attention,
            self._mesh,
            phase.latent_shape[1],
        )

    @contextlib.contextmanager
    def evaluating_last_phase(self) -> Iterator[None]:
        """Process clips of the last phase within the block, without gradients."""
        last = list(self.choices)[-1]
        if last == self.phase:
            yield
            return
        self._set_attention(last)
        try:
            yield
        finally:
            self._set_attention(self.phase)

    def _policies(self, phase: Phase) -> list[RecomputePolicy]:
        """Return each block's policy: as configured, or to save the most in the free memory."""
        config, mesh, dit = self._config, self._mesh, self._net.config
        device = mesh.world.device
        if config.keep_activations != "auto":
            return [config.keep_activations] * dit.num_blocks
        if device.type != "cuda" or config.size == "Tiny":
            return ["all"] * dit.num_blocks
        tokens = config.batch_size * phase.tokens_per_clip // mesh.context_size
        size = self._optimizer.gradient_bytes(accumulating=config.micro_batches > 1)
        return policies_for_free_memory(dit, tokens, size, device)
