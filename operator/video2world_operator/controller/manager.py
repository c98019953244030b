"""Run the operator's process: rights, leader election, controller, probes, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import filterfalse
from typing import TypeVar

from video2world_operator.api.constants import API_VERSION, KIND
from video2world_operator.api.status import dump_status
from video2world_operator.controller.cache import CHILDREN, WatchCache
from video2world_operator.controller.controller import Controller
from video2world_operator.controller.flags import Options, parse_arguments
from video2world_operator.controller.health import Freshness, Health, serve
from video2world_operator.controller.informer import Informer
from video2world_operator.controller.metrics import Metrics, ResourceMetrics
from video2world_operator.controller.rbac import may_list_nodes, missing_rights
from video2world_operator.controller.resource import Key
from video2world_operator.controller.watches import fill, watch
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.discovery import discover
from video2world_operator.kube.errors import ApiError, LoginFailed
from video2world_operator.kube.leader_election import LeaderElector, LostLease
from video2world_operator.plan.multikueue import is_dispatched
from video2world_operator.reconcile.blocked_status import unauthorized

__all__ = ["main", "run"]

T = TypeVar("T")
log = logging.getLogger("video2world_operator")
# With Python's default (700, 10, 10) the objects of a reconciliation outlive two collections: under
# load all objects of thousands of resources were then traversed every 2.4 s, for 0.25 s each time.
GC_THRESHOLDS = 20_000, 10, 10
RETRY_SECONDS = 2.0  # while the API server does not answer
DOUBT_SECONDS = 2.0  # between checks of a CRD with which something is wrong
RIGHTS_SECONDS = 10.0  # the longest between checks of rights that are missing


class _PortTaken(Exception):
    """The probes' port cannot be listened on."""


class _RightsLost(Exception):
    """A right that was granted at the start has been revoked."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code (1: restart it, 2: the user's mistake)."""
    options = parse_arguments(argv)
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # errors that end kopf are logged where it is restarted
    for noisy, quiet in (("kopf", logging.CRITICAL), ("aiohttp", logging.WARNING)):
        logging.getLogger(noisy).setLevel(logging.DEBUG if options.verbose else quiet)
    gc.freeze()  # imported modules need not be traversed again
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        return asyncio.run(run(options))
    except LoginFailed as error:
        print(f"error: {error}", file=sys.stderr)
    except _PortTaken as error:
        print(f"error: --port {options.port}: {error}; choose another", file=sys.stderr)
    return 2


async def run(options: Options) -> int:
    """Run until asked to stop (returns 0), or until only a restart can help (returns 1)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ValueError, RuntimeError):  # not the main thread
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    health, metrics, code = Health(), Metrics(), 0
    async with ApiClient(
        requests_per_second=options.requests_per_second, observe=metrics.count_request
    ) as api:
        options = replace(options, own_namespace=options.own_namespace or api.default_namespace)
        try:
            runner = await serve(health, metrics, options.host, options.port)
        except OSError as error:
            raise _PortTaken(error.strerror or error) from None
        identity = f"{socket.gethostname()}-{options.pod or uuid.uuid4().hex[:8]}"
        elector = LeaderElector(api, options.own_namespace, identity, options.lease)
        try:
            work = asyncio.create_task(_work(options, api, health, metrics, elector, stop))
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done() and not elector.leads:
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            await elector.release()
        except* (LostLease, _RightsLost) as lost:
            log.error("%s; the process ends", "; ".join(map(str, lost.exceptions)))
            code = 1
        finally:
            await runner.cleanup()
    return code


async def _work(
    options: Options,
    api: ApiClient,
    health: Health,
    metrics: Metrics,
    elector: LeaderElector,
    stop: asyncio.Event,
) -> None:
    """Wait for the rights and the lease, then reconcile until ``stop``."""
    await _wait_for_rights(options, api, health)
    cache = WatchCache()
    controller = Controller(api, cache, options.policy, poll_seconds=options.poll)
    await _until_answered(lambda: _check_definition(controller, health))
    health.state = "waiting"
    async with asyncio.TaskGroup() as meanwhile:
        checks = meanwhile.create_task(_watch_definition(options, controller, health))
        await elector.acquire()
        checks.cancel()
    health.state = "leading"
    api.fence = health.holds = elector.holds
    controller.observer.capabilities = await _until_answered(lambda: discover(api))
    controller.preflight.may_list_nodes = await _until_answered(lambda: may_list_nodes(api))
    controller.room.may_list = controller.preflight.may_list_nodes and not options.namespaces
    freshness = Freshness(api, cache, options.namespaces)
    health.queue_lag, health.cache_age = (lambda: controller.queue.lag), (lambda: freshness.age)
    controller.queue.observe = metrics.count_reconciliation
    metrics.attach(ResourceMetrics(cache.resources, controller.queue, lambda: freshness.age))

    def wake(key: Key) -> None:
        found = cache.resource(key)
        if found is None or not found.dispatched:  # the cluster where it runs counts it
            metrics.observe_resource(key, found, cache.pods(key))
        controller.queue.add(key)

    informers = [
        Informer(api, cache, kind, namespace, wake)
        for kind in CHILDREN
        for namespace in options.namespaces or (None,)
    ]

    async def reconcile() -> None:  # objects that are not cached are taken not to exist
        for informer in informers:
            await informer.listed.wait()
        while controller.definition.absent:
            await asyncio.sleep(1)
        # last, so that no status is older than what is known of the children
        await _until_answered(lambda: fill(api, cache, options.namespaces))
        log.info("reconciling %d resources", len(cache.known()))
        of_pods = cache.uids("Pod").values()  # their resources may have been deleted meanwhile
        for key in dict.fromkeys([*cache.known(), *of_pods]):
            wake(key)
        async with asyncio.TaskGroup() as group:
            group.create_task(controller.queue.run())
            group.create_task(_keep_house(options, api, controller, freshness))

    async with asyncio.TaskGroup() as group:
        background = [
            group.create_task(elector.hold()),
            group.create_task(_watch_definition(options, controller, health)),
            group.create_task(reconcile()),
            *(group.create_task(informer.run()) for informer in informers),
        ]
        while controller.definition.absent and not stop.is_set():
            await asyncio.sleep(1)
        await watch(
            cache, wake, identity=elector.identity, namespaces=options.namespaces, stop=stop
        )
        for task in background:
            task.cancel()


async def _wait_for_rights(options: Options, api: ApiClient, health: Health) -> None:
    """Return once no right is missing; until then every resource's status names those that are."""
    reported: list[str] = []

    async def check() -> list[str]:
        capabilities = await discover(api)
        return await missing_rights(api, options.own_namespace, options.namespaces, capabilities)

    while True:
        missing = await _until_answered(check)
        health.missing = missing
        if not missing:
            return
        health.state = "unauthorized"
        if missing != reported:
            log.error("may not %s: apply manifests/rbac.yaml", ", ".join(missing))
            reported = missing
            with contextlib.suppress(ApiError, OSError):
                await _report_missing_rights(options, api, missing)
        await asyncio.sleep(min(options.housekeeping, RIGHTS_SECONDS))


