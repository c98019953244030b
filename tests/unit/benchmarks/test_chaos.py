"""The checker of `make chaos` sees what is wrong, and only that; the same seed draws the same."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from benchmarks.chaos import __main__ as chaos
from benchmarks.chaos.invariants import RESOURCES, Checker
from benchmarks.chaos.schedule import KINDS, faults, resources
from benchmarks.reliability import CHAOS, DOCUMENT, TORTURE, documented

from control_plane import Change
from video2world_operator.api.constants import GROUP
from video2world_operator.api.validation import parse

DONE = {"type": "Complete", "status": "True", "reason": "", "message": ""}


class History:
    """Writes changes as the store would show them, and has them checked."""

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

    def pod(self, attempt=1, phase="Running", code=None, job=None, **metadata):
        name = f"run-train-{attempt}-0"
        state = {} if code is None else {"terminated": {"exitCode": code}}
        told = self._metadata(name, f"p{attempt}", job or f"j{attempt}", attempt) | metadata
        container = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
        status = {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": str(phase == "Running")}],
            "containerStatuses": [{"name": "train", "state": state}],
        }
        body = {"metadata": told, "spec": {"containers": [container]}, "status": status}
        self.see(f"pods/ns/{name}", body)

    def gone(self, kind, attempt=1):
        name = f"run-train-{attempt}" + ("-0" if kind == "pods" else "")
        self.see(f"{kind}/ns/{name}", None)

    def _metadata(self, name, uid, owner, attempt):
        labels = {f"{GROUP}/resource": "run", f"{GROUP}/stage": "train"}
        labels[f"{GROUP}/attempt"] = str(attempt)
        owners = [{"uid": owner, "controller": True}]
        return {"name": name, "uid": uid, "labels": labels, "ownerReferences": owners}

    @property
    def broken(self):
        return [one.invariant for one in self.checker.broken]


def crash_and_restart(history):
    history.stage("Running", phase="Running")
    history.job()
    history.pod()
    history.pod(phase="Failed", code=1)
    history.stage("Restarting", 2, restarts=1, chargedRestarts=1)
    history.gone("jobs")
    history.gone("pods")
    history.stage("Running", 2)
    history.job(2)
    history.pod(2)


def test_a_life_with_a_restart_breaks_nothing():
    history = History()
    crash_and_restart(history)
    history.pod(2, phase="Succeeded", code=0)
    history.job(2, conditions=[DONE])
    history.stage("Succeeded", 2, phase="Succeeded", observedGeneration=1)
    assert history.broken == []
    assert history.checker.unfinished() == []
    assert history.checker.states == 14


def two_attempts(history):
    history.stage("Running", phase="Running")
    history.job()
    history.pod()
    history.job(2)


def two_jobs_of_one_attempt(history):
    history.stage("Running", phase="Running")
    history.job()
    history.pod()
    history.gone("jobs")
    history.job(uid="another")


def suspended_with_a_pod(history):
    history.stage("Running", phase="Running")
    history.job()
    history.pod()
    history.gone("jobs")
    history.stage("Suspended", phase="Suspended")


def an_attempt_less(history):
    crash_and_restart(history)
    history.stage("Running", 1)


def done_without_its_job(history):
    history.stage("Running", phase="Running")
    history.job()
    history.stage("Succeeded")


def done_by_a_job_with_other_inputs(history):
    history.job(inputs_hash="other")
    history.job(inputs_hash="other", conditions=[DONE])
    history.stage("Succeeded")


def skipped_on_nobodys_word(history):
    history.stage("Skipped")


def a_restart_for_nothing(history):
    history.stage("Running", phase="Running")
    history.job()
    history.pod()
    history.stage("Restarting", 2, restarts=1)


def charged_for_a_lost_node(history):
    history.stage("Running", phase="Running")
    history.job()
    history.pod()
    history.gone("pods")
    history.stage("Restarting", 2, restarts=1, chargedRestarts=1)


def more_ready_than_there_are(history):
    history.job()
    history.pod()
    history.stage("Running", ready=2, phase="Running")


def a_job_of_nobody(history):
    history.job(owner="somebody")


@pytest.mark.parametrize(
    ("invariant", "wrong"),
    [
        ("one attempt", two_attempts),
        ("one attempt", two_jobs_of_one_attempt),
        ("GPUs freed", suspended_with_a_pod),
        ("only grows", an_attempt_less),
        ("true claims", done_without_its_job),
        ("true claims", done_by_a_job_with_other_inputs),
        ("true claims", skipped_on_nobodys_word),
        ("true claims", a_restart_for_nothing),
        ("true claims", charged_for_a_lost_node),
        ("true claims", more_ready_than_there_are),
        ("owned", a_job_of_nobody),
    ],
)
def test_what_is_wrong_is_seen(invariant, wrong):
    history = History()
    wrong(history)
    assert history.broken == [invariant]


def test_a_failed_resource_has_two_minutes_to_free_its_gpus():
    history = History()
    history.stage("Running", phase="Running")
    history.job()
    history.pod()
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}
    history.checker.runs["r1"].spec = {"activeDeadlineSeconds": 1}
    history.see(
        f"{RESOURCES}ns/run",
        {
            "metadata": {"uid": "r1", "name": "run", "namespace": "ns", "generation": 1},
            "spec": {"activeDeadlineSeconds": 1},
            "status": history.status
            | {
                "phase": "Failed",
                "conditions": [failed],
                "stages": [{"name": "train", "state": "Failed", "attempt": 1}],
            },
        },
        now=10,
    )
    history.checker.overdue(120)
    assert history.broken == []
    history.checker.overdue(131)
    assert history.broken == ["GPUs freed"]


def test_pods_that_the_job_controller_makes_for_a_deleted_job_are_not_the_operators():
    history = History()
    history.stage("Running", phase="Running")
    history.job()
    history.gone("jobs")
    history.stage("Suspended", phase="Suspended")
    history.pod()
    assert history.broken == []
    assert history.checker.stillborn == 1


def test_children_outlive_their_resource_only_until_the_collector_has_been():
    history = History()
    history.job()
    history.pod()
    history.see(f"{RESOURCES}ns/run", None)
    assert history.checker.orphans() == ["Job run-train-1", "Pod run-train-1-0"]
    history.gone("jobs")
    history.gone("pods")
    assert history.checker.orphans() == []


def test_a_seed_draws_the_same_again_and_every_kind_of_fault_comes():
    assert resources(7, 20) == resources(7, 20) != resources(8, 20)
    assert faults(7, 14) == faults(7, 14) != faults(8, 14)
    drawn = {fault.kind for seed in range(20) for fault in faults(seed, 14)}
    assert drawn == set(KINDS)
    for body in resources(7, 100):
        parse(body)  # raises where it is not valid


def test_the_page_tells_the_committed_records():
    chaos, torture = (
        json.loads(path.read_text()) if path.exists() else None for path in (CHAOS, TORTURE)
    )
    text = DOCUMENT.read_text()
    assert text == documented(text, chaos, torture)
    assert "Not run yet." in documented(text, None, None)


def test_trials_at_once_share_the_record_and_another_size_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos, "CHAOS", tmp_path / "chaos.json")

    def add(seed, size):
        with chaos._record(size) as record:
            time.sleep(0.01)  # whoever does not wait for it reads what is about to be written over
            record["trials"].append({"seed": seed})

    small = {"resources": 10, "faults": 2}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: add(seed, small), range(20)))
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert found["resources"] == 10
    assert sorted(one["seed"] for one in found["trials"]) == [*range(20)]
    add(7, {"resources": 100, "faults": 2})
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert found == {"resources": 100, "faults": 2, "trials": [{"seed": 7}]}
