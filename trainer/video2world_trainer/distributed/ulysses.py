"""Exchange heads for tokens between ranks (DeepSpeed-Ulysses context parallelism).

Source: Jacobs et al., "DeepSpeed Ulysses", https://arxiv.org/abs/2309.14509.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd

from video2world_trainer.model.attention import Attend

__all__ = ["all_to_all", "ulysses"]

# (tensor to send, sizes to receive from each rank, sizes to send to each rank) -> received tensor
Transfer = Callable[[Tensor, list[int], list[int]], Tensor]


def ulysses(attend: Attend, sizes: Sequence[int], transfer: Transfer, rank: int) -> Attend:
    """Return self-attention over the tokens of all ranks, with the heads split between ranks.

    Args:
        attend: self-attention of a single rank, on ``[B, tokens, heads, head_dim]``.
        sizes: number of tokens of each rank; they may differ.
        transfer: the all-to-all, which splits and concatenates along the first axis.
        rank: this rank's index in the context-parallel group.
    """
    parts, own, total = len(sizes), sizes[rank], sum(sizes)

    def to_heads(x: Tensor) -> Tensor:
        # [B, own, parts * h, d] -> [parts * own, B, h, d] -> [total, B, h, d]
        x = x.unflatten(2, (parts, -1)).permute(2, 1, 0, 3, 4).flatten(0, 1)
        return transfer(x.contiguous(), list(sizes), [own] * parts).transpose(0, 1)

    def to_tokens(x: Tensor) -> Tensor:
        # [B, total, h, d] -> [parts * own, B, h, d] -> [B, own, parts * h, d]
        x = transfer(x.transpose(0, 1).contiguous(), [own] * parts, list(sizes))
        heads: Tensor = x.unflatten(0, (parts, own)).permute(2, 1, 0, 3, 4).flatten(2, 3)
        return heads

    def attend_over_all_tokens(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert query.shape[1] == own, (query.shape, sizes)
        query, key, value = to_heads(query), to_heads(key), to_heads(value)
        assert query.shape[1] == total
        return to_tokens(attend(query, key, value))

    return attend_over_all_tokens


def all_to_all(
    x: Tensor, received: list[int], sent: list[int], *, group: dist.ProcessGroup
) -> Tensor:
    """Exchange rows of ``x`` between the ranks of ``group``, differentiably."""
    return all_to_all_single_autograd(x, received, sent, group)
