"""Define spec.dataset.captions: captions by a vision-language model at an endpoint."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from video2world_operator.api.fields import ApiModel, with_example
from video2world_operator.api.pods import SecretKey

__all__ = ["CaptionsSpec"]

_Endpoint = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        pattern=r"^https?://[A-Za-z0-9._:\[\]-]+(/[A-Za-z0-9._~%!&'()*+,;=:/-]*)?$",
        examples=["http://vllm.models:8000/v1"],
        json_schema_extra={
            "expected": "the base URL of an OpenAI-compatible API, starting with http:// or "
            "https://, without user name, query and fragment"
        },
    ),
]
_Model = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9_./][A-Za-z0-9_.:/@+-]*$",
        examples=["Qwen/Qwen3-VL-8B-Instruct"],
        json_schema_extra={
            "expected": "letters, digits and any of _ . : / @ + -, at most 253 characters"
        },
    ),
]
_Prompt = Annotated[
    str,
    Field(
        min_length=1,
        max_length=4000,
        pattern=r"^[^$\x00]*[^$\x00-\x20][^$\x00]*$",  # the kubelet would expand $(NAME)
        examples=["Describe the robot's motion."],
        json_schema_extra={"expected": "a text of 1 to 4000 characters without $"},
    ),
]


class CaptionsSpec(ApiModel):
    """Captions that a vision-language model writes: frames of every window are sent to it."""

    model_config = with_example(
        {"endpoint": "http://vllm.models:8000/v1", "model": "Qwen/Qwen3-VL-8B-Instruct"}
    )

    endpoint: _Endpoint = Field(
        description="Base URL of an OpenAI-compatible API. Frames of every window and its caption "
        "are sent there, and nowhere else."
    )
    model: _Model = Field(description="Name of the model at the endpoint.")
    prompt: _Prompt | None = Field(
        default=None,
        description="What to describe; defaults to the scene and the motion of a robot. Duration, "
        "the dataset's caption and the form of the answer are added to it.",
    )
    token_secret: SecretKey | None = Field(
        default=None,
        description="Bearer token of the endpoint; defaults to none. Locally, it is the "
        "environment variable CAPTIONS_TOKEN.",
    )
    frames_per_second: float = Field(
        default=2,
        ge=0.1,
        le=30,
        description="Frames to send per second of video; the first and the last always are.",
    )
    max_frames: int = Field(
        default=16, ge=2, le=128, description="Most frames of one request, evenly spaced."
    )
    max_tokens: int = Field(
        default=512,
        ge=16,
        le=32768,
        description="Most tokens of one answer, including those of reasoning.",
    )
    structured_output: bool = Field(
        default=False, description="Ask for JSON by a schema, which not every server supports."
    )
    parallel_requests: int = Field(
        default=8, ge=1, le=256, description="Requests at the same time."
    )
    timeout_seconds: int = Field(
        default=120, ge=1, le=3600, description="Seconds to wait for one answer."
    )
    max_failed_percent: int = Field(
        default=10,
        ge=0,
        le=100,
        description="Share of the windows that may keep the dataset's own caption because no "
        "answer was a caption; with more, the stage fails.",
    )
