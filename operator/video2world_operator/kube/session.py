"""Hold the connection to the API server, and renew its credentials when they have expired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient as Transport
from kubernetes.aio.config import ConfigException

from video2world_operator import __version__
from video2world_operator.kube.auth import Connection
from video2world_operator.kube.errors import LoginFailed

__all__ = ["Session"]

TIMEOUT = aiohttp.ClientTimeout(total=60, connect=10)


@dataclass
class _Login:
    """The official client's transport with the credentials of one login."""

    transport: Transport
    requests: int = 0  # in flight
    stale: bool = False  # there has been another login

    async def close_if_unused(self) -> None:
        """Close the connections of a stale login once nothing uses them."""
        if self.stale and not self.requests:
            await self.transport.close()


class Session:
    """The login used for new requests; requests in flight keep the one they were sent with."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._lock = asyncio.Lock()
        self._login: _Login | None = None
        self.logins = 0  # so far
        self.namespace = "default"

    async def log_in(self, stale: int) -> None:
        """Log in again, unless that was done since there were ``stale`` logins.

        Raises:
            LoginFailed: there are no credentials, or they cannot be used.
        """
        async with self._lock:
            if self.logins != stale:
                return
            connection = await self._connect()
            try:
                transport = Transport(connection.configuration)
            except OSError as error:  # certificates or keys
                raise LoginFailed(f"the cluster's credentials cannot be used ({error})") from error
            transport.user_agent = f"video2world/{__version__}"
            before, self._login = self._login, _Login(transport)
            self.namespace, self.logins = connection.namespace, self.logins + 1
            if before is not None:
                before.stale = True
                await before.close_if_unused()

    async def renew(self, stale: int) -> None:
        """Log in again as :meth:`log_in` does, after credentials have expired.

        Raises:
            OSError: there are no new credentials yet.
        """
        try:
            await self.log_in(stale)
        except LoginFailed as error:
            raise OSError(f"the credentials have expired: {error}") from error

    async def close(self) -> None:
        """Close all connections."""
        if self._login is not None:
            await self._login.transport.close()

    @asynccontextmanager
    async def send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: aiohttp.ClientTimeout = TIMEOUT,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one authenticated request and yield the answer, whose body has not been read.

        Raises:
            aiohttp.ClientError, TimeoutError: the server cannot be reached.
            OSError: the service account's token cannot be read.
        """
        login = self._login
        assert login is not None, "log in first"
        login.requests += 1
        try:
            _, url, prepared, _, _ = await login.transport.param_serialize(
                method,
                path,
                query_params=list(params.items()),
                header_params=dict(headers or {}),
                auth_settings=["BearerToken"],
            )
            answer = await login.transport.call_api(
                method, url, prepared, body, _request_timeout=timeout
            )
            async with answer.response as response:
                yield response
        except ConfigException as error:
            raise OSError(f"the service account's token cannot be read: {error}") from error
        finally:
            login.requests -= 1
            await login.close_if_unused()
