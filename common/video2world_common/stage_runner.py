"""Run a worker command as a stage: skip it if it is complete, record the result, explain errors.

A stage's pod has ``V2W_STAGE``, ``V2W_RESOURCE`` and ``V2W_INPUTS_HASH`` in its environment and the
volume's root as its working directory. Without these, run by hand, a command just does its work.
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
from video2world_common.markers import NOT_DONE, Marker, Provenance, Verdict, reader
from video2world_common.subprocesses import stop_on_sigterm
from video2world_common.volume_id import VolumeLost, check

__all__ = ["explain_os_error", "run_stage"]

RESERVED = ("event", "stage")  # names that the fields of an event cannot have


def explain_os_error(error: OSError) -> str:
    """Explain a failed read or write to the user, with the remedy."""
    if error.errno in FULL:
        return (
            f"the volume is full while writing {error.filename or 'a file'} ({error.strerror}): "
            "raise spec.storage.size or delete unneeded files; finished files are kept"
        )
    if error.errno == errno.EROFS:
        return f"the volume is mounted read-only ({error.filename}): mount it writable"
    return str(error)


def _report_later_stages() -> None:
    """Report which of the following stages are complete on the volume already: they need no pod.

    Stop at the first that is not: later ones are checked once it has run.
    """
    listed = reader()
    for entry in filter(None, os.environ.get("V2W_LATER_STAGES", "").split(",")):
        name, _, inputs_hash = entry.partition("=")
        verdict = Marker(name, inputs_hash).judge(listed)
        if not verdict.done:
            return
        _report_skipped(verdict, inputs_hash)


def _report_skipped(verdict: Verdict, inputs_hash: str) -> None:
    """Report that a stage is complete, and repeat its result."""
    emit("skipped", verdict.stage, inputsHash=inputs_hash, message=verdict.note)
    fields = {name: value for name, value in verdict.result.items() if name not in RESERVED}
    if fields:
        emit(verdict.stage, verdict.stage, **fields)


Work = Callable[[], tuple[Provenance, Mapping[str, Any]] | None]


def run_stage(work: Work, *, stage: str) -> int:
    """Run ``work`` unless the stage is complete, and return the exit code of the command.

    ``work`` returns the provenance of its result and a summary for the log, or None if other shards
    are still missing; the last shard returns those of the complete result. A :class:`UserError` or
    ``OSError`` becomes one line on stderr instead of a traceback; any other exception is a defect
    and is raised.
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
                _report_skipped(verdict, marker.inputs_hash)
                _report_later_stages()
                return 0
            if verdict.why != NOT_DONE:
                say(f"{stage}: run again: {verdict.why}")
            marker.remove()  # interrupted work leaves the volume in no recorded state
        if (made := work()) is None:
            say(f"{stage}: this shard is complete, others are not")
            return 0
        provenance, summary = made
        if marker is not None:
            marker.write(provenance, summary)
        emit("finished", stage, **summary)
        _report_later_stages()
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
        print(f"error: {explain_os_error(error)}", file=sys.stderr, flush=True)
        emit("failed", stage, reason="IOError", message=explain_os_error(error))
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print(f"{stage}: interrupted; run it again to resume", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT
