"""Build the Kubernetes manifests of a stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from video2world_common.exit_codes import EXIT_USER_ERROR
from video2world_operator.api.constants import API_VERSION, GPU, KIND, STAGES_WITHOUT_GPU
from video2world_operator.api.errors import InvalidResource, Problem
from video2world_operator.api.pods import StagePatch
from video2world_operator.api.quantity import quantity
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.plan.commands import accumulating, samples
from video2world_operator.plan.labels import (
    ATTEMPT_LABEL,
    HASH_ANNOTATION,
    PODS_ANNOTATION,
    QUEUE_LABEL,
    RESOURCE_LABEL,
    SAMPLES_ANNOTATION,
    STAGE_LABEL,
)
from video2world_operator.plan.merge_patch import merge, merge_named
from video2world_operator.plan.stage import SAMPLING, Manifest, Stage, digest, run_hash

__all__ = [
    "CONFIG_DIR",
    "VOLUME_DIR",
    "claim_manifests",
    "gpus_per_pod",
    "group_manifests",
    "owned",
    "pods_hash",
    "stage_manifests",
]

VOLUME_DIR, CONFIG_DIR = "/data", "/etc/video2world"
USER = 1000
_SIGKILL, _SIGTERM = 137, 143  # exit codes of a container that was stopped
_UNLIMITED = 2**31 - 1  # as a backoffLimit
LOST_NODE_SECONDS = 30  # tolerated unreachability of a node; the default of Kubernetes is 300
_REQUESTS: Mapping[str, tuple[int, int]] = {  # CPUs and GiB of memory per pod (train: per GPU)
    "download": (2, 4),
    "dataset": (4, 8),
    "captions": (4, 8),
    "embeddings": (4, 48),
    "latents": (8, 32),
    "train": (8, 96),
    "inference": (8, 128),
    "evaluation": (8, 128),
}
_MORE_INFERENCE = (2, 32)  # for each GPU after the first: 14B's weights pass through host memory


# Environment of NCCL for the network between nodes; Auto sets nothing.
_INTERCONNECT: Mapping[str, Mapping[str, str]] = {
    "Auto": {},
    "Ethernet": {"NCCL_IB_DISABLE": "1"},
    "InfiniBand": {"NCCL_IB_DISABLE": "0", "NCCL_NET": "IB"},
    "RoCE": {"NCCL_IB_DISABLE": "0", "NCCL_NET": "IB", "NCCL_IB_GID_INDEX": "3"},
    "EFA": {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "FI_EFA_FORK_SAFE": "1"},
}


def _labels(resource: Video2WorldPostTrain, stage: str | None = None) -> dict[str, str]:
    labels = {
        "app.kubernetes.io/name": "video2world",
        "app.kubernetes.io/instance": resource.name,
        "app.kubernetes.io/managed-by": "video2world-operator",
        RESOURCE_LABEL: resource.name,
    }
    if stage:
        labels |= {"app.kubernetes.io/component": stage, STAGE_LABEL: stage}
    return labels


def _object(
    version: str, kind: str, name: str, namespace: str, labels: dict[str, str], **body: Any
) -> Manifest:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **body}


def _claim_name(resource: Video2WorldPostTrain) -> str:
    return resource.spec.storage.claim_name or f"{resource.name}-data"


def claim_manifests(resource: Video2WorldPostTrain, namespace: str) -> tuple[Manifest, ...]:
    storage = resource.spec.storage
    if storage.claim_name:
        return ()
    mode = storage.access_mode or (
        "ReadWriteMany" if resource.spec.pods_sharing_volume > 1 else "ReadWriteOnce"
    )
    spec: dict[str, Any] = {
        "accessModes": [mode],
        "resources": {"requests": {"storage": resource.spec.volume_size}},
    }
    if storage.storage_class_name:
        spec["storageClassName"] = storage.storage_class_name
    name = _claim_name(resource)
    return (_object("v1", "PersistentVolumeClaim", name, namespace, _labels(resource), spec=spec),)


def gpus_per_pod(resource: Video2WorldPostTrain, stage: str) -> int:
    """Return how many GPUs a pod of the stage uses."""
    if resource.spec.device == "CPU" or stage in STAGES_WITHOUT_GPU:
        return 0
    if stage in ("inference", "evaluation"):
        return resource.spec.inference.gpus
    return resource.spec.processes_per_node if stage == "train" else 1


def stage_manifests(
    resource: Video2WorldPostTrain, namespace: str, stage: Stage, later: list[Stage], attempt: int
) -> tuple[Manifest, ...]:
    """Build the manifests of an attempt at ``stage``, which the stages ``later`` follow."""
    if stage.name == "train":
        nodes = resource.spec.nodes
        return group_manifests(resource, namespace, stage, later, attempt, nodes)
    env = _worker_env(resource, stage, later)
    settings: dict[str, Any] = {"backoffLimit": 3}
    if stage.name == "dataset":
        env["V2W_WORKERS"] = str(_whole_cpus(_resources(resource, "dataset")["requests"]["cpu"]))
    if (pods := _parallel_pods(resource, stage)) > 1:
        # each pod takes its shard by JOB_COMPLETION_INDEX, and may fail as often as a single pod
        settings = {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimitPerIndex": 3,
        }
    return (_job(resource, namespace, stage, env, attempt, settings, _disrupted),)


def _worker_env(resource: Video2WorldPostTrain, stage: Stage, later: list[Stage]) -> dict[str, str]:
    return {
        "V2W_STAGE": stage.name,
        "V2W_RESOURCE": resource.name,
        "V2W_INPUTS_HASH": stage.inputs_hash,
        # the worker reports which of them are complete on the volume already
        "V2W_LATER_STAGES": ",".join(f"{s.name}={s.inputs_hash}" for s in later),
        "V2W_CONFIG_DIR": CONFIG_DIR,
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",  # the root file system is read-only
        "USER": "video2world",  # PyTorch names folders by it, and the user ID may have no name
    }


def _parallel_pods(resource: Video2WorldPostTrain, stage: Stage) -> int:
    """Return how many pods divide the stage's work."""
    inference = resource.spec.inference
    if stage.name == "dataset":
        return resource.spec.dataset.shards
    if stage.kind == "inference":
        return inference.pods(1 if stage.name == SAMPLING else inference.count)
    return 1


