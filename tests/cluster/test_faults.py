"""The operator converges despite faults of the API server, and creates nothing twice."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter

import yaml

from api_proxy import FAULTS, Proxy
from operators import Operator, Resource, eventually, grant

STAGES = ["download", "dataset", "embeddings", "latents", "train", "inference"]
QUICK = {"metadata": {"annotations": {"fake.video2world.dev/seconds": "1"}}}
QUICKLY = {stage: {"podTemplate": QUICK} for stage in STAGES}


def flags(namespace):
    return ("--namespaces", namespace, "--own-namespace", namespace)


def written(tmp_path, config):
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def check_done(run, attempts=1, what=str):
    """Check that it succeeded with every Job created once; ``what`` explains a failure."""
    eventually(lambda: run.status.get("phase") == "Succeeded", 150, lambda: (run.status, what()))
    status = run.status
    assert [(e["state"], e["attempt"]) for e in status["stages"]] == [("Succeeded", attempts)] * 6
    names = sorted(j["metadata"]["name"] for j in run.children("jobs"))
    assert names == sorted(f"{run.name}-{stage}-1" for stage in STAGES)
    assert len(run.children("services")) == 1
    assert len(run.children("persistentvolumeclaims")) == 1
    assert status["restarts"] == 0


def test_every_fault_at_every_request_of_a_run(gpu_cluster, gpu_namespace, tmp_path):
    """Resource ``raXbY`` meets a fault at each request N with N % 6 == X, of kind (N // 6 + Y)."""
    api = grant(gpu_cluster, gpu_namespace, [gpu_namespace])
    counts: Counter[str] = Counter()
    met: set[tuple[int, str]] = set()

    def judge(method, path):
        found = re.search(r"/ra(\d)b(\d)\b", path)
        if not found or path.endswith("/log") or "/events/" in path:
            return None
        counts[found[0]] += 1
        number = counts[found[0]]
        if number % 6 != int(found[1]):
            return None
        fault = FAULTS[(number // 6 + int(found[2])) % 6]
        met.add((number, fault))
        return fault

    gpu_cluster.add_volumes(36)
    with Proxy(api, judge, watch_seconds=7) as proxy:
        kubeconfig = written(tmp_path, proxy.kubeconfig())
        log = tmp_path / "log"
        with Operator(kubeconfig, *flags(gpu_namespace), log=log) as operator:
            runs = [
                Resource(gpu_cluster, gpu_namespace, f"ra{a}b{b}").create(
                    stages=QUICKLY, training={"nodes": 1}
                )
                for a in range(6)
                for b in range(6)
            ]
            for run in runs:
                check_done(run, what=operator.tail)
            assert not operator.crashed, operator.tail()
    shortest = min(counts.values())
    assert shortest >= 20
    every = {(n, f) for n in range(1, shortest + 1) for f in FAULTS}
    assert every - met == set()


def test_an_error_that_ends_kopf_s_watch_does_not_end_the_operator(
    gpu_cluster, gpu_namespace, tmp_path
):
    """kopf gives up at a 409 in its watch."""
    api = grant(gpu_cluster, gpu_namespace, [gpu_namespace])
    refused: list[str] = []

    def judge(method, path):
        if len(refused) < 3 and method == "WATCH" and path.endswith("/video2worldposttrains"):
            refused.append(path)
            return "409"
        return None

    with Proxy(api, judge) as proxy:
        kubeconfig = written(tmp_path, proxy.kubeconfig())
        with Operator(kubeconfig, *flags(gpu_namespace), log=tmp_path / "log") as operator:
            eventually(lambda: len(refused) == 3, 60, operator.tail)
            run = Resource(gpu_cluster, gpu_namespace).create(stages=QUICKLY)
            check_done(run, what=operator.tail)
            assert not operator.crashed, operator.tail()
            assert operator.log.read_text().count("injected Conflict; restarted") == 3


def test_an_operator_killed_after_every_write_loses_nothing(gpu_cluster, gpu_namespace, tmp_path):
    """SIGKILL as soon as the API server has made a write, before its answer arrives."""
    api = grant(gpu_cluster, gpu_namespace, [gpu_namespace])
    kills: list[str] = []
    lock = threading.Lock()
    operator: Operator

    def after_write(method, path):
        if not path.endswith("reviews") and "/events/" not in path and "leases" not in path:
            with lock:
                kills.append(f"{method} {path}")
                operator.process.kill()

    with Proxy(api, lambda method, path: None, after_write=after_write) as proxy:
        kubeconfig = written(tmp_path, proxy.kubeconfig())
        lease = ("--lease-seconds", "2")
        operator = Operator(kubeconfig, *flags(gpu_namespace), *lease, log=tmp_path / "log")
        run = Resource(gpu_cluster, gpu_namespace).create(stages=QUICKLY)
        try:
            until = time.monotonic() + 400
            while run.status.get("phase") != "Succeeded":
                assert time.monotonic() < until, (kills, operator.tail())
                if not operator.alive:
                    operator.launch()
                time.sleep(0.1)
        finally:
            operator.kill()
    check_done(run)
    assert len(kills) >= 15


def test_an_api_server_restart_in_the_middle_of_a_run(gpu_cluster, gpu_namespace, tmp_path):
    api = grant(gpu_cluster, gpu_namespace, [gpu_namespace])
    kubeconfig = gpu_cluster.write_kubeconfig(api)
    with Operator(kubeconfig, *flags(gpu_namespace), log=tmp_path / "log") as operator:
        run = Resource(gpu_cluster, gpu_namespace).create(stages=QUICKLY)
        eventually(lambda: run.stage("dataset").get("state") == "Running")
        gpu_cluster.stop_api_server(grace=0)
        time.sleep(3)
        gpu_cluster.start_api_server()

        eventually(lambda: run.status.get("phase") == "Succeeded", 180, operator.tail)
        check_done(run)


def test_worker_events_survive_a_refused_status_write(gpu_cluster, gpu_namespace, tmp_path):
    """A log line is read once: its event must not be lost with the status write that failed."""
    api = grant(gpu_cluster, gpu_namespace, [gpu_namespace])
    armed, refused = threading.Event(), []

    def judge(method, path):
        if armed.is_set() and not refused and (method, path[-11:]) == ("PATCH", "/run/status"):
            refused.append(path)
            return "500"
        return None

    with Proxy(api, judge) as proxy:
        kubeconfig = written(tmp_path, proxy.kubeconfig())
        with Operator(kubeconfig, *flags(gpu_namespace), log=tmp_path / "log"):
            run = Resource(gpu_cluster, gpu_namespace).create()
            lead = run.to_training()[0]
            eventually(lambda: run.stage("train").get("active") == 2, what=lambda: run.status)
            armed.set()
            line = '{"event":"checkpoint","stage":"train","iteration":50,"path":"iter_50.pt"}'
            gpu_cluster.write_pod_log(gpu_namespace, lead, line)
            eventually(lambda: refused)
            reported = eventually(lambda: run.status.get("checkpoint"), what=lambda: run.status)
    assert reported["iteration"] == 50
