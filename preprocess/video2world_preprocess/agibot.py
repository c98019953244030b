"""The guide's chapter 1: AgiBotWorld-Alpha archives in, captioned windows of one camera out.

Flags and file names are those of upstream's prepare_agibot_fisheye_data.py (facts sheet §4.1),
with ``--prepare``, ``--local``, ``--min_frames``, ``--caption_file``, ``--revision`` and
``--dataset_dir`` added. Unlike it, every step can be repeated and goes on where it was stopped,
the validation episodes get their captions, and bad input is an error, not a line in a log.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .archives import ARCHIVE_SUFFIXES, extract_camera, find_archives
from .captions import CaptionFile, EpisodeInfo, read_task_info
from .dataset import Clip, Source, check_window_flags, publish, window_flags
from .events import Progress, say
from .files import read_json, write_json
from .report import Report
from .stage import UserError, run_stage
from .video import probe
from .windows import cut_points, window_name

__all__ = ["clean", "extract", "main", "parser", "split"]

EPILOG = """\
modes (the first that is given; without one: download, extract, clean):
  --prepare      download, extract, clean and split: everything
  --delete-only  clean only: remove what the camera does not need from extracted episodes
  --split-only   split extracted episodes into windows, with captions

folders:
  DATA_DIR/observations/TASK/*.tar                           archives (deleted once extracted)
  DATA_DIR/observations/TASK/EPISODE/videos/CAMERA.mp4       what is extracted
  DATA_DIR/task_info/task_TASK.json                          source of composed captions
  DATASET_DIR/{train,val}/{videos,metas}, report.json        what is made

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
        parents=[window_flags()],
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
        default="head_center_fisheye_color",
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
        "--keep_tar", action="store_true", help="keep archives after their extraction"
    )
    flags.add_argument(
        "--local",
        action="store_true",
        help="the archives are already in DATA_DIR: no download, none deleted",
    )
    mode = flags.add_mutually_exclusive_group()
    mode.add_argument("--prepare", action="store_true", help="download, extract, clean and split")
    mode.add_argument("--delete-only", action="store_true", help="clean only")
    mode.add_argument("--split-only", action="store_true", help="split only")
    return flags


class _Ledger:
    """Which archives have been extracted in full, so that none is downloaded or read twice."""

    def __init__(self, data_dir: Path, camera: str) -> None:
        self._path = data_dir / f".extracted-{camera}.json"
        self._data_dir = data_dir
        try:
            entries = read_json(self._path)
        except ValueError:
            entries = None
        self._entries: dict[str, Any] = entries if isinstance(entries, dict) else {}

    def has(self, archive: str, identity: list[Any]) -> bool:
        """Whether ``archive`` of this identity was extracted and all its videos are there."""
        entry = self._entries.get(archive)
        return (
            isinstance(entry, dict)
            and entry.get("identity") == identity
            and all((self._data_dir / video).is_file() for video in entry["videos"])
        )

    def add(self, archive: str, identity: list[Any], videos: Sequence[Path]) -> None:
        """Record that ``archive`` gave ``videos``."""
        names = [str(video.relative_to(self._data_dir)) for video in videos]
        self._entries[archive] = {"identity": identity, "videos": names}
        write_json(self._path, self._entries)


def _observations(args: argparse.Namespace, task: int) -> Path:
    return Path(args.data_dir) / "observations" / str(task)


def _hub(args: argparse.Namespace, action: Any) -> Any:
    """Run ``action`` on the Hub; refusals are the user's to solve, outages are worth a retry."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"https://huggingface.co/datasets/{args.repo_id}"

    def unreachable(error: Exception) -> ConnectionError:
        return ConnectionError(
            f"{args.repo_id}: the Hub cannot be reached ({error}); check the network, or put the "
            f"archives into {args.data_dir}/observations/<task>/ and use --local"
        )

    try:
        return action()
    except GatedRepoError as error:
        raise UserError(
            f"--repo_id {args.repo_id}: the data set is gated. Accept its terms at {where} and "
            "give a token of that account in HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"--revision {args.revision}: {args.repo_id} has no such revision"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"--repo_id {args.repo_id}: no such data set, or HF_TOKEN may not see it; check {where}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise unreachable(error) from error
    except EntryNotFoundError:  # no such folder in the data set: the caller's to explain
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(
                f"--repo_id {args.repo_id}: access refused ({status}). Accept the terms at {where} "
                "and give a token of that account in HF_TOKEN"
            ) from error
        raise ConnectionError(f"{args.repo_id}: the Hub answers {status}; try again") from error
    except Exception as error:
        # the Hub's client hands transport errors through; its library is httpx or httpx2
        if type(error).__module__.startswith("httpx"):
            raise unreachable(error) from error
        raise


def _download_and_extract(args: argparse.Namespace, task: int, report: Report) -> None:
    """One archive at a time (about 48 GB each), so that the disk never holds two."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def get(name: str) -> None:
        # one file by name: snapshot_download would list the whole data set first, each time
        _hub(
            args,
            lambda: hf_hub_download(
                args.repo_id,
                name,
                repo_type="dataset",
                revision=args.revision,
                local_dir=args.data_dir,
            ),
        )

    try:
        get(f"task_info/task_{task}.json")
    except EntryNotFoundError:  # a caption file may do instead; splitting tells if it does not
        report.note("task", str(task), f"{args.repo_id} has no task_info of it")
    api = HfApi()
    try:
        entries = _hub(
            args,
            lambda: list(
                api.list_repo_tree(
                    args.repo_id,
                    f"observations/{task}",
                    repo_type="dataset",
                    revision=args.revision,
                )
            ),
        )
    except EntryNotFoundError:
        entries = []
    archives = {
        e.path: [args.revision, getattr(e, "blob_id", None)]
        for e in entries
        if e.path.endswith(ARCHIVE_SUFFIXES)
    }
    if not archives:
        raise UserError(f"--task_ids {task}: {args.repo_id} has no archives of this task")
    ledger = _Ledger(args.data_dir, args.camera)
    for name, identity in sorted(archives.items()):
        if ledger.has(name, identity):
            say(f"{name}: extracted before")
            continue
        say(f"{name}: downloading")
        get(name)
        _extract_one(args, Path(args.data_dir) / name, name, identity, ledger, report)


def _extract_one(
    args: argparse.Namespace,
    archive: Path,
    name: str,
    identity: list[Any],
    ledger: _Ledger,
    report: Report,
) -> None:
    videos, whole = extract_camera(archive, archive.parent, args.camera, report)
    say(f"{name}: {len(videos)} videos of {args.camera}")
    if whole:
        ledger.add(name, identity, videos)
        if not videos:
            report.note("archive", name, f"no video of camera {args.camera} in it")
    if not (args.keep_tar or args.local):
        archive.unlink()  # a damaged one, too: the next run downloads it again


def extract(args: argparse.Namespace, task: int, report: Report) -> None:
    """Extract the camera from the archives of ``task`` that lie in the data folder."""
    archives = find_archives(_observations(args, task))
    ledger = _Ledger(args.data_dir, args.camera)
    progress = Progress(report.stage, len(archives), "archives")
    for archive in archives:
        name = str(archive.relative_to(args.data_dir))
        status = archive.stat()
        identity = [status.st_size, status.st_mtime_ns]
        if not ledger.has(name, identity):
            _extract_one(args, archive, name, identity, ledger, report)
        progress.advance()


def _episodes(args: argparse.Namespace, task: int) -> list[Path]:
    folder = _observations(args, task)
    if not folder.is_dir():
        return []
    return sorted(
        (p for p in folder.iterdir() if p.is_dir() and p.name.isascii() and p.name.isdigit()),
        key=lambda p: int(p.name),
    )


def clean(args: argparse.Namespace, task: int, report: Report) -> int:
    """Remove all of the extracted episodes but the camera's video; returns how much was removed.

    As the guide has it: every sub-directory of an episode except ``videos/``, and every other
    mp4 in ``videos/``. Links are removed, never followed.
    """
    removed = 0
    for episode in _episodes(args, task):
        for entry in episode.iterdir():
            if entry.name != "videos" and entry.is_dir():
                if entry.is_symlink():
                    entry.unlink()
                else:
                    shutil.rmtree(entry)
                removed += 1
        videos = episode / "videos"
        if videos.is_symlink() or not videos.is_dir():
            continue
        for video in videos.glob("*.mp4"):
            if video.name != f"{args.camera}.mp4":
                video.unlink()
                removed += 1
    if removed:
        say(f"task {task}: removed {removed} folders and videos that {args.camera} does not need")
    return removed


def _caption_file(args: argparse.Namespace, report: Report) -> CaptionFile | None:
    path = args.caption_file
    if path is None:
        usual = Path(args.data_dir).parent / f"agibot_{args.camera}.jsonl"
        path = usual if usual.is_file() else None
    return CaptionFile.read(path, report) if path is not None else None


def _source(
    args: argparse.Namespace,
    task: int,
    video: Path,
    captions: CaptionFile | None,
    infos: dict[int, EpisodeInfo],
    report: Report,
) -> Source | None:
    """The clips of one episode, or None (with the reasons in ``report``)."""
    episode = int(video.parents[1].name)
    prefix = f"task_{task}_episode_{episode}"
    if captions is None and episode not in infos:
        report.drop(
            "episode",
            prefix,
            f"task_info/task_{task}.json does not have it, so there is "
            "no caption; give --caption_file or a newer task_info",
        )
        return None
    try:
        info = probe(video)
    except UserError as error:
        report.drop("episode", prefix, str(error))
        return None
    windows, remarks = cut_points(
        info.frames,
        info.fps,
        window_seconds=args.window_size,
        min_last_seconds=args.min_last_window,
        min_frames=args.min_frames,
    )
    if not windows:
        report.drop(
            "episode",
            prefix,
            f"{video}: {info.frames} frames are shorter than one window "
            f"(--min_frames {args.min_frames})",
        )
        return None
    for remark in remarks:
        report.note("episode", prefix, remark)
    clips = []
    for window in windows:
        name = window_name(prefix, window)
        if captions is not None:
            text = captions.find(name, task, episode, window.start, window.stop)
        else:
            text = infos[episode].caption(window.start, window.stop, info.fps)
        if text is None:
            report.drop(
                "window",
                name,
                "no caption: neither scene nor action is described"
                if captions is None
                else "the caption file has no line for it",
            )
        else:
            clips.append(Clip(name, window, text))
    split = "val" if str(episode) in args.val_episode_ids else "train"
    return Source(video, info, split, tuple(clips)) if clips else None


def split(args: argparse.Namespace, report: Report) -> dict[str, Any]:
    """Cut the extracted episodes of all tasks into windows; returns the report's summary.

    Raises:
        UserError: nothing extracted, unknown validation episodes, or no training window.
    """
    args.val_episode_ids = [str(episode) for episode in args.val_episode_ids]
    videos: dict[int, list[Path]] = {}
    for task in args.task_ids:
        found = [e / "videos" / f"{args.camera}.mp4" for e in _episodes(args, task)]
        videos[task] = [video for video in found if video.is_file()]
        for video in sorted(set(found) - set(videos[task])):
            report.drop(
                "episode",
                f"task_{task}_episode_{video.parents[1].name}",
                f"no video of camera {args.camera} ({video})",
            )
        if not videos[task]:
            raise UserError(
                f"--task_ids {task}: there is no {_observations(args, task)}/<episode>/videos/"
                f"{args.camera}.mp4; run with --prepare, or put archives there and add --local; "
                "check --camera" + _reasons(report)
            )
    known = {video.parents[1].name for task in videos.values() for video in task}
    unknown = [episode for episode in args.val_episode_ids if episode not in known]
    if unknown:
        listed = sorted(known, key=int)
        more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
        raise UserError(
            f"--val_episode_ids {' '.join(unknown)}: not among the episodes, which are "
            f"{', '.join(listed[:20])}{more}"
        )
    captions = _caption_file(args, report)
    sources = []
    for task in args.task_ids:
        info_file = Path(args.data_dir) / "task_info" / f"task_{task}.json"
        infos = read_task_info(info_file, report) if captions is None else {}
        for video in videos[task]:
            source = _source(args, task, video, captions, infos, report)
            if source is not None:
                sources.append(source)
    return publish(args.dataset_dir, sources, report)


def _reasons(report: Report) -> str:
    lines = [f"{p.kind} {p.item}: {p.reason}" for p in report.dropped[:3]]
    return "; dropped: " + "; ".join(lines) if lines else ""


def _work(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    check_window_flags(args)
    if Path(args.camera).name != args.camera:
        raise UserError(f"--camera {args.camera}: give a name such as head_center_fisheye_color")
    args.task_ids = list(dict.fromkeys(args.task_ids))
    args.dataset_dir = args.dataset_dir or Path(args.data_dir).parent / f"agibot_{args.camera}"
    report = Report("dataset")
    if not (args.split_only or args.delete_only):
        for task in args.task_ids:
            if args.local:
                extract(args, task, report)
            else:
                _download_and_extract(args, task, report)
    if not args.split_only:
        removed = sum(clean(args, task, report) for task in args.task_ids)
        report.counts["removed_by_cleaning"] = removed
    if args.prepare or args.split_only:
        return [str(args.dataset_dir / "report.json")], split(args, report)
    report.counts["episodes"] = sum(len(_episodes(args, task)) for task in args.task_ids)
    report.show()
    if not args.delete_only and not report.counts["episodes"]:
        raise UserError(
            f"--data_dir {args.data_dir}: no episode of the tasks could be extracted"
            + _reasons(report)
        )
    return [str(args.data_dir)], report.summary()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="dataset")


if __name__ == "__main__":
    sys.exit(main())
