"""The invariant checker of `make chaos` reports every violation and nothing else."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from benchmarks.chaos import __main__ as chaos
from benchmarks.chaos.fault_injector import FAULTS
from benchmarks.chaos.history import RESOURCES
from benchmarks.chaos.invariants import Checker
from benchmarks.chaos.schedule import KINDS, KUEUE_KINDS, faults, resources
from benchmarks.reliability import CHAOS, CHAOS_KUEUE, DOCUMENT, TORTURE, documented

from control_plane import Change
from video2world_operator.api.constants import GROUP
from video2world_operator.api.validation import parse

ALL_KINDS = [*KINDS, *KUEUE_KINDS]
DONE = {"type": "Complete", "status": "True", "reason": "", "message": ""}


class Scenario:
    """Feed the checker changes as etcd would report them."""

    def __init__(self):
        self.checker = Checker()
        self.revisions = count(1)
        self.status = {}
        self.resource()

    def see(self, key, body, now=0.0):
        self.checker.see(Change(next(self.revisions), key, body), now)

    def resource(self, uid="r1", now=0.0, **status):
        self.status = self.status | status
        metadata = {"uid": uid, "name": "run", "namespace": "ns", "generation": 1}
        self.see(
            f"{RESOURCES}ns/run", {"metadata": metadata, "spec": {}, "status": self.status}, now
        )

    def stage(self, state, attempt=1, now=0.0, **more):
        entry = {"name": "train", "state": state, "attempt": attempt, "inputsHash": "h"}
        fields = {k: more.pop(k) for k in ("ready", "jobUID", "inputsHash") if k in more}
        self.resource(stages=[entry | fields], now=now, **more)

    def job(self, attempt=1, uid=None, owner="r1", conditions=(), inputs_hash="h"):
        metadata = self._metadata(f"run-train-{attempt}", uid or f"j{attempt}", owner, attempt)
        metadata["annotations"] = {f"{GROUP}/inputs-hash": inputs_hash}
        body = {"metadata": metadata, "status": {"conditions": list(conditions)}}
        self.see(f"jobs/ns/run-train-{attempt}", body)

    def pod(self, attempt=1, phase="Running", code=None, job=None, **fields):
        name = f"run-train-{attempt}-0"
        state = {} if code is None else {"terminated": {"exitCode": code}}
        metadata = self._metadata(name, f"p{attempt}", job or f"j{attempt}", attempt) | fields
        container = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
        status = {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": str(phase == "Running")}],
            "containerStatuses": [{"name": "train", "state": state}],
        }
        body = {"metadata": metadata, "spec": {"containers": [container]}, "status": status}
        self.see(f"pods/ns/{name}", body)

    def delete(self, kind, attempt=1):
        name = f"run-train-{attempt}" + ("-0" if kind == "pods" else "")
        self.see(f"{kind}/ns/{name}", None)

    def _metadata(self, name, uid, owner, attempt):
        labels = {f"{GROUP}/resource": "run", f"{GROUP}/stage": "train"}
        labels[f"{GROUP}/attempt"] = str(attempt)
        owners = [{"uid": owner, "controller": True}]
        return {"name": name, "uid": uid, "labels": labels, "ownerReferences": owners}

    @property
    def violations(self):
        return [one.invariant for one in self.checker.violations]


def crash_and_restart(scenario):
    scenario.stage("Running", phase="Running")
    scenario.job()
    scenario.pod()
    scenario.pod(phase="Failed", code=1)
    scenario.stage("Restarting", 2, restarts=1, chargedRestarts=1)
    scenario.delete("jobs")
    scenario.delete("pods")
    scenario.stage("Running", 2)
    scenario.job(2)
    scenario.pod(2)


def test_a_correct_restart_violates_nothing():
    scenario = Scenario()
    crash_and_restart(scenario)
    scenario.pod(2, phase="Succeeded", code=0)
    scenario.job(2, conditions=[DONE])
    scenario.stage("Succeeded", 2, phase="Succeeded", observedGeneration=1)
    assert scenario.violations == []
    assert scenario.checker.history.unfinished() == []
    assert scenario.checker.states == 14


def two_attempts(scenario):
    scenario.stage("Running", phase="Running")
    scenario.job()
    scenario.pod()
    scenario.job(2)


def two_jobs_of_one_attempt(scenario):
    scenario.stage("Running", phase="Running")
    scenario.job()
    scenario.pod()
    scenario.delete("jobs")
    scenario.job(uid="another")


def suspended_with_a_pod(scenario):
    scenario.stage("Running", phase="Running")
    scenario.job()
    scenario.pod()
    scenario.delete("jobs")
    scenario.stage("Suspended", phase="Suspended")


def attempt_number_decreases(scenario):
    crash_and_restart(scenario)
    scenario.stage("Running", 1)


def succeeded_without_its_job(scenario):
    scenario.stage("Running", phase="Running")
    scenario.job()
    scenario.stage("Succeeded")


def succeeded_by_a_job_with_other_inputs(scenario):
    scenario.job(inputs_hash="other")
    scenario.job(inputs_hash="other", conditions=[DONE])
    scenario.stage("Succeeded")


def skipped_without_a_report(scenario):
    scenario.stage("Skipped")


def restart_without_a_cause(scenario):
    scenario.stage("Running", phase="Running")
    scenario.job()
    scenario.pod()
    scenario.stage("Restarting", 2, restarts=1)


def lost_node_counted_against_the_limit(scenario):
    scenario.stage("Running", phase="Running")
    scenario.job()
    scenario.pod()
    scenario.delete("pods")
    scenario.stage("Restarting", 2, restarts=1, chargedRestarts=1)


def more_pods_ready_than_exist(scenario):
    scenario.job()
    scenario.pod()
    scenario.stage("Running", ready=2, phase="Running")


def job_without_an_owner(scenario):
    scenario.job(owner="unknown")


@pytest.mark.parametrize(
    ("invariant", "events"),
    [
        ("one attempt", two_attempts),
        ("one attempt", two_jobs_of_one_attempt),
        ("GPUs freed", suspended_with_a_pod),
        ("only grows", attempt_number_decreases),
        ("true claims", succeeded_without_its_job),
        ("true claims", succeeded_by_a_job_with_other_inputs),
        ("true claims", skipped_without_a_report),
        ("true claims", restart_without_a_cause),
        ("true claims", lost_node_counted_against_the_limit),
        ("true claims", more_pods_ready_than_exist),
        ("owned", job_without_an_owner),
    ],
)
def test_each_violation_is_reported(invariant, events):
    scenario = Scenario()
    events(scenario)
    assert scenario.violations == [invariant]


def test_a_failed_resource_has_two_minutes_to_free_its_gpus():
    scenario = Scenario()
    scenario.stage("Running", phase="Running")
    scenario.job()
    scenario.pod()
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}
    scenario.checker.history.runs["r1"].spec = {"activeDeadlineSeconds": 1}
    scenario.see(
        f"{RESOURCES}ns/run",
        {
            "metadata": {"uid": "r1", "name": "run", "namespace": "ns", "generation": 1},
            "spec": {"activeDeadlineSeconds": 1},
            "status": scenario.status
            | {
                "phase": "Failed",
                "conditions": [failed],
                "stages": [{"name": "train", "state": "Failed", "attempt": 1}],
            },
        },
        now=10,
    )
    scenario.checker.check_deadlines(120)
    assert scenario.violations == []
    scenario.checker.check_deadlines(131)
    assert scenario.violations == ["GPUs freed"]


def test_pods_created_for_a_deleted_job_are_not_held_against_the_operator():
    scenario = Scenario()
    scenario.stage("Running", phase="Running")
    scenario.job()
    scenario.delete("jobs")
    scenario.stage("Suspended", phase="Suspended")
    scenario.pod()
    assert scenario.violations == []
    assert scenario.checker.history.stillborn == 1


def test_children_of_a_deleted_resource_are_orphans_until_collected():
    scenario = Scenario()
    scenario.job()
    scenario.pod()
    scenario.see(f"{RESOURCES}ns/run", None)
    assert scenario.checker.history.orphans() == ["Job run-train-1", "Pod run-train-1-0"]
    scenario.delete("jobs")
    scenario.delete("pods")
    assert scenario.checker.history.orphans() == []


def test_a_seed_is_reproducible_and_every_kind_of_fault_is_drawn():
    assert resources(7, 20) == resources(7, 20) != resources(8, 20)
    assert faults(7, 14) == faults(7, 14) != faults(8, 14)
    drawn = {fault.kind for seed in range(20) for fault in faults(seed, 14)}
    assert drawn == set(KINDS)
    drawn = {fault.kind for seed in range(20) for fault in faults(seed, 17, ALL_KINDS)}
    assert drawn == set(ALL_KINDS) == set(FAULTS)
    for body in (*resources(7, 100), *resources(7, 100, queue="gpus")):
        parse(body)  # raises where it is not valid


def test_the_page_matches_the_committed_records():
    records = [
        json.loads(path.read_text()) if path.exists() else None
        for path in (CHAOS, CHAOS_KUEUE, TORTURE)
    ]
    text = DOCUMENT.read_text()
    assert text == documented(text, *records)
    assert "Not run yet." in documented(text, None, None, None)


def test_parallel_trials_share_the_record_and_another_size_starts_a_new_one(tmp_path):
    path = tmp_path / "chaos.json"

    def add(seed, size):
        with chaos._record(path, size) as record:
            time.sleep(0.01)  # without the lock another thread would read the old record here
            record["trials"].append({"seed": seed})

    small = {"resources": 10, "faults": 2}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: add(seed, small), range(20)))
    found = json.loads(path.read_text())
    assert found["resources"] == 10
    assert sorted(one["seed"] for one in found["trials"]) == [*range(20)]
    add(7, {"resources": 100, "faults": 2})
    found = json.loads(path.read_text())
    assert found == {"resources": 100, "faults": 2, "trials": [{"seed": 7}]}
