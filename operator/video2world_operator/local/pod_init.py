"""Be the first process of a local pod, so that all of its processes end with it.

Run by path with the standard library only: ``python -I -S pod_init.py GRACE ENGINE COMMAND...``. It
starts COMMAND, forwards SIGTERM to it, and kills all of its descendants when COMMAND has ended,
GRACE seconds after SIGTERM, or at once on SIGUSR1. A process group is not enough: torchrun starts
each worker in its own session. If the engine (process ID ENGINE) dies, even by SIGKILL, the kernel
sends the SIGTERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["main"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
EXIT_NOT_STARTED = 127
STOP, KILL = signal.SIGTERM, signal.SIGUSR1


def _prctl(option: int, value: int) -> None:
    # Not on Linux: only the process group is killed then.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _descendants() -> list[int]:
    """Return the processes below this one, orphans included: this one is their reaper."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # the command's name may itself contain parentheses: read after the last one
            state, parent = entry.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry.parent.name))
    found, front = [], [os.getpid()]
    while front:
        front = [child for parent in front for child in children.get(parent, [])]
        found += front
    return found


def _reap(main_pid: int) -> int | None:
    """Reap ended children; returns the exit code of ``main_pid`` if it is one of them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == main_pid:
                code = os.waitstatus_to_exitcode(status)
    return code


def _kill_all(group: int) -> int | None:
    """Kill until nothing is left: a process may fork between the listing and the kill."""
    code = None
    while True:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        alive = _descendants()
        for pid in alive:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        ended = _reap(group)
        code = ended if ended is not None else code
        if not alive:
            return code
        time.sleep(0.01)


def main(arguments: list[str]) -> int:
    """Run the pod ``[grace seconds, engine's PID, *command]``; returns the command's exit code."""
    grace, engine, command = float(arguments[0]), int(arguments[1]), arguments[2:]
    signals = {STOP, KILL, signal.SIGCHLD}
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _prctl(PR_SET_PDEATHSIG, STOP)
    if os.getppid() != engine:
        return 128 + STOP  # the engine died before PR_SET_PDEATHSIG took effect

    def prepare() -> None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    try:
        # single-threaded, so preexec_fn is safe here
        child = subprocess.Popen(command, preexec_fn=prepare, process_group=0)
    except OSError as error:
        print(f"error: {command[0]} cannot be started: {error}", file=sys.stderr, flush=True)
        return EXIT_NOT_STARTED
    deadline: float | None = None
    while True:
        wait = 3600.0 if deadline is None else max(deadline - time.monotonic(), 0.0)
        received = signal.sigtimedwait(signals, wait)
        code = _reap(child.pid)
        number = received.si_signo if received is not None else None
        if code is None and number == STOP and deadline is None:
            deadline = time.monotonic() + grace
            with contextlib.suppress(OSError):
                os.killpg(child.pid, STOP)
        overdue = deadline is not None and time.monotonic() >= deadline
        if code is not None or number == KILL or overdue:
            last = _kill_all(child.pid)
            code = code if code is not None else last
            code = -signal.SIGKILL if code is None else code
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
