"""A rendered pod as a process of this machine: what to start, where, with which environment.

Claims are folders, the train group's host names are loopback and its ports free ones; everything
else is as the manifest has it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["Process", "Surroundings", "UnsupportedManifest", "downward", "process"]

_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_][A-Za-z0-9_.-]*)\))")  # $(NAME), and $$ for a dollar
_OURS = ("PET_", "V2W_", "MASTER_")  # never inherited: only the manifest may set them
LOOPBACK = "127.0.0.1"


class UnsupportedManifest(Exception):
    """The manifest needs something that this machine does not have; the message says what."""


@dataclass(frozen=True)
class Surroundings:
    """What a cluster would provide to a pod.

    ``volumes`` maps a volume's name to its folder; ``secrets`` maps a variable's name to its value;
    ``hosts`` are names that mean this machine; ``ports`` replace the rendered ones.
    """

    volumes: Mapping[str, Path]
    secrets: Mapping[str, str]  # by variable name: a user's environment stands in for the Secret
    hosts: tuple[str, ...] = ()
    ports: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Process:
    """What to start."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    grace_seconds: float


def _folders(container: Mapping[str, Any], around: Surroundings) -> dict[str, Path]:
    """The folder behind each mount path, the deepest paths first."""
    folders = {}
    for mount in container.get("volumeMounts", []):
        if mount["name"] in around.volumes:
            folder = around.volumes[mount["name"]] / mount.get("subPath", "")
            folders[mount["mountPath"].rstrip("/")] = folder
    return dict(sorted(folders.items(), key=lambda item: -len(item[0])))


def _placed(text: str, folders: Mapping[str, Path]) -> str:
    """``text`` with a mounted path replaced by the folder that stands for it."""
    for path, folder in folders.items():
        if text == path:
            return str(folder)
        if text.startswith(f"{path}/"):
            return str(folder / PurePosixPath(text).relative_to(path))
    return text


def _addressed(text: str, around: Surroundings) -> str:
    for host in around.hosts:
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", LOOPBACK, text)
    for rendered, free in (around.ports or {}).items():
        if text in (rendered, f"{LOOPBACK}:{rendered}"):
            return text.removesuffix(rendered) + free
    return text


def _value(entry: Mapping[str, Any], around: Surroundings, index: int) -> str | None:
    """The value of one rendered variable; None where an optional source is missing."""
    if "value" in entry:
        return str(entry["value"])
    source = entry.get("valueFrom", {})
    if source.get("secretKeyRef"):
        return around.secrets.get(entry["name"])
    if (field := source.get("fieldRef", {}).get("fieldPath")) is not None:
        if field.endswith("job-completion-index']"):
            return str(index)
        raise UnsupportedManifest(f"env {entry['name']}: the field {field} is known in a cluster")
    raise UnsupportedManifest(f"env {entry['name']}: its source is known in a cluster only")


def downward(metadata: Mapping[str, Any], field: str) -> str:
    """What the downward API gives for an annotation or label of a pod with this ``metadata``.

    Raises:
        UnsupportedManifest: the field is known in a cluster only, such as the pod's IP address.
    """
    match = re.fullmatch(r"metadata\.(annotations|labels)\['([^']+)'\]", field)
    if match is None:
        raise UnsupportedManifest(f"downwardAPI: the field {field} is known in a cluster")
    return str(metadata.get(match[1], {}).get(match[2], ""))


def _expanded(text: str, env: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return env.get(match[2], match[0])

    return _REFERENCE.sub(replace, text)


def process(
    pod: Mapping[str, Any],
    around: Surroundings,
    *,
    index: int = 0,
    inherited: Mapping[str, str] | None = None,
) -> Process:
    """The process of a pod spec with one container; ``index`` is its number in an Indexed Job.

    Raises:
        UnsupportedManifest: the pod needs more than one container, or a source unknown here.
    """
    containers = pod["containers"]
    if len(containers) != 1 or pod.get("initContainers"):
        raise UnsupportedManifest("a pod of several containers runs on a cluster only")
    container = containers[0]
    folders = _folders(container, around)
    base = os.environ if inherited is None else inherited
    env = {name: value for name, value in base.items() if not name.startswith(_OURS)}
    env["JOB_COMPLETION_INDEX"] = str(index)
    rendered: dict[str, str] = {}  # references see these: a folder put in twice would be wrong
    for entry in container.get("env", []):
        value = _value(entry, around, index)
        if value is not None:
            rendered[entry["name"]] = _expanded(value, rendered)
    for name, value in rendered.items():
        env[name] = _addressed(_placed(value, folders), around)
    command = (*container["command"], *container.get("args", []))
    argv = [_placed(_expanded(text, rendered), folders) for text in command]
    if argv[0] == "python":  # the image's interpreter; here the one that runs this
        argv[0] = sys.executable
    cwd = Path(_placed(container.get("workingDir", "/"), folders))
    grace = float(pod.get("terminationGracePeriodSeconds", 30))
    return Process(tuple(argv), env, cwd, grace)
