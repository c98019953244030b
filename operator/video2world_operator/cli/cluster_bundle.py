"""Read from the cluster what a bug report about a resource needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.cli.cluster_run import run_with_client
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.labels import RESOURCE_LABEL
from video2world_operator.reconcile.observed_state import Pod

__all__ = ["bundle"]


def bundle(name: str, namespace: str | None, *, logs: int, log_bytes: int) -> dict[str, str]:
    """Return files by name: the resource, its objects, their Events and the newest logs.

    What the user may not read is left out, with a note in its file.
    """

    async def work(client: ApiClient, namespace: str) -> dict[str, str]:
        label = {"labelSelector": f"{RESOURCE_LABEL}={name}"}
        resource = await _read(client, path_of(API_VERSION, KIND, namespace, name))
        pods = await _read(client, path_of("v1", "Pod", namespace), **label)
        jobs = await _read(client, path_of("batch/v1", "Job", namespace), **label)
        events = await _read(client, path_of("v1", "Event", namespace))
        if isinstance(events, dict):
            events["items"] = [e for e in events.get("items") or [] if _concerns(e, name)]
        files = {
            "server.yaml": _text(await _read(client, "/version")),
            "resource.yaml": _text(resource),
            "pods.yaml": _text(pods),
            "jobs.yaml": _text(jobs),
            "events.yaml": _text(events),
        }
        bodies = pods.get("items", []) if isinstance(pods, dict) else []
        found = [Pod.of(body) for body in bodies]
        started = sorted(
            (pod for pod in found if pod.started), key=lambda pod: str(pod.started), reverse=True
        )
        for pod in started[:logs]:
            text = await client.pod_log(namespace, pod.name, pod.container, tailLines="2000")
            files[f"logs/{pod.name}.log"] = text[-log_bytes:]
        return files

    return run_with_client(work, namespace)


async def _read(client: ApiClient, path: str, **params: str) -> Any:
    """Return the answer, or why there is none."""
    try:
        return await client.get(path, **params)
    except ApiError as error:
        return f"not readable: {error}"


def _concerns(event: Mapping[str, Any], name: str) -> bool:
    about = str((event.get("involvedObject") or {}).get("name", ""))
    return about == name or about.startswith(f"{name}-")


def _text(value: Any) -> str:
    """Return an object as YAML, without the fields that only the API server uses."""
    for body in value.get("items") or [value] if isinstance(value, dict) else ():
        (body.get("metadata") or {}).pop("managedFields", None)
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
