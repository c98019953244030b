"""The guide's chapter 1: AgiBotWorld-Alpha archives in, captioned windows of one camera out.

Flags and file names are those of upstream's prepare_agibot_fisheye_data.py (facts sheet §4.1),
with ``--prepare``, ``--local``, ``--min_frames``, ``--caption_file``, ``--revision``,
``--dataset_dir``, ``--workers`` and ``--shards`` added. Unlike it, archives are read where they
are, every step can be repeated and goes on where it was stopped, the validation episodes get their
captions, and bad input is an error, not a line in a log.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.files import remove_leftovers
from video2world_common.folder_locks import claimed
from video2world_common.markers import Listings, Provenance, file_stamps
from video2world_common.paths import on_volume
from video2world_common.sharding import Share, share_flags, share_of
from video2world_common.stage import run_stage
from video2world_preprocess.archives.extract import Archive, Fetch, find_archives
from video2world_preprocess.archives.tar_scan import Member
from video2world_preprocess.dataset.agibot_source import (
    _episodes,
    _extracted,
    _name,
    _observations,
    _Origin,
    _task_info,
    _usual_captions,
    _Words,
    clean,
)
from video2world_preprocess.dataset.records import leftover_places
from video2world_preprocess.dataset.source import Rule, Source, rule_of, window_flags
from video2world_preprocess.dataset.splitter import Splitter, finish, split_all
from video2world_preprocess.flags import note_without_effect
from video2world_preprocess.item_faults import failed_items
from video2world_preprocess.stage_report import Report

__all__ = ["main", "parser"]

USUAL_CAMERA = "head_center_fisheye_color"
EPILOG = """\
modes (the first that is given; without one: extract and clean):
  --prepare      everything: read the archives, cut each video as it arrives, keep the windows
  --delete-only  clean only: remove what the camera does not need from extracted episodes
  --split-only   split extracted episodes into windows, with captions

