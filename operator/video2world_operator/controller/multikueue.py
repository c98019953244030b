"""Keep the Workloads of resources that another cluster runs, and of copies from other clusters.

What they need, :mod:`video2world_operator.plan.multikueue` decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from video2world_operator.controller.resource import Key, Object, Resource
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.plan import multikueue
from video2world_operator.plan.labels import RESOURCE_LABEL
from video2world_operator.plan.plan import Plan

__all__ = ["MultiKueue"]


class MultiKueue:
    """Keep the Workloads of resources as MultiKueue expects them."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._finished: dict[Key, str] = {}  # UIDs of copies whose Workload is finished

    async def dispatch(self, resource: Resource, plan: Plan, version: str) -> None:
        """Create, delete or update the Workloads of a resource that another cluster runs.

        Raises:
            ApiError, OSError: the API server refused or cannot be reached; retry.
        """
        namespace, name = resource.key
        label = {"labelSelector": f"{RESOURCE_LABEL}={name}"}
        path = path_of(version, "Workload", namespace)
        found = (await self._api.request("GET", path, params=label))["items"]
        now = self._api.clock.now()
        todo = multikueue.dispatch(plan, resource.body, resource.status, found, version, now)
        if todo.create is not None:
            await self._api.create(todo.create)
        for one in todo.delete:
            about = one["metadata"]
            await self._api.delete(version, "Workload", namespace, about["name"], about["uid"])
        if todo.patched is not None and todo.status is not None:
            await self._patch(version, todo.patched, "/status", {"status": todo.status})

    async def answer(self, resource: Resource, version: str) -> bool:
        """Own the Workload of a copy and return its quota, and finish it once the copy has ended.

        Returns whether it has to be looked at again, as Workloads are not watched.

        Raises:
            ApiError, OSError: the API server refused or cannot be reached; retry.
        """
        name = multikueue.workload_of_copy(resource.body["metadata"])
        if not name or self._finished.get(resource.key) == resource.uid:
            return False
        workload = await self._api.get(path_of(version, "Workload", resource.key[0], name))
        if workload is not None:
            metadata, status = multikueue.answer(
                workload, resource.body, resource.status, self._api.clock.now()
            )
            if metadata is not None:
                workload = await self._patch(version, workload, "", {"metadata": metadata})
            if status is not None:
                await self._patch(version, workload, "/status", {"status": status})
        if resource.ended:
            self._finished[resource.key] = resource.uid
        return not resource.ended

    def forget(self, key: Key) -> None:
        """Forget a resource that is gone."""
        self._finished.pop(key, None)

    async def _patch(
        self, version: str, workload: Object, subresource: str, change: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Merge ``change`` into the Workload unless it has changed since, and return it."""
        about = workload["metadata"]
        read = {"resourceVersion": about["resourceVersion"]}
        body = {**change, "metadata": {**change.get("metadata", {}), **read}}
        changed: dict[str, Any] = await self._api.request(
            "PATCH",
            path_of(version, "Workload", about["namespace"], about["name"]) + subresource,
            params={"fieldManager": "video2world-operator"},
            body=body,
            content_type="application/merge-patch+json",
            fenced=True,
        )
        return changed
