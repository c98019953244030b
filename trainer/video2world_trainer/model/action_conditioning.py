"""Embed actions, the numbers that lead from each frame of a clip to the next, for the network.

Two embeddings are added: one to the sinusoid of a latent frame's noise level, before its norm, and
one to the modulation that all blocks share. Names of parameters are those of Cosmos-Predict2's
action-conditioned network (``cosmos_predict2/models/video2world_action_dit.py`` of
https://github.com/nvidia-cosmos/cosmos-predict2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video2world_common.per_clip_actions import FRAMES

__all__ = [
    "ACTION_KINDS",
    "EMBEDDERS",
    "PUBLISHED_ROWS",
    "ROWS_PER_FRAME",
    "ActionConditioning",
    "ActionEmbedder",
    "ActionKind",
    "is_action_parameter",
    "is_text_parameter",
]

ActionKind = Literal["per_frame", "per_clip"]
ACTION_KINDS: tuple[ActionKind, ...] = get_args(ActionKind)
"""``per_frame`` has an embedding for each latent frame, of the rows that lead to its pixel frames.
``per_clip`` is the published network: one embedding of all rows of a clip, whose number is part of
the weights' shape, and no captions."""

ROWS_PER_FRAME = 4  # of actions for each latent frame but the first: its pixel frames
PUBLISHED_ROWS = FRAMES - 1  # of actions in a clip of the published network
EMBEDDERS = ("action_embedder_B_D", "action_embedder_B_3D")  # modules of the network


def is_text_parameter(name: str) -> bool:
    """Return whether the network's parameter ``name`` belongs to cross-attention to a caption."""
    return ".cross_attn." in name or ".adaln_modulation_cross_attn." in name


def is_action_parameter(name: str) -> bool:
    """Return whether the network's parameter or module ``name`` belongs to an action embedder."""
    return name.split(".", 1)[0] in EMBEDDERS


@dataclass(frozen=True)
class ActionConditioning:
    """How a network reads actions: their kind, dimension, and for ``per_clip`` rows of a clip."""

    kind: ActionKind
    dimension: int
    rows: int | None = None

    @property
    def inputs(self) -> int:
        """Numbers that an embedder reads at a time: 4 rows per latent frame, or a clip's rows."""
        if self.kind == "per_frame":
            return ROWS_PER_FRAME * self.dimension
        return (self.rows or PUBLISHED_ROWS) * self.dimension

    @property
    def uses_text(self) -> bool:
        """Whether the network reads captions."""
        return self.kind == "per_frame"

    def vectors(self, actions: Tensor, frames: slice, all_frames: int) -> Tensor:
        """Return what the embedders read for some latent frames of a clip.

        Args:
            actions: normalised rows of the complete clip, [B, F - 1, D] of F pixel frames.
            frames: the latent frames, of ``all_frames`` of the clip.
            all_frames: latent frames of the clip, 1 + (F - 1) / 4.

        Returns:
            ``per_clip``: [B, 1, rows * D], index row * D + dimension. ``per_frame``: [B, n, 4 * D]
            of the frames without the clip's first, to which no action leads.

        Raises:
            ValueError: the number of rows or their dimension is another.
        """
        batch, rows, dimension = actions.shape
        wanted = ROWS_PER_FRAME * (all_frames - 1)
        if self.kind == "per_clip":
            wanted = self.rows or PUBLISHED_ROWS
        if (rows, dimension) != (wanted, self.dimension):
            raise ValueError(
                f"actions are [{batch}, {rows}, {dimension}], the network reads {wanted} rows of "
                f"{self.dimension} numbers for this clip"
            )
        if self.kind == "per_clip":
            return actions.flatten(1).unsqueeze(1)
        groups = actions.reshape(batch, all_frames - 1, self.inputs)
        return groups[:, max(frames.start - 1, 0) : frames.stop - 1]


class ActionEmbedder(nn.Module):
    """Two linear layers with biases, and the tanh approximation of GELU between them.

    Args:
        inputs: numbers that it reads.
        hidden: width between the layers.
        outputs: width of the embedding.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map [B, n, inputs] to [B, n, outputs]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(vectors), approximate="tanh"))
        return out

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None, *, zero: bool) -> None:
        """Initialize like ``nn.Linear``: uniform in +-1/sqrt(inputs), drawn on the CPU.

        Args:
            generator: for the initial values, which do not depend on the device.
            zero: set the second layer to zero instead, so that every embedding is zero.
        """
        for layer in (self.fc1, self.fc2):
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in (layer.weight, layer.bias):
                if layer is self.fc2 and zero:
                    parameter.zero_()
                else:
                    drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
                    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