folders:
  DATA_DIR/observations/TASK/*.tar                           archives, with --local or --keep_tar
  DATA_DIR/observations/TASK/EPISODE/videos/CAMERA.mp4       what is extracted (not by --prepare)
  DATA_DIR/task_info/task_TASK.json                          source of composed captions
  DATASET_DIR/{train,val}/{videos,metas}, report.{json,html} what is made

example:
  python -m video2world_preprocess.agibot --prepare --task_ids 327 --val_episode_ids 685393
"""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.agibot",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[window_flags(), share_flags()],
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
        help="where archives and extracted episodes lie (default: %(default)s)",
    )
    flags.add_argument(
        "--repo_id",
        default="agibot-world/AgiBotWorld-Alpha",
        help="Hugging Face data set (default: %(default)s)",
    )
    flags.add_argument("--revision", help="commit or tag of the data set (default: the newest)")
    flags.add_argument(
        "--camera",
        default=USUAL_CAMERA,
        help="the camera to keep (default: %(default)s)",
    )
    flags.add_argument(
        "--val_episode_ids",
        nargs="+",
        default=[],
        metavar="ID",
        help="episodes for validation (default: none)",
    )
    flags.add_argument(
        "--dataset_dir",
        type=Path,
        help="where the windows go (default: agibot_CAMERA beside DATA_DIR)",
    )
    flags.add_argument(
        "--caption_file",
        type=Path,
        help="captions, one JSON object a line (default: agibot_CAMERA.jsonl beside "
        "DATA_DIR if there is one, else composed from task_info)",
    )
    flags.add_argument(
        "--keep_tar",
        "--keep-source",
        action="store_true",
        help="download archives whole and keep them, instead of reading them where they are",
    )
    flags.add_argument(
        "--local",
        action="store_true",
        help="the archives are already in DATA_DIR: nothing is downloaded",
    )
    mode = flags.add_mutually_exclusive_group()
    mode.add_argument("--prepare", action="store_true", help="download, extract, clean and split")
    mode.add_argument("--delete-only", action="store_true", help="clean only")
    mode.add_argument("--split-only", action="store_true", help="split only")
    return flags


def _source(
    args: argparse.Namespace, words: _Words, task: int, episode: int, path: Path, origin: str
) -> Source | None:
    """An episode to cut; None if it has no captions."""
    captions = words.of(task, episode)
    if captions is None:
        return None
    split = "val" if str(episode) in args.val_episode_ids else "train"
    passing = not args.split_only
    return Source(_name(task, episode), "episode", path, split, captions, origin, passing)


def _check_validation(
    args: argparse.Namespace, known: set[int], without_camera: Iterable[int] = ()
) -> None:
    """Raise a UserError unless all validation episodes are ``known``."""
    unknown = [episode for episode in args.val_episode_ids if int(episode) not in known]
    if unknown:
        listed = sorted(known)
        more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
        blind = [episode for episode in unknown if int(episode) in without_camera]
        why = f"; {', '.join(blind)}: no video of camera {args.camera}" if blind else ""
        raise UserError(
            f"--val_episode_ids {' '.join(unknown)}: not among the episodes, which are "
            f"{', '.join(map(str, listed[:20]))}{more}{why}"
        )


def _name_without_camera(
    args: argparse.Namespace, task: int, fetch: Fetch, report: Report
) -> set[int]:
    """Name and return the episodes of which the archives have no video of the camera."""
    for episode, archive in fetch.without_camera.items():
        reason = f"no video of camera {args.camera} in {archive}"
        report.drop("episode", _name(task, episode), reason)
    return set(fetch.without_camera)


def _passing(args: argparse.Namespace) -> Path:
    """Where videos wait to be cut."""
    return Path(args.dataset_dir) / ".passing" / str(args.share)


def _claim(
    args: argparse.Namespace, rule: Rule
) -> contextlib.AbstractContextManager[dict[str, dict[str, Any]]]:
    chosen = ("task_ids", "camera", "repo_id", "revision", "val_episode_ids", "caption_file")
    settings = {name: getattr(args, name) for name in chosen} | asdict(rule)
    settings["caption_file"] = str(args.caption_file or "")
    if args.local:
        settings["path"] = str(args.data_dir)
    folder = args.dataset_dir
    return claimed(
        folder,
        settings,
        "give another dataset.agibot.name (--dataset_dir)",
        leftovers=[*leftover_places(folder), folder / ".archives", _passing(args)],
        shared=args.share.count > 1,
    )


def _inputs(args: argparse.Namespace) -> Provenance:
    """What lies on the volume before the work, and decides what comes of it."""
    if args.local or args.split_only:
        made = Provenance.of(*(_observations(args, task) for task in args.task_ids))
        made.files = file_stamps(_task_info(args, task) for task in args.task_ids)
    else:
        made = Provenance()  # archives and captions are the Hub's
    made.files |= file_stamps([args.caption_file or _usual_captions(args)])
    return made


def _prepare(
    args: argparse.Namespace, report: Report, made: Provenance
) -> tuple[Listings, dict[str, Any]] | None:
    """Cut every video as it comes out of its archive; None if others still have to.

    Raises:
        UserError: no video of the camera, unknown validation episodes, or no training window.
    """
    rule, folder, origin = rule_of(args), args.dataset_dir, _Origin(args, report)
    archives = {}
    for task in args.task_ids:
        archives[task] = origin.archives(task)
        if not archives[task]:
            raise _nothing(args, task, report)
        origin.fetch_task_info(task)
    words, passing = _Words(args, report), _passing(args)
    if (listed := words.episodes()) is not None:
        _check_validation(args, listed)  # now, not after hours
    with _claim(args, rule) as made.owned, Splitter(folder, rule, args.workers) as splitter:

        def source(task: int, archive: Archive, m: Member) -> Source | None:
            path = passing / f"{_name(task, m.episode)}.mp4"
            identity = f"{archive.name}/{archive.identity}/{m.episode}/{m.size}"
            if args.camera != USUAL_CAMERA:  # without it, as earlier versions recorded the usual
                identity += f"/{args.camera}"
            return _source(args, words, task, m.episode, path, identity)

        def fetch_of(task: int) -> Fetch:
            return Fetch(
                archives[task],
                folder / ".archives",
                args.camera,
                target=lambda m: passing / f"{_name(task, m.episode)}.mp4",
                wanted=lambda archive, m: splitter.lacks(source(task, archive, m)),
                share=args.share,
                arrived=lambda archive, m: splitter.submit(source(task, archive, m)),
                admit=splitter.admit,
                dismiss=splitter.dismiss,
            )

        fetches = {task: fetch_of(task) for task in args.task_ids}
        for fetch in fetches.values():
            fetch.run(report.stage)
        found = {task: fetch.members(report) for task, fetch in fetches.items()}
        splitter.wait()
        names, known = [], set()
        without_camera: set[int] = set()
        for task, members in found.items():
            if members is None:
                return None
            if not members:
                raise _nothing(args, task, report, fetches[task].cameras)
            without_camera |= _name_without_camera(args, task, fetches[task], report)
            known |= {m.episode for _, m in members}
            for episode in sorted({m.episode for _, m in members}):
                copies = [source(task, a, m) for a, m in members if m.episode == episode]
                if len(copies) > 1:
                    reason = f"it is in {len(copies)} places of the archives; one is taken"
                    report.note("episode", _name(task, episode), reason)
                if copies[0] is None:
                    report.drop("episode", _name(task, episode), words.why_none(task))
                elif any(splitter.is_done(copy) for copy in copies if copy):
                    names.append(_name(task, episode))
                else:
                    return None  # another shard is still at it, and will be the last
        _check_validation(args, known, without_camera)
        shutil.rmtree(passing.parent, ignore_errors=True)
        report.counts["transferred_bytes"] = origin.transferred
        return finish(folder, names, report, splitter.tally)


def _split(
    args: argparse.Namespace, report: Report, made: Provenance
) -> tuple[Listings, dict[str, Any]] | None:
    """Cut the episodes that lie extracted in the data folder.

    Raises:
        UserError: as :func:`_prepare`.
    """
    rule, folder = rule_of(args), args.dataset_dir
    episodes = {task: [int(e.name) for e in _episodes(args, task)] for task in args.task_ids}
    videos = {
        (task, episode): path
        for task, numbers in episodes.items()
        for episode in numbers
        if (path := _extracted(args, task, episode)).is_file()
    }
    for task, numbers in episodes.items():
        find_archives(_observations(args, task), report)  # names what is no episode either
        for episode in numbers:
            if (task, episode) not in videos:
                path = _extracted(args, task, episode)
                reason = f"no video of camera {args.camera} ({path})"
                report.drop("episode", _name(task, episode), reason)
        if not any(t == task for t, _ in videos):
            raise _nothing(args, task, report)
    seen = {episode for numbers in episodes.values() for episode in numbers}
    _check_validation(args, {episode for _, episode in videos}, seen)
    words, sources = _Words(args, report), []
    for (task, episode), path in videos.items():
        status = path.stat()
        origin = f"{status.st_size}-{status.st_mtime_ns}"
        video = _source(args, words, task, episode, path, origin)
        if video is None:
            report.drop("episode", _name(task, episode), words.why_none(task))
        else:
            sources.append(video)
    with _claim(args, rule) as made.owned:
        return split_all(folder, sources, rule, args.workers, args.share, report)


def _nothing(
    args: argparse.Namespace, task: int, report: Report, cameras: Iterable[str] = ()
) -> UserError:
    there = f" (there are {', '.join(sorted(cameras))})" if cameras else ""
    return UserError(
        f"--task_ids {task}: there is no video of camera {args.camera} for it in "
        f"{_observations(args, task)}; run with --prepare, or put archives there and add --local; "
        f"check --camera{there}" + _reasons(report)
    )


def _reasons(report: Report) -> str:
    lines = [f"{p.kind} {p.item}: {p.reason}" for p in report.dropped[:3]]
    return "; dropped: " + "; ".join(lines) if lines else ""


def _extract(args: argparse.Namespace, report: Report) -> None:
    """The guide's own first step: the camera's videos, extracted into the data folder.

    Raises:
        UserError: there is no such video.
    """
    origin, state = _Origin(args, report), Path(args.data_dir) / ".archives"
    remove_leftovers(state)
    for task in args.task_ids:
        origin.fetch_task_info(task)

        def target(m: Member, task: int = task) -> Path:
            return _extracted(args, task, m.episode)

        def wanted(archive: Archive, m: Member, target: Any = target) -> bool:
            path = target(m)
            return not (path.is_file() and path.stat().st_size == m.size)

        fetch = Fetch(origin.archives(task), state, args.camera, target, wanted, Share())
        fetch.run(report.stage)
        if not fetch.members(report):
            raise _nothing(args, task, report, fetch.cameras)
        _name_without_camera(args, task, fetch, report)


_OF_THE_HUB = ("repo_id", "revision", "keep_tar")
_OF_SPLITTING = (
    "window_size",
    "min_last_window",
    "min_frames",
    "workers",
    "val_episode_ids",
    "dataset_dir",
    "caption_file",
    "shards",
    "shard",
)


def _note_flags(args: argparse.Namespace) -> None:
    """Note the flags that the mode does not read."""
    names: tuple[str, ...]
    if args.delete_only:
        names, why = (*_OF_THE_HUB, *_OF_SPLITTING, "local"), "with --delete-only"
    elif args.split_only:
        names, why = (*_OF_THE_HUB, "local"), "with --split-only"
    else:
        names, why = _OF_THE_HUB if args.local else (), "with --local"
        if not args.prepare:
            note_without_effect(args, parser(), _OF_SPLITTING, "without --prepare or --split-only")
    note_without_effect(args, parser(), names, why)


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]] | None:
    _note_flags(args)
    rule_of(args)
    if Path(args.camera).name != args.camera:
        raise UserError(f"--camera {args.camera}: give a name such as head_center_fisheye_color")
    for path in (args.data_dir, args.caption_file):
        on_volume(Path(path or "."))
    args.share = share_of(args)
    for episode in args.val_episode_ids:
        if not (episode.isascii() and episode.isdigit()):
            raise UserError(f"--val_episode_ids {episode}: give episode numbers")
    args.task_ids = list(dict.fromkeys(args.task_ids))
    args.dataset_dir = args.dataset_dir or Path(args.data_dir).parent / f"agibot_{args.camera}"
    report = Report("dataset")
    if args.prepare or args.split_only:
        made = _inputs(args)
        done = (_prepare if args.prepare else _split)(args, report, made)
        if done is None:
            return None
        made.outputs, summary = done
        made.failed = failed_items(report)
        return made, summary
    if not args.delete_only:
        _extract(args, report)
    removed = sum(clean(args, task) for task in args.task_ids)
    report.counts["removed_by_cleaning"] = removed
    report.counts["episodes"] = sum(len(_episodes(args, task)) for task in args.task_ids)
    report.show()
    return Provenance.of(), report.summary()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="dataset")


if __name__ == "__main__":
    sys.exit(main())
