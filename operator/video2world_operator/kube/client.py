"""Send requests to the API server: plain objects, with a rate limit, retries and a fence.

Authentication, TLS, proxies and connections are the official client's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from video2world_operator.api.constants import API_VERSION, KIND, PLURAL
from video2world_operator.kube.auth import Connection, login
from video2world_operator.kube.errors import ApiError, Throttled
from video2world_operator.kube.rate_limiter import TokenBucket
from video2world_operator.kube.server_clock import ServerClock
from video2world_operator.kube.session import Session

__all__ = ["KNOWN_RESOURCES", "PAGE", "SMALL_PAGE", "ApiClient", "Object", "annotate", "path_of"]

_FIELD_MANAGER = {"fieldManager": "video2world-operator"}
Object = dict[str, Any]

_PLURALS: Mapping[str, str] = {
    "Event": "events",
    "Job": "jobs",
    "Lease": "leases",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "PodGroup": "podgroups",
    "Service": "services",
    "Workload": "workloads",
    KIND: PLURAL,
}
KNOWN_RESOURCES = frozenset(_PLURALS.values())
_RETRIED = (429, 500, 502, 503, 504)
_DELAYS = (0.2, 0.8, 2.0)  # seconds between tries; after that, the work queue's backoff takes over
_LOG_BYTES = 256 << 10
PAGE = 500  # objects per page of a listing
SMALL_PAGE = 50  # for listings alongside other work: decoding a page blocks the event loop
WATCH_SECONDS = 300  # after which the server is asked to end a watch
SILENCE = 150  # seconds without data that end a watch; bookmarks come about once a minute
_FOLLOWED_LOG = aiohttp.ClientTimeout(total=None, connect=10)
_WATCH = aiohttp.ClientTimeout(total=None, connect=10, sock_read=SILENCE)

log = logging.getLogger(__name__)


def path_of(version: str, kind: str, namespace: str | None, name: str = "") -> str:
    """Return the URL path of an object, or of all objects of its kind if ``name`` is empty."""
    base = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    within = f"/namespaces/{quote(namespace)}" if namespace else ""
    return f"{base}{within}/{_PLURALS[kind]}" + (f"/{quote(name)}" if name else "")


@dataclass(frozen=True)
class _Call:
    """One request, which may be sent several times."""

    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    body: Mapping[str, Any] | None = None
    fenced: bool = False


class ApiClient:
    """A client of one API server. Use as an async context manager.

    ``observe`` is called after every request with its method, path, HTTP status (0 without an
    answer) and duration in seconds.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]] = login,
        *,
        requests_per_second: float = 100,
        burst: int = 400,
        parallel: int = 50,
        observe: Callable[[str, str, int, float], None] = lambda method, path, code, seconds: None,
    ) -> None:
        self._observe = observe
        self._session = Session(connect)
        self._bucket = TokenBucket(requests_per_second, burst)
        self._parallel = asyncio.Semaphore(parallel)
        self.clock = ServerClock()
        self.fence: Callable[[], bool] = lambda: True  # whether objects may be changed now

    async def __aenter__(self) -> ApiClient:
        await self._session.log_in(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @property
    def default_namespace(self) -> str:
        """The namespace of the kubeconfig's context, or of the pod this runs in."""
        return self._session.namespace

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
        """Return the answer's object (text for logs), after retries where they can help.

        A ``fenced`` request is not sent while :attr:`fence` forbids it.

        Raises:
            ApiError: the server refused, or failed at every try.
            OSError: it cannot be reached.
        """
        headers = {"Content-Type": content_type, "Accept": accept}
        call = _Call(method, path, params or {}, headers, body, fenced)
        for number in range(len(_DELAYS) + 1):
            last = number == len(_DELAYS)
            wait = _DELAYS[min(number, len(_DELAYS) - 1)] * random.uniform(0.7, 1.3)
            logins = self._session.logins
            try:
                return await self._once(call)
            except ApiError as error:
                if last or error.lasting or error.code not in (*_RETRIED, 401):
                    raise
                if isinstance(error, Throttled):
                    wait = max(wait, error.seconds)
                if error.code == 401:  # the credentials have expired
                    await self._session.renew(logins)
            except (aiohttp.ClientError, TimeoutError) as error:
                if last:
                    raise OSError(f"the API server cannot be reached: {error}") from error
            await asyncio.sleep(wait)
        raise AssertionError  # the last round returns or raises

    async def _once(self, call: _Call) -> Any:
        await self._bucket.take()
        code, started = 0, time.monotonic()
        try:
            async with self._parallel:
                if call.fenced and not self.fence():
                    raise OSError("the lease may be another operator's by now")
                async with self._session.send(
                    call.method, call.path, call.params, call.headers, call.body
                ) as answer:
                    code = answer.status
                    self.clock.observe(answer.headers.get("Date", ""))
                    if code >= 300:
                        raise await _refusal(answer)
                    if "json" in answer.content_type:
                        return await _json(answer)
                    return await answer.text(errors="replace")
        finally:
            self._observe(call.method, call.path, code, time.monotonic() - started)

    async def get_if_allowed(self, path: str, **params: str) -> Object | None:
        """As :meth:`get`; None also if the user may not read it."""
        try:
            return await self.get(path, **params)
        except ApiError as error:
            if error.code != 403:
                raise
            return None

    async def get(self, path: str, **params: str) -> Object | None:
        """Return the object at ``path``, or None if there is none."""
        try:
            found: Object = await self.request("GET", path, params=params)
        except ApiError as error:
            if error.code == 404:
                return None
            raise
        return found

    async def list_pages(
        self, path: str, *, accept: str = "application/json", page: int = PAGE, **params: str
    ) -> AsyncIterator[Object]:
        """Yield the listing at ``path``, ``page`` objects at a time to bound memory."""
        params["limit"] = str(page)
        while True:
            found = await self.request("GET", path, params=params, accept=accept)
            found["items"] = found["items"] or []  # null when there are none
            yield found
            if not found["metadata"].get("continue"):
                return
            params["continue"] = found["metadata"]["continue"]

    async def list_objects(
        self, path: str, *, accept: str = "application/json", page: int = PAGE, **params: str
    ) -> AsyncIterator[Object]:
        """Yield the objects at ``path``; see :meth:`list_pages`."""
        async for found in self.list_pages(path, accept=accept, page=page, **params):
            for item in found["items"]:
                yield item

    async def watch(self, path: str, **params: str) -> AsyncGenerator[Object, None]:
        """Yield events of the objects at ``path``, and bookmarks, until the server ends the watch.

        ``resourceVersion`` in ``params`` is where it starts
        (https://kubernetes.io/docs/reference/using-api/api-concepts).

        Raises:
            ApiError: the server refused, or cannot continue; code 410: from that version.
            OSError: it cannot be reached, or has been silent for :data:`SILENCE` seconds.
        """
        await self._bucket.take()
        query = {
            **params,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        try:
            async with self._session.send("GET", path, query, timeout=_WATCH) as answer:
                if answer.status >= 300:
                    raise await _refusal(answer)
                async for event in _events(answer.content):
                    yield event
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise OSError(f"the watch of {path} was cut: {error or 'silent'}") from error

    async def create(self, manifest: Mapping[str, Any]) -> bool:
        """Create the object; return False if there is one of its name.

        A PodGroup field that the installed version of its API does not know is refused instead of
        dropped.
        """
        namespace = manifest["metadata"].get("namespace")
        path = path_of(manifest["apiVersion"], manifest["kind"], namespace)
        strict = {"fieldValidation": "Strict"} if manifest["kind"] == "PodGroup" else {}
        params = _FIELD_MANAGER | strict
        try:
            await self.request("POST", path, params=params, body=manifest, fenced=True)
        except ApiError as error:
            if (error.code, error.reason) != (409, "AlreadyExists"):
                raise
            return False
        return True

    async def apply_status(self, body: Object, status: Mapping[str, Any]) -> Object:
        """Apply a resource's status server-side, unless the resource has changed since ``body``.

        Returns the resource as it is then.
        """
        metadata = {k: body["metadata"][k] for k in ("name", "namespace", "resourceVersion")}
        written: Object = await self.request(
            "PATCH",
            path_of(API_VERSION, KIND, metadata["namespace"], metadata["name"]) + "/status",
            params=_FIELD_MANAGER | {"force": "true"},
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
        """Delete the object with this UID if it still exists, and its dependents with it.

        With ``foreground`` the dependents are deleted first.
        """
        policy = "Foreground" if foreground else "Background"
        options: Object = {"propagationPolicy": policy, "preconditions": {"uid": uid}}
        if force:
            options["gracePeriodSeconds"] = 0
        try:
            path = path_of(version, kind, namespace, name)
            await self.request("DELETE", path, body=options, fenced=True)
        except ApiError as error:
            # 404: already deleted; 409: another object has the name by now
            if error.code not in (404, 409):
                raise

    async def pod_log(self, namespace: str, pod: str, container: str, **params: str) -> str:
        """Return the end of a container's log; empty if there is none."""
        path = path_of("v1", "Pod", namespace, pod) + "/log"
        options = {"container": container, "limitBytes": str(_LOG_BYTES), **params}
        try:
            text = await self._once(_Call("GET", path, options, {"Accept": "*/*"}))
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.debug("no log of %s/%s: %s", namespace, pod, error)
            return ""
        return str(text)

    @asynccontextmanager
    async def stream_log(
        self, namespace: str, pod: str, container: str, **params: str
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """Open a container's log as a stream (``follow="true"``), without a time limit.

        Raises:
            ApiError: there is no such log.
        """
        path = path_of("v1", "Pod", namespace, pod) + "/log"
        options = {"container": container, **params}
        async with self._session.send("GET", path, options, timeout=_FOLLOWED_LOG) as answer:
            if answer.status >= 300:
                raise await _refusal(answer)
            yield answer.content


async def annotate(
    api: ApiClient,
    path: str,
    uid: str,
    annotations: Mapping[str, str],
) -> None:
    """Set annotations of the object at ``path`` with this UID; the others stay.

    Raises:
        ApiError: it does not exist (404; 409: another object has the name), or may not be changed.
    """
    await api.request(
        "PATCH",
        path,
        params=_FIELD_MANAGER,
        body={"metadata": {"uid": uid, "annotations": dict(annotations)}},
        content_type="application/merge-patch+json",
        fenced=True,
    )


async def _events(stream: aiohttp.StreamReader) -> AsyncIterator[Object]:
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for event in map(json.loads, lines):
            if event["type"] == "ERROR":
                status = event["object"]
                raise ApiError(
                    status.get("code", 0), status.get("reason", ""), status.get("message", "")
                )
            yield event


async def _json(answer: aiohttp.ClientResponse) -> Any:
    try:
        return json.loads(await answer.read())
    except ValueError as error:  # a proxy's answer, or half of one
        raise aiohttp.ClientPayloadError(f"the answer is not JSON ({error})") from error


async def _refusal(answer: aiohttp.ClientResponse) -> ApiError:
    text = await answer.text(errors="replace")
    try:
        status = json.loads(text)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = answer.reason or "", text.strip()[:500]
    if (after := answer.headers.get("Retry-After", "")).isdigit():
        return Throttled(answer.status, reason, message, min(float(after), 30.0))
    return ApiError(answer.status, reason, message)
