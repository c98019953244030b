"""Create and delete objects at the API server, as reconciliations decide."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.controller.event_recorder import EventRecorder
from video2world_operator.controller.key_state import UNSEEN, KeyState
from video2world_operator.controller.resource import Key, Object, Resource
from video2world_operator.kube.client import ApiClient, annotate, path_of
from video2world_operator.kube.errors import ApiError
from video2world_operator.reconcile.actions import Action, Annotate, Apply, Delete
from video2world_operator.reconcile.observed_state import Job

__all__ = ["Applier", "Outcome", "path_in", "split_passive"]

log = logging.getLogger(__name__)
Outcome = tuple[Apply | Delete, ApiError | None]  # None: it was applied

_VERSIONS = {"Job": "batch/v1", "Pod": "v1", KIND: API_VERSION}
_INSTANCE = "app.kubernetes.io/instance"


class Applier:
    """Apply actions. ``requeue`` takes a key and the seconds until its reconciliation."""

    def __init__(
        self, api: ApiClient, recorder: EventRecorder, requeue: Callable[[Key, float], None]
    ) -> None:
        self._api, self._recorder, self._requeue = api, recorder, requeue

    async def apply_in_order(
        self,
        resource: Resource,
        state: KeyState,
        actions: Sequence[Action],
        outcomes: list[Outcome],
    ) -> None:
        """Apply the actions, after those of ``outcomes``; remember what the API server refuses.

        Nothing is created after an object that was refused, as it may need that one.

        Raises:
            ApiError: an object was refused, for the reason of last time.
            OSError: the API server cannot be reached.
        """
        for action in actions:
            if isinstance(action, Annotate):
                await self._annotate(resource.key[0], action)
                continue
            refused = any(error and isinstance(other, Apply) for other, error in outcomes)
            if not (refused and isinstance(action, Apply)):
                outcomes.append(await self._apply(resource, state, action))
        refusals = [(action, error) for action, error in outcomes if error is not None]
        before = state.problems
        state.problems = tuple(f"{_summary(action)}: {error}" for action, error in refusals)
        if state.problems != before:
            self._requeue(resource.key, 0.0)  # so that the condition shows it, or no longer does
        elif refusals:
            raise refusals[-1][1]  # the work queue's backoff decides when to try again

    async def apply_together(
        self, resource: Resource, state: KeyState, actions: Sequence[Apply]
    ) -> list[Outcome]:
        """Apply the actions concurrently, and wait for all of them even if one fails.

        Raises:
            OSError: the API server cannot be reached.
        """
        outcomes: list[Outcome] = []
        for outcome in await asyncio.gather(
            *(self._apply(resource, state, action) for action in actions), return_exceptions=True
        ):
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    async def _annotate(self, namespace: str, action: Annotate) -> None:
        """Set annotations; the next reconciliation tries again what the API server refuses."""
        try:
            path = path_of(_VERSIONS[action.kind], action.kind, namespace, action.name)
            await annotate(self._api, path, action.uid, action.annotations)
        except ApiError as error:
            log.debug("%s %s/%s is not annotated: %s", action.kind, namespace, action.name, error)

    async def _apply(self, resource: Resource, state: KeyState, action: Apply | Delete) -> Outcome:
        try:
            if isinstance(action, Apply):
                await self._create(resource, state, action.manifest)
            else:
                if (identified := await self._identified(resource, action)) is not None:
                    await self.delete(resource.key[0], identified)
                if action.why:
                    reason = "PodForceDeleted" if action.force else "SidecarEnded"
                    await self._recorder.record(resource, "Warning", reason, action.why, action.uid)
        except ApiError as error:
            return action, error
        return action, None

    async def _create(self, resource: Resource, state: KeyState, manifest: Object) -> None:
        """Create the object unless it exists. One of another owner is never changed."""
        kind, path = manifest["kind"], path_in(manifest)
        # A watch has yet to bring it. A PVC is read from the API server, and may have been deleted
        # since; a PodGroup may be of an earlier spec, with another size.
        if kind not in ("PersistentVolumeClaim", "PodGroup") and state.created_recently(path):
            self._requeue(resource.key, UNSEEN)
            return
        # the PVC is applied with every stage, and exists from the first one on
        found = await self._api.get(path) if kind == "PersistentVolumeClaim" else None
        if found is None and await self._api.create(manifest):
            state.note_created(path)
            return
        found = found or await self._api.get(path)
        if found is None:  # it was deleted meanwhile
            self._requeue(resource.key, 0.0)
        elif _is_ours(found, manifest):
            await self._keep(found, manifest)
        elif await self.delete_orphans([found], resource):
            state.pvc = None
            raise _already_exists("the one of the last resource of this name is being deleted")
        else:
            raise _already_exists(
                "an object of this name is there that is not this resource's: delete it, or give "
                f"the resource {resource.key[1]} another name"
            )

    async def _keep(self, found: Object, manifest: Object) -> None:
        """Keep the object unless it is a PodGroup of another size, which is deleted.

        Raises:
            ApiError: it is being deleted; the new one has to wait.
        """
        if "deletionTimestamp" in found["metadata"]:
            raise _already_exists("the last one of this name is being deleted")
        if manifest["kind"] != "PodGroup" or _covers(found.get("spec"), manifest["spec"]):
            return
        # the gang of a spec that has changed since would wait for pods that never come
        metadata = found["metadata"]
        await self._api.delete(
            manifest["apiVersion"],
            manifest["kind"],
            metadata["namespace"],
            metadata["name"],
            metadata["uid"],
        )
        raise _already_exists("the one of another size is being deleted")

    async def _identified(self, resource: Resource, action: Delete) -> Delete | None:
        """Return ``action`` with a UID; None if the resource owns no object of that name."""
        if action.uid:
            return action
        path = path_of(action.version, action.kind, resource.key[0], action.name)
        metadata = (await self._api.get(path) or {}).get("metadata", {})
        owners = {owner["uid"] for owner in metadata.get("ownerReferences", [])}
        return replace(action, uid=metadata["uid"]) if resource.uid in owners else None

    async def delete(self, namespace: str, action: Delete) -> None:
        """Delete the object of ``action``, if it still exists."""
        await self._api.delete(
            action.version or _VERSIONS[action.kind],
            action.kind,
            namespace,
            action.name,
            action.uid,
            force=action.force,
        )

    async def delete_orphaned_jobs(self, resource: Resource, jobs: Iterable[Job]) -> None:
        """Delete Jobs of an earlier resource of this name: this one waits for their pods."""
        paths = [
            path_of("batch/v1", "Job", resource.key[0], job.name)
            for job in jobs
            if job.owner not in ("", resource.uid) and not job.deleting
        ]
        found = [await self._api.get(path) for path in paths]
        await self.delete_orphans([one for one in found if one is not None], resource)

    async def delete_orphans(self, found: Sequence[Object], resource: Resource) -> bool:
        """Delete those of ``found`` that belong to an earlier resource of the same name.

        Returns whether there were any. Kubernetes' garbage collector would delete them too, unless
        its watch was interrupted while the resource was deleted and created again: it then never
        learns of the deletion. Foreground deletion keeps the same from happening to the objects and
        their pods. The resource is read again after the objects: none can belong to a later one.
        """
        orphans = [one for one in found if _is_orphan(one, resource)]
        if not orphans or not await self._exists(resource):
            return False
        for one in orphans:
            metadata = one["metadata"]
            await self._api.delete(
                one["apiVersion"],
                one["kind"],
                metadata["namespace"],
                metadata["name"],
                metadata["uid"],
                foreground=True,
            )
        return True

    async def _exists(self, resource: Resource) -> bool:
        """Ask the API server whether ``resource`` is the one of its name."""
        namespace, name = resource.key
        path = path_of(API_VERSION, KIND, namespace)
        named = self._api.list_objects(path, fieldSelector=f"metadata.name={name}")
        return [one["metadata"]["uid"] async for one in named] == [resource.uid]


def split_passive(actions: Iterable[Action]) -> tuple[list[Apply], list[Action]]:
    """Split off the objects that do nothing by themselves (Services, PodGroups), in order.

    They are created while the status is written, before the Job that needs them.
    """
    passive: list[Apply] = []
    others: list[Action] = []
    for action in actions:
        if isinstance(action, Apply) and action.manifest["kind"] in ("PodGroup", "Service"):
            passive.append(action)
        else:
            others.append(action)
    return passive, others


def path_in(manifest: Object) -> str:
    """Return the URL path of the object of ``manifest``."""
    metadata = manifest["metadata"]
    return path_of(
        manifest["apiVersion"], manifest["kind"], metadata["namespace"], metadata["name"]
    )


def _already_exists(message: str) -> ApiError:
    return ApiError(409, "AlreadyExists", message)


def _is_ours(found: Object, manifest: Object) -> bool:
    """Whether an existing object has the owner and the label of ``manifest``."""
    owners = {o["uid"] for o in found["metadata"].get("ownerReferences", [])}
    wanted = {o["uid"] for o in manifest["metadata"].get("ownerReferences", [])}
    label = found["metadata"].get("labels", {}).get(_INSTANCE)
    return wanted <= owners and label == manifest["metadata"]["labels"][_INSTANCE]


def _covers(found: Any, wanted: Any) -> bool:
    """Whether ``found`` has all fields of ``wanted``; the API server may have added others."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            _covers(found.get(key), value) for key, value in wanted.items()
        )
    return bool(found == wanted)


def _is_orphan(found: Object, resource: Resource) -> bool:
    """Whether an object was created for an earlier resource of the name, to be deleted with it.

    A PVC has an owner only if its ``retention`` was Delete.
    """
    return any(
        (one["apiVersion"], one["kind"], one["name"]) == (API_VERSION, KIND, resource.key[1])
        and one.get("controller")
        and one["uid"] != resource.uid
        for one in found["metadata"].get("ownerReferences", [])
    )


def _summary(action: Apply | Delete) -> str:
    if isinstance(action, Apply):
        return f"{action.manifest['kind']} {action.manifest['metadata']['name']}"
    return f"deleting {action.kind} {action.name}"
