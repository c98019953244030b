"""The server's clock, the lease, the cache, and the controller's priorities."""

import asyncio
import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from control_plane.processes import free_port
from operators import Operator, eventually
from video2world_common.progress_events import Resumed, Skipped
from video2world_operator.api.constants import KIND
from video2world_operator.controller.applier import split_passive
from video2world_operator.controller.cache import WatchCache
from video2world_operator.controller.controller import (
    RESYNCS_PER_SECOND,
    Controller,
    is_high_priority,
)
from video2world_operator.controller.key_state import StatusWrite
from video2world_operator.controller.resource import Resource
from video2world_operator.controller.worker_logs import without_skipped
from video2world_operator.kube.leader_election import LeaderElector, LeaseTimes
from video2world_operator.kube.server_clock import ServerClock
from video2world_operator.reconcile.actions import Apply, Delete
from video2world_operator.reconcile.observed_state import Job, Pod


def test_the_clock_follows_the_api_server():
    clock = ServerClock()
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)
    ahead = datetime.now(UTC) + timedelta(hours=2)
    clock.observe(format_datetime(ahead, usegmt=True))
    clock.observe("no date")
    clock.observe("")
    assert abs(clock.now() - ahead) < timedelta(seconds=5)
    clock.observe(format_datetime(ahead - timedelta(seconds=1), usegmt=True))  # a slow answer
    assert abs(clock.now() - ahead) < timedelta(seconds=5)
    back = ahead - timedelta(hours=1)
    clock.observe(format_datetime(back, usegmt=True))  # it was set back
    assert abs(clock.now() - back) < timedelta(seconds=5)


def test_what_an_earlier_attempt_skipped_is_ignored():
    reported = [Resumed("train", 5), Skipped("latents", "h")]
    assert without_skipped(reported) == reported[:1]


class LeaseServer:
    """The requests of a LeaderElector, on one Lease."""

    def __init__(self):
        self.lease = None

    async def get(self, path):
        return self.lease

    async def request(self, method, path, body):
        self.lease = body | {"metadata": body["metadata"] | {"resourceVersion": "1"}}


def test_a_paused_leader_knows_by_itself_that_its_lease_has_expired():
    leadership = LeaderElector(LeaseServer(), "ns", "me", LeaseTimes(0.3, 0.2, 0.05))
    assert not leadership.holds()
    asyncio.run(leadership.acquire())
    assert leadership.holds()
    time.sleep(0.25)  # as a process that was paused
    assert leadership.leads
    assert not leadership.holds()


def resource(uid: str, claim: str = "shared", **status: Any) -> Resource:
    metadata = {"uid": uid, "namespace": "ns", "name": "run"}
    spec = {"storage": {"claimName": claim}}
    return Resource({"metadata": metadata, "spec": spec, "status": status})


def test_the_cache_has_what_was_put_and_not_what_was_dropped():
    cache, key, volume = WatchCache(), ("ns", "run"), ("ns", "shared", "")
    first = resource("r1")
    cache.put_resource(first)
    cache.put_job(key, Job("run-train-1", "j1", "train", 1, "", "r1"))
    for index, name in enumerate("ab"):
        cache.put_pod(key, Pod(name, f"p{index + 1}", "train", 1, index, "Running"))
    assert cache.uids(KIND) == {"r1": key}
    assert cache.uids("Job") == {"j1": key}
    assert cache.uids("Pod") == {"p1": key, "p2": key}
    assert cache.on_volume(volume) == [first]
    cache.drop(["j1", "p2", "unheard of"])
    assert cache.jobs(key) == []
    assert [pod.name for pod in cache.pods(key)] == ["a"]
    cache.put_pod(key, Pod("a", "p1", "train", 1, 0, "Failed"))
    assert [pod.phase for pod in cache.pods(key)] == ["Failed"]
    assert cache.known() == [key]
    cache.drop(["r1"])
    assert cache.resource(key) is None
    assert cache.known() == []
    assert cache.on_volume(volume) == []
    assert cache.uids("Pod") == {"p1": key}
    assert not cache.uids("Job")
    cache.drop(["p1"])
    cache.put_pod(key, Pod("a", "p3", "train", 2, 1, "Running"))  # another one of that name
    assert [pod.uid for pod in cache.pods(key)] == ["p3"]


