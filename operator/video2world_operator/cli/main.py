"""Run v2w (and kubectl v2w): parse the command line and call the command."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence

from video2world_common.exit_codes import EXIT_FAILURE, EXIT_USER_ERROR
from video2world_operator.cli.common import DOCTOR, UsageError, require_cluster, uses_cluster
from video2world_operator.cli.parser import parser

__all__ = ["main"]

# Modules are imported only when their command runs: `v2w --help` stays fast.
_LOCAL: Mapping[str, tuple[str, str]] = {
    "init": ("init", "init"),
    "completion": ("completion", "completion"),
    "validate": ("spec_commands", "validate"),
    "render": ("spec_commands", "render"),
    "preflight": ("preflight", "run_checks"),
    "run": ("run", "run"),
    "status": ("inspect", "status_local"),
    "explain": ("inspect", "explain_local"),
    "logs": ("inspect", "logs_local"),
    "checkpoints": ("inspect", "checkpoints_local"),
    "doctor": ("doctor", "doctor_local"),
}
_CLUSTER: Mapping[str, tuple[str, str]] = {
    "status": ("inspect", "status_cluster"),
    "explain": ("inspect", "explain_cluster"),
    "logs": ("inspect", "logs_cluster"),
    "checkpoints": ("inspect", "checkpoints_cluster"),
    "doctor": ("doctor", "doctor_cluster"),
    "suspend": ("suspend", "suspend_cluster"),
    "resume": ("suspend", "resume_cluster"),
}


def _call(module: str, function: str, args: argparse.Namespace) -> int:
    found = importlib.import_module(f"video2world_operator.cli.{module}")
    return int(getattr(found, function)(args))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``v2w``; returns the exit code (2: a mistake of the user)."""
    args = parser().parse_args(argv)
    try:
        on_cluster = args.command in _CLUSTER
        if on_cluster and (args.command not in _LOCAL or uses_cluster(args)):
            require_cluster()
            return _call(*_CLUSTER[args.command], args)
        return _call(*_LOCAL[args.command], args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:  # the reader of the pipe has exited
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        name = getattr(args, "name", None) or "NAME"
        print(f"error: this is a defect of v2w; {DOCTOR.format(name=name)}", file=sys.stderr)
        return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
