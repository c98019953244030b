"""Decide from losses on held-out clips whether a model follows its actions.

A model that ignores its actions has the same loss whichever actions it is given. Each clip is
therefore measured at the same noise with its own actions and with wrong ones
(:data:`VARIANTS`), and the losses are compared clip by clip.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video2world_trainer.evaluation.bootstrap import FEWEST_CLIPS, interval
from video2world_trainer.model.action_conditioning import ROWS_PER_FRAME

__all__ = [
    "LEAST_LIFT",
    "VARIANTS",
    "action_variants",
    "gate",
    "other_clips",
]

# The smallest lift that counts. Models trained with actions of other clips, which they can only
# ignore, reach a third of it by chance (benchmarks/results/actions.json).
LEAST_LIFT = 0.01

VARIANTS: Mapping[str, str] = {
    "true": "the clip's own",
    "shuffled": "another clip's",
    "zeroed": "the mean of the data set",
    "late": "its own, one latent frame too late",
    "early": "its own, one latent frame too early",
}


def other_clips(windows: Sequence[object]) -> list[int] | None:
    """Return for each clip the clip that lends it actions: a permutation without fixed points.

    Clips borrow from another window where possible.

    Args:
        windows: the window of each clip; clips of a window follow each other.

    Returns:
        None with fewer than two clips.
    """
    count = len(windows)
    if count < 2:
        return None
    # the rotation by which the fewest clips borrow from their own window
    kept = [
        sum(windows[n] == windows[(n + by) % count] for n in range(count)) for by in range(1, count)
    ]
    by = 1 + min(range(count - 1), key=lambda n: (kept[n], abs(n + 1 - count / 2)))
    return [(n + by) % count for n in range(count)]


def action_variants(clips: Tensor, windows: Sequence[object]) -> dict[str, Tensor]:
    """Return the actions of each variant in :data:`VARIANTS`, shaped like ``clips``.

    A single clip has no other to borrow from: its rows are reversed in time instead.

    Args:
        clips: normalised actions [clips, rows, D]; a zero is the mean of the data set.
        windows: the window of each clip.
    """
    order = other_clips(windows)
    first, last = (edge.expand(-1, ROWS_PER_FRAME, -1) for edge in (clips[:, :1], clips[:, -1:]))
    return {
        "true": clips,
        "shuffled": clips.flip(1) if order is None else clips[torch.tensor(order)],
        "zeroed": torch.zeros_like(clips),
        "late": torch.cat([first, clips], dim=1)[:, : clips.shape[1]],
        "early": torch.cat([clips, last], dim=1)[:, -clips.shape[1] :],
    }


def _lift(true: np.ndarray, other: np.ndarray, counts: np.ndarray) -> float:
    """Return 1 - loss(true) / loss(other), for how often each clip counts."""
    return float(1 - (counts @ true) / (counts @ other))


def gate(losses: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Return the verdict and its figures.

    Args:
        losses: by variant, the loss of each clip at each noise level, [clips, levels].

    Returns:
        ``followed`` (None with too few clips for an interval), ``lift`` of the true over the
        shuffled actions with ``low`` and ``high`` (None with too few clips), ``clips``,
        ``variants`` (by name ``loss``, and ``lift``, ``low``, ``high`` of the true actions over
        it) and ``text``, one sentence.
    """
    mean = {name: np.asarray(rows, np.float64).mean(axis=1) for name, rows in losses.items()}
    true = mean["true"]
    clips = len(true)
    variants: dict[str, dict[str, float | None]] = {}
    for name, other in mean.items():
        variants[name] = {"loss": float(other.mean())}
        if name != "true":
            statistic = functools.partial(_lift, true, other)
            low, high = interval(statistic, clips) or (None, None)
            variants[name] |= {"lift": statistic(np.ones(clips)), "low": low, "high": high}
    found = variants["shuffled"]
    lift, low, high = found["lift"], found["low"], found["high"]
    assert lift is not None
    followed = None if low is None else low > 0 and lift > LEAST_LIFT
    return {
        "followed": followed,
        "lift": lift,
        "low": low,
        "high": high,
        "clips": clips,
        "variants": variants,
        "text": _text(followed, variants, clips),
    }


def _text(
    followed: bool | None, variants: Mapping[str, Mapping[str, float | None]], clips: int
) -> str:
    found = variants["shuffled"]
    trust = f"too few for an interval, which takes {FEWEST_CLIPS}"
    if found["low"] is not None:
        trust = f"95 % interval {found['low']:+.1%} to {found['high']:+.1%}"
    opening = {
        True: "The model follows its actions",
        False: "The model ignores its actions",
        None: "Whether the model follows its actions is unknown",
    }[followed]
    lift = found["lift"] or 0.0
    text = (
        f"{opening}: with the true ones the loss is {abs(lift):.1%} "
        f"{'higher' if lift < 0 else 'lower'} than with those of other clips "
        f"({variants['true']['loss']:.4g} instead of {found['loss']:.4g}, {clips} held-out "
        f"clip{'s' if clips > 1 else ''}, {trust})."
    )
    for name, way in (("late", "later"), ("early", "earlier")):
        shifted = variants.get(name, {})
        if (high := shifted.get("high")) is not None and high < 0:
            text += (
                f" With actions one latent frame {way} the loss is lower still "
                f"({shifted['loss']:.4g}): actions and video may be out of step."
            )
    return text
