"""Publishes windows as a dataset folder: {train,val}/{videos,metas}, and a report of what is in it.

Repeatable: what is there and whole is kept, what an earlier run of other settings made is removed,
and what the user put there is left alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .events import Progress
from .files import read_json, write_json, write_text
from .report import Report
from .stage import UserError
from .video import VideoInfo, cut, probe
from .windows import Window

__all__ = ["SPLITS", "Clip", "Source", "check_window_flags", "publish", "window_flags"]

SPLITS = ("train", "val")
DERIVED = (("t5_xxl", ".pickle"), ("latents", ".safetensors"))  # later stages' files of a clip


@dataclass(frozen=True)
class Clip:
    """One window to publish under ``name`` (file stem) with its caption."""

    name: str
    window: Window
    caption: str


@dataclass(frozen=True)
class Source:
    """A video, the split it belongs to, and the clips to cut from it."""

    path: Path
    info: VideoInfo
    split: str
    clips: tuple[Clip, ...]


def window_flags() -> argparse.ArgumentParser:
    """The flags of every command that cuts videos, to be a parent of its parser."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument(
        "--window-size",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="length of a window (default: %(default)s)",
    )
    flags.add_argument(
        "--min-last-window",
        type=float,
        default=7.5,
        metavar="SECONDS",
        help="a rest of at most this length is one last window (default: %(default)s)",
    )
    flags.add_argument(
        "--min_frames",
        type=int,
        default=94,
        metavar="N",
        help="shorter windows are merged or dropped; training on 93 frames needs "
        "94 with upstream's loader (default: %(default)s)",
    )
    return flags


def check_window_flags(args: argparse.Namespace) -> None:
    """Refuse lengths that cut nothing.

    Raises:
        UserError: one of :func:`window_flags` is out of range.
    """
    if not args.window_size > 0:
        raise UserError(f"--window-size {args.window_size}: give a length above 0 seconds")
    if not args.min_last_window >= 0:
        raise UserError(f"--min-last-window {args.min_last_window}: give 0 seconds or more")
    if args.min_frames < 1:
        raise UserError(f"--min_frames {args.min_frames}: give a number of 1 or more")


def _video(folder: Path, split: str, name: str) -> Path:
    return folder / split / "videos" / f"{name}.mp4"


def _meta(folder: Path, split: str, name: str) -> Path:
    return folder / split / "metas" / f"{name}.txt"


def _forget(folder: Path, split: str, name: str, kinds: Sequence[str]) -> None:
    """Remove a clip's files that later stages derived, so that they are made anew."""
    for subfolder, suffix in DERIVED:
        if subfolder in kinds:
            (folder / split / subfolder / f"{name}{suffix}").unlink(missing_ok=True)


def _remove(folder: Path, split: str, name: str) -> None:
    _video(folder, split, name).unlink(missing_ok=True)
    _meta(folder, split, name).unlink(missing_ok=True)
    _forget(folder, split, name, ("t5_xxl", "latents"))


def _is_done(target: Path, source: Source, clip: Clip) -> bool:
    """Whether ``target`` is there, newer than its source, and of the window's length."""
    if not target.is_file() or target.stat().st_mtime_ns < source.path.stat().st_mtime_ns:
        return False
    try:
        info = probe(target)
    except UserError:
        return False
    return info.frames == clip.window.frames and info.fps == source.info.fps


def _earlier(report_file: Path) -> set[tuple[str, str]]:
    """What earlier runs made, by their report; only plain names of our splits are believed."""
    try:
        files = (read_json(report_file) or {}).get("files", {})
        pairs = {(split, str(name)) for split in SPLITS for name in files.get(split, [])}
    except (ValueError, AttributeError, TypeError):
        return set()
    return {(split, name) for split, name in pairs if name and "/" not in name}


def _write_report(path: Path, report: Report, files: set[tuple[str, str]], state: str) -> None:
    listed = {split: sorted(name for s, name in files if s == split) for split in SPLITS}
    write_json(path, {"state": state, "files": listed, **report.as_json()})


def publish(folder: Path, sources: Sequence[Source], report: Report) -> dict[str, Any]:
    """Cut and caption all clips of ``sources`` into ``folder``; returns the report's summary.

    A source that cannot be decoded to its end loses the clips from there on, by name.

    Raises:
        UserError: nothing is left to train on.
        OSError: the disk is full, or the like; finished clips stay, and the next run goes on.
    """
    report_file = folder / "report.json"
    earlier = _earlier(report_file)
    planned = {(source.split, clip.name) for source in sources for clip in source.clips}
    # Both are on record before anything is made: a run killed halfway leaves nothing unowned.
    _write_report(report_file, report, earlier | planned, "in progress")
    for split, name in sorted(earlier - planned):
        _remove(folder, split, name)
    for split in SPLITS:
        for kind in ("videos", "metas"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            for leftover in (folder / split / kind).glob(".partial-*"):
                leftover.unlink(missing_ok=True)

    done: set[tuple[str, str]] = set()
    frames, seconds, new = 0, 0.0, 0
    progress = Progress(report.stage, len(planned), "windows")
    for source in sources:
        targets = {_video(folder, source.split, clip.name): clip for clip in source.clips}
        missing = [
            (clip.window.start, clip.window.stop, target)
            for target, clip in targets.items()
            if not _is_done(target, source, clip)
        ]
        broken: set[Path] = {target for *_, target in missing}
        for *_, target in missing:
            _forget(folder, source.split, targets[target].name, ("latents",))
        try:
            for target in cut(source.path, missing):
                broken.discard(target)
                new += 1
                progress.advance()
        except UserError as error:
            for target in sorted(broken, key=lambda target: targets[target].window.start):
                report.drop("window", targets[target].name, str(error))
        for target, clip in targets.items():
            if target in broken:
                _remove(folder, source.split, clip.name)
                continue
            meta = _meta(folder, source.split, clip.name)
            if not meta.is_file() or meta.read_text(encoding="utf-8") != clip.caption:
                _forget(folder, source.split, clip.name, ("t5_xxl",))
                write_text(meta, clip.caption)
            done.add((source.split, clip.name))
            frames += clip.window.frames
            seconds += float(clip.window.frames / source.info.fps)
        progress.advance(len(targets) - len(missing) + len(broken))

    used = [s for s in sources if any((s.split, clip.name) in done for clip in s.clips)]
    report.counts |= {
        "episodes": len(used),
        "windows": len(done),
        "new_windows": new,
        "train_windows": sum(split == "train" for split, _ in done),
        "val_windows": sum(split == "val" for split, _ in done),
        "removed_windows": len(earlier - planned),
        "frames": frames,
        "seconds": round(seconds, 3),
    }
    _write_report(report_file, report, done, "finished")
    report.show()
    if not report.counts["train_windows"]:
        raise UserError(
            f"{folder}: no window is left to train on ({len(report.dropped)} items dropped, "
            f"{report.counts['val_windows']} windows for validation); see {report_file} for the "
            "reasons"
        )
    return report.summary()