async def _report_missing_rights(options: Options, api: ApiClient, missing: list[str]) -> None:
    for namespace in options.namespaces or (None,):
        listing = await api.request("GET", path_of(API_VERSION, KIND, namespace))
        for body in filterfalse(is_dispatched, listing["items"]):
            status = unauthorized(body, missing, datetime.now(UTC))
            with contextlib.suppress(ApiError):
                await api.apply_status(body, dump_status(status))


async def _check_definition(controller: Controller, health: Health) -> None:
    """Check that the CRD has all fields, and log when that has changed."""
    definition = controller.definition
    before, added = definition.problem, definition.added
    await definition.check()
    health.definition = definition.problem
    if definition.problem != before:
        if definition.problem:
            log.error("%s", definition.problem)
        else:
            log.info("the CRD now has every field")
    if (definition.problem, definition.added) != (before, added):
        controller.definition_changed()


async def _watch_definition(options: Options, controller: Controller, health: Health) -> None:
    """Check the CRD periodically, and soon after a status was refused."""
    refused = controller.status_writer.refused
    while True:
        pause = DOUBT_SECONDS if controller.definition.problem else options.housekeeping
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await refused.wait()
        refused.clear()
        try:
            await _check_definition(controller, health)
        except (ApiError, OSError) as error:
            log.warning("checking the CRD: %s", error)


async def _until_answered(ask: Callable[[], Awaitable[T]]) -> T:
    """Return what ``ask`` returns, once the API server answers."""
    while True:
        try:
            return await ask()
        except (ApiError, OSError) as error:
            log.warning("waiting for the API server: %s", error)
            await asyncio.sleep(RETRY_SECONDS)


async def _keep_house(
    options: Options, api: ApiClient, controller: Controller, freshness: Freshness
) -> None:
    """Check the cache, the rights and the API groups periodically, and resync every resource.

    Raises:
        _RightsLost: a right was revoked.
    """
    while True:
        await asyncio.sleep(options.housekeeping)
        try:
            for key in await freshness.check():
                controller.queue.add(key)
            capabilities = controller.observer.capabilities = await discover(api)
            missing = await missing_rights(
                api, options.own_namespace, options.namespaces, capabilities
            )
        except (ApiError, OSError) as error:
            log.warning("housekeeping: %s", error)
            continue
        if missing:
            raise _RightsLost(f"may no longer {', '.join(missing)}")
        for key in controller.cache.known():  # in case an event was lost
            controller.resync_later(key)
