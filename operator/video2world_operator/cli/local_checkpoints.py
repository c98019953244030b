"""List the checkpoints on the volume of a local run, and check that they are complete."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from video2world_operator.cli.local_run import NotFound

__all__ = ["Checkpoint", "checkpoints"]

PARTS = ("model", "optim", "scheduler", "trainer")


@dataclass(frozen=True)
class Checkpoint:
    """The four files of one iteration; ``damage`` says what is wrong with them, if something is."""

    iteration: int
    size: int  # bytes
    age: float  # seconds
    damage: str
    is_latest: bool


def checkpoints(volume: Path, name: str) -> Iterator[tuple[Path, list[Checkpoint]]]:
    """List the checkpoints of the job ``name``, by folder.

    Raises:
        NotFound: there are none.
    """
    folders = sorted(volume.glob(f"checkpoints/*/*/{name}/checkpoints"))
    if not folders:
        raise NotFound(f"{name}: no checkpoints on {volume}; is NAME its job name?")
    for folder in folders:
        latest_file = folder / "latest_checkpoint.txt"
        latest = latest_file.read_text().strip() if latest_file.exists() else ""
        models = sorted((folder / "model").glob("iter_*.pt"))
        yield folder, [_checkpoint(folder, model, latest) for model in models]


def _checkpoint(folder: Path, model: Path, latest: str) -> Checkpoint:
    files = [folder / part / model.name for part in PARTS]
    return Checkpoint(
        iteration=int(model.stem.removeprefix("iter_")),
        size=sum(path.stat().st_size for path in files if path.exists()),
        age=time.time() - model.stat().st_mtime,
        damage=_damage(folder, model.name),
        is_latest=model.name == latest,
    )


def _damage(folder: Path, name: str) -> str:
    """Compare a checkpoint's files with their recorded sizes; empty if they are complete."""
    try:
        record = json.loads((folder / "trainer" / name).with_suffix(".json").read_text())
    except (OSError, ValueError):
        record = {}
    for part in PARTS:
        path = folder / part / name
        if not path.exists():
            return f"incomplete: {part} is missing"
        wanted = record.get(part, {}).get("bytes")
        if wanted is not None and path.stat().st_size != wanted:
            return f"incomplete: {part} has {path.stat().st_size} bytes instead of {wanted}"
    return ""
