"""Say which flags of a command were given without having an effect."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from video2world_common.events import say

__all__ = ["note_without_effect"]


def note_without_effect(
    args: argparse.Namespace, flags: argparse.ArgumentParser, names: Iterable[str], why: str
) -> None:
    """Note each of ``names`` (as attributes of ``args``) that is not at its default.

    Args:
        args: the parsed flags.
        flags: their parser.
        names: flags that nothing reads here.
        why: completes "has no effect ...".
    """
    wanted = set(names)
    for action in flags._actions:
        if action.dest in wanted and getattr(args, action.dest) != action.default:
            say(f"note: {action.option_strings[0]} has no effect {why}")
