"""Read from ``model/config.json`` how a checkpoint was trained, for inference to follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from video2world_common.attention_pattern import published_pattern, recorded_pattern
from video2world_common.exit_codes import UserError
from video2world_common.files import read_json
from video2world_trainer.checkpoint.recorded_actions import RecordedActions, published_actions
from video2world_trainer.model.lora import AdapterFacts

__all__ = ["RunConfig", "actions_of", "attention_pattern"]


@dataclass(frozen=True)
class RunConfig:
    """Settings of a training run that its weights depend on; None where they are not recorded."""

    size: str | None = None
    geometry: str | None = None
    num_frames: int | None = None
    video_size: tuple[int, int] | None = None  # height, width; of the last phase
    phase_sizes: tuple[tuple[int, int], ...] = ()  # of all phases, if there are several
    text_length: int | None = None
    rope_ratios: tuple[float, float, float] | None = None  # time, height, width
    fps: int | None = None
    attention_pattern: str | None = None  # "dense" or "sparse"
    adapters: AdapterFacts = field(default_factory=AdapterFacts)
    actions: RecordedActions | None = None  # also None if the network reads no actions

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Read ``path``; all fields are None for checkpoints that this trainer did not write.

        Raises:
            UserError: the file is damaged.
        """
        try:
            content = read_json(path)
            if not isinstance(content, dict) or "run" not in content:
                return cls()
            return cls._from(content)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({error}): restore it, or remove it to use the preset's values"
            ) from None

    @classmethod
    def _from(cls, content: dict[str, Any]) -> RunConfig:
        height, width = content["video_size"]
        sizes = [phase["video_size"] for phase in content.get("phases", [])]
        adapters = AdapterFacts()
        if content.get("architecture") == "lora":
            adapters = AdapterFacts(float(content["lora_alpha"]), int(content["lora_rank"]))
        return cls(
            size=str(content["size"]),
            geometry=str(content["geometry"]),
            num_frames=int(content["num_frames"]),
            video_size=(int(height), int(width)),
            phase_sizes=tuple((int(one[0]), int(one[1])) for one in sizes),
            text_length=int(content["text_length"]),
            rope_ratios=(
                float(content["rope_ratio_t"]),
                float(content["rope_ratio_h"]),
                float(content["rope_ratio_w"]),
            ),
            fps=int(content["fps"]) if "fps" in content else None,
            attention_pattern=recorded_pattern(content),
            adapters=adapters,
            actions=RecordedActions.from_json(content["action_conditioning"])
            if "action_conditioning" in content
            else None,
        )


def attention_pattern(path: Path, run: RunConfig) -> str | None:
    """Return how weights were trained: "dense", "sparse", or None if that is unknown.

    Args:
        path: the model file; NVIDIA names those of sparse attention ``-natten``.
        run: the record next to it.
    """
    return run.attention_pattern or published_pattern(path.name)


def actions_of(path: Path, run: RunConfig) -> RecordedActions | None:
    """Return the actions that weights were trained with; None if they read none.

    Args:
        path: the model file; that of NVIDIA's action-conditioned weights is known by its name.
        run: the record next to it.
    """
    return run.actions or (published_actions(path) if run.size is None else None)
