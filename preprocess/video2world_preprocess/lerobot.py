"""Turn a LeRobotDataset (v2.0, v2.1 or v3.0) into captioned windows of one camera.

The dataset is read from the Hugging Face Hub, where only the metadata and the camera's files are
downloaded, or from a folder. Its version is recognized by its files. A file with many episodes is
decoded once.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.folder_locks import owned_folder
from video2world_common.markers import Provenance, file_stamps
from video2world_common.paths import on_volume
from video2world_common.sharding import shard_flags, shard_of
from video2world_common.stage_runner import run_stage
from video2world_preprocess.actions.selection import action_flags, action_selection
from video2world_preprocess.dataset.held_out import add_flag, add_requirement, require_held_out
from video2world_preprocess.dataset.lerobot_actions import find_actions
from video2world_preprocess.dataset.lerobot_captions import CAPTIONS
from video2world_preprocess.dataset.lerobot_cutter import cut_dataset
from video2world_preprocess.dataset.lerobot_dataset import (
    EpisodeNumbers,
    LeRobotDataset,
    Selection,
    find_episodes,
)
from video2world_preprocess.dataset.lerobot_files import FolderFiles, HubFiles, check_subfolder
from video2world_preprocess.dataset.records import leftover_folders
from video2world_preprocess.dataset.source import cut_flags, cut_settings
from video2world_preprocess.flags import note_unused_flags
from video2world_preprocess.item_faults import failed_items
from video2world_preprocess.stage_report import Report

__all__ = ["main", "parser"]

EPILOG = """\
folders:
  DATASET_DIR/{train,val}/{videos,metas}, report.{json,html}   the result
  DATASET_DIR/actions.json, {train,val}/actions               with --actions
  DATASET_DIR/.lerobot                                         downloads, deleted once they are cut

examples:
  python -m video2world_preprocess.lerobot --repo_id lerobot/aloha_mobile_cabinet \\
      --camera cam_high --val_episode_ids 80-84 --dataset_dir datasets/cabinet
  python -m video2world_preprocess.lerobot --data_dir my_dataset --camera observation.images.top \\
      --caption File --caption_file captions.csv --dataset_dir datasets/mine
  python -m video2world_preprocess.lerobot --data_dir my_dataset --camera top \\
      --actions action --dataset_dir datasets/mine_with_actions
