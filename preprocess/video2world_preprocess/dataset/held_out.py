"""Choose a share of the episodes or videos to hold out of training, by a hash of their names.

Whether one is held out depends on its own name only, so that adding others changes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError

__all__ = [
    "add_flag",
    "add_requirement",
    "choose_held_out",
    "is_held_out",
    "require_held_out",
]


def add_flag(flags: argparse.ArgumentParser, items: str) -> None:
    """Add ``--val_percent``."""
    flags.add_argument(
        "--val_percent",
        type=int,
        choices=range(51),
        metavar="N",
        default=0,
        help=f"also hold out about this share of the {items} for validation, at least one, chosen "
        "by a hash of the name: 0 to 50 (default: 0)",
    )


def _place(name: str) -> int:
    """Return a number from 0 to 9999 that depends on ``name`` only."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10_000


def is_held_out(name: str, percent: int) -> bool:
    """Return whether ``name`` belongs to the held-out share."""
    return _place(name) < 100 * percent


def choose_held_out(names: Iterable[str], percent: int) -> set[str]:
    """Return the held-out ones of ``names``: at least one, and never all."""
    ordered = sorted(set(names), key=lambda name: (_place(name), name))
    if not percent or len(ordered) < 2:
        return set()
    chosen = {name for name in ordered if is_held_out(name, percent)} or {ordered[0]}
    return chosen if len(chosen) < len(ordered) else set(ordered[:-1])


def add_requirement(flags: argparse.ArgumentParser) -> None:
    """Add ``--require_val``."""
    flags.add_argument(
        "--require_val",
        action="store_true",
        help="end with code 2 if no window is held out, before training needs GPUs",
    )


def require_held_out(args: argparse.Namespace, folder: Path, counts: Mapping[str, Any]) -> None:
    """Check that the data set in ``folder`` has what ``--require_val`` asks for.

    Args:
        args: the parsed flags.
        folder: the data set's folder.
        counts: those of its report.

    Raises:
        UserError: there is no held-out window.
    """
    if args.require_val and not counts.get("val_windows"):
        raise UserError(
            f"--require_val: there is no usable window in {folder}/val, which "
            "spec.training.validation needs: hold out more (validationPercent, "
            "validationEpisodeIDs, validationEpisodes or validationNames in spec.dataset; "
            "val/videos and val/metas of a prepared folder), or leave spec.training.validation out"
        )
