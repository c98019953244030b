"""Print a shell's completion script for v2w (v2w completion)."""

from __future__ import annotations

import argparse

import shtab

from video2world_operator.cli.parser import parser

__all__ = ["completion"]


def completion(args: argparse.Namespace) -> int:
    """Print the script for the shell that ``args`` names."""
    print(shtab.complete(parser(), args.shell))
    return 0
