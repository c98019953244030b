"""The store's own log of changes: every state that an object ever had, in the order of versions.

What the API server shows to a watcher may be cut short, repeated or late; etcd is what it is made
of. One stream brings the changes of all kinds in one order, that of resource versions.
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

ROOT, END = "/registry/", "/registry0"  # the API server's keys: the first, and one after the last


@dataclass(frozen=True)
class Change:
    """An object as it was from ``revision`` on; ``body`` None: it was not there any more."""

    revision: int
    key: str  # below /registry/: such as pods/NAMESPACE/NAME
    body: dict[str, Any] | None


class Store:
    """etcd on this port of loopback, through its JSON gateway.

    Of kinds that the API server stores in another form than JSON there are no bodies to be had:
    ``Cluster(readable_store=True)`` stores all in JSON.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    def revision(self) -> int:
        """The newest revision."""
        asked = {"key": _base64(ROOT), "limit": 1, "keys_only": True}
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            answer = self._post(connection, "/v3/kv/range", asked)
            return int(json.loads(answer.read())["header"]["revision"])
        finally:
            connection.close()

    def changes(
        self, kinds: Sequence[str], since: int = 1, stop: threading.Event | None = None
    ) -> Iterator[Change]:
        """Changes of keys that begin with one of ``kinds`` (``pods/``), as they come.

        It ends with the first change of anything after ``stop`` was set.

        Raises:
            OSError: etcd has ended, or has forgotten the revision ``since``.
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
