"""Record core/v1 Events about resources: few, with fixed reasons, each once."""

from __future__ import annotations

import hashlib
import logging

from video2world_operator.api.conditions import Reason, Type, find, is_true
from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.api.status import Status
from video2world_operator.api.timestamps import format_time
from video2world_operator.controller.resource import Resource
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.errors import ApiError

__all__ = ["EventRecorder"]

log = logging.getLogger(__name__)
COMPONENT = "video2world-operator"
MAX_MESSAGE = 1024  # characters


def _has_resized(before: Status, after: Status) -> bool:
    """Return whether the training group has got another number of nodes."""
    old, new = before.group_size, after.group_size
    return old is not None and new is not None and old.running != new.running


class EventRecorder:
    """Create Events. One that cannot be created is logged, and not worth a retry."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    async def record_events(self, resource: Resource, before: Status, after: Status) -> None:
        """Record what users have to know about the change of status: failures and restarts."""
        old, new = before.conditions, after.conditions
        for kind, level in ((Type.FAILED, "Warning"), (Type.SUSPENDED, "Normal")):
            condition = find(new, kind)
            if condition is not None and is_true(new, kind) and not is_true(old, kind):
                await self.record(
                    resource,
                    level,
                    condition.reason,
                    condition.message,
                    condition.last_transition_time,
                )
        if after.restarts > before.restarts:
            cause, reason = find(new, Type.CONTENT), str(Reason.RESTARTING)
            size, level = find(new, Type.FULL_SIZE), "Warning"
            if cause is not None and cause != find(old, Type.CONTENT):
                reason = cause.reason
            elif size is not None and _has_resized(before, after):
                cause, reason, level = size, size.reason, "Normal"
            else:
                cause = find(new, Type.PROGRESSING)
            message = cause.message if cause else ""
            await self.record(resource, level, reason, message, str(after.restarts))

    async def record(
        self, resource: Resource, level: str, reason: str, message: str, occasion: str
    ) -> None:
        """Create one Event, whose name follows from its ``occasion`` so that it is created once."""
        namespace, name = resource.key
        digest = hashlib.sha256(f"{resource.uid} {reason} {occasion}".encode()).hexdigest()
        now = format_time(self._api.clock.now())
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.{digest[:16]}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": namespace,
                "name": name,
                "uid": resource.uid,
                "resourceVersion": resource.version,
            },
            "type": level,
            "reason": reason,
            "message": message[:MAX_MESSAGE],
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._api.request("POST", path_of("v1", "Event", namespace), body=event)
        except (ApiError, OSError) as error:
            if not isinstance(error, ApiError) or error.code != 409:
                log.warning("no event %s for %s: %s", reason, name, error)
