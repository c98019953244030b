"""Run torchrun with the workers' own exit codes, and with time for workers to save.

``python -m video2world_trainer.launch`` takes torchrun's flags and ``PET_*`` environment variables.
torchrun itself exits with 1 whatever its workers' exit codes are, so that a user error (2) or a
preemption with saved state (143) would look like a crash. In a pod of an Indexed Job the node rank
is the pod's completion index.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from video2world_common.events import emit
from video2world_common.exit_codes import EXIT_FAILURE, EXIT_PREEMPTED, EXIT_USER_ERROR
from video2world_common.volume_id import VolumeLost, check

__all__ = ["main"]

STOP_SECONDS = 600  # for workers to save after SIGTERM; the 2B model takes about a minute
FAILURE_SECONDS = 10  # for workers to report that they lost a rank; they cannot continue

_torch_close = PContext.close


def _close(self: PContext, death_sig: signal.Signals | None = None, timeout: int = 0) -> None:
    """End the workers, with more time to exit if torchrun has received a signal.

    This replaces ``PContext.close``, because torch has no setting for both times: 2.11 has none and
    always waits 30 s. The ``--shutdown-timeout`` of 2.12 applies to signals only, and raises the
    minimum version; after a failure, ``PContext.wait`` still closes with 30 s.
    """
    signalled = isinstance(sys.exception(), SignalException)
    _torch_close(self, death_sig, STOP_SECONDS if signalled else FAILURE_SECONDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Launch the workers and return the exit code of the one that ended first."""
    if (index := os.environ.get("JOB_COMPLETION_INDEX")) is not None:
        # pod 0 must have rank 0: the operator reads its log, and the other pods connect to its name
        os.environ.setdefault("PET_NODE_RANK", index)
    stage = os.environ.get("V2W_STAGE", "train")
    try:
        check(stage)
    except VolumeLost as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        emit("failed", stage, reason="VolumeLost", message=str(error))
        return EXIT_FAILURE
    PContext.close = _close  # type: ignore[method-assign]  # see _close
    # workers report their own errors, which torchrun's tables would bury
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    try:
        run(parse_args(list(sys.argv[1:] if argv is None else argv)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code in (EXIT_USER_ERROR, EXIT_PREEMPTED):
            return code
        print(f"error: rank {rank} ended with {code}", file=sys.stderr, flush=True)
        return EXIT_FAILURE
    except SignalException:
        return EXIT_PREEMPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
