"""Kill a training at random moments and compare its weights (``make torture``).

The Tiny model trains on two nodes of this machine (two launchers that meet on loopback, with a
rank each), once undisturbed, and then while ranks and launchers get SIGKILL at moments drawn from
a seed. After each kill, remaining processes are killed, as the operator would do, and the run is
started again. Every checkpoint that counts as complete, and the final weights, are compared bit by
bit with the undisturbed run. Then the same on a volume that fills up, and on one that becomes
read-only (these two mount file systems and need root). Writes ``benchmarks/results/torture.json``
and its part of ``docs/reliability.md``. Kills add up: another run uses the next seed, and an
interrupted run keeps its results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from video2world_common.exit_codes import UserError
from video2world_trainer.checkpoint.folder import CheckpointFolder

from . import reliability
from .host import facts
from .random_run import DATA, TINY, events, write_data

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "torture.json"
NODES, ITERATIONS, EVERY = 2, 24, 2
KEEP = 3  # checkpoints on the volume
GRACE = 8.0  # seconds before the rest of a group is killed, as by the operator


class Broken(Exception):
    """A guarantee of the trainer was violated."""


class Group:
    """A training on all nodes: a launcher with one rank on each."""

    def __init__(self, volume: Path, *, iterations: int, logs: Path | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = [
            "model.size=Tiny",
            "job.name=x",
            f"dataloader_train.dataset.dataset_dir={DATA}",
            f"trainer.max_iter={iterations}",
            f"checkpoint.save_iter={EVERY}",
            "trainer.seed=1",
            f"checkpoint.keep={KEEP}",
            "trainer.logging_iter=1",
            "checkpoint.asynchronous=true",
            "model.config.fsdp_shard_size=2",
        ]
        identity = f"torture-{os.getpid()}-{port}"
        self._mark = f"PET_RDZV_ID={identity}\0".encode()
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PET_NNODES": str(NODES),
            "PET_NPROC_PER_NODE": "1",
            "PET_RDZV_BACKEND": "static",
            "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}",
            "PET_RDZV_ID": identity,
            "PET_MAX_RESTARTS": "0",
        }
        command = ["-m", "video2world_trainer.launch", "-m", "video2world_trainer.train", "--"]
        self.logs = [(logs or volume) / f"node{number}.log" for number in range(NODES)]
        self.launchers = []
        for number, log in enumerate(self.logs):
            with log.open("w") as stream:
                self.launchers.append(
                    subprocess.Popen(
                        [sys.executable, *command, *settings],
                        cwd=volume,
                        env={**environment, "JOB_COMPLETION_INDEX": str(number)},
                        stdout=stream,
                        stderr=stream,
                        start_new_session=True,
                    )
                )

    def processes(self) -> list[int]:
        """Return the live launchers and ranks, including ranks without a launcher."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._mark in (path / "environ").read_bytes():
                    found.append(int(path.name))
        return sorted(found)

    def wait(self, seconds: float) -> list[int | None]:
        """Return exit codes; None for a launcher that still runs after ``seconds``."""
        until = time.monotonic() + seconds
        for one in self.launchers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.wait(max(0.0, until - time.monotonic()))
        return [one.poll() for one in self.launchers]

    def kill_rest(self) -> None:
        """Kill all remaining processes."""
        while left := self.processes():
            for pid in left:
                _kill(pid)
            time.sleep(0.05)
            self.wait(0)  # reap zombies

    def end(self, seconds: float) -> list[int | None]:
        """Wait as :meth:`wait` does, then kill the rest."""
        codes = self.wait(seconds)
        self.kill_rest()
        return codes

    def reported(self) -> list[dict[str, Any]]:
        """Return the events of all nodes."""
        return [one for path in self.logs for one in events(path.read_text().splitlines())]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _folder(volume: Path) -> CheckpointFolder:
    return CheckpointFolder(volume / "checkpoints/posttraining/video2world/x/checkpoints")


