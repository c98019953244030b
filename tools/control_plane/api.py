"""Send plain requests to a cluster's API server as one user, and write its kubeconfig."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .certificates import Pair

_TRIES = 10  # of a request that the API server asks to send again
_PATCHES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


class ApiError(Exception):
    """An error response of the API server: HTTP status ``code`` and Status object ``status``."""

    def __init__(self, method: str, path: str, code: int, status: dict[str, Any]) -> None:
        self.code, self.status = code, status
        super().__init__(f"{method} {path}: {code} {status.get('message') or status}")


@dataclass(frozen=True)
class Api:
    """One user of one API server, with a client certificate or a bearer token."""

    server: str
    authority: str
    certificate: Pair | None = None
    token: str | None = None
    _tls: ssl.SSLContext = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tls = ssl.create_default_context(cadata=self.authority)
        if self.certificate is not None:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as both:  # ssl reads files only
                both.write(self.certificate.certificate + self.certificate.key)
                both.flush()
                tls.load_cert_chain(both.name)
        object.__setattr__(self, "_tls", tls)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        timeout: float = 30,
    ) -> Any:
        """Send a request and return the response: JSON as Python values, anything else as text.

        A request that the server rejects with Retry-After, as it does while it starts to serve a
        changed CRD, is sent again.

        Raises:
            ApiError: the HTTP status is 400 or more.
            OSError: the server cannot be reached.
        """
        headers = {"Accept": "application/json", "Content-Type": content_type}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.server + path, data, headers, method=method)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls)
        )
        for tries_left in reversed(range(_TRIES)):
            try:
                with opener.open(request, timeout=timeout) as answer:
                    return _decode(answer.headers.get_content_type(), answer.read())
            except urllib.error.HTTPError as error:
                content = _decode(error.headers.get_content_type(), error.read())
                after = error.headers.get("Retry-After", "")
                if not (error.code in (429, 503) and after.isdigit() and tries_left):
                    status = content if isinstance(content, dict) else {"message": content}
                    raise ApiError(method, path, error.code, status) from None
            time.sleep(int(after))
        raise AssertionError  # the last try returns or raises

    def get(self, path: str) -> Any:
        """Send a GET request."""
        return self.request("GET", path)

    def post(self, path: str, body: Any) -> Any:
        """Send a POST request."""
        return self.request("POST", path, body)

    def patch(self, path: str, body: Any, kind: str = "merge") -> Any:
        """Send a patch; ``kind``: merge, json, strategic, or apply (path with a fieldManager)."""
        return self.request("PATCH", path, body, content_type=_PATCHES[kind])

    def delete(self, path: str, body: Any = None) -> Any:
        """Send a DELETE request."""
        return self.request("DELETE", path, body)

    def kubeconfig(self, namespace: str = "default") -> dict[str, Any]:
        """Return a self-contained kubeconfig, for kubectl, kopf and client libraries."""
        user: dict[str, str] = {}
        if self.certificate is not None:
            user["client-certificate-data"] = _base64(self.certificate.certificate)
            user["client-key-data"] = _base64(self.certificate.key)
        if self.token is not None:
            user["token"] = self.token
        cluster = {"server": self.server, "certificate-authority-data": _base64(self.authority)}
        context = {"cluster": "v2w", "user": "v2w", "namespace": namespace}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "v2w",
            "clusters": [{"name": "v2w", "cluster": cluster}],
            "users": [{"name": "v2w", "user": user}],
            "contexts": [{"name": "v2w", "context": context}],
        }

    def write_kubeconfig(self, path: Path, namespace: str = "default") -> Path:
        """Write the kubeconfig to ``path``, readable by its owner only."""
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(self.kubeconfig(namespace)))
        return path


def _decode(content_type: str, raw: bytes) -> Any:
    text = raw.decode(errors="replace")
    return json.loads(text) if content_type == "application/json" else text


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
