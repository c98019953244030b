"""The exact configurations of the published models, and of the tiny one that runs anywhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["PRESETS", "DiTConfig", "Preset", "preset"]


@dataclass(frozen=True)
class DiTConfig:
    """Hyper-parameters of the network; defaults are those common to 2B and 14B (facts 1.1).

    Sizes ``max_*`` are in latent units; RoPE ratios stretch the base of the rotary frequencies
    along each axis.
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

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.model_channels // self.num_heads


@dataclass(frozen=True)
class Preset:
    """A model size and what the guide trains it with (facts 2.3, 2.4).

    ``sizes`` are (height, width) in pixels by resolution, ``clip_frames`` pixel frames by fps.
    """

    size: str
    dit: DiTConfig
    sizes: dict[str, tuple[int, int]]
    clip_frames: dict[int, int]
    text_tokens: int = 512  # positions of the embedding that are attended, zeros beyond the caption
    learning_rate: float = 2**-15.5
    weight_decay: float = 0.1
    warm_up_steps: int = 2000
    cycle_length: int = 400_000
    f_max: float = 0.99
    f_min: float = 0.0
    f_start: float = 1e-6
    base_folder: str = ""
    text_encoder_folder: str = "checkpoints/google-t5/t5-11b"
    compute_dtype: str = "bfloat16"

    def base_weights(self, resolution: str, fps: int) -> str | None:
        """Path of the published weights on the volume; None for the size that has none."""
        if self.size == "Tiny":
            return None
        return f"{self.base_folder}/model-{resolution}-{fps}fps.pt"


_SIZES = {"720p": (704, 1280), "480p": (432, 768)}
_FRAMES = {16: 93, 10: 61}
_BASE = "checkpoints/nvidia/Cosmos-Predict2-{}-Video2World"

PRESETS: dict[str, Preset] = {
    "2B": Preset(
        size="2B",
        dit=DiTConfig(model_channels=2048, num_blocks=28, num_heads=16),
        sizes=_SIZES,
        clip_frames=_FRAMES,
        base_folder=_BASE.format("2B"),
    ),
    "14B": Preset(
        size="14B",
        dit=DiTConfig(
            model_channels=5120,
            num_blocks=36,
            num_heads=40,
            rope_ratio_t=20 / 24,
            rope_ratio_h=2.0,
            rope_ratio_w=2.0,
        ),
        sizes=_SIZES,
        clip_frames=_FRAMES,
        weight_decay=0.2,
        cycle_length=50_000,
        f_max=0.2,
        base_folder=_BASE.format("14B"),
    ),
    "Tiny": Preset(
        size="Tiny",
        dit=DiTConfig(
            model_channels=128,
            num_blocks=4,
            num_heads=4,
            adaln_lora_dim=64,
            rope_ratio_h=1.0,
            rope_ratio_w=1.0,
        ),
        sizes={"720p": (96, 128), "480p": (96, 128)},
        clip_frames={16: 17, 10: 17},
        text_tokens=64,
        learning_rate=2e-3,
        weight_decay=0.01,
        warm_up_steps=50,
        cycle_length=100_000,
        f_max=1.0,
        base_folder="checkpoints/video2world/Cosmos-Predict2-Tiny-Video2World",
        text_encoder_folder="checkpoints/video2world/t5-tiny",
        compute_dtype="float32",
    ),
}


def preset(size: str, *, rope_ratios: tuple[float, float, float] | None = None) -> Preset:
    """The preset of a size, with other RoPE ratios (t, h, w) where given.

    Raises:
        KeyError: no such size.
    """
    chosen = PRESETS[size]
    if rope_ratios is None:
        return chosen
    t, h, w = rope_ratios
    return replace(chosen, dit=replace(chosen.dit, rope_ratio_t=t, rope_ratio_h=h, rope_ratio_w=w))