def test_a_resource_that_was_created_again_is_the_one_that_counts():
    cache, key = WatchCache(), ("ns", "run")
    second, moved = resource("r2", "another"), resource("r2", "moved")
    cache.put_resource(resource("r1"))
    cache.put_resource(second)  # before the deletion of the first one is known
    assert cache.resource(key) is second
    cache.put_resource(resource("r1", phase="Failed"))
    assert cache.resource(key) is second
    cache.drop(["r1"])
    assert cache.known() == [key]
    assert cache.on_volume(("ns", "shared", "")) == []
    cache.put_resource(moved)
    assert cache.on_volume(("ns", "another", "")) == []
    assert cache.on_volume(("ns", "moved", "")) == [moved]


def test_an_operator_that_starts_before_its_api_server_waits_for_it(tmp_path):
    kubeconfig = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "ns"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{free_port()}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path, log = tmp_path / "kubeconfig", tmp_path / "log"
    path.write_text(json.dumps(kubeconfig))
    operator = Operator(path, log=log)
    operator.launch()
    try:
        eventually(lambda: "waiting for the API server" in log.read_text(), 120, operator.tail)
        assert operator.alive
        assert operator.probe("readyz")[0] == 503
        assert operator.stop() == 0
    finally:
        operator.kill()
    assert "Traceback" not in log.read_text()


def test_a_written_status_counts_until_the_watch_has_caught_up():
    def version(number, uid="u"):
        metadata = {"uid": uid, "resourceVersion": number, "namespace": "ns", "name": "run"}
        return Resource({"metadata": metadata})

    write = StatusWrite("9", version("12"))
    assert write.is_newer_than(version("9"))
    assert write.is_newer_than(version("7"))  # not even the replaced version has been brought
    assert not write.is_newer_than(version("12"))
    assert not write.is_newer_than(version("100"))
    assert not write.is_newer_than(version("7", uid="another"))


def test_resources_whose_gpus_wait_for_the_operator_alone_overtake():
    """A stage that has ended, or a pod that has failed; not one that was reacted to already."""
    stages = [
        {"name": "latents", "state": "Succeeded", "attempt": 1},
        {"name": "train", "state": "Running", "attempt": 2},
    ]
    running = resource("r", observedGeneration=1, conditions=[], stages=stages)
    before = Job("run-latents-1", "j1", "latents", 1, "", "r", complete=True)
    failed = Job("run-train-1", "j2", "train", 1, "", "r", failed="BackoffLimitExceeded")
    job = Job("run-train-2", "j3", "train", 2, "", "r")
    pod = Pod("run-train-2-0", "p1", "train", 2, 0, "Running")
    assert is_high_priority(resource("new"), [], [])
    assert not is_high_priority(running, [before, failed, job], [pod])
    assert is_high_priority(running, [before, replace(job, complete=True)], [pod])
    assert is_high_priority(running, [replace(job, failed="DeadlineExceeded")], [pod])
    assert is_high_priority(running, [job], [replace(pod, phase="Failed")])
    condition = {"type": "Failed", "status": "True", "reason": "Crashed", "message": ""}
    condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    ended = resource("r", observedGeneration=1, conditions=[condition], stages=stages)
    assert not is_high_priority(ended, [failed], [replace(pod, phase="Failed")])


def test_passive_objects_are_created_first():
    old = Delete("Job", "run-latents-1", "u")
    kinds = ("PersistentVolumeClaim", "PodGroup", "Service", "Job")
    claim, group, service, job = (Apply({"kind": kind}) for kind in kinds)
    assert split_passive([old, claim, group, service, job]) == ([group, service], [old, claim, job])
    assert split_passive([claim, service, job, job]) == ([service], [claim, job, job])
    assert split_passive([]) == ([], [])


def test_a_second_resync_request_keeps_the_first_time():
    controller, keys = Controller(None, WatchCache()), [("ns", f"run-{n}") for n in range(80)]
    for _ in range(2):
        for key in keys:
            controller.resync_later(key)
    due = controller.queue._due
    assert due.keys() == set(keys)
    between = (max(due.values()) - min(due.values())) / (len(keys) - 1)
    assert abs(between - 1 / RESYNCS_PER_SECOND) < 0.001
