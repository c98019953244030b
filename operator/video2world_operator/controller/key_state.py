"""Remember per resource what the controller needs from one reconciliation to the next."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from video2world_common.progress_events import Event
from video2world_operator.controller.resource import Resource
from video2world_operator.reconcile.observed_state import Claim, VolumePeer
from video2world_operator.reconcile.workload import Workload

__all__ = ["KeyState", "LogPosition", "RefusedStatus", "StatusWrite"]

UNSEEN = 5.0  # seconds for which a created object is taken to exist though no watch has brought it


@dataclass(frozen=True)
class StatusWrite:
    """Our last status write: the version it replaced, and the resource as it was then."""

    replaced: str
    resource: Resource

    def is_newer_than(self, seen: Resource) -> bool:
        """Whether ``seen`` is from before this write.

        It may be older than the version that was replaced, too, if several writes were faster than
        the watch. Resource versions of one kind compare as numbers (KEP-5504).
        """
        if seen.uid != self.resource.uid:
            return False
        if seen.version.isdecimal() and self.resource.version.isdecimal():
            return int(seen.version) < int(self.resource.version)
        return seen.version == self.replaced


@dataclass(frozen=True)
class RefusedStatus:
    """A status that the API server refused and would refuse again."""

    reason: str
    pause: float  # seconds
    until: float  # by the monotonic clock


@dataclass
class LogPosition:
    """How far a pod's log has been read."""

    read_at: float = field(default_factory=time.monotonic)  # a worker reports nothing at its start
    since: str = ""  # timestamp of the last line read
    lines: int = 0  # lines read with that timestamp
    final: bool = False  # the pod had ended when it was read


@dataclass
class KeyState:
    """What is remembered about one resource. Times are by the monotonic clock."""

    last_write: StatusWrite | None = None
    written_at: float = 0.0  # when a status was last written
    refused: RefusedStatus | None = None
    just_accepted: bool = False  # its first status has been written, and nothing created yet
    problems: tuple[str, ...] = ()  # what the API server refused in the last reconciliation
    pvc: tuple[float, Claim] | None = None  # when the PVC was last read, and its state
    # when the Workload of a Job (its UID) was last read, and its state
    workload: tuple[float, str, Workload | None] | None = None
    created: dict[str, float] = field(default_factory=dict)  # objects created of late, by path
    logs: dict[str, LogPosition] = field(default_factory=dict)  # by UID of the pod
    events: list[Event] = field(default_factory=list)  # of workers, not in a written status yet
    # what the resource does on a shared volume, for a UID and generation
    volume_use: tuple[tuple[str, int], VolumePeer | None] | None = None

    def note_created(self, path: str) -> None:
        """Remember that the object at ``path`` was created, for :data:`UNSEEN` seconds."""
        now = time.monotonic()
        self.created = {p: then for p, then in self.created.items() if now - then < UNSEEN}
        self.created[path] = now

    def created_recently(self, path: str) -> bool:
        """Whether the object was created so recently that it may not be in the cache yet."""
        return time.monotonic() - self.created.get(path, float("-inf")) < UNSEEN
