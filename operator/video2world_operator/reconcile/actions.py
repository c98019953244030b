"""Define the result of a reconciliation; the controller runs its actions in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from video2world_operator.api.status import Status
from video2world_operator.reconcile import stuck_stages

__all__ = ["Action", "Annotate", "Apply", "Decision", "Delete", "Policy"]


@dataclass(frozen=True)
class Policy:
    """Time limits of the operator, in seconds."""

    termination_bound: float = 60  # beyond its grace period, before a pod is force-deleted
    min_requeue: float = 15  # while waiting for something that is not watched
    max_requeue: float = 300  # then a tenth of the time waited so far, at most this
    max_backoff: float = 600
    gang_timeout: float = 30  # for a scheduler to act on a gang
    stuck_after: float = stuck_stages.BOUND  # without progress
    elastic_after: float = 600  # without all nodes, or with room for more, until a group changes
    short_lived: float = 60  # attempts shorter than this are not restarted at once


@dataclass(frozen=True)
class Apply:
    """Create the object ``manifest``, unless an object of that name exists."""

    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Delete:
    """Delete the object with this UID; ``force`` does not wait for its node.

    An empty UID stands for the resource's own object of that name. If ``why`` is not empty, an
    Event reports it.
    """

    kind: str
    name: str
    uid: str
    force: bool = False
    why: str = ""
    version: str = ""  # of the API; empty if the kind has only one


@dataclass(frozen=True)
class Annotate:
    """Set annotations of the object with this UID, if it still exists; nothing depends on them."""

    kind: str
    name: str
    uid: str
    annotations: Mapping[str, str]


Action = Annotate | Apply | Delete


@dataclass(frozen=True)
class Decision:
    """The result: ``status`` is written first, then the actions are run.

    Only objects that do nothing by themselves (a Service, a PodGroup) may be created while the
    status is written. A ``status`` of None leaves it unchanged. The resource is reconciled again at
    ``wake``, even if nothing happens until then. ``stuck`` are the UIDs of objects that make no
    progress; the Events about them tell why.
    """

    status: Status | None
    actions: tuple[Action, ...] = field(default=())
    wake: datetime | None = None
    stuck: tuple[str, ...] = ()
