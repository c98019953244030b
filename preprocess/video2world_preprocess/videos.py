"""A user's own videos with captions (``<stem>.txt`` beside each) in, captioned windows out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dataset import Clip, Source, check_window_flags, publish, window_flags
from .report import Report
from .stage import UserError, run_stage
from .video import probe
from .windows import cut_points, window_name

__all__ = ["main", "parser"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.videos",
        description=__doc__,
        epilog="example: python -m video2world_preprocess.videos --videos_dir my_videos "
        "--dataset_dir datasets/mine --val_names last_take",
        parents=[window_flags()],
    )
    flags.add_argument(
        "--videos_dir",
        type=Path,
        required=True,
        help=f"videos ({', '.join(VIDEO_SUFFIXES)}), each with a caption <stem>.txt",
    )
    flags.add_argument("--dataset_dir", type=Path, required=True, help="where the windows go")
    flags.add_argument(
        "--val_names",
        nargs="*",
        default=[],
        metavar="NAME",
        help="videos for validation, without suffix (default: none)",
    )
    return flags


def _caption(video: Path) -> str:
    path = video.with_suffix(".txt")
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise UserError(f"its caption {path.name} is missing; write one beside it") from None
    except UnicodeDecodeError:
        raise UserError(f"its caption {path.name} is not UTF-8 text; save it as UTF-8") from None
    if not text:
        raise UserError(f"its caption {path.name} is empty; write what the video shows")
    return text


def _source(args: argparse.Namespace, video: Path, report: Report) -> Source:
    caption, info = _caption(video), probe(video)
    windows, remarks = cut_points(
        info.frames,
        info.fps,
        window_seconds=args.window_size,
        min_last_seconds=args.min_last_window,
        min_frames=args.min_frames,
    )
    if not windows:
        raise UserError(
            f"{info.frames} frames are shorter than one window (--min_frames {args.min_frames})"
        )
    for remark in remarks:
        report.note("video", video.name, remark)
    clips = tuple(Clip(window_name(video.stem, w), w, caption) for w in windows)
    return Source(video, info, "val" if video.stem in args.val_names else "train", clips)


def _work(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    check_window_flags(args)
    if not args.videos_dir.is_dir():
        raise UserError(f"--videos_dir {args.videos_dir}: there is no such folder")
    report = Report("dataset")
    videos: dict[str, Path] = {}
    for path in sorted(args.videos_dir.iterdir()):
        if not path.is_file() or path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        if path.stem in videos:
            report.drop("video", path.name, f"{videos[path.stem].name} has the same name; rename")
        else:
            videos[path.stem] = path
    if not videos:
        raise UserError(f"--videos_dir {args.videos_dir}: no video ({', '.join(VIDEO_SUFFIXES)})")
    args.val_names = [
        Path(n).stem if Path(n).suffix.lower() in VIDEO_SUFFIXES else n for n in args.val_names
    ]
    unknown = [name for name in args.val_names if name not in videos]
    if unknown:
        raise UserError(
            f"--val_names {' '.join(unknown)}: not among the videos, which are "
            f"{', '.join(list(videos)[:20])}"
        )
    sources = []
    for path in videos.values():
        try:
            sources.append(_source(args, path, report))
        except UserError as error:
            report.drop("video", path.name, str(error))
    return [str(args.dataset_dir / "report.json")], publish(args.dataset_dir, sources, report)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="dataset")


if __name__ == "__main__":
    sys.exit(main())
