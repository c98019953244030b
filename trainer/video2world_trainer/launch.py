"""torchrun, but with the exit code of the worker that ended first, and time for workers to save.

``python -m video2world_trainer.launch`` takes torchrun's flags and ``PET_*`` environment. torchrun
ends with 1 whatever its workers say, so that nobody could tell the user's mistake (2) and a saved
preemption (143) from a crash; and it gives workers 30 s to end, whether it was asked to stop or one
of them is gone. In a pod of an Indexed Job the node's rank is the pod's index.
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

GRACE_SECONDS = 600  # for saving, after SIGTERM: at 2B that takes a minute
LEFT_SECONDS = 10  # for those whose peer is gone to say so; they can compute nothing any more


_plain_close = PContext.close


def _close(self: PContext, death_sig: signal.Signals | None = None, timeout: int = 0) -> None:
    """End the workers; torchrun comes here while it handles the signal, if it was sent one.

    A later torch takes the time for the first from the environment, and for the second the same.
    """
    asked = isinstance(sys.exception(), SignalException)
    _plain_close(self, death_sig, GRACE_SECONDS if asked else LEFT_SECONDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Launch the workers and return the exit code of the whole."""
    if (index := os.environ.get("JOB_COMPLETION_INDEX")) is not None:
        # pod 0 holds rank 0, whose log tells of the run and whose name the others wait for
        os.environ.setdefault("PET_NODE_RANK", index)
    stage = os.environ.get("V2W_STAGE", "train")
    try:
        check(stage)
    except VolumeLost as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        emit("failed", stage, reason="VolumeLost", message=str(error))
        return EXIT_FAILURE
    PContext.close = _close  # type: ignore[method-assign]
    # the workers explain themselves; torchrun's tables would bury what they say
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
