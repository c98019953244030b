"""Cut a folder of videos, each with a caption in <stem>.txt, into captioned windows."""

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
from video2world_common.folder_locks import owned_folder
from video2world_common.markers import Provenance
from video2world_common.paths import on_volume
from video2world_common.sharding import shard_flags, shard_of
from video2world_common.stage_runner import run_stage
from video2world_common.user_text import caption_in
from video2world_preprocess.dataset.held_out import (
    add_flag,
    add_requirement,
    choose_held_out,
    require_held_out,
)
from video2world_preprocess.dataset.records import leftover_folders
from video2world_preprocess.dataset.source import OneCaption, Source, cut_flags, cut_settings
from video2world_preprocess.dataset.splitter import split_all
from video2world_preprocess.dataset.windows import Window, window_name
from video2world_preprocess.item_faults import failed_items, reason_for
from video2world_preprocess.listing import entries, nearest, normalized, why_unusable
from video2world_preprocess.stage_report import Report

__all__ = ["main", "parser"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
# video formats that are not read, in addition to those that mimetypes knows
OTHER_VIDEO_SUFFIXES = (".mts", ".m2ts", ".ts", ".wmv", ".flv", ".mpg", ".3gp", ".mxf", ".ogv")
NOT_VIDEO_SUFFIXES = (
    ".json",
    ".csv",
    ".md",
    ".srt",
    ".vtt",
    ".jpg",
    ".png",
    ".xml",
    ".yaml",
    ".wav",
)
LONGEST_STEM = NAME_BYTES - name_bytes(window_name("", Window(0, 0, 1)) + ".mp4")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.videos",
        description=__doc__,
        epilog="example: python -m video2world_preprocess.videos --videos_dir my_videos "
        "--dataset_dir datasets/mine --val_names last_take",
        parents=[cut_flags(), shard_flags()],
    )
    flags.add_argument(
        "--videos_dir",
        type=Path,
        required=True,
        help=f"videos ({', '.join(VIDEO_SUFFIXES)}), each with a caption <stem>.txt",
    )
    flags.add_argument("--dataset_dir", type=Path, required=True, help="output folder")
    flags.add_argument(
        "--val_names",
        nargs="*",
        default=[],
        metavar="NAME",
        help="videos for validation, without extension (default: none)",
    )
    flags.add_argument(
        "--captions_optional",
        action="store_true",
        help="cut videos without a caption, too; the captions stage then writes them",
    )
    add_flag(flags, "videos")
    add_requirement(flags)
    return flags


