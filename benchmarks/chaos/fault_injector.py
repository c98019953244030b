"""Inject the faults of a schedule and report what each one did."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from . import cluster_faults, kueue_faults, operator_faults, user_actions
from .schedule import Fault
from .target import Target, retry

__all__ = ["FAULTS", "FaultInjector"]

FAULTS: dict[str, Callable[[Target, Fault, random.Random], str]] = {
    **operator_faults.FAULTS,
    **cluster_faults.FAULTS,
    **user_actions.FAULTS,
    **kueue_faults.FAULTS,
}


class FaultInjector:
    """Inject faults into a target, and undo what outlasts them."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def inject(self, fault: Fault) -> str:
        """Inject ``fault``, return when it is over, and describe what happened."""
        return FAULTS[fault.kind](self.target, fault, random.Random(fault.seed))

    def resume_all(self) -> None:
        """Resume every suspended resource and the queue; lost nodes stay lost."""
        kueue_faults.restore(self.target)
        everything = Fault(0, "users resume", options={"share": 1.0})

        def resume() -> None:
            done, _, total = user_actions.resume(
                self.target, everything, random.Random(0)
            ).partition(" of ")
            if done != total:
                raise OSError("not all resources could be resumed")

        retry(resume)

    def restore_nodes(self) -> None:
        """Bring back the lost nodes for the next trial."""
        while self.target.lost_nodes:
            name = self.target.lost_nodes.pop()
            retry(partial(cluster_faults.restore_node, self.target, name))
