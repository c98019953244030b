"""Divide the work of a stage between several pods."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from video2world_common.exit_codes import UserError

__all__ = ["Shard", "shard_flags", "shard_of"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """The ``index``-th of ``count`` equal shards."""

    index: int = 0
    count: int = 1

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this shard of ``items``: neighbours, which one read of an archive can return."""
        total = len(items)
        return items[total * self.index // self.count : total * (self.index + 1) // self.count]

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


def shard_flags() -> argparse.ArgumentParser:
    """Return the flags of commands whose work can be divided, as a parent parser."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument(
        "--shards",
        type=int,
        default=1,
        metavar="N",
        help="divide the work between N commands, of which this is the K-th (default: 1)",
    )
    flags.add_argument(
        "--shard",
        type=int,
        metavar="K",
        help="index of this one, from 0 (default: JOB_COMPLETION_INDEX, set by an Indexed Job)",
    )
    return flags


def shard_of(args: argparse.Namespace) -> Shard:
    """Return the shard that the flags of :func:`shard_flags` name.

    Raises:
        UserError: there is no such shard.
    """
    if args.shards == 1 and args.shard is None:
        return Shard()
    index = os.environ.get("JOB_COMPLETION_INDEX", "") if args.shard is None else str(args.shard)
    if not (index.isascii() and index.isdigit() and int(index) < args.shards):
        raise UserError(
            f"--shard {index or 'is missing'}: use 0 to N - 1 of --shards N (here {args.shards}), "
            "or set JOB_COMPLETION_INDEX"
        )
    return Shard(int(index), args.shards)
