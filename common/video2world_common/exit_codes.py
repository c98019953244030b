"""Define the exit codes of every command, and the error that means bad input."""

from __future__ import annotations

__all__ = ["EXIT_FAILURE", "EXIT_PREEMPTED", "EXIT_USER_ERROR", "UserError"]


EXIT_FAILURE = 1  # a defect or a fault of the machine: another attempt may succeed
EXIT_USER_ERROR = 2  # bad input: another attempt would fail the same way
EXIT_PREEMPTED = 143  # SIGTERM: state saved; not counted against the backoff limit


class UserError(Exception):
    """Bad input. The message names the field or file, what is wrong, and the remedy."""
