"""What is written beside a generated video: contact sheet, prompt, and the figures (docs)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from video2world_preprocess.files import write_json, write_text
from video2world_preprocess.video import write_video

from .conditioning import Condition
from .contact_sheet import write_contact_sheet
from .metrics import lpips, psnr, ssim

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
    target: Path, video: np.ndarray, fps: int, condition: Condition, title: str,
    summary: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write ``target`` and the files beside it, the ``.json`` last; the finished summary.

    Args:
        target: the ``.mp4``.
        video: uint8 [T, H, W, 3].
        fps: frames a second.
        condition: what it started from and the truth, if any.
        title: of the contact sheet.
        summary: what else the ``.json`` tells; ``timings`` is completed here.
    """
    started = time.perf_counter()
    write_video(target, video, fps)
    rows = {"input": condition.given}
    if condition.truth is not None:
        rows["ground truth"] = condition.truth
    rows["generated"] = video
    write_contact_sheet(target.with_suffix(".png"), rows, fps, title=title)
    write_text(target.with_suffix(".txt"), summary["prompt"] + "\n")
    whole = dict(summary)
    whole["timings"] = summary["timings"] | {"write": round(time.perf_counter() - started, 3)}
    metrics = compared(video, condition)
    whole["metrics"] = metrics
    if metrics is not None:
        whole |= {
            "psnr": metrics["psnr"],
            "psnr_frames": metrics["frames"],
            "psnr_of_repeating_the_input": metrics["repeating_the_input"]["psnr"],
        }
    write_json(target.with_suffix(".json"), whole)
    return whole
