"""Merge a patch into a manifest, as kubectl does."""

from __future__ import annotations

from typing import Any

from video2world_operator.api.errors import InvalidResource, Problem
from video2world_operator.api.yaml_reader import join

__all__ = ["merge", "merge_named"]

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "resourceClaims": "name",
    "claims": "name",  # of a container's resources
    "imagePullSecrets": "name",  # pragma: allowlist secret
}


def merge(base: Any, patch: Any, path: str = "") -> Any:
    """Merge by RFC 7386, except that lists of named objects are merged by name.

    Raises:
        InvalidResource: a patch of such a list is not one; ``path`` is the path of ``patch``.
    """
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return patch
    merged = dict(base)
    for name, value in patch.items():
        here = join(path, name)
        if value is None:
            merged.pop(name, None)
        elif name in _MERGE_KEYS and isinstance(merged.get(name), list):
            merged[name] = merge_named(merged[name], value, _MERGE_KEYS[name], here)
        else:
            merged[name] = merge(merged.get(name, {}), value, here)
    return merged


def merge_named(base: list[Any], patch: Any, key: str, path: str = "") -> list[Any]:
    """Merge lists of objects whose name is in the field ``key``."""
    if not isinstance(patch, list):
        raise InvalidResource([Problem(path, "write a list here, as in a pod")])
    merged = {item[key]: item for item in base}
    for number, item in enumerate(patch):
        name = item.get(key) if isinstance(item, dict) else None
        if not isinstance(name, str):
            text = f"write a mapping with {key}, by which it is merged with the existing entries"
            raise InvalidResource([Problem(f"{path}[{number}]", text)])
        merged[name] = merge(merged.get(name, {}), item, f"{path}[{number}]")
    return list(merged.values())
