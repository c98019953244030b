"""Run one pod of the plan as a local process and collect its output."""

from __future__ import annotations

import queue
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from video2world_common.progress_events import parse

TAIL_LINES = 15

_Told: TypeAlias = "queue.SimpleQueue[tuple[_Pod, bytes | None]]"


@dataclass
class _Pod:
    """A started pod; its reader puts what it prints on the queue ``told``, at the end None."""

    name: str
    log: Path
    child: subprocess.Popen[bytes]
    started: datetime
    told: _Told
    reader: threading.Thread = field(init=False)
    code: int | None = None


def _signal(pods: list[_Pod], number: int) -> None:
    for pod in pods:
        if pod.child.poll() is None:
            pod.child.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(log: Path) -> list[str]:
    """The last plain lines of a log; events are for machines."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - (64 << 10)))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if parse(line) is None][-TAIL_LINES:]
