"""Run one seed: apply its resources, inject its faults, and wait until everything has ended."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from control_plane import ApiError, Cluster
from video2world_operator.plan.labels import RESOURCE_LABEL

from .etcd_watcher import EtcdWatcher
from .fault_injector import FaultInjector
from .invariants import Checker, Violation
from .schedule import QUEUE, QUEUE_GPUS, Body, Fault, count_jobs
from .target import Target
from .testbed import Testbed

__all__ = ["Timeouts", "Trial", "run"]


@dataclass(frozen=True)
class Timeouts:
    """How long a trial waits, in seconds."""

    fault: float = 5  # for the work to get as far as a fault's start; then it starts anyway
    end: float = 900  # after the last fault, for every resource to end
    idle: float = 300  # without any change, before the wait for the end is given up
    cleanup: float = 300  # for the last pod to end, and for children of deleted resources to go


@dataclass
class Trial:
    """The outcome of a seed."""

    seed: int
    violations: list[Violation]
    figures: dict[str, Any]
    log: list[str]  # what was done when
    # of the resources with a violation; of all resources if there is none
    journals: dict[str, list[str]]

    def record(self) -> dict[str, Any]:
        """Return the trial's entry in the record."""
        broken = [asdict(one) for one in self.violations]
        return {"seed": self.seed, "broken": broken, **self.figures}

    def write(self, folder: Path, logs: str) -> Path:
        """Write everything that helps to find the cause to a file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"seed-{self.seed}.txt"
        lines = [
            f"{v.invariant}: {v.resource}: {v.text} (revision {v.revision})"
            for v in self.violations
        ]
        lines += ["", *self.log]
        for name, journal in self.journals.items():
            lines += ["", f"--- {name}", *journal]
        path.write_text("\n".join([*lines, "", logs]))
        return path


def run(
    testbed: Testbed,
    seed: int,
    bodies: Sequence[Body],
    schedule: Sequence[Fault],
    timeouts: Timeouts,
    known: Set[tuple[str, str]] = frozenset(),
) -> Trial:
    """Run a trial on ``testbed``, in a namespace of its own.

    ``known``: stages and inputs hashes that workers report as done before.
    """
    started = time.monotonic()
    cluster, checker = testbed.cluster, Checker(known)
    before = Counter(testbed.requests), Counter(testbed.deployment.exits)
    crashes = len(testbed.deployment.crashes)
    since = cluster.store.revision()
    namespace = _create_namespace(cluster, seed, bodies)
    watcher = EtcdWatcher(cluster.store, namespace, since, checker)
    target = Target(testbed, watcher, namespace, {b["metadata"]["name"]: b for b in bodies})
    if testbed.kueue is not None:
        target.queue = testbed.kueue.add_queue(namespace, QUEUE, gpus=QUEUE_GPUS)
    injector = FaultInjector(target)
    log: list[str] = []
    try:
        jobs = count_jobs(bodies, known)
        log += _apply_and_disturb(injector, bodies, schedule, timeouts.fault, jobs)
        injector.resume_all()
        calm = watcher.now
        log.append(f"{calm:8.2f}          no more faults")
        ended = watcher.wait(lambda c: not c.history.unfinished(), timeouts.end, timeouts.idle)
        with watcher.lock:
            for one in checker.history.unfinished():
                text = f"{one.status.get('phase')}: {one.status.get('message')}"
                seconds = watcher.now - calm
                checker.report(one, "ends", f"{text}, {seconds:.0f} s after the last fault")
        seconds_to_end = watcher.now - calm
        if ended:
            _check_no_live_pods(watcher, timeouts.cleanup)
        _delete_all(target, timeouts.cleanup)
    finally:
        watcher.close()
        injector.restore_nodes()
        _delete_namespace(cluster, namespace)
    with watcher.lock:
        for text in testbed.deployment.crashes[crashes:]:
            checker.violations.append(Violation("operator lives", "", 0, text))
        runs = list(checker.history.runs.values())
        phases = Counter(
            str(r.status.get("phase")) if r.existed_at_end else "deleted" for r in runs
        )
        figures: dict[str, Any] = {
            "seconds": round(time.monotonic() - started, 1),
            "seconds_from_calm_to_all_ended": round(seconds_to_end, 1),
            "resources": len(runs),
            "phases": dict(sorted(phases.items())),
            "jobs": sum(len(r.applied) for r in runs),
            "restarts": sum(r.highest.get("restarts", 0) for r in runs),
            "states": checker.states,
            "pods_of_deleted_jobs": checker.history.stillborn,
            "longest_gpu_held_after_failure_s": round(checker.longest_held, 1),
            "faults": dict(Counter(fault.kind for fault in schedule)),
            "requests": dict(testbed.requests - before[0]),
            "operator_ends": dict(testbed.deployment.exits - before[1]),
        }
        failed = {one.resource for one in checker.violations}
        journals = {
            f"{r.name} {r.uid}": list(r.journal) for r in runs if r.name in failed or not failed
        }
        return Trial(seed, list(checker.violations), figures, log, journals)


def _apply_and_disturb(
    injector: FaultInjector,
    bodies: Sequence[Body],
    schedule: Sequence[Fault],
    patience: float,
    jobs: int,
) -> list[str]:
    """Apply all resources one after another, inject the faults, and return a log of both.

    ``jobs``: number of Jobs that the resources need.
    """
    target, log = injector.target, []
    watcher = target.watcher

    def inject(fault: Fault) -> None:
        started = watcher.now
        try:
            outcome = injector.inject(fault)
        except (ApiError, OSError) as error:  # another fault was in progress
            outcome = f"not done: {error}"
        options = ", ".join(f"{k} {v}" for k, v in fault.options.items())
        log.append(f"{started:8.2f} {watcher.now:8.2f} {fault.kind} ({options}): {outcome}")

    with ThreadPoolExecutor(len(schedule) + 1) as pool:
        waiting = [pool.submit(_create_all, target, bodies)]
        for fault in schedule:
            watcher.wait(partial(_has_finished, fault.at * jobs), patience)
            waiting.append(pool.submit(inject, fault))
        for one in waiting:
            one.result()
    return sorted(log)


def _has_finished(jobs: float, checker: Checker) -> bool:
    return checker.history.finished >= jobs


def _create_all(target: Target, bodies: Sequence[Body]) -> None:
    for body in bodies:
        _create(target, body)


def _create(target: Target, body: Body) -> None:
    """Create a resource, with retries as a user's client makes them."""
    until = time.monotonic() + 120
    while True:
        try:
            target.api.post(target.resources_path, body)
            return
        except ApiError as error:
            if error.code == 409:
                return  # it was created, though the response was lost
            if error.code < 429 or time.monotonic() > until:
                raise
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.3)


