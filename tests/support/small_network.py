"""A network small enough for float32 on one core, whose random weights hide nothing."""

import torch

from video2world_trainer.model.action_conditioning import ActionConditioning
from video2world_trainer.model.dit import VideoDiT
from video2world_trainer.model.presets import DiTConfig


def network(blocks=2, actions: ActionConditioning | None = None):
    net = VideoDiT(
        DiTConfig(
            model_channels=64,
            num_blocks=blocks,
            num_heads=4,
            adaln_lora_dim=16,
            crossattn_dim=32,
            max_height=16,
            max_width=16,
            max_frames=8,
            actions=actions,
        )
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return net
