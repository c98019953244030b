"""Apply and delete child objects at the API server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.controller.keys import Object
from video2world_operator.kube.client import path_of
from video2world_operator.kube.errors import ApiError
from video2world_operator.reconcile.actions import Action, Apply, Delete

Outcome = tuple[Action, ApiError | None]  # None where it was done
UNSEEN = 5.0  # seconds for which an object just made is taken to be there

_VERSIONS = {"Job": "batch/v1", "Pod": "v1", KIND: API_VERSION}


def _idle_first(actions: Iterable[Action]) -> tuple[list[Action], list[Action]]:
    """The objects that do nothing by themselves (a Service, a PodGroup), and all other actions in
    their order. The first are made while the status is written, before the Job that needs them."""
    idle: list[Action] = []
    others: list[Action] = []
    for action in actions:
        is_idle = isinstance(action, Apply) and action.manifest["kind"] in ("PodGroup", "Service")
        (idle if is_idle else others).append(action)
    return idle, others


def _path(manifest: Object) -> str:
    metadata = manifest["metadata"]
    return path_of(
        manifest["apiVersion"], manifest["kind"], metadata["namespace"], metadata["name"]
    )


def _covers(found: Any, wanted: Any) -> bool:
    """Whether ``found`` says all that ``wanted`` does; the API server may have added to it."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            _covers(found.get(key), value) for key, value in wanted.items()
        )
    return bool(found == wanted)


def _left_behind(found: Object, body: Object) -> bool:
    """Whether an object was made for an earlier resource of the same name, and is to go with it:
    a claim has an owner only where its ``retention`` was Delete."""
    mine = body["metadata"]
    return any(
        (one["apiVersion"], one["kind"], one["name"]) == (API_VERSION, KIND, mine["name"])
        and one.get("controller")
        and one["uid"] != mine["uid"]
        for one in found["metadata"].get("ownerReferences", [])
    )


def _what(action: Apply | Delete) -> str:
    if isinstance(action, Apply):
        return f"{action.manifest['kind']} {action.manifest['metadata']['name']}"
    return f"deleting {action.kind} {action.name}"
