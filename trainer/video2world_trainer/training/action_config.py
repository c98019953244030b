"""Define the setting of action conditioning, and what follows from it for other settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.per_clip_actions import FRAME_SIZE, FRAMES
from video2world_trainer.training.config_setting import setting

__all__ = ["ActionConfig", "require_published_clip", "settings_of_kind"]

_KEY = "model.action_conditioning=per_clip"


@dataclass(frozen=True)
class ActionConfig:
    """How the network reads the actions of the data set."""

    action_conditioning: str = setting(
        "model.action_conditioning",
        "none",
        "actions that the network reads: none; per_frame, an embedding for each latent frame, with "
        "captions; per_clip, NVIDIA's action-conditioned network of 13 frames without captions",
        choices=("none", "per_frame", "per_clip"),
    )

    @property
    def reads_text(self) -> bool:
        """Whether the network reads captions."""
        return self.action_conditioning != "per_clip"


def settings_of_kind(kind: str, size: str) -> dict[str, Any]:
    """Return the fields that follow from a kind of action conditioning and the model size."""
    if kind != "per_clip":
        return {}
    clip: dict[str, Any] = {"num_frames": FRAMES}
    return clip if size == "Tiny" else clip | {"video_size": FRAME_SIZE}


def require_published_clip(size: str, num_frames: int, sizes: list[tuple[int, ...]]) -> None:
    """Check that clips are those that the ``per_clip`` network was published for.

    Args:
        size: the model size.
        num_frames: pixel frames of a clip.
        sizes: height and width of every phase.

    Raises:
        UserError: they are others, and weights for them do not exist.
    """
    if num_frames != FRAMES:
        raise UserError(
            f"dataloader_train.dataset.num_frames={num_frames}: {_KEY} has clips of "
            f"{FRAMES} frames, a number that is part of its weights; leave it out, or "
            "set model.action_conditioning=per_frame"
        )
    if size == "Tiny":
        return
    if size != "2B":
        raise UserError(
            f"model.size={size}: {_KEY} is published for 2B only; set "
            "model.action_conditioning=per_frame"
        )
    other = next((one for one in sizes if one != FRAME_SIZE), None)
    if other is not None:
        raise UserError(
            f"dataloader_train.dataset.video_size={list(other)}: {_KEY} was trained on frames of "
            f"{list(FRAME_SIZE)}; leave it out, or set model.action_conditioning=per_frame"
        )
