"""One seed: its resources are applied, its faults are carried out, and all must come to its end."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from control_plane import ApiError, Cluster
from video2world_operator.plan.labels import RESOURCE_LABEL

from .arena import Arena
from .eye import Eye
from .hand import Hand
from .invariants import Broken, Checker
from .schedule import Body, Fault, work

__all__ = ["Size", "Trial", "run"]


@dataclass(frozen=True)
class Size:
    """How long a trial is, in seconds."""

    patience: float = 5  # a fault waits so long for the work to come so far, then it comes anyway
    end: float = 900  # so long after the last one every resource has to be at its end
    still: float = 300  # and it is given up when nothing changes for so long
    free: float = 300  # so long after that no pod lives, and no child of a deleted resource


@dataclass
class Trial:
    """What a seed came to."""

    seed: int
    broken: list[Broken]
    figures: dict[str, Any]
    deeds: list[str]  # what was done when
    # of the resources for which something did not hold; of all if everything held
    journals: dict[str, list[str]]

    def told(self) -> dict[str, Any]:
        """As the record has it."""
        broken = [asdict(one) for one in self.broken]
        return {"seed": self.seed, "broken": broken, **self.figures}

    def write(self, folder: Path, logs: str) -> Path:
        """All that helps to find the cause, in a file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"seed-{self.seed}.txt"
        lines = [
            f"{b.invariant}: {b.resource}: {b.text} (version {b.revision})" for b in self.broken
        ]
        lines += ["", *self.deeds]
        for name, journal in self.journals.items():
            lines += ["", f"--- {name}", *journal]
        path.write_text("\n".join([*lines, "", logs]))
        return path


def run(
    arena: Arena,
    seed: int,
    bodies: Sequence[Body],
    schedule: Sequence[Fault],
    size: Size,
    known: Set[tuple[str, str]] = frozenset(),
) -> Trial:
    """Carry a trial out on ``arena``, in a namespace of its own.

    ``known``: stage and hash of inputs of what the workers tell to be there already.
    """
    began = time.monotonic()
    cluster, checker = arena.cluster, Checker(known)
    before = Counter(arena.requests), Counter(arena.deployment.ends)
    crashes = len(arena.deployment.crashes)
    since = cluster.store.revision()
    namespace = _namespace(cluster, seed, bodies)
    eye = Eye(cluster.store, namespace, since, checker)
    hand = Hand(arena, eye, namespace, bodies)
    deeds: list[str] = []
    try:
        deeds += _apply_and_disturb(hand, bodies, schedule, size, work(bodies, known))
        hand.calm()
        calm = eye.now
        deeds.append(f"{calm:8.2f}          calm")
        ended = eye.wait(lambda c: not c.unfinished(), size.end, size.still)
        with eye.lock:
            for one in checker.unfinished():
                text = f"{one.status.get('phase')}: {one.status.get('message')}"
                checker.fail(one, "ends", f"{text}, {eye.now - calm:.0f} s after the last fault")
        seconds_to_end = eye.now - calm
        _free(eye, size.free, ended)
        _deleted(hand, size.free)
    finally:
        eye.close()
        hand.tidy()
        _remove(cluster, namespace)
    with eye.lock:
        for words in arena.deployment.crashes[crashes:]:
            checker.broken.append(Broken("operator lives", "", 0, words))
        runs = list(checker.runs.values())
        phases = Counter(str(r.status.get("phase")) if r.there_last else "deleted" for r in runs)
        figures: dict[str, Any] = {
            "seconds": round(time.monotonic() - began, 1),
            "seconds_from_calm_to_all_ended": round(seconds_to_end, 1),
            "resources": len(runs),
            "phases": dict(sorted(phases.items())),
            "jobs": sum(len(r.applied) for r in runs),
            "restarts": sum(r.highest.get("restarts", 0) for r in runs),
            "states": checker.states,
            "pods_of_deleted_jobs": checker.stillborn,
            "longest_gpu_held_after_failure_s": round(checker.longest_held, 1),
            "faults": dict(Counter(fault.kind for fault in schedule)),
            "requests": dict(arena.requests - before[0]),
            "operator_ends": dict(arena.deployment.ends - before[1]),
        }
        flagged = {one.resource for one in checker.broken}
        journals = {
            f"{r.name} {r.uid}": list(r.journal) for r in runs if r.name in flagged or not flagged
        }
        return Trial(seed, list(checker.broken), figures, deeds, journals)


