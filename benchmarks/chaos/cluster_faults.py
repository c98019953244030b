"""Faults of the cluster: API server, etcd, watches, pods, Jobs and nodes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

from .schedule import Body, Fault
from .target import Target, choose, for_each, retry
from .testbed import ErrorBurst

__all__ = ["FAULTS", "restore_node"]

LOST = {"key": "chaos.video2world.dev/lost", "effect": "NoExecute"}


def _restart_api_server(target: Target, fault: Fault, rng: random.Random) -> str:
    with target.testbed.control_plane:
        target.cluster.stop_api_server(grace=0)
        time.sleep(fault.seconds)
        target.cluster.start_api_server()
    return "done"


def _pause_etcd(target: Target, fault: Fault, rng: random.Random) -> str:
    with target.testbed.control_plane, target.cluster.etcd_paused():
        time.sleep(fault.seconds)
    return "done"


def _cut_watches(target: Target, fault: Fault, rng: random.Random) -> str:
    until = time.monotonic() + fault.seconds
    while time.monotonic() < until:
        target.testbed.proxy.cut_watches()
        time.sleep(0.4)
    return "done"


def _refuse_watches(target: Target, fault: Fault, rng: random.Random) -> str:
    ending = f"/{fault.options['kind']}"
    answers = rng.choice([("cut",), ("500",), ("429",), ("410",)])
    burst = ErrorBurst(
        answers, 1.0, lambda method, path: method == "WATCH" and path.endswith(ending), rng
    )
    with target.testbed.errors(burst):
        target.testbed.proxy.cut_watches()
        time.sleep(fault.seconds)
    return f"answered {answers[0]}"


def _return_errors(target: Target, fault: Fault, rng: random.Random) -> str:
    answers = tuple(fault.options["answers"])
    burst = ErrorBurst(answers, fault.options["share"], lambda method, path: True, rng)
    with target.testbed.errors(burst):
        time.sleep(fault.seconds)
    return "done"


def _running_pods(target: Target) -> list[Body]:
    return [
        pod
        for pod in target.watcher.objects(f"pods/{target.namespace}/")
        if pod.get("status", {}).get("phase") == "Running"
        and "deletionTimestamp" not in pod["metadata"]
    ]


def _delete_pods(target: Target, fault: Fault, rng: random.Random) -> str:
    grace = fault.options["grace"]
    options = None if grace is None else {"gracePeriodSeconds": grace}
    path = f"/api/v1/namespaces/{target.namespace}/pods"
    return for_each(
        choose(_running_pods(target), fault, rng),
        lambda name: target.api.delete(f"{path}/{name}", options),
    )


def _delete_jobs(target: Target, fault: Fault, rng: random.Random) -> str:
    jobs = target.watcher.objects(f"jobs/{target.namespace}/")
    path = f"/apis/batch/v1/namespaces/{target.namespace}/jobs"
    options = {"propagationPolicy": rng.choice(["Background", "Foreground"])}
    return for_each(
        choose(jobs, fault, rng), lambda name: target.api.delete(f"{path}/{name}", options)
    )


def _crash_workers(target: Target, fault: Fault, rng: random.Random) -> str:
    def crash(name: str) -> None:
        target.cluster.finish_pod(target.namespace, name, rng.choice(fault.options["codes"]))

    return for_each(choose(_running_pods(target), fault, rng), crash)


def _ready_nodes(target: Target) -> list[str]:
    nodes = target.api.get("/api/v1/nodes")["items"]
    return sorted(n["metadata"]["name"] for n in nodes if not n["spec"].get("taints"))


def _lose_nodes(target: Target, fault: Fault, rng: random.Random) -> str:
    """Stop some kubelets and evict their pods; one of the nodes may stay lost."""
    with target.nodes_lock:
        nodes = _ready_nodes(target)
        names = rng.sample(nodes, max(1, round(fault.options["share"] * (len(nodes) - 1))))
        for_good = names[:1] if rng.random() < 0.3 and not target.lost_nodes else []
        target.lost_nodes += for_good
        for name in names:
            target.cluster.lose_node(name)
            path = f"/api/v1/nodes/{name}"
            target.api.patch(path, {"spec": {"taints": [LOST]}}, "strategic")
    time.sleep(fault.seconds)
    for name in set(names) - set(for_good):
        retry(partial(restore_node, target, name))
    return f"{len(names)}, {len(for_good)} for good"


def restore_node(target: Target, name: str) -> None:
    """Start the node's kubelet again and remove its taints."""
    target.cluster.find_node(name)
    # a strategic patch cannot remove a single taint from the list
    target.api.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, "strategic")


def _delete_node(target: Target, fault: Fault, rng: random.Random) -> str:
    """Delete a node, whose pods are then collected, and later add another one."""
    with target.nodes_lock:
        nodes = _ready_nodes(target)
        if len(nodes) < 3:
            return "too few nodes"
        name = rng.choice(nodes)
        target.api.delete(f"/api/v1/nodes/{name}")
        target.nodes_added += 1
        number = target.nodes_added
    time.sleep(fault.seconds)
    retry(lambda: target.cluster.add_node(f"{target.namespace}-{number}"))
    return name


FAULTS: dict[str, Callable[[Target, Fault, random.Random], str]] = {
    "API server restarted": _restart_api_server,
    "etcd paused": _pause_etcd,
    "watches cut": _cut_watches,
    "watches refused": _refuse_watches,
    "burst of API errors": _return_errors,
    "pods deleted": _delete_pods,
    "Jobs deleted": _delete_jobs,
    "workers crash": _crash_workers,
    "nodes stop responding": _lose_nodes,
    "node vanishes": _delete_node,
}
