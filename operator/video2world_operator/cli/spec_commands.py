"""Implement the v2w commands that only read a resource file: validate and render."""

from __future__ import annotations

import argparse
import sys

from video2world_operator.cli.common import load_plan


def validate(args: argparse.Namespace) -> int:
    """Check a resource file and print its stages."""
    plan = load_plan(args)
    stages = " -> ".join(stage.name for stage in plan.stages)
    print(f"{args.file}: {plan.name} is valid ({stages})")
    return 0


def render(args: argparse.Namespace) -> int:
    """Print the manifests of a resource file."""
    from video2world_operator.plan.plan import to_yaml

    sys.stdout.write(to_yaml(load_plan(args)))
    return 0