"""
TEMPORARY = ".lerobot"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.lerobot",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[
            cut_flags(),
            shard_flags(),
            action_flags("the dataset's columns of numbers, such as action"),
        ],
    )
    place = flags.add_mutually_exclusive_group(required=True)
    place.add_argument("--repo_id", help="dataset on the Hugging Face Hub, as OWNER/NAME")
    place.add_argument("--data_dir", type=Path, help="folder that has the dataset's meta/")
    flags.add_argument(
        "--revision", help="commit, tag or branch of the dataset on the Hub (default: main)"
    )
    flags.add_argument(
        "--subfolder",
        default="",
        metavar="FOLDER",
        help="folder of the dataset in a repository that has several (default: its root)",
    )
    flags.add_argument(
        "--camera",
        metavar="KEY",
        help="camera to use, such as observation.images.top or top (default: the only one)",
    )
    flags.add_argument(
        "--episode_ids",
        nargs="+",
        default=[],
        metavar="ID",
        help="episodes to use: numbers, or ranges such as 0-99 (default: all)",
    )
    flags.add_argument(
        "--val_episode_ids",
        nargs="+",
        default=[],
        metavar="ID",
        help="episodes for validation, written likewise (default: none)",
    )
    add_flag(flags, "episodes")
    flags.add_argument(
        "--caption",
        choices=CAPTIONS,
        default="Task",
        help="captions from the episodes' tasks, or from --caption_file; with Endpoint, the tasks "
        "are hints for the captions stage (default: %(default)s)",
    )
    flags.add_argument(
        "--caption_file",
        type=Path,
        help="captions by episode: JSON Lines or .csv with episode_index and caption",
    )
    flags.add_argument("--dataset_dir", type=Path, required=True, help="output folder")
    add_requirement(flags)
    return flags


def _selection(args: argparse.Namespace) -> Selection:
    """Return what the flags select.

    Raises:
        UserError: a flag is invalid.
    """
    if args.caption == "File" and args.caption_file is None:
        raise UserError("--caption File: give the file as --caption_file")
    for path in (args.data_dir, args.caption_file):
        on_volume(path or Path())
    if args.data_dir is not None and not args.data_dir.is_dir():
        raise UserError(f"--data_dir {args.data_dir}: there is no such folder")
    if args.repo_id is not None and args.repo_id.count("/") != 1:
        raise UserError(f"--repo_id {args.repo_id}: give OWNER/NAME")
    return Selection(
        args.repo_id or str(args.data_dir),
        args.camera,
        EpisodeNumbers.parse("--episode_ids", args.episode_ids),
        EpisodeNumbers.parse("--val_episode_ids", args.val_episode_ids),
        args.caption,
        args.caption_file if args.caption == "File" else None,
        args.val_percent,
    )


def _inputs(args: argparse.Namespace, root: Path | None) -> Provenance:
    """Return the files on the volume that decide the result, as they are before the work."""
    if root is None:
        made = Provenance()
    else:
        below = ("meta", "videos", "data")
        parents = {path.parent for name in below for path in (root / name).rglob("*.*")}
        made = Provenance.of(*sorted(map(str, parents)))
    if args.caption == "File":
        made.files = file_stamps([args.caption_file])
    return made


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]] | None:
    settings, shard, wanted = cut_settings(args), shard_of(args), _selection(args)
    selection = action_selection(args)
    subfolder, folder = check_subfolder(args.subfolder), args.dataset_dir
    if args.data_dir is not None:
        note_unused_flags(args, parser(), ["revision"], "with --data_dir")
    if args.caption != "File":
        note_unused_flags(args, parser(), ["caption_file"], f"with --caption {args.caption}")
    report = Report("dataset")
    temporary = folder / TEMPORARY / str(shard)
    files: HubFiles | FolderFiles
    if args.repo_id is not None:
        files, root = HubFiles(args.repo_id, args.revision, subfolder, temporary), None
    else:
        files = FolderFiles(args.data_dir, subfolder)
        root = files.root
    made = _inputs(args, root)
    recorded = ("repo_id", "revision", "camera", "episode_ids", "val_episode_ids", "caption")
    with owned_folder(
        folder,
        {
            **{name: getattr(args, name) for name in recorded},
            "path": str(args.data_dir or ""),
            "subfolder": subfolder,
            "caption_file": str(wanted.caption_file or ""),
            **({"val_percent": args.val_percent} if args.val_percent else {}),
            **asdict(settings),
            **(selection.settings() if selection else {}),
        },
        "give another dataset.lerobot.name (--dataset_dir)",
        leftovers=leftover_folders(folder),
        shared=shard.count > 1,
    ) as made.owned:
        data = find_episodes(files, wanted, report)
        _count(report, data, files)
        actions = None
        if selection is not None:
            actions = find_actions(files, data, selection, wanted.name, report)
        done = cut_dataset(
            data, files, root, folder, settings, args.workers, shard, report, actions
        )
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # other shards have theirs
            temporary.parent.rmdir()
    if done is None:
        return None
    require_held_out(args, folder, report.counts)
    made.outputs, summary = done
    made.failed = failed_items(report)
    return made, summary


def _count(report: Report, data: LeRobotDataset, files: HubFiles | FolderFiles) -> None:
    report.counts |= {"format": data.version, "camera": data.camera}
    if isinstance(files, HubFiles):
        report.counts["commit"] = files.commit


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="dataset")


if __name__ == "__main__":
    sys.exit(main())
