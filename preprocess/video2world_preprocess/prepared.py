"""Checks a dataset folder that somebody else prepared: {train,val}/{videos,metas}, equal stems.

Nothing in the folder is changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dataset import SPLITS
from .links import on_volume
from .report import Report
from .stage import UserError, run_stage
from .video import VideoInfo, probe

__all__ = ["check", "main", "parser"]


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.prepared", description=__doc__
    )
    flags.add_argument(
        "--dataset_dir",
        type=Path,
        required=True,
        help="folder with {train,val}/{videos/*.mp4,metas/*.txt}; val is optional",
    )
    flags.add_argument(
        "--min_frames",
        type=int,
        default=1,
        metavar="N",
        help="shorter videos are named as unusable (default: %(default)s)",
    )
    return flags


def _check_clip(split: Path, name: str, min_frames: int) -> VideoInfo:
    meta = split / "metas" / f"{name}.txt"
    try:
        if not on_volume(meta).read_text(encoding="utf-8").strip():
            raise UserError(f"its caption {meta} is empty")
    except FileNotFoundError:
        raise UserError(f"its caption {meta} is missing") from None
    except UnicodeDecodeError:
        raise UserError(f"its caption {meta} is not UTF-8 text") from None
    info = probe(split / "videos" / f"{name}.mp4")
    if info.frames < min_frames:
        raise UserError(f"{info.frames} frames, at least {min_frames} are needed")
    return info


def check(folder: Path, report: Report, min_frames: int = 1) -> dict[str, int]:
    """Number of usable clips by split; unusable ones are named in ``report``.

    Raises:
        UserError: the layout is another one, or nothing is left to train on.
    """
    on_volume(folder)
    for needed in (folder, folder / "train" / "videos", folder / "train" / "metas"):
        if not needed.is_dir():
            raise UserError(
                f"--dataset_dir {folder}: the folder {needed} is missing; a prepared dataset has "
                "train/videos/*.mp4 and train/metas/*.txt with equal names (val likewise)"
            )
    usable = dict.fromkeys(SPLITS, 0)
    frames, seconds = 0, 0.0
    for split in SPLITS:
        videos = {p.stem for p in (folder / split / "videos").glob("[!.]*.mp4")}
        metas = {p.stem for p in (folder / split / "metas").glob("[!.]*.txt")}
        for name in sorted(videos):
            try:
                info = _check_clip(folder / split, name, min_frames)
            except UserError as error:
                report.drop("clip", f"{split}/{name}", str(error))
                continue
            usable[split] += 1
            frames += info.frames
            seconds += info.seconds
        for name in sorted(metas - videos):
            report.drop("caption", f"{split}/metas/{name}.txt", "its video is missing")
    report.counts |= {
        "train_windows": usable["train"],
        "val_windows": usable["val"],
        "frames": frames,
        "seconds": round(seconds, 3),
    }
    report.show()
    if not usable["train"]:
        raise UserError(
            f"--dataset_dir {folder}: no usable clip in train "
            f"({len(report.dropped)} items are unusable, see above)"
        )
    return usable


def _work(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    report = Report("dataset")
    check(args.dataset_dir, report, args.min_frames)
    return [str(args.dataset_dir / "train")], report.summary()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="dataset")


if __name__ == "__main__":
    sys.exit(main())
