"""What a reconciliation wants done, as values; the controller carries them out in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

__all__ = ["Action", "Apply", "Decision", "Delete"]


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

    status: Mapping[str, Any] | None
    actions: tuple[Action, ...] = field(default=())
    wake: datetime | None = None
    stuck: tuple[str, ...] = ()
