"""What is written beside a generated video: contact sheet, prompt, and the figures (docs)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from video2world_common.files import write_json, write_text
from video2world_preprocess.video.writer import write_video
from video2world_trainer.generation.conditioning import Condition
from video2world_trainer.generation.contact_sheet import write_contact_sheet
from video2world_trainer.generation.quality_metrics import lpips, psnr, ssim

__all__ = ["compared", "write_sample"]


def compared(video: np.ndarray, condition: Condition) -> dict[str, Any] | None:
    """The metrics of the frames that were not given, as far as the truth goes; None without one.

    ``psnr`` is null where two videos are equal, as JSON has no infinity.
    """
    given = len(condition.given)
    if condition.truth is None:
        return None
    truth = condition.truth[given:]
    made = video[given : given + len(truth)]
    held = np.broadcast_to(condition.given[-1:], truth.shape)
    distance = lpips(made, truth)
    missing = {"lpips_missing": distance} if isinstance(distance, str) else {}
    return {
        "frames": len(truth),
        "psnr": _decibel(psnr(made, truth)),
        "ssim": round(ssim(made, truth), 4),
        "lpips": None if isinstance(distance, str) else round(distance, 4),
        **missing,
        "repeating_the_input": {
            "psnr": _decibel(psnr(held, truth)),
            "ssim": round(ssim(held, truth), 4),
        },
    }


def _decibel(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def write_sample(
    target: Path,
    parts: Iterator[np.ndarray],
    fps: int,
    condition: Condition,
    title: str,
    summary: Mapping[str, Any],
    peak_memory: Callable[[], float | None],
) -> dict[str, Any]:
    """Write ``target`` and the files beside it, the ``.json`` last; the finished summary.

    Args:
        target: the ``.mp4``.
        parts: the video in parts along time, uint8 [t, H, W, 3]; each is coded while the next is
            decoded.
        fps: frames a second.
        condition: what it started from and the truth, if any.
        title: of the contact sheet.
        summary: what else the ``.json`` tells; ``timings``, ``seconds`` and ``frames`` are
            completed here.
        peak_memory: GiB that the device has held so far.
    """
    marks = [time.perf_counter()]
    kept: list[np.ndarray] = []

    def passing() -> Iterator[np.ndarray]:
        for part in parts:
            kept.append(part)
            yield part
        marks.append(time.perf_counter())

    write_video(target, passing(), fps)
    video = np.concatenate(kept)
    rows = {"input": condition.given}
    if condition.truth is not None:
        rows["ground truth"] = condition.truth
    rows["generated"] = video
    write_contact_sheet(target.with_suffix(".png"), rows, fps, title=title)
    write_text(target.with_suffix(".txt"), summary["prompt"] + "\n")
    marks.append(time.perf_counter())
    decode, write = np.diff(marks).round(3).tolist()
    metrics = compared(video, condition)
    whole = dict(summary) | {
        "frames": len(video),
        "seconds": round(sum(summary["timings"].values()) + decode, 3),
        "timings": summary["timings"] | {"decode": decode, "write": write},
        "peak_memory_gib": peak_memory(),
        "metrics": metrics,
    }
    if metrics is not None:
        whole |= {
            "psnr": metrics["psnr"],
            "psnr_frames": metrics["frames"],
            "psnr_of_repeating_the_input": metrics["repeating_the_input"]["psnr"],
        }
    write_json(target.with_suffix(".json"), whole)
    return whole
