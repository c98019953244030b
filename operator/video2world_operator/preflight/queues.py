"""Read Kueue's objects: the queue that a resource names, and the Workload of a Job in it."""

from __future__ import annotations

from video2world_operator.kube.client import ApiClient, Object
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi
from video2world_operator.reconcile.workload import JOB_UID_LABEL, Workload

__all__ = ["find_workload", "queue_problem", "why_inactive"]

_FIELD = "spec.scheduling.queueName"


def why_inactive(queue: Object) -> str:
    """Return why a LocalQueue admits nothing, in Kueue's words; empty if it does."""
    conditions = (queue.get("status") or {}).get("conditions") or []
    active = next((c for c in conditions if c["type"] == "Active"), None)
    if active is None or active["status"] == "True":
        return ""
    return str(active.get("message") or active.get("reason") or "it is not active")


async def queue_problem(
    client: ApiClient, capabilities: Capabilities, namespace: str, name: str
) -> str:
    """Return what is wrong with a LocalQueue, with the remedy; empty if it is active.

    Raises:
        ApiError, OSError: the API server does not answer.
    """
    path = capabilities.path(OptionalApi.LOCAL_QUEUE, namespace, name)
    if not path:
        return f"{name}: Kueue is not installed; install it, or remove {_FIELD}"
    if (queue := await client.get(path)) is None:
        return f"{name} is not in this namespace; correct {_FIELD}"
    if problem := why_inactive(queue):
        return f"{name} admits nothing ({problem}); wait, or name another in {_FIELD}"
    return ""


async def find_workload(
    client: ApiClient, capabilities: Capabilities, namespace: str, job_uid: str
) -> Workload | None:
    """Return the Workload of the Job with this UID; None if there is none that can be read."""
    path = capabilities.path(OptionalApi.WORKLOAD, namespace)
    if not path:
        return None
    try:
        found = await client.get(path, labelSelector=f"{JOB_UID_LABEL}={job_uid}")
    except ApiError:  # not worth failing a reconciliation
        return None
    items = (found or {}).get("items") or []
    return Workload.of(items[0]) if items else None
