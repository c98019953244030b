"""Run the preflight checks that the operator itself has the rights for.

Made when a resource is accepted and again during the stage before training, so that who waits hours
for data learns at once that no node will take the training pods. It holds nothing back: figures are
estimates, and nodes may yet come. Nor does it hold training up, which is why it is not made when
that is to begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from video2world_operator.kube.client import SMALL_PAGE, ApiClient
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.check import Verdict
from video2world_operator.preflight.node_fit import before_training
from video2world_operator.preflight.requirements import needs
from video2world_operator.reconcile.observed_state import Claim

__all__ = ["Foresight"]

FRESH = 60.0  # seconds for which the nodes that were seen are taken to be there


class Foresight:
    """Looks at nodes now and then, and judges plans by them."""

    def __init__(self, cluster: ApiClient) -> None:
        self.sees_nodes = False
        self._cluster = cluster
        self._nodes: Sequence[Mapping[str, Any]] | None = None
        self._seen_at = float("-inf")
        self._looking = asyncio.Lock()
        # by resource: of which spec, and whether in the stage before training; and what was found
        self._known: dict[tuple[str, str], tuple[tuple[int, bool], list[str]]] = {}

    async def of(
        self, key: tuple[str, str], plan: Plan, body: Mapping[str, Any], claim: Claim | None
    ) -> list[str] | None:
        """What speaks against the plan of ``body``; None once its training has begun."""
        states = {e["name"]: e["state"] for e in (body.get("status") or {}).get("stages") or []}
        if states.get("train", "Pending") != "Pending":
            return None
        moment = body["metadata"]["generation"], states.get("latents", "Pending") != "Pending"
        known = self._known.get(key)
        if known is None or known[0] != moment:
            spec = plan.resource.spec
            size = "" if spec.storage.claim_name else spec.volume_size
            if claim is not None and claim.found:
                size = claim.size
            known = self._known[key] = moment, await self.judge(plan, size)
        return known[1]

    def forget(self, key: tuple[str, str]) -> None:
        """The resource is gone."""
        self._known.pop(key, None)

    async def judge(self, plan: Plan, claim_size: str) -> list[str]:
        """What speaks against ``plan``, each with its remedy; empty if nothing does."""
        nodes = await self._look() if self.sees_nodes else None
        checks = before_training(plan, needs(plan.resource), nodes, claim_size)
        try:
            failed = [check for check in checks if check.verdict is Verdict.FAIL]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return []  # a pod template of the user's own can be anything: the API server's to judge
        return [f"{check.name}: {check.text}; {check.remedy}" for check in failed]

    async def _look(self) -> Sequence[Mapping[str, Any]] | None:
        if self._nodes is None or not self._looking.locked():  # others take what was seen before
            async with self._looking:
                if time.monotonic() - self._seen_at > FRESH:
                    self._seen_at = time.monotonic()
                    await self._list()
        return self._nodes

    async def _list(self) -> None:
        same: dict[str, Mapping[str, Any]] = {}
        found = self._cluster.list_objects("/api/v1/nodes", page=SMALL_PAGE)
        with contextlib.suppress(ApiError, OSError):  # not worth holding up a reconciliation
            self._nodes = [_trimmed(node, same) async for node in found]


def _trimmed(node: Mapping[str, Any], same: dict[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of thousands of nodes only what is asked of them; what is the ``same`` is one object, by
    which :mod:`video2world_operator.preflight.checks` knows nodes that are alike."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    kept = {key: spec[key] for key in ("taints", "unschedulable") if key in spec}
    room = {"allocatable": status.get("allocatable") or {}}
    return {
        "metadata": {"labels": node["metadata"].get("labels") or {}},
        "spec": same.setdefault(repr(kept), kept),
        "status": same.setdefault(repr(room), room),
    }
