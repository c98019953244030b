"""Looks at this machine, the Hugging Face Hub and a cluster for what :mod:`.preflight` checks."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .cluster import ApiError, Cluster, path_of
from .discovery import discover
from .leader import NAME as LEASE
from .models import API_VERSION, KIND
from .observed import parse_time
from .plan import Plan
from .preflight import Access, ClusterFacts, Gpu, Machine

__all__ = ["cluster_facts", "gpus_in", "hub", "machine", "token"]

SECONDS = 10.0  # that the Hub gets to answer
FRESH = 60.0  # seconds for which a Lease that was renewed shows a live operator


# ---------------------------------------------------------------------- this machine


def machine(volume: Path) -> Machine:
    """Disk at ``volume`` (or where it would be made), memory, and GPUs."""
    folder = volume.resolve()
    while not folder.exists():
        folder = folder.parent
    smi = shutil.which("nvidia-smi")
    gpus: list[Gpu] | None = None
    if smi:
        asked = [smi, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
        gpus = gpus_in(told.stdout) if told.returncode == 0 else None
    used = sum(path.lstat().st_size for path in volume.rglob("*") if path.is_file())
    return Machine(float(shutil.disk_usage(folder).free + used), _memory(), gpus)


def gpus_in(table: str) -> list[Gpu]:
    """The GPUs in nvidia-smi's lines of name, memory in MiB and compute capability."""
    found = []
    for line in table.splitlines():
        name, memory, capability = (part.strip() for part in line.rsplit(",", 2))
        found.append(Gpu(name, float(memory) * 2**20, int(capability.partition(".")[0])))
    return found


def _memory() -> float:
    """Bytes that this process may use: the machine's, or its control group's limit."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, float(limit)) if limit.isdigit() else total


# ---------------------------------------------------------------------- the Hub


def token() -> str:
    """The Hugging Face token that the Hub's own client would use; empty if there is none."""
    if given := os.environ.get("HF_TOKEN", "").strip():
        return given
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    try:
        return (home / "token").read_text().strip()
    except OSError:
        return ""


def hub(repositories: Sequence[str]) -> dict[str, Access]:
    """What the Hub says of each repository (data sets with the prefix ``datasets/``)."""
    if not repositories:
        return {}
    with ThreadPoolExecutor(len(repositories)) as pool:
        return dict(zip(repositories, pool.map(_access, repositories), strict=True))


def _access(repository: str) -> Access:
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    kind = "" if repository.startswith("datasets/") else "models/"
    request = urllib.request.Request(f"{base}/api/{kind}{repository}/auth-check")
    if known := token():
        request.add_unredirected_header("Authorization", f"Bearer {known}")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return Access.ALLOWED
    except urllib.error.HTTPError as error:
        if error.code == 403 and error.headers.get("X-Error-Code", "") == "GatedRepo":
            return Access.GATED
        if error.code in (401, 403):
            return Access.REFUSED
        return Access.MISSING if error.code == 404 else Access.UNREACHABLE
    except (OSError, ValueError):
        return Access.UNREACHABLE


# ---------------------------------------------------------------------- a cluster


async def cluster_facts(cluster: Cluster, namespace: str, plan: Plan) -> ClusterFacts:
    """What can be seen of the cluster with the user's rights."""
    spec = plan.resource.spec
    base = f"/api/v1/namespaces/{namespace}"
    token_secret = spec.credentials.hugging_face_token_secret
    names = [*spec.images.pull_secrets, *([token_secret.name] if token_secret else [])]
    secrets, unreadable = {}, set()
    for name in names:
        try:
            found = await cluster.get(f"{base}/secrets/{name}")
            secrets[name] = sorted(found.get("data") or {}) if found else None
        except ApiError as error:
            if error.code != 403:
                raise
            unreadable.add(name)
    claim = spec.storage.claim_name or f"{plan.name}-data"
    capabilities, groups = await discover(cluster)
    queues = None
    if spec.scheduling.queue_name and "kueue.x-k8s.io" in groups:
        path = f"/apis/kueue.x-k8s.io/v1beta1/namespaces/{namespace}/localqueues"
        queues = _names(await _items(cluster, path))
    return ClusterFacts(
        namespace=namespace,
        nodes=await _items(cluster, "/api/v1/nodes"),
        claim=await _allowed(cluster, path_of("v1", "PersistentVolumeClaim", namespace, claim)),
        storage_classes=await _items(cluster, "/apis/storage.k8s.io/v1/storageclasses"),
        quotas=await _items(cluster, f"{base}/resourcequotas"),
        secrets=secrets,
        unreadable=frozenset(unreadable),
        priority_classes=_names(
            await _items(cluster, "/apis/scheduling.k8s.io/v1/priorityclasses")
        ),
        queues=queues,
        capabilities=capabilities,
        leader=_leader(await _items(cluster, "/apis/coordination.k8s.io/v1/leases")),
        refusal=await _refusal(cluster, namespace, plan),
    )


async def _allowed(cluster: Cluster, path: str) -> dict[str, Any] | None:
    """The object; None where there is none or it may not be seen."""
    try:
        return await cluster.get(path)
    except ApiError as error:
        if error.code != 403:
            raise
        return None


async def _items(cluster: Cluster, path: str) -> list[Any] | None:
    return (await _allowed(cluster, path) or {}).get("items")


def _names(items: list[Any] | None) -> list[str] | None:
    return None if items is None else [item["metadata"]["name"] for item in items]


def _leader(leases: list[Any] | None) -> str | None:
    """Who holds a Lease of the operator's name that was renewed lately."""
    if leases is None:
        return None
    for lease in leases:
        spec, renewed = lease["spec"], parse_time(lease["spec"].get("renewTime"))
        if lease["metadata"]["name"] != LEASE or not spec.get("holderIdentity") or not renewed:
            continue
        if (datetime.now(UTC) - renewed).total_seconds() < FRESH:
            return str(spec["holderIdentity"])
    return ""


async def _refusal(cluster: Cluster, namespace: str, plan: Plan) -> str:
    """What the API server says to the resource in a dry run; empty if it takes it."""
    body = plan.resource.model_dump(mode="json", by_alias=True, exclude_unset=True)
    body.pop("status", None)
    body |= {"apiVersion": API_VERSION, "kind": KIND}
    body["metadata"] = {"name": plan.name, "namespace": namespace}
    path = path_of(API_VERSION, KIND, namespace)
    try:
        await cluster.request("POST", path, params={"dryRun": "All"}, body=body)
    except ApiError as error:
        if error.code == 409:  # it is there already
            return ""
        if error.code == 404:
            return "it does not know the resource: kubectl apply -f manifests/crd.yaml"
        return str(error)
    return ""
