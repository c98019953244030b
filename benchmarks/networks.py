"""Build networks of the real shapes with random weights: ours, and diffusers'."""

from __future__ import annotations

import torch
from torch import nn

from video2world_trainer.model.presets import DiTConfig

__all__ = ["diffusers_network", "randomised"]


def randomised(net: nn.Module) -> nn.Module:
    """Fill ``net`` with normal weights: the usual initialisation zeroes every modulation."""
    generator = torch.Generator(next(net.parameters()).device).manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 / parameter.shape[1] ** 0.5, generator=generator)
    return net


def diffusers_network(dit: DiTConfig, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return diffusers' transformer of the same configuration, unmodified."""
    from diffusers import CosmosTransformer3DModel

    with device:
        net: nn.Module = CosmosTransformer3DModel(
            in_channels=17,
            out_channels=16,
            num_attention_heads=dit.num_heads,
            attention_head_dim=dit.head_dim,
            num_layers=dit.num_blocks,
            mlp_ratio=dit.mlp_ratio,
            text_embed_dim=dit.crossattn_dim,
            adaln_lora_dim=dit.adaln_lora_dim,
            max_size=(dit.max_frames, dit.max_height, dit.max_width),
            patch_size=(1, 2, 2),
            rope_scale=(dit.rope_ratio_t, dit.rope_ratio_h, dit.rope_ratio_w),
            concat_padding_mask=True,
            extra_pos_embed_type=None,
        ).to(dtype)
    return net
