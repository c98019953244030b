"""Run the lerobot command on the dataset in ``data/``, and check every frame that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lerobot_datasets import shown
from video2world_preprocess import lerobot
from video2world_preprocess.video.reader import read_frames

OUT = Path("out")
EPISODES = Path("data/meta/episodes/chunk-000/file-000.parquet")
FLAGS = ("--window-size", "1", "--min-last-window", "1.5", "--min_frames", "5", "--workers", "1")


def run(*flags: str, camera: str = "top", data: str = "data") -> tuple[int, dict[str, Any]]:
    """Run the command on the folder ``data``; return its exit code and report."""
    (OUT / "report.json").unlink(missing_ok=True)
    arguments = ["--data_dir", data, "--dataset_dir", str(OUT), "--camera", camera, *FLAGS, *flags]
    code = lerobot.main(arguments)
    path = OUT / "report.json"
    return code, json.loads(path.read_text()) if path.exists() else {}


def windows(camera: int = 0, folder: Path = OUT) -> dict[int, int]:
    """Check every frame of every window; return the number of frames by episode."""
    found: dict[int, int] = {}
    for path in sorted(folder.glob("*/videos/*.mp4")):
        episode = int(path.stem.split("_")[1])
        first, last = map(int, path.stem.rpartition("_")[2].split("-"))
        frames = [shown(pixels) for pixels in read_frames(path)]
        assert frames == [(episode, frame, camera) for frame in range(first, last + 1)], path
        assert (path.parent.parent / "metas" / f"{path.stem}.txt").is_file()
        found[episode] = found.get(episode, 0) + len(frames)
    return found


def reasons(report: dict[str, Any]) -> dict[str, str]:
    return {problem["item"]: problem["reason"] for problem in report["dropped"]}


def notes(report: dict[str, Any]) -> str:
    return "\n".join(f"{n['item']}: {n['reason']}" for n in report["notes"])


def change_episodes(change: Callable[[dict[str, list[Any]]], dict[str, list[Any]]]) -> None:
    """Change the columns of the episodes' metadata."""
    pq.write_table(pa.table(change(pq.read_table(EPISODES).to_pydict())), EPISODES)
