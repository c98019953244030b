"""Say which numbers of a data set are its actions: the flags of the commands that read them."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

from video2world_common.action_statistics import (
    NORMALIZATIONS,
    REPRESENTATIONS,
    Normalization,
    Representation,
)
from video2world_common.exit_codes import UserError

__all__ = ["ActionSelection", "action_flags", "action_selection"]


@dataclass(frozen=True)
class ActionSelection:
    """The columns to use, in order, and what to make of them; ``names`` is a subset of theirs."""

    columns: tuple[str, ...]
    names: tuple[str, ...] = ()
    representation: Representation = "absolute"
    normalization: Normalization = "statistics"

    def settings(self) -> dict[str, Any]:
        """Return the settings for the owner record of a folder."""
        return {"actions": {k: v for k, v in asdict(self).items() if v}}


def action_flags(columns: str) -> argparse.ArgumentParser:
    """Return a parent parser with the flags; ``columns`` says what ``--actions`` names."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument(
        "--actions",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help=f"actions to write for every window, from {columns}; several are joined "
        "(default: none)",
    )
    flags.add_argument(
        "--action_names",
        nargs="+",
        default=[],
        metavar="NAME",
        help="which values of the columns to use, in this order (default: all)",
    )
    flags.add_argument(
        "--action_representation",
        choices=REPRESENTATIONS,
        default="absolute",
        help="absolute: the values as they are; relative_pose: poses of the end effector (x y z "
        "roll pitch yaw, or x y z qx qy qz qw, then the gripper) become changes from frame to "
        "frame (default: %(default)s)",
    )
    flags.add_argument(
        "--action_normalization",
        choices=NORMALIZATIONS,
        default="statistics",
        help="statistics: mean 0 and standard deviation 1; published: that of NVIDIA's "
        "action-conditioned weights, 20 times a relative pose (default: %(default)s)",
    )
    return flags


def action_selection(args: argparse.Namespace) -> ActionSelection | None:
    """Return what the flags of :func:`action_flags` select, None without ``--actions``.

    Raises:
        UserError: the flags contradict each other.
    """
    if not args.actions:
        if args.action_names:
            raise UserError("--action_names: give the columns as --actions")
        return None
    for flag, values in (("--actions", args.actions), ("--action_names", args.action_names)):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise UserError(f"{flag}: {', '.join(twice)} is given twice")
    if args.action_normalization == "published" and args.action_representation != "relative_pose":
        raise UserError(
            "--action_normalization published is that of relative poses: add "
            "--action_representation relative_pose, or use statistics"
        )
    return ActionSelection(
        tuple(args.actions),
        tuple(args.action_names),
        args.action_representation,
        args.action_normalization,
    )
