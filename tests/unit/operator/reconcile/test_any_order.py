"""Reconcile under any order of events: invariants hold in every state, and every run ends."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reconcile_world import World, resource
from video2world_common.progress_events import CheckpointSaved
from video2world_operator.reconcile.observed_state import Pod

FAILURES = [
    {"phase": "Failed", "exit_code": 1},
    {"phase": "Failed", "exit_code": 143},
    {"phase": "Failed", "exit_code": 137, "reason": "OOMKilled"},
    {"disruption": "PreemptionByScheduler"},
    {"phase": "Failed", "reason": "Evicted"},
]


class AnyOrder(RuleBasedStateMachine):
    """Events occur in any order; the operator reconciles as often as it happens to."""

    @initialize(sampled=st.booleans())
    def begin(self, sampled):
        samples = {"samples": [{"input": "a.mp4"}], "everyCheckpoint": sampled}
        training = {"iterations": 9, "nodes": 2, "maxRestarts": 3}
        self.world = World(resource(training=training, inference=samples))
        self.seen = {"attempt": 0, "restarts": 0}
        self.past = [self.world.snapshot()]

    @property
    def job(self):
        return next(
            (j for j in self.world.jobs.values() if not j.finished and j.stage != "samples"), None
        )

    @property
    def alive(self):
        return [p for p in self.world.pods.values() if not p.over and p.stage != "samples"]

    @property
    def samplers(self):
        return [j for j in self.world.jobs.values() if not j.finished and j.stage == "samples"]

    @rule()
    def look(self):
        self.world.round()
        self.past.append(self.world.snapshot())

    @rule(ago=st.integers(1, 3))
    def look_at_what_a_late_watch_shows(self, ago):
        self.world.round(cache=self.past[-ago:][0])

    @rule(seconds=st.sampled_from([-3600, -30, 1, 15, 700]))
    def time_passes(self, seconds):
        self.world.tick(seconds)
        for pod in list(self.world.pods.values()):  # kubelets remove deleted pods
            if pod.deleted and pod.deleted <= self.world.now and not pod.node.endswith("dead"):
                del self.world.pods[pod.name]

    @precondition(lambda self: self.job is not None)
    @rule()
    def pods_start(self):
        if not [
            p
            for p in self.world.pods.values()
            if p.attempt == self.job.attempt and p.stage == self.job.stage
        ]:
            self.world.start_pods()

    @precondition(lambda self: self.job is not None)
    @rule()
    def the_job_succeeds(self):
        stage, attempt = self.job.stage, self.job.attempt
        for pod in list(self.world.pods.values()):
            if (pod.stage, pod.attempt) == (stage, attempt):
                self.world.pod(pod.name, phase="Succeeded", exit_code=0, ended=self.world.now)
        self.world.finish(stage)

    @precondition(lambda self: bool(self.alive))
    @rule(what=st.sampled_from(FAILURES), which=st.integers(0, 1))
    def a_pod_fails(self, what, which):
        self.world.pod(self.alive[which % len(self.alive)].name, ended=self.world.now, **what)

    @precondition(lambda self: bool(self.alive))
    @rule()
    def a_node_dies(self):
        pod = self.alive[0]
        self.world.pod(
            pod.name,
            node="node-dead",
            disruption="DeletionByTaintManager",
            deleted=self.world.now + timedelta(seconds=30),
        )

    @precondition(lambda self: self.job is not None)
    @rule()
    def somebody_deletes_the_job(self):
        name = self.job.name
        for pod in [p for p in self.world.pods.values() if name in p.name]:
            if pod.over:
                del self.world.pods[pod.name]
            else:
                self.world.pod(pod.name, deleted=self.world.now + timedelta(seconds=5))
        del self.world.jobs[name]

    @precondition(lambda self: self.job is not None and self.job.stage != "train")
    @rule()
    def a_stage_gives_up(self):
        name = self.job.name
        self.world.jobs[name] = replace(self.world.jobs[name], failed="BackoffLimitExceeded")

    @precondition(lambda self: self.job is not None and self.job.stage == "train")
    @rule()
    def a_checkpoint_is_saved(self):
        before = self.world.status.get("checkpoint", {}).get("iteration", 0)
        self.world.round(events=[CheckpointSaved("train", before + 1)])

    @precondition(lambda self: bool(self.samplers))
    @rule()
    def its_samples_begin(self):
        job = self.samplers[0]
        self.world.pods[job.name] = Pod(job.name, job.name, "samples", job.attempt, 0, "Running")

    @precondition(lambda self: bool(self.samplers))
    @rule(how=st.sampled_from([{"complete": True}, {"failed": "BackoffLimitExceeded"}, None]))
    def its_samples_end(self, how):
        job = self.samplers[0]
        self.world.pods.pop(job.name, None)
        if how is None:
            del self.world.jobs[job.name]  # a user deletes it
        else:
            self.world.jobs[job.name] = replace(job, **how)

    @rule(
        samples=st.sampled_from([[], [{"input": "a.mp4"}], [{"input": "b.mp4"}]]),
        iterations=st.sampled_from([9, 12]),
    )
    def somebody_edits(self, samples, iterations):
        spec = self.world.body["spec"]
        every = bool(samples) and spec["inference"].get("everyCheckpoint", False)
        spec["inference"] = {"samples": samples, "everyCheckpoint": every}
        spec["training"] = spec["training"] | {"iterations": iterations}
        self.world.body["metadata"]["generation"] += 1

    @rule(value=st.booleans())
    def suspend_or_resume(self, value):
        if bool(self.world.body["spec"].get("suspend")) != value:
            self.world.body["spec"]["suspend"] = value
            self.world.body["metadata"]["generation"] += 1

    @invariant()
    def never_two_live_attempts(self):
        running = {
            (j.stage, j.attempt)
            for j in self.world.jobs.values()
            if not j.finished and j.stage != "samples"
        }
        assert len(running) <= 1
        live = {(p.stage, p.attempt) for p in self.alive}
        assert len(live | running) <= 1 or not running, (live, running)

    @invariant()
    def one_checkpoint_at_a_time(self):
        assert len(self.samplers) <= 1
        begun = [r["iteration"] for r in self.world.status.get("samples", [])]
        assert begun == sorted(set(begun))

    @invariant()
    def counts_only_grow(self):
        status = self.world.status
        for field, before in self.seen.items():
            assert status.get(field, 0) >= before
            self.seen[field] = status.get(field, 0)
        assert status.get("chargedRestarts", 0) <= min(3, status.get("restarts", 0))

    @invariant()
    def the_status_claims_nothing_that_the_children_deny(self):
        status = self.world.status
        if status.get("phase") in ("Suspended", "Succeeded"):
            assert not self.alive
            assert self.job is None
        for entry in status.get("stages", []):
            assert entry["state"] != "Restarting" or entry["name"] == self.world.status["stage"]

    def teardown(self):
        """In a cluster without further faults every resource ends."""
        world = self.world
        world.body["spec"]["suspend"] = False
        for _ in range(60):
            world.settle()
            if world.status["phase"] in ("Succeeded", "Failed"):
                break
            world.tick(700)
            for pod in list(world.pods.values()):
                if pod.deleted and pod.deleted <= world.now:
                    del world.pods[pod.name]
            world.settle()
            if self.job is not None:
                stage, attempt = self.job.stage, self.job.attempt
                for pod in list(world.pods.values()):
                    if (pod.stage, pod.attempt) == (stage, attempt) and not pod.over:
                        world.pod(pod.name, phase="Succeeded", exit_code=0)
                world.finish(stage)
            for job in self.samplers:
                world.pods.pop(job.name, None)
                world.jobs[job.name] = replace(job, complete=True)
        assert world.status["phase"] in ("Succeeded", "Failed")
        world.tick(3600)
        world.settle()
        assert self.job is None  # no GPU is held at the end
        assert not self.samplers


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
