"""Ask container registries whether images can be pulled without credentials."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from video2world_operator.preflight.facts import Access

__all__ = ["parts", "pullable"]

SECONDS = 10.0
_TYPES = ", ".join(
    f"application/vnd.{one}+json"
    for one in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)


def parts(image: str) -> tuple[str, str, str]:
    """Split an image name into registry, repository, and tag or digest."""
    name, _, digest = image.partition("@")
    first, _, rest = name.partition("/")
    if rest and (first == "localhost" or "." in first or ":" in first):
        host, name = first, rest
    else:
        host = "docker.io"
        name = name if "/" in name else f"library/{name}"
    name, _, tag = name.partition(":")
    return host, name, digest or tag or "latest"


def pullable(images: Sequence[str]) -> dict[str, Access]:
    """Ask the registry of each image."""
    with ThreadPoolExecutor(max(len(images), 1)) as pool:
        return dict(zip(images, pool.map(_ask, images), strict=True))


def _ask(image: str) -> Access:
    host, name, reference = parts(image)
    local = host.partition(":")[0] in ("localhost", "127.0.0.1")
    server = "registry-1.docker.io" if host == "docker.io" else host
    base = f"{'http' if local else 'https'}://{server}"
    try:
        url = f"{base}/v2/{urllib.parse.quote(name)}/manifests/{urllib.parse.quote(reference)}"
        code, challenge = _head(url)
        if code == 401 and (token := _token(challenge, name)):
            code, _ = _head(url, token)
    except (OSError, ValueError):
        return Access.UNREACHABLE
    if code in (401, 403):
        return Access.REFUSED
    if code == 404:
        return Access.MISSING
    return Access.ALLOWED if code < 300 else Access.UNREACHABLE


def _head(url: str, token: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, method="HEAD", headers={"Accept": _TYPES})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return int(answer.status), ""
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("WWW-Authenticate", "")


def _token(challenge: str, name: str) -> str:
    """Fetch an anonymous token; empty if the registry issues none."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = fields.get("realm", "")
    if not challenge.startswith("Bearer ") or not realm.startswith(("https://", "http://")):
        return ""
    asked = {"service": fields.get("service", ""), "scope": f"repository:{name}:pull"}
    try:
        with urllib.request.urlopen(
            f"{realm}?{urllib.parse.urlencode(asked)}", timeout=SECONDS
        ) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError:
        return ""
    return str(body.get("token") or body.get("access_token") or "")