def _check_no_live_pods(watcher: EtcdWatcher, seconds: float) -> None:
    """Report pods that are still live ``seconds`` after all resources have ended."""

    def no_live_pods(checker: Checker) -> bool:
        runs = checker.history.runs.values()
        return not any(w.live for r in runs for w in r.workers.values())

    if not watcher.wait(no_live_pods, seconds):
        with watcher.lock:
            for run in watcher.checker.history.runs.values():
                left = [w.pod.name for w in run.workers.values() if w.live]
                if left:
                    text = f"all have ended, but {', '.join(left)} live after {seconds:.0f} s"
                    watcher.checker.report(run, "GPUs freed", text)


_DELETION_FIELDS = (
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "ownerReferences",
)


def _delete_all(target: Target, seconds: float) -> None:
    """Delete all resources and report children that are left after ``seconds``."""
    watcher = target.watcher
    checker = watcher.checker
    with watcher.lock:
        for run in checker.history.runs.values():
            run.existed_at_end = run.exists
    target.api.delete(target.resources_path)
    if not watcher.wait(lambda c: not any(r.exists for r in c.history.runs.values()), seconds):
        raise RuntimeError("the API server does not delete the resources")
    if watcher.wait(lambda c: not c.history.orphans(), seconds):
        return
    with watcher.lock:
        left = checker.history.orphans()
        text = f"{len(left)} are left after {seconds:.0f} s: {', '.join(left[:10])}"
        checker.violations.append(Violation("owned", "", 0, text))
    names = {one.partition(" ")[2] for one in left[:10]}
    for body in watcher.objects(""):
        metadata = body["metadata"]
        if metadata["name"] not in names:
            continue
        shown = {key: metadata.get(key) for key in _DELETION_FIELDS}
        shown |= {"node": body.get("spec", {}).get("nodeName"), "status": body.get("status")}
        text = f"{metadata['name']} is left as {json.dumps(shown)}"
        resource = metadata.get("labels", {}).get(RESOURCE_LABEL, "")
        with watcher.lock:
            checker.violations.append(Violation("owned", resource, 0, text))


def _create_namespace(cluster: Cluster, seed: int, bodies: Sequence[Body]) -> str:
    """Create a namespace with the shared PVC, and volumes for the resources' own PVCs."""
    manifest = {"metadata": {"generateName": f"chaos-{seed}-"}}
    name = str(cluster.admin.post("/api/v1/namespaces", manifest)["metadata"]["name"])
    own = sum("claimName" not in body["spec"]["storage"] for body in bodies)
    cluster.add_volumes(3 * own + 1)  # a volume is bound once: a recreated PVC needs another
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"metadata": {"name": "shared"}, "spec": spec}
    cluster.admin.post(f"/api/v1/namespaces/{name}/persistentvolumeclaims", claim)
    until = time.monotonic() + 60
    while True:  # pods are refused until the controller has created the default account
        try:
            cluster.admin.get(f"/api/v1/namespaces/{name}/serviceaccounts/default")
            return name
        except ApiError:
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def _delete_namespace(cluster: Cluster, namespace: str) -> None:
    """Delete the namespace and the volumes bound in it, in the background."""

    def delete() -> None:
        with contextlib.suppress(ApiError, OSError):
            cluster.admin.delete(f"/api/v1/namespaces/{namespace}")
            for volume in cluster.admin.get("/api/v1/persistentvolumes")["items"]:
                claim = volume["spec"].get("claimRef") or {}
                if claim.get("namespace") == namespace:
                    cluster.admin.delete(f"/api/v1/persistentvolumes/{volume['metadata']['name']}")

    threading.Thread(target=delete, daemon=True).start()
