"""Define a source video, its captions and the settings it is cut with."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from video2world_common.exit_codes import UserError
from video2world_preprocess.dataset.windows import Window

__all__ = ["Captions", "OneCaption", "Rule", "Source", "Tally", "rule_of", "window_flags"]

WORKERS = int(os.environ.get("V2W_WORKERS") or len(os.sched_getaffinity(0)))


class Captions(Protocol):
    """What the windows of one source video show; equal captions have equal ``repr``."""

    @property
    def missing(self) -> str:
        """Why a window has no caption."""

    def text(self, name: str, window: Window, fps: Fraction) -> str | None:
        """The caption of ``window``, published as ``name``, or None."""


@dataclass(frozen=True)
class OneCaption:
    """One text for all windows of a video."""

    caption: str
    missing: str = ""

    def text(self, name: str, window: Window, fps: Fraction) -> str | None:
        """The text."""
        return self.caption


@dataclass(frozen=True)
class Rule:
    """How videos are cut."""

    window_seconds: float = 5.0
    min_last_seconds: float = 7.5
    min_frames: int = 94


@dataclass(frozen=True)
class Source:
    """A video to cut, before anything is known of its content.

    ``name`` begins the names of its clips; ``origin`` changes when its content does; a video that
    is ``passing`` is deleted once its windows are whole.
    """

    name: str
    kind: str
    path: Path
    split: str
    captions: Captions
    origin: str
    passing: bool = False

    def cut_by(self, rule: Rule) -> str:
        """Names all that decides the pictures of the clips."""
        return _digest([asdict(rule), self.split, self.origin])

    def told_by(self, rule: Rule) -> str:
        """Names all that decides the clips and their captions."""
        return _digest([self.cut_by(rule), repr(self.captions)])


@dataclass
class Tally:
    """What this run did, beside what the records hold of all runs."""

    new_windows: int = 0
    removed_windows: int = 0


def window_flags() -> argparse.ArgumentParser:
    """The flags of every command that cuts videos, to be a parent of its parser."""
    flags, rule = argparse.ArgumentParser(add_help=False), Rule()
    flags.add_argument(
        "--window-size",
        type=float,
        default=rule.window_seconds,
        metavar="SECONDS",
        help="length of a window (default: %(default)s)",
    )
    flags.add_argument(
        "--min-last-window",
        type=float,
        default=rule.min_last_seconds,
        metavar="SECONDS",
        help="a rest of at most this length is one last window (default: %(default)s)",
    )
    flags.add_argument(
        "--min_frames",
        type=int,
        default=rule.min_frames,
        metavar="N",
        help="shorter windows are merged or dropped; training on 93 frames needs "
        "94 with upstream's loader (default: %(default)s)",
    )
    flags.add_argument(
        "--workers",
        type=int,
        default=WORKERS,
        metavar="N",
        help="videos cut at the same time (default: V2W_WORKERS, else the CPUs, %(default)s)",
    )
    return flags


def rule_of(args: argparse.Namespace) -> Rule:
    """The rule that :func:`window_flags` ask for.

    Raises:
        UserError: one of them is out of range.
    """
    if not args.window_size > 0:
        raise UserError(f"--window-size {args.window_size}: give a length above 0 seconds")
    if not args.min_last_window >= 0:
        raise UserError(f"--min-last-window {args.min_last_window}: give 0 seconds or more")
    for flag, value in (("--min_frames", args.min_frames), ("--workers", args.workers)):
        if value < 1:
            raise UserError(f"{flag} {value}: give a number of 1 or more")
    return Rule(args.window_size, args.min_last_window, args.min_frames)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]
