"""The frame every worker command runs in: skip what is done, mark what is finished, explain errors.

A stage pod has ``V2W_STAGE``, ``V2W_RESOURCE`` and ``V2W_INPUTS_HASH`` in its environment and the
volume's root as its working directory. Run by hand, without them, a command simply does its work.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from .events import emit, say
from .files import FULL
from .marks import NOT_DONE, STATE_FOLDER, Marker, Provenance, reader
from .volume import VolumeLost, check

__all__ = [
    "EXIT_FAILURE",
    "EXIT_PREEMPTED",
    "EXIT_USER_ERROR",
    "STATE_FOLDER",
    "Marker",
    "UserError",
    "end_with_parent",
    "explain",
    "run_stage",
    "stop_on_sigterm",
]

EXIT_FAILURE = 1  # a defect or the machine's fault: worth another attempt
EXIT_USER_ERROR = 2  # the input's fault: another attempt would end the same way
EXIT_PREEMPTED = 143  # SIGTERM: state saved, to be continued without charge


class UserError(Exception):
    """Bad input. The message names the field or file, what is wrong, and the remedy."""


def explain(error: OSError) -> str:
    """What a failed read or write means to the volume's owner, and what to do."""
    if error.errno in FULL:
        return (
            f"the volume is full while writing {error.filename or 'a file'} ({error.strerror}): "
            "enlarge spec.storage.size or delete what is not needed; finished files are kept"
        )
    if error.errno == errno.EROFS:
        return f"the volume is mounted read-only ({error.filename}): mount it writable"
    return str(error)


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


def _tell_later() -> None:
    """Report which of the stages that follow are on the volume already: they need no pod.

    It ends at the first that is not done: what follows is judged once that one has run.
    """
    listed = reader()
    for entry in filter(None, os.environ.get("V2W_LATER_STAGES", "").split(",")):
        name, _, inputs_hash = entry.partition("=")
        verdict = Marker(name, inputs_hash).judge(listed)
        if not verdict.done:
            return
        emit("skipped", name, inputsHash=inputs_hash, message=verdict.note)


Work = Callable[[], tuple[Provenance, Mapping[str, Any]] | None]


def run_stage(work: Work, *, stage: str) -> int:
    """Run ``work`` unless it is done already and return the exit code of the command.

    ``work`` returns what its result is bound to and a summary for the log, or None if its share is
    done but others' are not: the last of them returns what the whole is. A :class:`UserError` or an
    ``OSError`` becomes one clear line on stderr instead of a traceback; any other exception is a
    defect and is raised.
    """
    stop_on_sigterm()
    stage = os.environ.get("V2W_STAGE", stage)
    inputs_hash = os.environ.get("V2W_INPUTS_HASH")
    marker = Marker(stage, inputs_hash) if inputs_hash else None
    try:
        check(stage)
        if marker is not None:
            verdict = marker.judge()
            if verdict.done:
                note = f"; {verdict.note}" if verdict.note else ""
                say(f"{stage}: nothing to do, {verdict.why}{note}")
                emit("skipped", stage, inputsHash=inputs_hash, message=verdict.note)
                _tell_later()
                return 0
            if verdict.why != NOT_DONE:
                say(f"{stage}: run again: {verdict.why}")
            marker.remove()  # work that is broken off leaves the volume in no recorded state
        if (made := work()) is None:
            say(f"{stage}: this share is done, others are not")
            return 0
        provenance, summary = made
        if marker is not None:
            marker.write(provenance, summary)
        emit("finished", stage, **summary)
        _tell_later()
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        emit("failed", stage, reason="UserError", message=str(error))
        return EXIT_USER_ERROR
    except VolumeLost as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        emit("failed", stage, reason="VolumeLost", message=str(error))
        return EXIT_FAILURE
    except OSError as error:
        print(f"error: {explain(error)}", file=sys.stderr, flush=True)
        emit("failed", stage, reason="IOError", message=explain(error))
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print(f"{stage}: interrupted; run it again to go on", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT
