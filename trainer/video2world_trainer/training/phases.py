"""Define the phases of a run: the iterations that it trains at each frame size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.latent_folders import latents_folder
from video2world_trainer.training.config import TrainConfig, clip_latent_shape

__all__ = ["Phase", "describe_phases", "phase_at", "phases_of", "read_phases", "with_phases"]

_KEY = "trainer.phases"
_SIZE_KEY = "dataloader_train.dataset.video_size"


@dataclass(frozen=True)
class Phase:
    """Iterations of a run, after the first ``start`` and up to ``end``, at one frame size.

    ``number`` counts from 1 to ``count``; ``video_size`` is height and width in pixels;
    ``latents`` is the folder of the phase's latents within a split.
    """

    number: int
    count: int
    start: int
    end: int
    num_frames: int
    video_size: tuple[int, int]
    latents: str

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape of one clip's latents: channels, frames, height, width."""
        return clip_latent_shape(self.num_frames, self.video_size)

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Tokens of one clip along time, height and width: one for 2 x 2 latent cells."""
        _, frames, height, width = self.latent_shape
        return frames, height // 2, width // 2

    @property
    def tokens_per_clip(self) -> int:
        """Tokens of one clip."""
        return math.prod(self.token_grid)

    @property
    def label(self) -> str:
        """Number and frame size, for reports; empty if the run has one phase only."""
        if self.count == 1:
            return ""
        height, width = self.video_size
        return f"{self.number}/{self.count} at {height}x{width}"


def phases_of(config: TrainConfig) -> tuple[Phase, ...]:
    """Return the phases of a run in order; one if ``trainer.phases`` is not set."""
    final = _size(config.video_size)
    given = config.phases or (final,)
    phases, start = list[Phase](), 0
    for number, (height, width, *rest) in enumerate(given, 1):
        end = start + rest[0] if rest else config.max_iter
        size = (height, width)
        latents = latents_folder(size, final)
        phases.append(Phase(number, len(given), start, end, config.num_frames, size, latents))
        start = end
    return tuple(phases)


def phase_at(phases: Sequence[Phase], iteration: int) -> Phase:
    """Return the phase that trains after ``iteration`` iterations; at the end, the last one."""
    return next((one for one in phases if iteration < one.end), phases[-1])


def describe_phases(config: TrainConfig) -> list[dict[str, Any]]:
    """Return what checkpoints record; the last phase has no end, as a run can be made longer."""
    return [
        {"video_size": [height, width]} | ({"until": phase.end} if rest else {})
        for phase, (height, width, *rest) in zip(phases_of(config), config.phases, strict=True)
    ]


def read_phases(text: str) -> tuple[tuple[int, ...], ...]:
    """Parse ``[[HEIGHT,WIDTH,ITERATIONS],...]``, where the last entry may omit its iterations.

    Raises:
        ValueError: it is no such list.
    """
    found = json.loads(text)
    phases = tuple(tuple(one) for one in found)
    for one in phases:
        if len(one) not in (2, 3) or any(type(number) is not int for number in one):
            raise ValueError
    if any(len(one) == 2 for one in phases[:-1]):
        raise ValueError
    return phases


def with_phases(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``settings`` with the frame size and the number of iterations that phases imply.

    Args:
        settings: fields of :class:`TrainConfig`, with defaults.
        given: those that were set on the command line.

    Raises:
        UserError: the phases are invalid, or contradict another setting.
    """
    phases = settings.get("phases") or ()
    if not phases:
        return dict(settings)
    _check_sizes(phases)
    last = phases[-1]
    final = last[:2]
    if _size(given.get("video_size", final)) != final:
        raise UserError(
            f"{_SIZE_KEY}={list(given['video_size'])} contradicts {_KEY}, which ends at "
            f"{list(final)}: leave it out"
        )
    before = sum(one[2] for one in phases[:-1])
    total = before + last[2] if len(last) == 3 else settings["max_iter"]
    if given.get("max_iter", total) != total:
        raise UserError(
            f"trainer.max_iter={given['max_iter']}: the iterations of {_KEY} add up to {total}; "
            "leave one of them out, or the last phase's iterations"
        )
    if total <= before:
        raise UserError(
            f"trainer.max_iter={total}: the phases before the last take {before} iterations, so "
            f"none is left for the last; raise it above {before}, or shorten {_KEY}"
        )
    several = (*phases[:-1], final) if len(phases) > 1 else ()
    return {**settings, "phases": several, "video_size": final, "max_iter": total}


def _check_sizes(phases: Sequence[tuple[int, ...]]) -> None:
    for number, one in enumerate(phases, 1):
        if min(one) < 1:
            raise UserError(f"{_KEY}: phase {number}, {list(one)}: every number must be at least 1")
        if any(side % 16 for side in one[:2]):
            raise UserError(
                f"{_KEY}: phase {number}, {list(one)}: height and width must be multiples of 16"
            )
        if number > 1 and one[:2] == phases[number - 2][:2]:
            raise UserError(
                f"{_KEY}: phases {number - 1} and {number} have the same size, {list(one[:2])}: "
                "make them one"
            )


def _size(numbers: Sequence[int]) -> tuple[int, int]:
    height, width = numbers
    return height, width
