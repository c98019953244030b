"""Keep what was ever observed of each resource and its children, from etcd changes in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from control_plane import Change
from video2world_operator.api.constants import GPU, GROUP, PLURAL
from video2world_operator.reconcile.observed_state import Job, Pod, resource_of

__all__ = [
    "DONE",
    "RESOURCES",
    "WATCHED",
    "Attempt",
    "Foreign",
    "History",
    "Run",
    "StatusChange",
    "Worker",
]

RESOURCES = f"{GROUP}/{PLURAL}/"
CHILDREN = {
    "jobs/": "Job",
    "pods/": "Pod",
    "services/specs/": "Service",
    "podgroups/": "PodGroup",
    "persistentvolumeclaims/": "PersistentVolumeClaim",
}
WATCHED = (RESOURCES, *CHILDREN)
SAVED = 143  # exit code of a worker that saved a checkpoint after SIGTERM
DONE = ("Succeeded", "Skipped")

Attempt = tuple[str, int]  # stage and number
Key = tuple[str, str]  # namespace and name


@dataclass(frozen=True)
class Worker:
    """A pod of a stage."""

    pod: Pod
    job: str  # UID of its Job
    gpus: int
    stillborn: bool  # created by the Job controller after its Job was deleted

    @property
    def attempt(self) -> Attempt:
        """The attempt that the pod belongs to."""
        return (self.pod.stage, self.pod.attempt)

    @property
    def live(self) -> bool:
        """Whether the pod counts as running."""
        return not self.pod.over and not self.stillborn


@dataclass
class Run:
    """Everything observed of one resource, by UID."""

    uid: str
    name: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0
    exists: bool = True
    existed_at_end: bool = True  # at the end of the trial, before everything was deleted
    jobs: dict[str, Job] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    applied: dict[Attempt, str] = field(default_factory=dict)  # inputs hash of its Job
    finished: dict[Attempt, str] = field(default_factory=dict)  # inputs hash of completed Jobs
    disturbed: set[Attempt] = field(default_factory=set)  # its Job or a pod failed or was deleted
    crashed: set[Attempt] = field(default_factory=set)
    failed_jobs: set[Attempt] = field(default_factory=set)
    user_errors: set[str] = field(default_factory=set)  # stages with a pod that exited with 2
    ready: dict[Attempt, int] = field(default_factory=dict)  # most pods ready at one time
    highest: dict[str, int] = field(default_factory=dict)  # largest value of each counter
    failed_at: float | None = None
    violated: set[str] = field(default_factory=set)  # invariants already reported
    journal: deque[str] = field(default_factory=lambda: deque(maxlen=400))

    @property
    def ended(self) -> bool:
        """Whether it is gone, or has succeeded or failed with its newest spec."""
        settled = self.status.get("observedGeneration") == self.generation
        return not self.exists or (settled and self.status.get("phase") in ("Succeeded", "Failed"))

    @property
    def gpu_holders(self) -> list[str]:
        """Names of live pods that hold GPUs."""
        return [w.pod.name for w in self.workers.values() if w.live and w.gpus]


@dataclass(frozen=True)
class Foreign:
    """A child whose owner is not, and never was, the resource it is labelled with."""

    resource: str
    text: str


@dataclass(frozen=True)
class StatusChange:
    """A run whose status has changed, and its previous status."""

    run: Run
    before: Mapping[str, Any]


@dataclass
class History:
    """Runs by UID, brought up to date by :meth:`record`, change by change."""

    runs: dict[str, Run] = field(default_factory=dict)
    stillborn: int = 0
    now: float = 0.0
    _uids: dict[Key, str] = field(default_factory=dict)  # of existing resources
    _jobs: dict[str, tuple[Run, Job]] = field(default_factory=dict)  # by UID of the Job
    _deleted_jobs: set[str] = field(default_factory=set)  # UIDs
    _children: dict[tuple[str, Key], str] = field(default_factory=dict)  # UID of the owner

    def record(self, change: Change, now: float) -> Run | StatusChange | Foreign | None:
        """Record a change and return the run that it belongs to, if there is one."""
        self.now = now
        prefix = next(p for p in WATCHED if change.key.startswith(p))
        namespace, _, name = change.key.removeprefix(prefix).partition("/")
        key = (namespace, name)
        if prefix == RESOURCES:
            return self._record_resource(key, change)
        if change.body is None:
            return self._record_deletion(CHILDREN[prefix], key)
        return self._record_child(CHILDREN[prefix], key, change.body, change.revision)

    def note(self, run: Run, revision: int, text: str) -> None:
        """Append a line to the run's journal."""
        run.journal.append(f"{self.now:8.2f} {revision or '':>8} {text}")

    @property
    def finished(self) -> int:
        """Number of completed Jobs."""
        return sum(len(run.finished) for run in self.runs.values())

    def unfinished(self) -> list[Run]:
        """Return the resources that have not ended."""
        return [run for run in self.runs.values() if not run.ended]

    def orphans(self) -> list[str]:
        """Return the children whose resource no longer exists."""
        return [
            f"{kind} {key[1]}"
            for (kind, key), uid in self._children.items()
            if (run := self._run_of(uid)) is None or not run.exists
        ]

    def _run_of(self, owner: str) -> Run | None:
        return self._jobs[owner][0] if owner in self._jobs else self.runs.get(owner)

    def _record_resource(self, key: Key, change: Change) -> Run | StatusChange | None:
        if change.body is None:
            uid = self._uids.pop(key, "")
            if uid in self.runs:
                self.runs[uid].exists = False
                self.note(self.runs[uid], change.revision, "the resource is gone")
            return None
        metadata = change.body["metadata"]
        run = self.runs.setdefault(metadata["uid"], Run(metadata["uid"], key[1]))
        self._uids[key] = run.uid
        before, run.status = run.status, change.body.get("status") or {}
        run.spec, run.generation = change.body["spec"], metadata["generation"]
        if before != run.status or not before:
            self.note(run, change.revision, _describe_status(run))
            return StatusChange(run, before)
        desired = "suspend" if run.spec.get("suspend") else "run"
        self.note(run, change.revision, f"spec of generation {run.generation}: {desired}")
        return run

    def _record_child(
        self, kind: str, key: Key, body: Mapping[str, Any], revision: int
    ) -> Run | Foreign | None:
        body = {**body, "metadata": {"uid": "", **body["metadata"]}}
        if not resource_of(body):
            return None
        run = self._owner(kind, key, body)
        if not isinstance(run, Run):
            return run
        if kind == "Job":
            self._record_job(run, Job.of(body), revision)
        elif kind == "Pod":
            self._record_pod(run, body, revision)
        return run

    def _owner(self, kind: str, key: Key, body: Mapping[str, Any]) -> Run | Foreign | None:
        uid = _controller(body)
        run, name = self._run_of(uid), resource_of(body)
        if run is None or run.name != name:
            if kind == "PersistentVolumeClaim" and not uid:
                return None  # kept on purpose
            return Foreign(name, f"{kind} {key[1]} is owned by {uid or 'nothing'}")
        self._children[kind, key] = uid
        return run

    def _record_job(self, run: Run, job: Job, revision: int) -> None:
        attempt = (job.stage, job.attempt)
        if job.uid not in self._jobs:
            self.note(run, revision, f"Job {job.name}")
        run.jobs[job.name], run.applied[attempt] = job, job.inputs_hash
        self._jobs[job.uid] = (run, job)
        if job.complete:
            run.finished[attempt] = job.inputs_hash
        if job.failed:
            run.failed_jobs.add(attempt)
        if job.failed or job.deleting:
            run.disturbed.add(attempt)
        if job.finished or job.deleting:
            state = job.failed or ("complete" if job.complete else "deleting")
            self.note(run, revision, f"Job {job.name}: {state}")

    def _record_pod(self, run: Run, body: Mapping[str, Any], revision: int) -> None:
        pod, owner = Pod.of(body), _controller(body)
        limits = (c["resources"].get("limits") or {} for c in body["spec"]["containers"])
        before = run.workers.get(pod.name)
        stillborn = before.stillborn if before else owner in self._deleted_jobs
        self.stillborn += stillborn and before is None
        gpus = sum(int(one.get(GPU, 0)) for one in limits)
        worker = Worker(pod, owner, gpus, stillborn)
        run.workers[pod.name] = worker
        attempt = worker.attempt
        if pod.phase == "Failed" or pod.deleted or pod.disruption:
            run.disturbed.add(attempt)
        if pod.exit_code not in (None, 0, SAVED):
            run.crashed.add(attempt)
        if pod.exit_code == 2:
            run.user_errors.add(pod.stage)
        ready = sum(w.pod.ready for w in run.workers.values() if w.attempt == attempt)
        run.ready[attempt] = max(run.ready.get(attempt, 0), ready)
        if before is None or _describe_pod(before.pod) != _describe_pod(pod):
            self.note(run, revision, f"pod {pod.name}: {_describe_pod(pod)}")

    def _record_deletion(self, kind: str, key: Key) -> Run | None:
        run = self._run_of(self._children.pop((kind, key), ""))
        if run is None:
            return None
        if kind == "Job" and (job := run.jobs.pop(key[1], None)):
            self._deleted_jobs.add(job.uid)
            if not job.complete:
                run.disturbed.add((job.stage, job.attempt))
        worker = run.workers.pop(key[1], None) if kind == "Pod" else None
        if worker is not None and worker.pod.phase != "Succeeded":
            run.disturbed.add(worker.attempt)
        if kind in ("Job", "Pod"):
            self.note(run, 0, f"{kind} {key[1]} is gone")
        return run


def _controller(body: Mapping[str, Any]) -> str:
    """Return the UID of the controlling owner; empty without one."""
    owners = body["metadata"].get("ownerReferences") or []
    return next((str(o["uid"]) for o in owners if o.get("controller")), "")


def _describe_pod(pod: Pod) -> str:
    parts = [
        pod.phase,
        pod.node and f"on {pod.node}",
        pod.ready and "ready",
        pod.exit_code is not None and f"exit {pod.exit_code}",
        pod.disruption,
        pod.deleted and "deleting",
    ]
    return " ".join(str(part) for part in parts if part)


def _describe_status(run: Run) -> str:
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
