"""Exchange heads for tokens between ranks (DeepSpeed-Ulysses context parallelism)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd

from video2world_trainer.model.attention import Attend

__all__ = ["ulysses"]

# [as sent, sizes received from each rank, sizes sent to each rank] -> as received
Transfer = Callable[[Tensor, list[int], list[int]], Tensor]


def ulysses(attend: Attend, sizes: Sequence[int], transfer: Transfer, rank: int) -> Attend:
    """Self-attention over the tokens of all ranks, each with its part of the heads.

    Args:
        attend: attention of one rank.
        sizes: tokens of each rank; they need not be equal.
        transfer: the all-to-all, rows being cut and joined along the first axis.
        rank: this rank's place in the group.
    """
    parts, mine, everyone = len(sizes), sizes[rank], sum(sizes)

    def to_heads(x: Tensor) -> Tensor:
        # [B, mine, parts * h, d] -> [parts * mine, B, h, d] -> [everyone, B, h, d]
        x = x.unflatten(2, (parts, -1)).permute(2, 1, 0, 3, 4).flatten(0, 1)
        return transfer(x.contiguous(), list(sizes), [mine] * parts).transpose(0, 1)

    def to_tokens(x: Tensor) -> Tensor:
        # [B, everyone, h, d] -> [parts * mine, B, h, d] -> [B, mine, parts * h, d]
        x = transfer(x.transpose(0, 1).contiguous(), [mine] * parts, list(sizes))
        return x.unflatten(0, (parts, mine)).permute(2, 1, 0, 3, 4).flatten(2, 3)

    def over_all_tokens(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert query.shape[1] == mine, (query.shape, sizes)
        query, key, value = to_heads(query), to_heads(key), to_heads(value)
        assert query.shape[1] == everyone
        return to_tokens(attend(query, key, value))

    return over_all_tokens


def all_to_all(
    x: Tensor, received: list[int], sent: list[int], *, group: dist.ProcessGroup
) -> Tensor:
    """The transfer between the ranks of ``group``, with its gradient."""
    return all_to_all_single_autograd(x, received, sent, group)
