"""Recompute activations of blocks in the backward pass, and compile blocks.

A block's input is always saved. Attention takes most of a step's time, so its output is saved too,
under all policies but ``nothing``; the rest is cheap to recompute, and is saved as far as memory
allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    "fitting_policies",
    "policies_for_free_memory",
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

WORKSPACE = 30  # memory of one block's backward pass, in tensors of tokens x width (measured: 26)
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


def _contexts(keep: RecomputePolicy, width: int) -> Callable[[], Any]:
    def policy(ctx: Any, function: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        saved = isinstance(function, torch._ops.OpOverload) and _is_saved(
            keep, width, function._schema.name, args
        )
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    return lambda: create_selective_checkpoint_contexts(policy)


def _recomputing(width: int) -> Callable[..., Tensor]:
    """Return a runner of blocks (see :class:`~video2world_trainer.model.dit.Block`).

    What a block saves is read from the block, so that the compiler makes one graph per policy.
    """
    contexts: dict[str, Callable[[], Any]] = {
        keep: _contexts(keep, width) for keep in RECOMPUTE_POLICIES
    }

    def run(block: Block, *args: Any) -> Tensor:
        if block.recompute == "all" or not torch.is_grad_enabled():
            return block.compute(*args)
        result: Tensor = checkpoint(
            block.compute,
            *args,
            use_reentrant=False,
            context_fn=contexts[block.recompute],
            preserve_rng_state=False,
        )
        return result

    return run


def prepare_blocks(
    net: VideoDiT,
    *,
    keep: RecomputePolicy | Sequence[RecomputePolicy] = "all",
    compiled: bool = False,
    offload: bool = False,
) -> None:
    """Set what the blocks of ``net`` save for the backward pass, and compile them.

    Args:
        net: the network, already sharded if FSDP is used.
        keep: what all blocks save, or what each of them saves.
        compiled: compile the blocks; those with one policy share a compilation, as weights are its
            inputs.
        offload: save the blocks' inputs in host memory; takes effect in compiled blocks only.
    """
    policies = [keep] * len(net.blocks) if isinstance(keep, str) else list(keep)
    runner: Runner = Block.compute
    if set(policies) != {"all"}:
        runner = _recomputing(net.config.model_channels)
    if compiled:
        take_prepared_modules()
        runner = torch.compile(runner, dynamic=False)
    if offload:
        runner = offloaded(runner)
    for block, policy in zip(net.blocks, policies, strict=True):
        assert isinstance(block, Block)
        block.runner, block.recompute = runner, policy


def policies_for_free_memory(
    dit: DiTConfig, tokens: int, gradient_bytes: int, device: torch.device
) -> list[RecomputePolicy]:
    """Return each block's policy for the memory that is free on the GPU ``device``.

    To be called when weights, optimizer state and averages are allocated, and gradients are not.
    """
    free = torch.cuda.mem_get_info(device)[0]
    workspace = WORKSPACE * tokens * dit.model_channels * 2
    return fitting_policies(dit, tokens, free - gradient_bytes - workspace - free // 20)


def fitting_policies(dit: DiTConfig, tokens: int, budget: int) -> list[RecomputePolicy]:
    """Return each block's policy, so that they save the most within ``budget`` bytes.

    All blocks get the largest policy that fits, short of ``all``, and the first of them the next
    larger one as far as memory remains. ``attention`` is used even if it does not fit: less would
    cost far more time.
    """
    blocks = dit.num_blocks
    larger: RecomputePolicy | None = None
    for keep in RECOMPUTE_POLICIES[1:-1]:
        size = saved_bytes_per_block(dit, tokens, keep)
        if size * blocks <= budget or keep == "attention":
            if larger is None:
                return [keep] * blocks
            more = saved_bytes_per_block(dit, tokens, larger) - size
            count = max(0, min(blocks, (budget - size * blocks) // more))
            return [larger] * count + [keep] * (blocks - count)
        larger = keep
    raise AssertionError  # the last policy returns


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
