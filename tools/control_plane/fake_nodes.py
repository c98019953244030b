"""Configure KWOK: fake GPU nodes, and how their pods start and end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

EXIT_CODE = "fake.video2world.dev/exit-code"  # on a pod: end with this code
HANGS = "fake.video2world.dev/hangs"  # on a pod: stay Terminating, as on a dead node
MANAGED = "fake.video2world.dev/kubelet"  # label of a node: KWOK acts as its kubelet
SECONDS = "fake.video2world.dev/seconds"  # on a pod: succeed after running this long

VOLUME: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "PersistentVolume",
    "metadata": {"generateName": "fake-"},
    "spec": {
        "capacity": {"storage": "100Ti"},
        "accessModes": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"],
        "hostPath": {"path": "/nonexistent"},
    },
}

LOGS_CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "logs.kwok.x-k8s.io"},
    "spec": {
        "group": "kwok.x-k8s.io",
        "names": {"kind": "Logs", "listKind": "LogsList", "plural": "logs", "singular": "logs"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


def node(name: str, gpus: int, labels: dict[str, str]) -> dict[str, Any]:
    """Return a node the size of an 8-GPU server; KWOK takes over its status."""
    resources = {"cpu": "192", "memory": "2Ti", "pods": "250", "ephemeral-storage": "20Ti"}
    if gpus:
        resources["nvidia.com/gpu"] = str(gpus)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                MANAGED: "kwok",
                **labels,
            },
        },
        "status": {"allocatable": resources, "capacity": resources},
    }


def devices(node: str, count: int, driver: str) -> dict[str, Any]:
    """Return the ResourceSlice that NVIDIA's DRA driver publishes for a node with H100s."""
    attributes = {
        "type": {"string": "gpu"},
        "productName": {"string": "NVIDIA H100 80GB HBM3"},
        "cudaComputeCapability": {"version": "9.0.0"},
    }
    device = {"attributes": attributes, "capacity": {"memory": {"value": "81559Mi"}}}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-{driver}"},
        "spec": {
            "driver": driver,
            "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": f"gpu-{index}", **device} for index in range(count)],
        },
    }


def pod_log(namespace: str, name: str, path: Path) -> dict[str, Any]:
    """Return KWOK's object that serves a file as the log of a pod's containers."""
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Logs",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"logs": [{"logsFile": str(path), "follow": True}]},
    }


def all_logs(paths: Mapping[str, Path]) -> dict[str, Any]:
    """Return KWOK's object that serves files as logs of all containers of these names."""
    logs = [
        {"containers": [name], "logsFile": str(path), "follow": False}
        for name, path in paths.items()
    ]
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "ClusterLogs",
        "metadata": {"name": "workers"},
        "spec": {"logs": logs},
    }


