"""Implement the v2w commands that read a run: status, explain, logs, checkpoints."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from video2world_operator.cli.common import POLL_SECONDS

if TYPE_CHECKING:
    from video2world_operator.cli.snapshot import ClusterObjects, Snapshot


def status_local(args: argparse.Namespace) -> int:
    """Show the status of a local run, with --watch until the run has ended."""
    from video2world_operator.api.status import Phase
    from video2world_operator.cli.local_run import snapshot

    show = _printer(args)
    while True:
        seen = snapshot(args.volume, args.name)
        show(seen)
        if not args.watch or seen.gone or seen.ended or seen.status.phase == Phase.SUSPENDED:
            return 0
        time.sleep(POLL_SECONDS)


def status_cluster(args: argparse.Namespace) -> int:
    """Show the status of a resource in the cluster."""
    from video2world_operator.cli.cluster_run import watch

    watch(args.name, args.namespace, _printer(args), POLL_SECONDS if args.watch else None)
    return 0


def _printer(args: argparse.Namespace) -> Callable[[Snapshot], None]:
    """Return a function that shows a snapshot: as JSON, or as a tree updated in place."""
    from video2world_operator.api.status import dump_status
    from video2world_operator.cli.status_tree import tree
    from video2world_operator.terminal import Screen, writes_unicode

    screen, before = Screen(sys.stdout, live=args.watch), list[object]()

    def show(seen: Snapshot) -> None:
        changed = before != [seen.status, seen.note]
        before[:] = seen.status, seen.note
        if args.output == "json":
            if changed:
                print(json.dumps(dump_status(seen.status), indent=2), flush=True)
            return
        plain = not writes_unicode(sys.stdout)
        screen.show(tree(seen, datetime.now(UTC), plain=plain), changed=changed)

    return show


def explain_local(args: argparse.Namespace) -> int:
    """Explain why a local run is stuck."""
    from video2world_operator.cli.local_run import snapshot
    from video2world_operator.cli.snapshot import ClusterObjects

    return print_causes(snapshot(args.volume, args.name), ClusterObjects())


def explain_cluster(args: argparse.Namespace) -> int:
    """Explain why a resource in the cluster is stuck."""
    from video2world_operator.cli.cluster_run import observe

    return print_causes(*observe(args.name, args.namespace))


def print_causes(seen: Snapshot, objects: ClusterObjects) -> int:
    """Print the causes; returns the exit code, 0 also if there are some."""
    from video2world_operator.cli.explain import explain
    from video2world_operator.reconcile.eviction_cost import describe
    from video2world_operator.terminal import sanitize_terminal

    status, now = seen.status, datetime.now(UTC)
    causes = explain(seen, objects, now)
    message = "" if causes else status.message  # a cause says more
    print(sanitize_terminal(f"{seen.name}: {status.phase}  {message}".rstrip()))
    if not causes:
        print("no problems found")
    for cause in causes:
        print(f"cause     {sanitize_terminal(cause.what)}")
        print(f"fix       {sanitize_terminal(cause.remedy)}.")
        reported = [line for line in cause.evidence.splitlines() if line and line != cause.what]
        for number, line in enumerate(reported):
            print(f"{'' if number else 'reported':<9} {sanitize_terminal(line)}")
    if status.eviction_cost is not None:
        print(f"eviction  would lose {describe(status.eviction_cost, now)}, unless it saves first")
    return 0


def logs_cluster(args: argparse.Namespace) -> int:
    """Print the log of a pod in the cluster."""
    from video2world_operator.cli.cluster_run import logs

    logs(
        args.name,
        args.namespace,
        stage=args.stage,
        rank=args.rank,
        attempt=args.attempt,
        follow=args.follow,
    )
    return 0


def checkpoints_cluster(args: argparse.Namespace) -> int:
    """Print the latest checkpoint and the attempts that the status lists."""
    from video2world_operator.cli.cluster_run import status

    seen = status(args.name, args.namespace)
    if (latest := seen.checkpoint) is None:
        print(f"{args.name}: no checkpoint yet")
        return 0
    print(f"{latest.iteration:>9}  {latest.time or ''}  {latest.path}  latest")
    for attempt in seen.attempts:
        span = f"{attempt.start_iteration} to {attempt.end_iteration}"
        print(f"  attempt {attempt.number}: iterations {span}  {attempt.reason}")
    return 0


def logs_local(args: argparse.Namespace) -> int:
    """Print the log of a worker of a local run."""
    from video2world_operator.cli.local_run import print_log

    print_log(
        args.volume,
        args.name,
        stage=args.stage,
        rank=args.rank,
        attempt=args.attempt,
        follow=args.follow,
        out=sys.stdout,
    )
    return 0


def checkpoints_local(args: argparse.Namespace) -> int:
    """List the checkpoints on the volume of a local run."""
    from video2world_common.progress_events import duration
    from video2world_operator.cli.local_checkpoints import checkpoints

    for folder, found in checkpoints(args.volume, args.name):
        print(folder)
        print(f"  {'ITERATION':>9}  {'SIZE':>10}  {'AGE':>7}  STATE")
        for checkpoint in found:
            size, age = f"{checkpoint.size / 2**20:.1f} MiB", duration(checkpoint.age)
            state = (checkpoint.damage or "complete") + ("  latest" if checkpoint.is_latest else "")
            print(f"  {checkpoint.iteration:>9}  {size:>10}  {age:>7}  {state}")
    return 0