def _apply_and_disturb(
    hand: Hand, bodies: Sequence[Body], schedule: Sequence[Fault], size: Size, jobs: int
) -> list[str]:
    """Apply all resources, one after another, and carry the faults out; what was done when.

    ``jobs`` is what the work comes to.
    """
    eye, deeds = hand.eye, []

    def carry_out(fault: Fault) -> None:
        started = eye.now
        try:
            outcome = hand.do(fault)
        except (ApiError, OSError) as error:  # it met another one
            outcome = f"not done: {error}"
        how = ", ".join(f"{k} {v}" for k, v in fault.how.items())
        deeds.append(f"{started:8.2f} {eye.now:8.2f} {fault.kind} ({how}): {outcome}")

    with ThreadPoolExecutor(len(schedule) + 1) as pool:
        waiting = [pool.submit(lambda: [_create(hand, body) for body in bodies])]
        for fault in schedule:
            eye.wait(lambda c, at=fault.at: c.finished >= at * jobs, size.patience)
            waiting.append(pool.submit(carry_out, fault))
        for one in waiting:
            one.result()
    return sorted(deeds)


def _create(hand: Hand, body: Body) -> None:
    """As a user's client does: again where the server was away."""
    until = time.monotonic() + 120
    while True:
        try:
            hand.api.post(hand.resources, body)
            return
        except ApiError as error:
            if error.code == 409:
                return  # it was created, though the answer was lost
            if error.code < 429 or time.monotonic() > until:
                raise
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.3)


def _free(eye: Eye, seconds: float, ended: bool) -> None:
    """No pod is left at work once all have ended."""

    def nobody_works(checker: Checker) -> bool:
        return not any(w.live for r in checker.runs.values() for w in r.workers.values())

    if ended and not eye.wait(nobody_works, seconds):
        with eye.lock:
            for run in eye.checker.runs.values():
                left = [w.pod.name for w in run.workers.values() if w.live]
                if left:
                    text = f"all have ended, but {', '.join(left)} live after {seconds:.0f} s"
                    eye.checker.fail(run, "GPUs freed", text)


_HOLDS = ("deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "ownerReferences")


def _deleted(hand: Hand, seconds: float) -> None:
    """Delete all resources; what they made goes with them."""
    with hand.eye.lock:
        for run in hand.eye.checker.runs.values():
            run.there_last = run.there
    hand.api.delete(hand.resources)
    if not hand.eye.wait(lambda c: not any(r.there for r in c.runs.values()), seconds):
        raise RuntimeError("the API server does not delete the resources")
    if hand.eye.wait(lambda c: not c.orphans(), seconds):
        return
    with hand.eye.lock:
        left = hand.eye.checker.orphans()
        text = f"{len(left)} are left after {seconds:.0f} s: {', '.join(left[:10])}"
        hand.eye.checker.broken.append(Broken("owned", "", 0, text))
    names = {one.partition(" ")[2] for one in left[:10]}
    for body in hand.eye.objects(""):
        metadata = body["metadata"]
        if metadata["name"] not in names:
            continue
        told = {key: metadata.get(key) for key in _HOLDS}
        told |= {"node": body.get("spec", {}).get("nodeName"), "status": body.get("status")}
        text = f"{metadata['name']} is left as {json.dumps(told)}"
        resource = metadata.get("labels", {}).get(RESOURCE_LABEL, "")
        with hand.eye.lock:
            hand.eye.checker.broken.append(Broken("owned", resource, 0, text))


def _namespace(cluster: Cluster, seed: int, bodies: Sequence[Body]) -> str:
    """A fresh namespace with the claim that resources share, and volumes for the others."""
    asked = {"metadata": {"generateName": f"chaos-{seed}-"}}
    name = str(cluster.admin.post("/api/v1/namespaces", asked)["metadata"]["name"])
    own = sum("claimName" not in body["spec"]["storage"] for body in bodies)
    cluster.add_volumes(3 * own + 1)  # a claim made again needs another: a volume serves one only
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"metadata": {"name": "shared"}, "spec": spec}
    cluster.admin.post(f"/api/v1/namespaces/{name}/persistentvolumeclaims", claim)
    until = time.monotonic() + 60
    while True:  # pods are refused until the controller has made the default account
        try:
            cluster.admin.get(f"/api/v1/namespaces/{name}/serviceaccounts/default")
            return name
        except ApiError:
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def _remove(cluster: Cluster, namespace: str) -> None:
    """Let the namespace go, and the volumes that were bound in it."""

    def gone() -> None:
        with contextlib.suppress(ApiError, OSError):
            cluster.admin.delete(f"/api/v1/namespaces/{namespace}")
            for volume in cluster.admin.get("/api/v1/persistentvolumes")["items"]:
                claim = volume["spec"].get("claimRef") or {}
                if claim.get("namespace") == namespace:
                    cluster.admin.delete(f"/api/v1/persistentvolumes/{volume['metadata']['name']}")

    threading.Thread(target=gone, daemon=True).start()
