"""The Video2World diffusion transformer, with the names and shapes of the published checkpoints.

Cosmos-Predict2's DiT (facts sheet 1): joint space-time self-attention with 3D RoPE, cross-attention
to the caption's T5 embedding, and AdaLN-LoRA modulation. The noise level is one number per latent
*frame*, so modulation is computed once a frame and broadcast over the frame's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video2world_trainer.model.presets import DiTConfig
from video2world_trainer.model.rope import Rotation, VideoRope, apply_rope, rotation_of

__all__ = ["Attend", "Block", "KeyValue", "VideoDiT", "sdpa"]

# Queries [B, L, heads, head_dim], keys and values [B, M, heads, head_dim] -> as the queries
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

# A caption's keys and values in one layer, [B, N, heads, head_dim] each
KeyValue = tuple[Tensor, Tensor]

EPS = 1e-6
Runner = Callable[..., Tensor]

CONTROL_CHANNELS = 2  # the condition mask and the padding mask ride along with the latents


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's attention without mask, in this module's layout (see :data:`Attend`)."""
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    return out.transpose(1, 2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis: float32 inside, rounded once at the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), EPS).to(x.dtype)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys, over tokens or to a caption."""

    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend: Attend = sdpa
        self.q_proj = _linear(channels, channels)
        self.k_proj = _linear(context, channels)
        self.v_proj = _linear(context, channels)
        self.output_proj = _linear(channels, channels)
        self.q_norm = RMSNorm(channels // heads)
        self.k_norm = RMSNorm(channels // heads)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Self-attention of [B, T, HW, D] over all T * HW tokens."""
        flat = x.flatten(1, 2)
        query, key, value = (
            self._heads(projected)
            for projected in (self.q_proj(flat), self.k_proj(flat), self.v_proj(flat))
        )
        query = apply_rope(self.q_norm(query), rotation)
        key = apply_rope(self.k_norm(key), rotation)
        out = self.attend(query, key, value).flatten(2)
        return self.output_proj(out).unflatten(1, x.shape[1:3])

    def keys_values(self, context: Tensor) -> KeyValue:
        """What :meth:`across` attends to, of a caption [B, N, C]."""
        return self.k_norm(self._heads(self.k_proj(context))), self._heads(self.v_proj(context))

    def across(self, x: Tensor, context: Tensor | KeyValue) -> Tensor:
        """Cross-attention of [B, T, HW, D] to a caption [B, N, C], or to its keys and values.

        To a caption, frames attend as items of a batch: the backward pass of a kernel is parallel
        over batch, heads and keys, and a caption's few keys alone would leave most of a GPU idle.
        To keys and values, which are for inference, all tokens attend together; there may be
        several captions to one ``x``, and as many answers.
        """
        batch, frames = x.shape[:2]
        query = self.q_norm(self._heads(self.q_proj(x)))
        if isinstance(context, tuple):
            query = query.flatten(1, 2)
            if len(query) != len(context[0]):
                query = query.expand(len(context[0]), -1, -1, -1).contiguous()
            out = self.attend(query, *context).flatten(2)
            return self.output_proj(out).unflatten(1, x.shape[1:3])
        key, value = (
            one.unsqueeze(1).expand(batch, frames, *one.shape[1:]).flatten(0, 1)
            for one in self.keys_values(context)
        )
        out = self.attend(query.flatten(0, 1), key, value).flatten(2)
        return self.output_proj(out).unflatten(0, (batch, frames))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class FeedForward(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.layer1 = _linear(channels, inner)
        self.layer2 = _linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(F.gelu(self.layer1(x)))


def _modulation(channels: int, rank: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), _linear(channels, rank), _linear(rank, outputs * channels))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, modulated by the frame's noise level."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, rank = config.model_channels, config.adaln_lora_dim
        self.self_attn = Attention(width, width, config.num_heads)
        self.cross_attn = Attention(width, config.crossattn_dim, config.num_heads)
        self.mlp = FeedForward(width, int(width * config.mlp_ratio))
        self.adaln_modulation_self_attn = _modulation(width, rank, 3)
        self.adaln_modulation_cross_attn = _modulation(width, rank, 3)
        self.adaln_modulation_mlp = _modulation(width, rank, 3)
        self.runner: Runner = Block.compute  # how compute is run: see memory.py

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        shared: Tensor,
        text: Tensor | KeyValue,
        rotation: Rotation,
    ) -> Tensor:
        """``x`` [B, T, HW, D], ``embedding`` [B, T, D], ``shared`` [B, T, 3D], ``text`` [B,N,C]"""
        return self.runner(self, x, embedding, shared, text, rotation)

    def compute(
        self,
        x: Tensor,
        embedding: Tensor,
        shared: Tensor,
        text: Tensor | KeyValue,
        rotation: Rotation,
    ) -> Tensor:
        """What :meth:`forward` answers, without recomputation or compilation around it."""
        for modulation, layer in (
            (self.adaln_modulation_self_attn, lambda y: self.self_attn(y, rotation)),
            (self.adaln_modulation_cross_attn, lambda y: self.cross_attn.across(y, text)),
            (self.adaln_modulation_mlp, self.mlp),
        ):
            shift, scale, gate = (modulation(embedding) + shared).unsqueeze(2).chunk(3, dim=-1)
            x = x + gate * layer(_modulate(x, shift, scale))
        return x