def log_lines(text: str) -> str:
    """Format lines as container runtimes write them (CRI log format), with the current time."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return "".join(f"{now} stdout F {line}\n" for line in text.splitlines())


def stages(job_seconds: float | None) -> str:
    """Return KWOK's Stage objects: how a node becomes ready, and how pods start and end.

    Finalizers stay, as with a kubelet: the Job controller counts pods by them.
    """
    live = _expression(".metadata.deletionTimestamp", "DoesNotExist")
    deleting = _expression(".metadata.deletionTimestamp", "Exists")
    running = _expression(".status.phase", "In", "Running")
    not_running = _expression(".status.phase", "NotIn", "Running")
    unstarted = _expression(".status.podIP", "DoesNotExist")
    not_hanging = _annotation(HANGS, "DoesNotExist")
    has_code, no_code = _annotation(EXIT_CODE, "Exists"), _annotation(EXIT_CODE, "DoesNotExist")
    has_duration, no_duration = _annotation(SECONDS, "Exists"), _annotation(SECONDS, "DoesNotExist")
    of_job = _expression(".metadata.ownerReferences.[].kind", "In", "Job")
    for_seconds = {"jq": {"expression": f'.metadata.annotations["{SECONDS}"] + "s"'}}
    unready = '.status.conditions.[] | select( .type == "Ready" ) | .status'
    all_stages = [
        _stage("node-ready", "Node", [_expression(unready, "NotIn", "True")], _status(_NODE)),
        _pod_stage("starts", [live, unstarted], _status(_READY)),
        _pod_stage(
            "ends-with-exit-code",
            [live, running, has_code],
            _end(f'index .metadata.annotations "{EXIT_CODE}"'),
        ),
        _pod_stage(
            "ends-in-time",
            [live, running, no_code, has_duration],
            _end('"0"'),
            {"durationFrom": for_seconds},
        ),
        _pod_stage("ends-at-sigterm", [deleting, running, not_hanging], _end('"143"')),
        _pod_stage("goes", [deleting, not_running, not_hanging], {"delete": True}),
    ]
    if job_seconds is not None:
        all_stages.append(
            _pod_stage(
                "job-ends",
                [live, running, of_job, no_code, no_duration],
                _end('"0"'),
                {"durationMilliseconds": round(job_seconds * 1000)},
            )
        )
    return yaml.safe_dump_all(all_stages)


def _expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    found: dict[str, Any] = {"key": key, "operator": operator}
    return {**found, "values": list(values)} if values else found


def _annotation(name: str, operator: str) -> dict[str, Any]:
    return _expression(f'.metadata.annotations["{name}"]', operator)


def _status(template: str) -> dict[str, Any]:
    return {"statusTemplate": template}


def _end(code: str) -> dict[str, Any]:
    """End the containers with the exit code that this template expression yields."""
    return _status(_END.replace("EXIT", code))


def _pod_stage(
    name: str,
    when: list[dict[str, Any]],
    then: dict[str, Any],
    delay: dict[str, Any] | None = None,
) -> dict[str, Any]:
    stage = _stage(f"pod-{name}", "Pod", when, then)
    if delay is not None:
        stage["spec"]["delay"] = delay
    return stage


def _stage(
    name: str, kind: str, when: list[dict[str, Any]], then: dict[str, Any]
) -> dict[str, Any]:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": when},
            "next": then,
        },
    }


# Go templates that render the new status as YAML.

_NODE = """\
{{ $now := Now }}
conditions:
{{ range NodeConditions }}
- type: {{ .type | Quote }}
  status: {{ .status | Quote }}
  reason: {{ .reason | Quote }}
  message: {{ .message | Quote }}
  lastHeartbeatTime: {{ $now | Quote }}
  lastTransitionTime: {{ $now | Quote }}
{{ end }}
addresses:
- {type: InternalIP, address: {{ NodeIP | Quote }}}
daemonEndpoints: {kubeletEndpoint: {Port: {{ NodePort }}}}
nodeInfo:
  architecture: amd64
  bootID: ""
  containerRuntimeVersion: kwok
  kernelVersion: kwok
  kubeProxyVersion: ""
  kubeletVersion: kwok
  machineID: ""
  operatingSystem: linux
  osImage: kwok
  systemUUID: ""
"""

_READY = """\
{{ $now := Now }}
phase: Running
startTime: {{ $now | Quote }}
hostIP: {{ NodeIPWith .spec.nodeName | Quote }}
podIP: {{ PodIPWith .spec.nodeName ( or .spec.hostNetwork false ) ( or .metadata.uid "" ) ( or .metadata.name "" ) ( or .metadata.namespace "" ) | Quote }}
conditions:
{{ range $type := list "Initialized" "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: true
  started: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
{{ end }}
initContainerStatuses:
{{ range .spec.initContainers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: true
  restartCount: 0
  state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}}
{{ end }}
"""  # noqa: E501

_END = """\
{{ $now := Now }}
{{ $start := .status.startTime }}
{{ $exit := EXIT }}
phase: {{ if eq $exit "0" }}Succeeded{{ else }}Failed{{ end }}
conditions:
{{ range $type := list "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "False", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: false
  started: false
  restartCount: 0
  state:
    terminated:
      exitCode: {{ $exit }}
      reason: {{ if eq $exit "0" }}Completed{{ else }}Error{{ end }}
      startedAt: {{ $start | Quote }}
      finishedAt: {{ $now | Quote }}
{{ end }}
"""
