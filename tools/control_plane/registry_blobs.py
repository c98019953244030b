"""Delete from the disk of a local registry what none of its current images refers to."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["prune"]

_KINDS = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


def prune(folder: Path, registry: str, images: Sequence[str]) -> int:
    """Delete the other blobs in ``folder``, which crane's registry has written; return their bytes.

    Args:
        folder: that of ``crane registry serve --disk``.
        registry: its URL.
        images: names with tags of what is kept, such as ``video2world/operator:0.1.0``.
    """
    kept = set()
    for image in images:
        repository, _, tag = image.rpartition(":")
        kept |= set(_blobs(f"{registry}/v2/{repository}/manifests", tag))
    freed = 0
    for path in folder.rglob("*"):
        if path.is_file() and path.name.removeprefix("sha256:") not in kept:
            freed += path.stat().st_size
            path.unlink()
    return freed


def _blobs(manifests: str, reference: str) -> Iterator[str]:
    """Yield the hexadecimal digests of everything below a manifest."""
    request = urllib.request.Request(f"{manifests}/{reference}", headers={"Accept": _KINDS})
    with urllib.request.urlopen(request) as answer:
        manifest: dict[str, Any] = json.load(answer)
    for one in manifest.get("manifests", ()):
        yield _hex(one)
        yield from _blobs(manifests, one["digest"])
    for one in (*manifest.get("layers", ()), *filter(None, [manifest.get("config")])):
        yield _hex(one)


def _hex(descriptor: dict[str, Any]) -> str:
    return str(descriptor["digest"]).rpartition(":")[2]
