"""Turn AgiBotWorld-Alpha archives into captioned windows of one camera.

This is chapter 1 of the guide. Flags and file names are those of the cosmos-predict2 repository's
scripts/prepare_agibot_fisheye_data.py, plus --prepare, --local, --min_frames, --caption_file,
--revision, --dataset_dir, --workers and --shards. Unlike that script, this command reads archives
over HTTP without storing them, can be run again to resume, writes captions for validation episodes
as well, and treats bad input as an error instead of a log message.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.markers import Provenance
from video2world_common.paths import on_volume
from video2world_common.sharding import shard_flags, shard_of
from video2world_common.stage_runner import run_stage
from video2world_preprocess.actions.selection import action_flags, action_selection
from video2world_preprocess.dataset.agibot_dataset import DEFAULT_CAMERA, AgiBotDataset
from video2world_preprocess.dataset.agibot_layout import AgiBotLayout
from video2world_preprocess.dataset.agibot_modes import extract, prepare, split
from video2world_preprocess.dataset.agibot_repository import AgiBotRepository
from video2world_preprocess.dataset.held_out import add_flag, add_requirement, require_held_out
from video2world_preprocess.dataset.source import cut_flags, cut_settings
from video2world_preprocess.flags import note_unused_flags
from video2world_preprocess.item_faults import failed_items
from video2world_preprocess.stage_report import Report

__all__ = ["main", "parser"]

EPILOG = """\
modes (the first one specified; without any: extract and clean):
  --prepare      do everything: read the archives, cut each video on the way, keep the windows
  --delete-only  clean only: remove what the camera does not need from extracted episodes
  --split-only   cut extracted episodes into windows with captions

folders:
  DATA_DIR/observations/TASK/*.tar                           archives, with --local or --keep_tar
  DATA_DIR/observations/TASK/EPISODE/videos/CAMERA.mp4       extracted videos (not with --prepare)
  DATA_DIR/task_info/task_TASK.json                          source of composed captions
  DATA_DIR/proprio_stats/TASK/EPISODE/proprio_stats.h5       with --actions; put there by you
  DATASET_DIR/{train,val}/{videos,metas}, report.{json,html} the result
  DATASET_DIR/actions.json, {train,val}/actions              with --actions

example:
  python -m video2world_preprocess.agibot --prepare --task_ids 327 --val_episode_ids 685393
"""
_HUB_FLAGS = ("repo_id", "revision", "keep_tar")
_SPLIT_FLAGS = (
    "window_size",
    "min_last_window",
    "min_frames",
    "workers",
    "val_episode_ids",
    "val_percent",
    "require_val",
    "dataset_dir",
    "caption_file",
    "actions",
    "action_names",
    "action_representation",
    "action_normalization",
    "shards",
    "shard",
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.agibot",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[
            cut_flags(),
            shard_flags(),
            action_flags("the fields of proprio_stats.h5, such as state/joint/position"),
        ],
    )
    flags.add_argument(
        "--task_ids",
        nargs="+",
        type=int,
        default=[327],
        metavar="ID",
        help="AgiBot tasks (default: 327)",
    )
    flags.add_argument(
        "--data_dir",
        type=Path,
        default=Path("datasets/agibot"),
        help="folder of archives and extracted episodes (default: %(default)s)",
    )
    flags.add_argument(
        "--repo_id",
        default="agibot-world/AgiBotWorld-Alpha",
        help="Hugging Face data set (default: %(default)s)",
    )
    flags.add_argument("--revision", help="commit or tag of the data set (default: the latest)")
    flags.add_argument(
        "--camera",
        default=DEFAULT_CAMERA,
        help="camera to keep (default: %(default)s)",
    )
    flags.add_argument(
        "--val_episode_ids",
        nargs="+",
        default=[],
        metavar="ID",
        help="episodes for validation (default: none)",
    )
    add_flag(flags, "episodes")
    add_requirement(flags)
    flags.add_argument(
        "--dataset_dir",
        type=Path,
        help="output folder (default: agibot_CAMERA next to DATA_DIR)",
    )
    flags.add_argument(
        "--caption_file",
        type=Path,
        help="captions as JSON Lines (default: agibot_CAMERA.jsonl next to DATA_DIR if it exists, "
        "else captions are composed from task_info)",
    )
    flags.add_argument(
        "--keep_tar",
        "--keep-source",
        action="store_true",
        help="download and keep complete archives instead of reading them over HTTP",
    )
    flags.add_argument(
        "--local",
        action="store_true",
        help="use the archives in DATA_DIR and download nothing",
    )
    mode = flags.add_mutually_exclusive_group()
    mode.add_argument("--prepare", action="store_true", help="download, extract, clean and split")
    mode.add_argument("--delete-only", action="store_true", help="clean only")
    mode.add_argument("--split-only", action="store_true", help="split only")
    return flags


def _note_flags(args: argparse.Namespace) -> None:
    """Report the flags that were set but that the mode does not use."""
    names: tuple[str, ...]
    if args.delete_only:
        names, why = (*_HUB_FLAGS, *_SPLIT_FLAGS, "local"), "with --delete-only"
    elif args.split_only:
        names, why = (*_HUB_FLAGS, "local"), "with --split-only"
    else:
        names, why = _HUB_FLAGS if args.local else (), "with --local"
        if not args.prepare:
            note_unused_flags(args, parser(), _SPLIT_FLAGS, "without --prepare or --split-only")
    note_unused_flags(args, parser(), names, why)


def _dataset(args: argparse.Namespace) -> AgiBotDataset:
    """Return the dataset that the flags specify.

    Raises:
        UserError: a flag is invalid.
    """
    settings = cut_settings(args)
    if Path(args.camera).name != args.camera:
        raise UserError(f"--camera {args.camera}: give a name such as {DEFAULT_CAMERA}")
    for path in (args.data_dir, args.caption_file):
        on_volume(Path(path or "."))
    shard = shard_of(args)
    for episode in args.val_episode_ids:
        if not (episode.isascii() and episode.isdigit()):
            raise UserError(f"--val_episode_ids {episode}: give episode numbers")
    report = Report("dataset")
    layout = AgiBotLayout(args.data_dir, args.camera)
    return AgiBotDataset(
        repository=AgiBotRepository(
            layout, args.repo_id, args.revision, args.local, args.keep_tar, report
        ),
        task_ids=list(dict.fromkeys(args.task_ids)),
        val_episode_ids=args.val_episode_ids,
        val_percent=args.val_percent,
        caption_file=args.caption_file,
        folder=args.dataset_dir or args.data_dir.parent / f"agibot_{args.camera}",
        settings=settings,
        workers=args.workers,
        shard=shard,
        report=report,
        selection=action_selection(args),
    )


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]] | None:
    _note_flags(args)
    data = _dataset(args)
    report = data.report
    if args.prepare or args.split_only:
        made = data.inputs(from_hub=args.prepare and not args.local)
        done = (prepare if args.prepare else split)(data, made)
        if done is None:
            return None
        require_held_out(args, data.folder, report.counts)
        made.outputs, summary = done
        made.failed = failed_items(report)
        return made, summary
    if not args.delete_only:
        extract(data)
    removed = sum(map(data.layout.clean, data.task_ids))
    report.counts["removed_by_cleaning"] = removed
    report.counts["episodes"] = sum(len(data.layout.episode_folders(t)) for t in data.task_ids)
    report.show()
    return Provenance.of(), report.summary()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="dataset")


if __name__ == "__main__":
    sys.exit(main())
