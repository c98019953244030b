"""Faults of the operator's processes: kills, pauses, stolen leases and wrong clocks."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

from operators import Operator
from video2world_operator.kube.leader_election import NAME as LEASE

from .schedule import Fault
from .target import Target
from .testbed import OPERATOR_NAMESPACE

__all__ = ["FAULTS"]


def _kill(target: Target, fault: Fault, rng: random.Random) -> str:
    deployment = target.testbed.deployment
    leader = deployment.leader()
    chosen = {
        "leader": [o for o in deployment.operators if o is leader],
        "standby": [o for o in deployment.operators if o is not leader],
        "both": list(deployment.operators),
    }[fault.options["target"]]
    for operator in chosen:
        deployment.signal(operator, signal.SIGKILL)
    return f"{len(chosen)} killed"


def _with_leader(target: Target, act: Callable[[Operator], None]) -> str:
    leader = target.testbed.deployment.leader()
    if leader is None:
        return "no leader"
    act(leader)
    return "done"


def _freeze_leader(target: Target, fault: Fault, rng: random.Random) -> str:
    deployment = target.testbed.deployment

    def freeze(leader: Operator) -> None:
        deployment.signal(leader, signal.SIGSTOP)
        time.sleep(fault.seconds)
        deployment.signal(leader, signal.SIGCONT)

    return _with_leader(target, freeze)


def _terminate_leader(target: Target, fault: Fault, rng: random.Random) -> str:
    deployment = target.testbed.deployment
    return _with_leader(target, lambda leader: deployment.signal(leader, signal.SIGTERM))


def _steal_lease(target: Target, fault: Fault, rng: random.Random) -> str:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/{LEASE}"
    lease = target.api.get(path)
    lease["spec"]["holderIdentity"] = "usurper"
    target.api.request("PUT", path, lease)
    return "done"


def _offset_clocks(target: Target, fault: Fault, rng: random.Random) -> str:
    which = rng.choice([[0], [1], [0, 1]])
    for number in which:
        target.testbed.deployment.set_clock(number, fault.options["by"])
    time.sleep(fault.seconds)
    for number in which:
        target.testbed.deployment.set_clock(number, 0)
    return f"{len(which)} clocks"


FAULTS: dict[str, Callable[[Target, Fault, random.Random], str]] = {
    "operator killed": _kill,
    "leader frozen": _freeze_leader,
    "leader terminated": _terminate_leader,
    "lease stolen": _steal_lease,
    "clock jumps": _offset_clocks,
}
