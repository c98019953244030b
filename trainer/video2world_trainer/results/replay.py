"""Prepare the replay of action-conditioned samples: videos in step, and the actions under them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from video2world_trainer.generation.action_trace import ActionTrace
from video2world_trainer.results.rendering import render
from video2world_trainer.results.run_results import GeneratedSample
from video2world_trainer.training.history import is_number

__all__ = ["replays"]

COLORS = 8  # classes d0 to d7 of style.css


@dataclass(frozen=True)
class _Motion:
    """A sample that follows actions."""

    sample: GeneratedSample
    trace: ActionTrace
    fps: float

    @property
    def frames(self) -> int:
        """Pixel frames of the video."""
        return len(self.trace.rows) + 1

    @property
    def first_frame(self) -> tuple[Any, ...]:
        """What motions that are shown next to each other have in common."""
        facts = self.sample.facts
        shared = (facts.get(key) for key in ("input", "frames_from", "conditional_frames"))
        return (*map(str, shared), self.fps)


def replays(samples: Sequence[GeneratedSample]) -> list[Markup]:
    """Render a section for each first frame: all motions from it, of the newest checkpoint.

    Args:
        samples: by name and iteration; those without actions are left out.
    """
    newest = {sample.name: sample for sample in samples}
    groups: dict[tuple[Any, ...], list[_Motion]] = {}
    for sample in newest.values():
        if (motion := _motion(sample)) is not None:
            groups.setdefault(motion.first_frame, []).append(motion)
    return [_replay(group) for group in groups.values()]


def _motion(sample: GeneratedSample) -> _Motion | None:
    trace = sample.actions
    fps: Any = sample.facts.get("fps")
    if trace is None or not is_number(fps) or not 0.01 <= fps <= 1000:
        return None
    return _Motion(sample, trace, float(fps))


def _replay(motions: Sequence[_Motion]) -> Markup:
    compared = [one for one in motions if one.sample.ground_truth]
    longest = max(compared, key=lambda one: one.frames) if compared else None
    source = Path(str(motions[0].sample.facts.get("input") or "")).stem
    return render(
        "replay.html.jinja",
        source=source,
        count=len(motions),
        fps=f"{motions[0].fps:g}",
        frames=max(one.frames for one in motions),
        truth=longest.sample.ground_truth if longest else None,
        truth_frames=longest.frames if longest else 0,
        motions=[
            {
                "name": one.sample.name,
                "checkpoint": one.sample.checkpoint,
                "video": one.sample.video,
                "frames": one.frames,
                "metrics": one.sample.metric_texts,
                "rows": json.dumps([[float(f"{x:.4g}") for x in row] for row in one.trace.rows]),
                "steps": len(one.trace.rows),
                "seams": [seam for seam in one.trace.seams if 0 < seam < one.frames],
                "lines": _lines(one.trace),
            }
            for one in motions
        ],
    )


def _lines(trace: ActionTrace) -> list[dict[str, Any]]:
    """Name, color and SVG path of each dimension; x is the frame, y from 100 (least) to 0."""
    return [
        {
            "name": name,
            "color": number % COLORS,
            "path": "".join(
                f"{'V' if step else 'M0 '}{100 - 100 * value:.4g}H{step + 1}"
                for step, value in enumerate(line)
            ),
            "value": f"{trace.rows[0, number]:.4g}",
        }
        for number, (name, line) in enumerate(
            zip(trace.names, trace.scaled().T.tolist(), strict=True)
        )
    ]
