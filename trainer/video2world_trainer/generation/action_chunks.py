"""Divide a sequence of actions into the clips that a model generates one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Chunk", "kept_parts", "plan_chunks"]


@dataclass(frozen=True)
class Chunk:
    """One clip of a longer video: the rows of actions that it follows.

    Row k leads from frame k to frame k + 1, so that n rows make n + 1 frames. A chunk begins with
    the last frame of the one before, which is kept once.

    Args:
        number: of the chunk, from 0.
        first: the sequence's row that leads from the chunk's first frame to its second.
        rows: rows of the sequence.
        padding: repetitions of the last row that fill the clip; their frames are dropped.
    """

    number: int
    first: int
    rows: int
    padding: int

    @property
    def kept(self) -> slice:
        """The clip's pixel frames that belong to the video."""
        return slice(1 if self.number else 0, 1 + self.rows)

    def actions(self, sequence: np.ndarray) -> np.ndarray:
        """Return the rows [F - 1, D] of a clip of F frames, from the sequence's [N, D]."""
        own = sequence[self.first : self.first + self.rows]
        return np.concatenate([own, np.repeat(own[-1:], self.padding, axis=0)])

    def seed(self, sample_seed: int) -> int:
        """Return the seed of the chunk's noise, from 0 to 2**32 - 1; the first has the sample's.

        With the same noise in every chunk, its traces in the video would recur.
        """
        if not self.number:
            return sample_seed
        return int(np.random.SeedSequence((sample_seed, self.number)).generate_state(1)[0])


def plan_chunks(rows: int, clip_rows: int) -> tuple[Chunk, ...]:
    """Return the chunks of a sequence of ``rows`` actions.

    Args:
        rows: at least 1.
        clip_rows: actions of a clip, one less than its pixel frames.

    Raises:
        ValueError: either is below 1.
    """
    if rows < 1 or clip_rows < 1:
        raise ValueError(f"{rows} rows in clips of {clip_rows}: both are at least 1")
    return tuple(
        Chunk(number, first, count := min(clip_rows, rows - first), clip_rows - count)
        for number, first in enumerate(range(0, rows, clip_rows))
    )


def kept_parts(parts: Iterable[np.ndarray], kept: slice) -> Iterator[np.ndarray]:
    """Yield the frames ``kept`` of a clip that comes in parts [t, H, W, 3]."""
    start = 0
    for part in parts:
        chosen = part[max(kept.start - start, 0) : max(kept.stop - start, 0)]
        if len(chosen):
            yield chosen
        start += len(part)
