"""Start and stop the processes of one cluster through a keeper, so that none outlives it."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .api import ApiError

KEEPER = Path(__file__).with_name("keeper.py")
START_SECONDS = 300.0  # a busy machine with two cores needs 30, a tenfold overloaded one 150


class Process:
    """A child process of the keeper, watched through a pidfd."""

    def __init__(self, name: str, pid: int, log: Path) -> None:
        self.name, self.pid, self.log = name, pid, log
        self._pidfd = os.pidfd_open(pid)

    def alive(self) -> bool:
        """Return whether the process runs."""
        return not select.select([self._pidfd], [], [], 0)[0]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.alive():
            signal.pidfd_send_signal(self._pidfd, number)

    def stop(self, grace: float = 10) -> None:
        """Send SIGTERM, then SIGKILL after ``grace`` seconds (at once if that is 0)."""
        if grace:
            self.signal(signal.SIGTERM)
            if select.select([self._pidfd], [], [], grace)[0]:
                return
        self.signal(signal.SIGKILL)
        select.select([self._pidfd], [], [])

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of its log, for error messages."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """Close the pidfd."""
        os.close(self._pidfd)


class Keeper:
    """Start processes that are killed, and their folder removed, on close or the owner's death."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C is for the owner, which then closes this. No session of its own: the kernel's
            # sched_autogroup schedules sessions against each other, and processes of another
            # session waited 0.3 s for a core.
            process_group=0,
        )

    def start(self, name: str, argv: Sequence[str | Path]) -> Process:
        """Start a process that logs to ``NAME.log`` in the folder.

        Raises:
            RuntimeError: the keeper has ended.
        """
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        log = self.folder / f"{name}.log"
        request = json.dumps({"argv": [str(one) for one in argv], "log": str(log)})
        self._keeper.stdin.write(request.encode() + b"\n")
        self._keeper.stdin.flush()
        answer = self._keeper.stdout.readline()
        if not answer:
            raise RuntimeError(f"the keeper of {self.folder} has ended; {name} was not started")
        process = Process(name, int(answer), log)
        self.processes.append(process)
        return process

    def close(self) -> None:
        """Kill all processes, remove the folder, and return when that is done."""
        self._keeper.communicate()
        for process in self.processes:
            process.close()
        self.processes.clear()


class Components:
    """The long-running components of a cluster, by name."""

    def __init__(self, keeper: Keeper, binaries: Mapping[str, Path]) -> None:
        self.keeper, self._binaries = keeper, binaries
        self.running: dict[str, Process] = {}

    def start(self, name: str, *flags: str, environment: Sequence[str] = ()) -> None:
        """Start the component's binary; ``environment``: additional NAME=VALUE pairs."""
        prefix = ("env", *environment) if environment else ()
        self.start_command(name, (*prefix, self._binaries[name], *flags))

    def start_command(self, name: str, argv: Sequence[str | Path]) -> None:
        """Start a component that is not among the binaries."""
        self.running[name] = self.keeper.start(name, argv)

    def stop(self, name: str, grace: float) -> None:
        """Stop a component, see :meth:`Process.stop`."""
        self.running.pop(name).stop(grace)

    def wait(self, what: str, probe: Callable[[], object]) -> None:
        """Wait until ``probe`` no longer raises.

        Raises:
            RuntimeError: a component has ended, or START_SECONDS have passed.
        """
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                probe()
                return
            except (ApiError, OSError) as error:
                self.check()
                if time.monotonic() > until:
                    logs = "\n".join(
                        f"--- {one.name}\n{one.log_tail()}" for one in self.running.values()
                    )
                    raise RuntimeError(
                        f"{what} did not answer within {START_SECONDS:.0f} s ({error})\n{logs}"
                    ) from error
            time.sleep(0.1)

    def check(self) -> None:
        """Raise RuntimeError, with the end of its log, if a component has ended."""
        for process in self.running.values():
            if not process.alive():
                raise RuntimeError(f"{process.name} has ended:\n{process.log_tail(60)}")

    def close(self) -> None:
        """Kill all components and remove the cluster's folder."""
        self.keeper.close()
        self.running.clear()


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1 below the range of outgoing connections.

    No outgoing connection can take it by chance while a server that uses it restarts.
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
