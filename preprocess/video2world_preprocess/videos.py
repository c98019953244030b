"""A user's own videos with captions (``<stem>.txt`` beside each) in, captioned windows out."""

from __future__ import annotations

import argparse
import itertools
import mimetypes
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.files import NAME_BYTES, name_bytes
from video2world_common.folder_locks import claimed
from video2world_common.markers import Provenance
from video2world_common.paths import on_volume
from video2world_common.sharding import share_flags, share_of
from video2world_common.stage import run_stage
from video2world_common.user_text import caption_in
from video2world_preprocess.dataset.records import leftover_places
from video2world_preprocess.dataset.source import OneCaption, Source, rule_of, window_flags
from video2world_preprocess.dataset.splitter import split_all
from video2world_preprocess.dataset.windows import Window, window_name
from video2world_preprocess.item_faults import failed_items, reason_for
from video2world_preprocess.listing import entries, nearest, same_letters, why_unusable
from video2world_preprocess.stage_report import Report

__all__ = ["main", "parser"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
# endings of videos that are not read, beside those that the system knows to be of videos
MORE_VIDEO_SUFFIXES = (".mts", ".m2ts", ".ts", ".wmv", ".flv", ".mpg", ".3gp", ".mxf", ".ogv")
NO_VIDEOS = (".json", ".csv", ".md", ".srt", ".vtt", ".jpg", ".png", ".xml", ".yaml", ".wav")
LONGEST_STEM = NAME_BYTES - name_bytes(window_name("", Window(0, 0, 1)) + ".mp4")


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


class _Folder:
    """What a folder of videos holds: each entry is used, or named in the report."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.videos: dict[str, Path] = {}
        self._report = report
        self._texts: dict[str, list[Path]] = {}  # by the letters of the stem
        self._used: set[Path] = set()
        self._left_out: dict[str, tuple[str, str]] = {}  # by stem: name and reason
        others = []
        for path in entries(on_volume(folder)):
            suffix, reason = path.suffix.lower(), why_unusable(path)
            if suffix in VIDEO_SUFFIXES:
                if reason is None and path.stem in self.videos:
                    reason = f"{self.videos[path.stem].name} has the same name; rename"
                if reason is None and name_bytes(path.stem) > LONGEST_STEM:
                    reason = (
                        f"its name is too long for those of its windows; rename it to at most "
                        f"{LONGEST_STEM} bytes without its ending"
                    )
                if reason is None:
                    self.videos[path.stem] = path
                else:
                    self._drop("video", path, reason)
            elif suffix == ".txt" and reason is None:
                self._texts.setdefault(same_letters(path.stem), []).append(path)
            else:
                others.append((path, reason))
        for path, reason in others:
            self._name_other(path, reason)
        self._folded = {stem.casefold(): paths[0] for stem, paths in self._texts.items()}

    def _drop(self, kind: str, path: Path, reason: str) -> None:
        self._left_out.setdefault(path.stem, (path.name, reason))
        self._report.drop(kind, path.name, reason)

    def _name_other(self, path: Path, reason: str | None) -> None:
        """Name an entry that is neither a readable caption nor has the ending of a video."""
        suffix = path.suffix.lower()
        captioned = same_letters(path.stem) in self._texts
        is_video = (mimetypes.guess_type(f"x{suffix}")[0] or "").startswith("video/")
        if path.is_dir() and not path.name.startswith("."):
            self._drop("folder", path, reason or "")
        elif suffix == ".txt" and path.stem not in self._left_out:
            self._drop("caption", path, reason or "")
        elif is_video or suffix in MORE_VIDEO_SUFFIXES or (captioned and suffix not in NO_VIDEOS):
            self._drop(
                "video",
                path,
                reason
                or (
                    f"videos that end in {path.suffix} are not read; convert it to .mp4 "
                    f"(ffmpeg -i {path.name} -c copy {path.stem}.mp4)"
                ),
            )
        else:
            self._report.note("file", path.name, reason or "is not read: no video and no caption")

    def caption(self, video: Path) -> str:
        """Return the caption of ``video``.

        ``.txt`` may be in capitals, and an accent in either of its two spellings in Unicode.

        Raises:
            UserError: there is none.
        """
        wanted = f"{video.stem}.txt"
        fitting = self._texts.get(same_letters(video.stem), [])
        if not fitting:
            raise UserError(
                f"its caption {wanted} is missing; write one beside it{self._meant(video)}"
            )
        path = min(fitting, key=lambda t: (t.stem != video.stem, t.name != wanted, t.name))
        self._used.add(path)
        try:
            return caption_in(on_volume(path).read_bytes())
        except ValueError as error:
            raise UserError(f"its caption {path.name} {error}") from None

    def _meant(self, video: Path) -> str:
        """Name a file that may have been meant as the caption of ``video``."""
        for stem in (video.name, video.stem):
            other = self._folded.get(same_letters(stem).casefold())
            if other is not None:
                return f", or rename {other.name}"
        return ""

    def name_unused(self) -> None:
        """Name the captions that no video has."""
        by_stem = {same_letters(stem): path.name for stem, path in self.videos.items()}
        by_stem |= {same_letters(stem): name for stem, (name, _) in self._left_out.items()}
        for path in itertools.chain.from_iterable(self._texts.values()):
            if path in self._used:
                continue
            if (video := by_stem.get(same_letters(path.stem))) is not None:
                self._report.note("caption", path.name, f"is not used for {video}")
            else:
                self._drop("caption", path, "there is no video of this name")

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Return the stems of the videos that the user calls ``names``.

        Raises:
            UserError: one of them is none.
        """
        found, unknown = [], []
        for name in names:
            stem = Path(name).stem if Path(name).suffix.lower() in VIDEO_SUFFIXES else name
            equal = [v for v in self.videos if same_letters(v) == same_letters(stem)]
            exact = [v for v in self.videos if v in (name, stem)]
            found += exact or equal
            if not exact and not equal:
                unknown.append(stem)
        if unknown:
            raise UserError(
                f"--val_names {' '.join(unknown)}: not among the videos, which are "
                f"{', '.join(list(self.videos)[:20])}" + self._hints(unknown)
            )
        return list(dict.fromkeys(found))

    def _hints(self, unknown: Sequence[str]) -> str:
        hints = ""
        for name in unknown:
            if name in self._left_out:
                hints += f"; {': '.join(self._left_out[name])}"
            elif (meant := nearest(name, self.videos)) is not None:
                quoted = ' (write it in quotes: "' + meant + '")' if meant.isdigit() else ""
                hints += f"; did you mean {meant}{quoted}?"
        return hints


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]] | None:
    rule, share = rule_of(args), share_of(args)
    made = Provenance.of(args.videos_dir)
    if not args.videos_dir.is_dir():
        raise UserError(f"--videos_dir {args.videos_dir}: there is no such folder")
    report = Report("dataset")
    folder_in = _Folder(args.videos_dir, report)
    if not folder_in.videos:
        why = f"; {len(report.dropped)} entries cannot be used, see above" if report.dropped else ""
        raise UserError(
            f"--videos_dir {args.videos_dir}: no video ({', '.join(VIDEO_SUFFIXES)}){why}"
        )
    args.val_names = folder_in.chosen(args.val_names)
    sources = []
    for path in folder_in.videos.values():
        try:
            caption, status = OneCaption(folder_in.caption(path)), path.stat()
        except (UserError, OSError) as error:
            report.drop("video", path.name, reason_for(error, args.dataset_dir))
            continue
        split = "val" if path.stem in args.val_names else "train"
        origin = f"{status.st_size}-{status.st_mtime_ns}"
        sources.append(Source(path.stem, "video", path, split, caption, origin))
    folder_in.name_unused()
    settings = {"videos": str(args.videos_dir), "val_names": args.val_names, **asdict(rule)}
    remedy = "give another dataset.videos.name (--dataset_dir)"
    folder = args.dataset_dir
    with claimed(
        folder, settings, remedy, leftovers=leftover_places(folder), shared=share.count > 1
    ) as made.owned:
        if (done := split_all(folder, sources, rule, args.workers, share, report)) is None:
            return None
    made.outputs, summary = done
    made.failed = failed_items(report)
    return made, summary


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="dataset")


if __name__ == "__main__":
    sys.exit(main())
