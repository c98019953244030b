"""Read the state and logs of a local run from its volume."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple, TextIO

from video2world_operator.api.status import Phase, Status, parse_status
from video2world_operator.cli.common import UsageError
from video2world_operator.cli.snapshot import Snapshot, losses_of
from video2world_operator.local.state import StateFolder
from video2world_operator.plan.stage import SAMPLING
from video2world_operator.reconcile.observed_state import Pod

__all__ = ["NotFound", "print_log", "snapshot"]

TAIL_BYTES = 1 << 20  # of the training log, read for its losses
READ_CHARACTERS = 1 << 16
FOLLOW_SECONDS = 0.5  # between two reads of a log that is followed
GONE = "its process is gone (killed, or the machine went down); run the same v2w command to resume"


class NotFound(UsageError):
    """There is no such run, log or checkpoint; the message lists what there is."""


class _LogKey(NamedTuple):
    stage: str
    attempt: int
    rank: int


def snapshot(volume: Path, name: str) -> Snapshot:
    """Read the status, pods and losses of a run.

    Raises:
        NotFound: there is no run of this name.
    """
    status = _status(volume, name)
    running = StateFolder(volume.resolve(), name).running
    logs = _logs(volume, name)
    attempts = {(entry.name, entry.attempt) for entry in status.stages}
    pods = [
        Pod(path.stem, path.stem, key.stage, key.attempt, key.rank, "Running", ready=True)
        for key, path in sorted(logs.items())
        if running and (key.stage, key.attempt) in attempts
    ]
    train = max((key for key in logs if (key.stage, key.rank) == ("train", 0)), default=None)
    losses = losses_of(_last_lines(logs[train])) if train else []
    gone = status.phase in (Phase.RUNNING, Phase.RESTARTING) and not running
    return Snapshot(name, status, pods, losses, GONE if gone else "", gone=gone)


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
    """Print a worker's log, by default the newest; with ``follow`` until the run has ended.

    Raises:
        NotFound: there is no such run or log.
    """
    path = _choose_log(volume, name, stage, rank, attempt)
    state = StateFolder(volume.resolve(), name)
    with path.open("r", encoding="utf-8", errors="replace") as stream:
        ended = not follow
        while True:
            if text := stream.read(READ_CHARACTERS):
                out.write(text)
                continue
            out.flush()
            if ended:
                return
            ended = not state.running  # then read once more what was written before the end
            if not ended:
                time.sleep(FOLLOW_SECONDS)


def _status(volume: Path, name: str) -> Status:
    state = StateFolder(volume.resolve(), name).read()
    if not state:
        known = sorted(path.parent.name for path in volume.glob(".video2world/*/state.json"))
        listed = f"; there is {', '.join(known)}" if known else ""
        raise NotFound(f"{name}: no run of this name on {volume}{listed}")
    return parse_status(state.get("status"))


def _logs(volume: Path, name: str) -> dict[_LogKey, Path]:
    found = {}
    for path in (volume / ".video2world" / name / "logs").glob("*.log"):
        if match := re.fullmatch(r"([a-z]+)-(\d+)-(\d+)", path.stem):
            found[_LogKey(match[1], int(match[2]), int(match[3]))] = path
    return found


def _last_lines(path: Path) -> list[bytes]:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return stream.read().splitlines()


def _choose_log(volume: Path, name: str, stage: str | None, rank: int, attempt: int | None) -> Path:
    logs = _logs(volume, name)
    if not logs:
        _status(volume, name)  # raises if there is no such run
        raise NotFound(f"{name}: there are no logs on {volume} yet")
    # Sampling alongside training is shown only on request.
    stages = [key for key in logs if key.stage != SAMPLING] or list(logs)
    stage = stage or max(stages, key=lambda key: logs[key].stat().st_mtime).stage
    attempts = [key.attempt for key in logs if key.stage == stage]
    if not attempts:
        known = ", ".join(sorted({key.stage for key in logs}))
        raise NotFound(f"--stage {stage}: it has no log; there is {known}")
    key = _LogKey(stage, attempt or max(attempts), rank)
    if key not in logs:
        raise NotFound(f"there is no log of {stage}, attempt {key.attempt}, rank {rank}")
    return logs[key]
