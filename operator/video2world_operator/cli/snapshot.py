"""Hold what v2w reads of a resource: its status, pods, losses and objects in the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from video2world_common.progress_events import TrainProgress, parse
from video2world_operator.api.status import Phase, Status
from video2world_operator.preflight.dispatch import DispatchFacts
from video2world_operator.reconcile.observed_state import Job, Pod
from video2world_operator.reconcile.workload import Workload

__all__ = ["ClusterObjects", "Snapshot", "losses_of"]

KubeObject: TypeAlias = Mapping[str, Any]  # as the API server returns it


@dataclass(frozen=True)
class Snapshot:
    """A resource at one moment.

    ``losses`` are the newest ones reported, oldest first; ``note`` is something to show that the
    status does not say; ``gone``: the process of a local run is gone, but the run has not ended.
    """

    name: str
    status: Status
    pods: Sequence[Pod] = ()
    losses: Sequence[float] = ()
    note: str = ""
    gone: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more without the user."""
        return self.status.phase in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class ClusterObjects:
    """The cluster's objects that concern a resource; none of them for a local run.

    ``metadata`` and ``spec`` are the resource's; ``events`` are the namespace's core/v1 Events;
    ``jobs`` and ``nodes`` are None if the user may not list them; ``gpus_per_node`` is what one
    training pod requests; ``crd_problem`` says what is wrong with the CRD, if something is;
    ``workload`` is Kueue's of the current stage's Job, if that is in a queue;
    ``dispatch`` is there if the resource is MultiKueue's, and its other objects elsewhere.
    """

    metadata: KubeObject = field(default_factory=dict)
    spec: KubeObject = field(default_factory=dict)
    pvc: KubeObject | None = None
    events: Sequence[KubeObject] = ()
    nodes: Sequence[KubeObject] | None = None
    gpus_per_node: int = 0
    crd_problem: str = ""
    jobs: Sequence[Job] | None = None
    workload: Workload | None = None
    dispatch: DispatchFacts | None = None


def losses_of(lines: Iterable[str | bytes]) -> list[float]:
    """Return the losses in a worker's event lines."""
    events = (parse(line) for line in lines)
    return [e.loss for e in events if isinstance(e, TrainProgress) and e.loss is not None]
