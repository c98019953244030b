"""Translate a pod of the plan into the command, environment and folder of a local process."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from video2world_operator.local.pod_environment import (
    LOOPBACK,
    PodEnvironment,
    UnsupportedManifest,
)

__all__ = ["ProcessSpec", "process_spec"]

_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_][A-Za-z0-9_.-]*)\))")  # $(NAME), and $$ for a dollar
_OURS = ("PET_", "V2W_", "MASTER_")  # never inherited: only the manifest may set them


@dataclass(frozen=True)
class ProcessSpec:
    """A process to start in place of a pod."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    grace_seconds: float


def process_spec(
    pod: Mapping[str, Any],
    environment: PodEnvironment,
    *,
    index: int = 0,
    inherited: Mapping[str, str] | None = None,
) -> ProcessSpec:
    """Translate a pod spec with one container; ``index`` is its completion index in the Job.

    ``inherited`` are the variables that the process inherits, by default those of this process.

    Raises:
        UnsupportedManifest: the pod has several containers, or takes a variable from a source
            that only a cluster has.
    """
    containers = pod["containers"]
    if len(containers) != 1 or pod.get("initContainers"):
        raise UnsupportedManifest("a pod with several containers runs only on a cluster")
    container = containers[0]
    folders = _mounts(container, environment)
    base = os.environ if inherited is None else inherited
    env = {name: value for name, value in base.items() if not name.startswith(_OURS)}
    env["JOB_COMPLETION_INDEX"] = str(index)
    # References expand to these, not to local paths: a path must not be mapped twice.
    rendered: dict[str, str] = {}
    for entry in container.get("env", []):
        value = _env_value(entry, environment, index)
        if value is not None:
            rendered[entry["name"]] = _expand(value, rendered)
    for name, value in rendered.items():
        env[name] = _local_address(_local_path(value, folders), environment)
    command = (*container["command"], *container.get("args", []))
    argv = [_local_path(_expand(text, rendered), folders) for text in command]
    if argv[0] == "python":  # the image's interpreter; here the one that runs this
        argv[0] = sys.executable
    cwd = Path(_local_path(container.get("workingDir", "/"), folders))
    grace = float(pod.get("terminationGracePeriodSeconds", 30))
    return ProcessSpec(tuple(argv), env, cwd, grace)


def _mounts(container: Mapping[str, Any], environment: PodEnvironment) -> dict[str, Path]:
    """Return the folder behind each mount path, deepest paths first."""
    folders = {}
    for mount in container.get("volumeMounts", []):
        if mount["name"] in environment.volumes:
            folder = environment.volumes[mount["name"]] / mount.get("subPath", "")
            folders[mount["mountPath"].rstrip("/")] = folder
    return dict(sorted(folders.items(), key=lambda item: -len(item[0])))


def _local_path(text: str, folders: Mapping[str, Path]) -> str:
    """Replace the mount path that ``text`` begins with by the local folder."""
    for path, folder in folders.items():
        if text == path:
            return str(folder)
        if text.startswith(f"{path}/"):
            return str(folder / PurePosixPath(text).relative_to(path))
    return text


def _local_address(text: str, environment: PodEnvironment) -> str:
    """Replace host names of pods by the loopback address, and the ports by free ones."""
    for host in environment.hosts:
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", LOOPBACK, text)
    for rendered, free in environment.ports.items():
        if text in (rendered, f"{LOOPBACK}:{rendered}"):
            return text.removesuffix(rendered) + free
    return text


def _env_value(entry: Mapping[str, Any], environment: PodEnvironment, index: int) -> str | None:
    """Return the value of a variable; None if it comes from a Secret that the user has not set."""
    if "value" in entry:
        return str(entry["value"])
    source = entry.get("valueFrom", {})
    if source.get("secretKeyRef"):
        return environment.secrets.get(entry["name"])
    if (field := source.get("fieldRef", {}).get("fieldPath")) is not None:
        if field.endswith("job-completion-index']"):
            return str(index)
        raise UnsupportedManifest(
            f"env {entry['name']}: the field {field} exists only on a cluster"
        )
    raise UnsupportedManifest(f"env {entry['name']}: its source exists only on a cluster")


def _expand(text: str, env: Mapping[str, str]) -> str:
    """Expand $(NAME) references as the kubelet does; unknown names stay as they are."""

    def replace(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return env.get(match[2], match[0])

    return _REFERENCE.sub(replace, text)
