"""Where trials take place: a control plane, a proxy before it, and two operators that are kept up.

What a Deployment's pods would have is done here: an operator that ends is started again, one whose
liveness probe fails three times is killed first. Which of its ends are in order is noted.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml

from api_proxy import Proxy
from control_plane import Cluster
from operators import Operator, grant

from . import ROOT

__all__ = ["Arena", "Deployment", "Storm"]

OWN = "chaos-operator"  # namespace of the operator's account and lease
FLAGS = ("--own-namespace", OWN, "--poll-seconds", "10", "--termination-bound-seconds", "3")
PROBE_EVERY, PROBES = 20.0, 3  # as the chart's livenessProbe has it
IN_ORDER = ("the process ends", "may no longer")  # what the log of a lost lease ends with


class Deployment:
    """Two operators, of which one leads."""

    def __init__(self, kubeconfig: Path, folder: Path, lease: float) -> None:
        self.clocks = [folder / f"clock-{number}" for number in range(2)]
        self.operators = [
            Operator(
                kubeconfig,
                *FLAGS,
                "--lease-seconds",
                str(lease),
                log=folder / f"operator-{number}.log",
                module="benchmarks.chaos.clock",
                environment={"CHAOS_CLOCK": str(clock), "PYTHONPATH": str(ROOT)},
            )
            for number, clock in enumerate(self.clocks)
        ]
        self.ends: Counter[str] = Counter()
        self.crashes: list[str] = []  # ends that nobody caused
        self._excused: set[int] = set()  # processes that were asked to end
        self._read = dict.fromkeys(self.operators, 0)  # how far its log was looked at
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        for operator in self.operators:
            operator.launch()
        self._threads = [
            threading.Thread(target=self._keep, args=(one,), daemon=True) for one in self.operators
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(30)
        for operator in self.operators:
            operator.kill()

    def _keep(self, operator: Operator) -> None:
        failures, probed, started = 0, time.monotonic(), False
        while not self._closed.wait(0.3):
            if not operator.alive:
                self._account(operator)
                failures, probed, started = 0, time.monotonic(), False
                operator.launch()
            elif time.monotonic() - probed >= PROBE_EVERY:
                probed = time.monotonic()
                well = operator.probe("healthz")[0] == 200
                started = started or well  # on a busy machine it takes a minute to start
                failures = failures + 1 if started and not well else 0
                if failures == PROBES:
                    self.ends["liveness probe"] += 1
                    self.signal(operator, signal.SIGKILL)

    def _account(self, operator: Operator) -> None:
        assert operator.process is not None
        code, log = operator.process.returncode, operator.log.read_text()
        last, self._read[operator] = log[self._read[operator] :], len(log)
        if operator.process.pid in self._excused:
            self.ends["killed or told to end"] += 1
        elif code == 1 and any(words in last for words in IN_ORDER):
            self.ends["lost its lease"] += 1
        else:
            self.ends["crashed"] += 1
            self.crashes.append(f"exit code {code}: {last[-1500:]}")

    def signal(self, operator: Operator, number: signal.Signals) -> None:
        """Send a signal; an end that it causes is in order."""
        if operator.process is not None and operator.alive:
            if number in (signal.SIGKILL, signal.SIGTERM):
                self._excused.add(operator.process.pid)
            operator.process.send_signal(number)

    def leader(self) -> Operator | None:
        """The one that leads, if one does."""
        return next((o for o in self.operators if o.probe("readyz")[1] == "leading"), None)

    def set_clock(self, number: int, seconds: float) -> None:
        """Let an operator's clock be wrong by so much."""
        aside = self.clocks[number].with_suffix(".new")
        aside.write_text(str(seconds))
        aside.rename(self.clocks[number])


@dataclass(frozen=True)
class Storm:
    """How requests of the operators are answered: a ``share`` of those that it ``meets``."""

    answers: tuple[str, ...]
    share: float
    meets: Callable[[str, str], bool]
    rng: random.Random


class Arena:
    """A cluster with operators behind a proxy; use as a context manager.

    ``lease``: for so many seconds an operator leads without news of it.
    """

    def __init__(self, cluster: Cluster, folder: Path, lease: float = 15) -> None:
        self.cluster, self.folder, self._lease = cluster, folder, lease
        self.storms: list[Storm] = []
        self.control_plane = threading.Lock()  # one fault of API server or etcd at a time
        self.requests: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        api = grant(self.cluster, OWN)
        self.proxy = self._stack.enter_context(Proxy(api, self._judge))
        kubeconfig = self.folder / "kubeconfig"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(yaml.safe_dump(self.proxy.kubeconfig()))
        self.deployment = self._stack.enter_context(
            Deployment(kubeconfig, self.folder, self._lease)
        )
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def _judge(self, method: str, path: str) -> str | None:
        for storm in tuple(self.storms):
            if storm.meets(method, path) and storm.rng.random() < storm.share:
                answer = storm.rng.choice(storm.answers)
                self.requests[answer] += 1
                return answer
        self.requests["forwarded"] += 1
        return None

    @contextlib.contextmanager
    def storm(self, storm: Storm) -> Iterator[None]:
        """While inside, requests are answered so."""
        self.storms.append(storm)
        try:
            yield
        finally:
            self.storms.remove(storm)

    def logs(self) -> str:
        """What the operators have said."""
        return "\n".join(
            f"--- {os.fspath(o.log)}\n{o.log.read_text()}" for o in self.deployment.operators
        )
