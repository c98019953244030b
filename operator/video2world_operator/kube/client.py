"""The edge to the API server: plain objects over HTTP, rate-limited and retried."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import kopf

from video2world_operator.api.constants import API_VERSION, KIND, PLURAL
from video2world_operator.kube.auth import login
from video2world_operator.kube.errors import ApiError
from video2world_operator.kube.rate_limiter import _Bucket
from video2world_operator.kube.server_clock import ServerClock

__all__ = ["Cluster", "path_of"]

_OURS = {"fieldManager": "video2world-operator"}
Object = dict[str, Any]

_PLURALS: Mapping[str, str] = {
    "Event": "events",
    "Job": "jobs",
    "Lease": "leases",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "PodGroup": "podgroups",
    "Service": "services",
    KIND: PLURAL,
}
KNOWN = frozenset(_PLURALS.values())
_RETRIED = (429, 500, 502, 503, 504)
_DELAYS = (0.2, 0.8, 2.0)  # seconds between tries; then the work queue's own back-off takes over
_LOG_BYTES = 256 << 10
PAGE = 500  # objects of a listing
SMALL_PAGE = 50  # of one that is read beside other work: what is decoded at once holds that up
WATCH_SECONDS = 300  # after which the server is asked to end a watch
SILENCE = 150  # seconds: the server sends a bookmark about once a minute

log = logging.getLogger(__name__)


def path_of(version: str, kind: str, namespace: str | None, name: str = "") -> str:
    """The URL path of an object, or of all objects of its kind if ``name`` is empty."""
    base = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    within = f"/namespaces/{quote(namespace)}" if namespace else ""
    return f"{base}{within}/{_PLURALS[kind]}" + (f"/{quote(name)}" if name else "")


class Cluster:
    """A client of one API server. Use as an async context manager."""

    def __init__(
        self,
        connect: Callable[[], kopf.ConnectionInfo] = login,
        *,
        requests_per_second: float = 100,
        burst: int = 400,
        parallel: int = 50,
        observe: Callable[[str, str, int, float], None] = lambda method, path, code, seconds: None,
    ) -> None:
        self._observe = observe  # told of every request: method, path, code (0: none), seconds
        self._connect = connect
        self._bucket = _Bucket(requests_per_second, burst)
        self._parallel = asyncio.Semaphore(parallel)
        self._session: aiohttp.ClientSession | None = None
        self._logging_in = asyncio.Lock()
        self.clock = ServerClock()
        self.fence: Callable[[], bool] = lambda: True  # whether objects may be changed now
        self.default_namespace = "default"

    async def __aenter__(self) -> Cluster:
        await self._log_in(None)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def _log_in(self, stale: aiohttp.ClientSession | None) -> None:
        async with self._logging_in:
            if self._session is not stale:
                return  # somebody else has done so meanwhile
            info = await asyncio.to_thread(self._connect)
            self._server = info.server.rstrip("/")
            self.default_namespace = info.default_namespace or "default"
            ssl = info.as_ssl_context()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=ssl, limit=0),
                headers=info.as_http_headers(),
                timeout=aiohttp.ClientTimeout(total=60, connect=10),
            )
            if stale is not None:
                await stale.close()

    # ------------------------------------------------------------------ requests

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        fenced: bool = False,
    ) -> Any:
        """The answer's object (text for logs). What is worth it is tried again a few times. What is
        ``fenced`` is not sent where :attr:`fence` forbids it.

        Raises:
            ApiError: the server refused, or failed each time.
            OSError: it cannot be reached.
        """
        for number in range(len(_DELAYS) + 1):
            last = number == len(_DELAYS)
            wait = _DELAYS[min(number, len(_DELAYS) - 1)] * random.uniform(0.7, 1.3)
            try:
                return await self._once(method, path, params, body, content_type, accept, fenced)
            except ApiError as error:
                if last or error.lasting or error.code not in (*_RETRIED, 401):
                    raise
                if isinstance(error, _Throttled):
                    wait = max(wait, error.after)
                if error.code == 401:  # the service account's token has been renewed on disk
                    await self._log_in(self._session)
            except (aiohttp.ClientError, TimeoutError) as error:
                if last:
                    raise OSError(f"the API server cannot be reached: {error}") from error
            await asyncio.sleep(wait)
        raise AssertionError  # the last round returns or raises

    async def _once(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str = "application/json",
        accept: str = "application/json",
        fenced: bool = False,
    ) -> Any:
        await self._bucket.take()
        data = None if body is None else json.dumps(body).encode()
        session = self._session
        assert session is not None, "use the client as a context manager"
        code, started = 0, time.monotonic()
        try:
            async with self._parallel:
                if fenced and not self.fence():
                    raise OSError("the lease may be another operator's by now")
                async with session.request(
                    method,
                    self._server + path,
                    params=params,
                    data=data,
                    headers={"Content-Type": content_type, "Accept": accept},
                ) as answer:
                    code = answer.status
                    self.clock.hear(answer.headers.get("Date", ""))
                    if code < 300:
                        if "json" in answer.content_type:
                            return await answer.json()
                        return await answer.text(errors="replace")
                    raise await _refusal(answer)
        finally:
            self._observe(method, path, code, time.monotonic() - started)

    async def get_if_allowed(self, path: str) -> Object | None:
        """As :meth:`get`; None also where the user may not see it."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.code != 403:
                raise
            return None

    async def get(self, path: str, **params: str) -> Object | None:
        """The object at ``path``, or None where there is none."""
        try:
            found: Object = await self.request("GET", path, params=params)
        except ApiError as error:
            if error.code == 404:
                return None
            raise
        return found

    async def pages(
        self, path: str, *, accept: str = "application/json", page: int = PAGE, **params: str
    ) -> AsyncIterator[Object]:
        """The listing at ``path``, ``page`` objects at a time: all at once would take memory."""
        params["limit"] = str(page)
        while True:
            found = await self.request("GET", path, params=params, accept=accept)
            found["items"] = found["items"] or []  # null when there are none
            yield found
            if not found["metadata"].get("continue"):
                return
            params["continue"] = found["metadata"]["continue"]

    async def listed(
        self, path: str, *, accept: str = "application/json", page: int = PAGE, **params: str
    ) -> AsyncIterator[Object]:
        """The objects at ``path``; see :meth:`pages`."""
        async for found in self.pages(path, accept=accept, page=page, **params):
            for item in found["items"]:
                yield item

    async def watch(self, path: str, **params: str) -> AsyncGenerator[Object, None]:
        """Events of the objects at ``path`` from ``resourceVersion`` on, and bookmarks, until the
        server ends the watch (https://kubernetes.io/docs/reference/using-api/api-concepts).

        Raises:
            ApiError: the server refused, or cannot go on; code 410: from that version on.
            OSError: it cannot be reached, or has been silent for :data:`SILENCE` seconds.
        """
        await self._bucket.take()
        session = self._session
        assert session is not None, "use the client as a context manager"
        query = {
            **params,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=SILENCE)
        try:
            async with session.get(self._server + path, params=query, timeout=timeout) as answer:
                if answer.status >= 300:
                    raise await _refusal(answer)
                begun = b""
                async for chunk in answer.content.iter_any():
                    *lines, begun = (begun + chunk).split(b"\n")
                    for event in map(json.loads, lines):
                        if event["type"] == "ERROR":
                            told = event["object"]
                            raise ApiError(
                                told.get("code", 0), told.get("reason", ""), told.get("message", "")
                            )
                        yield event
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise OSError(f"the watch of {path} was cut: {error or 'silent'}") from error

    async def create(self, manifest: Mapping[str, Any]) -> bool:
        """Create the object; False if one of its name is there already.

        A field of an optional API that its version does not know is refused, not dropped.
        """
        namespace = manifest["metadata"].get("namespace")
        path = path_of(manifest["apiVersion"], manifest["kind"], namespace)
        strict = {"fieldValidation": "Strict"} if manifest["kind"] == "PodGroup" else {}
        params = _OURS | strict
        try:
            await self.request("POST", path, params=params, body=manifest, fenced=True)
        except ApiError as error:
            if (error.code, error.reason) != (409, "AlreadyExists"):
                raise
            return False
        return True

    async def apply_status(self, body: Object, status: Mapping[str, Any]) -> Object:
        """Server-side apply of a resource's status, if nobody has changed the resource since
        ``body``; returns the resource as it then is."""
        metadata = {k: body["metadata"][k] for k in ("name", "namespace", "resourceVersion")}
        written: Object = await self.request(
            "PATCH",
            path_of(API_VERSION, KIND, metadata["namespace"], metadata["name"]) + "/status",
            params=_OURS | {"force": "true"},
            body={"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": status},
            content_type="application/apply-patch+yaml",
            fenced=True,
        )
        return written

    async def delete(
        self,
        version: str,
        kind: str,
        namespace: str,
        name: str,
        uid: str,
        *,
        force: bool = False,
        foreground: bool = False,
    ) -> None:
        """Delete the object with this UID, if it is still there; what it owns goes with it, or,
        ``foreground``, before it."""
        how = "Foreground" if foreground else "Background"
        options: Object = {"propagationPolicy": how, "preconditions": {"uid": uid}}
        if force:
            options["gracePeriodSeconds"] = 0
        try:
            path = path_of(version, kind, namespace, name)
            await self.request("DELETE", path, body=options, fenced=True)
        except ApiError as error:
            # 404: gone already; 409: another object bears the name by now
            if error.code not in (404, 409):
                raise

    async def pod_log(self, namespace: str, pod: str, container: str, **params: str) -> str:
        """The end of a container's log; empty where there is none to be had."""
        path = path_of("v1", "Pod", namespace, pod) + "/log"
        options = {"container": container, "limitBytes": str(_LOG_BYTES), **params}
        try:
            text = await self._once("GET", path, options, None, accept="*/*")
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.debug("no log of %s/%s: %s", namespace, pod, error)
            return ""
        return str(text)

    @asynccontextmanager
    async def stream_log(
        self, namespace: str, pod: str, container: str, **params: str
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """A container's log as it is written (``follow="true"``), without a time limit.

        Raises:
            ApiError: there is no such log.
        """
        assert self._session is not None
        async with self._session.get(
            self._server + path_of("v1", "Pod", namespace, pod) + "/log",
            params={"container": container, **params},
            timeout=aiohttp.ClientTimeout(total=None, connect=10),
        ) as answer:
            if answer.status >= 300:
                raise await _refusal(answer)
            yield answer.content


class _Throttled(ApiError):
    """The server asks to wait for ``after`` seconds."""

    after = 0.0


async def _refusal(answer: aiohttp.ClientResponse) -> ApiError:
    text = await answer.text(errors="replace")
    try:
        status = json.loads(text)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = answer.reason or "", text.strip()[:500]
    if (after := answer.headers.get("Retry-After", "")).isdigit():
        throttled = _Throttled(answer.status, reason, message)
        throttled.after = min(float(after), 30.0)
        return throttled
    return ApiError(answer.status, reason, message)