def _job(
    resource: Video2WorldPostTrain,
    namespace: str,
    stage: Stage,
    env: Mapping[str, str],
    attempt: int,
    settings: Mapping[str, Any],
    on_disruption: Manifest,
) -> Manifest:
    labels = _labels(resource, stage.name) | {ATTEMPT_LABEL: str(attempt)}
    metadata: dict[str, Any] = {"labels": dict(labels)}
    if stage.kind == "inference":
        text = json.dumps(samples(resource), ensure_ascii=False)
        metadata["annotations"] = {SAMPLES_ANNOTATION: text}
    template: dict[str, Any] = {"metadata": metadata, "spec": _pod(resource, stage, env)}
    patch: StagePatch = getattr(resource.spec.stages, stage.kind)
    if patch.pod_template:
        path = f"spec.stages.{stage.kind}.podTemplate"
        template = _checked_template(merge(template, patch.pod_template, path), path)
    codes = {"containerName": stage.kind, "operator": "In", "values": [EXIT_USER_ERROR]}
    rules = [{"action": "FailJob", "onExitCodes": codes}, on_disruption]
    spec = {"podFailurePolicy": {"rules": rules}, "template": template, **settings}
    queue = resource.spec.scheduling.queue_name
    if queue and (stage.name == "train" or gpus_per_pod(resource, stage.kind)):
        labels[QUEUE_LABEL] = queue  # on the Job, not its pods
        spec |= _evictable(spec, stage)
    name = f"{resource.name}-{stage.name}-{attempt}"
    job = _object("batch/v1", "Job", name, namespace, labels, spec=spec)
    job["metadata"]["annotations"] = {
        HASH_ANNOTATION: stage.inputs_hash,
        PODS_ANNOTATION: pods_hash(resource, stage),
    }
    return job


