"""Carries the faults of a schedule out; what it cannot carry out, it says."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from control_plane import ApiError
from operators import Operator
from video2world_operator.api.constants import GROUP, PLURAL, VERSION
from video2world_operator.kube.leader_election import NAME as LEASE

from .arena import OWN, Arena, Storm
from .eye import Eye
from .invariants import RESOURCES
from .schedule import Body, Fault, edit

__all__ = ["Hand"]

LOST = {"key": "chaos.video2world.dev/lost", "effect": "NoExecute"}


class Hand:
    """Does to ``arena`` and to the resources of ``namespace`` what a fault says."""

    def __init__(self, arena: Arena, eye: Eye, namespace: str, bodies: Sequence[Body]) -> None:
        self.arena, self.eye, self.namespace = arena, eye, namespace
        self.cluster, self.api = arena.cluster, arena.cluster.admin
        self.resources = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"
        self._bodies = {body["metadata"]["name"]: body for body in bodies}
        self._silent: list[str] = []  # nodes that stay so until the trial's end
        self._nodes = threading.Lock()
        self._made = 0

    def do(self, fault: Fault) -> str:
        """Carry it out, and return when it is over; what happened, for people."""
        rng = random.Random(fault.seed)
        return _DEEDS[fault.kind](self, fault, rng)

    # ------------------------------------------------------------------ the operators

    def _killed(self, fault: Fault, rng: random.Random) -> str:
        deployment = self.arena.deployment
        leader = deployment.leader()
        chosen = {
            "leader": [o for o in deployment.operators if o is leader],
            "standby": [o for o in deployment.operators if o is not leader],
            "both": list(deployment.operators),
        }[fault.how["who"]]
        for operator in chosen:
            deployment.signal(operator, signal.SIGKILL)
        return f"{len(chosen)} killed"

    def _leader(self, act: Callable[[Operator], None]) -> str:
        leader = self.arena.deployment.leader()
        if leader is None:
            return "nobody leads"
        act(leader)
        return "done"

    def _frozen(self, fault: Fault, rng: random.Random) -> str:
        deployment = self.arena.deployment

        def freeze(leader: Operator) -> None:
            deployment.signal(leader, signal.SIGSTOP)
            time.sleep(fault.seconds)
            deployment.signal(leader, signal.SIGCONT)

        return self._leader(freeze)

    def _told_to_end(self, fault: Fault, rng: random.Random) -> str:
        return self._leader(lambda one: self.arena.deployment.signal(one, signal.SIGTERM))

    def _usurped(self, fault: Fault, rng: random.Random) -> str:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{OWN}/leases/{LEASE}"
        lease = self.api.get(path)
        lease["spec"]["holderIdentity"] = "usurper"
        self.api.request("PUT", path, lease)
        return "done"

    def _clock(self, fault: Fault, rng: random.Random) -> str:
        which = rng.choice([[0], [1], [0, 1]])
        for number in which:
            self.arena.deployment.set_clock(number, fault.how["by"])
        time.sleep(fault.seconds)
        for number in which:
            self.arena.deployment.set_clock(number, 0)
        return f"{len(which)} clocks"

    # ------------------------------------------------------------------ the control plane

    def _api_server(self, fault: Fault, rng: random.Random) -> str:
        with self.arena.control_plane:
            self.cluster.stop_api_server(grace=0)
            time.sleep(fault.seconds)
            self.cluster.start_api_server()
        return "done"

    def _etcd(self, fault: Fault, rng: random.Random) -> str:
        with self.arena.control_plane, self.cluster.etcd_paused():
            time.sleep(fault.seconds)
        return "done"

    def _cut(self, fault: Fault, rng: random.Random) -> str:
        until = time.monotonic() + fault.seconds
        while time.monotonic() < until:
            self.arena.proxy.cut_watches()
            time.sleep(0.4)
        return "done"

    def _refused(self, fault: Fault, rng: random.Random) -> str:
        ending = f"/{fault.how['kind']}"
        answers = rng.choice([("cut",), ("500",), ("429",), ("410",)])
        storm = Storm(
            answers, 1.0, lambda method, path: method == "WATCH" and path.endswith(ending), rng
        )
        with self.arena.storm(storm):
            self.arena.proxy.cut_watches()
            time.sleep(fault.seconds)
        return f"answered {answers[0]}"

    def _storm(self, fault: Fault, rng: random.Random) -> str:
        answers = tuple(fault.how["answers"])
        with self.arena.storm(Storm(answers, fault.how["share"], lambda method, path: True, rng)):
            time.sleep(fault.seconds)
        return "done"

    # ------------------------------------------------------------------ pods, Jobs and nodes

    def _chosen(self, found: list[Body], fault: Fault, rng: random.Random) -> list[str]:
        names = [one["metadata"]["name"] for one in found]
        return sorted(rng.sample(names, round(fault.how["share"] * len(names))))

    def _running(self) -> list[Body]:
        return [
            pod
            for pod in self.eye.objects(f"pods/{self.namespace}/")
            if pod.get("status", {}).get("phase") == "Running"
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def _each(self, names: Sequence[str], act: Callable[[str], Any]) -> str:
        """Do it to each; some may be gone by now, or the server may be away."""
        done = 0
        for name in names:
            with contextlib.suppress(ApiError, OSError):
                act(name)
                done += 1
        return f"{done} of {len(names)}"

    def _pods_deleted(self, fault: Fault, rng: random.Random) -> str:
        grace = fault.how["grace"]
        options = None if grace is None else {"gracePeriodSeconds": grace}
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        return self._each(
            self._chosen(self._running(), fault, rng),
            lambda name: self.api.delete(f"{path}/{name}", options),
        )

    def _jobs_deleted(self, fault: Fault, rng: random.Random) -> str:
        jobs = self.eye.objects(f"jobs/{self.namespace}/")
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs"
        how = {"propagationPolicy": rng.choice(["Background", "Foreground"])}
        return self._each(
            self._chosen(jobs, fault, rng), lambda name: self.api.delete(f"{path}/{name}", how)
        )

    def _crash(self, fault: Fault, rng: random.Random) -> str:
        def end(name: str) -> None:
            self.cluster.finish_pod(self.namespace, name, rng.choice(fault.how["codes"]))

        return self._each(self._chosen(self._running(), fault, rng), end)

    def _ready_nodes(self) -> list[str]:
        nodes = self.api.get("/api/v1/nodes")["items"]
        return sorted(n["metadata"]["name"] for n in nodes if not n["spec"].get("taints"))

    def _silence(self, fault: Fault, rng: random.Random) -> str:
        """Fake kubelets fall silent, and their pods are evicted; some for good."""
        with self._nodes:
            nodes = self._ready_nodes()
            names = rng.sample(nodes, max(1, round(fault.how["share"] * (len(nodes) - 1))))
            for_good = names[:1] if rng.random() < 0.3 and not self._silent else []
            self._silent += for_good
            for name in names:
                self.cluster.lose_node(name)
                path = f"/api/v1/nodes/{name}"
                self.api.patch(path, {"spec": {"taints": [LOST]}}, "strategic")
        time.sleep(fault.seconds)
        for name in set(names) - set(for_good):
            _insist(lambda name=name: self._bring_back(name))
        return f"{len(names)}, {len(for_good)} for good"

    def _bring_back(self, name: str) -> None:
        self.cluster.find_node(name)
        # a list of taints is one value: no single one can be taken out
        self.api.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, "strategic")

    def _vanish(self, fault: Fault, rng: random.Random) -> str:
        """A node's object goes, and with it its pods in time; later there is another one."""
        with self._nodes:
            nodes = self._ready_nodes()
            if len(nodes) < 3:
                return "too few nodes"
            name = rng.choice(nodes)
            self.api.delete(f"/api/v1/nodes/{name}")
            self._made += 1
            number = self._made
        time.sleep(fault.seconds)
        _insist(lambda: self.cluster.add_node(f"{self.namespace}-{number}"))
        return f"{name}"

    # ------------------------------------------------------------------ users

    def _resources(self, fault: Fault, rng: random.Random) -> list[Body]:
        found = self.eye.objects(f"{RESOURCES}{self.namespace}/")
        names = self._chosen(found, fault, rng)
        return [one for one in found if one["metadata"]["name"] in names]

    def _patch_all(self, changes: dict[str, Body]) -> str:
        return self._each(
            list(changes),
            lambda name: self.api.patch(f"{self.resources}/{name}", {"spec": changes[name]}),
        )

    def _suspend(self, fault: Fault, rng: random.Random) -> str:
        found = self._resources(fault, rng)
        return self._patch_all({one["metadata"]["name"]: {"suspend": True} for one in found})

    def _resume(self, fault: Fault, rng: random.Random) -> str:
        found = [one for one in self._resources(fault, rng) if one["spec"].get("suspend")]
        return self._patch_all({one["metadata"]["name"]: {"suspend": False} for one in found})

    def _edit(self, fault: Fault, rng: random.Random) -> str:
        found = self._resources(fault, rng)
        return self._patch_all({one["metadata"]["name"]: edit(rng, one) for one in found})

    def _delete(self, fault: Fault, rng: random.Random) -> str:
        """Some are deleted; half of them are made again under the same name."""
        names = [one["metadata"]["name"] for one in self._resources(fault, rng)]

        def act(name: str) -> None:
            self.api.delete(f"{self.resources}/{name}")
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, 0.2))
                self.api.post(self.resources, self._bodies[name])

        return self._each(names, act)

    # ------------------------------------------------------------------ the end of it all

    def calm(self) -> None:
        """Nothing goes wrong any more, but nodes that are lost for good stay so."""
        everyone = Fault(0, "users resume", how={"share": 1.0})

        def resumed() -> None:
            done, _, all_of_them = self._resume(everyone, random.Random(0)).partition(" of ")
            if done != all_of_them:
                raise OSError("not all could be resumed")

        _insist(resumed)

    def tidy(self) -> None:
        """As many nodes as before, for the next trial."""
        while self._silent:
            name = self._silent.pop()
            _insist(lambda name=name: self._bring_back(name))


def _insist(act: Callable[[], Any], seconds: float = 60) -> None:
    """Until it works: what ends a fault may meet another one."""
    until = time.monotonic() + seconds
    while True:
        try:
            act()
            return
        except (ApiError, OSError):
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


_DEEDS: dict[str, Callable[[Hand, Fault, random.Random], str]] = {
    "operator killed": Hand._killed,
    "leader frozen": Hand._frozen,
    "leader told to end": Hand._told_to_end,
    "lease taken away": Hand._usurped,
    "API server restarted": Hand._api_server,
    "etcd paused": Hand._etcd,
    "watches cut": Hand._cut,
    "watches refused": Hand._refused,
    "storm of refusals": Hand._storm,
    "pods deleted": Hand._pods_deleted,
    "Jobs deleted": Hand._jobs_deleted,
    "workers crash": Hand._crash,
    "nodes fall silent": Hand._silence,
    "node vanishes": Hand._vanish,
    "clock jumps": Hand._clock,
    "users suspend": Hand._suspend,
    "users resume": Hand._resume,
    "users edit": Hand._edit,
    "users delete": Hand._delete,
}
