"""Give the pods of a Job GPUs of their own on this machine, as the nodes of a cluster do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from video2world_operator.api.constants import GPU

__all__ = ["gpu_shares", "visible_gpus"]


def visible_gpus() -> list[str]:
    """Return the GPUs that a local run may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [one.strip() for one in named.split(",") if one.strip()]
    if (smi := shutil.which("nvidia-smi")) is None:
        return []
    asked = [smi, "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split()


def gpu_shares(pod: Mapping[str, Any], count: int, gpus: Sequence[str]) -> list[str]:
    """Divide ``gpus`` between ``count`` pods of a Job.

    Returns:
        ``CUDA_VISIBLE_DEVICES`` of each pod; empty if the pods request none or there are too few,
        so that they share all that are visible.
    """
    limits = (pod["containers"][0].get("resources") or {}).get("limits") or {}
    each = int(limits.get(GPU, 0))
    if not each or each * count > len(gpus):
        return []
    return [",".join(gpus[each * index : each * (index + 1)]) for index in range(count)]
