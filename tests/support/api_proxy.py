"""Proxy an API server, and drop, delay or replace the answers that a test chooses."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any, Self

import aiohttp
from aiohttp import web

from control_plane import Api
from control_plane.processes import free_port

__all__ = ["FAULTS", "Proxy"]

FAULTS = ("409", "410", "429", "500", "cut", "lost")
_REASONS = {"409": "Conflict", "410": "Expired", "429": "TooManyRequests", "500": "InternalError"}
_KEPT = ("authorization", "accept", "content-type")

Judge = Callable[[str, str], str | None]


class Proxy:
    """Forward requests to the server of ``api``. Use as a context manager.

    ``judge(method, path)`` returns the fault of a request (``WATCH`` is a method of its own): an
    HTTP status to answer without asking the server, ``cut`` (end the connection before asking the
    server) or ``lost`` (end it afterwards); None forwards the request. ``after_write`` is called
    after a write, before its answer is forwarded. The path of a created object includes its name.
    Watches end every ``watch_seconds``.
    """

    def __init__(
        self,
        api: Api,
        judge: Judge,
        *,
        after_write: Callable[[str, str], None] = lambda method, path: None,
        watch_seconds: float = 300,
    ) -> None:
        self._api, self._judge, self._after_write = api, judge, after_write
        self._watch_seconds = watch_seconds
        self._watches: set[asyncio.Transport] = set()
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut_watches(self) -> None:
        """End every watch that is open."""

        def abort() -> None:
            for one in tuple(self._watches):
                one.abort()

        self._loop.call_soon_threadsafe(abort)

    def kubeconfig(self) -> dict[str, Any]:
        """Return a kubeconfig of the user of ``api`` with the proxy as its server."""
        config = self._api.kubeconfig()
        config["clusters"][0]["cluster"] = {"server": self.url}
        return config

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()

    async def _close(self) -> None:
        await self._session.close()  # which ends the watches
        await self._runner.shutdown()
        await self._runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}  # whose clients were killed
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _start(self) -> None:
        connector = aiohttp.TCPConnector(ssl=self._api._tls, limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        method, watch = request.method, "watch" in request.query
        body = await request.read()
        path = request.path + (_name(body) if method == "POST" else "")
        fault = self._judge("WATCH" if watch else method, path)
        if fault == "cut":
            raise _Cut(request)
        if watch and fault == "410":  # reported as an event, as the server does
            event = {"type": "ERROR", "object": _status(410, _REASONS["410"])}
            return web.Response(text=f"{json.dumps(event)}\n", content_type="application/json")
        if fault in _REASONS:
            return _refusal(int(fault), _REASONS[fault])
        headers = {k: v for k, v in request.headers.items() if k.lower() in _KEPT}
        url = f"{self._api.server}{request.raw_path}"
        ask = self._session.request(method, url, data=body or None, headers=headers)
        try:
            async with ask as answer:
                if watch:
                    return await self._stream(request, answer)
                content = await answer.read()
        except aiohttp.ClientError:  # as the server itself would do to the client
            raise _Cut(request) from None
        if method in ("POST", "PATCH", "PUT", "DELETE") and answer.status < 300:
            self._after_write(method, path)
        if fault == "lost":
            raise _Cut(request)
        kept = {
            k: v
            for k, v in answer.headers.items()
            if k.lower() in ("content-type", "content-encoding")
        }
        return web.Response(status=answer.status, body=content, headers=kept)

    async def _stream(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=answer.status, headers={"Content-Type": "application/json"}
        )
        await response.prepare(request)
        assert request.transport is not None
        self._watches.add(transport := request.transport)
        begun = b""  # a server ends a watch between two events, never within one
        try:
            async with asyncio.timeout(self._watch_seconds):
                async for chunk in answer.content.iter_any():
                    whole, end, rest = (begun + chunk).rpartition(b"\n")
                    begun = rest
                    if end:
                        await response.write(whole + end)
        except TimeoutError:
            pass
        finally:
            self._watches.discard(transport)
        return response


class _Cut(web.HTTPException):
    """End the connection without an answer."""

    status_code = 500

    def __init__(self, request: web.Request) -> None:
        super().__init__()
        if request.transport is not None:
            request.transport.abort()


def _name(body: bytes) -> str:
    """Return the last part of a created object's path; empty if it has no name."""
    name = json.loads(body).get("metadata", {}).get("name")
    return f"/{name}" if name else ""


def _status(code: int, reason: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": f"injected {reason}",
    }


def _refusal(code: int, reason: str) -> web.Response:
    headers = {"Retry-After": "1"} if code == 429 else {}
    return web.json_response(_status(code, reason), status=code, headers=headers)
