"""``make chaos``: run seeded trials on a real control plane and record their outcome.

A seed determines the resources and faults of its trial, so that ``--seed N`` repeats one that
failed (but not its interleaving: the processes are real). The trace of a failed trial is in
``build/chaos/``. Writes ``benchmarks/results/chaos.json`` and ``docs/reliability.md``.
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
from control_plane.kueue import Kueue

from .. import reliability
from ..host import facts
from ..reliability import CHAOS, CHAOS_KUEUE
from . import ROOT
from .schedule import KINDS, KUEUE_KINDS, QUEUE, Fault, faults, resources, worker_events
from .testbed import Testbed
from .trial import Timeouts, Trial, run

NODES = 8
TRACES = ROOT / "build" / "chaos"
FAULTS = 16  # in each trial


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials; the exit code is 1 if an invariant did not hold."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--seeds", type=int, default=200, help="seeds to have in the record (200)")
    flags.add_argument("--seed", type=int, help="run this seed only, without recording it")
    flags.add_argument("--resources", type=int, default=100, help="in each trial (100)")
    flags.add_argument("--faults", type=int, default=FAULTS, help=f"in each trial ({FAULTS})")
    flags.add_argument(
        "--kinds",
        nargs="+",
        choices=[*KINDS, *KUEUE_KINDS],
        default=[],
        metavar="KIND",
        help="inject these kinds of faults only; not for the record",
    )
    flags.add_argument(
        "--shrink",
        action="store_true",
        help="with --seed: drop faults as long as the trial still fails",
    )
    flags.add_argument(
        "--trace", action="store_true", help="with --seed: keep the trace of a passing trial, too"
    )
    flags.add_argument(
        "--new-record",
        action="store_true",
        help="start a new record instead of adding to it",
    )
    flags.add_argument(
        "--kueue",
        action="store_true",
        help="let Kueue admit the GPU stages, with faults of its own; a record of its own",
    )
    flags.add_argument("--minutes", type=float, default=1e9, help="start no seed after this time")
    flags.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="run N trials at once, each on a control plane of its own (1)",
    )
    flags.add_argument("--share", type=int, help=argparse.SUPPRESS)
    args = flags.parse_args(argv)
    command = list(sys.argv[1:] if argv is None else argv)
    if args.jobs > 1 and args.seed is None and args.share is None:
        return _run_in_parallel(command, args.jobs)
    os.environ.setdefault("GOGC", "1000")  # fewer collections in the control plane
    os.environ.setdefault("GOMEMLIMIT", "3GiB")  # per process
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # the proxy's clients get killed
    with tempfile.TemporaryDirectory() as folder, _cluster() as cluster:
        cluster.install_definition(ROOT / "manifests" / "crd.yaml")
        kueue = Kueue(cluster) if args.kueue else None
        with Testbed(cluster, Path(folder), kueue=kueue) as testbed:
            series = _Series(testbed, args)
            if args.seed is not None:
                return series.repeat(args.seed)
            return series.run_all(" ".join(["python -m benchmarks.chaos", *command]))


def _run_in_parallel(command: list[str], jobs: int) -> int:
    """Start ``jobs`` processes that divide the seeds and share the record."""
    if "--new-record" in command:
        command = [one for one in command if one != "--new-record"]
        (CHAOS_KUEUE if "--kueue" in command else CHAOS).unlink(missing_ok=True)
    shares = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos", *command, "--share", str(number)]
        )
        for number in range(jobs)
    ]
    return max(one.wait() for one in shares)


def _cluster() -> Cluster:
    """Start a cluster whose fake workers print the events of ``schedule.worker_events``."""
    lines = {
        container: [json.dumps(event) for event in events]
        for container, events in worker_events(resources(0, 100)).items()
    }
    return Cluster(
        nodes=NODES,
        native_gang=True,
        readable_store=True,
        worker_logs=lines,
        audited=[{"level": "None"}],  # the audit log is not read
    )


@contextlib.contextmanager
def _record(path: Path, size: dict[str, int], start_new: bool = False) -> Iterator[dict[str, Any]]:
    """Lock the record, yield it, and write it back."""
    path.touch()
    with path.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        record: dict[str, Any] = json.loads(stream.read() or "{}")
        if start_new or any(record.get(name) != value for name, value in size.items()):
            record = {**size, "trials": []}  # trials of another size are another series
        yield record
        stream.seek(0)
        stream.write(json.dumps(record) + "\n")
        stream.truncate()


class _Series:
    """Trials one after another on one control plane."""

    def __init__(self, testbed: Testbed, args: argparse.Namespace) -> None:
        self._testbed, self._args = testbed, args
        done = worker_events(resources(0, 100))["download"]
        self._known = {(event["stage"], event["inputsHash"]) for event in done}

    def trial(self, seed: int, schedule: Sequence[Fault] | None = None) -> Trial:
        """Run a seed, print its outcome, and write a trace if an invariant did not hold."""
        bodies = resources(seed, self._args.resources, QUEUE if self._args.kueue else "")
        if schedule is None:
            schedule = self._faults(seed)
        one = run(self._testbed, seed, bodies, schedule, Timeouts(), self._known)
        print(f"seed {seed}: {'BROKEN' if one.violations else 'held'} {json.dumps(one.figures)}")
        for violation in one.violations[:10]:
            print(f"  {violation.invariant}: {violation.resource}: {violation.text[-400:]}")
        if one.violations or self._args.trace:
            path = one.write(TRACES, self._testbed.logs())
            flag = " --kueue" if self._args.kueue else ""
            again = f"python -m benchmarks.chaos{flag} --seed {seed}"
            print(f"  {path.relative_to(ROOT)}; repeat: {again}")
        sys.stdout.flush()
        return one

    def _faults(self, seed: int) -> list[Fault]:
        kinds = self._args.kinds or ([*KINDS, *KUEUE_KINDS] if self._args.kueue else [])
        return faults(seed, self._args.faults, kinds)

    def run_all(self, command: str) -> int:
        """Run the seeds that the record lacks, and write it after each."""
        args, until = self._args, time.monotonic() + self._args.minutes * 60
        machine = facts(command)
        version = self._testbed.cluster.admin.get("/version")["gitVersion"]
        size = {"resources": args.resources, "faults": args.faults}
        path = CHAOS_KUEUE if args.kueue else CHAOS
        with _record(path, size, args.new_record) as record:
            recorded = {one["seed"] for one in record["trials"]}
        for seed in range(1 + (args.share or 0), args.seeds + 1, args.jobs):
            if seed in recorded:
                continue
            if time.monotonic() > until:
                break
            trial = self.trial(seed)
            with _record(path, size) as record:
                record |= {"machine": machine, "control_plane": version}
                if self._testbed.kueue is not None:
                    record["kueue"] = self._testbed.kueue.version
                record["trials"].append(trial.record() | {"commit": machine["commit"]})
            reliability.write()
        with _record(path, size) as record:
            trials = record["trials"]
        failed = sorted(one["seed"] for one in trials if one["broken"])
        print(f"{len(trials)} seeds, {len(failed)} with a broken invariant: {failed}")
        return 1 if failed else 0

    def repeat(self, seed: int) -> int:
        """Run one seed again; with ``--shrink`` drop faults while it still fails."""
        schedule = self._faults(seed)
        broken = bool(self.trial(seed, schedule).violations)
        if broken and self._args.shrink:
            step = len(schedule) // 2
            while step:
                for begin in range(0, len(schedule), step):
                    fewer = [*schedule[:begin], *schedule[begin + step :]]
                    if self.trial(seed, fewer).violations:
                        schedule = fewer
                        break
                else:
                    step //= 2
            print("these faults still break it:", *schedule, sep="\n  ")
        return int(broken)


if __name__ == "__main__":
    sys.exit(main())
