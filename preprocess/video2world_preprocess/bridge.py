"""Turn a data set with annotations as in Bridge into windows with actions, one per episode.

The layout is that of Cosmos-Predict2's action-conditioned example (IRASim's Bridge): a JSON file
per episode with its states, and a video. The actions are derived from the states, as in upstream's
training: poses relative to the frame before, and the gripper's value at the later frame.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.folder_locks import owned_folder
from video2world_common.markers import Provenance
from video2world_common.paths import on_volume
from video2world_common.per_clip_actions import FRAMES
from video2world_common.sharding import shard_flags, shard_of
from video2world_common.stage_runner import run_stage
from video2world_common.user_text import checked_caption, parse_json
from video2world_preprocess.actions.annotations import annotated_poses
from video2world_preprocess.actions.layout import ActionLayout, Column, Track
from video2world_preprocess.actions.selection import ActionSelection
from video2world_preprocess.dataset.held_out import add_requirement, require_held_out
from video2world_preprocess.dataset.lerobot_layout import fill
from video2world_preprocess.dataset.records import leftover_folders, read_record
from video2world_preprocess.dataset.source import WORKERS, CutSettings, OneCaption, Source
from video2world_preprocess.dataset.splitter import split_all
from video2world_preprocess.item_faults import failed_items, reason_for
from video2world_preprocess.listing import usable_files
from video2world_preprocess.stage_report import Report

__all__ = ["clip_count", "main", "parser"]

EPILOG = """\
layout of DATA_DIR:
  annotation/{train,val,test}/ID.json    state [N][6 or more]: x y z (metres) roll pitch yaw
                                         (radians); continuous_gripper_state [N], 0 open, 1 closed;
                                         videos: [{"video_path": ...}, ...], one per camera
  videos/{train,val,test}/ID/rgb.mp4     wherever video_path says, relative to DATA_DIR

