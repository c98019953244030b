"""The Video2World diffusion transformer, with the published checkpoints' names and shapes.

The architecture is that of Cosmos-Predict2 (``cosmos_predict2/models/text2image_dit.py`` and
``video2world_dit.py`` of https://github.com/nvidia-cosmos/cosmos-predict2, called "upstream" in
this package): joint space-time self-attention with 3D RoPE, cross-attention to the caption's T5
embedding, and AdaLN-LoRA modulation. The noise level is one number per latent *frame*, so
modulations are computed once per frame and broadcast over the frame's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video2world_trainer.model.action_conditioning import ActionEmbedder, is_action_parameter
from video2world_trainer.model.attention import EPS, Attend, Attention, KeyValue, RMSNorm, linear
from video2world_trainer.model.presets import DiTConfig
from video2world_trainer.model.rope import Rotation, VideoRope, rotation_of

__all__ = ["Block", "VideoDiT"]

# Runs a block's compute method; see activation_checkpoint.prepare_blocks
Runner = Callable[..., Tensor]

MASK_CHANNELS = 2  # the condition mask and the padding mask are channels next to the latents


class FeedForward(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.layer1 = linear(channels, inner)
        self.layer2 = linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to each token of ``x`` [..., channels]."""
        out: Tensor = self.layer2(F.gelu(self.layer1(x)))
        return out


def _modulation(channels: int, rank: int, outputs: int) -> nn.Sequential:
    """Create the low-rank layers that map a frame's embedding to ``outputs`` modulations."""
    return nn.Sequential(nn.SiLU(), linear(channels, rank), linear(rank, outputs * channels))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, modulated by each frame's noise level."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, rank = config.model_channels, config.adaln_lora_dim
        self.self_attn = Attention(width, width, config.num_heads)
        self.cross_attn = Attention(width, config.crossattn_dim, config.num_heads)
        self.mlp = FeedForward(width, int(width * config.mlp_ratio))
        self.adaln_modulation_self_attn = _modulation(width, rank, 3)
        self.adaln_modulation_cross_attn = _modulation(width, rank, 3)
        self.adaln_modulation_mlp = _modulation(width, rank, 3)
        self.runner: Runner = Block.compute  # may recompute, compile or offload
        self.recompute = "all"  # what it saves for the backward pass: a RecomputePolicy

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        shared: Tensor,
        text: Tensor | KeyValue | None,
        rotation: Rotation,
    ) -> Tensor:
        """Run :meth:`compute` the way ``runner`` does.

        Args:
            x: tokens [B, T, HW, D].
            embedding: of each frame's noise level, [B, T, D].
            shared: modulation that all blocks share, [B, T, 3D].
            text: caption [B, N, C], or its keys and values in this block; None skips
                cross-attention, which adds nothing for a caption of zeros.
            rotation: RoPE of all T * HW tokens.

        Returns:
            Tokens [B, T, HW, D].
        """
        return self.runner(self, x, embedding, shared, text, rotation)

    def compute(
        self,
        x: Tensor,
        embedding: Tensor,
        shared: Tensor,
        text: Tensor | KeyValue | None,
        rotation: Rotation,
    ) -> Tensor:
        """Compute :meth:`forward`, without recomputation or compilation around it."""
        layers: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = [
            (self.adaln_modulation_self_attn, lambda y: self.self_attn(y, rotation)),
            (self.adaln_modulation_mlp, self.mlp),
        ]
        if text is not None:
            cross = (self.adaln_modulation_cross_attn, lambda y: self.cross_attn.cross(y, text))
            layers.insert(1, cross)
        for modulation, layer in layers:
            shift, scale, gate = (modulation(embedding) + shared).unsqueeze(2).chunk(3, dim=-1)
            x = x + gate * layer(_modulate(x, shift, scale))
        return x


class TimestepEmbedding(nn.Module):
    """Two linear layers from a noise level's sinusoid to the modulation that all blocks share."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear_1 = linear(channels, channels)
        self.linear_2 = linear(channels, 3 * channels)

    def forward(self, sinusoid: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, 3D]."""
        out: Tensor = self.linear_2(F.silu(self.linear_1(sinusoid)))
        return out


def _sinusoid(timesteps: Tensor, channels: int) -> Tensor:
    """Return [cos, sin] of [B, T] noise levels at geometric frequencies: [B, T, channels]."""
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[..., None] * torch.exp(-math.log(10_000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(timesteps.dtype)


class PatchEmbed(nn.Module):
    """Embed patches of ``patch`` = (t, h, w) latent cells as tokens.

    A patch's features are ordered (channel, t, h, w).
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.patch = (config.patch_temporal, config.patch_spatial, config.patch_spatial)
        features = (config.latent_channels + MASK_CHANNELS) * math.prod(self.patch)
        self.proj = nn.Sequential(nn.Identity(), linear(features, config.model_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, T, H, W] to [B, T/t, (H/h)*(W/w), D]."""
        t, h, w = self.patch
        x = torch.unflatten(x, 4, (-1, w))
        x = torch.unflatten(x, 3, (-1, h))
        x = torch.unflatten(x, 2, (-1, t))
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7)  # [B, T/t, H/h, W/w, C, t, h, w]
        out: Tensor = self.proj(x.flatten(4).flatten(2, 3))
        return out


class FinalLayer(nn.Module):
    """Modulated norm and the projection of each token to its patch, ordered (h, w, t, channel)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.model_channels
        patch = config.patch_temporal * config.patch_spatial**2
        self.linear = linear(width, patch * config.latent_channels)
        self.adaln_modulation = _modulation(width, config.adaln_lora_dim, 2)

    def forward(self, x: Tensor, embedding: Tensor, shared: Tensor) -> Tensor:
        """Map tokens [B, T, HW, D] to patches [B, T, HW, h*w*t*channels]."""
        width = x.shape[-1]
        modulation: Tensor = self.adaln_modulation(embedding) + shared[..., : 2 * width]
        shift, scale = modulation.unsqueeze(2).chunk(2, dim=-1)
        out: Tensor = self.linear(_modulate(x, shift, scale))
        return out


class VideoDiT(nn.Module):
    """Predict the flow velocity (noise - clean) of noised video latents.

    State-dict names, shapes and buffers are upstream's (without its ``net.`` prefix).

    Args:
        config: sizes of the network.
        exact_rope: compute rotary frequencies in float32; see
            :class:`video2world_trainer.model.rope.VideoRope`.
    """

    def __init__(self, config: DiTConfig, *, exact_rope: bool = False) -> None:
        super().__init__()
        self.config = config
        # with context parallelism: this rank's first latent frame, and the frames of all ranks
        self.first_frame = 0
        self.all_frames: int | None = None
        width = config.model_channels
        self.x_embedder = PatchEmbed(config)
        self.pos_embedder = VideoRope(
            config.head_dim,
            max(config.max_frames, config.max_height // 2, config.max_width // 2),
            ratios=(config.rope_ratio_t, config.rope_ratio_h, config.rope_ratio_w),
            exact=exact_rope,
        )
        self.t_embedder = nn.Sequential(nn.Identity(), TimestepEmbedding(width))
        self.t_embedding_norm = RMSNorm(width)
        # ModuleList is not generic: the cast gives the blocks their type
        self.blocks = cast(
            "Sequence[Block]", nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        )
        self.final_layer = FinalLayer(config)
        if config.actions is not None:
            inputs = config.actions.inputs
            self.action_embedder_B_D = ActionEmbedder(inputs, 4 * width, width)
            self.action_embedder_B_3D = ActionEmbedder(inputs, 4 * width, 3 * width)
        for name, dtype in (
            ("accum_video_sample_counter", torch.int64),
            ("accum_image_sample_counter", torch.int64),
            ("accum_iteration", torch.int64),
            ("accum_train_in_hours", torch.float32),
        ):
            self.register_buffer(name, torch.zeros((), dtype=dtype))

    def set_attention(
        self, cross_attention: Attend, self_attention: Attend | Sequence[Attend] | None = None
    ) -> None:
        """Set the attention kernels.

        Args:
            cross_attention: for all blocks.
            self_attention: one for all blocks or one for each; None is ``cross_attention``.
        """
        if isinstance(self_attention, Sequence):
            per_block = list(self_attention)
        else:
            per_block = [self_attention or cross_attention] * len(self.blocks)
        for block, attend in zip(self.blocks, per_block, strict=True):
            block.self_attn.attend = attend
            block.cross_attn.attend = cross_attention

    def caption_keys_values(self, text: Tensor) -> list[KeyValue]:
        """Compute each block's keys and values of captions [B, N, C].

        They are the same at every noise level, so inference computes them once.
        """
        return [block.cross_attn.keys_values(text) for block in self.blocks]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialize like upstream: truncated normal, with all modulations starting at zero.

        Action embedders come last, so that the others do not depend on them.
        """
        for name, parameter in self.named_parameters():
            if is_action_parameter(name):
                continue
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            elif "adaln_modulation" in name and name.endswith(".2.weight"):
                parameter.zero_()
            else:
                std = 1 / math.sqrt(parameter.shape[1])
                nn.init.trunc_normal_(
                    parameter, std=std, a=-3 * std, b=3 * std, generator=generator
                )
        self.init_action_embedders(generator)

    def init_action_embedders(self, generator: torch.Generator | None = None) -> None:
        """Initialize action embedders, if there are any.

        ``per_clip`` has random ones as upstream; those of ``per_frame`` add zero, so that training
        starts exactly at the weights it starts from.
        """
        if self.config.actions is not None:
            zero = self.config.actions.kind == "per_frame"
            self.action_embedder_B_D.init_weights(generator, zero=zero)
            self.action_embedder_B_3D.init_weights(generator, zero=zero)

    def _action_embeddings(
        self, actions: Tensor | None, frames: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor] | None:
        """Return the embeddings of ``frames`` latent frames, [B, T or 1, D] and [B, T or 1, 3D].

        None is for a network without actions.

        Raises:
            ValueError: actions and network do not fit.
        """
        config = self.config.actions
        if config is None or actions is None:
            if config is not None or actions is not None:
                found = "none were given" if actions is None else "they were given"
                wanted = "reads no actions" if config is None else "reads actions"
                raise ValueError(f"the network {wanted}, and {found}")
            return None
        own = slice(self.first_frame, self.first_frame + frames)
        vectors = config.vectors(actions.to(dtype), own, self.all_frames or frames)
        narrow, wide = self.action_embedder_B_D(vectors), self.action_embedder_B_3D(vectors)
        if config.kind == "per_frame" and own.start == 0:
            # no action leads to the clip's first frame
            narrow, wide = (
                torch.cat([one.new_zeros(len(one), 1, one.shape[2]), one], dim=1)
                for one in (narrow, wide)
            )
        return narrow, wide

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        text: Tensor | Sequence[KeyValue],
        condition_mask: Tensor,
        padding_mask: Tensor | None = None,
        actions: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity [B, 16, T, H, W].

        To evaluate one sample under several captions (guidance), pass the result of
        :meth:`caption_keys_values` and a batch of one of everything else: all before the first
        cross-attention is computed once.

        Args:
            x: latents [B, 16, T, H, W]; conditioning frames clean, the others noised.
            timesteps: noise level in [0, 1] of every latent frame, [B, T].
            text: caption embeddings [B, N, 1024], zeros beyond the caption's end; or the result of
                :meth:`caption_keys_values`.
            condition_mask: 1 on conditioning frames, [B, 1, T, H, W].
            padding_mask: 1 on padded pixels, [B, 1, height, width]; None is all zeros.
            actions: normalised actions of the complete clip of F pixel frames, [B, F - 1, D], also
                if these are only some of its frames; None for a network without actions. With
                actions ``per_clip`` the text is not read.

        Raises:
            ValueError: actions are missing, of another shape, or unknown to the network.
        """
        batch, _, frames, height, width = x.shape
        if padding_mask is None:
            padding = x.new_zeros(batch, 1, 1, 1, 1)
        else:
            padding = F.interpolate(padding_mask, (height, width), mode="nearest").unsqueeze(2)
        padding = padding.to(x.dtype).expand(batch, 1, frames, height, width)
        tokens = self.x_embedder(torch.cat([x, condition_mask.to(x.dtype), padding], dim=1))

        sinusoid = _sinusoid(timesteps, self.config.model_channels).to(x.dtype)
        shared = self.t_embedder(sinusoid)
        embedded = self._action_embeddings(actions, frames, x.dtype)
        if embedded is not None:
            sinusoid, shared = sinusoid + embedded[0], shared + embedded[1]
        embedding = self.t_embedding_norm(sinusoid)
        patch = self.config.patch_spatial
        grid = (frames // self.config.patch_temporal, height // patch, width // patch)
        angles = self.pos_embedder(self.all_frames or frames, *grid[1:])
        first = self.first_frame * grid[1] * grid[2]
        rotation = rotation_of(angles[first : first + math.prod(grid)])
        uses_text = self.config.actions is None or self.config.actions.uses_text
        for number, block in enumerate(self.blocks):
            context: Tensor | KeyValue | None = None
            if uses_text:
                context = text if isinstance(text, Tensor) else text[number]
            tokens = block(tokens, embedding, shared, context, rotation)
        return self._unpatchify(self.final_layer(tokens, embedding, shared), grid)

    def _unpatchify(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        t, h, w = self.x_embedder.patch
        x = torch.unflatten(tokens, 2, grid[1:])
        x = torch.unflatten(x, 4, (h, w, t, -1))  # [B, T, H, W, h, w, t, C]
        x = x.permute(0, 7, 1, 6, 2, 4, 3, 5)  # [B, C, T, t, H, h, W, w]
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
