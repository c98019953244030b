"""End helper processes together with the command that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

from video2world_common.exit_codes import EXIT_FAILURE, EXIT_PREEMPTED

__all__ = ["end_with_parent", "stop_on_sigterm"]


def stop_on_sigterm() -> None:
    """Turn SIGTERM into SystemExit(143), so that ``finally`` blocks delete partial files."""

    def stop(signum: int, frame: object) -> None:
        raise SystemExit(EXIT_PREEMPTED)

    signal.signal(signal.SIGTERM, stop)


def end_with_parent() -> None:
    """End this helper process when its parent ends, and leave interrupts to the parent.

    A helper that outlived its parent would write to a volume that others own by then. (The signal
    of PR_SET_PDEATHSIG is no alternative: it is sent when the thread that started us ends.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(EXIT_FAILURE)

    threading.Thread(target=watch, daemon=True).start()
