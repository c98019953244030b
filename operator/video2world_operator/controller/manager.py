"""``python -m video2world_operator``: the operator's process, from its rights to its end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from video2world_operator import __version__
from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.api.status import dump_status
from video2world_operator.controller.cache import CHILDREN, WatchCache
from video2world_operator.controller.controller import Controller
from video2world_operator.controller.health import Freshness, Health, serve
from video2world_operator.controller.informer import Informer
from video2world_operator.controller.keys import Key
from video2world_operator.controller.metrics import Metrics, Present
from video2world_operator.controller.rbac import may_see_nodes, missing
from video2world_operator.controller.watches import fill, watch
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.errors import ApiError, LoginFailed
from video2world_operator.kube.leader_election import LeaderElector, LeaseTimes, LostLease
from video2world_operator.preflight.discovery import discover
from video2world_operator.reconcile.actions import Policy
from video2world_operator.reconcile.summary import unauthorized

__all__ = ["Options", "main", "run"]

T = TypeVar("T")
log = logging.getLogger("video2world_operator")
# Python's own (700, 10, 10) has what a reconciliation holds outlive two collections: under load all
# objects of thousands of resources were then looked through every 2.4 s, for 0.25 s each time.
GC_THRESHOLDS = 20_000, 10, 10


@dataclass(frozen=True)
class Options:
    """How the operator runs. Times are in seconds."""

    namespaces: tuple[str, ...] = ()  # to serve; empty is all
    own_namespace: str = ""  # of the Lease; empty is that of the credentials
    pod: str = ""  # UID of the pod this runs in; empty: it is in none, or does not know
    host: str = "0.0.0.0"
    port: int = 8080
    poll: float = 10  # between two looks at a worker's log, and two writes of mere progress
    housekeeping: float = 30  # between two checks of cache, rights and API groups
    policy: Policy = field(default_factory=Policy)
    lease: LeaseTimes = field(default_factory=LeaseTimes)
    requests_per_second: float = 300


class _PortTaken(Exception):
    """The probes' port cannot be listened on."""


class _RightsLost(Exception):
    """A right that was there at start is gone."""


