"""What a reconciliation wants done, as values; the controller carries them out in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from video2world_operator.api.status import Status
from video2world_operator.reconcile import stuck_stages

__all__ = ["Action", "Apply", "Decision", "Delete", "Policy"]


@dataclass(frozen=True)
class Policy:
    """Bounds of the operator's own, in seconds."""

    termination_bound: float = 60  # a pod that outlives its grace by so long is force-deleted
    look_again: float = 15  # while something outside must change that cannot be watched
    seldom: float = 300  # the longest time between two such looks: a tenth of the time waited
    longest_backoff: float = 600
    unattended: float = 30  # a gang of which no scheduler has taken notice for so long has none
    stuck_after: float = stuck_stages.BOUND  # without progress a stage counts as stuck
    short_life: float = 60  # an attempt that ended sooner is followed after a pause, if uncharged


@dataclass(frozen=True)
class Apply:
    """Create the object ``manifest``, unless an object of that name is there already."""

    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Delete:
    """Delete this very object (by UID); ``force`` does not wait for its node. ``why`` is for the
    event that tells people, if there is something to tell."""

    kind: str
    name: str
    uid: str
    force: bool = False
    why: str = ""


Action = Apply | Delete


@dataclass(frozen=True)
class Decision:
    """The outcome: ``status`` is written first, then the actions are carried out; only what does
    nothing by itself (a Service, a PodGroup) may be made while it is written.

    ``status`` None leaves it as it is. At ``wake`` the resource is looked at again, also if
    nothing happens until then. ``stuck`` are the UIDs of objects that make no progress: the events
    about them say why.
    """

    status: Status | None
    actions: tuple[Action, ...] = field(default=())
    wake: datetime | None = None
    stuck: tuple[str, ...] = ()
