"""Compare the CRD that a cluster serves with the one of this version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from video2world_operator.api.constants import GROUP, KIND, VERSION
from video2world_operator.api.crd_schema import build
from video2world_operator.api.wording import Schema
from video2world_operator.kube.client import ApiClient
from video2world_operator.kube.errors import ApiError

__all__ = ["Definition", "added_defaults", "problem_of", "unknown_fields", "without"]

Path = tuple[str, ...]

_GROUP_VERSION = f"apis/{GROUP}/{VERSION}"
_REMEDY = "apply manifests/crd.yaml or upgrade the chart."
_SHOWN = 3  # fields to name


class Definition:
    """The CRD as the API server publishes it; compared again when its hash changes."""

    def __init__(self, cluster: ApiClient) -> None:
        self._cluster = cluster
        self._hash = ""
        self.problem = ""  # what is wrong with it and how to fix it; empty if nothing is
        self.absent = False  # the CRD is not installed
        self.blocks = False  # the status cannot be written
        self.added: Mapping[Path, Any] = {}  # defaults of fields that this version does not know

    async def check(self) -> None:
        """Update the fields from the API server.

        Raises:
            ApiError, OSError: the API server does not answer.
        """
        try:
            index = await self._document("/openapi/v3")
            place = index.get("paths", {}).get(_GROUP_VERSION, {}).get("serverRelativeURL", "")
            path, _, version = place.partition("?hash=")
            if place and version == self._hash:
                return
            document = await self._document(path, hash=version) if place else {}
        except ApiError as error:
            if error.code == 403:  # no permission, so nothing is known
                return
            raise
        self._hash = version if document else ""
        self._take(_schema_in(document))

    async def _document(self, path: str, **params: str) -> Mapping[str, Any]:
        found: Any = await self._cluster.get(path, **params)
        # the index is served as text/plain, and so is the empty answer of the API server for a
        # group whose last CRD was removed after the index was read
        if isinstance(found, str):
            try:
                return json.loads(found) if found else {}
            except ValueError as error:
                raise OSError(f"the answer to {path} is not JSON ({error})") from error
        return found or {}

    def _take(self, served: Schema | None) -> None:
        self.absent = self.blocks = served is None
        self.added = {}
        if served is None:
            self.problem = f"The CRD {KIND} ({GROUP}/{VERSION}) is not in this cluster: {_REMEDY}"
            return
        own = build()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        unknown = sorted(unknown_fields(served, own), key=_prominence)
        self.blocks = any(path.startswith("status") for path in unknown)
        self.problem = _older(unknown) if unknown else ""
        self.added = dict(added_defaults(served, own))


async def problem_of(cluster: ApiClient) -> str:
    """Return what is wrong with the cluster's CRD and how to fix it; empty if nothing is."""
    definition = Definition(cluster)
    await definition.check()
    return definition.problem


def _prominence(path: str) -> tuple[bool, int, str]:
    """Sort fields of the status and fields of high levels first."""
    return path.startswith("spec"), path.count("."), path


def _older(unknown: list[str]) -> str:
    named = ", ".join(unknown[:_SHOWN])
    if (more := len(unknown) - _SHOWN) > 0:
        named += f" and {more} more"
    verb = "is" if len(unknown) == 1 else "are"
    return (
        f"The CRD in this cluster is older than the operator ({named} {verb} unknown to it): "
        + (_REMEDY)
    )


def _schema_in(document: Mapping[str, Any]) -> Schema | None:
    """Return the schema of the resource in an OpenAPI v3 document."""
    for schema in document.get("components", {}).get("schemas", {}).values():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            if (kind["group"], kind["version"], kind["kind"]) == (GROUP, VERSION, KIND):
                return dict(schema)
    return None


def unknown_fields(served: Schema, own: Schema, path: str = "") -> Iterator[str]:
    """Yield fields of ``own`` that ``served`` lacks, and status values that it refuses."""
    if served.get("x-kubernetes-preserve-unknown-fields"):
        return
    if path.startswith("status") and (known := served.get("enum")) is not None:
        values = [value for value in own.get("enum", ()) if value not in known]
        yield from (f"{path}: {value}" for value in values)
    if "items" in own:
        yield from unknown_fields(served.get("items", {}), own["items"], f"{path}[]")
    fields = served.get("properties", {})
    for name, field in own.get("properties", {}).items():
        below = f"{path}.{name}" if path else name
        if name in ("apiVersion", "kind", "metadata") and not path:
            continue
        if name in fields:
            yield from unknown_fields(fields[name], field, below)
        else:
            yield below


def added_defaults(served: Schema, own: Schema, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield fields of a newer CRD for which the API server sets defaults, with their defaults."""
    known = own.get("properties", {})
    for name, field in served.get("properties", {}).items():
        if path == () and name != "spec":
            continue
        if name in known:
            yield from added_defaults(field, known[name], (*path, name))
        elif known and "default" in field:
            yield (*path, name), _filled(field["default"], field)


def _filled(value: Any, schema: Schema) -> Any:
    """Add the defaults of missing fields to ``value``."""
    if not isinstance(value, Mapping):
        return value
    fields = schema.get("properties", {})
    filled = {n: f["default"] for n, f in fields.items() if "default" in f} | dict(value)
    return {name: _filled(inner, fields.get(name, {})) for name, inner in filled.items()}


def without(body: Mapping[str, Any], added: Mapping[Path, Any]) -> Mapping[str, Any]:
    """Remove from ``body`` the fields that hold only the defaults of a newer CRD.

    A field that a user has set to another value stays, and is refused as unknown.
    """
    for path, default in added.items():
        body = _without(body, path, default)
    return body


def _without(value: Mapping[str, Any], path: Path, default: Any) -> Mapping[str, Any]:
    name, *rest = path
    if name not in value:
        return value
    if rest:
        inner = value[name]
        if not isinstance(inner, Mapping):
            return value
        return {**value, name: _without(inner, tuple(rest), default)}
    return {k: v for k, v in value.items() if k != name} if value[name] == default else value
