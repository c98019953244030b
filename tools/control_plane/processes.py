"""The long-running processes of one cluster, started through a keeper that outlives nobody."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

KEEPER = Path(__file__).with_name("keeper.py")


class Process:
    """A running process. It is the keeper's child, so its end is seen through a pidfd."""

    def __init__(self, name: str, pid: int, log: Path) -> None:
        self.name, self.pid, self.log = name, pid, log
        self._pidfd = os.pidfd_open(pid)

    def alive(self) -> bool:
        return not select.select([self._pidfd], [], [], 0)[0]

    def signal(self, number: signal.Signals) -> None:
        if self.alive():
            signal.pidfd_send_signal(self._pidfd, number)

    def stop(self, grace: float = 10) -> None:
        """SIGTERM, then SIGKILL after ``grace`` seconds (at once if that is 0)."""
        if grace:
            self.signal(signal.SIGTERM)
            if select.select([self._pidfd], [], [], grace)[0]:
                return
        self.signal(signal.SIGKILL)
        select.select([self._pidfd], [], [])

    def last_words(self, lines: int = 15) -> str:
        """The end of its log, for error messages."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        os.close(self._pidfd)


class Keeper:
    """Starts processes; they and their folder go when this closes or its owner dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A Ctrl-C is for the owner, which then closes this. Not a session of its own: by the
            # kernel's sched_autogroup whole sessions take turns, and a process in another one was
            # seen to wait 0.3 s for a core.
            process_group=0,
        )

    def start(self, name: str, argv: Sequence[str | Path]) -> Process:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        log = self.folder / f"{name}.log"
        asked = json.dumps({"argv": [str(one) for one in argv], "log": str(log)})
        self._keeper.stdin.write(asked.encode() + b"\n")
        self._keeper.stdin.flush()
        answer = self._keeper.stdout.readline()
        if not answer:
            raise RuntimeError(f"the keeper of {self.folder} has ended; {name} was not started")
        process = Process(name, int(answer), log)
        self.processes.append(process)
        return process

    def close(self) -> None:
        """Kill all, remove the folder; returns when that is done."""
        self._keeper.communicate()
        for process in self.processes:
            process.close()
        self.processes.clear()


def free_port() -> int:
    """A free TCP port of 127.0.0.1 below those that the kernel gives to outgoing connections.

    Nobody connecting somewhere gets it by chance while a server that uses it is restarted.
    """
    for _ in range(200):
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port on 127.0.0.1 between 15000 and 32000")
