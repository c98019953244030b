"""Define spec.model: size, frames and base weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from video2world_operator.api.fields import ApiModel, VolumePath, reject_boolean

__all__ = ["ModelSpec"]


class ModelSpec(ApiModel):
    """The Cosmos-Predict2 Video2World model to post-train."""

    size: Literal["Tiny", "2B", "14B"] = Field(
        description="Parameters of the base model. Tiny has the same classes at toy size and "
        "trains on two CPU cores, for demonstrations. Required unless experiment sets it."
    )
    resolution: Literal["480p", "720p"] = Field(
        default="720p",
        description="Frame size in pixels: 720p is 704x1280, 480p is 432x768 (height x width). "
        "For Tiny they are 96x128 and 64x80. Set training.phases instead to train at both.",
    )
    fps: Annotated[Literal[10, 16], BeforeValidator(reject_boolean)] = Field(
        default=16,
        description="Frames per second of the base weights: 16 trains on clips of 93 frames, 10 on "
        "clips of 61. Tiny always trains on 17.",
    )
    geometry: Literal["Crop", "Stretch"] = Field(
        default="Crop",
        description="How a video is fitted to the frame size: scaled to cover it and cropped at "
        "the centre, or stretched. The guide's experiments stretch.",
    )
    rope_ratio: float | None = Field(
        default=None,
        ge=0.1,
        le=16,
        description="RoPE extrapolation ratio over height and width; defaults to that of the base "
        "weights: 3 for 2B, 2 for 14B, 1 for Tiny.",
    )
    weights: VolumePath | None = Field(
        default=None,
        description="Transformer weights on the volume to start from (.pt or .safetensors); "
        "defaults to the downloaded base weights.",
        examples=["weights/mine.pt"],
    )
    lora_alpha: float | None = Field(
        default=None,
        ge=0.001,
        le=4096,
        description="Alpha of the LoRA adapters in weights, if that file has adapters but does not "
        "record their alpha, as files of the original code; adapters are scaled by alpha / rank.",
    )
