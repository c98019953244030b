"""Which part of the work is this pod's, where several share it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from video2world_common.exit_codes import UserError

__all__ = ["Share", "share_flags", "share_of"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """The ``index``-th of ``count`` equal shares."""

    index: int = 0
    count: int = 1

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """This share of ``items``: neighbours, as neighbours in an archive are read in one go."""
        total = len(items)
        return items[total * self.index // self.count : total * (self.index + 1) // self.count]

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


def share_flags() -> argparse.ArgumentParser:
    """The flags of commands whose work can be shared, to be a parent of their parsers."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument(
        "--shards",
        type=int,
        default=1,
        metavar="N",
        help="share the work between N commands, of which this one is the K-th (default: 1)",
    )
    flags.add_argument(
        "--shard",
        type=int,
        metavar="K",
        help="which of them, from 0 (default: JOB_COMPLETION_INDEX, of an Indexed Job)",
    )
    return flags


def share_of(args: argparse.Namespace) -> Share:
    """What :func:`share_flags` ask for.

    Raises:
        UserError: there is no such share.
    """
    if args.shards == 1 and args.shard is None:
        return Share()
    given = os.environ.get("JOB_COMPLETION_INDEX", "") if args.shard is None else str(args.shard)
    if not (given.isascii() and given.isdigit() and int(given) < args.shards):
        raise UserError(
            f"--shard {given or 'is missing'}: give 0 to N - 1 of --shards N (here {args.shards}), "
            "or JOB_COMPLETION_INDEX"
        )
    return Share(int(given), args.shards)
