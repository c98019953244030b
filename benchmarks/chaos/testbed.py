"""Provide the system under test: a control plane, a proxy before it, and two operators.

The testbed does what a Deployment does: it restarts an operator that exits, and kills one whose
liveness probe has failed three times. It records which exits were expected.
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
from control_plane.kueue import Kueue
from operators import Operator, grant

from . import ROOT

__all__ = ["OPERATOR_NAMESPACE", "Deployment", "ErrorBurst", "Testbed"]

OPERATOR_NAMESPACE = "chaos-operator"  # of the operator's service account and lease
FLAGS = (
    *("--own-namespace", OPERATOR_NAMESPACE),
    *("--poll-seconds", "10", "--termination-bound-seconds", "3"),
)
PROBE_PERIOD, PROBE_FAILURES = 20.0, 3  # as in the chart's livenessProbe
LEASE_LOST = ("the process ends", "may no longer")  # how the log of a lost lease ends


class Deployment:
    """Two operator processes, one of which leads."""

    def __init__(self, kubeconfig: Path, folder: Path, lease: float) -> None:
        self.clocks = [folder / f"clock-{number}" for number in range(2)]
        self.operators = [
            Operator(
                kubeconfig,
                *FLAGS,
                "--lease-seconds",
                str(lease),
                log=folder / f"operator-{number}.log",
                module="benchmarks.chaos.jumping_clock",
                environment={"CHAOS_CLOCK": str(clock), "PYTHONPATH": str(ROOT)},
            )
            for number, clock in enumerate(self.clocks)
        ]
        self.exits: Counter[str] = Counter()
        self.crashes: list[str] = []  # unexpected exits
        self._expected: set[int] = set()  # PIDs of processes that a fault has ended
        self._log_read = dict.fromkeys(self.operators, 0)  # characters of each log read so far
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
                self._record_exit(operator)
                failures, probed, started = 0, time.monotonic(), False
                operator.launch()
            elif time.monotonic() - probed >= PROBE_PERIOD:
                probed = time.monotonic()
                healthy = operator.probe("healthz")[0] == 200
                started = started or healthy  # on a busy machine it takes a minute to start
                failures = failures + 1 if started and not healthy else 0
                if failures == PROBE_FAILURES:
                    self.exits["liveness probe"] += 1
                    self.signal(operator, signal.SIGKILL)

    def _record_exit(self, operator: Operator) -> None:
        assert operator.process is not None
        code, log = operator.process.returncode, operator.log.read_text()
        last, self._log_read[operator] = log[self._log_read[operator] :], len(log)
        if operator.process.pid in self._expected:
            self.exits["killed or terminated"] += 1
        elif code == 1 and any(words in last for words in LEASE_LOST):
            self.exits["lost its lease"] += 1
        else:
            self.exits["crashed"] += 1
            self.crashes.append(f"exit code {code}: {last[-1500:]}")

    def signal(self, operator: Operator, number: signal.Signals) -> None:
        """Send a signal; an exit that it causes is expected."""
        if operator.process is not None and operator.alive:
            if number in (signal.SIGKILL, signal.SIGTERM):
                self._expected.add(operator.process.pid)
            operator.process.send_signal(number)

    def leader(self) -> Operator | None:
        """Return the operator that leads; None if none does."""
        return next((o for o in self.operators if o.probe("readyz")[1] == "leading"), None)

    def set_clock(self, number: int, seconds: float) -> None:
        """Offset an operator's clock by ``seconds``."""
        partial = self.clocks[number].with_suffix(".new")
        partial.write_text(str(seconds))
        partial.rename(self.clocks[number])


@dataclass(frozen=True)
class ErrorBurst:
    """Errors instead of responses for a ``share`` of the operators' requests that ``matches``."""

    answers: tuple[str, ...]
    share: float
    matches: Callable[[str, str], bool]
    rng: random.Random


class Testbed:
    """A cluster with operators behind a proxy; use as a context manager.

    ``lease``: the operators' lease duration in seconds; ``kueue``: what admits the GPU stages.
    """

    __test__ = False  # not a test class, whatever pytest reads into its name

    def __init__(
        self, cluster: Cluster, folder: Path, lease: float = 15, kueue: Kueue | None = None
    ) -> None:
        self.cluster, self.folder, self._lease, self.kueue = cluster, folder, lease, kueue
        self.control_plane = threading.Lock()  # one fault of API server or etcd at a time
        self.requests: Counter[str] = Counter()
        self._bursts: list[ErrorBurst] = []

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        api = grant(self.cluster, OPERATOR_NAMESPACE)
        self.proxy = self._stack.enter_context(Proxy(api, self._answer))
        kubeconfig = self.folder / "kubeconfig"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(yaml.safe_dump(self.proxy.kubeconfig()))
        self.deployment = self._stack.enter_context(
            Deployment(kubeconfig, self.folder, self._lease)
        )
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def _answer(self, method: str, path: str) -> str | None:
        for burst in tuple(self._bursts):
            if burst.matches(method, path) and burst.rng.random() < burst.share:
                answer = burst.rng.choice(burst.answers)
                self.requests[answer] += 1
                return answer
        self.requests["forwarded"] += 1
        return None

    @contextlib.contextmanager
    def errors(self, burst: ErrorBurst) -> Iterator[None]:
        """Answer matching requests with the burst's errors inside the block."""
        self._bursts.append(burst)
        try:
            yield
        finally:
            self._bursts.remove(burst)

    def logs(self) -> str:
        """Return both operators' logs."""
        return "\n".join(
            f"--- {os.fspath(o.log)}\n{o.log.read_text()}" for o in self.deployment.operators
        )
