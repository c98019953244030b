"""Write a generated video, its contact sheet, prompt, and settings with metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from video2world_common.files import write_json, write_text
from video2world_preprocess.video.writer import write_video
from video2world_trainer.generation.action_trace import ActionTrace
from video2world_trainer.generation.conditioning import Conditioning
from video2world_trainer.generation.contact_sheet import write_contact_sheet
from video2world_trainer.generation.quality_metrics import lpips, psnr, ssim

__all__ = ["Compare", "compare", "write_sample"]


Distance = Callable[[np.ndarray, np.ndarray], float | str]
Compare = Callable[[np.ndarray, Conditioning], dict[str, Any] | None]


def compare(
    video: np.ndarray, condition: Conditioning, distance_of: Distance = lpips
) -> dict[str, Any] | None:
    """Compute the metrics of the generated frames for which there is a ground truth.

    The conditioning frames are left out. PSNR is None if two videos are equal, as JSON has no
    infinity.

    Args:
        video: the generated clip, uint8 [T, H, W, 3].
        condition: its conditioning frames and ground truth.
        distance_of: computes LPIPS, or says why it cannot.

    Returns:
        The ``metrics`` of the sample's ``.json`` (docs/inference.md); None without ground truth.
    """
    given = len(condition.frames)
    if condition.ground_truth is None:
        return None
    truth = condition.ground_truth[given:]
    generated = video[given : given + len(truth)]
    repeated = np.broadcast_to(condition.frames[-1:], truth.shape)
    distance = distance_of(generated, truth)
    missing = {"lpips_missing": distance} if isinstance(distance, str) else {}
    return {
        "frames": len(truth),
        "psnr": _round_psnr(psnr(generated, truth)),
        "ssim": round(ssim(generated, truth), 4),
        "lpips": None if isinstance(distance, str) else round(distance, 4),
        **missing,
        "repeating_the_input": {
            "psnr": _round_psnr(psnr(repeated, truth)),
            "ssim": round(ssim(repeated, truth), 4),
        },
    }


def _round_psnr(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def write_sample(
    target: Path,
    parts: Iterator[np.ndarray],
    fps: int,
    condition: Conditioning,
    title: str,
    summary: Mapping[str, Any],
    peak_memory: Callable[[], float | None],
    measure: Compare,
    actions: ActionTrace | None = None,
) -> dict[str, Any]:
    """Write ``target`` and the files next to it, the ``.json`` last.

    Args:
        target: the ``.mp4``.
        parts: the video in parts along time, uint8 [t, H, W, 3]; each is encoded while the next is
            decoded from latents.
        fps: frames per second.
        condition: conditioning frames and ground truth.
        title: title of the contact sheet.
        summary: facts for the ``.json``, to which timings, metrics and others are added. Its
            ``timings`` may have a ``decode`` of earlier clips.
        peak_memory: returns the peak memory of the device in GiB.
        measure: computes the metrics of the video.
        actions: that the video follows, for the contact sheet.

    Returns:
        The content of the ``.json``.
    """
    marks = [time.perf_counter()]
    kept: list[np.ndarray] = []

    def keep_parts() -> Iterator[np.ndarray]:
        for part in parts:
            kept.append(part)
            yield part
        marks.append(time.perf_counter())

    write_video(target, keep_parts(), fps)
    video = np.concatenate(kept)
    rows = {"input": condition.frames}
    if condition.ground_truth is not None:
        rows["ground truth"] = condition.ground_truth
    rows["generated"] = video
    write_contact_sheet(target.with_suffix(".png"), rows, fps, title=title, actions=actions)
    write_text(target.with_suffix(".txt"), summary["prompt"] + "\n")
    marks.append(time.perf_counter())
    decode, write = np.diff(marks).round(3).tolist()
    complete = dict(summary) | {
        "frames": len(video),
        "seconds": round(sum(summary["timings"].values()) + decode, 3),
        "timings": summary["timings"]
        | {"decode": round(summary["timings"].get("decode", 0) + decode, 3), "write": write},
        "peak_memory_gib": peak_memory(),
        "metrics": measure(video, condition),
    }
    write_json(target.with_suffix(".json"), complete)
    return complete
