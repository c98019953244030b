"""A source video, its captions, and the settings it is cut with."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from video2world_common.exit_codes import UserError
from video2world_preprocess.dataset.windows import Window

__all__ = ["Captions", "CutSettings", "OneCaption", "Source", "cut_flags", "cut_settings"]

WORKERS = int(os.environ.get("V2W_WORKERS") or len(os.sched_getaffinity(0)))


class Captions(Protocol):
    """The captions of one source's windows; equal captions have equal ``repr``."""

    @property
    def missing(self) -> str:
        """Why a window has no caption."""

    def text(self, name: str, window: Window, fps: Fraction) -> str | None:
        """Return the caption of ``window``, whose clip is ``name``, or None."""


@dataclass(frozen=True)
class OneCaption:
    """One caption for all windows of a video."""

    caption: str
    missing: str = ""

    def text(self, name: str, window: Window, fps: Fraction) -> str | None:
        """Return the caption."""
        return self.caption


@dataclass(frozen=True)
class CutSettings:
    """How videos are cut into windows; see :func:`.windows.cut_points`."""

    window_seconds: float = 5.0
    min_last_seconds: float = 7.5
    min_frames: int = 94


@dataclass(frozen=True)
class Source:
    """A video to cut, described before it is read.

    ``name`` is the prefix of its clips' names and ``kind`` what reports call it. ``origin``
    identifies its content: it changes when the content does. A ``temporary`` video is deleted once
    its clips are complete. ``actions`` is the digest of all that decides its actions, empty if
    there are none. Of a video with more than ``most_frames``, the first ones are used, if it is
    not 0.
    """

    name: str
    kind: str
    path: Path
    split: str
    captions: Captions
    origin: str
    temporary: bool = False
    actions: str = ""
    most_frames: int = 0

    @property
    def label(self) -> str:
        """The name in reports."""
        return self.name if self.kind == "episode" else self.path.name

    def clips_digest(self, settings: CutSettings) -> str:
        """Return a digest of all that decides the clips."""
        return _digest([asdict(settings), self.split, self.origin])

    def result_digest(self, settings: CutSettings) -> str:
        """Return a digest of all that decides the clips and their captions."""
        return _digest([self.clips_digest(settings), repr(self.captions)])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


# flag: default, metavar, help
_FLAGS: dict[str, tuple[float, str, str]] = {
    "--window-size": (
        CutSettings.window_seconds,
        "SECONDS",
        "length of a window (default: %(default)s)",
    ),
    "--min-last-window": (
        CutSettings.min_last_seconds,
        "SECONDS",
        "a remainder of at most this length becomes one last window (default: %(default)s)",
    ),
    "--min_frames": (
        CutSettings.min_frames,
        "N",
        "merge or drop shorter windows; training on 93 frames needs 94 with upstream's data "
        "loader (default: %(default)s)",
    ),
    "--workers": (
        WORKERS,
        "N",
        "number of videos to cut in parallel (default: V2W_WORKERS, else the number of CPUs, "
        "%(default)s)",
    ),
}


def cut_flags() -> argparse.ArgumentParser:
    """Return a parent parser with the flags of every command that cuts videos."""
    flags = argparse.ArgumentParser(add_help=False)
    for name, (default, metavar, text) in _FLAGS.items():
        flags.add_argument(name, type=type(default), default=default, metavar=metavar, help=text)
    return flags


def cut_settings(args: argparse.Namespace) -> CutSettings:
    """Return the settings that the flags of :func:`cut_flags` specify.

    Raises:
        UserError: one of the flags is out of range.
    """
    checks: tuple[tuple[str, Any, bool, str], ...] = (
        ("--window-size", args.window_size, args.window_size > 0, "a length above 0 seconds"),
        ("--min-last-window", args.min_last_window, args.min_last_window >= 0, "0 seconds or more"),
        ("--min_frames", args.min_frames, args.min_frames >= 1, "a number of 1 or more"),
        ("--workers", args.workers, args.workers >= 1, "a number of 1 or more"),
    )
    for flag, value, is_valid, wanted in checks:
        if not is_valid:
            raise UserError(f"{flag} {value}: give {wanted}")
    return CutSettings(args.window_size, args.min_last_window, args.min_frames)
