"""Choose the self-attention of each block in training: dense, or the published sparse patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from video2world_common.exit_codes import UserError
from video2world_trainer.model.attention import Attend
from video2world_trainer.model.attention_backends import AUTO, select_for
from video2world_trainer.model.sparse_attention import Grid, density, patterns_for, why_unsupported
from video2world_trainer.model.sparse_kernels import sparse_for
from video2world_trainer.training.config import TrainConfig

__all__ = ["AttentionChoice", "choose_attention"]

_SPARSE_BACKENDS = (*AUTO, "flash_attention_4")


@dataclass(frozen=True)
class AttentionChoice:
    """Attention functions of a run, and what is logged about them.

    ``self_attention`` is the self-attention of all blocks, or a list with that of each;
    ``cross_attention`` is the cross-attention. ``density`` is the share of query-key pairs that
    self-attention computes. ``compilable`` is whether blocks that use it may be compiled.
    """

    name: str
    self_attention: Attend | Sequence[Attend]
    cross_attention: Attend
    description: str
    density: float = 1.0
    compilable: bool = True


def choose_attention(
    config: TrainConfig, grid: Grid, device: torch.device, dtype: torch.dtype
) -> AttentionChoice:
    """Choose the kernels for the run's attention pattern on ``device``, for clips of ``grid``.

    Raises:
        UserError: the kernel cannot run here, or there is no sparse pattern for the clip or kernel.
    """
    dense = select_for(config.attention, device, dtype)
    if config.attention_pattern == "dense":
        description = f"attention {dense.name} ({dense.reason})"
        return AttentionChoice(dense.name, dense.attend, dense.cross_attention, description)
    setting = "model.attention_pattern=sparse"
    if problem := why_unsupported(config.size, grid):
        raise UserError(f"{setting}: {problem}; change the clip, or train with dense attention")
    if config.attention not in _SPARSE_BACKENDS:
        raise UserError(
            f"model.config.pipe_config.net.atten_backend={config.attention}: this kernel has no "
            f"sparse attention; leave it out, or leave {setting} out"
        )
    kernel, attend = sparse_for(config.size, grid, device, dtype, dense.attend)
    share = density(patterns_for(config.size, grid), grid)
    return AttentionChoice(
        f"{kernel}, sparse",
        attend,
        dense.cross_attention,
        f"sparse attention {kernel}, {share:.0%} of all pairs; dense attention {dense.name}",
        share,
        compilable=kernel == "flash_attention_4",
    )