class _VideoFolder:
    """The usable videos and captions of a folder; all other entries are reported."""

    def __init__(self, folder: Path, report: Report, *, captions_optional: bool = False) -> None:
        self._captions_optional = captions_optional
        self.videos: dict[str, Path] = {}
        self._report = report
        self._texts: dict[str, list[Path]] = {}  # by normalized stem
        self._used: set[Path] = set()
        self._dropped: dict[str, tuple[str, str]] = {}  # name and reason by stem
        others = []
        for path in entries(on_volume(folder)):
            suffix, reason = path.suffix.lower(), why_unusable(path)
            if suffix in VIDEO_SUFFIXES:
                if reason is None and path.stem in self.videos:
                    reason = f"{self.videos[path.stem].name} has the same name; rename"
                if reason is None and name_bytes(path.stem) > LONGEST_STEM:
                    reason = (
                        f"its name is too long for the names of its windows; rename it to at most "
                        f"{LONGEST_STEM} bytes without extension"
                    )
                if reason is None:
                    self.videos[path.stem] = path
                else:
                    self._drop("video", path, reason)
            elif suffix == ".txt" and reason is None:
                self._texts.setdefault(normalized(path.stem), []).append(path)
            else:
                others.append((path, reason))
        for path, reason in others:
            self._report_other(path, reason)
        self._folded = {stem.casefold(): paths[0] for stem, paths in self._texts.items()}

    def _drop(self, kind: str, path: Path, reason: str) -> None:
        self._dropped.setdefault(path.stem, (path.name, reason))
        self._report.drop(kind, path.name, reason)

    def _report_other(self, path: Path, reason: str | None) -> None:
        """Report an entry that is neither a readable caption nor a video of a known format."""
        suffix = path.suffix.lower()
        captioned = normalized(path.stem) in self._texts
        is_video = (mimetypes.guess_type(f"x{suffix}")[0] or "").startswith("video/")
        if path.is_dir() and not path.name.startswith("."):
            self._drop("folder", path, reason or "")
        elif suffix == ".txt" and path.stem not in self._dropped:
            self._drop("caption", path, reason or "")
        elif (
            is_video
            or suffix in OTHER_VIDEO_SUFFIXES
            or (captioned and suffix not in NOT_VIDEO_SUFFIXES)
        ):
            self._drop(
                "video",
                path,
                reason
                or (
                    f"{path.suffix} videos are not read; convert it to .mp4 "
                    f"(ffmpeg -i {path.name} -c copy {path.stem}.mp4)"
                ),
            )
        else:
            reason = reason or "is not read: neither a video nor a caption"
            self._report.note("file", path.name, reason)

    def caption(self, video: Path) -> str:
        """Return the caption of ``video``; if captions are optional, a missing one is empty.

        The extension may be in capitals, and names are compared in Unicode's composed form.

        Raises:
            UserError: there is none, or it is unusable.
        """
        wanted = f"{video.stem}.txt"
        matching = self._texts.get(normalized(video.stem), [])
        if not matching and self._captions_optional:
            return ""
        if not matching:
            raise UserError(
                f"its caption {wanted} is missing; write one next to it{self._suggestion(video)}"
            )
        path = min(matching, key=lambda t: (t.stem != video.stem, t.name != wanted, t.name))
        self._used.add(path)
        try:
            return caption_in(on_volume(path).read_bytes())
        except ValueError as error:
            raise UserError(f"its caption {path.name} {error}") from None

    def _suggestion(self, video: Path) -> str:
        """Suggest a file that may be the caption of ``video``."""
        for stem in (video.name, video.stem):
            other = self._folded.get(normalized(stem).casefold())
            if other is not None:
                return f", or rename {other.name}"
        return ""

    def report_unused_captions(self) -> None:
        """Report captions that belong to no video."""
        by_stem = {normalized(stem): path.name for stem, path in self.videos.items()}
        by_stem |= {normalized(stem): name for stem, (name, _) in self._dropped.items()}
        for path in itertools.chain.from_iterable(self._texts.values()):
            if path in self._used:
                continue
            if (video := by_stem.get(normalized(path.stem))) is not None:
                self._report.note("caption", path.name, f"is not used for {video}")
            else:
                self._drop("caption", path, "there is no video with this name")

    def stems_of(self, names: Sequence[str]) -> list[str]:
        """Return the stems of the videos that the user names, with or without extension.

        Raises:
            UserError: there is no video of one of the ``names``.
        """
        found, unknown = [], []
        for name in names:
            stem = Path(name).stem if Path(name).suffix.lower() in VIDEO_SUFFIXES else name
            equal = [v for v in self.videos if normalized(v) == normalized(stem)]
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
            if name in self._dropped:
                hints += f"; {': '.join(self._dropped[name])}"
            elif (meant := nearest(name, self.videos)) is not None:
                quoted = ' (write it in quotes: "' + meant + '")' if meant.isdigit() else ""
                hints += f"; did you mean {meant}{quoted}?"
        return hints


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]] | None:
    settings, shard = cut_settings(args), shard_of(args)
    made = Provenance.of(args.videos_dir)
    if not args.videos_dir.is_dir():
        raise UserError(f"--videos_dir {args.videos_dir}: there is no such folder")
    report = Report("dataset")
    videos = _VideoFolder(args.videos_dir, report, captions_optional=args.captions_optional)
    if not videos.videos:
        why = f"; {len(report.dropped)} entries cannot be used, see above" if report.dropped else ""
        raise UserError(
            f"--videos_dir {args.videos_dir}: no video ({', '.join(VIDEO_SUFFIXES)}){why}"
        )
    val_stems = videos.stems_of(args.val_names)
    held_out = {*val_stems, *choose_held_out(videos.videos, args.val_percent)}
    sources = []
    for path in videos.videos.values():
        try:
            caption, status = OneCaption(videos.caption(path)), path.stat()
        except (UserError, OSError) as error:
            report.drop("video", path.name, reason_for(error, args.dataset_dir))
            continue
        split = "val" if path.stem in held_out else "train"
        origin = f"{status.st_size}-{status.st_mtime_ns}"
        sources.append(Source(path.stem, "video", path, split, caption, origin))
    videos.report_unused_captions()
    folder = args.dataset_dir
    with owned_folder(
        folder,
        {
            "videos": str(args.videos_dir),
            "val_names": val_stems,
            **({"val_percent": args.val_percent} if args.val_percent else {}),
            **asdict(settings),
        },
        "give another dataset.videos.name (--dataset_dir)",
        leftovers=leftover_folders(folder),
        shared=shard.count > 1,
    ) as made.owned:
        done = split_all(folder, sources, settings, args.workers, shard, report)
    if done is None:
        return None
    require_held_out(args, folder, report.counts)
    made.outputs, summary = done
    made.failed = failed_items(report)
    return made, summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="dataset")


if __name__ == "__main__":
    sys.exit(main())