def parser() -> argparse.ArgumentParser:
    """The command's flags; each has an environment variable, which the chart sets."""
    flags = argparse.ArgumentParser(
        prog="python -m video2world_operator",
        description="Watches Video2WorldPostTrain resources and carries them out.",
        epilog="On --port: /healthz, /readyz, /metrics. Rights: manifests/rbac.yaml.",
    )
    flags.add_argument("--version", action="version", version=__version__)
    flags.add_argument(
        "--namespaces",
        default=os.environ.get("V2W_NAMESPACES", ""),
        help="comma-separated namespaces to serve (V2W_NAMESPACES; default all)",
    )
    flags.add_argument(
        "--own-namespace",
        default=os.environ.get("V2W_OWN_NAMESPACE", ""),
        help="namespace of the leader's Lease (V2W_OWN_NAMESPACE; default the credentials')",
    )
    flags.add_argument(
        "--port",
        type=int,
        default=int(os.environ.get("V2W_PORT", "8080")),
        help="port of probes and metrics (V2W_PORT; 8080)",
    )
    flags.add_argument(
        "--poll-seconds",
        type=float,
        default=float(os.environ.get("V2W_POLL_SECONDS", "10")),
        help="between two looks at a worker's log (V2W_POLL_SECONDS; 10)",
    )
    flags.add_argument(
        "--termination-bound-seconds",
        type=float,
        default=float(os.environ.get("V2W_TERMINATION_BOUND_SECONDS", "60")),
        help="a pod that outlives its grace period by so long is force-deleted "
        "(V2W_TERMINATION_BOUND_SECONDS; 60)",
    )
    flags.add_argument(
        "--stuck-after-seconds",
        type=float,
        default=float(os.environ.get("V2W_STUCK_AFTER_SECONDS", "30")),
        help="a stage that makes no progress for so long is reported as stuck, and a sidecar that "
        "outlives its worker by so long is ended (V2W_STUCK_AFTER_SECONDS; 30)",
    )
    flags.add_argument(
        "--lease-seconds",
        type=float,
        default=float(os.environ.get("V2W_LEASE_SECONDS", "15")),
        help="after so long without news of the leader another one leads (V2W_LEASE_SECONDS; 15)",
    )
    flags.add_argument(
        "--pod-uid",
        default=os.environ.get("V2W_POD_UID", ""),
        help="UID of the pod this runs in: its containers run one after the other, so that one "
        "restarted leads on without waiting for the lease to end (V2W_POD_UID)",
    )
    flags.add_argument("-v", "--verbose", action="store_true", help="log every detail")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (1: to be restarted, 2: the user's mistake)."""
    args = parser().parse_args(argv)
    level = logging.DEBUG if args.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # what ends kopf is told by who begins it anew
    for noisy, quiet in (("kopf", logging.CRITICAL), ("aiohttp", logging.WARNING)):
        logging.getLogger(noisy).setLevel(logging.DEBUG if args.verbose else quiet)
    options = Options(
        namespaces=tuple(filter(None, (n.strip() for n in args.namespaces.split(",")))),
        own_namespace=args.own_namespace,
        pod=args.pod_uid,
        port=args.port,
        poll=args.poll_seconds,
        policy=Policy(
            termination_bound=args.termination_bound_seconds,
            stuck_after=args.stuck_after_seconds,
        ),
        lease=LeaseTimes.of(args.lease_seconds),
    )
    gc.freeze()  # what was imported is not looked through again
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        return asyncio.run(run(options))
    except LoginFailed as error:
        print(f"error: {error}", file=sys.stderr)
    except _PortTaken as error:
        print(f"error: --port {args.port}: {error}; choose another", file=sys.stderr)
    return 2


async def run(options: Options) -> int:
    """Run until asked to stop (0) or until something is lost that only a restart mends (1)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ValueError, RuntimeError):  # not the main thread
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    health, metrics, code = Health(), Metrics(), 0
    async with ApiClient(
        requests_per_second=options.requests_per_second, observe=metrics.request
    ) as cluster:
        own = options.own_namespace or cluster.default_namespace
        options = replace(options, own_namespace=own)
        try:
            runner = await serve(health, metrics, options.host, options.port)
        except OSError as error:
            raise _PortTaken(error.strerror or error) from None
        identity = f"{socket.gethostname()}-{options.pod or uuid.uuid4().hex[:8]}"
        leadership = LeaderElector(cluster, options.own_namespace, identity, options.lease)
        try:
            work = asyncio.create_task(_work(options, cluster, health, metrics, leadership, stop))
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done() and not leadership.leads:
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            await leadership.release()
        except* (LostLease, _RightsLost) as lost:
            log.error("%s; the process ends", "; ".join(map(str, lost.exceptions)))
            code = 1
        finally:
            await runner.cleanup()
    return code


async def _work(
    options: Options,
    cluster: ApiClient,
    health: Health,
    metrics: Metrics,
    leadership: LeaderElector,
    stop: asyncio.Event,
) -> None:
    """Wait for the rights and the lease, then reconcile."""
    await _wait_for_rights(options, cluster, health)
    cache = WatchCache()
    controller = Controller(cluster, cache, options.policy, poll_seconds=options.poll)
    await _answered(lambda: _check_definition(controller, health))
    health.state = "waiting"
    async with asyncio.TaskGroup() as meanwhile:
        checks = meanwhile.create_task(_watch_definition(options, controller, health))
        await leadership.acquire()
        checks.cancel()
    health.state = "leading"
    cluster.fence = health.holds = leadership.holds
    controller.capabilities = await _answered(lambda: discover(cluster))
    controller.preflight.may_list_nodes = await _answered(lambda: may_see_nodes(cluster))
    freshness = Freshness(cluster, cache, options.namespaces)
    health.queue_lag, health.cache_age = (lambda: controller.queue.lag), (lambda: freshness.age)
    controller.queue.observe = metrics.reconciled
    metrics.attach(Present(cache, controller.queue, cache.known, lambda: freshness.age))

    def wake(key: Key) -> None:
        metrics.look(key, cache.resource(key), cache.pods(key))
        controller.queue.add(key)

    informers = [
        Informer(cluster, cache, kind, namespace, wake)
        for kind in CHILDREN
        for namespace in options.namespaces or (None,)
    ]

    async def reconcile() -> None:  # what is not in the cache is taken not to exist
        for one in informers:
            await one.listed.wait()
        while controller.definition.absent:
            await asyncio.sleep(1)
        # last, so that no status is older than what is known of the children
        await _answered(lambda: fill(cluster, cache, options.namespaces))
        log.info("reconciling %d resources", len(cache.known()))
        left = cache.uids("Pod").values()  # resources may have gone while nobody looked
        for key in dict.fromkeys([*cache.known(), *left]):
            wake(key)
        async with asyncio.TaskGroup() as group:
            group.create_task(controller.queue.run())
            group.create_task(_keep_house(options, cluster, controller, cache, freshness))

    async with asyncio.TaskGroup() as group:
        background = [
            group.create_task(leadership.hold()),
            group.create_task(_watch_definition(options, controller, health)),
            group.create_task(reconcile()),
            *(group.create_task(one.run()) for one in informers),
        ]
        while controller.definition.absent and not stop.is_set():
            await asyncio.sleep(1)
        await watch(
            cache, wake, identity=leadership.identity, namespaces=options.namespaces, stop=stop
        )
        for task in background:
            task.cancel()


async def _wait_for_rights(options: Options, cluster: ApiClient, health: Health) -> None:
    """Return once nothing is missing; until then every resource says what is."""
    said: list[str] = []

    async def look() -> list[str]:
        groups = (await discover(cluster)).groups
        return await missing(cluster, options.own_namespace, options.namespaces, groups)

    while True:
        lacking = await _answered(look)
        health.missing = lacking
        if not lacking:
            return
        health.state = "unauthorized"
        if lacking != said:
            log.error("may not %s: apply manifests/rbac.yaml", ", ".join(lacking))
            said = lacking
            with contextlib.suppress(ApiError, OSError):
                await _tell_unauthorized(options, cluster, lacking)
        await asyncio.sleep(min(options.housekeeping, 10))


async def _check_definition(controller: Controller, health: Health) -> None:
    """See whether the definition has all fields; say so when that has changed."""
    definition = controller.definition
    before, added = definition.problem, definition.added
    await definition.check()
    health.definition = definition.problem
    if definition.problem != before:
        if definition.problem:
            log.error("%s", definition.problem)
        else:
            log.info("the CRD has every field by now")
    if (definition.problem, definition.added) != (before, added):
        controller.definition_changed()


async def _watch_definition(options: Options, controller: Controller, health: Health) -> None:
    """Check the definition from time to time, and soon after a status was refused."""
    while True:
        pause = 2.0 if controller.definition.problem else options.housekeeping
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await controller.doubt.wait()
        controller.doubt.clear()
        try:
            await _check_definition(controller, health)
        except (ApiError, OSError) as error:
            log.warning("checking the CRD: %s", error)


async def _answered(ask: Callable[[], Awaitable[T]]) -> T:
    """What ``ask`` gives, once the API server answers."""
    while True:
        try:
            return await ask()
        except (ApiError, OSError) as error:
            log.warning("waiting for the API server: %s", error)
            await asyncio.sleep(2)


async def _tell_unauthorized(options: Options, cluster: ApiClient, lacking: list[str]) -> None:
    for namespace in options.namespaces or (None,):
        listing = await cluster.request("GET", path_of(API_VERSION, KIND, namespace))
        for body in listing["items"]:
            status = dump_status(unauthorized(body, lacking, datetime.now(UTC)))
            with contextlib.suppress(ApiError):
                await cluster.apply_status(body, status)


async def _keep_house(
    options: Options,
    cluster: ApiClient,
    controller: Controller,
    cache: WatchCache,
    freshness: Freshness,
) -> None:
    """From time to time: is the cache fresh, are the rights still there, what is new to schedule.

    Every resource is looked at once in a while too, in case an event was lost.
    """
    while True:
        await asyncio.sleep(options.housekeeping)
        try:
            for key in await freshness.check():
                controller.queue.add(key)
            controller.capabilities = await discover(cluster)
            groups = controller.capabilities.groups
            lacking = await missing(cluster, options.own_namespace, options.namespaces, groups)
        except (ApiError, OSError) as error:
            log.warning("housekeeping: %s", error)
            continue
        if lacking:
            raise _RightsLost(f"may no longer {', '.join(lacking)}")
        for key in cache.known():
            controller.resync_later(key)
