"""Define the networks' sizes and schedules: the published models, and a tiny one for CPUs.

Values of 2B and 14B are those of https://github.com/nvidia-cosmos/cosmos-predict2:
``cosmos_predict2/configs/base/config_video2world.py``, its ``defaults/`` and
``experiment/agibot_head_center_fisheye_color.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from video2world_common.model_sizes import SIZES
from video2world_trainer.model.action_conditioning import ActionConditioning

__all__ = ["PRESETS", "DiTConfig", "Preset", "preset"]


@dataclass(frozen=True)
class DiTConfig:
    """Hyperparameters of the network; the defaults are common to 2B and 14B.

    ``max_*`` are in latent frames and cells. RoPE ratios scale the base of the rotary frequencies
    along time, height and width. ``actions`` is None for a network that reads no actions.
    """

    model_channels: int
    num_blocks: int
    num_heads: int
    latent_channels: int = 16
    patch_spatial: int = 2
    patch_temporal: int = 1
    mlp_ratio: float = 4.0
    adaln_lora_dim: int = 256
    crossattn_dim: int = 1024
    max_height: int = 240
    max_width: int = 240
    max_frames: int = 128
    rope_ratio_t: float = 1.0
    rope_ratio_h: float = 3.0
    rope_ratio_w: float = 3.0
    actions: ActionConditioning | None = None

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.model_channels // self.num_heads


@dataclass(frozen=True)
class Preset:
    """Network and schedule of a model size, as the guide trains it.

    Values that the operator needs as well are in :data:`video2world_common.model_sizes.SIZES`.
    """

    size: str
    dit: DiTConfig
    text_tokens: int = 512  # positions of the caption embedding, zeros beyond its end
    weight_decay: float = 0.1
    cycle_length: int = 400_000
    f_max: float = 0.99
    f_min: float = 0.0
    f_start: float = 1e-6
    base_folder: str = ""
    text_encoder_folder: str = "checkpoints/google-t5/t5-11b"
    compute_dtype: str = "bfloat16"

    def base_weights(self, resolution: str, fps: int, *, sparse: bool = False) -> str | None:
        """Return the path of the published weights on the volume; None for Tiny.

        ``sparse`` weights were trained with sparse attention.
        """
        if self.size == "Tiny":
            return None
        return f"{self.base_folder}/model-{resolution}-{fps}fps{'-natten' if sparse else ''}.pt"


def _dit(size: str, *, adaln_lora_dim: int = 256) -> DiTConfig:
    shared = SIZES[size]
    height, width, time = shared.rope_ratios
    return DiTConfig(
        model_channels=shared.model_channels,
        num_blocks=shared.num_blocks,
        num_heads=shared.num_heads,
        adaln_lora_dim=adaln_lora_dim,
        rope_ratio_t=time,
        rope_ratio_h=height,
        rope_ratio_w=width,
    )


_BASE = "checkpoints/nvidia/Cosmos-Predict2-{}-Video2World"

PRESETS: dict[str, Preset] = {
    "2B": Preset(
        size="2B",
        dit=_dit("2B"),
        base_folder=_BASE.format("2B"),
    ),
    "14B": Preset(
        size="14B",
        dit=_dit("14B"),
        weight_decay=0.2,
        cycle_length=50_000,
        f_max=0.2,
        base_folder=_BASE.format("14B"),
    ),
    "Tiny": Preset(
        size="Tiny",
        dit=_dit("Tiny", adaln_lora_dim=64),
        text_tokens=64,
        weight_decay=0.01,
        cycle_length=100_000,
        f_max=1.0,
        base_folder="checkpoints/video2world/Cosmos-Predict2-Tiny-Video2World",
        text_encoder_folder="checkpoints/video2world/t5-tiny",
        compute_dtype="float32",
    ),
}


def preset(
    size: str,
    *,
    rope_ratios: tuple[float, float, float] | None = None,
    actions: ActionConditioning | None = None,
) -> Preset:
    """Return the preset of a size, with ``rope_ratios`` (time, height, width) if set.

    ``actions`` is how the network reads actions.

    Raises:
        KeyError: no such size.
    """
    chosen = PRESETS[size]
    dit = replace(chosen.dit, actions=actions)
    if rope_ratios is not None:
        t, h, w = rope_ratios
        dit = replace(dit, rope_ratio_t=t, rope_ratio_h=h, rope_ratio_w=w)
    return replace(chosen, dit=dit)
