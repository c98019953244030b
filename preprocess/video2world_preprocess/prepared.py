"""Check a prepared dataset folder: {train,val}/{videos,metas} with equal file stems.

Nothing in the folder is changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from video2world_common.action_statistics import ACTIONS_FILE, ActionStatistics
from video2world_common.exit_codes import UserError
from video2world_common.markers import Provenance, file_stamps
from video2world_common.paths import on_volume
from video2world_common.stage_runner import run_stage
from video2world_common.user_text import caption_in
from video2world_preprocess.actions.sequence import read_actions
from video2world_preprocess.dataset.held_out import add_requirement, require_held_out
from video2world_preprocess.dataset.records import SPLITS
from video2world_preprocess.item_faults import reason_for
from video2world_preprocess.listing import entries, normalized, usable_files
from video2world_preprocess.stage_report import Report
from video2world_preprocess.video.decode import VideoInfo
from video2world_preprocess.video.reader import probe

__all__ = ["check", "main", "parser"]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
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
        help="report shorter videos as unusable (default: %(default)s)",
    )
    flags.add_argument(
        "--require_actions",
        action="store_true",
        help="fail unless the data set has actions: actions.json, and in {train,val}/actions a "
        "file for every video, with one row less than it has frames",
    )
    add_requirement(flags)
    return flags


def _check_clip(split: Path, name: str, metas: Mapping[str, Path], min_frames: int) -> VideoInfo:
    """Return the properties of a clip.

    Raises:
        UserError: the clip is unusable.
    """
    meta = split / "metas" / f"{name}.txt"
    if name not in metas:
        others = [m for m in metas.values() if normalized(m.stem) == normalized(name)]
        if others:
            raise UserError(
                f"its caption {meta} is missing: there is one whose name looks the same but has "
                f"another Unicode spelling ({others[0].name!a}); give both files the same name"
            )
        raise UserError(f"its caption {meta} is missing")
    try:
        caption_in(on_volume(meta).read_bytes())
    except ValueError as error:
        raise UserError(f"its caption {meta} {error}") from None
    info = probe(split / "videos" / f"{name}.mp4")
    if info.frames < min_frames:
        raise UserError(f"{info.frames} frames, at least {min_frames} are needed")
    return info


def _check_actions(split: Path, name: str, frames: int, actions: ActionStatistics) -> None:
    """Check the actions of a clip of ``frames`` frames.

    Raises:
        UserError: they are missing or unusable.
    """
    path = split / "actions" / f"{name}.safetensors"
    rows, dimension = read_actions(path).shape
    if dimension != actions.dimension:
        raise UserError(f"{path}: {dimension} values per row, {actions.dimension} in actions.json")
    if rows != frames - 1:
        fewer = ": fewer actions than frames" if rows < frames - 1 else ""
        raise UserError(f"{path}: {rows} rows for {frames} frames, {frames - 1} are needed{fewer}")


def check(
    folder: Path, report: Report, min_frames: int = 1, actions: ActionStatistics | None = None
) -> dict[str, int]:
    """Return the number of usable clips by split; report unusable ones.

    With ``actions``, each clip needs such actions.

    Raises:
        UserError: the folder has another layout, or no usable clip to train on.
    """
    on_volume(folder)
    for needed in (folder, folder / "train" / "videos", folder / "train" / "metas"):
        if not needed.is_dir():
            raise UserError(
                f"--dataset_dir {folder}: the folder {needed} is missing; a prepared dataset has "
                "train/videos/*.mp4 and train/metas/*.txt with equal stems (and the same in val)"
            )
    for path in entries(folder):
        if path.is_dir() and path.name not in SPLITS and not path.name.startswith("."):
            report.note("folder", path.name, f"is not read, only {' and '.join(SPLITS)} are")
    usable = dict.fromkeys(SPLITS, 0)
    frames, seconds = 0, 0.0
    for split in SPLITS:
        places = {kind: (folder / split / kind, f"{split}/{kind}") for kind in ("videos", "metas")}
        clips = usable_files(*places["videos"], ".mp4", "clip", report)
        metas = {p.stem: p for p in usable_files(*places["metas"], ".txt", "caption", report)}
        videos = {p.stem for p in clips}
        for name in sorted(videos):
            try:
                info = _check_clip(folder / split, name, metas, min_frames)
                if actions is not None:
                    _check_actions(folder / split, name, info.frames, actions)
            except Exception as error:
                report.drop("clip", f"{split}/{name}", reason_for(error, folder))
                continue
            usable[split] += 1
            frames += info.frames
            seconds += info.seconds
        for name in sorted(set(metas) - videos):
            unusable = [p.name for p in entries(folder / split / "videos") if p.stem == name]
            reason = f"its video {unusable[0]} is left out" if unusable else "its video is missing"
            report.drop("caption", f"{split}/metas/{name}.txt", reason)
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


def _work(args: argparse.Namespace) -> tuple[Provenance, dict[str, Any]]:
    report = Report("dataset")
    folders = (args.dataset_dir / split / kind for split in SPLITS for kind in ("videos", "metas"))
    made, actions = Provenance.of(*folders), None
    if args.require_actions:
        described = args.dataset_dir / ACTIONS_FILE
        made.inputs |= Provenance.of(*(args.dataset_dir / s / "actions" for s in SPLITS)).inputs
        made.files = file_stamps([described])
        if not described.is_file():
            raise UserError(
                f"{described}: there is no such file, so the data set has no actions: remove "
                "spec.training.conditioning, or prepare it with spec.dataset.actions"
            )
        actions = ActionStatistics.read(described)
    check(args.dataset_dir, report, args.min_frames, actions)
    require_held_out(args, args.dataset_dir, report.counts)
    return made, report.summary()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return run_stage(lambda: _work(args), stage="dataset")


if __name__ == "__main__":
    sys.exit(main())