def pods_hash(resource: Video2WorldPostTrain, stage: Stage) -> str:
    """Hash the fields of the spec that shape a stage's pods and can be changed.

    The same spec must give the same hash in the next version of the operator, whose default images
    are others; the API server has stored those of the version that a resource was created with.
    """
    spec = resource.spec
    parts = (spec.images, spec.credentials, spec.scheduling, getattr(spec.stages, stage.kind))
    dumped = [p.model_dump(mode="json", by_alias=True, exclude_defaults=True) for p in parts]
    dumped[0] |= {"preprocess": spec.images.preprocess, "trainer": spec.images.trainer}
    if stage.kind in ("inference", "evaluation"):
        divided = spec.inference.model_dump(include={"gpus", "offload"}, exclude_defaults=True)
        dumped += [divided] if divided else []
    if stage.kind == "train":
        claims = spec.training.model_dump(include={"resource_claims"}, exclude_defaults=True)
        dumped += [claims] if claims else []
    return digest(dumped)


def _evictable(spec: Manifest, stage: Stage) -> Manifest:
    """Return fields of a Job that Kueue may stop: its pods' end is no failure of the Job.

    Kueue stops a Job by suspending it. The Job controller then deletes the pods, and counts those
    that do not succeed as failures. A crash still fails the group's Job at once.
    """
    codes = {"containerName": stage.kind, "operator": "In", "values": [_SIGTERM]}
    rule = {"action": "Ignore", "onExitCodes": codes}
    if stage.name == "train":
        codes |= {"operator": "NotIn", "values": [_SIGKILL, _SIGTERM]}
        rule = {"action": "FailJob", "onExitCodes": codes}
    rules = [*spec["podFailurePolicy"]["rules"], rule]
    changed: Manifest = {"podFailurePolicy": {"rules": rules}}
    return changed | ({"backoffLimit": _UNLIMITED} if stage.name == "train" else {})


def _on_disruption(action: str) -> Manifest:
    return {
        "action": action,
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }


_disrupted = _on_disruption("Ignore")


