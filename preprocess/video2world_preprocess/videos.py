"""A user's own videos with captions (``<stem>.txt`` beside each) in, captioned windows out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .claims import claimed
from .dataset import OneCaption, Source, leftover_places, rule_of, split_all, window_flags
from .links import on_volume
from .report import Report
from .shares import share_flags, share_of
from .stage import UserError, run_stage

__all__ = ["main", "parser"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.videos",
        description=__doc__,
        epilog="example: python -m video2world_preprocess.videos --videos_dir my_videos "
        "--dataset_dir datasets/mine --val_names last_take",
        parents=[window_flags(), share_flags()],
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
        text = on_volume(path).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise UserError(f"its caption {path.name} is missing; write one beside it") from None
    except UnicodeDecodeError:
        raise UserError(f"its caption {path.name} is not UTF-8 text; save it as UTF-8") from None
    if not text:
        raise UserError(f"its caption {path.name} is empty; write what the video shows")
    return text


def _work(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]] | None:
    rule, share = rule_of(args), share_of(args)
    if not args.videos_dir.is_dir():
        raise UserError(f"--videos_dir {args.videos_dir}: there is no such folder")
    report = Report("dataset")
    videos: dict[str, Path] = {}
    for path in sorted(on_volume(args.videos_dir).iterdir()):
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
            caption, status = OneCaption(_caption(path)), path.stat()
        except UserError as error:
            report.drop("video", path.name, str(error))
            continue
        split = "val" if path.stem in args.val_names else "train"
        origin = f"{status.st_size}-{status.st_mtime_ns}"
        sources.append(Source(path.stem, "video", path, split, caption, origin))
    settings = {"videos": str(args.videos_dir), "val_names": args.val_names, **asdict(rule)}
    remedy = "give another dataset.videos.name (--dataset_dir)"
    folder = args.dataset_dir
    with claimed(
        folder, settings, remedy, leftovers=leftover_places(folder), shared=share.count > 1
    ):
        summary = split_all(folder, sources, rule, args.workers, share, report)
    return summary and ([str(folder / "report.json")], summary)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="dataset")


if __name__ == "__main__":
    sys.exit(main())
