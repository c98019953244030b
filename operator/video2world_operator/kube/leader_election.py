"""Elect one of several operators as the leader with a coordination.k8s.io Lease.

The times are those of client-go's leader election: a lease lasts 15 s from its last renewal, is
renewed every 2 s, and a holder that could not renew it for 10 s gives up before another operator
may take it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.errors import ApiError

__all__ = ["LeaderElector", "LeaseTimes", "LostLease"]

log = logging.getLogger(__name__)
VERSION = "coordination.k8s.io/v1"
NAME = "video2world-operator"


class LostLease(Exception):
    """Another operator may lead by now; this one has to stop at once."""


@dataclass(frozen=True)
class LeaseTimes:
    """How long a lease lasts, how long renewing may fail, and how often to renew, in seconds."""

    duration: float = 15
    give_up: float = 10
    every: float = 2

    @classmethod
    def of(cls, duration: float) -> LeaseTimes:
        """Return the times for a lease of ``duration`` seconds, in the usual proportion."""
        return cls(duration, duration * 2 / 3, duration * 2 / 15)


class LeaderElector:
    """Acquire and hold a Lease in ``namespace`` as ``identity``."""

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        identity: str,
        times: LeaseTimes | None = None,
    ) -> None:
        self._api, self.identity, self._times = api, identity, times or LeaseTimes()
        self._namespace = namespace
        self._path = path_of(VERSION, "Lease", namespace, NAME)
        self._seen: tuple[str, float] = ("", 0.0)  # the lease's version, and since when
        self._renewed = 0.0  # when the last successful renewal was requested
        self.leads = False

    def holds(self) -> bool:
        """Whether no other operator can lead yet, even if this process was paused meanwhile."""
        return self.leads and time.monotonic() - self._renewed < self._times.give_up

    async def acquire(self) -> None:
        """Wait until this operator leads."""
        reported = ""
        while True:
            requested = time.monotonic()
            try:
                holder = await self._try()
            except (ApiError, OSError) as error:
                holder = f"unknown ({error})"
            if not holder:
                self.leads, self._renewed = True, requested
                log.info("leading as %s", self.identity)
                return
            if holder != reported:
                log.info("waiting: the leader is %s", holder)
                reported = holder
            await asyncio.sleep(self._times.every)

    async def hold(self) -> None:
        """Renew until cancelled.

        Raises:
            LostLease: another operator has the lease, or it could not be renewed in time.
        """
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(self._times.every)
            requested = time.monotonic()
            left = self._times.give_up - (requested - renewed)
            try:
                async with asyncio.timeout(max(left, 0.1)):
                    holder = await self._try()
            except (ApiError, OSError, TimeoutError) as error:
                if time.monotonic() - renewed >= self._times.give_up:
                    self.leads = False
                    raise LostLease(f"the lease could not be renewed: {error}") from None
                continue
            if holder:
                self.leads = False
                raise LostLease(f"{holder} has taken the lease")
            self._renewed, renewed = requested, time.monotonic()

    async def release(self) -> None:
        """Let another operator lead at once. Call this only after all work has stopped."""
        if not self.leads:
            return
        self.leads = False
        try:
            lease = await self._api.get(self._path)
            if lease and lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._api.request("PUT", self._path, body=lease)
        except (ApiError, OSError) as error:
            log.warning("the lease was not released: %s", error)

    async def _try(self) -> str:
        """Take or renew the lease; return the holder if that is another operator, else nothing."""
        lease = await self._api.get(self._path)
        if lease is None:
            metadata = {"name": NAME, "namespace": self._namespace}
            new = {"apiVersion": VERSION, "kind": "Lease", "metadata": metadata}
            new["spec"] = self._spec({})
            return await self._write("POST", path_of(VERSION, "Lease", self._namespace), new)
        holder = lease["spec"].get("holderIdentity") or ""
        if holder not in ("", self.identity) and not self._stale(lease):
            return str(holder)
        lease["spec"] = self._spec(lease["spec"])
        return await self._write("PUT", self._path, lease)  # its version lets one of us win

    async def _write(self, method: str, path: str, lease: Mapping[str, Any]) -> str:
        try:
            await self._api.request(method, path, body=lease)
        except ApiError as error:
            if error.code == 409:
                return "another operator, which was faster"
            raise
        return ""

    def _stale(self, lease: Mapping[str, Any]) -> bool:
        """Whether the lease has not been renewed for its duration, by our own clock."""
        version = lease["metadata"]["resourceVersion"]
        if self._seen[0] != version:
            self._seen = (version, time.monotonic())
        duration = lease["spec"].get("leaseDurationSeconds") or self._times.duration
        return time.monotonic() - self._seen[1] > float(duration)

    def _spec(self, before: Mapping[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        mine = before.get("holderIdentity") == self.identity
        changes = int(before.get("leaseTransitions") or 0)
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._times.duration)),
            "acquireTime": before.get("acquireTime") if mine else now,
            "renewTime": now,
            "leaseTransitions": changes if mine or not before else changes + 1,
        }
