"""Choose the camera of a LeRobotDataset, before a run (preflight) and in it (the lerobot command).

The features are those of ``meta/info.json`` in https://github.com/huggingface/lerobot
(``lerobot/datasets/utils.py``), as written by many programs: nothing about them is certain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from video2world_common.exit_codes import UserError

__all__ = ["Feature", "cameras_of", "choose_camera", "why_depth"]

_DEPTH_NAME = re.compile(r"(?:^|[._\-/])depth(?:$|[._\-/]|\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Feature:
    """A camera: ``kind`` is video or image; ``depth`` says why it is taken for depth, or is empty.

    Depth cannot be trained on: its values are distances, not colors.
    """

    kind: str
    depth: str = ""


def cameras_of(features: Mapping[str, Any]) -> dict[str, Feature]:
    """Return the cameras among the ``features`` of ``meta/info.json``."""
    return {
        name: Feature(entry["dtype"], why_depth(name, entry))
        for name, entry in features.items()
        if isinstance(entry, dict) and entry.get("dtype") in ("video", "image")
    }


def why_depth(name: str, feature: Mapping[str, Any]) -> str:
    """Return why a camera is taken for depth, or nothing."""
    details: dict[str, Any] = {}
    for key in ("video_info", "info"):
        if isinstance(feature.get(key), dict):
            details |= feature[key]
    if details.get("is_depth_map") or details.get("video.is_depth_map"):
        return "meta/info.json marks it as a depth map"
    pixels = str(details.get("video.pix_fmt") or details.get("pix_fmt") or "")
    if re.match(r"gray(9|1[0-6]|f)", pixels):
        return f"its pixel format {pixels} is that of depth maps"
    if "depth_unit" in details or "depth_unit" in feature:
        return "meta/info.json gives its depth unit"
    if _DEPTH_NAME.search(name):
        return "its name says so"
    return ""


def choose_camera(cameras: Mapping[str, Feature], wanted: str | None) -> str:
    """Return the key of the camera ``wanted``, which may be its last part; the only one without it.

    Raises:
        UserError: there is no such camera, several, or it is depth.
    """
    colors = [name for name, camera in cameras.items() if not camera.depth]
    listed = ", ".join(colors) or "none"
    depth = [name for name, camera in cameras.items() if camera.depth]
    more = f" (and depth, which cannot be used: {', '.join(depth)})" if depth else ""
    if wanted is None:
        if len(colors) == 1:
            return colors[0]
        raise UserError(f"--camera is missing: the dataset's cameras are {listed}{more}")
    named = [name for name in cameras if name == wanted]
    named = named or [name for name in cameras if name.rpartition(".")[2] == wanted]
    if not named:
        raise UserError(f"--camera {wanted}: the dataset's cameras are {listed}{more}")
    if len(named) > 1:
        raise UserError(f"--camera {wanted}: several match, give one of {', '.join(named)}")
    if reason := cameras[named[0]].depth:
        raise UserError(
            f"--camera {named[0]} is depth ({reason}), and the model is trained on colors: the "
            f"dataset's color cameras are {listed}"
        )
    return named[0]