def _weights(folder: CheckpointFolder, iteration: int) -> dict[str, torch.Tensor]:
    found = torch.load(folder.path("model", iteration), map_location="cpu", weights_only=True)
    return {name: one for name, one in found.items() if isinstance(one, torch.Tensor)}


def _check(volume: Path, reference: dict[int, dict[str, torch.Tensor]]) -> int:
    """Return the newest complete checkpoint after comparing it with the undisturbed run.

    Raises:
        Broken: their weights differ.
    """
    folder = _folder(volume)
    iteration = folder.latest_complete()
    if iteration is None:
        return 0
    found, expected = _weights(folder, iteration), reference[iteration]
    if found.keys() != expected.keys():
        raise Broken(f"iteration {iteration}: other tensors than the undisturbed run's")
    for name, one in found.items():
        if not torch.equal(one, expected[name]):
            raise Broken(f"iteration {iteration}: {name} differs from the undisturbed run")
    return iteration


def undisturbed(volume: Path) -> tuple[dict[int, dict[str, torch.Tensor]], float]:
    """Train without faults; return the weights of every checkpoint, and the seconds."""
    started = time.monotonic()
    reference: dict[int, dict[str, torch.Tensor]] = {}
    group = Group(volume, iterations=ITERATIONS)
    folder = _folder(volume)
    while any(one.poll() is None for one in group.launchers):
        _collect(folder, reference)
        time.sleep(0.05)
    _collect(folder, reference)
    if group.wait(0) != [0] * NODES or set(reference) != set(range(EVERY, ITERATIONS + 1, EVERY)):
        raise Broken(f"the undisturbed run: {group.wait(0)}, checkpoints {sorted(reference)}")
    return reference, time.monotonic() - started


def _collect(folder: CheckpointFolder, reference: dict[int, dict[str, torch.Tensor]]) -> None:
    for iteration in folder.iterations():
        if (
            iteration not in reference
            and (folder.folder / f"trainer/iter_{iteration:09d}.json").exists()
        ):
            reference[iteration] = _weights(folder, iteration)


