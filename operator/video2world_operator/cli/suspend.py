"""Implement v2w suspend and v2w resume."""

from __future__ import annotations

import argparse


def suspend_remote(args: argparse.Namespace) -> int:
    from video2world_operator.cli.cluster_run import suspend

    changed = suspend(args.name, args.namespace, True)
    print(f"{args.name}: {'saves its work and frees its GPUs' if changed else 'is suspended'}")
    return 0


def resume_remote(args: argparse.Namespace) -> int:
    from video2world_operator.cli.cluster_run import suspend

    changed = suspend(args.name, args.namespace, False)
    print(f"{args.name}: {'goes on' if changed else 'is not suspended'}")
    return 0
