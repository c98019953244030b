"""Generate a LeRobotDataset (v3.0) of a drawn two-link arm that moves at random, with its actions.

The joint angles of every frame are known: ``observation.state`` of row k has those of frame k, and
``action`` of row k those commanded for frame k + 1, which are reached exactly. A frame does not
determine the next ones, so a model can only predict them by following the actions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from video2world_common.events import ProgressReporter, say
from video2world_common.files import atomic_path, write_json
from video2world_common.markers import Provenance
from video2world_common.stage_runner import run_stage
from video2world_preprocess.drawn_arm import ArmScene, render, trajectory
from video2world_preprocess.video.writer import WRITER_OPTIONS, Writer

__all__ = ["CAMERA", "TASK", "main", "parser", "write_dataset"]

CAMERA = "observation.images.front"
TASK = "The robot arm moves in front of a plain wall."
EPISODES_PER_FILE = 50
MOST_EPISODES = 10_000
NUMBERS: dict[str, tuple[int, range, str]] = {  # flag: default, allowed values, help
    "episodes": (40, range(1, MOST_EPISODES + 1), "number of episodes"),
    "frames": (97, range(2, 100_001), "frames per episode"),
    "fps": (10, range(1, 121), "frames per second"),
    "height": (96, range(32, 2049, 2), "height of a frame in pixels"),
    "width": (128, range(32, 2049, 2), "width of a frame in pixels"),
    "seed": (0, range(100_000), "seed of scenes and motions"),
}
VIDEO_OPTIONS = WRITER_OPTIONS | {"crf": 12, "g": 2}


def write_dataset(
    root: Path,
    *,
    episodes: int,
    frames: int = 97,
    fps: int = 10,
    size: tuple[int, int] = (96, 128),
    gripper: bool = False,
    seed: int = 0,
) -> list[Path]:
    """Write the dataset into ``root`` and return the paths of its files.

    The same arguments give the same files. Episode e has the scene and the trajectory of the seed
    ``seed * MOST_EPISODES + e``. An existing dataset of the same arguments is kept.
    """
    height, width = size
    seeds = [seed * MOST_EPISODES + episode for episode in range(episodes)]
    scenes = [ArmScene.of(one, height, width, gripper=gripper) for one in seeds]
    # one more than there are frames, as the last row, too, has a command
    motions = [trajectory(one, frames + 1, scenes[0].joints).astype(np.float32) for one in seeds]
    info = _info(scenes[0], episodes, frames, fps, seed)
    paths = _paths(root, episodes)
    if all(path.is_file() for path in paths):
        known = json.loads((root / "meta/info.json").read_text(encoding="utf-8"))
        if known == info:
            return paths
    progress = ProgressReporter("demo data", episodes, "episodes")
    for number, first in enumerate(range(0, episodes, EPISODES_PER_FILE)):
        last = min(first + EPISODES_PER_FILE, episodes)
        path = root / "videos" / CAMERA / "chunk-000" / f"file-{number:03d}.mp4"
        with Writer(path, Fraction(fps), width, height, VIDEO_OPTIONS) as writer:
            for episode in range(first, last):
                for picture in render(scenes[episode], motions[episode][:frames]):
                    writer.add(av.VideoFrame.from_ndarray(picture, format="rgb24"))
                progress.advance()
    _write_tables(root, motions, fps)
    write_json(root / "meta/stats.json", _statistics(motions))
    write_json(root / "meta/info.json", info)
    return paths


def _paths(root: Path, episodes: int) -> list[Path]:
    files = (episodes - 1) // EPISODES_PER_FILE + 1
    return [
        root / "meta/info.json",
        root / "meta/stats.json",
        root / "meta/tasks.parquet",
        root / "meta/episodes/chunk-000/file-000.parquet",
        root / "data/chunk-000/file-000.parquet",
        *(root / "videos" / CAMERA / "chunk-000" / f"file-{n:03d}.mp4" for n in range(files)),
    ]


def _info(scene: ArmScene, episodes: int, frames: int, fps: int, seed: int) -> dict[str, Any]:
    joints = {"dtype": "float32", "shape": [len(scene.joints)], "names": list(scene.joints)}
    whole = {"dtype": "int64", "shape": [1], "names": None}
    picture = {
        "dtype": "video",
        "shape": [scene.height, scene.width, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": scene.height,
            "video.width": scene.width,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        },
    }
    return {
        "codebase_version": "v3.0",
        "robot_type": f"drawn two-link arm, seed {seed}",
        "total_episodes": episodes,
        "total_frames": episodes * frames,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "action": joints,
            "observation.state": joints,
            CAMERA: picture,
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **{f"{name}index": whole for name in ("frame_", "episode_", "", "task_")},
        },
    }


def _write_tables(root: Path, motions: Sequence[np.ndarray], fps: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    def write(path: Path, columns: dict[str, Any]) -> None:
        with atomic_path(path) as partial:
            parquet.write_table(pa.table(columns), partial)

    frames, count = len(motions[0]) - 1, len(motions)
    row = np.arange(count * frames)
    write(
        root / "data/chunk-000/file-000.parquet",
        {
            "action": _lists(np.concatenate([motion[1:] for motion in motions])),
            "observation.state": _lists(np.concatenate([motion[:-1] for motion in motions])),
            "timestamp": (row % frames / fps).astype(np.float32),
            "frame_index": row % frames,
            "episode_index": row // frames,
            "index": row,
            "task_index": row * 0,
        },
    )
    write(root / "meta/tasks.parquet", {"task_index": [0], "task": [TASK]})
    episode = np.arange(count)
    place = episode % EPISODES_PER_FILE
    write(
        root / "meta/episodes/chunk-000/file-000.parquet",
        {
            "episode_index": episode,
            "tasks": [[TASK]] * count,
            "length": [frames] * count,
            "dataset_from_index": episode * frames,
            "dataset_to_index": (episode + 1) * frames,
            "data/chunk_index": episode * 0,
            "data/file_index": episode * 0,
            f"videos/{CAMERA}/chunk_index": episode * 0,
            f"videos/{CAMERA}/file_index": episode // EPISODES_PER_FILE,
            f"videos/{CAMERA}/from_timestamp": place * frames / fps,
            f"videos/{CAMERA}/to_timestamp": (place + 1) * frames / fps,
        },
    )


def _lists(rows: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def _statistics(motions: Sequence[np.ndarray]) -> dict[str, Any]:
    columns = {"action": slice(1, None), "observation.state": slice(None, -1)}
    found = {}
    for name, part in columns.items():
        rows = np.concatenate([motion[part] for motion in motions]).astype(np.float64)
        values = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
        found[name] = {key: value.tolist() for key, value in values.items()}
        found[name]["count"] = [len(rows)]
    return found


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_preprocess.demo_arm", description=__doc__.splitlines()[0]
    )
    flags.add_argument("--data_dir", type=Path, default=Path("datasets/demo_arm"))
    for name, (default, allowed, text) in NUMBERS.items():
        known = f"{text}, {allowed.start} to {allowed[-1]} (default: %(default)s)"
        flags.add_argument(f"--{name}", type=int, default=default, metavar="N", help=known)
    flags.add_argument("--gripper", action="store_true", help="add a gripper as a third joint")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    flags = parser()
    args = flags.parse_args(argv)
    for name, (_, allowed, _) in NUMBERS.items():
        if getattr(args, name) not in allowed:
            even = ", an even number" if allowed.step == 2 else ""
            flags.error(f"--{name}: give {allowed.start} to {allowed[-1]}{even}")

    def work() -> tuple[Provenance, dict[str, Any]]:
        made = write_dataset(
            args.data_dir,
            episodes=args.episodes,
            frames=args.frames,
            fps=args.fps,
            size=(args.height, args.width),
            gripper=args.gripper,
            seed=args.seed,
        )
        say(f"drawn arm: {args.episodes} episodes of {args.frames} frames in {args.data_dir}")
        return Provenance().left(made), {"episodes": args.episodes}

    return run_stage(work, stage="demo-data")


if __name__ == "__main__":
    raise SystemExit(main())