val/ is held out; if there is none, test/ is.
"""
WHOLE = 1e9  # seconds: a window is as long as its episode
LARGEST_FILE = 64 << 20  # bytes
CAPTION = "A robot arm manipulates objects."
COLUMNS = (
    Column("state", ("x", "y", "z", "roll", "pitch", "yaw"), True),
    Column("continuous_gripper_state", ("gripper",), True),
)
# relative poses, normalised as in the published weights
LAYOUT = ActionLayout.of(
    ActionSelection(tuple(one.name for one in COLUMNS), (), "relative_pose", "published"), COLUMNS
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.bridge",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shard_flags()],
    )
    flags.add_argument("--data_dir", type=Path, required=True, help="folder with annotation/")
    flags.add_argument("--dataset_dir", type=Path, required=True, help="output folder")
    flags.add_argument(
        "--camera_id",
        type=int,
        default=0,
        metavar="N",
        help="which entry of an annotation's videos to use (default: %(default)s)",
    )
    flags.add_argument(
        "--min_frames",
        type=int,
        default=FRAMES,
        metavar="N",
        help="leave out shorter episodes (default: %(default)s, a clip of the published weights)",
    )
    flags.add_argument(
        "--workers",
        type=int,
        default=WORKERS,
        metavar="N",
        help="number of videos to process in parallel (default: V2W_WORKERS, else the number of "
        "CPUs, %(default)s)",
    )
    add_requirement(flags)
    return flags


def clip_count(states: int, frames: int = FRAMES, stride: int = 1, interval: int = 1) -> int:
    """Return how many clips upstream makes of an episode.

    Args:
        states: of the episode.
        frames: of a clip.
        stride: from one frame of a clip to the next.
        interval: from the start of one clip to that of the next.
    """
    starts = max(states - (frames - 1) * stride, 0)
    return -(-starts // interval)


@dataclass
class _Annotations:
    """The episodes of a data set, which are read from their files again when they are needed."""

    paths: Mapping[str, Path]  # by source name
    description: str
    layout: ActionLayout = LAYOUT

    def batches(self, sources: Sequence[Source]) -> list[list[Source]]:
        """Return each source alone."""
        return [[source] for source in sources]

    def tracks(self, sources: Sequence[Source]) -> Iterator[tuple[Source, Track | str]]:
        """Yield the states of each source."""
        for source in sources:
            path = self.paths[source.name]
            states, gripper = _poses(path, _read(path))
            yield source, Track(np.concatenate([states, gripper[:, None]], 1), None, str(path))


def _read(path: Path) -> Mapping[str, Any]:
    """Return the annotation in a file.

    Raises:
        UserError: there is none.
    """
    if on_volume(path).stat().st_size > LARGEST_FILE:
        raise UserError(f"{path}: more than {LARGEST_FILE} bytes")
    try:
        value = parse_json(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("is not a JSON object")
    except ValueError as error:
        raise UserError(f"{path} {error}") from None
    return value


def _poses(path: Path, annotation: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    try:
        return annotated_poses(annotation)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _video(data_dir: Path, annotation: Mapping[str, Any], camera: int) -> Path:
    """Return the path of an episode's video.

    Raises:
        UserError: there is none.
    """
    videos = annotation.get("videos")
    if not isinstance(videos, list) or not videos:
        raise UserError("its annotation has no videos")
    if not 0 <= camera < len(videos):
        raise UserError(f"--camera_id {camera}: its cameras are 0 to {len(videos) - 1}")
    entry = videos[camera]
    name = entry.get("video_path") if isinstance(entry, dict) else None
    try:
        path = data_dir / fill(name if isinstance(name, str) else "{}", {})
    except ValueError as error:
        raise UserError(f"video_path {name!r:.80} of camera {camera} {error}") from None
    if not on_volume(path).is_file():
        raise UserError(f"its video {path} is missing")
    return path


def _caption(annotation: Mapping[str, Any]) -> str:
    texts = annotation.get("texts")
    for text in [*(texts if isinstance(texts, list) else []), annotation.get("task")]:
        try:
            return checked_caption(text)
        except ValueError:
            continue
    return CAPTION


def _sources(args: argparse.Namespace, report: Report) -> tuple[list[Source], _Annotations]:
    """Return the usable episodes; report the others.

    Raises:
        UserError: the folder has another layout.
    """
    root = args.data_dir / "annotation"
    if not (root / "train").is_dir():
        raise UserError(
            f"--data_dir {args.data_dir}: the folder annotation/train is missing; give the folder "
            "that has annotation/{train,val,test}/ID.json and videos/"
        )
    held_out = next((name for name in ("val", "test") if any((root / name).glob("*.json"))), "val")
    found, paths = [], {}
    description = f"relative poses of the annotations in {args.data_dir}"
    for split, folder in (("train", "train"), ("val", held_out)):
        for path in usable_files(root / folder, f"annotation/{folder}", ".json", "episode", report):
            name = f"{folder}_{path.stem}"
            try:
                annotation = _read(path)
                states, _ = _poses(path, annotation)
                video = _video(args.data_dir, annotation, args.camera_id)
                status, of_video = path.stat(), video.stat()
            except Exception as error:
                report.drop("episode", name, reason_for(error, args.dataset_dir))
                continue
            stamp = f"{LAYOUT.digest}/{status.st_size}-{status.st_mtime_ns}"
            paths[name] = path
            found.append(
                Source(
                    name,
                    "episode",
                    video,
                    split,
                    OneCaption(_caption(annotation)),
                    f"{of_video.st_size}-{of_video.st_mtime_ns}-{len(states)}",
                    actions=hashlib.sha256(stamp.encode()).hexdigest()[:24],
                    most_frames=len(states),
                )
            )
    return found, _Annotations(paths, description)


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]] | None:
    shard, folder = shard_of(args), args.dataset_dir
    for flag, value, least in (
        ("--min_frames", args.min_frames, 2),
        ("--workers", args.workers, 1),
        ("--camera_id", args.camera_id, 0),
    ):
        if value < least:
            raise UserError(f"{flag} {value}: give a number of {least} or more")
    on_volume(args.data_dir)
    below = [args.data_dir / "annotation", args.data_dir / "videos"]
    parents = {path.parent for root in below for path in root.rglob("*.*")}
    made = Provenance.of(*sorted(map(str, parents)))
    report = Report("dataset")
    sources, annotations = _sources(args, report)
    if not sources:
        reasons = "; ".join(f"{p.item}: {p.reason}" for p in report.dropped[:3])
        raise UserError(f"--data_dir {args.data_dir}: no episode can be used ({reasons})")
    settings = CutSettings(WHOLE, WHOLE, args.min_frames)
    with owned_folder(
        folder,
        {"bridge": str(args.data_dir), "camera_id": args.camera_id, **asdict(settings)},
        "give another dataset.bridge.name (--dataset_dir)",
        leftovers=leftover_folders(folder),
        shared=shard.count > 1,
    ) as made.owned:
        done = split_all(folder, sources, settings, args.workers, shard, report, annotations)
    if done is None:
        return None
    require_held_out(args, folder, report.counts)
    made.outputs, summary = done
    made.failed = failed_items(report)
    train = [source.name for source in sources if source.split == "train"]
    clips = [clip for name in train for clip in read_record(folder, name).clips]
    count = sum(clip_count(clip.stop - clip.start) for clip in clips)
    say(f"dataset: {count} clips of {FRAMES} frames to train on")
    return made, {**summary, "train_clips": count}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="dataset")


if __name__ == "__main__":
    sys.exit(main())
