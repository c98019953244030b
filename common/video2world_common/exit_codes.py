"""Define the exit codes of every command, and the error that means bad input."""

from __future__ import annotations

__all__ = ["EXIT_FAILURE", "EXIT_PREEMPTED", "EXIT_USER_ERROR", "UserError"]


EXIT_FAILURE = 1  # a defect or the machine's fault: worth another attempt
EXIT_USER_ERROR = 2  # the input's fault: another attempt would end the same way
EXIT_PREEMPTED = 143  # SIGTERM: state saved, to be continued without charge


class UserError(Exception):
    """Bad input. The message names the field or file, what is wrong, and the remedy."""
