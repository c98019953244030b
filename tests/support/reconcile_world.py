"""A resource in a simulated cluster, for tests of the reconciler."""

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from video2world_operator.api.status import dump_status, parse_status
from video2world_operator.cli.explain import explain
from video2world_operator.cli.snapshot import ClusterObjects, Snapshot
from video2world_operator.controller.observer import needs_live_read
from video2world_operator.reconcile.actions import Annotate, Apply
from video2world_operator.reconcile.observed_state import Job, ObservedState, Pod
from video2world_operator.reconcile.reconciler import plan_of, reconcile

__all__ = ["NOW", "STAGES", "World", "causes", "resource"]

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
STAGES = ["download", "dataset", "embeddings", "latents", "train", "inference"]


def resource(**spec):
    base = {
        "model": {"size": "2B"},
        "dataset": {"agibot": {}},
        "training": {"iterations": 1000, "nodes": 2},
        "inference": {"samples": [{"input": "val/videos/a.mp4"}]},
    }
    merged = base | {k: base.get(k, {}) | v if isinstance(v, dict) else v for k, v in spec.items()}
    return {
        "apiVersion": "video2world.dev/v1alpha1",
        "kind": "Video2WorldPostTrain",
        "metadata": {
            "name": "run",
            "namespace": "ns",
            "uid": "u1",
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": "2026-11-24T12:00:00Z",
        },
        "spec": merged,
    }


class World:
    """A simulated cluster that does what a test tells it, and applies decisions."""

    def __init__(self, body=None, policy=None):
        self.body, self.policy = body or resource(), policy
        self.now = NOW
        self.jobs, self.pods, self.applied, self.groups_deleted = {}, {}, [], []
        self._forced = set()  # pods kept only by the finalizer of their Job
        self.extra = {}
        self.annotated = []

    @property
    def status(self):
        return self.body.get("status", {})

    def round(self, cache=None, **extra):
        """Reconcile once, as the controller does.

        ``cache`` holds Jobs and pods of an earlier :meth:`snapshot`; the controller then reads
        them live where a decision needs it.
        """
        decision = self._decide(cache or self.snapshot(), extra)
        if cache and needs_live_read(parse_status(self.status), decision):
            decision = self._decide(self.snapshot(), extra)
        if decision.status is not None:
            written = json.loads(json.dumps(dump_status(decision.status)))
            self.body = self.body | {"status": written}
        before = self._uids()
        for action in decision.actions:
            self._do(action, before, lagging=cache is not None)
        return decision

    def snapshot(self):
        """Return the current Jobs and pods."""
        return list(self.jobs.values()), list(self.pods.values())

    def _decide(self, cache, extra):
        jobs, pods = cache
        seen = ObservedState(jobs=jobs, pods=pods, **self.extra | extra)
        return reconcile(self.body, plan_of(self.body), seen, self.now, self.policy)

    def _do(self, action, before, lagging):
        if isinstance(action, Apply):
            manifest = action.manifest
            self.applied.append(manifest)
            if manifest["kind"] == "Job":
                made = {"uid": self._uid(), "creationTimestamp": self.now.isoformat()}
                job = Job.of({**manifest, "metadata": manifest["metadata"] | made})
                assert lagging or job.name not in self.jobs, "two Jobs of one name"
                self.jobs.setdefault(job.name, job)
        elif isinstance(action, Annotate):
            self.annotated.append(dict(action.annotations))
            job = self.jobs[action.name]
            (cost,) = action.annotations.values()
            self.jobs[action.name] = replace(job, eviction_cost=int(cost))
        elif action.kind == "PodGroup":
            self.groups_deleted.append(action.name)
        elif action.uid not in self._uids() and (lagging or action.uid in before):
            pass  # already gone, for example with its Job
        elif action.kind == "Job":
            job = self.jobs.pop(action.name)
            for pod in [
                p for p in self.pods.values() if (p.stage, p.attempt) == (job.stage, job.attempt)
            ]:
                if pod.over or pod.uid in self._forced:
                    del self.pods[pod.name]
                else:
                    self.pods[pod.name] = replace(pod, deleted=self.now + timedelta(seconds=600))
        elif action.kind == "Pod":
            pod = self.pods[action.name]
            attempt = (pod.stage, pod.attempt)
            made_by = [j for j in self.jobs.values() if (j.stage, j.attempt) == attempt]
            if not pod.over and not all(job.finished for job in made_by):
                self._forced.add(pod.uid)
            else:
                del self.pods[pod.name]

    def _uids(self):
        return {one.uid for kind in (self.jobs, self.pods) for one in kind.values()}

    def _uid(self):
        return f"j{len(self.applied)}"

    def settle(self):
        """Reconcile until nothing changes."""
        before = None
        for _ in range(100):
            actions = self.round().actions
            if not actions and self.body == before:
                return
            before = copy.deepcopy(self.body)
        raise AssertionError(f"it never settles: {actions}")

    def finish(self, stage):
        """Let the stage's Job succeed."""
        (name,) = [n for n, j in self.jobs.items() if j.stage == stage and not j.finished]
        self.jobs[name] = replace(self.jobs[name], complete=True)

    def start_pods(self, **fields):
        """Create the pods of the unfinished Job."""
        (job,) = [j for j in self.jobs.values() if not j.finished and j.stage != "samples"]
        count = job.completions if job.stage == "train" else 1
        for index in range(count):
            pod = Pod(
                f"{job.name}-{index}",
                f"p-{job.name}-{index}",
                job.stage,
                job.attempt,
                index,
                "Running",
                f"node-{index}",
                ready=True,
                started=self.now,
                created=self.now,
            )
            self.pods[pod.name] = replace(pod, **fields)
        return [n for n in self.pods if n.startswith(job.name)]

    def pod(self, name, **fields):
        self.pods[name] = replace(self.pods[name], **fields)

    def through(self, stages=STAGES):
        """Let one stage after the other succeed."""
        self.settle()
        for stage in stages:
            self.finish(stage)
            self.settle()

    def to_training(self):
        self.through(STAGES[:4])
        return self.start_pods()

    def stage(self, name):
        return next(e for e in self.status["stages"] if e["name"] == name)

    def condition(self, kind):
        return next((c for c in self.status["conditions"] if c["type"] == kind), None)

    def tick(self, seconds):
        self.now += timedelta(seconds=seconds)


def causes(
    world,
    events=(),
    claim=None,
    nodes=None,
    note="",
    gpus=8,
    gone=False,
    workload=None,
    spec=None,
):
    """Return what v2w explain finds; ``events`` are matched to existing objects by name."""
    metadata = world.body["metadata"]
    uids = {one.name: one.uid for one in (*world.jobs.values(), *world.pods.values())}
    for reported in events:
        about = reported["involvedObject"]
        about.setdefault("uid", uids.get(about["name"], f"uid-of-{about['name']}"))
    jobs = list(world.jobs.values())
    spec = world.body["spec"] | (spec or {})
    objects = ClusterObjects(
        metadata, spec, claim, events, nodes, gpus, jobs=jobs, workload=workload
    )
    status = parse_status(world.status)
    seen = Snapshot("run", status, list(world.pods.values()), note=note, gone=gone)
    return explain(seen, objects, world.now)
