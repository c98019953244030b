"""Run the preflight checks that the operator itself has the rights for.

They run when a resource is accepted, and again during the last stage before training, so users
learn before hours of data preparation that no node can take the training pods. A failed check only
warns: the figures are estimates, and nodes may still be added. The checks do not run when training
is about to start, so that they never delay it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from video2world_operator.kube.client import SMALL_PAGE, ApiClient
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.optional_apis import Capabilities
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.check import Verdict
from video2world_operator.preflight.device_facts import (
    device_facts,
    list_slices,
    template_names,
)
from video2world_operator.preflight.facts import DeviceFacts
from video2world_operator.preflight.node_fit import before_training
from video2world_operator.preflight.queues import queue_problem
from video2world_operator.preflight.requirements import estimate
from video2world_operator.reconcile.observed_state import Claim

__all__ = ["NodePreflight"]

MAX_AGE = 60.0  # seconds after which nodes and devices are listed again


class NodePreflight:
    """Check plans against the nodes of the cluster, which are listed once in a while."""

    def __init__(self, cluster: ApiClient) -> None:
        self.may_list_nodes = False
        self._cluster = cluster
        self._nodes: Sequence[Mapping[str, Any]] | None = None
        self._listed_at = float("-inf")
        self._listing = asyncio.Lock()
        self._slices: Sequence[Mapping[str, Any]] | None = None
        self._slices_listed_at = float("-inf")
        self._listing_slices = asyncio.Lock()
        # by resource: its generation, whether in the last stage before training; when, and failures
        self._known: dict[tuple[str, str], tuple[tuple[int, bool], float, list[str]]] = {}

    async def failures(
        self,
        key: tuple[str, str],
        plan: Plan,
        body: Mapping[str, Any],
        claim: Claim | None,
        capabilities: Capabilities,
    ) -> list[str] | None:
        """Return the failed checks of the plan of ``body``; None once its training has begun."""
        states = {e["name"]: e["state"] for e in (body.get("status") or {}).get("stages") or []}
        if states.get("train", "Pending") != "Pending":
            return None
        moment = body["metadata"]["generation"], states.get("latents", "Pending") != "Pending"
        known = self._known.get(key)
        spec, age = plan.resource.spec, time.monotonic() - (known[1] if known else 0)
        # a claim's template may be created right after the resource
        again = bool(known and known[2] and age > MAX_AGE and template_names(spec))
        if known is None or known[0] != moment or again:
            size = "" if spec.storage.claim_name else spec.volume_size
            if claim is not None and claim.found:
                size = claim.size
            failed = await self._queue_problems(plan, capabilities)
            failed += await self.check(plan, size, capabilities)
            known = self._known[key] = moment, time.monotonic(), failed
        return known[2]

    def forget(self, key: tuple[str, str]) -> None:
        """Drop the results of a resource that is gone."""
        self._known.pop(key, None)

    async def _queue_problems(self, plan: Plan, capabilities: Capabilities) -> list[str]:
        queue, problem = plan.resource.spec.scheduling.queue_name, ""
        if queue:
            with contextlib.suppress(ApiError, OSError):  # not worth delaying a reconciliation
                problem = await queue_problem(self._cluster, capabilities, plan.namespace, queue)
        return [f"queue: {problem}"] if problem else []

    async def check(
        self, plan: Plan, claim_size: str, capabilities: Capabilities | None = None
    ) -> list[str]:
        """Return the failed checks of ``plan``, each with its remedy."""
        nodes = await self._recent_nodes() if self.may_list_nodes else None
        devices = None
        if names := template_names(plan.resource.spec):
            devices = await self._claimed(plan.namespace, names, capabilities or Capabilities())
        checks = before_training(plan, estimate(plan.resource), nodes, claim_size, devices)
        try:
            failed = [check for check in checks if check.verdict is Verdict.FAIL]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return []  # a user's pod template can be anything; the API server validates it
        return [f"{check.name}: {check.text}; {check.remedy}" for check in failed]

    async def _recent_nodes(self) -> Sequence[Mapping[str, Any]] | None:
        # while the list is renewed, others use the one from before
        if self._nodes is None or not self._listing.locked():
            async with self._listing:
                if time.monotonic() - self._listed_at > MAX_AGE:
                    self._listed_at = time.monotonic()
                    await self._list()
        return self._nodes

    async def _claimed(
        self, namespace: str, templates: Sequence[str], capabilities: Capabilities
    ) -> DeviceFacts | None:
        """Return what there is for claims by ``templates``; ResourceSlices as of a minute ago."""
        try:
            async with self._listing_slices:
                if time.monotonic() - self._slices_listed_at > MAX_AGE:
                    self._slices = await list_slices(self._cluster, capabilities)
                    self._slices_listed_at = time.monotonic()
            return await device_facts(
                self._cluster, capabilities, namespace, templates, self._slices
            )
        except (ApiError, OSError):  # not worth delaying a reconciliation
            return None

    async def _list(self) -> None:
        same: dict[str, Mapping[str, Any]] = {}
        found = self._cluster.list_objects("/api/v1/nodes", page=SMALL_PAGE)
        with contextlib.suppress(ApiError, OSError):  # not worth delaying a reconciliation
            self._nodes = [_trimmed(node, same) async for node in found]


def _trimmed(node: Mapping[str, Any], same: dict[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Keep only what the checks read, since there can be thousands of nodes.

    Equal parts become one object (from ``same``), by which
    :mod:`video2world_operator.preflight.node_fit` recognizes equal nodes.
    """
    spec, status = node.get("spec") or {}, node.get("status") or {}
    kept = {key: spec[key] for key in ("taints", "unschedulable") if key in spec}
    room = {"allocatable": status.get("allocatable") or {}}
    return {
        "metadata": {
            "name": node["metadata"].get("name", ""),
            "labels": node["metadata"].get("labels") or {},
        },
        "spec": same.setdefault(repr(kept), kept),
        "status": same.setdefault(repr(room), room),
    }
