"""End helper processes together with the command that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

from video2world_common.exit_codes import EXIT_FAILURE, EXIT_PREEMPTED

__all__ = ["end_with_parent", "stop_on_sigterm"]


def stop_on_sigterm() -> None:
    """Turn SIGTERM into SystemExit(143), so that ``finally`` blocks run and partial files go."""

    def stop(signum: int, frame: object) -> None:
        raise SystemExit(EXIT_PREEMPTED)

    signal.signal(signal.SIGTERM, stop)


def end_with_parent() -> None:
    """Make this process, a worker's helper, end when its parent does; interrupts are the parent's.

    However the parent ends: a helper that lived on would write to a volume that others hold. (The
    kernel's own signal for it, PR_SET_PDEATHSIG, already comes when the starting thread ends.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(EXIT_FAILURE)

    threading.Thread(target=watch, daemon=True).start()
