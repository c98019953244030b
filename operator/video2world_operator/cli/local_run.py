"""What the folder of a local run tells: its state, its logs, its checkpoints."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from video2world_operator.api.status import Phase, parse_status
from video2world_operator.cli.snapshot import Snapshot, losses_of
from video2world_operator.local.state import StateFolder
from video2world_operator.plan.stage import SAMPLING
from video2world_operator.reconcile.observed_state import Pod

__all__ = ["Checkpoint", "NotFound", "checkpoints", "print_log", "snapshot"]

PARTS = ("model", "optim", "scheduler", "trainer")
TAIL = 1 << 20  # bytes of a log that are searched for losses
GONE = "its process is gone (killed, or the machine went down); the same v2w run goes on"


class NotFound(Exception):
    """There is no such run, log or checkpoint; the message says what there is."""


def _state(volume: Path, name: str) -> Mapping[str, Any]:
    state = StateFolder(volume.resolve(), name).read()
    if not state:
        known = sorted(path.parent.name for path in volume.glob(".video2world/*/state.json"))
        listed = f"; there is {', '.join(known)}" if known else ""
        raise NotFound(f"{name}: no run of this name on {volume}{listed}")
    return state


def logs_local(volume: Path, name: str) -> dict[tuple[str, int, int], Path]:
    """The logs by stage, attempt and rank."""
    found = {}
    for path in (volume / ".video2world" / name / "logs").glob("*.log"):
        if match := re.fullmatch(r"([a-z]+)-(\d+)-(\d+)", path.stem):
            found[match[1], int(match[2]), int(match[3])] = path
    return found


def snapshot(volume: Path, name: str) -> Snapshot:
    """The run as its files have it. Raises NotFound if there is none."""
    status = parse_status(_state(volume, name).get("status"))
    working = StateFolder(volume.resolve(), name).running
    logs = logs_local(volume, name)
    attempts = {(entry.name, entry.attempt) for entry in status.stages}
    pods = [
        Pod(path.stem, path.stem, stage, attempt, rank, "Running", ready=True)
        for (stage, attempt, rank), path in sorted(logs.items())
        if working and (stage, attempt) in attempts
    ]
    train = max((key for key in logs if key[0] == "train" and key[2] == 0), default=None)
    losses = losses_of(_tail(logs[train])) if train else []
    died = status.phase in (Phase.RUNNING, Phase.RESTARTING) and not working
    return Snapshot(name, status, pods, losses, GONE if died else "", gone=died)


def _tail(path: Path) -> list[bytes]:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL))
        return stream.read().splitlines()


def print_log(
    volume: Path,
    name: str,
    *,
    stage: str | None,
    rank: int,
    attempt: int | None,
    follow: bool,
    out: TextIO,
) -> None:
    """Print a worker's log, by default the newest; ``follow`` goes on until the run ends.

    Raises NotFound if there is none.
    """
    logs = logs_local(volume, name)
    if not logs:
        _state(volume, name)  # says so if there is no such run
        raise NotFound(f"{name}: there are no logs on {volume} yet")
    # what goes on beside training is shown when it is asked for
    main = [key for key in logs if key[0] != SAMPLING] or list(logs)
    stage = stage or max(main, key=lambda key: logs[key].stat().st_mtime)[0]
    attempts = [number for name_, number, _ in logs if name_ == stage]
    if not attempts:
        known = ", ".join(sorted({name_ for name_, _, _ in logs}))
        raise NotFound(f"--stage {stage}: there is no log of it; there is {known}")
    key = (stage, attempt or max(attempts), rank)
    if key not in logs:
        raise NotFound(f"there is no log of {stage}, attempt {key[1]}, rank {rank}")
    state = StateFolder(volume.resolve(), name)
    with logs[key].open("r", encoding="utf-8", errors="replace") as stream:
        ending = False
        while True:
            if text := stream.read(1 << 16):
                out.write(text)
                continue
            out.flush()
            if not follow or ending:
                return
            ending = not state.running  # once more, for what came before it ended
            if not ending:
                time.sleep(0.5)


@dataclass(frozen=True)
class Checkpoint:
    """The four files of one iteration. ``damage`` says what is wrong, if something is."""

    iteration: int
    size: int  # bytes
    age: float  # seconds
    damage: str
    latest: bool


def checkpoints(volume: Path, name: str) -> Iterator[tuple[Path, list[Checkpoint]]]:
    """Every folder of checkpoints of the job ``name``. Raises NotFound if there is none."""
    found = sorted(volume.glob(f"checkpoints/*/*/{name}/checkpoints"))
    if not found:
        raise NotFound(f"{name}: no checkpoints on {volume}; is NAME its job name?")
    for folder in found:
        latest_file = folder / "latest_checkpoint.txt"
        latest = latest_file.read_text().strip() if latest_file.exists() else ""
        yield (
            folder,
            [
                _checkpoint(folder, model, latest)
                for model in sorted((folder / "model").glob("iter_*.pt"))
            ],
        )


def _checkpoint(folder: Path, model: Path, latest: str) -> Checkpoint:
    files = [folder / part / model.name for part in PARTS]
    return Checkpoint(
        iteration=int(model.stem.removeprefix("iter_")),
        size=sum(path.stat().st_size for path in files if path.exists()),
        age=datetime.now(UTC).timestamp() - model.stat().st_mtime,
        damage=_damage(folder, model.name),
        latest=model.name == latest,
    )


def _damage(folder: Path, name: str) -> str:
    """What is wrong with a checkpoint's files, by their recorded sizes; empty if nothing is."""
    try:
        record = json.loads((folder / "trainer" / name).with_suffix(".json").read_text())
    except (OSError, ValueError):
        record = {}
    for part in PARTS:
        path = folder / part / name
        if not path.exists():
            return f"torn: {part} is missing"
        wanted = record.get(part, {}).get("bytes")
        if wanted is not None and path.stat().st_size != wanted:
            return f"torn: {part} has {path.stat().st_size} bytes instead of {wanted}"
    return ""