def group_manifests(
    resource: Video2WorldPostTrain,
    namespace: str,
    stage: Stage,
    later: list[Stage],
    attempt: int,
    nodes: int,
) -> tuple[Manifest, ...]:
    """Service and Indexed Job; each of ``nodes`` runs one torchrun agent, which meet at node 0.

    With fewer nodes than the spec asks for, the trainer accumulates gradients, so that the global
    batch is the same.
    """
    spec, port = resource.spec, resource.spec.training.rendezvous_port
    service, name = f"{resource.name}-train", f"{resource.name}-train-{attempt}"
    host = f"{name}-0.{service}"
    group = {
        "PET_NNODES": str(nodes),
        "PET_NPROC_PER_NODE": str(spec.processes_per_node),
        # A pod's index is its node rank (launch.py); c10d would sort nodes by name and PID.
        "PET_RDZV_BACKEND": "static",
        "PET_RDZV_ENDPOINT": f"{host}:{port}",
        "PET_RDZV_ID": name,
        # Nodes start minutes apart when images are pulled; torchrun would wait ten minutes only.
        "PET_RDZV_CONF": "timeout=1800",
        "PET_MAX_RESTARTS": "0",  # a lost process restarts the whole group, as a new attempt
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port + 1),
        # Identifies a run that may resume from its checkpoints: all but its length and cadence.
        "V2W_RUN_HASH": run_hash(stage.argv, [resource.dataset_dir]),
        "V2W_ATTEMPT": str(attempt),
        "V2W_METRICS_PORT": str(port + 2),  # of rank 0, and so of pod 0
        **(_INTERCONNECT[spec.training.interconnect] if gpus_per_pod(resource, "train") else {}),
    }
    settings = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
    }
    env = _worker_env(resource, stage, later) | group
    step = replace(stage, argv=accumulating(stage.argv, spec.nodes // nodes))
    # One lost node ends the attempt at once: the others cannot continue without it.
    job = _job(resource, namespace, step, env, attempt, settings, _on_disruption("FailJob"))
    ports = [
        {"name": "rendezvous", "port": port},
        {"name": "master", "port": port + 1},
        {"name": "metrics", "port": port + 2},
    ]
    body = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {RESOURCE_LABEL: resource.name, STAGE_LABEL: "train"},
        "ports": ports,
    }
    labels = _labels(resource, "train")
    return (_object("v1", "Service", service, namespace, labels, spec=body), job)


def _group(resource: Video2WorldPostTrain) -> dict[str, Any]:
    """Return the fields of a pod that only the training group has."""
    lost = [
        {
            "key": f"node.kubernetes.io/{key}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_SECONDS,
        }
        for key in ("not-ready", "unreachable")
    ]
    own = resource.spec.stages.train.tolerations
    lost = [t for t in lost if t["key"] not in [g.get("key") for g in own]]
    fields: dict[str, Any] = {
        "subdomain": f"{resource.name}-train",
        "tolerations": [*own, *lost],
    }
    key, affinity = resource.spec.scheduling.topology_key, resource.spec.stages.train.affinity
    if not key or affinity:
        return fields
    selector = {RESOURCE_LABEL: resource.name, STAGE_LABEL: "train"}
    term = {"labelSelector": {"matchLabels": selector}, "topologyKey": key}
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    name = "preferredDuringSchedulingIgnoredDuringExecution"
    return fields | {"affinity": {"podAffinity": {name: preferred}}}


def _pod(resource: Video2WorldPostTrain, step: Stage, env: Mapping[str, str]) -> dict[str, Any]:
    spec, stage = resource.spec, step.kind
    patch: StagePatch = getattr(spec.stages, stage)
    trainer = stage in ("train", "inference", "evaluation")
    image = patch.image or (spec.images.trainer if trainer else spec.images.preprocess)
    data: dict[str, Any] = {"name": "data", "mountPath": VOLUME_DIR}
    if spec.storage.sub_path:
        data["subPath"] = spec.storage.sub_path
    shared_memory = "1Gi" if spec.tiny else "64Gi"
    container: dict[str, Any] = {
        "name": stage,
        "image": image,
        "imagePullPolicy": spec.images.pull_policy,
        "command": list(step.argv),
        "workingDir": VOLUME_DIR,
        "env": _env(resource, stage, env),
        "resources": _resources(resource, stage),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            data,
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        # Long enough to save a checkpoint after SIGTERM.
        "terminationGracePeriodSeconds": 600 if stage == "train" and not spec.tiny else 60,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": _claim_name(resource)}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    if stage == "train":
        port = spec.training.rendezvous_port + 2
        container["ports"] = [{"name": "metrics", "containerPort": port}]
    if stage == "inference":
        # An annotation of the pod holds the samples: no ConfigMap to create, own and clean up.
        path = f"metadata.annotations['{SAMPLES_ANNOTATION}']"
        items = [{"path": "samples.json", "fieldRef": {"fieldPath": path}}]
        pod["volumes"].append({"name": "config", "downwardAPI": {"items": items}})
        mount = {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True}
        container["volumeMounts"].append(mount)
    optional: dict[str, Any] = {
        "resourceClaims": [
            one.model_dump(by_alias=True, exclude={"request"})
            for one in spec.resource_claims(stage)
        ],
        "nodeSelector": patch.node_selector,
        "tolerations": patch.tolerations,
        "affinity": patch.affinity,
        "priorityClassName": spec.scheduling.priority_class_name,
        "schedulerName": spec.scheduling.scheduler_name,
        "imagePullSecrets": [{"name": name} for name in spec.images.pull_secrets],
    }
    pod |= {name: value for name, value in optional.items() if value}
    return pod | _group(resource) if stage == "train" else pod


def _env(
    resource: Video2WorldPostTrain, stage: str, variables: Mapping[str, str]
) -> list[dict[str, Any]]:
    values = dict(variables)
    if resource.spec.device == "CPU":
        values["CUDA_VISIBLE_DEVICES"] = ""
    env: list[dict[str, Any]] = [{"name": n, "value": v} for n, v in values.items()]
    token = resource.spec.credentials.hugging_face_token_secret
    if token and _fetches(resource, stage):
        source = token.model_dump(include={"name", "key"})
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": source}})
    captions = resource.spec.dataset.captions
    if stage == "captions" and captions and captions.token_secret:
        source = captions.token_secret.model_dump(include={"name", "key"})
        env.append({"name": "CAPTIONS_TOKEN", "valueFrom": {"secretKeyRef": source}})
    patch: StagePatch = getattr(resource.spec.stages, stage)
    more = [v.model_dump(by_alias=True, exclude_none=True) for v in patch.env]
    return merge_named(env, more, "name")


def _fetches(resource: Video2WorldPostTrain, stage: str) -> bool:
    """Return whether the stage downloads from the Hub: only then it gets the token."""
    return stage == "download" or (
        stage == "dataset" and resource.spec.dataset.repository is not None
    )


def _resources(resource: Video2WorldPostTrain, stage: str) -> dict[str, Any]:
    gpus = gpus_per_pod(resource, stage)
    cpus, memory = _REQUESTS[stage]
    if stage == "train":
        cpus, memory = cpus * max(gpus, 1), memory * max(gpus, 1)
    if stage in ("inference", "evaluation") and gpus:
        cpus, memory = (
            first + (gpus - 1) * more
            for first, more in zip((cpus, memory), _MORE_INFERENCE, strict=True)
        )
    requests: dict[str, Any] = {"cpu": str(cpus), "memory": f"{memory}Gi"}
    if resource.spec.tiny:  # two of its pods and the operator fit on a machine with two cores
        requests = {"cpu": "500m", "memory": "2Gi"}
    claims = resource.spec.resource_claims(stage)
    limits: dict[str, Any] = {GPU: str(gpus)} if gpus and not claims else {}
    patch: StagePatch = getattr(resource.spec.stages, stage)
    if patch.resources:
        requests |= {name: str(value) for name, value in patch.resources.requests.items()}
        limits |= {name: str(value) for name, value in patch.resources.limits.items()}
        # Requests and limits of GPUs must be equal: the one that is set applies to both.
        if GPU in patch.resources.requests and GPU not in patch.resources.limits:
            limits[GPU] = requests[GPU]
        if limits.get(GPU) == "0":
            limits.pop(GPU)
            requests.pop(GPU, None)
    resources: dict[str, Any] = {"requests": requests} | ({"limits": limits} if limits else {})
    if claims:
        named = (
            claim.model_dump(include={"name", "request"}, exclude_none=True) for claim in claims
        )
        resources["claims"] = list(named)
    return resources


def _whole_cpus(text: str) -> int:
    """Convert a CPU quantity such as ``500m`` or ``4`` to a number of processes."""
    return max(1, round(quantity(text)))


def _checked_template(template: Any, path: str) -> Any:
    """Return ``template``, unless a patch removed something that the operator reads from it."""
    for name, below in (("metadata", "labels"), ("spec", "containers")):
        part = template.get(name)
        if not isinstance(part, dict) or not part.get(below):
            raise InvalidResource([Problem(f"{path}.{name}", f"keep a mapping with {below}")])
    if not isinstance(template["metadata"]["labels"], dict):
        raise InvalidResource([Problem(f"{path}.metadata.labels", "write a mapping here")])
    if not all(one.get("image") for one in template["spec"]["containers"]):
        raise InvalidResource([Problem(f"{path}.spec.containers", "set an image for each one")])
    return template


def owned(manifest: Manifest, resource: Video2WorldPostTrain) -> Manifest:
    """Return ``manifest`` with the resource as its controller, so both are deleted together.

    The PVC has no owner unless ``spec.storage.retention`` is Delete. There is no
    blockOwnerDeletion, for which the operator would need rights on the resource's finalizers.
    """
    if manifest["kind"] == "PersistentVolumeClaim" and resource.spec.storage.retention == "Keep":
        return manifest
    owner: Manifest = {"apiVersion": API_VERSION, "kind": KIND, "name": resource.name}
    owner |= {"uid": resource.metadata.uid, "controller": True}
    return manifest | {"metadata": manifest["metadata"] | {"ownerReferences": [owner]}}
