"""Map the volumes, hosts and ports that a cluster gives to pods to this machine."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from video2world_operator.local.state import StateFolder
from video2world_operator.plan.stage import Manifest

__all__ = ["LOOPBACK", "PodEnvironment", "UnsupportedManifest", "job_of", "pod_count"]

LOOPBACK = "127.0.0.1"


class UnsupportedManifest(Exception):
    """The manifest needs something that only a cluster has; the message says what."""


@dataclass(frozen=True)
class PodEnvironment:
    """What a cluster would provide to the pods of a Job.

    ``volumes`` maps a volume's name to its folder; ``secrets`` maps an environment variable to the
    value that a Secret would give it; ``hosts`` are names of this machine; ``ports`` maps a port
    of the manifests to the free one that replaces it.
    """

    volumes: Mapping[str, Path]
    secrets: Mapping[str, str]
    hosts: tuple[str, ...] = ()
    ports: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, stage: str, manifests: Sequence[Manifest], state: StateFolder) -> Self:
        """Build the environment of the pods of the Job among ``manifests``.

        The volume of ``state`` stands in for every PVC, and the user's environment for Secrets.

        Raises:
            UnsupportedManifest: a volume has a field that only a cluster knows.
            OSError: a folder cannot be created.
        """
        job = job_of(manifests)
        services = [m for m in manifests if m["kind"] == "Service"]
        return cls(
            volumes=_volumes(stage, job["spec"]["template"], state),
            secrets=os.environ,
            hosts=tuple(
                f"{job['metadata']['name']}-{index}.{service['metadata']['name']}"
                for service in services
                for index in range(pod_count(job))
            ),
            ports={
                str(port["port"]): str(_free_port())
                for service in services
                for port in service["spec"]["ports"]
            },
        )


def job_of(manifests: Sequence[Manifest]) -> Manifest:
    """Return the batch/v1 Job among ``manifests``."""
    return next(m for m in manifests if m["kind"] == "Job")


def pod_count(job: Manifest) -> int:
    """Return the number of pods that ``job`` runs at a time."""
    return int(job["spec"].get("parallelism", 1))


def _volumes(stage: str, template: Manifest, state: StateFolder) -> dict[str, Path]:
    """Create the folders that stand in for the volumes of a pod template."""
    folders: dict[str, Path] = {}
    for volume in template["spec"].get("volumes", []):
        if "persistentVolumeClaim" in volume:
            folders[volume["name"]] = state.volume
        elif "downwardAPI" in volume:
            folder = _create(state.folder / "config" / stage)
            for item in volume["downwardAPI"]["items"]:
                text = _downward_value(template["metadata"], item["fieldRef"]["fieldPath"])
                (folder / item["path"]).write_text(text, encoding="utf-8")
            folders[volume["name"]] = folder
        elif volume.get("emptyDir", {}).get("medium") != "Memory":
            folders[volume["name"]] = _create(state.folder / "scratch" / stage)
    return folders


def _create(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _downward_value(metadata: Mapping[str, Any], field: str) -> str:
    """Return the annotation or label that the downward API calls ``field``."""
    match = re.fullmatch(r"metadata\.(annotations|labels)\['([^']+)'\]", field)
    if match is None:
        raise UnsupportedManifest(f"downwardAPI: the field {field} exists only on a cluster")
    return str(metadata.get(match[1], {}).get(match[2], ""))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
