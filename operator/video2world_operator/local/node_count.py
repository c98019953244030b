"""Choose how many nodes of a training group run on this machine, if it cannot have all of them."""

from __future__ import annotations

from collections.abc import Sequence

from video2world_operator.api.spec import Spec
from video2world_operator.reconcile.group_size import largest

__all__ = ["NodeCount"]


class NodeCount:
    """The nodes of the next attempt at training; :attr:`why` tells why these are not all.

    Unlike on a cluster nothing is waited for: this machine gets no more GPUs.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec, self._started = spec, spec.nodes
        self.why = ""

    @property
    def is_elastic(self) -> bool:
        """Whether the group may have fewer nodes."""
        return len(self._spec.usable_nodes) > 1

    def choose(self, gpus: Sequence[str]) -> int:
        """Return the number of nodes for a machine with these ``gpus``.

        Without any, as on a machine that only plans, all nodes are started.
        """
        spec = self._spec
        limit, self.why = self._started, f"{self._started} could be started"
        if spec.device == "GPU" and gpus and (room := len(gpus) // spec.processes_per_node) < limit:
            limit = room
            self.why = f"this machine has {len(gpus)} GPUs, and a node {spec.processes_per_node}"
        found = largest(spec.usable_nodes, limit) if self.is_elastic else None
        if found is None or found == spec.nodes:
            self.why = ""
        return found or spec.nodes

    def note_failed_start(self, started: int) -> bool:
        """Return whether fewer nodes may run after only ``started`` of them could be started."""
        if not self.is_elastic or largest(self._spec.usable_nodes, started) is None:
            return False
        self._started = started
        return True
