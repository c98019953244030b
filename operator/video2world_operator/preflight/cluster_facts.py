"""Collect facts about a cluster, with the permissions of the user."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.api.timestamps import parse_time
from video2world_operator.api.yaml_reader import as_json
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.discovery import discover
from video2world_operator.kube.errors import ApiError
from video2world_operator.kube.leader_election import NAME as LEASE
from video2world_operator.plan.optional_apis import OptionalApi
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.crd_version import problem_of
from video2world_operator.preflight.device_facts import (
    device_facts,
    list_slices,
    template_names,
)
from video2world_operator.preflight.dispatch import read_dispatch
from video2world_operator.preflight.facts import ClusterFacts
from video2world_operator.preflight.queues import why_inactive

__all__ = ["cluster_facts"]

_OF_THE_SERVER = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")
FRESH = 60.0  # seconds since its last renewal for which a Lease proves a live operator


async def cluster_facts(
    cluster: ApiClient, namespace: str, plan: Plan, manifest: Mapping[str, Any]
) -> ClusterFacts:
    """Observe the cluster, with a dry run of creating ``manifest``."""
    spec = plan.resource.spec
    base = f"/api/v1/namespaces/{namespace}"
    names = {*spec.images.pull_secrets, *(token.name for token in spec.token_secrets)}
    secrets, unreadable = {}, set()
    for name in sorted(names):
        try:
            found = await cluster.get(f"{base}/secrets/{name}")
            secrets[name] = sorted(found.get("data") or {}) if found else None
        except ApiError as error:
            if error.code != 403:
                raise
            unreadable.add(name)
    claim = spec.storage.claim_name or f"{plan.name}-data"
    capabilities = await discover(cluster)
    queues = None
    if spec.scheduling.queue_name and (
        path := capabilities.path(OptionalApi.LOCAL_QUEUE, namespace)
    ):
        listed = await _items(cluster, path)
        queues = None if listed is None else {_name(q): why_inactive(q) for q in listed}
    devices = None
    if templates := template_names(spec):
        slices = await list_slices(cluster, capabilities)
        devices = await device_facts(cluster, capabilities, namespace, templates, slices)
    return ClusterFacts(
        namespace=namespace,
        nodes=await _items(cluster, "/api/v1/nodes"),
        claim=await cluster.get_if_allowed(
            path_of("v1", "PersistentVolumeClaim", namespace, claim)
        ),
        storage_classes=await _items(cluster, "/apis/storage.k8s.io/v1/storageclasses"),
        quotas=await _items(cluster, f"{base}/resourcequotas"),
        secrets=secrets,
        unreadable=frozenset(unreadable),
        priority_classes=_names(
            await _items(cluster, "/apis/scheduling.k8s.io/v1/priorityclasses")
        ),
        queues=queues,
        capabilities=capabilities,
        devices=devices,
        leader=_leader(await _items(cluster, "/apis/coordination.k8s.io/v1/leases")),
        definition=await problem_of(cluster),
        refusal=await _refusal(cluster, namespace, manifest),
        dispatch=await read_dispatch(cluster, manifest, namespace) if spec.dispatched else None,
    )


async def _items(cluster: ApiClient, path: str) -> list[Any] | None:
    return (await cluster.get_if_allowed(path) or {}).get("items")


def _names(items: list[Any] | None) -> list[str] | None:
    return None if items is None else [_name(item) for item in items]


def _name(item: Mapping[str, Any]) -> str:
    return str(item["metadata"]["name"])


def _leader(leases: list[Any] | None) -> str | None:
    """Return the holder of an operator's recently renewed Lease; empty if there is none."""
    if leases is None:
        return None
    for lease in leases:
        spec, renewed = lease["spec"], parse_time(lease["spec"].get("renewTime"))
        if lease["metadata"]["name"] != LEASE or not spec.get("holderIdentity") or not renewed:
            continue
        if (datetime.now(UTC) - renewed).total_seconds() < FRESH:
            return str(spec["holderIdentity"])
    return ""


async def _refusal(cluster: ApiClient, namespace: str, manifest: Mapping[str, Any]) -> str:
    """Return why the API server refuses the resource in a dry run; empty if it accepts it."""
    written = {k: v for k, v in (manifest["metadata"] or {}).items() if k not in _OF_THE_SERVER}
    body = as_json(manifest) | {"metadata": written | {"namespace": namespace}}
    path = path_of(API_VERSION, KIND, namespace)
    asked = {"dryRun": "All", "fieldValidation": "Strict"}  # as kubectl asks
    try:
        await cluster.request("POST", path, params=asked, body=body)
    except ApiError as error:
        if error.code == 409:  # it exists already
            return ""
        if error.code == 404:
            return "the CRD is not installed: kubectl apply -f manifests/crd.yaml"
        return str(error)
    return ""
