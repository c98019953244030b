"""Decide whether an error costs one item or ends the stage."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from video2world_common.exit_codes import UserError
from video2world_common.files import FULL
from video2world_preprocess.stage_report import Report

__all__ = ["Crashed", "failed_items", "is_unexpected", "nothing_left", "reason_for"]

# Errors of the volume or the machine: the next item would fail, too.
OF_THE_MACHINE = (
    *FULL,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.EMFILE,
    errno.ENFILE,
)
NOT_ALLOWED = (errno.EACCES, errno.EPERM)
OF_THE_GPU = ("CUDA error", "CUDA driver error")  # the process cannot use the GPU again


class Crashed(Exception):
    """A worker process ended while it worked on an item; the message says how."""


def reason_for(error: Exception, output: Path) -> str:
    """Return why the item that raised ``error`` is left out.

    Raises:
        Exception: ``error`` itself, if the machine or the volume failed: a full disk, no
            permission to write to the folder ``output``, or a failed GPU.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, Crashed):
        return f"unexpected end: {error}"
    if isinstance(error, RuntimeError) and str(error).startswith(OF_THE_GPU):
        raise error
    if isinstance(error, OSError) and not _of_a_library(error):
        if error.errno in OF_THE_MACHINE:
            raise error
        if error.errno in NOT_ALLOWED and _is_below(error.filename, output):
            raise error
    message = str(error) or "no message"
    return f"unexpected {type(error).__name__}: {message}{_place(error)}"


def is_unexpected(reason: str) -> bool:
    """Whether ``reason`` is a defect or the machine's, so that another attempt may succeed."""
    return reason.startswith("unexpected ")


def failed_items(report: Report) -> list[str]:
    """Return the items for which another attempt may succeed."""
    return [problem.item for problem in report.dropped if is_unexpected(problem.reason)]


def nothing_left(message: str, report: Report) -> Exception:
    """Return the error of a stage that has left out all items."""
    unexpected = [p.reason for p in report.dropped if is_unexpected(p.reason)]
    return OSError(f"{message}: {unexpected[0]}") if unexpected else UserError(message)


def _of_a_library(error: OSError) -> bool:
    """Whether ``error`` is a decoder's, which PyAV derives from OSError, not the system's."""
    return type(error).__module__.partition(".")[0] != "builtins"


def _is_below(name: object, folder: Path) -> bool:
    if not isinstance(name, str | bytes):
        return False
    path, root = os.path.realpath(os.fsdecode(name)), os.path.realpath(folder)
    return os.path.commonpath((path, root)) == root


def _place(error: Exception) -> str:
    """Return the line of code that raised ``error``."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f" ({Path(code.co_filename).name}:{trace.tb_lineno})"