class TimestepEmbedding(nn.Module):
    """The two linears that turn a noise level's sinusoid into the shared modulation [B, T, 3D]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear_1 = _linear(channels, channels)
        self.linear_2 = _linear(channels, 3 * channels)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


def _sinusoid(timesteps: Tensor, channels: int) -> Tensor:
    """[cos, sin] of the levels [B, T] at geometrically falling frequencies: [B, T, channels]."""
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[..., None] * torch.exp(-math.log(10_000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(timesteps.dtype)


class PatchEmbed(nn.Module):
    """Patches of ``patch`` = (t, h, w) cells, features ordered (channel, t, h, w), to tokens."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.patch = (config.patch_temporal, config.patch_spatial, config.patch_spatial)
        features = (config.latent_channels + CONTROL_CHANNELS) * math.prod(self.patch)
        self.proj = nn.Sequential(nn.Identity(), _linear(features, config.model_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, T/t, (H/h)*(W/w), D]."""
        t, h, w = self.patch
        x = x.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7)  # [B, T/t, H/h, W/w, C, t, h, w]
        return self.proj(x.flatten(4).flatten(2, 3))


class FinalLayer(nn.Module):
    """Modulated norm and the projection of each token to its patch, ordered (h, w, t, channel)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.model_channels
        patch = config.patch_temporal * config.patch_spatial**2
        self.linear = _linear(width, patch * config.latent_channels)
        self.adaln_modulation = _modulation(width, config.adaln_lora_dim, 2)

    def forward(self, x: Tensor, embedding: Tensor, shared: Tensor) -> Tensor:
        width = x.shape[-1]
        modulation = self.adaln_modulation(embedding) + shared[..., : 2 * width]
        shift, scale = modulation.unsqueeze(2).chunk(2, dim=-1)
        return self.linear(_modulate(x, shift, scale))


class VideoDiT(nn.Module):
    """Predicts the flow velocity (noise - clean) of noised video latents.

    State-dict names, shapes and buffers are upstream's (without its ``net.`` prefix).
    """

    def __init__(self, config: DiTConfig, *, exact_rope: bool = False) -> None:
        super().__init__()
        self.config = config
        # with context parallelism: this rank's first latent frame, and how many all have together
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
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.final_layer = FinalLayer(config)
        for name, dtype in (
            ("accum_video_sample_counter", torch.int64),
            ("accum_image_sample_counter", torch.int64),
            ("accum_iteration", torch.int64),
            ("accum_train_in_hours", torch.float32),
        ):
            self.register_buffer(name, torch.zeros((), dtype=dtype))

    def set_attention(
        self, attend: Attend, over_tokens: Attend | Sequence[Attend] | None = None
    ) -> None:
        """Use ``attend`` in every attention layer, and ``over_tokens`` in the self-attentions: one
        for all blocks, or one for each."""
        own = [over_tokens or attend] * len(self.blocks)
        if isinstance(over_tokens, Sequence):
            own = list(over_tokens)
        for block, one in zip(self.blocks, own, strict=True):
            block.self_attn.attend = one
            block.cross_attn.attend = attend

    def caption(self, text: Tensor) -> list[KeyValue]:
        """What each block attends to of captions [B, N, C]: the same at every noise level."""
        return [block.cross_attn.keys_values(text) for block in self.blocks]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Upstream's start without a checkpoint: truncated normal, modulations off (facts 1.6)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            elif "adaln_modulation" in name and name.endswith(".2.weight"):
                parameter.zero_()
            else:
                std = 1 / math.sqrt(parameter.shape[1])
                nn.init.trunc_normal_(
                    parameter, std=std, a=-3 * std, b=3 * std, generator=generator
                )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        text: Tensor | Sequence[KeyValue],
        condition_mask: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """The velocity [B, 16, T, H, W].

        Of one sample under several captions (guidance) everything before the first cross-attention
        is computed once: give their :meth:`caption` and a batch of one of all else.

        Args:
            x: latents [B, 16, T, H, W]; conditioning frames clean, the others noised.
            timesteps: noise level in [0, 1] of every latent frame, [B, T].
            text: caption embeddings [B, N, 1024], zeros beyond the caption's end; or what
                :meth:`caption` made of them, which need not be made again at every step.
            condition_mask: 1 on conditioning frames, [B, 1, T, H, W].
            padding_mask: 1 on padded pixels, [B, 1, height, width]; None is all zeros.
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
        embedding = self.t_embedding_norm(sinusoid)
        patch = self.config.patch_spatial
        grid = (frames // self.config.patch_temporal, height // patch, width // patch)
        angles = self.pos_embedder(self.all_frames or frames, *grid[1:])
        first = self.first_frame * grid[1] * grid[2]
        rotation = rotation_of(angles[first : first + math.prod(grid)])
        for number, block in enumerate(self.blocks):
            context = text if isinstance(text, Tensor) else text[number]
            tokens = block(tokens, embedding, shared, context, rotation)
        return self._unpatchify(self.final_layer(tokens, embedding, shared), grid)

    def _unpatchify(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        t, h, w = self.x_embedder.patch
        x = tokens.unflatten(2, grid[1:]).unflatten(4, (h, w, t, -1))  # [B, T, H, W, h, w, t, C]
        x = x.permute(0, 7, 1, 6, 2, 4, 3, 5)  # [B, C, T, t, H, h, W, w]
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
