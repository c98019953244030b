"""What a block keeps from its forward pass and what it computes again, and its compilation.

A block's input is always kept. Attention is most of a step's work, so what it gave is kept too;
the rest is cheap to compute again, and is kept level by level where there is room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from video2world_preprocess.vae.triton_cache import take_prepared_modules
from video2world_trainer.distributed.activation_offload import offloaded
from video2world_trainer.model.dit import Block, VideoDiT
from video2world_trainer.model.presets import DiTConfig

__all__ = ["LEVELS", "Keep", "block_bytes", "prepare_blocks"]

Keep = Literal["all", "products", "square", "narrow", "attention", "nothing"]
LEVELS: tuple[Keep, ...] = get_args(Keep)
"""From most memory to least: everything; all products with large matrices; of these all but the one
that widens (the MLP's first, which takes four times the memory of another); only the one that
narrows (its second, which takes four times the work for its memory); attention's output only;
nothing but the block's input."""

_ATTENTION = {
    "video2world::flash_attention_4",
    "flash_attn::_flash_attn_forward",
    "flash_attn_3::fwd",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
}
_PRODUCT = {"aten::mm", "aten::addmm"}
_WIDEST = {"products": 99.0, "square": 1.0, "narrow": 0.5}  # outputs for each input, at most


def _kept(keep: Keep, width: int, name: str, args: tuple[Any, ...]) -> bool:
    if name in _ATTENTION:
        query, key = args[:2]
        # attention to a caption, with its few keys, is cheap
        return keep != "nothing" and bool(query.numel() == key.numel())
    if name in _PRODUCT and keep in _WIDEST:
        inputs, outputs = args[-1].shape
        # modulations of frames, keys of captions and adapters are narrower, and cheap
        return bool(min(inputs, outputs) >= width and outputs <= _WIDEST[keep] * inputs)
    return False


def _runner(keep: Keep, width: int) -> Callable[..., Tensor]:
    """What runs a block (see :class:`video2world_trainer.model.dit.Block`)."""

    def policy(ctx: Any, function: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = isinstance(function, torch._ops.OpOverload) and _kept(
            keep, width, function._schema.name, args
        )
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(policy)

    def run(block: Block, *args: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return block.compute(*args)
        result: Tensor = checkpoint(
            block.compute,
            *args,
            use_reentrant=False,
            context_fn=contexts,
            preserve_rng_state=False,
        )
        return result

    return run


def prepare_blocks(
    net: VideoDiT, *, keep: Keep = "all", compiled: bool = False, offload: bool = False
) -> None:
    """Let the blocks of ``net`` keep what ``keep`` says, and compile them.

    All blocks share one compilation: their weights are its inputs. ``offload`` keeps the blocks'
    inputs in host memory; it sees them in compiled blocks only.
    """
    run: Callable[..., Tensor] = Block.compute
    if keep != "all":
        run = _runner(keep, net.config.model_channels)
    if compiled:
        take_prepared_modules()
        run = torch.compile(run, dynamic=False)
    if offload:
        run = offloaded(run)
    for block in net.blocks:
        block.runner = run


def block_bytes(dit: DiTConfig, tokens: int, keep: Keep, *, element: int = 2) -> int:
    """Bytes that a block keeps of ``tokens`` tokens (of this rank)."""
    width = tokens * dit.model_channels * element
    wide = 1 + dit.mlp_ratio  # the MLP's inner activations count mlp_ratio times
    units = {
        "nothing": 1,
        "attention": 2,
        "narrow": 3,
        "square": 9,
        "products": 8 + wide,
        "all": 16 + 3 * wide,
    }
    return int(units[keep] * width)
