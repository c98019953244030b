"""``make chaos``: trials by seed on a real control plane, and the record of what they came to.

Each seed draws its resources and its faults; the same seed draws the same ones again, so that
``--seed N`` repeats a trial that has failed (not to the last interleaving: the processes are real).
What helps to find the cause lies in ``build/chaos/``. Writes ``benchmarks/results/chaos.json`` and
makes ``docs/reliability.md`` of it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from control_plane import Cluster

from .. import reliability
from ..host import facts
from ..reliability import CHAOS
from . import ROOT
from .arena import Arena
from .schedule import KINDS, Fault, faults, resources, told
from .trial import Size, Trial, run

NODES = 8
TRACES = ROOT / "build" / "chaos"
FAULTS = 16  # in each trial


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code is 1 if an invariant did not hold."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--seeds", type=int, default=200, help="seeds to have in the record (200)")
    flags.add_argument("--seed", type=int, help="only this one, and no record of it")
    flags.add_argument("--resources", type=int, default=100, help="in each trial (100)")
    flags.add_argument("--faults", type=int, default=FAULTS, help=f"in each trial ({FAULTS})")
    flags.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=[],
        metavar="KIND",
        help="only these kinds of faults; not for the record",
    )
    flags.add_argument(
        "--shrink",
        action="store_true",
        help="with --seed: leave out faults as long as it still fails",
    )
    flags.add_argument(
        "--trace", action="store_true", help="with --seed: leave its trace though it holds"
    )
    flags.add_argument(
        "--anew", action="store_true", help="a new record; else seeds that it has are not run again"
    )
    flags.add_argument("--minutes", type=float, default=1e9, help="begin no seed after so long")
    flags.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="so many trials at once, each on a control plane of its own (1): one "
        "waits more than it works",
    )
    flags.add_argument("--share", type=int, help=argparse.SUPPRESS)
    args = flags.parse_args(argv)
    command = list(sys.argv[1:] if argv is None else argv)
    if args.jobs > 1 and args.seed is None and args.share is None:
        return _at_once(command, args.jobs)
    os.environ.setdefault("GOGC", "1000")  # memory for time, in the control plane
    os.environ.setdefault("GOMEMLIMIT", "3GiB")  # of each of its processes, and no more of it
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # the proxy's clients are killed
    with tempfile.TemporaryDirectory() as folder, _cluster() as cluster:
        cluster.install_definition(ROOT / "manifests" / "crd.yaml")
        with Arena(cluster, Path(folder)) as arena:
            series = _Series(arena, args)
            if args.seed is not None:
                return series.repeat(args.seed)
            return series.go(" ".join(["python -m benchmarks.chaos", *command]))


def _at_once(command: list[str], jobs: int) -> int:
    """Processes that take every ``jobs``-th seed each; they share the record."""
    if "--anew" in command:
        command = [one for one in command if one != "--anew"]
        CHAOS.unlink(missing_ok=True)
    shares = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos", *command, "--share", str(number)]
        )
        for number in range(jobs)
    ]
    return max(one.wait() for one in shares)


def _cluster() -> Cluster:
    """Workers of ``schedule.resources`` run for as long as their pods say, and print events."""
    lines = {
        container: [json.dumps(event) for event in events]
        for container, events in told(resources(0, 100)).items()
    }
    return Cluster(
        nodes=NODES,
        native_gang=True,
        readable_store=True,
        worker_logs=lines,
        audited=[{"level": "None"}],  # nobody reads it here
    )


@contextlib.contextmanager
def _record(size: dict[str, int], anew: bool = False) -> Iterator[dict[str, Any]]:
    """The record, which is written when done with; nobody else has it meanwhile."""
    CHAOS.touch()
    with CHAOS.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        record: dict[str, Any] = json.loads(stream.read() or "{}")
        if anew or any(record.get(name) != value for name, value in size.items()):
            record = {**size, "trials": []}  # trials of another size are another series
        yield record
        stream.seek(0)
        stream.write(json.dumps(record) + "\n")
        stream.truncate()


class _Series:
    """Trials one after another, on one control plane."""

    def __init__(self, arena: Arena, args: argparse.Namespace) -> None:
        self._arena, self._args = arena, args
        done = told(resources(0, 100))["download"]
        self._known = {(event["stage"], event["inputsHash"]) for event in done}

    def trial(self, seed: int, schedule: Sequence[Fault] | None = None) -> Trial:
        """Run a seed, print how it went, and leave a trace if something did not hold."""
        bodies = resources(seed, self._args.resources)
        if schedule is None:
            schedule = faults(seed, self._args.faults, self._args.kinds)
        one = run(self._arena, seed, bodies, schedule, Size(), self._known)
        print(f"seed {seed}: {'BROKEN' if one.broken else 'held'} {json.dumps(one.figures)}")
        for broken in one.broken[:10]:
            print(f"  {broken.invariant}: {broken.resource}: {broken.text[-400:]}")
        if one.broken or self._args.trace:
            path = one.write(TRACES, self._arena.logs())
            print(f"  {path.relative_to(ROOT)}; again: python -m benchmarks.chaos --seed {seed}")
        sys.stdout.flush()
        return one

    def go(self, command: str) -> int:
        """All seeds of this share that the record lacks; it is written after each."""
        args, until = self._args, time.monotonic() + self._args.minutes * 60
        machine = facts(command)
        version = self._arena.cluster.admin.get("/version")["gitVersion"]
        size = {"resources": args.resources, "faults": args.faults}
        with _record(size, args.anew) as record:
            there = {one["seed"] for one in record["trials"]}
        for seed in range(1 + (args.share or 0), args.seeds + 1, args.jobs):
            if seed in there:
                continue
            if time.monotonic() > until:
                break
            trial = self.trial(seed)
            with _record(size) as record:
                record |= {"machine": machine, "control_plane": version}
                record["trials"].append(trial.told() | {"commit": machine["commit"]})
            reliability.write()
        with _record(size) as record:
            trials = record["trials"]
        failed = sorted(one["seed"] for one in trials if one["broken"])
        print(f"{len(trials)} seeds, {len(failed)} with a broken invariant: {failed}")
        return 1 if failed else 0

    def repeat(self, seed: int) -> int:
        """One seed again; with ``--shrink`` with as few faults as still break something."""
        schedule = faults(seed, self._args.faults, self._args.kinds)
        broken = bool(self.trial(seed, schedule).broken)
        if broken and self._args.shrink:
            step = len(schedule) // 2
            while step:
                for begin in range(0, len(schedule), step):
                    fewer = [*schedule[:begin], *schedule[begin + step :]]
                    if self.trial(seed, fewer).broken:
                        schedule = fewer
                        break
                else:
                    step //= 2
            print("enough to break it:", *schedule, sep="\n  ")
        return int(broken)


if __name__ == "__main__":
    sys.exit(main())
