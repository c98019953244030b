"""Say what the captions stage will send, and to whom, before it does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from video2world_operator.api.captions_spec import CaptionsSpec
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.check import Check, Verdict

__all__ = ["check_captions"]

_ANSWERED = ".captions"  # one JSON file per answer, written by the captions stage


def check_captions(plan: Plan, volume: Path | None) -> Iterator[Check]:
    """Count the requests, as far as the dataset on ``volume`` (None: not here) is known."""
    captions = plan.resource.spec.dataset.captions
    if captions is None:
        return
    goal = f"{captions.endpoint} (model {captions.model})"
    text = f"frames of every window are sent to {goal}; how many is known after the dataset stage"
    if volume is not None:
        sub_path = plan.resource.spec.storage.sub_path or ""
        folder = volume / sub_path / plan.resource.dataset_dir
        counts = _counts(folder / "report.json")
        if counts is not None:
            windows, seconds = counts
            images = windows * _frames(captions, seconds / windows)
            answered = sum(1 for _ in (folder / _ANSWERED).glob("[!.]*.json"))
            text = f"about {windows} requests with {images} images are sent to {goal}"
            if answered:
                text += f", less those of {answered} answers on the volume that still apply"
    yield Check("captions", Verdict.OK, text)


def _counts(report: Path) -> tuple[int, float] | None:
    """Return the number of windows and their total seconds in a dataset's report, if any."""
    try:
        counts: Mapping[str, Any] = json.loads(report.read_bytes())["counts"]
        windows, seconds = int(counts["windows"]), float(counts["seconds"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return (windows, seconds) if windows > 0 and 0 <= seconds < 1e12 else None


def _frames(captions: CaptionsSpec, seconds: float) -> int:
    """Return the frames that are sent for a window of ``seconds``."""
    return min(max(2, round(seconds * captions.frames_per_second) + 1), captions.max_frames)
