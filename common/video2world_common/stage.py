"""The frame every worker command runs in: skip what is done, mark what is finished, explain errors.

A stage pod has ``V2W_STAGE``, ``V2W_RESOURCE`` and ``V2W_INPUTS_HASH`` in its environment and the
volume's root as its working directory. Run by hand, without them, a command simply does its work.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from video2world_common.events import emit, say
from video2world_common.exit_codes import EXIT_FAILURE, EXIT_USER_ERROR, UserError
from video2world_common.files import FULL
from video2world_common.markers import NOT_DONE, STATE_FOLDER, Marker, Provenance, reader
from video2world_common.subprocesses import stop_on_sigterm
from video2world_common.volume_id import VolumeLost, check

__all__ = ["STATE_FOLDER", "Marker", "explain", "run_stage"]


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
