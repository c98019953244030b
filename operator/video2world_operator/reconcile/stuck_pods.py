"""Decide which pods outlived their grace period and must be force-deleted."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from video2world_operator.reconcile.actions import Delete, Policy
from video2world_operator.reconcile.observed_state import Pod

__all__ = ["outlived"]


def outlived(
    pods: Iterable[Pod], now: datetime, policy: Policy
) -> tuple[list[Delete], datetime | None]:
    """What takes pods that outlive their grace off their nodes, and when to look again. Those that
    have ended, too: where a kubelet is gone for good nobody else takes them."""
    bound = timedelta(seconds=policy.termination_bound)
    ends = [(pod.deleted + bound, pod) for pod in pods if pod.deleted is not None]
    forced = []
    for end, pod in ends:
        if end <= now:
            why = (
                f"Pod {pod.name} outlived its grace period by {policy.termination_bound:.0f} s: "
                f"its node {pod.node} does not answer."
            )
            forced.append(Delete("Pod", pod.name, pod.uid, force=True, why=why))
    return forced, min((end for end, _ in ends if end > now), default=None)
