"""Recompute activations of blocks in the backward pass, and compile blocks.

A block's input is always saved. Attention takes most of a step's time, so its output is saved too,
under all policies but ``nothing``; the rest is cheap to recompute, and is saved as far as memory
allows.
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
from video2world_trainer.model.dit import Block, Runner, VideoDiT
from video2world_trainer.model.presets import DiTConfig

__all__ = [
    "RECOMPUTE_POLICIES",
    "RecomputePolicy",
    "largest_fitting_policy",
    "prepare_blocks",
    "saved_bytes_per_block",
]

RecomputePolicy = Literal["all", "products", "square", "narrow", "attention", "nothing"]
RECOMPUTE_POLICIES: tuple[RecomputePolicy, ...] = get_args(RecomputePolicy)
"""What blocks save for the backward pass, from most memory to least:

- ``all``: everything;
- ``products``: the outputs of all products with large matrices, and of attention;
- ``square``: of these all but the MLP's first, which is four times as wide as the others;
- ``narrow``: the MLP's second, which takes four times the work for its memory, and attention;
- ``attention``: the output of self-attention only;
- ``nothing``: the block's input only.
"""

_ATTENTION = {
    "video2world::flash_attention_4",
    "video2world::flash_attention_4_blocks",
    "flash_attn::_flash_attn_forward",
    "flash_attn_3::fwd",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
}
_PRODUCT = {"aten::mm", "aten::addmm"}
_MOST_OUTPUTS = {"products": 99.0, "square": 1.0, "narrow": 0.5}  # per input of a saved product


def _is_saved(keep: RecomputePolicy, width: int, name: str, args: tuple[Any, ...]) -> bool:
    """Return whether to save the output of operator ``name``; ``width`` is the model's."""
    if name in _ATTENTION:
        query, key = args[:2]
        # cross-attention has few keys and is cheap to recompute
        return keep != "nothing" and bool(query.numel() == key.numel())
    if name in _PRODUCT and keep in _MOST_OUTPUTS:
        inputs, outputs = args[-1].shape
        # modulations, keys of captions and adapters are narrower than the model, and cheap
        return bool(min(inputs, outputs) >= width and outputs <= _MOST_OUTPUTS[keep] * inputs)
    return False


def _recomputing(keep: RecomputePolicy, width: int) -> Callable[..., Tensor]:
    """Return a runner of blocks (see :class:`~video2world_trainer.model.dit.Block`)."""

    def policy(ctx: Any, function: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        saved = isinstance(function, torch._ops.OpOverload) and _is_saved(
            keep, width, function._schema.name, args
        )
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

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
    net: VideoDiT, *, keep: RecomputePolicy = "all", compiled: bool = False, offload: bool = False
) -> None:
    """Set what the blocks of ``net`` save for the backward pass, and compile them.

    Args:
        net: the network, already sharded if FSDP is used.
        keep: what blocks save.
        compiled: compile the blocks; all share one compilation, as weights are its inputs.
        offload: save the blocks' inputs in host memory; takes effect in compiled blocks only.
    """
    runner: Runner = Block.compute
    if keep != "all":
        runner = _recomputing(keep, net.config.model_channels)
    if compiled:
        take_prepared_modules()
        runner = torch.compile(runner, dynamic=False)
    if offload:
        runner = offloaded(runner)
    for block in net.blocks:
        assert isinstance(block, Block)
        block.runner = runner


def largest_fitting_policy(dit: DiTConfig, tokens: int, budget: int) -> RecomputePolicy:
    """Return the policy that saves the most within ``budget`` bytes, short of ``all``.

    ``attention`` is returned even if it does not fit: less would cost far more time.
    """
    for keep in RECOMPUTE_POLICIES[1:-1]:
        if saved_bytes_per_block(dit, tokens, keep) * dit.num_blocks <= budget:
            return keep
    return "attention"


def saved_bytes_per_block(
    dit: DiTConfig, tokens: int, keep: RecomputePolicy, *, element: int = 2
) -> int:
    """Return the bytes that a block saves for ``tokens`` tokens of this rank.

    Args:
        dit: shape of the network.
        tokens: tokens that this rank processes.
        keep: what the block saves.
        element: bytes of an element.
    """
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
