"""Implement v2w suspend and v2w resume."""

from __future__ import annotations

import argparse


def suspend_cluster(args: argparse.Namespace) -> int:
    """Suspend a resource."""
    from video2world_operator.cli.cluster_run import suspend

    changed = suspend(args.name, args.namespace, True)
    text = (
        "suspending: saving a checkpoint, then releasing GPUs" if changed else "already suspended"
    )
    print(f"{args.name}: {text}")
    return 0


def resume_cluster(args: argparse.Namespace) -> int:
    """Resume a suspended resource."""
    from video2world_operator.cli.cluster_run import suspend

    changed = suspend(args.name, args.namespace, False)
    print(f"{args.name}: {'resuming' if changed else 'not suspended'}")
    return 0
