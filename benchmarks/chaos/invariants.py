"""What must hold in every state that the API server's store ever had; fed change by change.

It knows of the operator what its users are told, and takes in what the children show, from their
first state to their last: a claim of the status is held against all that was the case before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from control_plane import Change
from video2world_operator.api.conditions import Type, find
from video2world_operator.api.constants import GROUP, PLURAL
from video2world_operator.plan.manifests import GPU
from video2world_operator.plan.stage import SAMPLING
from video2world_operator.reconcile.observed_state import Job, Pod, resource_of

__all__ = ["RESOURCES", "WATCHED", "Broken", "Checker"]

RESOURCES = f"{GROUP}/{PLURAL}/"
CHILDREN = {
    "jobs/": "Job",
    "pods/": "Pod",
    "services/specs/": "Service",
    "podgroups/": "PodGroup",
    "persistentvolumeclaims/": "PersistentVolumeClaim",
}
WATCHED = (RESOURCES, *CHILDREN)
FREED_WITHIN = 120.0  # seconds after a failure; a success or suspension frees before it is told
SAVED = 143  # a worker that was asked to end, and saved
DONE = ("Succeeded", "Skipped")

Attempt = tuple[str, int]  # stage and number
Key = tuple[str, str]  # namespace and name


@dataclass(frozen=True)
class Broken:
    """An invariant that did not hold: of which resource, from which version on, and how."""

    invariant: str
    resource: str
    revision: int
    text: str


@dataclass(frozen=True)
class _Worker:
    """A pod of a stage."""

    pod: Pod
    job: str  # UID of its Job
    gpus: int
    stillborn: bool  # made by the Job controller when its Job had been deleted already

    @property
    def attempt(self) -> Attempt:
        return (self.pod.stage, self.pod.attempt)

    @property
    def live(self) -> bool:
        return not self.pod.over and not self.stillborn


@dataclass
class _Run:
    """All that was ever seen of one resource, by its UID."""

    uid: str
    name: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0
    there: bool = True
    there_last: bool = True  # whether it was there when the trial had ended
    jobs: dict[str, Job] = field(default_factory=dict)
    workers: dict[str, _Worker] = field(default_factory=dict)
    applied: dict[Attempt, str] = field(default_factory=dict)  # inputs hash of its Job
    finished: dict[Attempt, str] = field(default_factory=dict)  # those that did their work
    troubled: set[Attempt] = field(default_factory=set)  # something happened to Job or pod
    crashed: set[Attempt] = field(default_factory=set)
    failed_jobs: set[Attempt] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)  # stages of which a pod ended with code 2
    ready: dict[Attempt, int] = field(default_factory=dict)  # the most that were at one time
    highest: dict[str, int] = field(default_factory=dict)
    failed_at: float | None = None
    flagged: set[str] = field(default_factory=set)
    journal: deque[str] = field(default_factory=lambda: deque(maxlen=400))

    @property
    def ended(self) -> bool:
        """Whether nothing is to come: done, failed or gone, with regard to its newest spec."""
        settled = self.status.get("observedGeneration") == self.generation
        return not self.there or (settled and self.status.get("phase") in ("Succeeded", "Failed"))


class Checker:
    """Feed it every change, in order; what is wrong is in :attr:`broken`.

    ``known``: stage and hash of inputs of what the workers tell to have been done before.
    """

    def __init__(self, known: Set[tuple[str, str]] = frozenset()) -> None:
        self._known = known
        self.broken: list[Broken] = []
        self.runs: dict[str, _Run] = {}
        self.states = 0
        self.stillborn = 0
        self.longest_held = 0.0  # GPUs by a failed resource, in seconds
        self._present: dict[Key, str] = {}  # UID of the resource of that name
        self._owners: dict[str, tuple[_Run, Job]] = {}  # by UID of the Job
        self._gone: set[str] = set()  # UIDs of Jobs
        self._children: dict[tuple[str, Key], str] = {}  # UID of the owner; empty: none is wanted
        self._now = 0.0

    # ------------------------------------------------------------------ taking in

    def see(self, change: Change, now: float) -> None:
        """The next change; ``now`` in seconds, by any clock that does not jump."""
        self.states += 1
        self._now = now
        prefix = next(p for p in WATCHED if change.key.startswith(p))
        namespace, _, name = change.key.removeprefix(prefix).partition("/")
        key = (namespace, name)
        if prefix == RESOURCES:
            run = self._resource(key, change)
        elif change.body is None:
            run = self._removed(CHILDREN[prefix], key)
        else:
            run = self._child(CHILDREN[prefix], key, change)
        if run is not None:
            self._hold(run, change.revision)

    def _resource(self, key: Key, change: Change) -> _Run | None:
        if change.body is None:
            uid = self._present.pop(key, "")
            if uid in self.runs:
                self.runs[uid].there = False
                self._note(self.runs[uid], change.revision, "the resource is gone")
            return None
        metadata = change.body["metadata"]
        run = self.runs.setdefault(metadata["uid"], _Run(metadata["uid"], key[1]))
        self._present[key] = run.uid
        before, run.status = run.status, change.body.get("status") or {}
        run.spec, run.generation = change.body["spec"], metadata["generation"]
        if before != run.status or not before:
            self._note(run, change.revision, _shown(run))
            self._grown(run, change.revision)
            self._claims(run, before, change.revision)
        else:
            self._note(run, change.revision, f"spec of generation {run.generation}: {_wish(run)}")
        return run

    def _child(self, kind: str, key: Key, change: Change) -> _Run | None:
        body: Mapping[str, Any] = change.body or {}
        body = {**body, "metadata": {"uid": "", **body["metadata"]}}
        if not resource_of(body):
            return None
        run = self._owner(kind, key, body, change.revision)
        if run is None:
            return None
        if kind == "Job":
            self._job(run, Job.of(body), change.revision)
        elif kind == "Pod":
            self._pod(run, key, body, change.revision)
        return run

    def _owner(self, kind: str, key: Key, body: Mapping[str, Any], revision: int) -> _Run | None:
        """The resource that a child belongs to; it is an error if that never was."""
        owners = body["metadata"].get("ownerReferences") or []
        uid = next((o["uid"] for o in owners if o.get("controller")), "")
        run = self._owners[uid][0] if uid in self._owners else self.runs.get(uid)
        name = resource_of(body)
        if run is None or run.name != name:
            if kind == "PersistentVolumeClaim" and not uid:
                return None  # kept on purpose
            self._break("owned", name, revision, f"{kind} {key[1]} has the owner {uid or 'nobody'}")
            return None
        self._children[kind, key] = uid
        return run

    def _job(self, run: _Run, job: Job, revision: int) -> None:
        attempt = (job.stage, job.attempt)
        if job.uid not in self._owners:
            self._note(run, revision, f"Job {job.name}")
        run.jobs[job.name], run.applied[attempt] = job, job.inputs_hash
        self._owners[job.uid] = (run, job)
        if job.complete:
            run.finished[attempt] = job.inputs_hash
        if job.failed:
            run.failed_jobs.add(attempt)
        if job.failed or job.deleting:
            run.troubled.add(attempt)
        if job.finished or job.deleting:
            how = job.failed or ("done" if job.complete else "to be deleted")
            self._note(run, revision, f"Job {job.name}: {how}")

    def _pod(self, run: _Run, key: Key, body: Mapping[str, Any], revision: int) -> None:
        pod = Pod.of(body)
        owner = next(o["uid"] for o in body["metadata"]["ownerReferences"] if o.get("controller"))
        limits = (c["resources"].get("limits") or {} for c in body["spec"]["containers"])
        before = run.workers.get(pod.name)
        stillborn = before.stillborn if before else owner in self._gone
        self.stillborn += stillborn and before is None
        gpus = sum(int(one.get(GPU, 0)) for one in limits)
        worker = _Worker(pod, owner, gpus, stillborn)
        run.workers[pod.name] = worker
        attempt = worker.attempt
        if pod.phase == "Failed" or pod.deleted or pod.disruption:
            run.troubled.add(attempt)
        if pod.exit_code not in (None, 0, SAVED):
            run.crashed.add(attempt)
        if pod.exit_code == 2:
            run.refused.add(pod.stage)
        ready = sum(w.pod.ready for w in run.workers.values() if w.attempt == attempt)
        run.ready[attempt] = max(run.ready.get(attempt, 0), ready)
        if before is None or _life(before.pod) != _life(pod):
            self._note(run, revision, f"pod {pod.name}: {_life(pod)}")

    def _removed(self, kind: str, key: Key) -> _Run | None:
        uid = self._children.pop((kind, key), "")
        run = self._owners[uid][0] if uid in self._owners else self.runs.get(uid)
        if run is None:
            return None
        if kind == "Job" and (job := run.jobs.pop(key[1], None)):
            self._gone.add(job.uid)
            if not job.complete:
                run.troubled.add((job.stage, job.attempt))
        worker = run.workers.pop(key[1], None) if kind == "Pod" else None
        if worker is not None and worker.pod.phase != "Succeeded":
            run.troubled.add(worker.attempt)
        if kind in ("Job", "Pod"):
            self._note(run, 0, f"{kind} {key[1]} is gone")
        return run

    # ------------------------------------------------------------------ what must hold

    def _hold(self, run: _Run, revision: int) -> None:
        """What holds of a resource and its children together."""
        live = {w.job: w.attempt for w in run.workers.values() if w.live}
        live |= {
            j.uid: (j.stage, j.attempt)
            for j in run.jobs.values()
            if not j.finished and not j.deleting
        }
        work = [attempt for attempt in live.values() if attempt[0] != SAMPLING]
        if len(work) > 1:  # by Job: two of the same number would be two attempts, too
            self._flag(run, "one attempt", revision, f"live: {', '.join(map(_of, sorted(work)))}")
        if not run.there:
            return
        phase = run.status.get("phase")
        holders = [w.pod.name for w in run.workers.values() if w.live and w.gpus]
        if phase in ("Succeeded", "Suspended"):
            if holders:
                self._flag(run, "GPUs freed", revision, f"{phase}, but {', '.join(holders)} live")
            elif live:
                text = f"{phase}, but live: {', '.join(map(_of, sorted(live.values())))}"
                self._flag(run, "true claims", revision, text)
        if phase != "Failed":
            run.failed_at = None
        elif run.failed_at is None:
            run.failed_at = self._now
        if run.failed_at is not None and holders:
            self.longest_held = max(self.longest_held, self._now - run.failed_at)

    def overdue(self, now: float) -> None:
        """What must have happened by ``now``."""
        for run in self.runs.values():
            if run.there and run.failed_at is not None and now - run.failed_at > FREED_WITHIN:
                holders = [w.pod.name for w in run.workers.values() if w.live and w.gpus]
                if holders:
                    text = f"failed {now - run.failed_at:.0f} s ago, but {', '.join(holders)} live"
                    self._flag(run, "GPUs freed", 0, text)

    def _grown(self, run: _Run, revision: int) -> None:
        status = run.status
        values = {
            name: status.get(name, 0) for name in ("attempt", "restarts", "observedGeneration")
        } | {f"attempt of {e['name']}": e.get("attempt", 0) for e in status.get("stages", [])}
        for name, value in values.items():
            if value < run.highest.get(name, 0):
                text = f"{name} was {run.highest[name]}, now it is {value}"
                self._flag(run, "only grows", revision, text)
            run.highest[name] = max(value, run.highest.get(name, 0))
        if values["observedGeneration"] > run.generation:
            self._flag(run, "true claims", revision, "observes a generation that is not there")

    def _claims(self, run: _Run, before: Mapping[str, Any], revision: int) -> None:
        """What a new status says, against what has been the case."""
        for text in self._lies(run, before):
            self._flag(run, "true claims", revision, text)

    def _lies(self, run: _Run, before: Mapping[str, Any]) -> Iterator[str]:
        status, old = run.status, {e["name"]: e for e in before.get("stages", [])}
        for entry in status.get("stages", []):
            yield from self._stage_lies(run, entry, old.get(entry["name"], {}))
        if status.get("phase") == "Succeeded":
            for entry in status["stages"]:
                if entry["state"] not in DONE:
                    yield f"Succeeded, but {entry['name']} is {entry['state']}"
        if status.get("phase") == "Failed" and before.get("phase") != "Failed":
            yield from self._failure_lies(run)
        restarts = status.get("restarts", 0) - before.get("restarts", 0)
        if restarts > 1:
            yield f"{restarts} restarts at once"
        if restarts == 1:
            cause = _restarted(status)
            if cause is None or cause not in run.troubled:
                yield f"a restart, but nothing has happened to {_of(cause)}"
            charged = status.get("chargedRestarts", 0) > before.get("chargedRestarts", 0)
            if charged and cause not in run.crashed:
                yield f"a restart is charged, but nothing has crashed in {_of(cause)}"

    def _stage_lies(
        self, run: _Run, entry: Mapping[str, Any], old: Mapping[str, Any]
    ) -> Iterator[str]:
        name, state = entry["name"], entry["state"]
        attempt = (name, entry.get("attempt", 0))
        inputs = entry.get("inputsHash", "")
        if state == "Succeeded" and old.get("state") != "Succeeded":
            if attempt not in run.finished:
                yield f"{_of(attempt)} is said to be done, but its Job has not been"
            elif run.finished[attempt] != inputs:
                yield f"{_of(attempt)} is said to be done, but its Job did other work"
        if (
            state == "Skipped"
            and old.get("state") != "Skipped"
            and (name, inputs) not in self._known
        ):
            yield f"{name} is said to be done before, but no worker has told so"
        if state == "Running" and entry.get("jobUID") and attempt not in run.applied:
            yield f"{_of(attempt)} is said to have a Job"
        if state == "Running" and entry.get("ready", 0) > run.ready.get(attempt, 0):
            yield f"{entry['ready']} pods of {_of(attempt)} are said to be ready"

    def _failure_lies(self, run: _Run) -> Iterator[str]:
        failed = find(run.status.get("conditions", []), Type.FAILED) or {}
        reason = failed.get("reason")
        stage = next((e for e in run.status["stages"] if e["state"] == "Failed"), None)
        if stage is None:
            yield "Failed, but no stage is"
            return
        attempt = (stage["name"], stage.get("attempt", 0))
        if reason == "UserError" and stage["name"] not in run.refused:
            yield f"failed by the user's error, but no pod of {stage['name']} ended with code 2"
        if reason == "StageFailed" and attempt not in run.failed_jobs:
            yield f"failed, but the Job of {_of(attempt)} did not"
        if reason == "RestartsExhausted" and attempt not in run.crashed:
            yield f"failed after its last restart, but nothing crashed in {_of(attempt)}"
        if reason == "DeadlineExceeded" and not run.spec.get("activeDeadlineSeconds"):
            yield "failed by a deadline that it has not"

    # ------------------------------------------------------------------ at the end

    @property
    def finished(self) -> int:
        """Jobs that have done their work."""
        return sum(len(run.finished) for run in self.runs.values())

    def unfinished(self) -> list[_Run]:
        """Resources that have not come to their end."""
        return [run for run in self.runs.values() if not run.ended]

    def orphans(self) -> list[str]:
        """Children that are there though their resource is not."""
        found = []
        for (kind, key), uid in self._children.items():
            run = self._owners[uid][0] if uid in self._owners else self.runs.get(uid)
            if run is None or not run.there:
                found.append(f"{kind} {key[1]}")
        return found

    def fail(self, run: _Run, invariant: str, text: str) -> None:
        """Note what only the trial can tell."""
        self._flag(run, invariant, 0, text)

    def _flag(self, run: _Run, invariant: str, revision: int, text: str) -> None:
        if invariant not in run.flagged:  # the first of its kind: what follows may follow from it
            run.flagged.add(invariant)
            self._note(run, revision, f"BROKEN: {invariant}: {text}")
            self._break(invariant, run.name, revision, text)

    def _break(self, invariant: str, resource: str, revision: int, text: str) -> None:
        self.broken.append(Broken(invariant, resource, revision, text))

    def _note(self, run: _Run, revision: int, text: str) -> None:
        run.journal.append(f"{self._now:8.2f} {revision or '':>8} {text}")


def _of(attempt: Attempt | None) -> str:
    return f"{attempt[0]} {attempt[1]}" if attempt else "any attempt"


def _restarted(status: Mapping[str, Any]) -> Attempt | None:
    """The attempt that a restart has ended."""
    for entry in status.get("stages", []):
        if entry["state"] == "Restarting":
            return (entry["name"], entry["attempt"] - 1)
    return None


def _life(pod: Pod) -> str:
    words = [pod.phase, pod.node and f"on {pod.node}", pod.ready and "ready"]
    words += [pod.exit_code is not None and f"exit {pod.exit_code}", pod.disruption]
    words += [pod.deleted and "to be deleted"]
    return " ".join(str(word) for word in words if word)


def _shown(run: _Run) -> str:
    status = run.status
    stages = [
        f"{e['name']} {e.get('attempt', 0)} {e['state']}"
        for e in status.get("stages", [])
        if e["state"] not in ("Pending", *DONE)
    ]
    return (
        f"status {status.get('phase')} of generation {status.get('observedGeneration')}: "
        f"{', '.join(stages) or '-'}; restarts {status.get('restarts', 0)}, charged "
        f"{status.get('chargedRestarts', 0)}; {status.get('message', '')}"
    )


def _wish(run: _Run) -> str:
    return "suspend" if run.spec.get("suspend") else "work"
