"""Read etcd's change log: every state that an object ever had, in order of revisions.

The API server may show changes to a watcher late, twice or not at all; etcd has all of them, in one
stream for all kinds.
"""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Change", "Store"]

ROOT, END = "/registry/", "/registry0"  # range of the API server's keys


@dataclass(frozen=True)
class Change:
    """An object as of ``revision``; ``body`` is None if it was deleted."""

    revision: int
    key: str  # relative to /registry/, such as pods/NAMESPACE/NAME
    body: dict[str, Any] | None


class Store:
    """etcd on a loopback port, through its JSON gateway.

    Bodies are only available for kinds stored as JSON: ``Cluster(readable_store=True)`` stores all
    of them so.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    def revision(self) -> int:
        """Return the newest revision."""
        request = {"key": _base64(ROOT), "limit": 1, "keys_only": True}
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            answer = self._post(connection, "/v3/kv/range", request)
            return int(json.loads(answer.read())["header"]["revision"])
        finally:
            connection.close()

    def changes(
        self, kinds: Sequence[str], since: int = 1, stop: threading.Event | None = None
    ) -> Iterator[Change]:
        """Yield changes of keys that start with one of ``kinds`` (``pods/``), as they happen.

        Ends with the first change of any key after ``stop`` is set.

        Raises:
            OSError: etcd has ended, or the revision ``since`` has been compacted.
        """
        create = {"key": _base64(ROOT), "range_end": _base64(END), "start_revision": str(since)}
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            answer = self._post(connection, "/v3/watch", {"create_request": create})
            wanted = tuple(ROOT + kind for kind in kinds)
            while line := answer.readline():
                if stop is not None and stop.is_set():
                    return
                result = json.loads(line).get("result", {})
                if result.get("canceled"):
                    raise OSError(f"etcd has ended the watch: {result.get('cancel_reason')}")
                for event in result.get("events", ()):
                    pair = event["kv"]
                    key = base64.b64decode(pair["key"]).decode()
                    if key.startswith(wanted):
                        value = base64.b64decode(pair.get("value", ""))
                        body = json.loads(value) if value else None
                        yield Change(int(pair["mod_revision"]), key.removeprefix(ROOT), body)
        finally:
            connection.close()
        raise OSError("etcd has ended")

    def _post(
        self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any]
    ) -> http.client.HTTPResponse:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"etcd answers {answer.status}: {answer.read()[:500]!r}")
        return answer


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
