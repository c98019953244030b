"""Run the pods of a Job as local processes and collect what they print."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from video2world_common.progress_events import Lines
from video2world_operator.local import pod_init
from video2world_operator.local.gpu_shares import gpu_shares
from video2world_operator.local.pod_environment import PodEnvironment, job_of, pod_count
from video2world_operator.local.pod_process import ProcessSpec, process_spec
from video2world_operator.local.state import StateFolder
from video2world_operator.plan.stage import Manifest

__all__ = ["LocalPod", "PodGroup"]

READ_BYTES = 1 << 16
JOIN_SECONDS = 5.0  # for a killed pod's last output


@dataclass
class LocalPod:
    """A started pod; ``code`` is its exit code once it has ended."""

    name: str
    log: Path
    child: subprocess.Popen[bytes]
    started: datetime
    reader: threading.Thread = field(init=False)
    code: int | None = None


class PodGroup:
    """The pods of one Job; a thread for each copies its output to its log and to one queue."""

    def __init__(
        self,
        stage: str,
        attempt: int,
        manifests: Sequence[Manifest],
        state: StateFolder,
        gpus: Sequence[str] = (),
    ) -> None:
        """``gpus`` are divided between the pods; without them, all see every GPU."""
        self.stage, self.attempt = stage, attempt
        self.size = pod_count(job_of(manifests))
        self.pods: list[LocalPod] = []  # those started so far
        self.running = 0
        self._manifests, self._state, self._gpus = manifests, state, gpus
        self._lines: queue.SimpleQueue[tuple[LocalPod, bytes | None]] = queue.SimpleQueue()

    def start(self) -> None:
        """Start all pods; on an error, those before it keep running.

        Raises:
            UnsupportedManifest: a pod needs something that only a cluster has.
            OSError: a folder or log cannot be created, or a process not started.
        """
        environment = PodEnvironment.of(self.stage, self._manifests, self._state)
        pod = job_of(self._manifests)["spec"]["template"]["spec"]
        shares = gpu_shares(pod, self.size, self._gpus)
        for index in range(self.size):
            own = {"CUDA_VISIBLE_DEVICES": shares[index]} if shares else {}
            self._start_pod(index, process_spec(pod, environment, index=index), own)

    def next_line(self, timeout: float) -> tuple[LocalPod, bytes | None] | None:
        """Wait at most ``timeout`` seconds for a line of a pod; None if there is none.

        A pod whose line is None has ended: its exit code is set, and it no longer counts as
        running.
        """
        try:
            pod, line = self._lines.get(timeout=timeout)
        except queue.Empty:
            return None
        if line is None:
            self.running -= 1
            pod.code = pod.child.wait()
        return pod, line

    def signal(self, number: int) -> None:
        """Send a signal of :mod:`.pod_init` to the pods that still run."""
        for pod in self.pods:
            if pod.child.poll() is None:
                pod.child.send_signal(number)

    def kill(self) -> None:
        """Kill all pods and wait until they are gone and their output is written."""
        self.signal(pod_init.KILL)
        for pod in self.pods:
            pod.child.wait()
            pod.reader.join(timeout=JOIN_SECONDS)

    def _start_pod(self, index: int, spec: ProcessSpec, own: Mapping[str, str]) -> None:
        env = {**spec.env, **own}
        if self.size > 1:
            # The pods share this machine; without a limit, each would use all of its cores.
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.size)))
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        spec.cwd.mkdir(parents=True, exist_ok=True)
        log = self._state.log(self.stage, self.attempt, index)
        log.parent.mkdir(parents=True, exist_ok=True)
        init = [sys.executable, "-I", "-S", str(Path(pod_init.__file__))]
        child = subprocess.Popen(
            [*init, str(spec.grace_seconds), str(os.getpid()), *spec.argv],
            env=env,
            cwd=spec.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        name = f"{self.stage}-{index}" if self.size > 1 else self.stage
        pod = LocalPod(name, log, child, datetime.now(UTC))
        assert child.stdout is not None
        pod.reader = threading.Thread(target=self._read, args=(pod, child.stdout), daemon=True)
        pod.reader.start()
        self.pods.append(pod)
        self.running += 1

    def _read(self, pod: LocalPod, stream: IO[bytes]) -> None:
        """Copy a pod's output to its log and, line by line, to the queue (in its own thread)."""
        lines = Lines()
        with pod.log.open("wb", buffering=0) as log:
            while data := os.read(stream.fileno(), READ_BYTES):
                with contextlib.suppress(OSError):  # a full disk must not stop the worker
                    log.write(data)
                for line in lines.feed(data):
                    self._lines.put((pod, line))
        for line in lines.end():
            self._lines.put((pod, line))
        self._lines.put((pod, None))
