"""Hold what one status display shows: status, pods and recent losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from video2world_common.progress_events import TrainProgress, parse
from video2world_operator.api.status import Phase, Status
from video2world_operator.reconcile.observed_state import Pod

__all__ = ["Snapshot", "losses_of"]


@dataclass(frozen=True)
class Snapshot:
    """What is known of a resource at one moment.

    ``losses`` are the newest ones told, oldest first; ``note`` is what the status cannot know;
    ``gone``: a local run whose process is no more, though it has not ended.
    """

    name: str
    status: Status
    pods: Sequence[Pod] = ()
    losses: Sequence[float] = ()
    note: str = ""
    gone: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more by itself."""
        return self.status.phase in (Phase.SUCCEEDED, Phase.FAILED)


def losses_of(lines: Iterable[str | bytes]) -> list[float]:
    """The losses that a worker's progress lines tell."""
    events = (parse(line) for line in lines)
    return [e.loss for e in events if isinstance(e, TrainProgress) and e.loss is not None]