def killed(
    volume: Path,
    kills: int,
    seed: int,
    log: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Kill and resume ``kills`` times; pass the figures to ``keep`` after each."""
    write_data(volume / "reference", TINY)
    reference, seconds = undisturbed(volume / "reference")
    log(f"undisturbed: {seconds:.1f} s, {len(reference)} checkpoints")
    drawn = random.Random(seed)
    counts: Counter[str] = Counter()
    losses: list[int] = []
    work, done, runs = volume / "work", 0, 0
    write_data(work, TINY)
    while done < kills:
        group = Group(work, iterations=ITERATIONS)
        started = _check(work, reference)
        time.sleep(drawn.uniform(0, seconds))
        alive = group.processes()
        if alive:
            victim = drawn.choice(alive)
            launcher = victim in {one.pid for one in group.launchers}
            counts["launchers" if launcher else "ranks"] += 1
            _kill(victim)
            done += 1
            codes = group.wait(GRACE)
            counts["swept away"] += sum(code is None for code in codes)
        else:
            codes = group.wait(0)
            if codes != [0] * NODES:
                raise Broken(f"no process was killed, yet the launchers exited with {codes}")
        group.kill_rest()
        now = _check(work, reference)
        if now < started:
            raise Broken(f"checkpoint {started} was complete, now it is {now}")
        seen = [one["iteration"] for one in group.reported() if one["event"] == "progress"]
        if alive:
            losses.append(max([now, *seen]) - now)
        log(
            f"{done}/{kills}: from {started}, seen {max([0, *seen])}, complete {now}, codes {codes}"
        )
        if now == ITERATIONS:  # the final weights have just been compared
            runs += 1
            shutil.rmtree(_folder(work).folder.parent)
        keep(
            {
                "kills": done,
                "seed": seed,
                "whole_runs": runs,
                **counts,
                "undisturbed_seconds": round(seconds, 1),
                "iterations": ITERATIONS,
                "checkpoint_every": EVERY,
                "iterations_lost": {"largest": max(losses, default=0), "all": sum(losses)},
            }
        )


def _mounted(folder: Path, mebibytes: int) -> None:
    folder.mkdir()
    options = f"size={mebibytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def full_volume(volume: Path) -> dict[str, Any]:
    """Train on a volume with space for the first checkpoints only; then enlarge it."""
    folder = volume / "full"
    _mounted(folder, 120)
    try:
        write_data(folder, TINY)
        group = Group(folder, iterations=ITERATIONS)
        codes = group.end(180)
        failed = [one for one in group.reported() if one["event"] == "failed"]
        before = _folder(folder).latest_complete()
        subprocess.run(["mount", "-o", "remount,size=2g", folder], check=True)
        again = Group(folder, iterations=ITERATIONS)
        after = again.end(180)
        return {
            "exit_codes": codes,
            "said": [one.get("message") for one in failed][:1],
            "whole_before": before,
            "exit_codes_with_room": after,
            "whole_after": _folder(folder).latest_complete(),
        }
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def read_only_volume(volume: Path) -> dict[str, Any]:
    """Resume on a volume mounted read-only; then make it writable again."""
    folder = volume / "read-only"
    _mounted(folder, 2048)
    try:
        write_data(folder, TINY)
        first = Group(folder, iterations=2 * EVERY, logs=volume).end(180)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        before = _folder(folder).latest_complete()
        group = Group(folder, iterations=4 * EVERY, logs=volume)
        codes = group.end(180)
        failed = [one for one in group.reported() if one["event"] == "failed"]
        after = _folder(folder).latest_complete()
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        again = Group(folder, iterations=4 * EVERY, logs=volume).end(180)
        return {
            "exit_codes_before": first,
            "whole_before": before,
            "exit_codes": codes,
            "said": [one.get("message") for one in failed][:1],
            "whole_after": after,
            "exit_codes_writable": again,
            "whole_at_the_end": _folder(folder).latest_complete(),
        }
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def main(argv: list[str] | None = None) -> int:
    """Run the tests and write the record."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__)
    flags.add_argument("--kills", type=int, default=200)
    flags.add_argument(
        "--seed", type=int, help="for the choice of moments and processes (default: the next one)"
    )
    flags.add_argument("--json", type=Path, default=RESULTS)
    flags.add_argument(
        "--only",
        nargs="+",
        choices=("killed", "full", "read-only"),
        default=("killed", "full", "read-only"),
    )
    args = flags.parse_args(argv)
    record = json.loads(args.json.read_text()) if args.json.exists() else {}
    trials = {one["seed"]: one for one in record.get("killed", [])}
    seed = args.seed or max(trials, default=0) + 1
    command = " ".join(["python -m benchmarks.torture", *(sys.argv[1:] if argv is None else argv)])
    machine = facts(command)

    def keep(name: str, found: Any) -> None:
        record[name] = found
        args.json.write_text(json.dumps(record, indent=1) + "\n")
        reliability.write()

    def keep_kills(found: dict[str, Any]) -> None:
        trials[seed] = found | {"machine": machine}
        keep("killed", [trials[one] for one in sorted(trials)])

    def log(text: str) -> None:
        print(text, flush=True)

    with tempfile.TemporaryDirectory() as text:
        volume = Path(text)
        (volume / "reference").mkdir()
        (volume / "work").mkdir()
        try:
            if "full" in args.only:
                keep("full", full_volume(volume) | {"machine": machine})
            if "read-only" in args.only:
                keep("read-only", read_only_volume(volume) | {"machine": machine})
            if "killed" in args.only:
                killed(volume, args.kills, seed, log, keep_kills)
        except (Broken, UserError) as error:
            print(f"BROKEN (seed {seed}): {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
